"""Columns of Arrow tables as numpy arrays, whole chunks at a time; a row that is wrong is named by its scene."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from navsim_adapter.foundation.errors import InputError

VARIANT = "variant"  # source of candidates that are for a critic alone


@dataclass(frozen=True)
class Names:
    """Who is who in a table, for messages. tokens: of its rows, or of groups of `group` rows. remedy: what to do."""

    folder: Path
    tokens: Sequence[str] = field(repr=False)
    remedy: str
    group: int = 1

    def wrong(self, row: int, what: str) -> InputError:
        return InputError(f"{self.folder}: scene {self.tokens[row // self.group]}: {what}; {self.remedy}")


def column(table: Any, name: str) -> pa.ChunkedArray:
    """A column of a `datasets` table. Asked for by name alone, `datasets` would give it row by row."""
    return table.select_columns([name]).with_format("arrow")[:][name]


def numbers(table: Any, name: str, names: Names) -> list[np.ndarray]:
    """Chunks (rows, *shape) of a column of finite numbers, or of lists of them that are equally long in all rows.

    They are views of the table: nothing is copied, and what is mapped stays on disk. InputError names the first scene
    whose row is null, of another length than the first one's, or not finite.
    """
    shape: tuple[int, ...] | None = None
    row = 0
    for chunk in column(table, name).chunks:
        if len(chunk):
            shape = _checked_shape(chunk, shape, row, name, names)
            finite = np.isfinite(_flat(chunk).to_numpy(zero_copy_only=False).reshape(len(chunk), -1)).all(1)
            if not finite.all():
                raise names.wrong(row + int((~finite).argmax()), f"column {name} holds NaN or infinity")
        row += len(chunk)
    return views(table, name, shape or ())


def views(table: Any, name: str, shape: tuple[int, ...]) -> list[np.ndarray]:
    """The same of a column that was checked before. shape: of a row."""
    chunks = [chunk for chunk in column(table, name).chunks if len(chunk)]
    return [_flat(chunk).to_numpy(zero_copy_only=False).reshape(len(chunk), *shape) for chunk in chunks]


def column_of_text(table: Any, name: str, folder: Path) -> list[str]:
    """A column of words; InputError gives the first row without one."""
    found = column(table, name).to_pylist()
    for row, value in enumerate(found):
        if not isinstance(value, str):
            raise InputError(f"{folder}: column {name}: row {row} holds {value!r}, not a text; make the table again")
    return found


def _checked_shape(
    chunk: pa.Array, shape: tuple[int, ...] | None, first: int, name: str, names: Names
) -> tuple[int, ...]:
    """Shape of a row. shape: of the rows before, if any. first: row of the table where the chunk begins."""
    found: list[int] = []
    for level in _levels(chunk):
        per_row = max(len(level) // len(chunk), 1)
        if level.null_count:
            row = first + int(level.is_null().to_numpy(zero_copy_only=False).argmax()) // per_row
            raise names.wrong(row, f"column {name} is null or holds a null")
        if not is_list(level.type):
            if not (pa.types.is_floating(level.type) or pa.types.is_integer(level.type)):
                raise InputError(f"{names.folder}: column {name} holds {level.type}, not numbers; {names.remedy}")
            break
        lengths = pc.list_value_length(level).to_numpy(zero_copy_only=False)
        wanted = int(lengths[0]) if shape is None or len(shape) <= len(found) else shape[len(found)]
        if (lengths != wanted).any():
            wrong = int((lengths != wanted).argmax())
            text = f"column {name} holds a list of {lengths[wrong]}, the rows before of {wanted}"
            raise names.wrong(first + wrong // per_row, text)
        found.append(wanted)
    return tuple(found)


def _levels(array: pa.Array) -> Iterator[pa.Array]:
    """Rows, then what is in their lists, end to end, down to the numbers."""
    while True:
        array = array.storage if isinstance(array, pa.ExtensionArray) else array
        yield array
        if not is_list(array.type):
            return
        array = array.flatten()


def _flat(array: pa.Array) -> pa.Array:
    return list(_levels(array))[-1]


def is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
