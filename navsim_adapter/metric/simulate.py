"""From a predicted trajectory to the 41 states that every sub-score reads (metric 5).

Reference sampling (metric 5.1), speed and curvature fits (5.3), tracker (5.4) and bicycle model (5.5), for a block of
candidates side by side: arrays are (row, lane), the inner loop runs over the lanes. Positions stay in the map's
frame and the official order of operations is kept where a coordinate is rounded, since one unit in the last place
of a northing is 1e-8 m/s in the speed fit.

The fits are solved in the profile itself (speeds, curvatures) instead of in its differences: the same minimum with
a banded matrix. The tracker's ten-step prediction is written out: its products are polynomials in speed and
commanded acceleration, and the curvature window enters through its first four moments.
"""

from __future__ import annotations

from math import pi

import numpy as np

from navsim_adapter.metric.angles import principal, sine_cosine, tangent, wrap
from navsim_adapter.metric.jit import inlined, inner, lanes
from navsim_adapter.vehicle import AXLE_TO_CENTER, INTERVAL, STATES, STEPS, WHEELBASE

# Planes of a block of states, each (41, lanes). COSINE and SINE are those of HEADING.
X, Y, HEADING, SPEED, ACCELERATION, STEERING, STEERING_RATE, YAW_RATE, COSINE, SINE = range(10)
PLANES = 10
# Planes of a block of references, each (41, lanes).
REFERENCE_PLANES = 5  # X, Y, HEADING as above, then cosine and sine
_REFERENCE_COSINE, _REFERENCE_SINE = 3, 4

_CURVATURE_START_PENALTY = 1e-10
_TIE = 1e-6  # a turn between two knots this near to pi is decided by the last bit: see `literal_headings`

MOTION_STEP = 100000 * 1e-6  # the motion model's step: one unit below 0.1
_SPEED_FILTER = MOTION_STEP / (MOTION_STEP + 0.2)
_STEERING_FILTER = MOTION_STEP / (MOTION_STEP + 0.05)
_STEERING_LIMIT = pi / 3
_STOP_SPEED, _STOP_GAIN = 0.2, 0.5
_HORIZON = 10  # tracker look-ahead, steps


def _speed_fit_factors() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """LDL' factors of the speed fit's constant matrix: inverse pivots and the two lower bands, each (40,).

    cos^2 + sin^2 = 1 makes the data term the identity. The penalty is the official one (metric 5.3): a_0..a_36
    themselves and a_38 - a_37, with a weight that equals h^4 / h^4 = 1 in these units.
    """
    rows = np.zeros((STEPS - 2, STEPS))
    for j in range(STEPS - 3):
        rows[j, j : j + 2] = -1.0, 1.0
    rows[-1, -3:] = 1.0, -2.0, 1.0
    matrix = np.eye(STEPS) + rows.T @ rows
    cholesky = np.linalg.cholesky(matrix)
    lower = cholesky / np.diag(cholesky)
    one, two = np.zeros(STEPS), np.zeros(STEPS)
    one[1:], two[2:] = np.diag(lower, -1), np.diag(lower, -2)
    return 1.0 / np.diag(cholesky) ** 2, one, two


_SPEED_PIVOT, _SPEED_LOWER_1, _SPEED_LOWER_2 = _speed_fit_factors()


@inner
def sample_times(time_us, interval, planning):
    """Times of knots and queries, the same for every trajectory of one sampling (metric 5.1).

    interval: seconds between poses.
    planning: of `work.for_knots`, of which these are made: span (size,), microseconds between knots; lower and offset
    (41,), the knot before each query and the microseconds since it.
    """
    knots, span, lower, offset, _knots, _slopes = planning
    size = span.shape[0]
    start = time_us * 1e-6
    knots[0] = float(time_us)
    for j in range(size):
        knots[j + 1] = float(int(((j * interval + interval) + start) * 1e6))
        span[j] = knots[j + 1] - knots[j]
    after = 0
    for k in range(STATES):
        query = min(max(float(int((k * 0.1 + start) * 1e6)), knots[0]), knots[size])
        while after < size and knots[after] < query:
            after += 1
        lower[k] = max(after, 1) - 1
        offset[k] = query - knots[lower[k]]


@inner
def find_ties(ego, poses, table, column) -> bool:
    """Whether the direction of a turn between two knots hangs on the last bit (metric 5.1) for some candidate.

    Those have infinity in that column of the table, the others NaN.
    """
    is_tied = False
    for i in range(poses.shape[0]):
        table[i, column], before = np.nan, ego[HEADING]
        for j in range(poses.shape[1]):
            angle = wrap(ego[HEADING] + poses[i, j, 2])
            if abs(abs(angle - before) - pi) < _TIE:
                table[i, column], is_tied = np.inf, True
            before = angle
    return is_tied


@inner
def place_knots(ego, poses, headings, first, n, planning):
    """Poses of candidates first..first+n in the map's frame, with unwrapped headings.

    ego: (11,).  poses: (N, T, 3) ego frame.  planning: of `work.for_knots`; its knots (3, T + 1, lanes) are made.
    headings: (N, T) in the map's frame from `literal_headings` of those that are tied and NaN of the others, or (0, T).
    """
    ego_sine, ego_cosine = sine_cosine(ego[HEADING])
    size = poses.shape[1]
    _times, _span, _lower, _offset, knots, _slopes = planning
    x, y, heading = knots[X], knots[Y], knots[HEADING]
    for c in range(n):
        literal = headings.shape[0] > 0 and not np.isnan(headings[first + c, 0])
        x[0, c] = _there_and_back(ego[X], ego_cosine)
        y[0, c] = _there_and_back(ego[Y], ego_sine)
        heading[0, c] = ego[HEADING]
        turn = 0.0
        before = ego[HEADING]
        for j in range(size):
            px, py, angle = poses[first + c, j, 0], poses[first + c, j, 1], poses[first + c, j, 2]
            angle = headings[first + c, j] if literal else wrap(ego[HEADING] + angle)
            sine, cosine = sine_cosine(angle)
            x[j + 1, c] = _there_and_back((ego_cosine * px - ego_sine * py) + ego[X], cosine)
            y[j + 1, c] = _there_and_back((ego_sine * px + ego_cosine * py) + ego[Y], sine)
            difference = angle - before
            before = angle
            if abs(difference) >= pi:
                short = principal(difference)
                if short == -pi and difference > 0:
                    short = pi
                turn += short - difference
            heading[j + 1, c] = angle + turn


@inner
def _there_and_back(axle, direction):
    """The official state keeps the geometric center and recomputes the rear axle: a rounding of about 1e-10 m."""
    return (axle + AXLE_TO_CENTER * direction) - AXLE_TO_CENTER * direction


def literal_headings(ego: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Map-frame headings (N, T) by the official operations, for trajectories that turn by exactly pi (metric 5.1)."""

    headings = np.concatenate([ego[2:3], poses[..., 2].ravel()])
    sine, cosine, frames = np.sin(headings), np.cos(headings), np.zeros((len(headings), 3, 3))
    frames[:, 0, 0], frames[:, 0, 1], frames[:, 1, 0], frames[:, 1, 1] = cosine, -sine, sine, cosine
    absolute = frames[0] @ frames[1:]
    return np.arctan2(absolute[:, 1, 0].copy(), absolute[:, 0, 0].copy()).reshape(poses.shape[:2])


@lanes
def sample_reference(planning, n, reference):
    """Linear interpolation of the knots at the 41 query times, headings wrapped to [-pi, pi) (metric 5.1).

    planning: of `work.for_knots`.  reference: (5, 41, lanes) out.
    """
    _times, span, lower, offset, knots, slopes = planning
    for plane in range(3):
        for j in range(span.shape[0]):
            here, there, slope = knots[plane, j], knots[plane, j + 1], slopes[plane, j]
            width = span[j]
            for c in range(n):
                slope[c] = (there[c] - here[c]) / width
    for k in range(STATES):
        j, passed = lower[k], offset[k]
        x0, y0, heading0 = knots[X, j], knots[Y, j], knots[HEADING, j]
        x_slope, y_slope, heading_slope = slopes[X, j], slopes[Y, j], slopes[HEADING, j]
        x, y, heading = reference[X, k], reference[Y, k], reference[HEADING, k]
        cosines, sines = reference[_REFERENCE_COSINE, k], reference[_REFERENCE_SINE, k]
        for c in range(n):
            angle = principal(heading_slope[c] * passed + heading0[c])
            sine, cosine = sine_cosine(angle)
            x[c] = _there_and_back(x_slope[c] * passed + x0[c], cosine)
            y[c] = _there_and_back(y_slope[c] * passed + y0[c], sine)
            heading[c], cosines[c], sines[c] = angle, cosine, sine


@lanes
def take_reference(poses, first, n, reference):
    """Copy planned map-frame poses (N, 41, 3) that already lie at the 41 times."""
    for k in range(STATES):
        x, y, heading = reference[X, k], reference[Y, k], reference[HEADING, k]
        cosines, sines = reference[_REFERENCE_COSINE, k], reference[_REFERENCE_SINE, k]
        for c in range(n):
            x[c], y[c], heading[c] = poses[first + c, k, 0], poses[first + c, k, 1], poses[first + c, k, 2]
            sines[c], cosines[c] = sine_cosine(heading[c])


@lanes
def fit_speed(reference, n, speed):
    """Speeds along the reference at its first 40 poses: (40, lanes) out (metric 5.3)."""
    for i in range(STEPS):
        x0, x1 = reference[X, i], reference[X, i + 1]
        y0, y1 = reference[Y, i], reference[Y, i + 1]
        cosine, sine = reference[_REFERENCE_COSINE, i], reference[_REFERENCE_SINE, i]
        here, one, two = speed[i], speed[max(i - 1, 0)], speed[max(i - 2, 0)]
        lower_1, lower_2 = _SPEED_LOWER_1[i], _SPEED_LOWER_2[i]  # both zero where there is no such row
        if i == 0:
            for c in range(n):
                here[c] = (cosine[c] * (x1[c] - x0[c]) + sine[c] * (y1[c] - y0[c])) / INTERVAL
        else:
            for c in range(n):
                along = (cosine[c] * (x1[c] - x0[c]) + sine[c] * (y1[c] - y0[c])) / INTERVAL
                here[c] = along - lower_1 * one[c] - lower_2 * two[c]
    last = speed[STEPS - 1]
    for c in range(n):
        last[c] *= _SPEED_PIVOT[STEPS - 1]
    for i in range(STEPS - 2, -1, -1):
        here, one, two, pivot = speed[i], speed[i + 1], speed[min(i + 2, STEPS - 1)], _SPEED_PIVOT[i]
        lower_1 = _SPEED_LOWER_1[i + 1]
        lower_2 = _SPEED_LOWER_2[i + 2] if i + 2 < STEPS else 0.0
        for c in range(n):
            here[c] = here[c] * pivot - lower_1 * one[c] - lower_2 * two[c]


@lanes
def fit_curvature(reference, speed, n, excess, curvature):
    """Curvatures along the reference at its first 40 poses: (40, lanes) out (metric 5.3).

    Tridiagonal elimination with pivots kept as 1 + excess, excess being a sum of positive terms: nothing cancels
    when the car hardly moves.  excess: (40, lanes) scratch.
    """
    for i in range(STEPS):
        heading0, heading1 = reference[HEADING, i], reference[HEADING, i + 1]
        v, e, right = speed[i], excess[i], curvature[i]
        before, right_before = excess[max(i - 1, 0)], curvature[max(i - 1, 0)]
        if i == 0:
            for c in range(n):
                step = INTERVAL * v[c]
                e[c] = step * step + _CURVATURE_START_PENALTY
                right[c] = step * wrap(heading1[c] - heading0[c])
        else:
            for c in range(n):
                step = INTERVAL * v[c]
                inverse = 1.0 / (1.0 + before[c])
                e[c] = step * step + before[c] * inverse
                right[c] = step * wrap(heading1[c] - heading0[c]) + right_before[c] * inverse
    last, e = curvature[STEPS - 1], excess[STEPS - 1]
    for c in range(n):
        last[c] = last[c] / e[c]
    for i in range(STEPS - 2, -1, -1):
        here, after, e = curvature[i], curvature[i + 1], excess[i]
        for c in range(n):
            here[c] = (here[c] + after[c]) / (1.0 + e[c])


@inner
def drive(ego, tracking, n, states):
    """From references to states (PLANES, 41, lanes) out.  tracking: of `work.for_tracking`, the reference in it."""
    reference, speed, excess, curvature = tracking
    fit_speed(reference, n, speed)
    fit_curvature(reference, speed, n, excess, curvature)
    track(ego, reference, speed, curvature, n, states)


@inner
def track(ego, reference, speed, curvature, n, states):
    """Follow the reference for 40 steps with the official tracker and bicycle model (metric 5.4, 5.5).

    states: (PLANES, 41, lanes) out. The first state keeps the measured motion; logs know no steering and have it 0.
    """
    ego_sine, ego_cosine = sine_cosine(ego[2])
    for c in range(n):
        states[X, 0, c], states[Y, 0, c], states[HEADING, 0, c] = ego[0], ego[1], ego[2]
        states[SPEED, 0, c], states[ACCELERATION, 0, c] = ego[3], ego[5]
        states[STEERING, 0, c] = ego[7]
        states[STEERING_RATE, 0, c] = 0.0
        states[YAW_RATE, 0, c] = ego[3] * tangent(ego[7]) * (1.0 / WHEELBASE)
        states[COSINE, 0, c], states[SINE, 0, c] = ego_cosine, ego_sine
    for k in range(STEPS):
        _step(reference, speed, curvature, k, n, states)


@lanes
def _step(reference, speed, curvature, k, n, states):
    """From row k of the states to the next: command, bicycle model's speed and steering, its pose."""
    target = speed[min(k + _HORIZON, STEPS - 1)]
    reference_x, reference_y, reference_heading = reference[X, k], reference[Y, k], reference[HEADING, k]
    reference_cosine, reference_sine = reference[_REFERENCE_COSINE, k], reference[_REFERENCE_SINE, k]
    last = STEPS - 1
    w0, w1, w2 = curvature[k], curvature[min(k + 1, last)], curvature[min(k + 2, last)]
    w3, w4, w5 = curvature[min(k + 3, last)], curvature[min(k + 4, last)], curvature[min(k + 5, last)]
    w6, w7, w8 = curvature[min(k + 6, last)], curvature[min(k + 7, last)], curvature[min(k + 8, last)]
    w9 = curvature[min(k + 9, last)]
    x0, y0, heading0, cosine0, sine0 = (
        states[X, k],
        states[Y, k],
        states[HEADING, k],
        states[COSINE, k],
        states[SINE, k],
    )
    v0, a0, steering0, yaw_rate0 = states[SPEED, k], states[ACCELERATION, k], states[STEERING, k], states[YAW_RATE, k]
    x1, y1, heading1 = states[X, k + 1], states[Y, k + 1], states[HEADING, k + 1]
    cosine1, sine1 = states[COSINE, k + 1], states[SINE, k + 1]
    v1, a1, steering1 = states[SPEED, k + 1], states[ACCELERATION, k + 1], states[STEERING, k + 1]
    rate1, yaw_rate1 = states[STEERING_RATE, k + 1], states[YAW_RATE, k + 1]
    for c in range(n):
        dx, dy = x0[c] - reference_x[c], y0[c] - reference_y[c]
        lateral = -dx * reference_sine[c] + dy * reference_cosine[c]
        turned = wrap(heading0[c] - reference_heading[c])
        m0, m1, m2, m3 = _moments(w0[c], w1[c], w2[c], w3[c], w4[c], w5[c], w6[c], w7[c], w8[c], w9[c])
        is_stopping = (target[c] <= _STOP_SPEED) & (v0[c] <= _STOP_SPEED)
        push = -_STOP_GAIN * (v0[c] - target[c]) if is_stopping else (10.0 / 11.0) * (target[c] - v0[c])
        steer = _steering_rate(lateral, turned, steering0[c], v0[c], push, m0, m1, m2, m3)
        a = a0[c] + _SPEED_FILTER * (push - a0[c])
        rate = _STEERING_FILTER * (0.0 if is_stopping else steer)
        v = v0[c] + a * MOTION_STEP
        steering = min(max(steering0[c] + rate * MOTION_STEP, -_STEERING_LIMIT), _STEERING_LIMIT)
        heading = principal(heading0[c] + yaw_rate0[c] * MOTION_STEP)
        x1[c] = x0[c] + v0[c] * cosine0[c] * MOTION_STEP
        y1[c] = y0[c] + v0[c] * sine0[c] * MOTION_STEP
        v1[c], a1[c], steering1[c], rate1[c] = v, a, steering, rate
        yaw_rate1[c] = v * tangent(steering) * (1.0 / WHEELBASE)
        heading1[c] = heading
        sine1[c], cosine1[c] = sine_cosine(heading)


@inlined
def _moments(w0, w1, w2, w3, w4, w5, w6, w7, w8, w9):
    """Moments 0..3 of the tracker's curvature window, sums of m^0..3 w_m (metric 5.4)."""
    moments = _with_moments(1.0, w1, w0, 0.0, 0.0, 0.0)
    moments = _with_moments(2.0, w2, *moments)
    moments = _with_moments(3.0, w3, *moments)
    moments = _with_moments(4.0, w4, *moments)
    moments = _with_moments(5.0, w5, *moments)
    moments = _with_moments(6.0, w6, *moments)
    moments = _with_moments(7.0, w7, *moments)
    moments = _with_moments(8.0, w8, *moments)
    return _with_moments(9.0, w9, *moments)


@inlined
def _with_moments(m, w, m0, m1, m2, m3):
    first, second = w * m, w * m * m
    return m0 + w, m1 + first, m2 + second, m3 + second * m


@inner
def _steering_rate(lateral, turned, steering, v, push, m0, m1, m2, m3):
    """The tracker's steering rate: one look-ahead of ten steps at speeds v + push * h * m, m = 0..9 (metric 5.4).

    With p_m = h w_m = p + q m, the lateral error after ten steps is lateral + turned * sum p + ..., a polynomial
    in p and q; m0..m3 are the moments of the curvature window.
    """
    h = INTERVAL
    p, q = h * v, h * h * push
    total = 10.0 * p + 45.0 * q
    square = 10.0 * p * p + 90.0 * p * q + 285.0 * q * q
    pairs = 0.5 * (total * total - square)  # sum of p_j p_m over j < m
    # Effect of a unit steering rate on heading and lateral error.
    on_heading = (h / WHEELBASE) * (45.0 * p + 285.0 * q)
    on_lateral = (h / WHEELBASE) * (120.0 * p * p + 1410.0 * p * q + 4146.0 * q * q)
    heading_drift = -(p * m0 + q * m1)
    lateral_drift = -(
        p * p * (9.0 * m0 - m1) + p * q * (45.0 * m0 + 8.5 * m1 - 1.5 * m2) + q * q * (45.0 * m1 - 0.5 * m2 - 0.5 * m3)
    )
    end_lateral = lateral + total * turned + pairs * (1.0 / WHEELBASE) * steering + lateral_drift
    end_turned = wrap(turned + total * (1.0 / WHEELBASE) * steering + heading_drift)
    return -(on_lateral * end_lateral + 10.0 * on_heading * end_turned) / (
        on_lateral * on_lateral + 10.0 * on_heading * on_heading + 1.0
    )
