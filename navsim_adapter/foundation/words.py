"""Numbers within sentences."""

from __future__ import annotations


def counted(count: int, word: str, digits: str = "") -> str:
    """`1 scene`, `0 scenes`, `2 scenes`; digits: how the number is written, e.g. "," between thousands."""
    return f"{count:{digits}} {word}" + ("" if count == 1 else "s")
