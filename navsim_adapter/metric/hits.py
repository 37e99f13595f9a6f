"""Which objects and lights may touch a candidate's footprints, stretch by stretch of the time axis.

In single precision, relative to where the ego starts, and on the footprint's two axes only: what is found may be no
contact, but no contact is missed. `contacts.py` decides with exact corners. Objects far from all candidates of a
stretch are passed over, then those far from the candidate; the rest is asked about at all states side by side.
"""

from __future__ import annotations

import numpy as np

from navsim_adapter.metric import simulate, ttc
from navsim_adapter.metric.jit import inlined, inner, lanes
from navsim_adapter.metric.packed import first_bit, real, singles, whole
from navsim_adapter.metric.traffic_index import (
    AHEAD,
    BOXES,
    HALF_SIZES,
    IS_IGNORED,
    IS_STILL,
    LIGHT_BOXES,
    LIGHT_STEPS,
    SPANS,
    STRETCH,
    STRETCHES,
    has_flag,
    light_count,
    object_count,
    step_count,
)
from navsim_adapter.vehicle import AXLE_TO_CENTER, HALF_LENGTH, HALF_WIDTH, INTERVAL, RADIUS, STATES

WORD = 32  # objects asked about at once
_SLACK, _RELATIVE_SLACK = 0.01, 1e-6  # m, and of the distance from the start: far above what single precision loses
_LONG, _WIDE, _FAR = np.float32(HALF_LENGTH), np.float32(HALF_WIDTH), np.float32(1e30)
X, Y, COSINE, SINE, PUSHED = range(5)
PLACES = 5  # planes of places, float32: of the footprint center and heading, and how far it is pushed ahead
OWN = (STRETCHES, PLACES, STRETCH)  # one candidate's places; NaN after the last state
TRACK = STRETCH + AHEAD  # steps of an object that a stretch may meet
# Bit OFFSETS i + o of state i and offset o, for each offset, and of all offsets: (OFFSETS + 1, STRETCH).
_BITS = np.array([[1 << (ttc.OFFSETS * i + o) for i in range(STRETCH)] for o in range(ttc.OFFSETS)], np.uint32)
_BITS = np.vstack([_BITS, np.bitwise_or.reduce(_BITS, axis=0)]).view(np.int32)
_SLOTS, _NONE = (np.uint32(1) << np.arange(WORD, dtype=np.uint32)).view(np.int32), np.int32(0)


@inner
def survey(ego, traffic, start_speed, states, n, around):
    """Where the candidates of a block are, and what is near them in each stretch.

    start_speed: see `judge_contacts`.  around: of `work.for_survey`, out: `near`, how many of them, `places`, `bounds`,
    `spans` and `tracks` of `place` and `find_near`.
    """
    near, near_count, places, bounds, spans, tracks = around
    place(ego, start_speed, states, n, places, bounds)
    for stretch in range(STRETCHES):
        near_count[stretch] = find_near(
            ego, traffic, stretch, bounds[stretch], n, near[stretch], spans[stretch], tracks[stretch]
        )


@inner
def place(ego, start_speed, states, n, places, bounds):
    """Where the candidates of a block are, from where the ego starts: places (PLACES, 41, lanes) out.

    start_speed: see `judge_contacts`.
    bounds: (STRETCHES, 4, lanes) float32 out, x_min, y_min, x_max, y_max around a stretch's footprints.
    """
    for stretch in range(STRETCHES):
        _open_bounds(bounds[stretch], n)
        for k in range(STRETCH * stretch, min(STRETCH * (stretch + 1), STATES)):
            _place_all(ego[0], ego[1], start_speed if k == 0 else -1.0, states, k, n, places, bounds[stretch])
        _widen_bounds(bounds[stretch], n)


@lanes
def _open_bounds(bounds, n):
    left, bottom, right, top = bounds[0], bounds[1], bounds[2], bounds[3]
    for c in range(n):
        left[c], bottom[c], right[c], top[c] = _FAR, _FAR, -_FAR, -_FAR


@lanes
def _place_all(ego_x, ego_y, start_speed, states, k, n, places, bounds):
    states_x, states_y, speeds = states[simulate.X, k], states[simulate.Y, k], states[simulate.SPEED, k]
    cosines, sines = states[simulate.COSINE, k], states[simulate.SINE, k]
    x, y, cosine, sine, pushed = places[X, k], places[Y, k], places[COSINE, k], places[SINE, k], places[PUSHED, k]
    left, bottom, right, top = bounds[0], bounds[1], bounds[2], bounds[3]
    for c in range(n):
        here_x = (states_x[c] - ego_x) + AXLE_TO_CENTER * cosines[c]
        here_y = (states_y[c] - ego_y) + AXLE_TO_CENTER * sines[c]
        push = (start_speed if start_speed >= 0.0 else abs(speeds[c])) * (AHEAD * INTERVAL)
        there_x, there_y = np.float32(here_x + push * cosines[c]), np.float32(here_y + push * sines[c])
        x[c], y[c], cosine[c], sine[c], pushed[c] = here_x, here_y, cosines[c], sines[c], push
        left[c], right[c] = _least(left[c], _least(x[c], there_x)), _most(right[c], _most(x[c], there_x))
        bottom[c], top[c] = _least(bottom[c], _least(y[c], there_y)), _most(top[c], _most(y[c], there_y))


@lanes
def _widen_bounds(bounds, n):
    left, bottom, right, top = bounds[0], bounds[1], bounds[2], bounds[3]
    for c in range(n):
        far = _most(_most(-left[c], right[c]), _most(-bottom[c], top[c]))
        slack = np.float32(RADIUS + _SLACK) + np.float32(_RELATIVE_SLACK) * far
        left[c], bottom[c], right[c], top[c] = left[c] - slack, bottom[c] - slack, right[c] + slack, top[c] + slack


@inlined
def _least(a, b):
    return a if a < b else b


@inlined
def _most(a, b):
    return a if a > b else b


@inner
def find_near(ego, traffic, stretch, bounds, n, near, spans, tracks):
    """Objects, then lights, that reach into the box around a stretch of all candidates; their number is returned.

    near: (M + L) out, which ones, in order.
    spans, tracks: (4, M + L) and (M, 4, TRACK) float32 out, SPANS and BOXES of these from where the ego starts.
    """
    left, bottom, right, top = _FAR, _FAR, -_FAR, -_FAR
    for c in range(n):
        left, bottom = _least(left, bounds[0, c]), _least(bottom, bounds[1, c])
        right, top = _most(right, bounds[2, c]), _most(top, bounds[3, c])
    x, y, objects, lights, count = ego[0], ego[1], object_count(traffic), light_count(traffic), 0
    places, boxes = whole(traffic, SPANS) + 4 * stretch * objects, whole(traffic, LIGHT_BOXES)
    for m in range(objects + lights):
        at = places + 4 * m if m < objects else boxes + 4 * (m - objects)
        is_across = (real(traffic, at) - x <= right) & (real(traffic, at + 2) - x >= left)
        is_across &= (real(traffic, at + 1) - y <= top) & (real(traffic, at + 3) - y >= bottom)
        if is_across and not (m < objects and has_flag(traffic, m, IS_IGNORED)):
            near[count] = m
            spans[0, count], spans[1, count] = real(traffic, at) - x, real(traffic, at + 1) - y
            spans[2, count], spans[3, count] = real(traffic, at + 2) - x, real(traffic, at + 3) - y
            if m < objects:
                _take_track(x, y, traffic, m, STRETCH * stretch, tracks[count])
            count += 1
    return count


@inner
def _take_track(x, y, traffic, m, first, track):
    objects, boxes = object_count(traffic), whole(traffic, BOXES) + 4 * m
    steps = STRETCH if has_flag(traffic, m, IS_STILL) else STRETCH + AHEAD
    known = min(steps, step_count(traffic) - first)
    for step in range(known):
        at = boxes + 4 * objects * (first + step)
        track[0, step], track[1, step] = real(traffic, at) - x, real(traffic, at + 1) - y
        track[2, step], track[3, step] = real(traffic, at + 2), real(traffic, at + 3)
    for step in range(known, steps):
        track[0, step] = np.nan


@lanes
def take_places(places, c, own):
    """One candidate's places: own, of shape OWN, out."""
    for stretch in range(STRETCHES):
        known = min(STRETCH, STATES - STRETCH * stretch)
        for plane in range(PLACES):
            row = own[stretch, plane]
            for i in range(known):
                row[i] = places[plane, STRETCH * stretch + i, c]
            for i in range(known, STRETCH):
                row[i] = np.nan


@inner
def find_hits(traffic, stretch, is_watched, own, bounds, c, near, count, spans, tracks, touching, hits):
    """What may touch a candidate's footprints in a stretch, where they are or where time to collision pushes them.

    is_watched: whether time to collision looks at the stretch.  near, count, spans, tracks: of `find_near`.
    touching: (M + L) out, which objects and lights, in order; their number is returned, and which bits they have.
    hits: (M + L) int64 out, their bits: OFFSETS i + o for state i of the stretch, pushed by offset o.
    """
    objects, number, every = object_count(traffic), 0, np.int64(0)
    left, bottom, right, top, places = bounds[0, c], bounds[1, c], bounds[2, c], bounds[3, c], own[stretch]
    for start in range(0, count, WORD):
        reaching = _reaching(spans, start, min(count - start, WORD), left, bottom, right, top)
        while reaching != 0:
            slot = start + first_bit(reaching)
            reaching &= reaching - 1
            m = near[slot]
            if m < objects:
                found = _hit_object(traffic, m, is_watched, places, spans, slot, tracks[slot])
            else:
                red = whole(traffic, whole(traffic, LIGHT_STEPS) + m - objects) >> (STRETCH * stretch)
                found = _hit_light(red, places, spans, slot)
            if found != 0:
                touching[number], hits[number] = m, found
                number += 1
                every |= found
    return number, every


@lanes
def _reaching(spans, start, count, left, bottom, right, top):
    """Which of WORD boxes reach into a candidate's, as bits."""
    x_min, y_min = singles(_at(spans, 0, start), (WORD,)), singles(_at(spans, 1, start), (WORD,))
    x_max, y_max, bits = singles(_at(spans, 2, start), (WORD,)), singles(_at(spans, 3, start), (WORD,)), np.int32(0)
    for i in range(count):
        is_across = (x_min[i] <= right) & (x_max[i] >= left)
        is_near = is_across & (y_min[i] <= top) & (y_max[i] >= bottom)
        bits = np.int32(bits | (_SLOTS[i] if is_near else _NONE))
    return np.int64(bits) & 0xFFFFFFFF


@inlined
def _at(planes, plane, start) -> int:
    """The address of an element of float32 planes; a slice would cost more."""
    return planes.ctypes.data + 4 * (plane * planes.shape[1] + start)


@inner
def _hit_object(traffic, m, is_watched, own, spans, slot, track):
    half = whole(traffic, HALF_SIZES) + 2 * m
    far = _most(_most(abs(spans[0, slot]), abs(spans[2, slot])), _most(abs(spans[1, slot]), abs(spans[3, slot])))
    slack = np.float32(_SLACK) + np.float32(_RELATIVE_SLACK) * far
    long, wide = np.float32(real(traffic, half)), np.float32(real(traffic, half + 1))
    if not is_watched:
        return _hit(own, track, 0, 0, long, wide, slack, _BITS[0])
    if has_flag(traffic, m, IS_STILL):
        return _hit(own, track, 0, ttc.OFFSETS - 1, long, wide, slack, _BITS[ttc.OFFSETS])
    found = np.int64(0)
    for offset in range(ttc.OFFSETS):
        found |= _hit(own, track, offset, offset, long, wide, slack, _BITS[offset])
    return found


@lanes
def _hit(own, track, offset, last, long, wide, slack, bit_of):
    """Bits of a stretch's states at which the footprint, pushed by `offset` to `last`, may touch a box of a track.

    The box is that of `offset`; the footprint stays on its own axis, so a parked object needs one test of all offsets.
    """
    box_x, box_y = (
        singles(_at(track, 0, offset * ttc.STRIDE), (STRETCH,)),
        singles(_at(track, 1, offset * ttc.STRIDE), (STRETCH,)),
    )
    box_cosine, box_sine = (
        singles(_at(track, 2, offset * ttc.STRIDE), (STRETCH,)),
        singles(_at(track, 3, offset * ttc.STRIDE), (STRETCH,)),
    )
    x, y, cosine, sine, pushed = own[X], own[Y], own[COSINE], own[SINE], own[PUSHED]
    least, most = np.float32(offset * ttc.STRIDE / AHEAD), np.float32(last * ttc.STRIDE / AHEAD)
    long_reach, wide_reach, bits = _LONG + slack, _WIDE + slack, np.int32(0)
    for i in range(STRETCH):
        dx, dy = box_x[i] - x[i], box_y[i] - y[i]
        turn_cosine = abs(cosine[i] * box_cosine[i] + sine[i] * box_sine[i])
        turn_sine = abs(cosine[i] * box_sine[i] - sine[i] * box_cosine[i])
        aside = abs(dy * cosine[i] - dx * sine[i])
        along = dx * cosine[i] + dy * sine[i]
        reach = long_reach + long * turn_cosine + wide * turn_sine
        is_beside = aside <= wide_reach + long * turn_sine + wide * turn_cosine
        is_hit = is_beside & (along + reach >= least * pushed[i]) & (along - reach <= most * pushed[i])
        bits = np.int32(bits | (bit_of[i] if is_hit else _NONE))
    return np.int64(bits) & 0xFFFFFFFF


@lanes
def _hit_light(red, own, spans, slot):
    """Bits of a stretch's states at which a light is red and the footprint's circle reaches the box around it.

    red: bits of the stretch's states.
    """
    slack, bits, x, y, bit_of = np.float32(RADIUS + _SLACK), np.int32(0), own[X], own[Y], _BITS[0]
    left, bottom = spans[0, slot] - slack, spans[1, slot] - slack
    right, top = spans[2, slot] + slack, spans[3, slot] + slack
    for i in range(STRETCH):
        is_hit = (x[i] >= left) & (x[i] <= right) & (y[i] >= bottom) & (y[i] <= top)
        bits = np.int32(bits | (bit_of[i] if is_hit & ((red >> i) & 1 != 0) else _NONE))
    return np.int64(bits) & 0xFFFFFFFF
