"""Two-frame extended comfort (metric 6.12, EPDMS): does a planner change its mind within half a second?

Two plans of one planner, started one after the other, are compared where they overlap in time.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np

from navsim_adapter.metric.comfort import SLOPE, SMOOTH, YAW_SLOPE
from navsim_adapter.metric.jit import entry, inner
from navsim_adapter.metric.savitzky_golay import filter_series, filter_weights, unwrap
from navsim_adapter.vehicle import INTERVAL, STATES

_LONGEST_GAP = 0.55  # s, strict
_YAW_BEND = filter_weights(5, 2, 2)  # order 2 here, 3 in the other comfort
# Root mean squares of the differences, inclusive; m/s^2, m/s^3, rad/s, rad/s^2.
_ACCELERATION, _JERK, _YAW_RATE, _YAW_ACCELERATION = 0.7, 0.5, 0.1, 0.1


def traces_of(states: np.ndarray) -> np.ndarray:
    """What of simulated plans (N, 41, 11) is compared: magnitude of the acceleration and heading, (N, 2, 41)."""
    return np.stack([np.hypot(states[..., 5], states[..., 6]), states[..., 2]], axis=1)


def compared(now: np.ndarray, before: np.ndarray, gap_steps: np.ndarray) -> np.ndarray:
    """1 or 0 for each pair of plans, (P,); arguments as in `compare_plans`."""
    comfort = np.empty(len(now))
    compare_plans(now, before, gap_steps, np.empty((4, STATES, 2)), comfort)
    return comfort


@entry("void(f8[:,:,::1], f8[:,:,::1], i8[::1], f8[:,:,::1], f8[::1])")
def compare_plans(now, before, gap_steps, scratch, comfort):
    """1 or 0 for each pair of plans: `comfort` (P,) out.

    now, before: (P, 2, 41) traces.  scratch: (4, 41, 2).  gap_steps: (P,) how many 0.1 s steps later `now` starts.
    """
    # Two lanes: the plan and the one before it.
    series, smooth, changes, turns, n = scratch[0], scratch[1], scratch[2], scratch[3, 0], np.int64(2)
    for pair in range(now.shape[0]):
        gap = gap_steps[pair]
        rows = STATES - gap
        for i in range(rows):
            series[i, 0], series[i, 1] = now[pair, 0, i], before[pair, 0, i + gap]
        filter_series(series, rows, n, SMOOTH, smooth)
        is_calm = _distance(smooth, rows) <= _ACCELERATION
        filter_series(smooth, rows, n, SLOPE, changes)
        is_calm &= _distance(changes, rows) <= _JERK
        for i in range(rows):
            series[i, 0], series[i, 1] = now[pair, 1, i], before[pair, 1, i + gap]
        unwrap(series, rows, n, turns, smooth)
        filter_series(smooth, rows, n, YAW_SLOPE, changes)
        is_calm &= _distance(changes, rows) <= _YAW_RATE
        filter_series(smooth, rows, n, _YAW_BEND, changes)
        is_calm &= _distance(changes, rows) <= _YAW_ACCELERATION
        comfort[pair] = 1.0 if is_calm else 0.0


@inner
def _distance(series, rows):
    """Root mean square over time of the difference of the two lanes."""
    square = 0.0
    for i in range(rows):
        square += (series[i, 0] - series[i, 1]) ** 2
    return sqrt(square / rows)


def paired_comfort(
    names: Sequence[str], frames: Sequence[tuple[str, int] | None], traces: np.ndarray
) -> tuple[list[int], np.ndarray]:
    """Rows whose planner also has the frame before, and their two-frame comfort (P,).

    names: (M,) planners.  frames: (M,) log and start time; None for a row without an earlier frame.
    traces: (M, 2, 41), see `traces_of`.
    """
    planners: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        if frames[row] is not None:
            planners.setdefault(name, []).append(row)
    now: list[int] = []
    before: list[int] = []
    gaps: list[int] = []
    for members in planners.values():
        logs, times = zip(*(frame for row in members if (frame := frames[row]) is not None))
        for place, earlier in enumerate(predecessors(logs, times)):
            if earlier >= 0:
                now.append(members[place])
                before.append(members[earlier])
                gaps.append(gap_in_steps(times[place], times[earlier]))
    if not now:
        return now, np.empty(0)
    return now, compared(traces[now], traces[before], np.array(gaps, np.int64))


def gap_in_steps(time_us: int, earlier_us: int) -> int:
    """0.1 s steps between two starts, 0 if they are no pair."""
    gap = time_us * 1e-6 - earlier_us * 1e-6
    return round(gap / INTERVAL) if 0 < gap < _LONGEST_GAP else 0


def predecessors(logs: Sequence[str], times_us: Sequence[int]) -> list[int]:
    """For each scene the position of the one before it in its log among those given, -1 where none is near enough."""
    order = sorted(range(len(logs)), key=lambda i: (logs[i], times_us[i]))
    earlier = [-1] * len(logs)
    previous = latest = -1  # the frame before the latest one, and the latest one (which may be there several times)
    for current in order:
        if latest < 0 or (logs[current], times_us[current]) != (logs[latest], times_us[latest]):
            previous, latest = latest, current
        if previous >= 0 and logs[previous] == logs[current]:
            earlier[current] = previous if gap_in_steps(times_us[current], times_us[previous]) > 0 else -1
    return earlier
