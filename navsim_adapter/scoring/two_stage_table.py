"""Rows and summaries of a two-stage run, entry by entry of the mapping, so that entries can be scored anywhere.

`two_stage` holds the rules for single entries (weights, two-frame comfort); the summaries are means over all entries
and are taken from the rows, so that rows scored apart sum up to the same.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import atomic_path
from navsim_adapter.scoring.scorer import SCORE_UNFILTERED, VERSIONS
from navsim_adapter.scoring.table import ScoreTable, cell
from navsim_adapter.scoring.two_stage import (
    COLUMNS,
    STAGES,
    UNFILTERED_COLUMNS,
    Entry,
    SceneResult,
    combine,
    read_mapping,
)

ORIGINAL, SYNTHETIC = "original", "synthetic"
FIGURES = ("weight", *COLUMNS, *UNFILTERED_COLUMNS)  # columns of a two-stage ScoreTable
SUMMED = (*COLUMNS, SCORE_UNFILTERED)  # those of which there are means
MAPPING_FILE = "mapping.json"


@dataclass(frozen=True)
class Summary:
    """One planner's means. figures: (3, 11) for STAGES and SUMMED, NaN where a scene has no score.

    entries: of the mapping, those that the planner has rows of; the means are over these.
    """

    name: str
    figures: np.ndarray
    entries: int


def find_mapping(folder: str | Path) -> tuple[Path, list[Entry]]:
    """The mapping of a two-stage folder, or of a file: mapping.json, or a YAML with `reactive_all_mapping`.

    Raises InputError where there is none, or where a token is in two entries.
    """
    place = Path(folder)
    if place.is_dir():
        found = [place / MAPPING_FILE] if (place / MAPPING_FILE).is_file() else sorted(place.glob("*.y*ml"))
        if len(found) != 1:
            raise InputError(
                f"{place}: has {len(found)} mappings of the two stages; put {MAPPING_FILE} or the split's YAML there, "
                "or name one with --mapping"
            )
        place = found[0]
    elif not place.is_file():
        raise InputError(f"{place}: no such file or folder; check --two-stage and --mapping")
    entries = read_mapping(place)
    seen: set[str] = set()
    for token in (token for entry in entries for token in entry.tokens):
        if token in seen:
            raise InputError(f"{place}: token {token} occurs twice; each scene belongs to one entry")
        seen.add(token)
    return place, entries


def entry_figures(
    entry: Entry, results: Mapping[str, SceneResult], basis: str = VERSIONS["epdms"]
) -> dict[str, np.ndarray]:
    """Token -> (20,) FIGURES of one planner's scenes in one entry.

    Where a scene of the entry has no result, the others keep their sub-scores; weight, two-frame comfort and scores,
    which need all of them, are NaN.
    """
    if all(token in results for token in entry.tokens):
        scores = combine([entry], results, basis=basis)
        rows = np.column_stack([scores.weight, scores.table, scores.unfiltered])
        return dict(zip(scores.tokens, rows))
    return {token: _alone(result) for token, result in results.items()}


def _alone(result: SceneResult) -> np.ndarray:
    raw = result.sub_scores if result.unfiltered is None else result.unfiltered
    return np.array([np.nan, *result.sub_scores, np.nan, np.nan, np.nan, *raw])


def summarise(entries: Sequence[Entry], table: ScoreTable) -> list[Summary]:
    """The planners' means over the entries of which they have a row; NaN if any scene of these has no score."""
    rows: dict[str, dict[str, int]] = {}
    for row, (token, name) in enumerate(zip(table.tokens, table.names)):
        rows.setdefault(name, {})[token] = row
    found = []
    for name, own in rows.items():
        driven = [entry for entry in entries if entry.first.now in own or entry.first.previous in own]
        found.append(Summary(name, _means(driven, table.figures, own), len(driven)))
    return found


def _means(entries: Sequence[Entry], figures: np.ndarray, rows: Mapping[str, int]) -> np.ndarray:
    """(3, 11): stage one, stage two, and the mean of the groups' products (metric 7.3)."""
    one, two = [], []
    for entry in entries:
        if any(token not in rows for token in entry.tokens):
            return np.full((len(STAGES), len(SUMMED)), np.nan)
        for kind in ("now", "previous"):  # each half of the pair is a group of its own
            second = figures[[rows[getattr(pair, kind)] for pair in entry.second], : len(SUMMED) + 1]
            weight = second[:, 0]
            one.append(figures[rows[getattr(entry.first, kind)], 1 : len(SUMMED) + 1])
            two.append(weight @ second[:, 1:] / weight.sum())
    if not one:
        return np.full((len(STAGES), len(SUMMED)), np.nan)
    both = np.mean(np.array(one) * np.array(two), axis=0)
    means = np.array([np.mean(one, axis=0), np.mean(two, axis=0), both])
    return np.where(np.isnan(means).any(), np.nan, means)


def write_summaries(path: str | Path, summaries: Sequence[Summary]) -> None:
    """name, stage and the means; empty cells where a planner has none."""
    with atomic_path(path) as aside, open(aside, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["name", "stage", *SUMMED])
        for summary in summaries:
            for stage, figures in zip(STAGES, summary.figures.tolist()):
                writer.writerow([summary.name, stage, *map(cell, figures)])
