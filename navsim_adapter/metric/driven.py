"""What a closed loop asks of the metric: the tracker alone, and the rules on states that were driven, not planned.

The functions are the ones that score a plan; here the tracker goes on with the wheels as they are turned, and nothing
stands between the states and the rules.
"""

from __future__ import annotations

import numpy as np

from navsim_adapter.metric import areas, comfort, hits, simulate, work
from navsim_adapter.metric.angles import sine_cosine
from navsim_adapter.metric.contacts import judge_contacts, measured_speed
from navsim_adapter.metric.driving_direction import driving_direction_compliance
from navsim_adapter.metric.engine import DONE
from navsim_adapter.metric.jit import entry
from navsim_adapter.metric.map_index import INTERSECTION, ON_ROUTE, area_count
from navsim_adapter.metric.packed import Packed, end_of, reals
from navsim_adapter.metric.traffic_index import AHEAD, light_count, object_count
from navsim_adapter.vehicle import STATES, STEPS

VERDICT = ("collisions", "drivable_area", "direction", "lights", "comfort", "collision_time")
_EVERY = (1 << STATES) - 1  # states at which nothing is known beforehand
_TRACKER = (simulate.REFERENCE_PLANES + simulate.PLANES) * STATES + 3 * STEPS  # numbers that `_follow` works in


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
    tracking, end = work.for_tracking(scratch.ctypes.data, n)
    block = reals(end, (simulate.PLANES, STATES, n))
    reference, _speed, _excess, _curvature = tracking
    simulate.take_reference(poses, first, n, reference)
    simulate.drive(ego, tracking, n, block)
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
    calm, end = work.for_comfort(end_of(block), STATES + history.shape[0], n)
    around, end = work.for_survey(end, objects, things, n)
    mine, end = work.for_candidate(end, things, area_count(area))
    needed = (end - scratch.ctypes.data + 7) // 8
    if needed > scratch.shape[0]:
        return needed

    for k in range(STATES):
        block[simulate.X, k, c], block[simulate.Y, k, c] = states[k, 0], states[k, 1]
        block[simulate.HEADING, k, c], block[simulate.SPEED, k, c] = states[k, 2], states[k, 3]
        block[simulate.ACCELERATION, k, c], block[simulate.STEERING, k, c] = states[k, 5], states[k, 7]
        block[simulate.STEERING_RATE, k, c], block[simulate.YAW_RATE, k, c] = states[k, 8], states[k, 9]
        block[simulate.SINE, k, c], block[simulate.COSINE, k, c] = sine_cosine(states[k, 2])
    start_speed, ttc_steps = measured_speed(ego), STATES - AHEAD
    _touching, _hit, _settled, corners, _other, moved, _lanes, own, _cells = mine
    _near, _near_count, places, _bounds, _spans, _tracks = around
    _series, _turns, is_comfortable = calm
    hits.survey(ego, traffic, start_speed, block, n, around)
    hits.take_places(places, c, own)
    verdict[0], _ttc, verdict[3], verdict[5], _when = judge_contacts(
        area, traffic, start_speed, block, c, ttc_steps, around, mine
    )
    in_route, in_crossing = areas.settle_center(area, block, c, 0, 0, _EVERY, ON_ROUTE | INTERSECTION)
    verdict[1] = areas.drivable_area_compliance(area, block, c, _EVERY, 0, corners)
    verdict[2] = driving_direction_compliance(block, c, in_route | in_crossing, moved)
    comfort.history_comfort(block, ego[6], history, n, calm)
    verdict[4] = is_comfortable[c]
    return DONE
