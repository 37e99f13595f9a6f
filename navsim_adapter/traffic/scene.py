"""What reactive traffic needs of the map, found once per scene (metric 8.3, initialisation).

Which lane a vehicle is put on depends on the current frame only, so the map is asked when the cache is built, and
the cache keeps the answers as flat arrays (`SceneCache.extras`, names beginning with "traffic_").
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import lru_cache

import numpy as np
import shapely

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.nuplan.boxes import box_corners, ego_corners
from navsim_adapter.nuplan.maps import Lane, Map
from navsim_adapter.nuplan.objects import FrameObjects
from navsim_adapter.scene_cache import ObjectType, SceneCache

DEFAULT_SPEED = 10.0  # m/s, until the first lane with a speed limit
SNAP_DISTANCE = 3.0  # vehicles farther from their lane's baseline are not simulated
LOOK_AHEAD = 0.5  # m along the baseline over which its heading is taken
PARKED_SPEED = 0.1
_PREFIX = "traffic_"


@dataclass(frozen=True)
class TrafficScene:
    """V vehicles of the current frame (raw), A of them simulated as agents, each on one lane's baseline.

    vehicle_pose: (V, 3); vehicle_size: (V, 2); vehicle_velocity: (V, 2); vehicle_agent: (V,) agent index or -1.
    vehicle_stays: (V,) bool, stands where it is whenever it is not an active agent and nothing is in its place:
    parked off the road, or too far from its lane.
    current: tokens of all objects of the current frame, in order; the vehicles are the first V of them.
    agent_pose: (A, 3) the start snapped to the baseline; agent_progress, agent_speed, target_speed: (A,).
    path: (P, 4) x, y, unwrapped heading, progress of the paths' vertices; path_start: (A + 1,).
    failing: (1,) index of the first vehicle whose lane has no baseline, or one that keeps fewer than two vertices (the
    official run fails there), or -1.
    """

    current: tuple[str, ...]
    vehicle_pose: np.ndarray
    vehicle_size: np.ndarray
    vehicle_velocity: np.ndarray
    vehicle_agent: np.ndarray
    vehicle_stays: np.ndarray
    agent_pose: np.ndarray
    agent_progress: np.ndarray
    agent_speed: np.ndarray
    target_speed: np.ndarray
    path: np.ndarray
    path_start: np.ndarray
    failing: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        """As named numeric arrays for `SceneCache.extras`."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values["current"] = np.frombuffer("\n".join(self.current).encode(), np.uint8)
        return {_PREFIX + name: value for name, value in values.items()}


def read_traffic_scene(cache: SceneCache) -> TrafficScene:
    """The traffic arrays of a cached scene; raises InputError where it was written without them."""
    names = [item.name for item in fields(TrafficScene)]
    if any(_PREFIX + name not in cache.extras for name in names):
        raise InputError(f"scene {cache.token}: its cache has no arrays for simulated traffic; write the cache again")
    values = {name: cache.extras[_PREFIX + name] for name in names}
    current = values.pop("current").tobytes().decode()
    return TrafficScene(current=tuple(current.split("\n")) if current else (), **values)


def traffic_scene(city: Map, ego_pose: np.ndarray, objects: FrameObjects) -> TrafficScene:
    """Put the vehicles of the current frame on the lanes of the map.

    ego_pose: (3,) rear axle.  objects: the raw objects of the current frame.
    """
    count = int((objects.type == ObjectType.VEHICLE).sum())  # the list is sorted by type
    places = [_place(city, objects.pose[row]) for row in range(count)]
    speed = np.hypot(objects.velocity[:count, 0], objects.velocity[:count, 1])
    agents = np.full(count, -1)
    taken = [shapely.polygons(ego_corners(ego_pose))]
    poses: list[np.ndarray] = []
    progress: list[float] = []
    targets: list[float] = []
    paths: list[np.ndarray] = []
    target, failing = DEFAULT_SPEED, -1
    for row, place in enumerate(places):
        if place.lane is not None and place.lane.line is None:
            failing = row
            break
        if place.lane is None or place.distance > SNAP_DISTANCE:
            continue
        box = shapely.polygons(box_corners(place.pose[:2], place.pose[2], objects.size[row] / 2))
        if shapely.intersects(box, taken).any():
            continue
        taken.append(box)
        path = _path(place.lane.baseline)
        if len(path) < 2:
            failing = row
            break
        target = place.lane.speed_limit or target
        agents[row] = len(poses)
        poses.append(place.pose)
        progress.append(place.progress)
        targets.append(target)
        paths.append(path)
    is_parked = (speed < PARKED_SPEED) & ~np.array([place.is_on_road for place in places], dtype=bool)
    is_far = np.array([place.lane is not None and place.distance > SNAP_DISTANCE for place in places], dtype=bool)
    return TrafficScene(
        current=tuple(objects.tokens),
        vehicle_pose=objects.pose[:count],
        vehicle_size=objects.size[:count],
        vehicle_velocity=objects.velocity[:count],
        vehicle_agent=agents,
        vehicle_stays=is_parked | is_far,
        agent_pose=np.array(poses).reshape(-1, 3),
        agent_progress=np.array(progress),
        agent_speed=speed[agents >= 0],
        target_speed=np.array(targets),
        path=np.concatenate([np.zeros((0, 4)), *paths]),
        path_start=np.cumsum([0] + [len(path) for path in paths]),
        failing=np.array([failing]),
    )


@dataclass(frozen=True)
class _Place:
    """Where a vehicle is on the map: its lane (None: on none), the nearest pose of the baseline and how far it is."""

    is_on_road: bool
    lane: Lane | None = None
    pose: np.ndarray = field(default_factory=lambda: np.zeros(3))
    progress: float = 0.0
    distance: float = np.inf


def _place(city: Map, pose: np.ndarray) -> _Place:
    point = shapely.Point(pose[:2])
    layers = _layers(city)
    lanes = layers.lanes_at(point)
    is_on_road = bool(lanes)
    if not lanes and layers.is_in_intersection(point):
        lanes, is_on_road = layers.connectors_at(point), True
    if not lanes:
        return _Place(is_on_road)
    for lane in lanes:
        if lane.line is None:
            return _Place(True, lane, distance=0.0)
    nearest = [_nearest_pose(lane.line, point) for lane in lanes]
    errors = [abs(candidate[0][2] - pose[2]) for candidate in nearest]  # not wrapped, as officially
    best = int(np.argmin(errors))
    found, progress = nearest[best]
    return _Place(True, lanes[best], found, progress, float(np.hypot(*(found[:2] - pose[:2]))))


def _nearest_pose(line: shapely.LineString, point: shapely.Point) -> tuple[np.ndarray, float]:
    """The baseline's nearest pose, heading over half a metre ahead, and its progress."""
    progress = float(shapely.line_locate_point(line, point))
    here, ahead = shapely.get_coordinates(shapely.line_interpolate_point(line, [progress, progress + LOOK_AHEAD]))
    if (here == ahead).all():
        behind = shapely.get_coordinates(shapely.line_interpolate_point(line, progress - LOOK_AHEAD))[0]
        direction = here - behind
    else:
        direction = ahead - here
    return np.array([*here, np.arctan2(direction[1], direction[0])]), progress


def _path(baseline: np.ndarray) -> np.ndarray:
    """(P, 4) vertices with progress; without those that the next one repeats, and always without the last."""
    steps = np.diff(baseline[:, :2], axis=0)
    lengths = np.hypot(steps[:, 0], steps[:, 1])
    progress = np.append(0.0, np.cumsum(lengths))
    kept = np.flatnonzero(lengths > 1e-8)
    return np.column_stack([baseline[kept, :2], np.unwrap(baseline[kept, 2]), progress[kept]])


class _Layers:
    """Trees over the whole map's lanes, connectors and intersections; hits in row order, strict interior."""

    def __init__(self, city: Map):
        self._lanes = list(city.lanes.values())
        self._connectors = list(city.lane_connectors.values())
        self._lane_tree = shapely.STRtree([lane.polygon for lane in self._lanes])
        self._connector_tree = shapely.STRtree([lane.polygon for lane in self._connectors])
        self._intersection_tree = shapely.STRtree([city.area_geometry[area] for _, area in city.intersections])

    def lanes_at(self, point: shapely.Point) -> list[Lane]:
        return [self._lanes[row] for row in np.sort(self._lane_tree.query(point, "within"))]

    def connectors_at(self, point: shapely.Point) -> list[Lane]:
        return [self._connectors[row] for row in np.sort(self._connector_tree.query(point, "within"))]

    def is_in_intersection(self, point: shapely.Point) -> bool:
        return len(self._intersection_tree.query(point, "within")) > 0


@lru_cache(maxsize=8)
def _layers(city: Map) -> _Layers:
    return _Layers(city)
