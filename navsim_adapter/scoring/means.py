"""What a score run came to, for the terminal: a mean a planner, in percent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from navsim_adapter.foundation.words import counted
from navsim_adapter.scoring.result import Result
from navsim_adapter.scoring.scorer import SCORE_UNFILTERED
from navsim_adapter.scoring.two_stage_table import STAGES, SUMMED

MOST = 20  # planners that are listed
SHORT = {
    "no_at_fault_collisions": "NC",
    "drivable_area_compliance": "DAC",
    "driving_direction_compliance": "DDC",
    "traffic_light_compliance": "TLC",
    "ego_progress": "EP",
    "time_to_collision_within_bound": "TTC",
    "comfort": "C",
    "lane_keeping": "LK",
    "history_comfort": "HC",
    "two_frame_extended_comfort": "EC",
}


def mean_lines(result: Result) -> list[str]:
    """A small table: each planner's mean score and sub-scores over its scored rows; in two stages, a row each stage and
    their product. Under EPDMS also the score with the human filter off, and how often that filter hid a failure."""
    if not result.table.is_scored.any():
        return []
    rows = _one_stage(result) if result.facts.entries is None else _two_stages(result)
    off = ["filter off"] if SCORE_UNFILTERED in result.table.columns else []
    shown = [["mean, %", "", "score", *off, *(SHORT[name] for name in _sub_scores(result))], *rows]
    widths = [max(map(len, column)) for column in zip(*shown)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in shown]
    planners = len(set(result.table.names))
    return lines + ([f"and {planners - MOST} more planners"] if planners > MOST else []) + _filter_line(result)


def _sub_scores(result: Result) -> list[str]:
    return [name for name in result.table.columns if name in SHORT]


def _filter_line(result: Result) -> list[str]:
    """How often the human filter wrote 1 over something less, over all planners."""
    counts = [item for own in result.overwritten().values() for item in own.items()]
    if not counts:
        return []
    totals = {name: sum(count for other, count in counts if other == name) for name, _ in counts}
    hidden = ", ".join(f"{SHORT[name]} {total}" for name, total in totals.items() if total) or "none"
    return [
        f"failures that the human filter overwrote, of {counted(int(result.table.is_scored.sum()), 'row')}: {hidden}"
    ]


def _one_stage(result: Result) -> list[list[str]]:
    table = result.table
    shown = [name for name in ("score", SCORE_UNFILTERED) if name in table.columns] + _sub_scores(result)
    places = [table.columns.index(name) for name in shown]
    names = np.array(table.names)
    rows = []
    for name in list(dict.fromkeys(table.names))[:MOST]:
        own = names == name
        figures = table.figures[own & table.is_scored]
        part = f"{len(figures)} of " if len(figures) < own.sum() else ""
        rows.append([name, part + counted(int(own.sum()), "scene"), *_percent(_means(figures[:, places]))])
    return rows


def _two_stages(result: Result) -> list[list[str]]:
    shown = ["score", SCORE_UNFILTERED, *_sub_scores(result)]
    places = [SUMMED.index(name) for name in shown]
    return [
        [summary.name if stage == STAGES[0] else "", stage.replace("_", " "), *_percent(figures[places])]
        for summary in (result.summaries() or [])[:MOST]
        for stage, figures in zip(STAGES, summary.figures)
    ]


def _means(figures: np.ndarray) -> np.ndarray:
    """Of each column, over the rows that have it (the first frame of a log has no two-frame comfort)."""
    counts = (~np.isnan(figures)).sum(axis=0)
    return np.where(counts > 0, np.nansum(figures, axis=0) / np.maximum(counts, 1), np.nan)


def _percent(figures: Sequence[float] | np.ndarray) -> list[str]:
    return ["-" if np.isnan(figure) else f"{100 * figure:.1f}" for figure in figures]
