"""Score tables (.csv): what `navsim-adapter score` writes."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from navsim_adapter.foundation.files import atomic_path


@dataclass(frozen=True)
class ScoreTable:
    """Figures of M trajectories in the order of the input.

    labels: column name -> M texts that come before the figures.  figures: (M, F), NaN where there is none.
    """

    labels: Mapping[str, Sequence[str]]
    columns: tuple[str, ...]
    figures: np.ndarray

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
        writer.writerow([*table.labels, *table.columns])
        for labels, figures in zip(zip(*table.labels.values()), table.figures.tolist()):
            writer.writerow([*labels, *map(cell, figures)])


def cell(figure: float) -> str:
    """A figure as text that reads back to the same bits; empty for NaN."""
    return "" if figure != figure else repr(figure)
