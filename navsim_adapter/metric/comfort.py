"""Comfort (metric 6.8 to 6.10): v1.1's over the simulated states, EPDMS's with the human's history before them.

Series are filtered, rounded to 8 decimals and compared strictly with the bounds; an acceleration is rounded before it
is differentiated. Arrays are (row, lane). The comparison of two frames is in `two_frame.py`.
"""

from __future__ import annotations

from math import sqrt

import numpy as np

from navsim_adapter.metric.jit import inlined, inner, lanes
from navsim_adapter.metric.savitzky_golay import (
    filter_series,
    filter_weights,
    unwrap,
    weighted_5,
    weighted_7,
    weighted_8,
    weights_at,
)
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


def _limit(bound: float) -> float:
    """The whole number nearest to zero of which the hundred-millionth is not strictly within the bound.

    Rounded values are whole numbers over 1e8, and rounding is monotone: comparing the whole numbers decides alike.
    """
    limit = np.rint(abs(bound) * 1e8)
    while limit / 1e8 >= abs(bound):
        limit -= 1.0
    return float(np.copysign(limit + 1.0, bound))


_LEAST, _MOST = _limit(_LEAST_ACCELERATION), _limit(_MOST_ACCELERATION)
_JERK_LIMIT, _LONGITUDINAL_LIMIT = _limit(_JERK), _limit(_LONGITUDINAL_JERK)
_YAW_BEND_LIMIT, _YAW_RATE_LIMIT = _limit(_YAW_ACCELERATION), _limit(_YAW_RATE)


@inner
def comfort(states, lateral_acceleration, n, calm) -> None:
    """v1.1: the six quantities of the 41 simulated states within bounds.

    lateral_acceleration: the measured one, of state 0; the simulator's is zero afterwards.
    calm: of `work.for_comfort`; is_comfortable (lanes,) in it is made, 1 or 0.
    """
    scratch, turns, is_comfortable = calm
    longitudinal, magnitude, fit, unwrapped = states[ACCELERATION], scratch[0], scratch[1], scratch[2]
    start = 1.0
    for i in range(STATES):
        if not abs(_rounded(_WHOLE_FIRST[i] * lateral_acceleration)) < _LATERAL_ACCELERATION:
            start = 0.0
    _fill(is_comfortable, n, start)
    _bound_parabola(longitudinal, n, fit, is_comfortable)
    _bound_smooth_slope(longitudinal, n, _LONGITUDINAL_JERK, fit, is_comfortable)
    _magnitudes(longitudinal, lateral_acceleration, n, magnitude)
    _bound_smooth_slope(magnitude, n, _JERK, fit, is_comfortable)
    unwrap(states[HEADING], STATES, n, turns, unwrapped)
    _bound_yaw(unwrapped, STATES, n, is_comfortable)


@inner
def history_comfort(states, lateral_acceleration, history, n, calm) -> None:
    """EPDMS: the human's history (H, 3: a_x, a_y, heading), then the 41 simulated states, 0.1 s apart (metric 6.10).

    The longitudinal acceleration is the official "center" one, a_x + d (yaw_rate^2 + yaw_acceleration), while a_y
    and the magnitude stay the rear axle's (metric 10.2 (1)). Without history the score is 1.
    calm: as in `comfort`.
    """
    scratch, turns, is_comfortable = calm
    past = history.shape[0]
    if past == 0:
        _fill(is_comfortable, n, 1.0)
        return
    rows = past + STATES
    series, smooth = scratch[0], scratch[1]
    _fill(is_comfortable, n, _lateral_is_comfortable(history, lateral_acceleration, scratch[3], scratch[2]))
    for i in range(past):
        _fill(series[i], n, history[i, 0])
    _center_accelerations(states, n, series[past:])
    _smooth(series, rows, n, smooth)
    _bound(smooth, rows, n, _LEAST_ACCELERATION, _MOST_ACCELERATION, is_comfortable)
    _bound_slope(smooth, rows, n, _LONGITUDINAL_LIMIT, is_comfortable)

    for i in range(past):
        _fill(series[i], n, sqrt(history[i, 0] ** 2 + history[i, 1] ** 2))
    _magnitudes(states[ACCELERATION], lateral_acceleration, n, series[past:])
    _smooth(series, rows, n, smooth)
    _bound_slope(smooth, rows, n, _JERK_LIMIT, is_comfortable)

    for i in range(past):
        _fill(series[i], n, history[i, 2])
    _copy(states[HEADING], n, series[past:])
    unwrap(series, rows, n, turns, smooth)
    _bound_yaw(smooth, rows, n, is_comfortable)


@lanes
def _fill(row, n, value):
    for c in range(n):
        row[c] = value


@lanes
def _copy(source, n, target):
    for k in range(STATES):
        row, own = target[k], source[k]
        for c in range(n):
            row[c] = own[c]


@lanes
def _center_accelerations(states, n, series):
    for k in range(STATES):
        row, acceleration = series[k], states[ACCELERATION, k]
        yaw_rate, before = states[YAW_RATE, k], states[YAW_RATE, max(k - 1, 0)]
        for c in range(n):
            yaw_acceleration = (yaw_rate[c] - before[c]) / MOTION_STEP
            row[c] = acceleration[c] + AXLE_TO_CENTER * (yaw_rate[c] * yaw_rate[c] + yaw_acceleration)


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


@lanes
def _smooth(series, rows, n, smooth):
    """`filter_series` by SMOOTH."""
    for i in range(rows):
        at, j = weights_at(i, rows, SMOOTH.shape[1])
        w, out, s0, s1, s2, s3 = SMOOTH[at], smooth[i], series[j], series[j + 1], series[j + 2], series[j + 3]
        s4, s5, s6, s7 = series[j + 4], series[j + 5], series[j + 6], series[j + 7]
        for c in range(n):
            out[c] = _rounded(weighted_8(0.0, w, s0[c], s1[c], s2[c], s3[c], s4[c], s5[c], s6[c], s7[c]))


@lanes
def _bound_slope(series, rows, n, limit, is_comfortable):
    """Bound the series filtered by SLOPE."""
    for i in range(rows):
        at, j = weights_at(i, rows, SLOPE.shape[1])
        early, late, s0, s1, s2, s3 = SLOPE[at], SLOPE[at, 7:], series[j], series[j + 1], series[j + 2], series[j + 3]
        s4, s5, s6, s7, s8 = series[j + 4], series[j + 5], series[j + 6], series[j + 7], series[j + 8]
        s9, s10, s11, s12 = series[j + 9], series[j + 10], series[j + 11], series[j + 12]
        s13, s14 = series[j + 13], series[j + 14]
        for c in range(n):
            total = weighted_7(early, s0[c], s1[c], s2[c], s3[c], s4[c], s5[c], s6[c])
            total = weighted_8(total, late, s7[c], s8[c], s9[c], s10[c], s11[c], s12[c], s13[c], s14[c])
            is_comfortable[c] = is_comfortable[c] if abs(np.rint(total * 1e8)) < limit else 0.0


@lanes
def _bound_yaw(unwrapped, rows, n, is_comfortable):
    """Bound the headings filtered by YAW_SLOPE and by _YAW_BEND."""
    for i in range(rows):
        at, j = weights_at(i, rows, YAW_SLOPE.shape[1])
        slope, bend, s0, s1 = YAW_SLOPE[at], _YAW_BEND[at], unwrapped[j], unwrapped[j + 1]
        s2, s3, s4 = unwrapped[j + 2], unwrapped[j + 3], unwrapped[j + 4]
        for c in range(n):
            rate = abs(np.rint(weighted_5(slope, s0[c], s1[c], s2[c], s3[c], s4[c]) * 1e8))
            acceleration = abs(np.rint(weighted_5(bend, s0[c], s1[c], s2[c], s3[c], s4[c]) * 1e8))
            is_calm = (rate < _YAW_RATE_LIMIT) & (acceleration < _YAW_BEND_LIMIT)
            is_comfortable[c] = is_comfortable[c] if is_calm else 0.0


@lanes
def _bound_parabola(series, n, fit, is_comfortable):
    """Bound the parabola fitted to all 41 rows, at each of them: level, tilt and bend about the middle row, in powers
    u and u^2 - mean(u^2).  fit: (>= 3, lanes) scratch."""
    level, tilt, bend = fit[0], fit[1], fit[2]
    for c in range(n):
        level[c], tilt[c], bend[c] = 0.0, 0.0, 0.0
    for i in range(STATES):
        row, u = series[i], float(i - _MIDDLE)
        curved = u * u - _MEAN_SQUARE
        for c in range(n):
            level[c], tilt[c], bend[c] = level[c] + row[c], tilt[c] + u * row[c], bend[c] + curved * row[c]
    for c in range(n):
        level[c], tilt[c], bend[c] = level[c] / STATES, tilt[c] / _SUM_SQUARE, bend[c] / _SUM_FOURTH
    for i in range(STATES):
        u = float(i - _MIDDLE)
        for c in range(n):
            value = np.rint((level[c] + tilt[c] * u + bend[c] * (u * u - _MEAN_SQUARE)) * 1e8)
            is_comfortable[c] = is_comfortable[c] if (value > _LEAST) & (value < _MOST) else 0.0


@lanes
def _bound_smooth_slope(series, n, bound, fit, is_comfortable):
    """Bound the slope of the parabola fitted to the series filtered by SMOOTH: linear in time, so the ends decide."""
    tilt, bend = fit[0], fit[1]
    for c in range(n):
        tilt[c], bend[c] = 0.0, 0.0
    for i in range(STATES):
        u = float(i - _MIDDLE)
        curved = u * u - _MEAN_SQUARE
        at, j = weights_at(i, STATES, SMOOTH.shape[1])
        w, s0, s1, s2, s3 = SMOOTH[at], series[j], series[j + 1], series[j + 2], series[j + 3]
        s4, s5, s6, s7 = series[j + 4], series[j + 5], series[j + 6], series[j + 7]
        for c in range(n):
            value = _rounded(weighted_8(0.0, w, s0[c], s1[c], s2[c], s3[c], s4[c], s5[c], s6[c], s7[c]))
            tilt[c], bend[c] = tilt[c] + u * value, bend[c] + curved * value
    for c in range(n):
        tilt[c], bend[c] = tilt[c] / _SUM_SQUARE, bend[c] / _SUM_FOURTH
        at_start = abs(_rounded((tilt[c] - 2.0 * bend[c] * _MIDDLE) / INTERVAL))
        at_end = abs(_rounded((tilt[c] + 2.0 * bend[c] * _MIDDLE) / INTERVAL))
        is_comfortable[c] = is_comfortable[c] if (at_start < bound) & (at_end < bound) else 0.0


@inlined
def _rounded(value):
    return np.rint(value * 1e8) / 1e8
