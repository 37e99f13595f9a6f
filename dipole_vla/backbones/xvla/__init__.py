"""X-VLA: Florence-2's encoder and a soft-prompted transformer."""
