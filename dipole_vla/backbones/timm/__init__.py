"""A small driver on an encoder of timm, with DP-VLA's head."""
