"""Checks of options that several commands share; made before anything is written."""

from __future__ import annotations

import math

from navsim_adapter.errors import InputError


def at_least(least: int, **options: int | None) -> None:
    """Numbers, or None where one is not given."""
    for name, value in options.items():
        if value is not None and value < least:
            raise InputError(f"--{name}: must be >= {least}, got {value}")


def finite(**options: float | None) -> None:
    """As `at_least`."""
    for name, value in options.items():
        if value is not None and not math.isfinite(value):
            raise InputError(f"--{name}: must be a finite number, got {value}")
