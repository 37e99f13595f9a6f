"""Florence-2's encoder, which DP-VLA and X-VLA share."""
