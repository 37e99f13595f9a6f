"""Numbers of a recipe, checked where they enter."""

from __future__ import annotations

import math
from collections.abc import Mapping

from navsim_adapter.errors import InputError


def at_least(least: int, numbers: Mapping[str, float]) -> None:
    """InputError that names the first key whose number is below `least`, or not finite."""
    for key, value in numbers.items():
        if not least <= value < math.inf:
            raise InputError(f"{key}: must be >= {least}, got {value}")
