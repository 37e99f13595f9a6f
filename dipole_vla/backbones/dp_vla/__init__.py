"""DP-VLA: Florence-2's encoder and a DiT head."""
