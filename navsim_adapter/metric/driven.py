"""What a closed loop asks of the metric: the tracker alone, and the rules on states that were driven, not planned.

The functions are the ones that score a plan; here the tracker goes on with the wheels as they are turned, and nothing
stands between the states and the rules.
"""

from __future__ import annotations

import numpy as np

from navsim_adapter.metric import areas, comfort, simulate
from navsim_adapter.metric.angles import sine_cosine
from navsim_adapter.metric.contacts import judge_contacts, measured_speed
from navsim_adapter.metric.driving_direction import driving_direction_compliance
from navsim_adapter.metric.jit import entry
from navsim_adapter.metric.map_index import area_count
from navsim_adapter.metric.traffic_index import object_count
from navsim_adapter.vehicle import STATES, STEPS

VERDICT = ("collisions", "drivable_area", "direction", "lights", "comfort", "collision_time")


@entry("void(f8[::1], f8[:,:,::1], f8[:,::1])")
def follow(ego, poses, states):
    """Drive a plan from the state `ego` (11,), its steering included.

    poses: (1, 41, 3) in the map's frame at 10 Hz.  states: (41, 11) out, columns as in metric 5.2.
    """
    first, n = np.int64(0), poses.shape[0]
    reference = np.empty((simulate.REFERENCE_PLANES, STATES, n))
    speed, curvature = np.empty((STEPS, n)), np.empty((STEPS, n))
    moments, block = np.empty((4, STEPS, n)), np.empty((simulate.PLANES, STATES, n))
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


@entry("void(i8, i8, f8[:,::1], f8[:,::1], f8[::1])")
def judge(area, traffic, history, states, verdict):
    """EPDMS's rules on 41 states (41, 11) that were driven.

    history: (H, 3) a_x, a_y, heading before them, for comfort.  verdict: (6,) out, see VERDICT.
    """
    n, c, rows = np.int64(1), np.int64(0), np.int64(STATES)
    block = np.empty((simulate.PLANES, STATES, n))
    for k in range(STATES):
        block[simulate.X, k, c], block[simulate.Y, k, c] = states[k, 0], states[k, 1]
        block[simulate.HEADING, k, c], block[simulate.SPEED, k, c] = states[k, 2], states[k, 3]
        block[simulate.ACCELERATION, k, c], block[simulate.STEERING, k, c] = states[k, 5], states[k, 7]
        block[simulate.STEERING_RATE, k, c], block[simulate.YAW_RATE, k, c] = states[k, 8], states[k, 9]
        block[simulate.SINE, k, c], block[simulate.COSINE, k, c] = sine_cosine(states[k, 2])
    corners, other = np.empty((4, 2)), np.empty((4, 2))
    lanes = np.empty((5, area_count(area)), np.int64)
    is_settled = np.empty((2, object_count(traffic)), np.bool_)
    verdict[0], _ttc, verdict[3], verdict[5], _when = judge_contacts(
        area, traffic, measured_speed(states[0]), block, c, rows - 9, is_settled, corners, other, lanes
    )
    center_areas, moved = np.empty(STATES, np.int64), np.empty(STATES)
    areas.center_areas(area, block, c, center_areas)
    verdict[1] = areas.drivable_area_compliance(area, block, c, corners)
    verdict[2] = driving_direction_compliance(block, c, center_areas, True, moved)
    series = np.empty((comfort.SCRATCH_SERIES, STATES + history.shape[0], n))
    turns, is_comfortable = np.empty(n), np.empty(n)
    comfort.history_comfort(block, states[0, 6], history, n, series, turns, is_comfortable)
    verdict[4] = is_comfortable[c]
