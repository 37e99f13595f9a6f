"""The drives of one driver in a few figures: means over the drives, their intervals over whole logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from navsim_adapter.foundation.statistics import LogIntervals

# Of a row: share of drives for what is true or false, mean for what is a number.
FIGURES = (
    "score", "at_fault_collision", "off_road", "wrong_way", "red_light", "progress", "progress_pdm_closed", "comfort",
)  # fmt: skip
Rows = Sequence[Mapping[str, Any]]


def summary_of(rows: Rows) -> dict[str, Any]:
    """Counts, and figure -> {"mean", "ci95"}; an interval is null where the logs are too few to tell."""
    logs = [row["log"] for row in rows]
    intervals = LogIntervals(logs)
    return {
        "drives": len(rows),
        "logs": intervals.logs,
        "held": sum(row["held"] for row in rows),
        "figures": {name: _figure(values(rows, name), intervals) for name in FIGURES},
    }


def values(rows: Rows, name: str) -> np.ndarray:
    return np.array([float(row[name]) for row in rows])


def _figure(own: np.ndarray, intervals: LogIntervals) -> dict[str, Any]:
    interval = intervals.interval(own)
    return {"mean": float(own.mean()), "ci95": list(interval) if interval else None}


def said(figure: Mapping[str, Any]) -> str:
    """A figure × 100 with its interval: `72.6 [70.1, 75.0]`."""
    interval = figure["ci95"]
    reach = f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else ""
    return f"{100 * figure['mean']:.1f}{reach}"


def line_of(content: Mapping[str, Any]) -> str:
    """What the command prints."""
    figures = content["figures"]
    words = [f"{name.replace('_', ' ')} {said(figures[name])}" for name in FIGURES]
    held = f"; {content['held']} times there was no plan and the car braked" if content["held"] else ""
    return f"x 100: {', '.join(words)}{held}"
