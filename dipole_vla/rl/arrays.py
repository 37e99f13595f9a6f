"""npz files that a kill cannot tear: written aside and renamed, read without running code."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import atomic_path


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], is_compressed: bool = True) -> None:
    save: Any = np.savez_compressed if is_compressed else np.savez
    with atomic_path(path) as aside, open(aside, "wb") as file:
        save(file, **arrays)


def read_arrays(path: Path, remedy: str) -> dict[str, np.ndarray]:
    """All arrays of a file; InputError ending in `remedy` where it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as problem:
        raise InputError(f"{path}: cannot be read ({type(problem).__name__}); {remedy}") from problem
