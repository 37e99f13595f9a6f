"""Checks of options that several commands share; each raises an InputError that names what was given."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from navsim_adapter.foundation.errors import InputError


def spare_inputs(outputs: Iterable[str | Path], inputs: Iterable[str | Path | None]) -> None:
    """No file that a command is about to write may be one that it reads. None is an input that was not given."""
    read = {Path(path).resolve() for path in inputs if path is not None}
    for path in outputs:
        if Path(path).resolve() in read:
            raise InputError(f"{path}: is an input of this command and would be overwritten; name another output")


def local_path(option: str, path: str | Path) -> Path:
    """A path of this machine. Raises InputError for an address, a host's path, and what a shell leaves unexpanded.

    An address is one without its second slash, too: `Path` drops it.
    """
    text = str(path)
    if re.match(r"[^/\s]+:/", text) or re.match(r"(s3|s3a|gs|gcs|az|abfss?|hdfs|dbfs|hf|https?|file):", text, re.I):
        raise InputError(f"{option}: {text!r} is no path of this machine; name a file or folder that is mounted here")
    if text.startswith("~") or "$" in text:
        raise InputError(f"{option}: {text!r}: ~ and $ are not expanded here; write the path out")
    return Path(text)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except (TypeError, OverflowError):  # no number, or one beyond a float
        return False


def check_range(option: str, value: float | None, least: float = -math.inf, most: float = math.inf) -> None:
    """A number must be finite and in its range. None is one that was not given."""
    if value is None or (_is_finite(value) and least <= value <= most):
        return
    bounds = "a finite number" if least == -math.inf else f"at least {least}"
    if most < math.inf:
        bounds = f"{least} to {most}"
    raise InputError(f"{option}: must be {bounds}, got {value}")
