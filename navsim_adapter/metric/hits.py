"""Which objects and lights may touch the footprints of a block of candidates, found for all of them side by side.

In single precision, relative to where the ego starts, and on the footprint's two axes only: what is found may be no
contact, but no contact is missed. `contacts.py` decides with exact corners. The footprint that time to collision
pushes ahead stays on its own axis, so one test serves a parked object at all offsets.
"""

from __future__ import annotations

import numpy as np

from navsim_adapter.metric import simulate, ttc
from navsim_adapter.metric.jit import inlined, inner, lanes
from navsim_adapter.metric.packed import real, whole
from navsim_adapter.metric.traffic_index import (
    AHEAD,
    BOXES,
    HALF_SIZES,
    IS_STILL,
    LIGHT_BOXES,
    LIGHT_STEPS,
    SPANS,
    STRETCH,
    has_flag,
    light_count,
    object_count,
)
from navsim_adapter.vehicle import AXLE_TO_CENTER, HALF_LENGTH, HALF_WIDTH, INTERVAL, RADIUS, STATES

WORD = 32  # objects that share an integer of hits
_SLACK, _RELATIVE_SLACK = 0.01, 1e-6  # m, and of the distance from the start: far above what single precision loses
_LONG, _WIDE = np.float32(HALF_LENGTH), np.float32(HALF_WIDTH)
_ZERO = np.float32(0.0)
X, Y, COSINE, SINE, PUSHED = range(5)
PLACES = 5  # planes of places, float32: of the footprint center and heading, and how far it is pushed ahead


@inner
def place(ego, start_speed, states, first, end, n, places, bounds):
    """Places of the states first..end of a block, from where the ego starts: (PLACES, STRETCH, lanes) out.

    start_speed: see `judge_contacts`.
    bounds: (STRETCH + 1, 4) out, x_min, y_min, x_max, y_max around all footprints at each state, and of all states.
    """
    ego_x, ego_y, later = ego[0], ego[1], AHEAD * INTERVAL
    for side in range(4):
        bounds[STRETCH, side] = np.inf if side < 2 else -np.inf
    for k in range(first, end):
        i = k - first
        left, bottom, right, top = 1e30, 1e30, -1e30, -1e30
        states_x, states_y, speeds = states[simulate.X, k], states[simulate.Y, k], states[simulate.SPEED, k]
        cosines, sines = states[simulate.COSINE, k], states[simulate.SINE, k]
        x, y, cosine, sine, pushed = places[X, i], places[Y, i], places[COSINE, i], places[SINE, i], places[PUSHED, i]
        for c in range(n):
            x[c] = (states_x[c] - ego_x) + AXLE_TO_CENTER * cosines[c]
            y[c] = (states_y[c] - ego_y) + AXLE_TO_CENTER * sines[c]
            cosine[c] = cosines[c]
            sine[c] = sines[c]
            pushed[c] = (start_speed if k == 0 else abs(speeds[c])) * later
        for c in range(n):
            x_there, y_there = x[c] + pushed[c] * cosine[c], y[c] + pushed[c] * sine[c]
            left, right = min(left, min(x[c], x_there)), max(right, max(x[c], x_there))
            bottom, top = min(bottom, min(y[c], y_there)), max(top, max(y[c], y_there))
        slack = RADIUS + _SLACK + _RELATIVE_SLACK * max(max(-left, right), max(-bottom, top))
        bounds[i, 0], bounds[i, 1] = ego_x + left - slack, ego_y + bottom - slack
        bounds[i, 2], bounds[i, 3] = ego_x + right + slack, ego_y + top + slack
        for side in range(2):
            bounds[STRETCH, side] = min(bounds[STRETCH, side], bounds[i, side])
            bounds[STRETCH, side + 2] = max(bounds[STRETCH, side + 2], bounds[i, side + 2])


@inner
def find_hits(ego, traffic, bounds, first, end, places, n, ttc_steps, near, hits):
    """What may touch the footprints of a stretch of states, where they are or where time to collision pushes them.

    bounds: of `place`.  ttc_steps: see `judge_contacts`.
    near: (M + L) out, objects (lights after them) that the stretch may meet, in order; their number is returned.
    hits: (words, 41, lanes) int32 out: bit i of word w at state k is number 32 w + i of the near ones.
    """
    objects, count = object_count(traffic), _find_near(traffic, first // STRETCH, bounds[STRETCH], near)
    for k in range(first, end):
        for word in range((count + WORD - 1) // WORD):
            row = hits[word, k]
            for c in range(n):
                row[c] = 0
            for slot in range(word * WORD, min(word * WORD + WORD, count)):
                m, bit = near[slot], np.int32(np.int64(1) << (slot - word * WORD))
                if m < objects:
                    _hit_object(ego, traffic, bounds[k - first], m, k, k < ttc_steps, places, k - first, n, bit, row)
                elif (whole(traffic, whole(traffic, LIGHT_STEPS) + m - objects) >> k) & 1 != 0:
                    _hit_light(ego, traffic, m - objects, places, k - first, n, bit, row)
    return count


@lanes
def touched_states(hits, near_count, n, touched):
    """Bits of the states at which something may touch a candidate: (lanes,) int64 out."""
    for c in range(n):
        touched[c] = 0
    for k in range(STATES):
        for word in range((near_count[k // STRETCH] + WORD - 1) // WORD):
            row = hits[word, k]
            for c in range(n):
                touched[c] |= (np.int64(1) if row[c] != 0 else np.int64(0)) << k


@inner
def _find_near(traffic, stretch, box, near):
    """Objects, then lights, that reach into the box: into `near`, in order."""
    left, bottom, right, top = box[0], box[1], box[2], box[3]
    objects, lights, count = object_count(traffic), light_count(traffic), 0
    spans, boxes = whole(traffic, SPANS) + 4 * stretch * objects, whole(traffic, LIGHT_BOXES)
    for m in range(objects + lights):
        at = spans + 4 * m if m < objects else boxes + 4 * (m - objects)
        is_across = (real(traffic, at) <= right) & (real(traffic, at + 2) >= left)
        if is_across and (real(traffic, at + 1) <= top) & (real(traffic, at + 3) >= bottom):
            near[count] = m
            count += 1
    return count


@inner
def _hit_object(ego, traffic, bound, m, k, is_watched, places, i, n, bit, row):
    half, box, objects = whole(traffic, HALF_SIZES) + 2 * m, whole(traffic, BOXES) + 4 * m, object_count(traffic)
    if is_watched and not has_flag(traffic, m, IS_STILL):
        for offset in range(ttc.OFFSETS):
            share = np.float32(offset * ttc.STRIDE / AHEAD)
            at = box + 4 * objects * (k + offset * ttc.STRIDE)
            if _is_near(traffic, bound, at, half):
                _hit(ego, traffic, at, half, share, share, places, i, n, bit, row)
    else:
        share, at = np.float32(1.0) if is_watched else _ZERO, box + 4 * objects * k
        if _is_near(traffic, bound, at, half):
            _hit(ego, traffic, at, half, _ZERO, share, places, i, n, bit, row)


@inlined
def _is_near(traffic, bound, box, half) -> bool:
    """Whether a box may reach into the bound; not where it is absent (NaN)."""
    x, y, reach = real(traffic, box), real(traffic, box + 1), real(traffic, half) + real(traffic, half + 1)
    is_across = (x - reach <= bound[2]) & (x + reach >= bound[0])
    return is_across & (y - reach <= bound[3]) & (y + reach >= bound[1])


@lanes
def _hit(ego, traffic, box, half, least, most, places, i, n, bit, row):
    """Set the bit of the candidates whose footprint, pushed by some share between least and most, may touch a box."""
    far = max(abs(real(traffic, box) - ego[0]), abs(real(traffic, box + 1) - ego[1]))
    box_x, box_y = np.float32(real(traffic, box) - ego[0]), np.float32(real(traffic, box + 1) - ego[1])
    box_cosine, box_sine = np.float32(real(traffic, box + 2)), np.float32(real(traffic, box + 3))
    long, wide = np.float32(real(traffic, half)), np.float32(real(traffic, half + 1))
    slack = np.float32(_SLACK + _RELATIVE_SLACK * far)
    long_reach, wide_reach = _LONG + slack, _WIDE + slack
    x, y, cosine, sine, pushed = places[X, i], places[Y, i], places[COSINE, i], places[SINE, i], places[PUSHED, i]
    for c in range(n):
        dx, dy = box_x - x[c], box_y - y[c]
        turn_cosine = abs(cosine[c] * box_cosine + sine[c] * box_sine)
        turn_sine = abs(cosine[c] * box_sine - sine[c] * box_cosine)
        aside = abs(dy * cosine[c] - dx * sine[c])
        along = dx * cosine[c] + dy * sine[c]
        reach = long_reach + long * turn_cosine + wide * turn_sine
        is_beside = aside <= wide_reach + long * turn_sine + wide * turn_cosine
        is_hit = is_beside & (along + reach >= least * pushed[c]) & (along - reach <= most * pushed[c])
        row[c] |= bit if is_hit else np.int32(0)


@lanes
def _hit_light(ego, traffic, light, places, i, n, bit, row):
    """Set the bit of the candidates whose circle reaches the box around a light's polygon."""
    box = whole(traffic, LIGHT_BOXES) + 4 * light
    slack = RADIUS + _SLACK
    left, right = np.float32(real(traffic, box) - ego[0] - slack), np.float32(real(traffic, box + 2) - ego[0] + slack)
    bottom, top = (
        np.float32(real(traffic, box + 1) - ego[1] - slack),
        np.float32(real(traffic, box + 3) - ego[1] + slack),
    )
    x, y = places[X, i], places[Y, i]
    for c in range(n):
        is_hit = (x[c] >= left) & (x[c] <= right) & (y[c] >= bottom) & (y[c] <= top)
        row[c] |= bit if is_hit else np.int32(0)
