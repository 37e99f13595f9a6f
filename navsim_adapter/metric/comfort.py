"""Comfort (metric 6.8 to 6.10): v1.1's over the simulated states, EPDMS's with the human's history before them.

Series are filtered, rounded to 8 decimals and compared strictly with the bounds; an acceleration is rounded before it
is differentiated. Arrays are (row, lane). The comparison of two frames is in `two_frame.py`.
"""

from __future__ import annotations

from math import sqrt

import numpy as np

from navsim_adapter.metric.jit import inner, lanes
from navsim_adapter.metric.savitzky_golay import filter_series, filter_weights, unwrap
from navsim_adapter.metric.simulate import ACCELERATION, HEADING, MOTION_STEP, YAW_RATE
from navsim_adapter.vehicle import AXLE_TO_CENTER, INTERVAL, STATES

# Bounds (metric 6.9), all strict; m/s^2, m/s^3, rad/s^2, rad/s.
_LEAST_ACCELERATION, _MOST_ACCELERATION = -4.05, 2.40
_LATERAL_ACCELERATION = 4.89
_JERK, _LONGITUDINAL_JERK = 8.37, 4.13
_YAW_ACCELERATION, _YAW_RATE = 1.93, 0.95

SMOOTH, SLOPE = filter_weights(8, 2, 0), filter_weights(15, 2, 1)
YAW_SLOPE = filter_weights(5, 2, 1)
_YAW_BEND = filter_weights(5, 3, 2)

# v1.1 fits one parabola to all 41 states.
_WHOLE_FIRST = np.ascontiguousarray(filter_weights(STATES, 2, 0)[:, 0])  # weight of the first state at each state
_MIDDLE = STATES // 2
_MEAN_SQUARE = float(np.mean((np.arange(STATES) - _MIDDLE) ** 2.0))
_SUM_SQUARE = _MEAN_SQUARE * STATES
_SUM_FOURTH = float(np.sum(((np.arange(STATES) - _MIDDLE) ** 2.0 - _MEAN_SQUARE) ** 2))

SCRATCH_SERIES = 4  # series of scratch that both functions need


@inner
def comfort(states, lateral_acceleration, n, scratch, turns, is_comfortable) -> None:
    """v1.1: the six quantities of the 41 simulated states within bounds.

    lateral_acceleration: the measured one, of state 0; the simulator's is zero afterwards.
    scratch: (4, >= 41, lanes).  turns: (lanes,).  is_comfortable: (lanes,) out, 1 or 0.
    """
    longitudinal, magnitude, filtered = states[ACCELERATION], scratch[0], scratch[1]
    rows = longitudinal.shape[0]
    start = 1.0
    for i in range(STATES):
        if not abs(_rounded(_WHOLE_FIRST[i] * lateral_acceleration)) < _LATERAL_ACCELERATION:
            start = 0.0
    for c in range(n):
        is_comfortable[c] = start
    _bound_parabola(longitudinal, n, _LEAST_ACCELERATION, _MOST_ACCELERATION, scratch[3], is_comfortable)
    filter_series(longitudinal, rows, n, SMOOTH, filtered)
    _bound_parabola_slope(filtered, n, _LONGITUDINAL_JERK, scratch[3], is_comfortable)
    _magnitudes(longitudinal, lateral_acceleration, n, magnitude)
    filter_series(magnitude, rows, n, SMOOTH, filtered)
    _bound_parabola_slope(filtered, n, _JERK, scratch[3], is_comfortable)
    unwrap(states[HEADING], rows, n, turns, scratch[2])
    _bound_yaw(scratch[2], rows, n, filtered, is_comfortable)


@inner
def history_comfort(states, lateral_acceleration, history, n, scratch, turns, is_comfortable) -> None:
    """EPDMS: the human's history (H, 3: a_x, a_y, heading), then the 41 simulated states, 0.1 s apart (metric 6.10).

    The longitudinal acceleration is the official "center" one, a_x + d (yaw_rate^2 + yaw_acceleration), while a_y
    and the magnitude stay the rear axle's (metric 10.2 (1)). Without history the score is 1.
    scratch: (4, H + 41, lanes).  turns: (lanes,).  is_comfortable: (lanes,) out.
    """
    past = history.shape[0]
    if past == 0:
        for c in range(n):
            is_comfortable[c] = 1.0
        return
    rows = past + STATES
    series, filtered, slope = scratch[0], scratch[1], scratch[2]
    start = _lateral_is_comfortable(history, lateral_acceleration, scratch[3], scratch[2])
    for c in range(n):
        is_comfortable[c] = start
    for i in range(past):
        row = series[i]
        for c in range(n):
            row[c] = history[i, 0]
    for k in range(STATES):
        row, acceleration = series[past + k], states[ACCELERATION, k]
        yaw_rate, before = states[YAW_RATE, k], states[YAW_RATE, max(k - 1, 0)]
        for c in range(n):
            yaw_acceleration = (yaw_rate[c] - before[c]) / MOTION_STEP
            row[c] = acceleration[c] + AXLE_TO_CENTER * (yaw_rate[c] * yaw_rate[c] + yaw_acceleration)
    filter_series(series, rows, n, SMOOTH, filtered)
    _bound(filtered, rows, n, _LEAST_ACCELERATION, _MOST_ACCELERATION, is_comfortable)
    filter_series(filtered, rows, n, SLOPE, slope)
    _bound(slope, rows, n, -_LONGITUDINAL_JERK, _LONGITUDINAL_JERK, is_comfortable)

    for i in range(past):
        row, size = series[i], sqrt(history[i, 0] ** 2 + history[i, 1] ** 2)
        for c in range(n):
            row[c] = size
    _magnitudes(states[ACCELERATION], lateral_acceleration, n, series[past:])
    filter_series(series, rows, n, SMOOTH, filtered)
    filter_series(filtered, rows, n, SLOPE, slope)
    _bound(slope, rows, n, -_JERK, _JERK, is_comfortable)

    for i in range(past):
        row = series[i]
        for c in range(n):
            row[c] = history[i, 2]
    for k in range(STATES):
        row, heading = series[past + k], states[HEADING, k]
        for c in range(n):
            row[c] = heading[c]
    unwrap(series, rows, n, turns, filtered)
    _bound_yaw(filtered, rows, n, slope, is_comfortable)


@lanes
def _magnitudes(longitudinal, lateral_acceleration, n, magnitude):
    for c in range(n):
        magnitude[0, c] = sqrt(longitudinal[0, c] ** 2 + lateral_acceleration**2)
    for k in range(1, STATES):
        row, source = magnitude[k], longitudinal[k]
        for c in range(n):
            row[c] = abs(source[c])


@inner
def _lateral_is_comfortable(history, lateral_acceleration, series, filtered):
    """The lateral acceleration is the log's and then zero: the same for every candidate."""
    past = history.shape[0]
    for i in range(past):
        series[i, 0] = history[i, 1]
    series[past, 0] = lateral_acceleration
    for i in range(past + 1, past + STATES):
        series[i, 0] = 0.0
    filter_series(series, past + STATES, np.int64(1), SMOOTH, filtered)
    for i in range(past + STATES):
        if not abs(filtered[i, 0]) < _LATERAL_ACCELERATION:
            return 0.0
    return 1.0


@lanes
def _bound(series, rows, n, low, high, is_comfortable):
    for i in range(rows):
        row = series[i]
        for c in range(n):
            is_comfortable[c] = is_comfortable[c] if (low < row[c]) & (row[c] < high) else 0.0


@inner
def _bound_yaw(unwrapped, rows, n, filtered, is_comfortable):
    filter_series(unwrapped, rows, n, YAW_SLOPE, filtered)
    _bound(filtered, rows, n, -_YAW_RATE, _YAW_RATE, is_comfortable)
    filter_series(unwrapped, rows, n, _YAW_BEND, filtered)
    _bound(filtered, rows, n, -_YAW_ACCELERATION, _YAW_ACCELERATION, is_comfortable)


@lanes
def _bound_parabola(series, n, low, high, fit, is_comfortable):
    """Bound the parabola fitted to all 41 rows, at each of them."""
    _fit_parabola(series, n, fit)
    level, tilt, bend = fit[0], fit[1], fit[2]
    for i in range(STATES):
        u = float(i - _MIDDLE)
        for c in range(n):
            value = _rounded(level[c] + tilt[c] * u + bend[c] * (u * u - _MEAN_SQUARE))
            is_comfortable[c] = is_comfortable[c] if (low < value) & (value < high) else 0.0


@lanes
def _bound_parabola_slope(series, n, bound, fit, is_comfortable):
    """Bound the slope of that parabola: linear in time, so the ends decide."""
    _fit_parabola(series, n, fit)
    tilt, bend = fit[1], fit[2]
    for c in range(n):
        at_start = abs(_rounded((tilt[c] - 2.0 * bend[c] * _MIDDLE) / INTERVAL))
        at_end = abs(_rounded((tilt[c] + 2.0 * bend[c] * _MIDDLE) / INTERVAL))
        is_comfortable[c] = is_comfortable[c] if (at_start < bound) & (at_end < bound) else 0.0


@lanes
def _fit_parabola(series, n, fit):
    """Least-squares level, tilt and bend about the middle row, in powers u and u^2 - mean(u^2): rows of `fit` out."""
    level, tilt, bend = fit[0], fit[1], fit[2]
    for c in range(n):
        level[c], tilt[c], bend[c] = 0.0, 0.0, 0.0
    for i in range(STATES):
        row, u = series[i], float(i - _MIDDLE)
        curved = u * u - _MEAN_SQUARE
        for c in range(n):
            level[c] += row[c]
            tilt[c] += u * row[c]
            bend[c] += curved * row[c]
    for c in range(n):
        level[c], tilt[c], bend[c] = level[c] / STATES, tilt[c] / _SUM_SQUARE, bend[c] / _SUM_FOURTH


@inner
def _rounded(value):
    return np.rint(value * 1e8) / 1e8
