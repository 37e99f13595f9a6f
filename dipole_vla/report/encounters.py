"""When and with whom a plan gets into trouble, for the sentence beside a picture.

The verdicts come from the scorer; this finds the instant and the object that explain them, along the *planned* path
interpolated to 0.1 s. The scorer judges the path its vehicle model drives, so times agree to a few tenths, and a plan
may fail there without an event here: then None is returned and the caller says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely

from navsim_adapter.render import box_corners, ego_corners, to_ego
from navsim_adapter.scene_cache import AreaType, ObjectType, Polygons, SceneCache

STEPS, TICK = 41, 0.1
BEHIND, AHEAD = np.deg2rad(150.0), np.deg2rad(30.0)  # metric 6.2 and 6.7
LOOK_AHEAD_STEPS = (0, 3, 6, 9)
STOPPED = 0.05  # m/s
OBJECT_WORDS = {
    ObjectType.VEHICLE: "a vehicle",
    ObjectType.PEDESTRIAN: "a pedestrian",
    ObjectType.BICYCLE: "a cyclist",
    ObjectType.TRAFFIC_CONE: "a traffic cone",
    ObjectType.BARRIER: "a barrier",
    ObjectType.CZONE_SIGN: "a work-zone sign",
    ObjectType.GENERIC_OBJECT: "an object",
}


@dataclass(frozen=True)
class Encounter:
    """step: index at 0.1 s. pose: (3,) rear axle there, ego frame. object_index: row in the cache, or None."""

    step: int
    pose: np.ndarray
    object_index: int | None = None

    @property
    def seconds(self) -> float:
        return self.step * TICK


def densify(poses: np.ndarray, interval: float = 0.5) -> np.ndarray:
    """Poses (T, 3) at `interval` steps, t = 0 excluded -> (41, 3) at 0.1 s from the origin on."""
    knots = np.vstack([np.zeros(3), poses])
    knots[:, 2] = np.unwrap(knots[:, 2])
    times = np.arange(len(knots)) * interval
    return np.stack([np.interp(np.arange(STEPS) * TICK, times, column) for column in knots.T], axis=1)


def collision(cache: SceneCache, poses: np.ndarray) -> Encounter | None:
    """First contact that the ego would be blamed for: it moves and the object is not behind it."""
    path = densify(poses)
    bodies = shapely.polygons(ego_corners(path))
    speeds = _speeds(path, cache)
    best: Encounter | None = None
    for row, (boxes, centers) in enumerate(_objects(cache)):
        hits = np.flatnonzero(shapely.intersects(bodies, boxes[:STEPS]))
        if not len(hits):
            continue
        step = int(hits[0])
        is_blamed = speeds[step] > STOPPED and abs(_bearing(path[step], centers[step])) <= BEHIND
        if is_blamed and (best is None or step < best.step):
            best = Encounter(step, path[step], row)
    return best


def short_time_to_collision(cache: SceneCache, poses: np.ndarray) -> Encounter | None:
    """First step from which straight travel of up to 0.9 s would hit something ahead."""
    path = densify(poses)
    speeds = _speeds(path, cache)
    best: Encounter | None = None
    for row, (boxes, centers) in enumerate(_objects(cache)):
        for step in range(STEPS):
            if best is not None and step >= best.step:
                break
            for ahead in LOOK_AHEAD_STEPS:
                moved = path[step].copy()
                moved[:2] += speeds[step] * ahead * TICK * np.array([np.cos(moved[2]), np.sin(moved[2])])
                body = shapely.polygons(ego_corners(moved))
                is_ahead = abs(_bearing(path[step], centers[step + ahead])) < AHEAD
                if speeds[step] > STOPPED and is_ahead and shapely.intersects(body, boxes[step + ahead]):
                    best = Encounter(step, path[step], row)
                    break
    return best


def road_departure(cache: SceneCache, poses: np.ndarray) -> Encounter | None:
    """First step at which a corner is on no roadblock, intersection or car park."""
    path = densify(poses)
    corners = ego_corners(path)
    inside = np.zeros((STEPS, 4), dtype=bool)
    drivable = np.isin(cache.area_type, (AreaType.ROADBLOCK, AreaType.INTERSECTION, AreaType.CARPARK_AREA))
    for row in np.flatnonzero(drivable):
        inside |= shapely.contains_xy(
            _polygon(cache.areas, int(row), cache.ego_state), corners[..., 0], corners[..., 1]
        )
    outside = np.flatnonzero(~inside.all(axis=1))
    return Encounter(int(outside[0]), path[outside[0]]) if len(outside) else None


def red_light(cache: SceneCache, poses: np.ndarray) -> Encounter | None:
    """First step at which the body is on a connector whose light is red then."""
    path = densify(poses)
    bodies = shapely.polygons(ego_corners(path))
    steps = [
        np.flatnonzero(shapely.intersects(bodies, _polygon(cache.lights, row, cache.ego_state)) & cache.light_red[row])
        for row in range(len(cache.lights))
    ]
    firsts = [int(found[0]) for found in steps if len(found)]
    return Encounter(min(firsts), path[min(firsts)]) if firsts else None


def clearance(cache: SceneCache, poses: np.ndarray, object_index: int) -> float:
    """Least distance in metres between the bodies of a plan and of one object at the same time; inf if never there."""
    boxes, _ = _objects(cache)[object_index]
    distances = shapely.distance(shapely.polygons(ego_corners(densify(poses))), boxes[:STEPS])
    return float(np.nanmin(distances)) if np.isfinite(distances).any() else float("inf")


def object_words(cache: SceneCache, object_index: int) -> str:
    return OBJECT_WORDS[ObjectType(int(cache.object_type[object_index]))]


def peak_accelerations(poses: np.ndarray, speed: float, interval: float = 0.5) -> dict[str, float]:
    """Largest braking, acceleration and lateral acceleration in m/s² of a plan started at `speed`.

    Differences of half-second means: an indication of what is uncomfortable, not the scorer's filtered signal.
    """
    knots = np.vstack([np.zeros(3), poses])
    speeds = np.linalg.norm(np.diff(knots[:, :2], axis=0), axis=1) / interval
    along = np.diff(np.concatenate([[speed], speeds])) / interval
    along[0] *= 2  # from the speed now to the mean of the first half second: a quarter second apart
    turn = np.diff(np.unwrap(knots[:, 2])) / interval
    return {
        "braking": float(max(0.0, -along.min())),
        "acceleration": float(max(0.0, along.max())),
        "lateral acceleration": float(np.abs(turn * speeds).max()),
    }


def length(poses: np.ndarray) -> float:
    """Metres travelled along a plan."""
    return float(np.linalg.norm(np.diff(np.vstack([np.zeros(3), poses])[:, :2], axis=0), axis=1).sum())


def _speeds(path: np.ndarray, cache: SceneCache) -> np.ndarray:
    """(41,) m/s: the ego's own speed now, then that of the plan."""
    steps = np.linalg.norm(np.diff(path[:, :2], axis=0), axis=1) / TICK
    return np.concatenate([[np.hypot(*cache.ego_state[3:5])], steps])


def _objects(cache: SceneCache) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per object: its box polygons (51,) in the ego frame, empty where absent, and its centers (51, 2)."""
    found = []
    for row in range(len(cache.object_tokens)):
        poses = to_ego(cache.object_pose[row], cache.ego_state)
        present = ~np.isnan(poses[:, 0])
        boxes = np.full(len(poses), shapely.Polygon(), dtype=object)
        if present.any():
            boxes[present] = shapely.polygons(box_corners(poses[present], *cache.object_size[row]))
        found.append((boxes, poses[:, :2]))
    return found


def _bearing(pose: np.ndarray, point: np.ndarray) -> float:
    """Angle in (−π, π] from the heading of `pose` to the direction of `point`."""
    delta = point - pose[:2]
    angle = np.arctan2(delta[1], delta[0]) - pose[2]
    return float(np.arctan2(np.sin(angle), np.cos(angle)))


def _polygon(polygons: Polygons, row: int, ego_state: np.ndarray) -> shapely.Geometry:
    """One polygon in the ego frame; several rings combine by the even-odd rule."""
    shape: shapely.Geometry = shapely.Polygon()
    for ring in range(polygons.polygon_start[row], polygons.polygon_start[row + 1]):
        vertices = polygons.vertices[polygons.ring_start[ring] : polygons.ring_start[ring + 1]]
        outline = shapely.make_valid(shapely.Polygon(to_ego(vertices, ego_state)))
        shape = outline if shape.is_empty else shape.symmetric_difference(outline)
    return shape
