"""Small hand-made traffic: one straight lane along x, vehicles on it, nothing else."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import shapely

from navsim_adapter.nuplan.maps import Lane
from navsim_adapter.nuplan.objects import FrameObjects
from navsim_adapter.scene_cache import EPDMS, AreaType, ObjectType, Polygons, SceneCache
from navsim_adapter.traffic.scene import TrafficScene, traffic_scene

NOTHING = Polygons(np.empty((0, 2)), np.zeros(1, np.int64), np.zeros(1, np.int64))
SIZE = (4.0, 2.0)


def lane_map(x: np.ndarray, speed_limit: float | None, has_baseline: bool) -> SimpleNamespace:
    """A map with one lane whose baseline has its vertices at `x`, y = 0."""
    polygon, line = shapely.box(x[0], -2.0, x[-1], 2.0), shapely.LineString([(value, 0.0) for value in x])
    lane = Lane("1", AreaType.LANE, 0, polygon, line if has_baseline else None, speed_limit, "7")
    # Hashable and complete enough for what traffic asks of a map.
    return _Town(lanes={"1": lane}, lane_connectors={}, intersections=[], area_geometry=np.array([polygon], object))


class _Town(SimpleNamespace):
    def __hash__(self) -> int:
        return id(self)


def vehicles(*rows: tuple[float, float, float]) -> FrameObjects:
    """x, y, speed of vehicles that head along x."""
    return FrameObjects(
        tokens=tuple(f"vehicle {place}" for place in range(len(rows))),
        type=np.zeros(len(rows), np.int8),
        size=np.tile(SIZE, (len(rows), 1)),
        pose=np.array([[x, y, 0.0] for x, y, _ in rows]).reshape(-1, 3),
        velocity=np.array([[speed, 0.0] for *_, speed in rows]).reshape(-1, 2),
    )


def placed(
    objects: FrameObjects,
    x: np.ndarray,
    speed_limit: float | None = None,
    ego_x: float = -40.0,
    has_baseline: bool = True,
) -> TrafficScene:
    town = lane_map(x, speed_limit, has_baseline)
    return traffic_scene(town, np.array([ego_x, 0.0, 0.0]), objects)  # type: ignore[arg-type]


def ego_states(x: float = -40.0, y: float = 0.0) -> np.ndarray:
    """(41, 11) of an ego that stands, heading along x."""
    states = np.zeros((41, 11))
    states[:, 0], states[:, 1] = x, y
    return states


def cache_of(tokens: list[str], types: list[ObjectType], pose: np.ndarray, traffic: TrafficScene | None) -> SceneCache:
    """A scene of objects (M) with poses (M, 51, 3) around an ego at (-40, 0)."""
    count = len(tokens)
    return SceneCache(
        token="scene", log_name="log", map_name="town", time_us=0, is_synthetic=False,
        ego_state=ego_states()[0], centerline=np.zeros((2, 3)), route_lane_ids=(),
        areas=NOTHING, area_type=np.empty(0, np.int8), area_on_route=np.empty(0, bool), area_ids=(),
        object_tokens=tuple(tokens), object_type=np.array(types, np.int8),
        object_versions=np.full(count, EPDMS, np.uint8),
        object_size=np.tile(SIZE, (count, 1)), object_pose=pose, object_velocity=np.zeros((count, 2)),
        lights=NOTHING, light_red=np.empty((0, 41), bool), light_ids=(), human_future=None,
        past_states=np.zeros((4, 11)), past_time_us=np.zeros(4, np.int64),
        reference_pdms=np.zeros((41, 3)), reference_epdms=np.zeros((41, 3)),
        extras=traffic.arrays() if traffic else {},
    )  # fmt: skip


def standing(*rows: tuple[float, float]) -> np.ndarray:
    """(M, 51, 3) poses that never change."""
    return np.repeat(np.array([[x, y, 0.0] for x, y in rows])[:, None], 51, axis=1)
