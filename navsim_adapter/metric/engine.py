"""The compiled loop: trajectories of one scene in, a table of sub-scores out.

Simulation and comfort run over LANES candidates side by side; contacts, areas and progress candidate by candidate.
A candidate's row depends on nothing but the scene and its own poses.
"""

from __future__ import annotations

import numpy as np

from navsim_adapter.metric import aggregate, areas, comfort, hits, marks, simulate, work
from navsim_adapter.metric.angles import sine_cosine
from navsim_adapter.metric.contacts import judge_contacts, measured_speed
from navsim_adapter.metric.driving_direction import driving_direction_compliance
from navsim_adapter.metric.jit import entry, inlined, inner
from navsim_adapter.metric.lane_keeping import lane_keeping
from navsim_adapter.metric.map_index import INTERSECTION, ON_ROUTE, area_count
from navsim_adapter.metric.packed import end_of, real, reals, whole
from navsim_adapter.metric.progress import progress_at
from navsim_adapter.metric.traffic_index import AHEAD, light_count, object_count
from navsim_adapter.vehicle import STATES, STEPS

LANES = 64
DONE, TIED = 0, 1  # what `score_trajectories` returns
# Sections of a scene's block.
FACTS = 0  # (4,) int64: time, whether EPDMS, addresses of the map and of the traffic
BEST = 1  # (1,) best_other of `combine`
EGO = 2  # (11,)
HUMAN = 3  # (COLUMNS,), see `combine`
HISTORY = 4  # (H, 3) for history comfort, H = 0 without

# Columns of a table: the final sub-scores and the score, then the same before the human filter, then diagnostics.
SUB_SCORES = (
    "no_at_fault_collisions",
    "drivable_area_compliance",
    "driving_direction_compliance",
    "traffic_light_compliance",
    "ego_progress",
    "time_to_collision_within_bound",
    "lane_keeping",
    "comfort",  # v1.1's, or EPDMS's history comfort
)
NC, DAC, DDC, TLC, EP, TTC, LK, COMFORT, TWO_FRAME, SCORE = range(10)
RAW = 10  # RAW + NC, …: before the human filter
UNFILTERED_SCORE = RAW + len(SUB_SCORES)
DIAGNOSTICS = (
    "progress_raw",
    "collision_time",
    "ttc_time",
    "multiple_lanes_steps",
    "nondrivable_steps",
    "oncoming_steps",
)
PROGRESS_RAW, COLLISION_TIME, TTC_TIME, SEVERAL_LANES, OFF_ROAD, ONCOMING = range(
    UNFILTERED_SCORE + 1, UNFILTERED_SCORE + 1 + len(DIAGNOSTICS)
)
COLUMNS = UNFILTERED_SCORE + 1 + len(DIAGNOSTICS)


@entry("i8(i8, f8[:,:,::1], f8, b1, f8[:,::1], f8[:,::1], f8[:,:,::1], f8[::1])")
def score_trajectories(scene, poses, interval, is_planned, headings, table, states, scratch):
    """Fill `table` (N, COLUMNS) for trajectories of one scene, two-frame comfort left out.

    scene: address of its block, whose sections are FACTS and so on.
    poses: (N, T, 3) ego frame, `interval` seconds apart; or, if is_planned, (N, 41, 3) in the map's frame at
    10 Hz.  headings: (N, T) or (0, T), see `simulate.place_knots`.
    states: (N, 41, 11) out, or (0, 41, 11).  scratch: memory.
    Returns DONE; TIED if headings of some hang on the last bit and have to be given, and then these have infinity in
    SEVERAL_LANES and nothing is scored; else how many numbers of scratch it takes, having done nothing.
    """
    time_us, is_epdms, area, traffic = _facts(scene)
    ego = reals(scene + 8 * whole(scene, EGO), (11,))
    past = (whole(scene, HISTORY + 1) - whole(scene, HISTORY)) // 3
    history = reals(scene + 8 * whole(scene, HISTORY), (past, 3))
    count, size, width = poses.shape[0], poses.shape[1], min(poses.shape[0], LANES)
    objects, things = object_count(traffic), object_count(traffic) + light_count(traffic)
    planning, end = work.for_knots(scratch.ctypes.data, size, width)
    tracking, end = work.for_tracking(end, width)
    block = reals(end, (simulate.PLANES, STATES, width))
    calm, end = work.for_comfort(end_of(block), STATES + past, width)
    around, end = work.for_survey(end, objects, things, width)
    mine, end = work.for_candidate(end, things, area_count(area))
    needed = (end - scratch.ctypes.data + 7) // 8
    if needed > scratch.shape[0]:
        return needed

    if not is_planned:
        if headings.shape[0] == 0 and simulate.find_ties(ego, poses, table, SEVERAL_LANES):
            return TIED
        simulate.sample_times(time_us, interval, planning)
    reference, _speed, _excess, _curvature = tracking
    _series, _turns, is_comfortable = calm
    start_speed = measured_speed(ego)
    for first in range(0, count, LANES):
        n = min(LANES, count - first)
        if is_planned:
            simulate.take_reference(poses, first, n, reference)
        else:
            simulate.place_knots(ego, poses, headings, first, n, planning)
            simulate.sample_reference(planning, n, reference)
        simulate.drive(ego, tracking, n, block)
        if is_epdms:
            comfort.history_comfort(block, ego[6], history, n, calm)
        else:
            comfort.comfort(block, ego[6], n, calm)
        hits.survey(ego, traffic, start_speed, block, n, around)
        start = progress_at(area, block, 0, 0)  # where all of them start
        for c in range(n):
            row = table[first + c]
            _judge(area, traffic, is_epdms, ego, start_speed, block, c, around, mine, row)
            row[PROGRESS_RAW] = max(progress_at(area, block, STEPS, c) - start, 0.0)
            row[RAW + COMFORT] = is_comfortable[c]
            _conclude(scene, is_epdms, row)
            if states.shape[0] > 0:
                _write_states(ego, block, c, states[first + c])
    return DONE


@inlined
def _facts(scene):
    at = whole(scene, FACTS)
    return whole(scene, at), whole(scene, at + 1) != 0, whole(scene, at + 2), whole(scene, at + 3)


@inlined
def _judge(area, traffic, is_epdms, ego, start_speed, block, c, around, mine, row):
    """The rules on one candidate's states."""
    _touching, _hit, _settled, corners, _other, moved, _lanes, own, cells = mine
    _near, _near_count, places, _bounds, _spans, _tracks = around
    hits.take_places(places, c, own)
    ttc_steps = STATES - AHEAD if is_epdms else STATES  # EPDMS's objects end with the states
    row[RAW + NC], row[RAW + TTC], row[RAW + TLC], row[COLLISION_TIME], row[TTC_TIME] = judge_contacts(
        area, traffic, start_speed, block, c, ttc_steps, around, mine
    )
    wanted = ON_ROUTE | INTERSECTION if is_epdms else ON_ROUTE
    in_route, in_crossing, is_open, is_near = marks.mark_centers(ego, area, own, wanted)
    in_route, in_crossing = areas.settle_center(area, block, c, in_route, in_crossing, is_open, wanted)
    is_open, is_off = marks.mark_corners(ego, area, own, cells)
    row[RAW + DAC] = areas.drivable_area_compliance(area, block, c, is_open, is_off, corners)
    is_exempt = in_route | in_crossing if is_epdms else in_route
    row[RAW + DDC] = driving_direction_compliance(block, c, is_exempt, moved)
    row[RAW + LK] = lane_keeping(area, block, c, in_crossing, is_near) if is_epdms else 1.0


@inlined
def _conclude(scene, is_epdms, row):
    human = reals(scene + 8 * whole(scene, HUMAN), (COLUMNS,))
    combine(row, is_epdms, real(scene, whole(scene, BEST)), human, np.nan)
    row[SEVERAL_LANES] = row[OFF_ROAD] = row[ONCOMING] = np.nan


def product_of(row, is_epdms):
    """The product that decides whose progress counts as the batch's best (metric 6.6)."""
    product = row[RAW + NC] * row[RAW + DAC]
    return product * row[RAW + TLC] * row[RAW + DDC] if is_epdms else product


_product_of = inner(product_of)
_pdms, _pdms_progress = inner(aggregate.pdms), inner(aggregate.pdms_progress)
_epdms, _epdms_progress = inner(aggregate.epdms), inner(aggregate.epdms_progress)
_human_filtered = inner(aggregate.human_filtered)


@inner
def combine(row, is_epdms, best_other, human, two_frame):
    """Progress, human filter and score of one row (metric 6.6, 6.13, 7.1).

    best_other: the largest raw progress x product of the rest of the batch, PDM-Closed's.
    human: (COLUMNS,) the human's row, whose zeros are forgiven; NaN for no filter.
    two_frame: NaN where there is no earlier frame.
    """
    raw, product = row[PROGRESS_RAW], _product_of(row, is_epdms)
    best = max(best_other, raw * product)
    row[TWO_FRAME] = two_frame
    if is_epdms:
        row[RAW + EP] = _epdms_progress(raw, best)
        for column in range(TWO_FRAME):
            row[column] = _human_filtered(row[RAW + column], human[RAW + column])
        row[UNFILTERED_SCORE] = _epdms(
            row[RAW + NC], row[RAW + DAC], row[RAW + DDC], row[RAW + TLC], row[RAW + EP], row[RAW + TTC],
            row[RAW + LK], row[RAW + COMFORT], np.nan,
        )  # fmt: skip
        row[SCORE] = _epdms(row[NC], row[DAC], row[DDC], row[TLC], row[EP], row[TTC], row[LK], row[COMFORT], two_frame)
    else:
        row[RAW + EP] = _pdms_progress(raw, product, best)
        for column in range(TWO_FRAME):
            row[column] = row[RAW + column]
        row[SCORE] = _pdms(row[NC], row[DAC], row[EP], row[TTC], row[COMFORT])
        row[UNFILTERED_SCORE] = row[SCORE]


@entry("void(i8, f8[:,:,::1], f8[:,:,::1], f8[:,::1], i8[:,::1], f8[:,::1])")
def count_areas(area, states, block, corners, lanes, table):
    """Fill in how many of the simulated states (N, 41, 11) are in each kind of area.

    block (PLANES, 41, 1), corners (4, 2), lanes (5, P): scratch.
    """
    for i in range(table.shape[0]):
        for k in range(STATES):
            block[simulate.X, k, 0], block[simulate.Y, k, 0] = states[i, k, 0], states[i, k, 1]
            sine, cosine = sine_cosine(states[i, k, 2])
            block[simulate.SINE, k, 0], block[simulate.COSINE, k, 0] = sine, cosine
        table[i, SEVERAL_LANES], table[i, OFF_ROAD], table[i, ONCOMING] = areas.count_area_steps(
            area, block, np.int64(0), corners, lanes
        )


@inner
def _write_states(ego, block, c, states):
    """The official 11 columns (metric 5.2)."""
    for k in range(STATES):
        states[k, 0], states[k, 1], states[k, 2] = (
            block[simulate.X, k, c],
            block[simulate.Y, k, c],
            block[simulate.HEADING, k, c],
        )
        states[k, 3], states[k, 5] = block[simulate.SPEED, k, c], block[simulate.ACCELERATION, k, c]
        states[k, 4], states[k, 6] = (ego[4], ego[6]) if k == 0 else (0.0, 0.0)
        states[k, 7], states[k, 8] = block[simulate.STEERING, k, c], block[simulate.STEERING_RATE, k, c]
        states[k, 9] = block[simulate.YAW_RATE, k, c]
        states[k, 10] = (
            0.0
            if k == 0
            else (block[simulate.YAW_RATE, k, c] - block[simulate.YAW_RATE, k - 1, c]) / simulate.MOTION_STEP
        )


@entry("void(f8[:,::1], b1, f8, f8[::1], f8[::1])")
def combine_rows(table, is_epdms, best_other, human, two_frame):
    """`combine` for rows of one scene once two_frame (N,) or the batch's best is known."""
    for i in range(table.shape[0]):
        combine(table[i], is_epdms, best_other, human, two_frame[i])
