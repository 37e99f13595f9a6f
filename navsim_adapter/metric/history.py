"""The human's history before the comfort window (metric 6.10), and what keeps it from being one."""

from __future__ import annotations

import numpy as np

HISTORY = 4  # frames, the current one last: however many a filter names, the official code reads these
STEP_US = 100_000
_LONGEST_US = 100_000_000  # a frame or two may be missing from a log; a time in other units is off by a thousand


def comfort_history(states: np.ndarray, times_us: np.ndarray) -> np.ndarray:
    """The human's past (4, 11), resampled every 0.1 s without the last sample (metric 6.10): (H, 3)."""
    times = np.asarray(times_us, np.int64)
    query = np.arange(times[0], times[-1], STEP_US)[:-1].astype(np.float64)
    knots = times.astype(np.float64)
    after = np.clip(np.searchsorted(knots, query), 1, len(knots) - 1)
    before = after - 1
    values = np.stack([states[:, 5], states[:, 6], np.unwrap(states[:, 2])], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):  # of equal times; `history_problem` names them
        slope = (values[after] - values[before]) / (knots[after] - knots[before])[:, None]
        sampled = slope * (query - knots[before])[:, None] + values[before]
    sampled[:, 2] = np.mod(sampled[:, 2] + np.pi, 2 * np.pi) - np.pi
    return np.ascontiguousarray(sampled)


def history_problem(states: np.ndarray, times_us: np.ndarray) -> str | None:
    """Why a past (H, 11) at these times has no history comfort, as officially.

    None where it has one, and for a past of NaN, as an official cache of PDMS alone has it.
    """
    if len(states) and np.isnan(states).all():
        return None
    times = np.asarray(times_us, np.int64)
    if len(times) != HISTORY:
        return f"has {len(times)} history frames, history comfort reads {HISTORY}; cache it again with so many or more"
    lasts = int(times[-1] - times[0])
    if (np.diff(times) < 0).any():
        return "the times of its history run backwards; repair the log's timestamps"
    if not STEP_US < lasts <= _LONGEST_US:
        return f"its history lasts {lasts} us by the log's timestamps, about 1500000 are expected; give microseconds"
    if np.isfinite(states[:, 2]).all() and not np.isfinite(comfort_history(states, times)[:, 2]).all():
        return "two frames of its history have the same time; repair the log's timestamps"
    return None
