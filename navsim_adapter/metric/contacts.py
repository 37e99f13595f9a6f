"""One walk over what may touch a candidate: which contacts are real or projected ones, and what the rules say.

The rules are in `collisions.py`, `ttc.py` and `traffic_lights.py`. They share the walk because a contact at step k is
also the time-to-collision contact with offset 0. It goes stretch by stretch and ends where nothing is left to lose.
"""

from __future__ import annotations

from math import inf, sqrt

from navsim_adapter.metric import collisions, ttc
from navsim_adapter.metric.areas import center, ego_corners, is_off_lane
from navsim_adapter.metric.collisions import IF_OFF_LANE, NO, YES
from navsim_adapter.metric.hits import find_hits
from navsim_adapter.metric.jit import inner
from navsim_adapter.metric.map_index import INTERSECTION, categories_at
from navsim_adapter.metric.packed import first_bit, whole
from navsim_adapter.metric.simulate import COSINE, SINE, SPEED, X, Y
from navsim_adapter.metric.traffic_index import (
    BOXES,
    HALF_SIZES,
    IS_AGENT,
    STRETCH,
    STRETCHES,
    UNSURE_GAP,
    gap_to_object,
    has_flag,
    light_count,
    object_count,
    touches_object,
)
from navsim_adapter.metric.traffic_lights import runs_red_light
from navsim_adapter.vehicle import INTERVAL

_COLLIDED, _ENDANGERED = 1, 2  # what of an object is settled: it is ignored from then on


@inner
def judge_contacts(area, traffic, start_speed, states, c, ttc_steps, around, mine):
    """No-at-fault collisions, time to collision, traffic lights and the times of the first two infractions.

    start_speed: hypot(vx, vy) of the measured state; later states have no lateral speed.
    ttc_steps: states that time to collision checks (41 in v1.1, 32 in v2.2, whose objects end with the states).
    around: of `hits.survey`.  mine: of `work.for_candidate`, the candidate's own places in it.
    """
    near, near_count, _places, bounds, spans, tracks = around
    touching, hits, settled, corners, other, _moved, lanes, own, _cells = mine
    objects, has_no_lights = object_count(traffic), light_count(traffic) == 0
    boxes, halves = whole(traffic, BOXES), whole(traffic, HALF_SIZES)
    for m in range(objects):
        settled[m] = 0
    collision_score, is_clear, obeys_lights = 1.0, True, True
    collision_time, ttc_time = inf, inf
    for stretch in range(STRETCHES):
        if collision_score == 0.0 and not is_clear and (not obeys_lights or has_no_lights):
            break  # nothing is left to lose
        if near_count[stretch] == 0:
            continue
        is_watched = is_clear and STRETCH * stretch < ttc_steps
        number, every = find_hits(
            traffic, stretch, is_watched, own, bounds[stretch], c, near[stretch], near_count[stretch], spans[stretch],
            tracks[stretch], touching, hits,
        )  # fmt: skip
        while every != 0:
            bit = first_bit(every)
            every &= every - 1
            k, offset = STRETCH * stretch + bit // ttc.OFFSETS, bit % ttc.OFFSETS
            x, y = center(states, k, c)
            cosine, sine = states[COSINE, k, c], states[SINE, k, c]
            speed = start_speed if k == 0 else abs(states[SPEED, k, c])
            is_watching = is_clear and k < ttc_steps and speed >= ttc.STOPPED_SPEED
            if not is_watching and (offset != 0 or (collision_score == 0.0 and (not obeys_lights or has_no_lights))):
                continue
            later = (offset * ttc.STRIDE) * INTERVAL
            shift_x, shift_y = (cosine * speed) * later, (sine * speed) * later
            for at in range(number):
                if (hits[at] >> bit) & 1 == 0:
                    continue
                m = touching[at]
                if m >= objects:
                    if obeys_lights:
                        ego_corners(states, k, c, corners)
                        obeys_lights = not runs_red_light(traffic, m - objects, k, corners)
                    continue
                can_collide = offset == 0 and collision_score > 0.0 and settled[m] & _COLLIDED == 0
                can_endanger = is_watching and is_clear and settled[m] & _ENDANGERED == 0
                if not (can_collide or can_endanger):
                    continue
                box, half = boxes + 4 * ((k + offset * ttc.STRIDE) * objects + m), halves + 2 * m
                gap = gap_to_object(traffic, box, half, x + shift_x, y + shift_y, cosine, sine)
                if not gap <= UNSURE_GAP:  # apart, or absent (NaN)
                    continue
                if not touches_object(traffic, box, half, gap, x + shift_x, y + shift_y, cosine, sine, corners, other):
                    continue
                ego_corners(states, k, c, corners)
                angle = collisions.bearing(states, k, c, other)
                fault = collisions.at_fault(traffic, m, speed, angle, corners, other) if can_collide else NO
                danger = ttc.is_dangerous(angle) if can_endanger else NO
                if fault == IF_OFF_LANE or danger == IF_OFF_LANE:
                    off_lane = is_off_lane(area, corners, lanes)
                    fault = fault if fault != IF_OFF_LANE else (YES if off_lane else NO)
                    if danger == IF_OFF_LANE:
                        x_axle, y_axle = states[X, k, c], states[Y, k, c]
                        is_loose = off_lane or categories_at(area, x_axle, y_axle, INTERSECTION) != 0
                        danger = YES if is_loose else NO
                if can_collide:
                    settled[m] |= _COLLIDED
                    if fault == YES:
                        score = collisions.AGENT_SCORE if has_flag(traffic, m, IS_AGENT) else collisions.STATIC_SCORE
                        collision_score = min(collision_score, score)
                        collision_time = min(collision_time, k * INTERVAL)
                if can_endanger:
                    settled[m] |= _ENDANGERED
                    if danger == YES:
                        is_clear = False
                        ttc_time = k * INTERVAL
    return collision_score, 1.0 if is_clear else 0.0, 1.0 if obeys_lights else 0.0, collision_time, ttc_time


@inner
def measured_speed(ego) -> float:
    """Speed of the measured state, lateral part included (metric 10.1 (6))."""
    return sqrt(ego[3] * ego[3] + ego[4] * ego[4])
