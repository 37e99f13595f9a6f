"""Checks of options that several commands share; each raises an InputError that names what was given."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from navsim_adapter.errors import InputError


def spare_inputs(outputs: Iterable[str | Path], inputs: Iterable[str | Path | None]) -> None:
    """No file that a command is about to write may be one that it reads. None is an input that was not given."""
    read = {Path(path).resolve() for path in inputs if path is not None}
    for path in outputs:
        if Path(path).resolve() in read:
            raise InputError(f"{path}: is an input of this command and would be overwritten; name another output")


def at_least(option: str, value: float, least: float) -> None:
    """NaN is refused too."""
    if not value >= least:
        raise InputError(f"{option}: must be at least {least}, got {value}")
