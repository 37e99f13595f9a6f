"""Memory that an update frees is kept for the next one: fresh pages for large arrays are slow."""

from __future__ import annotations

import ctypes
import sys

# glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_MMAP_THRESHOLD = 32 * 1024 * 1024  # glibc refuses more
KEPT = 1024 * 1024 * 1024


def keep_freed_memory() -> bool:
    """Have malloc give back only what exceeds a gigabyte; False, and nothing done, where it is not glibc's."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD) and mallopt(M_TRIM_THRESHOLD, KEPT))
