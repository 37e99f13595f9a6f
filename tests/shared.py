"""Where the data sets with official figures lie, if this checkout has them beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

_BESIDE = Path(__file__).resolve().parents[2] / "shared"

SHARED: Path | None = _BESIDE if (_BESIDE / "navsim_dev").is_dir() else None
SETS = ("navsim_dev", "navsim_quirks")

needs_shared = pytest.mark.skipif(
    SHARED is None, reason="the data sets with official figures are not beside this clone"
)
