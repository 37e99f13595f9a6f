"""Where a trajectory's microseconds go, stage by stage, and the least that the arithmetic and the bytes would need.

    python benchmarks/scorer_stages.py                 # CPU time of one core, warm scenes, 64 candidates a call

A stage is timed alone, over and over on the same block, so its data is in the nearest cache; the whole call is
compiled as one and shares look-ups, so the stages need not add up to it. The floor counts arithmetic at what this
core reaches on a plain multiply-add loop, and bytes at what it reaches on a copy: a bound, not a target.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
BENCHMARKS = sys.path.pop(sys.path.index(str(ROOT / "benchmarks")))  # numba would take its `coverage` for another

import numba

sys.path.append(BENCHMARKS)
import numpy as np
from scorer import COMMITTED, mixed

from navsim_adapter.cache.folder import build_scenes
from navsim_adapter.metric import (
    areas,
    comfort,
    contacts,
    driving_direction,
    engine,
    hits,
    lane_keeping,
    marks,
    progress,
    simulate,
    work,
)
from navsim_adapter.metric.map_index import CATEGORIES
from navsim_adapter.metric.scene_index import build_index
from navsim_adapter.metric.traffic_index import AHEAD, LIGHT_STEPS, OBJECTS
from navsim_adapter.nuplan.root import data_root
from navsim_adapter.nuplan.scenes import split_filter
from navsim_adapter.vehicle import STATES, STEPS

N, SCENES, REPEATS = 64, 8, 50

# Floating-point operations a trajectory, counted from the formulas (a sine with its cosine: 40; a division: 4).
OPERATIONS = {
    "knots": 9 * 60,
    "reference": 41 * (3 * 2 + 40),
    "speed fit": 40 * 14,
    "curvature fit": 40 * 16,
    "tracker, bicycle": 40 * (10 * 6 + 150),
    "comfort": 41 * 6 * 8,
}
BYTES = 8 * 3 * 8 + engine.COLUMNS * 8  # poses in, a row of the table out; all else stays in the caches
"""A trajectory's bytes that must cross to memory."""


def main() -> None:
    root, (split, chosen) = data_root(COMMITTED, {}), split_filter("mini")
    scenes, _ = build_scenes(root, split, chosen)
    tokens = sorted(scenes)[:SCENES]
    for metric in ("pdms", "epdms"):
        spent: dict[str, list[float]] = {}
        for token, poses in zip(tokens, mixed(COMMITTED, tokens, N)):
            for name, microseconds in stages(build_index(scenes[token], metric), poses).items():
                spent.setdefault(name, []).append(microseconds)
        print(f"\n{metric}: microseconds a trajectory, mean over {SCENES} scenes (largest)")
        for name, values in spent.items():
            print(f"  {name:32s}{np.mean(values):7.2f}  ({max(values):.2f})")
    flops, bandwidth = arithmetic_rate(), copy_rate()
    total = sum(OPERATIONS.values())
    print(f"\nfloor: {total:,} operations at {flops / 1e9:.1f} G/s are {1e6 * total / flops:.2f} us; "
          f"{BYTES} bytes at {bandwidth / 1e9:.1f} GB/s are {1e6 * BYTES / bandwidth:.2f} us;")  # fmt: skip
    print(f"what is above it are look-ups: {41 * 5} cells of the map and up to {41 * 4} of the traffic a trajectory")


def stages(index, poses: np.ndarray) -> dict[str, float]:
    """Microseconds a trajectory of every stage."""
    size, ego, history, is_epdms = poses.shape[1], index.ego, index.history, index.is_epdms
    area, traffic = index.area.address, index.traffic.address
    objects = index.traffic.size(OBJECTS)
    things, polygons = objects + index.traffic.size(LIGHT_STEPS), index.area.size(CATEGORIES)
    memory, block = np.zeros(1_000_000), np.empty((simulate.PLANES, STATES, N))
    sizes = (memory, size, N, STATES + len(history), objects, things, polygons)
    PREPARE(index.time_us, 0.5, *sizes)
    spent = {
        "knots": timed(KNOTS, ego, poses, *sizes),
        "reference": timed(REFERENCE, *sizes),
        "speed fit": timed(SPEED, *sizes),
        "curvature fit": timed(CURVATURE, *sizes),
        "tracker, bicycle": timed(TRACK, ego, block, *sizes),
        "history comfort" if is_epdms else "comfort": timed(COMFORT, block, ego[6], history, is_epdms, *sizes),
        "what is near": timed(SURVEY, ego, traffic, block, *sizes),
        "marks of the map": timed(MARKS, ego, area, block, *sizes),
        "collisions, ttc, lights": timed(CONTACTS, area, traffic, ego, block, is_epdms, *sizes),
        "areas, direction, lane keeping": timed(AREAS, ego, area, block, is_epdms, *sizes),
        "progress": timed(PROGRESS, area, block),
    }
    spent["areas, direction, lane keeping"] -= spent["marks of the map"]
    table, states = np.empty((N, engine.COLUMNS)), np.empty((0, STATES, 11))
    headings = np.full((N, size), np.nan)  # given, so that no turn is a tie
    spent["whole call, as compiled"] = timed(
        engine.score_trajectories, index.block.address, poses, 0.5, False, headings, table, states, memory
    )
    return spent


def timed(work: Callable[..., object], *arguments: object) -> float:
    work(*arguments)
    start = time.process_time()
    for _ in range(REPEATS):
        work(*arguments)
    return 1e6 * (time.process_time() - start) / REPEATS / N


stage = numba.njit(error_model="numpy")  # the engine's inner kernels have no way in from Python; this gives one


@stage
def LAYOUT(memory, size, width, rows, objects, things, polygons):
    """The work arrays of the stages, as the engine cuts them."""
    planning, end = work.for_knots(memory.ctypes.data, size, width)
    tracking, end = work.for_tracking(end, width)
    calm, end = work.for_comfort(end, rows, width)
    around, end = work.for_survey(end, objects, things, width)
    mine, end = work.for_candidate(end, things, polygons)
    return planning, tracking, calm, around, mine


@stage
def PREPARE(time_us, interval, *sizes):
    planning, _tracking, _calm, _around, _mine = LAYOUT(*sizes)
    simulate.sample_times(time_us, interval, planning)


@stage
def KNOTS(ego, poses, *sizes):
    planning, _tracking, _calm, _around, _mine = LAYOUT(*sizes)
    simulate.place_knots(ego, poses, np.empty((0, 0)), 0, N, planning)


@stage
def REFERENCE(*sizes):
    planning, (reference, _speed, _excess, _curvature), _calm, _around, _mine = LAYOUT(*sizes)
    simulate.sample_reference(planning, N, reference)


@stage
def SPEED(*sizes):
    _planning, (reference, speed, _excess, _curvature), _calm, _around, _mine = LAYOUT(*sizes)
    simulate.fit_speed(reference, N, speed)


@stage
def CURVATURE(*sizes):
    _planning, (reference, speed, excess, curvature), _calm, _around, _mine = LAYOUT(*sizes)
    simulate.fit_curvature(reference, speed, N, excess, curvature)


@stage
def TRACK(ego, block, *sizes):
    _planning, (reference, speed, _excess, curvature), _calm, _around, _mine = LAYOUT(*sizes)
    simulate.track(ego, reference, speed, curvature, N, block)


@stage
def COMFORT(block, lateral, history, is_epdms, *sizes):
    _planning, _tracking, calm, _around, _mine = LAYOUT(*sizes)
    if is_epdms:
        comfort.history_comfort(block, lateral, history, N, calm)
    else:
        comfort.comfort(block, lateral, N, calm)


@stage
def SURVEY(ego, traffic, block, *sizes):
    _planning, _tracking, _calm, around, _mine = LAYOUT(*sizes)
    hits.survey(ego, traffic, contacts.measured_speed(ego), block, N, around)


@stage
def MARKS(ego, area, block, *sizes):
    _planning, _tracking, _calm, around, mine = LAYOUT(*sizes)
    _near, _count, places, _bounds, _spans, _tracks = around
    _touching, _hit, _settled, _corners, _other, _moved, _lanes, own, cells = mine
    for c in range(N):
        hits.take_places(places, c, own)
        marks.mark_centers(ego, area, own, 6)
        marks.mark_corners(ego, area, own, cells)


@stage
def CONTACTS(area, traffic, ego, block, is_epdms, *sizes):
    _planning, _tracking, _calm, around, mine = LAYOUT(*sizes)
    _near, _count, places, _bounds, _spans, _tracks = around
    _touching, _hit, _settled, _corners, _other, _moved, _lanes, own, _cells = mine
    speed, ttc_steps = contacts.measured_speed(ego), STATES - AHEAD if is_epdms else STATES
    for c in range(N):
        hits.take_places(places, c, own)
        contacts.judge_contacts(area, traffic, speed, block, c, ttc_steps, around, mine)


@stage
def AREAS(ego, area, block, is_epdms, *sizes):
    """With the marks."""
    _planning, _tracking, _calm, around, mine = LAYOUT(*sizes)
    _near, _count, places, _bounds, _spans, _tracks = around
    _touching, _hit, _settled, corners, _other, moved, _lanes, own, cells = mine
    wanted = 6 if is_epdms else 2
    for c in range(N):
        hits.take_places(places, c, own)
        in_route, in_crossing, is_open, is_near = marks.mark_centers(ego, area, own, wanted)
        in_route, in_crossing = areas.settle_center(area, block, c, in_route, in_crossing, is_open, wanted)
        is_open, is_off = marks.mark_corners(ego, area, own, cells)
        areas.drivable_area_compliance(area, block, c, is_open, is_off, corners)
        driving_direction.driving_direction_compliance(block, c, in_route | in_crossing, moved)
        if is_epdms:
            lane_keeping.lane_keeping(area, block, c, in_crossing, is_near)


@numba.njit(error_model="numpy")
def PROGRESS(area, block):
    total = 0.0
    for c in range(block.shape[2]):
        total += progress.progress_at(area, block, STEPS, c)
    return total


@numba.njit(error_model="numpy")
def multiply_add(values, rounds):
    for _ in range(rounds):
        for i in range(values.shape[0]):
            values[i] = values[i] * 0.999 + 0.001


def arithmetic_rate() -> float:
    values = np.ones(64)
    multiply_add(values, 1)
    start = time.process_time()
    multiply_add(values, 2_000_000)
    return 2 * 64 * 2_000_000 / (time.process_time() - start)


def copy_rate() -> float:
    source = np.ones(16_000_000)
    target = source.copy()
    start = time.process_time()
    for _ in range(5):
        target[:] = source
    return 5 * 16 * source.size / (time.process_time() - start)


if __name__ == "__main__":
    main()
