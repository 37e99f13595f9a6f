"""Where the data sets with official figures lie, if this checkout has them beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

_BESIDE = Path(__file__).resolve().parents[2] / "shared"

SHARED: Path | None = _BESIDE if (_BESIDE / "navsim_dev").is_dir() else None
SETS = ("navsim_dev", "navsim_quirks")

needs_shared = pytest.mark.skipif(
    SHARED is None, reason="the data sets with official figures are not beside this clone"
)

LAST_BIT_SCENE = "95f03579c2243ddc"
"""A reactive car exactly behind the ego: the last bit of a sine decides whether its angle is a number (metric
10.1 (4)). Official figures come from a processor with AVX-512, on which numpy has another sine than on others."""


def has_avx512() -> bool:
    found: list[str] = np.show_config(mode="dicts")["SIMD Extensions"]["found"]  # type: ignore[call-overload, index]
    return any(name == "X86_V4" or name.startswith("AVX512") for name in found)
