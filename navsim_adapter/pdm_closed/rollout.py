"""PDM-Closed's fifteen proposals: intelligent-driver roll-outs on three parallel paths (metric 4.4 (b)).

Matched on purpose (tests/navsim_adapter/test_reference.py): the first step brakes for a leader of zeros; a leader is
looked up at even steps only; the five proposals of a path share one record per look-up, so a field that one does not
write keeps the value of the proposal before it; the speed is not clamped at 0.

The geometry that does not depend on the proposals' states is asked of GEOS beforehand; the loop over steps is compiled.
Steps after 40, to which the devkit continues its winner, are left out: no score reads them.
"""

from __future__ import annotations

import numpy as np
import shapely

from navsim_adapter.metric.jit import entry, inner
from navsim_adapter.pdm_closed.forecast import MAP_TIMES, STEPS_PER_MAP, Forecast
from navsim_adapter.pdm_closed.gap import footprint_gap
from navsim_adapter.pdm_closed.path import MIN_PROGRESS, Path, interpolate
from navsim_adapter.scene_cache import ObjectType
from navsim_adapter.vehicle import AXLE_TO_CENTER, HALF_LENGTH, HALF_WIDTH
from navsim_adapter.vehicle import RADIUS as EGO_RADIUS

STEPS = 41
LATERAL_OFFSETS = (0.0, -1.0, 1.0)
SPEED_FRACTIONS = (0.2, 0.4, 0.6, 0.8, 1.0)
FALLBACK_SPEED_LIMIT = 15.0
CORRIDOR_SECONDS = 5.0
MIN_GAP, HEADWAY, MAX_ACCELERATION, MAX_DECELERATION, EXPONENT = 1.0, 1.5, 1.5, 3.0, 10
STEP_TIME = 0.1
PROGRESS, SPEED, LEADER, LEADER_SPEED, LEADER_REAR = range(5)  # a proposal's state, and its leader's
SCORED_ROWS = STEPS // STEPS_PER_MAP + 1  # forecast maps up to step 40


def proposals(ego_state: np.ndarray, centerline: np.ndarray, speed_limit: float | None, scene: Forecast) -> np.ndarray:
    """(15, 41, 3) rear-axle poses of the proposals; index 5 * lateral + longitudinal.

    ego_state: (11,); centerline: (C, 3); speed_limit: of the starting lane, None where the map has none.
    """
    limit = FALLBACK_SPEED_LIMIT if speed_limit is None else speed_limit
    center = Path.through(centerline)
    paths = [center if offset == 0.0 else center.parallel(offset) for offset in LATERAL_OFFSETS]
    start = np.concatenate([path.project(ego_state[None, :2]) for path in paths])
    corridors = [_corridor(path, s, s + limit * CORRIDOR_SECONDS) for path, s in zip(paths, start)]
    ahead = np.stack([_progress_in_corridor(path, corridor, scene) for path, corridor in zip(paths, corridors)])
    obstacles = _obstacles(scene)
    rank = np.tile(np.arange(len(scene.is_collided)), (len(paths), SCORED_ROWS, 1))
    is_ranked = np.zeros(SCORED_ROWS, dtype=bool)
    stacked = np.stack([path.progress for path in paths]), np.stack([path.vertices for path in paths])
    targets = np.array(SPEED_FRACTIONS) * limit
    count = len(paths) * len(targets)
    poses, scratch, ties = np.empty((count, STEPS, 3)), np.empty((count + 4, 5)), np.empty(SCORED_ROWS, np.int64)
    while True:
        roll_out(*stacked, start, ego_state[3], targets, ahead, rank, *obstacles, MAP_TIMES, scratch, ties, poses)
        is_tied = ties != 0
        if not (is_tied & ~is_ranked).any():
            return poses
        for row in np.flatnonzero(is_tied & ~is_ranked):
            rank[:, row] = _tree_rank(corridors, scene.polygons(int(row)))
        is_ranked |= is_tied


def _corridor(path: Path, start: float, end: float) -> shapely.Polygon:
    corridor = shapely.buffer(path.section(start, end), HALF_WIDTH, cap_style="square")
    shapely.prepare(corridor)
    return corridor


def _progress_in_corridor(path: Path, corridor: shapely.Polygon, scene: Forecast) -> np.ndarray:
    """(21, M + L) progress of each object's centroid at each map; -inf outside the corridor or collided."""
    corners = scene.corners[:SCORED_ROWS]
    x0, y0, x1, y1 = corridor.bounds
    center, reach = corners.mean(axis=2), np.hypot(*scene.size.T)[:, None]
    near = ((center + reach > (x0, y0)) & (center - reach < (x1, y1))).all(axis=2)
    near &= ~scene.is_collided[: len(scene.tokens)]
    near[1:] &= scene.motion.any(axis=1)  # what stands still is asked once
    boxes = shapely.polygons(corners[near])
    inside = shapely.intersects(corridor, boxes)
    progress = np.full((SCORED_ROWS, len(scene.is_collided)), -np.inf)
    row, column = (index[inside] for index in np.nonzero(near))
    progress[row, column] = path.project(center[row, column])
    lights = np.flatnonzero(shapely.intersects(corridor, scene.lights) & ~scene.is_collided[len(scene.tokens) :])
    centroids = shapely.get_coordinates(shapely.centroid(scene.lights[lights]))
    progress[0, len(scene.tokens) + lights] = path.project(centroids)
    still = np.append(~scene.motion.any(axis=1), np.ones(len(scene.lights), dtype=bool))
    progress[:, still] = progress[0, still]
    return progress


def _tree_rank(corridors: list[shapely.Polygon], polygons: np.ndarray) -> np.ndarray:
    """(3, M + L) position of each object among the hits of the devkit's tree query in one step.

    Of equally near objects (several overlap the footprint: distance 0) the devkit takes the first hit, and that order
    is the one of GEOS's packed tree over all polygons of the step (metric 10.1 (7)).
    """
    rank = np.full((len(corridors), len(polygons)), len(polygons))
    tree = shapely.STRtree(polygons, node_capacity=10)
    for lateral, corridor in enumerate(corridors):
        hits = tree.query(corridor, predicate="intersects")
        rank[lateral, hits] = np.arange(len(hits))
    return rank


def _obstacles(scene: Forecast) -> tuple[np.ndarray, ...]:
    """Edges (E, 4) and their starts (M + L + 1,), then per object: motion, circle (x, y, radius), heading, speed.

    The speed of a light is NaN: the look-up does not write it.
    """
    boxes = scene.corners[0]
    edges = [np.concatenate([boxes, np.roll(boxes, -1, axis=1)], axis=2).reshape(-1, 4)]
    starts = [4 * np.arange(len(boxes) + 1)]
    circles = [np.column_stack([boxes.mean(axis=1), np.hypot(*scene.size.T) / 2])]
    for light in scene.lights:
        rings = [shapely.get_coordinates(ring) for ring in shapely.get_rings(light)]
        edges.append(np.concatenate([np.hstack([ring[:-1], ring[1:]]) for ring in rings]))
        starts.append(starts[-1][-1:] + len(edges[-1]))
        low, high = np.array(light.bounds).reshape(2, 2)
        circles.append(np.array([[*(low + high) / 2, np.hypot(*(high - low)) / 2]]))
    still = np.zeros((len(scene.lights), 2))
    static = scene.type > ObjectType.BICYCLE
    speed = np.where(static, 0.0, np.hypot(*scene.velocity.T))
    return (
        np.concatenate(edges),
        np.concatenate(starts),
        np.concatenate([scene.motion, still]),
        np.concatenate(circles),
        np.append(scene.pose[:, 2], still[:, 0]),
        np.append(speed, still[:, 0] + np.nan),
    )


@entry(
    "void(f8[:,::1], f8[:,:,::1], f8[::1], f8, f8[::1], f8[:,:,::1], i8[:,:,::1], f8[:,::1], i8[::1], f8[:,::1],"
    " f8[:,::1], f8[::1], f8[::1], f8[::1], f8[:,::1], i8[::1], f8[:,:,::1])"
)
def roll_out(
    progress, vertices, start, speed, targets, ahead, rank, edges, edge_start, motion, circles, headings, speeds,
    map_times, scratch, is_tied, poses,
):  # fmt: skip
    """Fill poses (lateral * longitudinal, 41, 3), and the maps (21,) in which equally near objects were met.

    scratch: (lateral * longitudinal + 4, 5), of each proposal its progress and speed, and of its leader the progress,
    speed and half length; then corners.
    """
    count = len(poses)
    corners = scratch[count:]
    for row in range(len(is_tied)):
        is_tied[row] = 0
    for p in range(count):
        lateral, state = p // len(targets), scratch[p]
        state[PROGRESS], state[SPEED] = start[lateral], speed
        state[LEADER] = state[LEADER_SPEED] = state[LEADER_REAR] = 0.0
        interpolate(progress[lateral], vertices[lateral], start[lateral], MIN_PROGRESS, poses[p, 0])
    for k in range(1, STEPS):
        for p in range(count):
            lateral, state, row = p // len(targets), scratch[p], k // STEPS_PER_MAP
            if k % STEPS_PER_MAP == 0:
                for part in range(LEADER, LEADER_REAR + 1):
                    state[part] = 0.0 if p % len(targets) == 0 else scratch[p - 1, part]
                found, gap, tied = _nearest_ahead(
                    poses[p, k - 1], state[PROGRESS], ahead[lateral, row], rank[lateral, row],
                    edges, edge_start, motion, map_times[row], circles, corners,
                )  # fmt: skip
                is_tied[row] |= tied
                if found < 0:
                    state[LEADER], state[LEADER_REAR] = progress[lateral, progress.shape[1] - 1], HALF_LENGTH
                else:
                    state[LEADER] = state[PROGRESS] + gap
                    if not np.isnan(speeds[found]):
                        state[LEADER_SPEED] = speeds[found] * np.cos(headings[found] - poses[p, k - 1, 2])
            _follow(state, targets[p % len(targets)])
            interpolate(progress[lateral], vertices[lateral], state[PROGRESS], MIN_PROGRESS, poses[p, k])


@inner
def _nearest_ahead(pose, own_progress, ahead, rank, edges, edge_start, motion, time, circles, corners):
    """Index of the nearest object ahead (-1: none), its distance from the body at `pose`, and whether another ties
    (1 or 0).  corners: scratch."""
    cos, sin = np.cos(pose[2]), np.sin(pose[2])
    x, y = pose[0] + AXLE_TO_CENTER * cos, pose[1] + AXLE_TO_CENTER * sin
    for i in range(4):
        along, across = 1.0 if i == 0 or i == 3 else -1.0, 1.0 if i < 2 else -1.0
        corners[i, 0] = x + along * HALF_LENGTH * cos - across * HALF_WIDTH * sin
        corners[i, 1] = y + along * HALF_LENGTH * sin + across * HALF_WIDTH * cos
    found, least, is_tied = -1, np.inf, 0
    for m in range(len(ahead)):
        if not ahead[m] > own_progress:
            continue
        dx, dy = motion[m, 0] * time, motion[m, 1] * time
        if np.hypot(circles[m, 0] + dx - x, circles[m, 1] + dy - y) - circles[m, 2] - EGO_RADIUS > least:
            continue
        gap = footprint_gap(corners, edges[edge_start[m] : edge_start[m + 1]], dx, dy)
        if gap == least:
            is_tied = 1
        if gap < least or (gap == least and rank[m] < rank[found]):
            found, least = m, gap
    return found, least, is_tied


@inner
def _follow(state, target_speed):
    """One intelligent-driver step, in place: Euler with the old speed."""
    s, v = state[PROGRESS], state[SPEED]
    slowing = v * (v - state[LEADER_SPEED]) / (2.0 * np.sqrt(MAX_ACCELERATION * MAX_DECELERATION))
    desired = MIN_GAP + HEADWAY * v + slowing
    gap = max(state[LEADER] - s - state[LEADER_REAR], MIN_GAP)
    acceleration = MAX_ACCELERATION * (1.0 - (v / target_speed) ** EXPONENT - (desired / gap) ** 2)
    state[PROGRESS] = s + STEP_TIME * v
    state[SPEED] = v + STEP_TIME * min(max(acceleration, -MAX_DECELERATION), MAX_ACCELERATION)
