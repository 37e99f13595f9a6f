"""Alpamayo 1 and 1.5: a flow expert over accelerations and curvatures that reads Qwen3-VL's keys and values."""
