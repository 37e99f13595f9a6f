"""The devkit's own result tables: one planner a file, a row per scene, averages at the end (metric 7.2, 7.3).

A scene without a score is there with valid False and empty cells, and is left out of the averages. The devkit itself
gives no averages for a v2 run with such a scene; here `valid` of the closing rows says that there was one.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import atomic_path
from navsim_adapter.scoring.scorer import SUB_SCORES
from navsim_adapter.scoring.table import ScoreTable, cell
from navsim_adapter.scoring.two_stage import COLUMNS
from navsim_adapter.scoring.two_stage_table import STAGES, SYNTHETIC, Summary

AVERAGE = {"pdms": "average", "epdms": "average_all_frames"}


def write_official(
    path: str | Path, table: ScoreTable, metric: str, summaries: Sequence[Summary] | None = None
) -> list[Path]:
    """Write one file per planner and return where: `path` itself for one planner, else <stem>_<name>.csv beside it.

    metric: "pdms" or "epdms".  summaries: of a two-stage run, one per planner.
    """
    path = Path(path)
    names = list(dict.fromkeys(table.names))
    files = official_paths(path, names)
    for name, file in zip(names, files):
        rows = [row for row, own in enumerate(table.names) if own == name]
        if summaries is None:
            _write(file, (*SUB_SCORES[metric], "score"), _one_stage(table, rows, metric))
        else:
            stages = [f"{column}_{stage}" for stage in STAGES[:2] for column in COLUMNS[:-1]]
            summary = next(summary for summary in summaries if summary.name == name)
            _write(file, (*stages, "score"), _two_stage(table, rows, summary))
    return files


def official_paths(path: Path, names: Sequence[str]) -> list[Path]:
    """Where the planners' tables go; raises InputError where two names would share a file."""
    if len(names) == 1:
        return [path]
    files = [path.with_name(f"{path.stem}_{re.sub(r'[^A-Za-z0-9._-]', '_', name)}{path.suffix}") for name in names]
    if len(set(files)) < len(files):
        raise InputError(f"{path}: names of planners differ only in characters that files cannot have; rename them")
    return files


_Line = tuple[str, bool, Sequence[float]]  # token, valid, figures


def _one_stage(table: ScoreTable, rows: list[int], metric: str) -> list[_Line]:
    places = [table.columns.index(name) for name in (*SUB_SCORES[metric], "score")]
    figures, valid = table.figures[np.ix_(rows, places)], table.is_scored[rows]
    lines: list[_Line] = [(table.tokens[row], bool(ok), own) for row, ok, own in zip(rows, valid, figures.tolist())]
    means = [own[~np.isnan(own)].mean() if not np.isnan(own).all() else np.nan for own in figures.T]
    return [*lines, (AVERAGE[metric], bool(valid.all()), [float(mean) for mean in means])]


def _two_stage(table: ScoreTable, rows: list[int], summary: Summary) -> list[_Line]:
    """Each stage fills its own columns; the combined row repeats both."""
    blank = [np.nan] * (len(COLUMNS) - 1)
    lines: list[_Line] = []
    for row in rows:
        *subs, score = table.figures[row, 1 : len(COLUMNS) + 1].tolist()
        is_second = table.labels["frame_type"][row] == SYNTHETIC
        figures = [*blank, *subs, score] if is_second else [*subs, *blank, score]
        lines.append((table.tokens[row], bool(table.is_scored[row]), figures))
    (*one, first), (*two, second), (*_, both) = summary.figures[:, : len(COLUMNS)].tolist()
    valid = not np.isnan(both)
    lines.append(("extended_pdm_score_stage_one", valid, [*one, *blank, first]))
    lines.append(("extended_pdm_score_stage_two", valid, [*blank, *two, second]))
    lines.append(("extended_pdm_score_combined", valid, [*one, *two, both]))
    return lines


def _write(path: Path, columns: Iterable[str], lines: list[_Line]) -> None:
    with atomic_path(path) as aside, open(aside, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["", "token", "valid", *columns])
        for place, (token, valid, figures) in enumerate(lines):
            writer.writerow([place, token, valid, *map(cell, figures)])
