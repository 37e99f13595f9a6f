"""Score tables (.csv): what `navsim-adapter score` writes.

Floats are written to the last digit, so a table that is read back and written again
is the same file; `merge` rests on that.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import atomic_path

ROW = "row"  # column of a shard's table: where the row stands in the whole one
LABELS = ("token", "name", "frame_type")


@dataclass(frozen=True)
class ScoreTable:
    """Figures of M trajectories in the order of the input.

    labels: column name -> M texts that come before the figures.  figures: (M, F), NaN where there is none.
    rows: (M,) where each stands in the whole input, if the table is a part of it.
    """

    labels: Mapping[str, Sequence[str]]
    columns: tuple[str, ...]
    figures: np.ndarray
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.figures)

    @property
    def tokens(self) -> Sequence[str]:
        return self.labels["token"]

    @property
    def names(self) -> Sequence[str]:
        return self.labels["name"]

    @property
    def is_scored(self) -> np.ndarray:
        """(M,) bool."""
        return ~np.isnan(self.figures[:, self.columns.index("score")])


def write_table(path: str | Path, table: ScoreTable) -> None:
    """token, name and the figures, floats to the last digit; an empty cell where there is no figure."""
    with atomic_path(path) as aside, open(aside, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        places = [] if table.rows is None else [ROW]
        writer.writerow([*places, *table.labels, *table.columns])
        for row, (labels, figures) in enumerate(zip(zip(*table.labels.values()), table.figures.tolist())):
            place = [] if table.rows is None else [int(table.rows[row])]
            writer.writerow([*place, *labels, *map(cell, figures)])


def cell(figure: float) -> str:
    """A figure as text that reads back to the same bits; empty for NaN."""
    return "" if figure != figure else repr(figure)


def read_table(path: str | Path) -> ScoreTable:
    """A table as `write_table` leaves it; raises InputError if it is none."""
    try:
        with open(path, newline="") as file:
            header, *lines = csv.reader(file)
        first = 1 if header[0] == ROW else 0
        last = next(place for place in range(len(header)) if header[place] not in (ROW, *LABELS))
        if {"token", "name"} - set(header[first:last]) or any(len(line) != len(header) for line in lines):
            raise ValueError("its rows do not fit its header")
        figures = np.array([[float(text or "nan") for text in line[last:]] for line in lines])
        rows = np.array([int(line[0]) for line in lines], np.int64) if first else None
    except (OSError, ValueError, StopIteration, UnicodeDecodeError, csv.Error) as problem:
        reason = " ".join(str(problem).split())[:120]
        raise InputError(f"{path}: is no table of navsim-adapter score ({reason}); score this part again") from problem
    labels = {name: [line[place] for line in lines] for place, name in enumerate(header[first:last], first)}
    return ScoreTable(labels, tuple(header[last:]), figures.reshape(len(lines), len(header) - last), rows)
