"""Score tables of anybody's making: ours, or the devkit's CSV of any version, one stage or two (metric 7.2, 7.3).

Columns are known by name, rows by token and planner. What a table closes with (averages, stages) is kept apart.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import read_json
from navsim_adapter.foundation.foreign import read_text
from navsim_adapter.foundation.words import counted
from navsim_adapter.metric.aggregate import epdms, pdms
from navsim_adapter.scoring.scorer import SUB_SCORES, UNFILTERED, VERSIONS
from navsim_adapter.scoring.two_stage import STAGES

HUMAN = "human"  # the planner's name under which the human's own plan is scored
_CLOSING = ("average", "average_all_frames", "aggregate_summary_row", *(f"extended_pdm_score_{s}" for s in STAGES))
_EPDMS = tuple(SUB_SCORES["epdms"])
_PDMS = (
    "no_at_fault_collisions",
    "drivable_area_compliance",
    "ego_progress",
    "time_to_collision_within_bound",
    "comfort",
)
Key = tuple[str, str]  # token, planner; the planner is "" where the table has no column for it


@dataclass(frozen=True)
class ForeignTable:
    """keys: M (token, planner).  figures: column -> (M,), NaN where there is none.  closing: label -> column -> mean.
    facts: what the JSON beside it says, if there is one.
    """

    path: Path
    keys: Sequence[Key]
    figures: Mapping[str, np.ndarray]
    closing: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def family(self) -> str:
        return "epdms" if "history_comfort" in self.figures else "pdms"

    @property
    def sub_scores(self) -> list[str]:
        return [name for name in SUB_SCORES[self.family] if name in self.figures]

    @property
    def planners(self) -> list[str]:
        return list(dict.fromkeys(name for _, name in self.keys))

    @cached_property
    def formula(self) -> np.ndarray:
        """(M,) the score that follows from the table's own sub-scores (metric 7.1)."""
        return np.array([score_of(self.family, {name: self.figures[name][row] for name in self.sub_scores})
                         for row in range(len(self))])  # fmt: skip

    def take(self, rows: Sequence[int]) -> ForeignTable:
        figures = {name: values[list(rows)] for name, values in self.figures.items()}
        return ForeignTable(self.path, [self.keys[row] for row in rows], figures, self.closing, self.facts)


def score_of(family: str, own: Mapping[str, float]) -> float:
    """The score of sub-scores by name."""
    if family == "pdms":
        return pdms(*[own.get(name, np.nan) for name in _PDMS])
    return epdms(*[own.get(name, np.nan) for name in _EPDMS])


def read_scores(path: str | Path) -> ForeignTable:
    """A score table of ours or the devkit's; raises InputError for anything else."""
    path = Path(path)
    header, lines = _lines(path)
    missing = [name for name in ("token", "score") if name not in header]
    if missing or not any(name.startswith("no_at_fault_collisions") for name in header):
        what = " and ".join(missing or ["no_at_fault_collisions"])
        raise InputError(f"{path}: has no column {what}; give a table of navsim-adapter score or of the devkit")
    columns = {name: place for place, name in enumerate(header) if name not in ("", "token", "name", "valid", "row")}
    rows = [line for line in lines if line[header.index("token")] not in _CLOSING]
    closing = [line for line in lines if line[header.index("token")] in _CLOSING]
    if not rows:
        raise InputError(f"{path}: has no row of a scene; give a table with a row a scene")
    keys = [_key(header, line) for line in rows]
    [(repeated, times)] = Counter(keys).most_common(1)
    if times > 1:
        raise InputError(f"{path}: token {repeated[0]} is there {times} times for one planner; give each row once")
    return ForeignTable(
        path,
        keys,
        _figures(columns, rows),
        {line[header.index("token")]: _closing(columns, line) for line in closing},
        _facts(path),
    )


def _lines(path: Path) -> tuple[list[str], list[list[str]]]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a CSV of navsim-adapter score or of the devkit")
    try:
        header, *lines = list(csv.reader(io.StringIO(read_text(path), newline=""))) or [[]]
    except (UnicodeDecodeError, csv.Error) as problem:
        reason = " ".join(str(problem).split())[:120]
        raise InputError(f"{path}: is no score table ({reason}); give a CSV of navsim-adapter score") from problem
    short = next((place for place, line in enumerate(lines, 2) if line and len(line) != len(header)), None)
    if short:
        raise InputError(f"{path}: line {short} has not as many cells as the header; replace the file")
    return header, [line for line in lines if line]


def _key(header: list[str], line: list[str]) -> Key:
    return line[header.index("token")], line[header.index("name")] if "name" in header else ""


def _figures(columns: Mapping[str, int], rows: list[list[str]]) -> dict[str, np.ndarray]:
    """Columns of numbers; a stage's own ones become one column, since a row fills those of its stage alone."""
    found: dict[str, np.ndarray] = {}
    for name, place in columns.items():
        numbers = _numbers([line[place] for line in rows])
        if numbers is None:
            continue
        base = next((name.removesuffix(f"_{s}") for s in STAGES[:2] if name.endswith(f"_{s}")), name)
        known = found.get(base)
        found[base] = numbers if known is None else np.where(np.isnan(known), numbers, known)
    return found


def _closing(columns: Mapping[str, int], line: list[str]) -> dict[str, float]:
    cells = {name: _numbers([line[place]]) for name, place in columns.items()}
    return {name: float(number[0]) for name, number in cells.items() if number is not None and not np.isnan(number[0])}


def _numbers(cells: Sequence[str]) -> np.ndarray | None:
    """None where a cell is a word."""
    try:
        return np.array([float(cell or "nan") for cell in cells])
    except ValueError:
        return None


def _facts(path: Path) -> dict[str, Any]:
    """What the JSON of the run says that wrote this file, wherever beside it that is."""
    for place in [Path(f"{path}.json"), *sorted(path.parent.glob("*.csv.json"))]:
        if place.is_file():
            content = read_json(place)
            if isinstance(content, dict) and path.name in (content.get("files") or {}):
                return content
    return {}


FEWEST = 5  # rows below which "most" says nothing
MOST = 0.75  # share of rows; where the fit fails it is nearly all of them


def sickness(table: ForeignTable, fewest: int = FEWEST) -> str | None:
    """Why a table cannot be of a sound run, in a line (metric 10.5); None for a sound one.

    fewest: rows of the human, or of anybody, below which none is called sick.
    """
    figures = table.figures
    for name in ("progress_raw", "pdm_closed_progress_raw"):
        if name in figures and (figures[name] > 1000.0).any():
            return f"{name} reaches {np.nanmax(figures[name]):,.0f} m in 4 s"
    comfort = figures.get("history_comfort", figures.get("comfort"))
    human = np.array([name == HUMAN for _, name in table.keys])
    scored = ~np.isnan(figures["score"])
    for prefix in ("human_", UNFILTERED, ""):
        area = figures.get(f"{prefix}drivable_area_compliance")
        own = scored & (human if prefix != "human_" else np.ones_like(human))
        if area is not None and own.sum() >= fewest and (area[own] == 0).mean() > MOST:
            return f"the human is off the drivable area in {int((area[own] == 0).sum())} of {counted(own.sum(), 'row')}"
    if comfort is None or scored.sum() < fewest:
        return None
    if human[scored].sum() >= fewest and (comfort[scored & human] == 0).mean() > MOST:
        return (
            f"the human is uncomfortable in {int((comfort[scored & human] == 0).sum())} of "
            f"{counted(human.sum(), 'row')}"
        )
    area, keeping = figures["drivable_area_compliance"][scored], figures.get("lane_keeping")
    rough = (comfort[scored] == 0).mean()
    if rough > 0.5 and (area == 0).mean() > 0.9:
        return f"{rough:.0%} of all rows are uncomfortable and {(area == 0).mean():.0%} off the drivable area"
    if rough > 0.5 and keeping is not None and (area == 1).mean() > 0.95 and (keeping[scored] == 1).mean() > 0.95:
        return (
            f"{rough:.0%} of all rows are uncomfortable, and yet {(area == 1).mean():.0%} are on the drivable area and "
            "keep their lane: the human fails there and the human filter hides it"
        )
    return None


def basis_said(table: ForeignTable) -> str:
    """The basis that the JSON beside the table names, else what its columns allow."""
    unsaid = " (basis not stated)" if table.family == "epdms" else ""
    return str(table.facts.get("metric") or VERSIONS[table.family] + unsaid)


def require_sound(table: ForeignTable) -> None:
    """Raises InputError for a table of a run whose fit had failed."""
    sick = sickness(table)
    if sick:
        raise InputError(
            f"{table.path}: {sick}; the speed fit of that run had failed; score the trajectories anew with "
            "navsim-adapter score, or with the devkit under numpy 1.26"
        )


def describe_table(table: ForeignTable) -> list[str]:
    """Lines on a table."""
    scores = table.figures["score"]
    scored = scores[~np.isnan(scores)]
    mean = f"{100 * scored.mean():.2f}" if len(scored) else "none"
    scenes, planners = len({token for token, _ in table.keys}), len(table.planners)
    return [
        f"{table.path}: {counted(len(table), 'row')} of {counted(scenes, 'scene')} and "
        f"{counted(planners, 'planner')}, {basis_said(table)}",
        f"{len(scored)} have a score, mean {mean}",
        *(f"closes with {name}: {100 * own['score']:.2f}" for name, own in table.closing.items() if "score" in own),
    ]
