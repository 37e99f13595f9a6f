"""Two score tables side by side: which rows differ, by how much, and the likely reason (`reasons`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.words import counted
from navsim_adapter.scoring.foreign_table import ForeignTable, Key, basis_said, read_scores
from navsim_adapter.scoring.means import SHORT
from navsim_adapter.scoring.reasons import Finding, Pair, explain


@dataclass(frozen=True)
class Comparison:
    """a, b: the tables as they are.  pair: the rows that both have, in one order.  findings: why rows differ."""

    a: ForeignTable
    b: ForeignTable
    pair: Pair
    findings: Sequence[Finding]

    @property
    def differing(self) -> np.ndarray:
        """Places of the rows of `pair` that differ."""
        return np.flatnonzero(self.pair.parted | self.pair.apart["score"])

    def change(self, rows: Sequence[int]) -> tuple[float, float]:
        """Mean and largest change of the score from A to B over rows of `pair`; NaN where there is none."""
        moved = (self.pair.b.figures["score"] - self.pair.a.figures["score"])[list(rows)]
        moved = moved[~np.isnan(moved)]
        return (float(moved.mean()), float(moved[np.abs(moved).argmax()])) if len(moved) else (np.nan, np.nan)


def compare(a: str | Path, b: str | Path, planner: str | None = None) -> Comparison:
    """Compare two tables; raises InputError for a file that is no score table, and where no row is in both.

    planner: of a table with names, where the other has none.
    """
    first, second = _same_names(read_scores(a), read_scores(b), planner)
    place = {key: row for row, key in enumerate(second.keys)}
    common = [key for key in first.keys if key in place]
    if not common:
        raise InputError(
            f"{a} and {b}: no row is in both (first: {_row(first.keys[0])}, {_row(second.keys[0])}); give tables of "
            "the same scenes and planner"
        )
    mine = {key: row for row, key in enumerate(first.keys)}
    pair = Pair(first.take([mine[key] for key in common]), second.take([place[key] for key in common]))
    findings = [*_missing(first, second, pair), *(_across(pair) if first.family != second.family else explain(pair))]
    return Comparison(first, second, pair, findings)


def _row(key: Key) -> str:
    return f"{key[0]} of {key[1]}" if key[1] else key[0]


def _same_names(a: ForeignTable, b: ForeignTable, planner: str | None) -> tuple[ForeignTable, ForeignTable]:
    """The tables with one name for one planner: the devkit's has none, and a planner may be called otherwise."""
    if planner is not None:
        a, b = _only(a, planner), _only(b, planner)
    if set(a.planners) & set(b.planners):
        return a, b
    for table, other in ((a, b), (b, a)):
        if len(table.planners) > 1:
            raise InputError(
                f"{table.path}: has {counted(len(table.planners), 'planner')}, and {other.path} does not "
                "name its; choose one "
                f"with --planner, e.g. {table.planners[0]}"
            )
    name = a.planners[0] or b.planners[0]
    return _renamed(a, name), _renamed(b, name)


def _only(table: ForeignTable, planner: str) -> ForeignTable:
    if planner not in table.planners and table.planners != [""]:
        raise InputError(f"{table.path}: --planner {planner}: is none of its {counted(len(table.planners), 'planner')}")
    return table.take([row for row, key in enumerate(table.keys) if key[1] in ("", planner)])


def _renamed(table: ForeignTable, name: str) -> ForeignTable:
    return replace(table, keys=[(token, name) for token, _ in table.keys])


def _missing(a: ForeignTable, b: ForeignTable, pair: Pair) -> list[Finding]:
    """Rows that one table lacks, or has without a score."""
    counts = [len(a) - len(pair.a), len(b) - len(pair.a)]
    unscored = [np.isnan(table.figures["score"]) for table in (pair.a, pair.b)]
    lone = np.flatnonzero(unscored[0] != unscored[1])
    total = sum(counts) + len(lone)
    if not total:
        return []
    text = f"{counts[0]} rows are in A alone, {counts[1]} in B alone; of those in both, {len(lone)} have one score only"
    return [Finding("missing rows", tuple(lone.tolist()), total, (), text)]


def _across(pair: Pair) -> list[Finding]:
    rows = tuple(np.flatnonzero(pair.parted | pair.apart["score"]).tolist())
    text = f"A is {basis_said(pair.a)}, B {basis_said(pair.b)}: other sub-scores and other weights"
    return [Finding("basis", rows, len(rows), pair.columns(rows), text)] if rows else []


def lines_of(found: Comparison) -> list[str]:
    """The comparison for the terminal."""
    a, b = found.a, found.b
    lines = [
        f"{name}: {table.path}, {counted(len(table), 'row')}, {basis_said(table)}"
        for name, table in (("A", a), ("B", b))
    ]
    lines.append(f"mean score over {counted(len(found.pair.a), 'row')} in both: {means_of(found)}")
    lines += closing_lines(found)
    if not found.findings:
        return [*lines, "no row differs by more than 1e-6"]
    shown = [("reason", "rows", "score, mean", "largest", "columns", "evidence"), *map(_line, table_of(found))]
    widths = [max(len(row[place]) for row in shown) for place in range(5)]
    for row in shown:
        cells = [
            row[0].ljust(widths[0]),
            *(row[place].rjust(widths[place]) for place in (1, 2, 3)),
            row[4].ljust(widths[4]),
        ]
        lines.append("  ".join([*cells, row[5]]).rstrip())
    return lines


def _line(row: dict[str, str]) -> tuple[str, ...]:
    return row["reason"], row["rows"], row["mean"], row["largest"], row["columns"], row["evidence"]


def table_of(found: Comparison) -> list[dict[str, str]]:
    """A row of texts a finding."""
    rows = []
    for finding in found.findings:
        mean, largest = found.change(finding.rows)
        rows.append(
            {
                "reason": finding.reason,
                "rows": str(finding.count),
                "mean": signed(mean),
                "largest": signed(largest),
                "columns": ", ".join(SHORT.get(name, name) for name in finding.columns),
                "evidence": finding.evidence,
            }
        )
    return rows


def means_of(found: Comparison) -> str:
    a, b = (table.figures["score"] for table in (found.pair.a, found.pair.b))
    both = ~np.isnan(a) & ~np.isnan(b)
    if not both.any():
        return "none has a score in both"
    return (
        f"{100 * a[both].mean():.2f} in A, {100 * b[both].mean():.2f} in B ({signed(b[both].mean() - a[both].mean())})"
    )


def closing_lines(found: Comparison) -> list[str]:
    """What the tables close with, where both do."""
    lines = []
    for (name, own), (other, its) in zip(found.a.closing.items(), found.b.closing.items()):
        if "score" in own and "score" in its:
            label = name if name == other else f"{name} and {other}"
            difference = signed(its["score"] - own["score"])
            lines.append(f"{label}: {100 * own['score']:.2f} in A, {100 * its['score']:.2f} in B ({difference})")
    return lines


def signed(change: float) -> str:
    """Points out of a hundred."""
    return "-" if np.isnan(change) else f"{100 * change:+z.2f}".replace("-", "\u2212")
