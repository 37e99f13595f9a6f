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
Row = Mapping[str, Any]
Rows = Sequence[Row]


def summary_of(rows: Rows, others: Rows | None = None) -> dict[str, Any]:
    """Counts, and figure -> {"mean", "ci95"}; an interval is null where the logs are too few to tell.

    others: the same drives by another driver; its figures and the paired differences come under "other".
    """
    intervals = LogIntervals([row["log"] for row in rows])
    own = {name: _values(rows, name) for name in FIGURES}
    found: dict[str, Any] = {
        "drives": len(rows),
        "logs": intervals.logs,
        "held": sum(row["held"] for row in rows),
        "figures": {name: _figure(values, intervals) for name, values in own.items()},
    }
    if others:
        theirs = {name: _values(others, name) for name in FIGURES}
        found["other"] = {
            "driver": others[0]["driver"],
            "figures": {name: _figure(values, intervals) for name, values in theirs.items()},
            "gain": {name: _figure(own[name] - theirs[name], intervals) for name in FIGURES},
        }
    return found


def said(figure: Mapping[str, Any], sign: str = "") -> str:
    """A figure × 100 with its interval: `72.6 [70.1, 75.0]`. sign: "+" for a difference."""
    interval = figure["ci95"]
    reach = " [{:{sign}.1f}, {:{sign}.1f}]".format(*(100 * end for end in interval), sign=sign) if interval else ""
    return f"{100 * figure['mean']:{sign}.1f}{reach}"


def line_of(content: Mapping[str, Any]) -> str:
    """What the command prints."""
    figures, other = content["figures"], content.get("other")
    words = [f"{name.replace('_', ' ')} {said(figures[name])}" for name in FIGURES]
    if other:
        words.append(f"score minus {other['driver']}'s {said(other['gain']['score'], '+')}")
    held = f"; {content['held']} times there was no plan and the car braked" if content["held"] else ""
    return f"x 100: {', '.join(words)}{held}"


def _values(rows: Rows, name: str) -> np.ndarray:
    return np.array([float(row[name]) for row in rows])


def _figure(own: np.ndarray, intervals: LogIntervals) -> dict[str, Any]:
    interval = intervals.interval(own)
    return {"mean": float(own.mean()), "ci95": list(interval) if interval else None}
