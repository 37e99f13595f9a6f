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
)
from navsim_adapter.metric.map_index import CATEGORIES
from navsim_adapter.metric.scene_index import build_index
from navsim_adapter.metric.traffic_index import LIGHT_STEPS, OBJECTS, STRETCH, STRETCHES
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
    "window moments": 40 * 10 * 6,
    "tracker, bicycle": 40 * 150,
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
    span, lower, offset = np.empty(size), np.empty(STATES, np.int64), np.empty(STATES)
    knots, slopes, headings = np.empty((3, size + 1, N)), np.empty((3, size, N)), np.empty((0, size))
    reference = np.empty((simulate.REFERENCE_PLANES, STATES, N))
    speed, curvature, moments = np.empty((STEPS, N)), np.empty((STEPS, N)), np.empty((4, STEPS, N))
    block = np.empty((simulate.PLANES, STATES, N))
    series = np.empty((comfort.SCRATCH_SERIES, STATES + len(history), N))
    turns, kept = np.empty(N), np.empty(N)
    PREPARE(index.time_us, size, 0.5, np.empty(size + 1), span, lower, offset)
    spent = {
        "knots": timed(KNOTS, ego, poses, headings, 0, N, knots, np.empty(N, np.int64)),
        "reference": timed(REFERENCE, knots, span, lower, offset, N, slopes, reference),
        "speed fit": timed(SPEED, reference, N, speed),
        "curvature fit": timed(CURVATURE, reference, speed, N, moments[0], curvature),
        "window moments": timed(MOMENTS, curvature, N, moments),
        "tracker, bicycle": timed(TRACK, ego, reference, speed, moments, N, block),
    }
    if is_epdms:
        spent["history comfort"] = timed(HISTORY, block, ego[6], history, N, series, turns, kept)
    else:
        spent["comfort"] = timed(COMFORT, block, ego[6], N, series, turns, kept)
    things, polygons = index.traffic.size(OBJECTS) + index.traffic.size(LIGHT_STEPS), index.area.size(CATEGORIES)
    places = np.empty((hits.PLACES, STRETCH, N), np.float32)
    near, counts, hit = (
        np.empty((STRETCHES, things), np.int64),
        np.empty(STRETCHES, np.int64),
        np.empty((-(-things // hits.WORD), STATES, N), np.int32),
    )
    mark, touched = np.empty((STRETCHES, marks.MARKS, N), np.int32), np.empty(N, np.int64)
    settled, corners, lanes = np.empty((2, things), np.int64), np.empty((2, 4, 2)), np.empty((5, polygons), np.int64)
    until = 32 if is_epdms else 41
    spent["what is near"] = timed(HITS, ego, traffic, block, until, places, near, counts, hit, touched)
    spent["marks of the map"] = timed(MARK, ego, traffic, area, block, until, places, near, counts, hit, touched, mark)
    spent["marks of the map"] -= spent["what is near"]
    spent["collisions, ttc, lights"] = timed(
        CONTACTS, area, traffic, ego, block, near, counts, hit, touched, until, settled, corners, lanes
    )
    spent["areas, direction, lane keeping"] = timed(AREAS, area, block, is_epdms, mark, corners, np.empty(STATES))
    spent["progress"] = timed(PROGRESS, area, block)
    table, none = np.empty((N, engine.COLUMNS)), np.empty((0, STATES, 11))
    spent["whole call, as compiled"] = timed(
        engine.score_trajectories, index.block.address, poses, 0.5, False, headings, table, none, np.empty(200_000)
    )
    return spent


def timed(work: Callable[..., object], *arguments: object) -> float:
    work(*arguments)
    start = time.process_time()
    for _ in range(REPEATS):
        work(*arguments)
    return 1e6 * (time.process_time() - start) / REPEATS / N


def callable_from_python(function: Callable[..., object], count: int) -> Callable[..., object]:
    """The engine's inner kernels have no way in from Python; this gives one to a stage of `count` arguments."""
    names = ", ".join(f"a{i}" for i in range(count))
    space: dict[str, object] = {"function": function}
    exec(f"def stage({names}):\n    function({names})", space)
    return numba.njit(error_model="numpy")(space["stage"])


PREPARE = callable_from_python(simulate.sample_times, 7)
KNOTS = callable_from_python(simulate.place_knots, 7)
REFERENCE = callable_from_python(simulate.sample_reference, 7)
SPEED = callable_from_python(simulate.fit_speed, 3)
CURVATURE = callable_from_python(simulate.fit_curvature, 5)
MOMENTS = callable_from_python(simulate.window_moments, 3)
TRACK = callable_from_python(simulate.track, 6)
COMFORT = callable_from_python(comfort.comfort, 6)
HISTORY = callable_from_python(comfort.history_comfort, 7)


@numba.njit(error_model="numpy")
def HITS(ego, traffic, block, until, places, near, counts, hit, touched):
    speed, n, bounds = contacts.measured_speed(ego), block.shape[2], np.empty((STRETCH + 1, 4))
    for k in range(0, STATES, STRETCH):
        end = min(k + STRETCH, STATES)
        hits.place(ego, speed, block, k, end, n, places, bounds)
        counts[k // STRETCH] = hits.find_hits(ego, traffic, bounds, k, end, places, n, until, near[k // STRETCH], hit)
    hits.touched_states(hit, counts, n, touched)


@numba.njit(error_model="numpy")
def MARK(ego, traffic, area, block, until, places, near, counts, hit, touched, mark):
    HITS(ego, traffic, block, until, places, near, counts, hit, touched)
    for k in range(0, STATES, STRETCH):
        marks.mark(ego, area, k // STRETCH, min(k + STRETCH, STATES) - k, places, block.shape[2], mark)


@numba.njit(error_model="numpy")
def CONTACTS(area, traffic, ego, block, near, counts, hit, touched, until, settled, corners, lanes):
    speed = contacts.measured_speed(ego)
    for c in range(block.shape[2]):
        contacts.judge_contacts(
            area, traffic, speed, block, c, near, counts, hit, touched[c], until, settled, corners[0], corners[1], lanes
        )


@numba.njit(error_model="numpy")
def AREAS(area, block, is_epdms, mark, corners, moved):
    for c in range(block.shape[2]):
        in_route, in_crossing = areas.settle_center(
            area, block, c, marks.marked(mark, marks.IN_ROUTE, c), marks.marked(mark, marks.IN_CROSSING, c),
            marks.marked(mark, marks.CENTER_OPEN, c),
        )  # fmt: skip
        is_open, off_road = marks.marked(mark, marks.CORNERS_OPEN, c), marks.marked(mark, marks.OFF_ROAD, c)
        areas.drivable_area_compliance(area, block, c, is_open, off_road, corners[0])
        driving_direction.driving_direction_compliance(block, c, in_route | in_crossing, moved)
        if is_epdms:
            lane_keeping.lane_keeping(area, block, c, in_crossing, marks.marked(mark, marks.LINE_OPEN, c))


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
