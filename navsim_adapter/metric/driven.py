"""What a closed loop asks of the metric: the tracker alone, and the rules on states that were driven, not planned.

The functions are the ones that score a plan; here the tracker goes on with the wheels as they are turned, and nothing
stands between the states and the rules.
"""

from __future__ import annotations

import numpy as np

from navsim_adapter.metric import areas, comfort, hits, simulate
from navsim_adapter.metric.angles import sine_cosine
from navsim_adapter.metric.contacts import judge_contacts, measured_speed
from navsim_adapter.metric.driving_direction import driving_direction_compliance
from navsim_adapter.metric.engine import DONE
from navsim_adapter.metric.jit import entry
from navsim_adapter.metric.map_index import area_count
from navsim_adapter.metric.packed import Packed, end_of, reals, singles, smalls, wholes
from navsim_adapter.metric.traffic_index import AHEAD, STRETCH, STRETCHES, light_count, object_count
from navsim_adapter.vehicle import STATES, STEPS

VERDICT = ("collisions", "drivable_area", "direction", "lights", "comfort", "collision_time")
_EVERY = (1 << STATES) - 1  # states at which nothing is known beforehand
_TRACKER = (simulate.REFERENCE_PLANES + simulate.PLANES + 4) * STATES + 2 * STEPS  # numbers that `_follow` works in


def follow(ego: np.ndarray, path: np.ndarray) -> np.ndarray:
    """The states (41, 11), columns as in metric 5.2, of a car that follows a path from a state, its steering included.

    ego: (11,).  path: (41, 3) in the map's frame at 10 Hz.
    """
    states = np.empty((STATES, 11))
    _follow(ego, path[None], states, np.empty(_TRACKER))
    return states


def judge(area: Packed, traffic: Packed, history: np.ndarray, states: np.ndarray) -> np.ndarray:
    """EPDMS's rules on 41 states (41, 11) that were driven: (6,), see VERDICT.

    history: (H, 3) a_x, a_y, heading before them, for comfort.
    """
    verdict, scratch = np.empty(len(VERDICT)), np.empty(0)
    while (needed := _judge(area.address, traffic.address, history, states, verdict, scratch)) != DONE:
        scratch = np.empty(needed)
    return verdict


@entry("void(f8[::1], f8[:,:,::1], f8[:,::1], f8[::1])")
def _follow(ego, poses, states, scratch):
    first, n = np.int64(0), poses.shape[0]
    reference = reals(scratch.ctypes.data, (simulate.REFERENCE_PLANES, STATES, n))
    speed = reals(end_of(reference), (STEPS, n))
    curvature = reals(end_of(speed), (STEPS, n))
    moments = reals(end_of(curvature), (4, STATES, n))
    block = reals(end_of(moments), (simulate.PLANES, STATES, n))
    simulate.take_reference(poses, first, n, reference)
    simulate.fit_speed(reference, n, speed)
    simulate.fit_curvature(reference, speed, n, moments[0], curvature)
    simulate.window_moments(curvature, n, moments)
    simulate.track(ego, reference, speed, moments, n, block)
    for k in range(STATES):
        states[k, :] = 0.0
        states[k, 0], states[k, 1] = block[simulate.X, k, 0], block[simulate.Y, k, 0]
        states[k, 2], states[k, 3] = block[simulate.HEADING, k, 0], block[simulate.SPEED, k, 0]
        states[k, 5], states[k, 7] = block[simulate.ACCELERATION, k, 0], block[simulate.STEERING, k, 0]
        states[k, 8], states[k, 9] = block[simulate.STEERING_RATE, k, 0], block[simulate.YAW_RATE, k, 0]


@entry("i8(i8, i8, f8[:,::1], f8[:,::1], f8[::1], f8[::1])")
def _judge(area, traffic, history, states, verdict, scratch):
    """Returns DONE, or how many numbers of scratch it takes."""
    n, c, ego = np.int64(1), np.int64(0), states[0]
    objects, things = object_count(traffic), object_count(traffic) + light_count(traffic)
    block = reals(scratch.ctypes.data, (simulate.PLANES, STATES, n))
    series = reals(end_of(block), (comfort.SCRATCH_SERIES, STATES + history.shape[0], n))
    turns = reals(end_of(series), (n,))
    is_comfortable = reals(end_of(turns), (n,))
    touched = wholes(end_of(is_comfortable), (n,))
    near = wholes(end_of(touched), (STRETCHES, things))
    near_count = wholes(end_of(near), (STRETCHES,))
    is_settled = wholes(end_of(near_count), (2, objects))
    corners = reals(end_of(is_settled), (4, 2))
    other = reals(end_of(corners), (4, 2))
    moved = reals(end_of(other), (STATES,))
    bounds = reals(end_of(moved), (STRETCH + 1, 4))
    lanes = wholes(end_of(bounds), (5, area_count(area)))
    places = singles(end_of(lanes), (hits.PLACES, STRETCH, n))
    hit = smalls(end_of(places), ((things + hits.WORD - 1) // hits.WORD, STATES, n))
    needed = (end_of(hit) - scratch.ctypes.data + 7) // 8
    if needed > scratch.shape[0]:
        return needed

    for k in range(STATES):
        block[simulate.X, k, c], block[simulate.Y, k, c] = states[k, 0], states[k, 1]
        block[simulate.HEADING, k, c], block[simulate.SPEED, k, c] = states[k, 2], states[k, 3]
        block[simulate.ACCELERATION, k, c], block[simulate.STEERING, k, c] = states[k, 5], states[k, 7]
        block[simulate.STEERING_RATE, k, c], block[simulate.YAW_RATE, k, c] = states[k, 8], states[k, 9]
        block[simulate.SINE, k, c], block[simulate.COSINE, k, c] = sine_cosine(states[k, 2])
    start_speed, ttc_steps = measured_speed(ego), STATES - AHEAD
    for k in range(0, STATES, STRETCH):
        stretch, end = k // STRETCH, min(k + STRETCH, STATES)
        hits.place(ego, start_speed, block, k, end, n, places, bounds)
        near_count[stretch] = hits.find_hits(ego, traffic, bounds, k, end, places, n, ttc_steps, near[stretch], hit)
    hits.touched_states(hit, near_count, n, touched)
    verdict[0], _ttc, verdict[3], verdict[5], _when = judge_contacts(
        area, traffic, start_speed, block, c, near, near_count, hit, touched[c], ttc_steps, is_settled, corners, other,
        lanes,
    )  # fmt: skip
    in_route, in_crossing = areas.settle_center(area, block, c, 0, 0, _EVERY)
    verdict[1] = areas.drivable_area_compliance(area, block, c, _EVERY, 0, corners)
    verdict[2] = driving_direction_compliance(block, c, in_route | in_crossing, moved)
    comfort.history_comfort(block, ego[6], history, n, series, turns, is_comfortable)
    verdict[4] = is_comfortable[c]
    return DONE
