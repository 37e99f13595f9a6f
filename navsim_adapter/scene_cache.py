"""The scoring cache of one scene: flat arrays, no objects, nothing that depends on a planner.

Coordinates are in the map's projected frame (metres), headings in radians, float64 throughout. `build` fills it
from logs and maps, `store` keeps it on disk, `scoring` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

PDMS, EPDMS = 1, 2  # bits of `object_versions`
STEPS = 51  # 0..50 at 0.1 s; EPDMS reads the first 41


class AreaType(IntEnum):
    ROADBLOCK = 0
    LANE = 1
    LANE_CONNECTOR = 2
    INTERSECTION = 3
    CARPARK_AREA = 4


class ObjectType(IntEnum):
    """nuPlan's tracked object types, in its order; the first three are agents, the others static."""

    VEHICLE = 0
    PEDESTRIAN = 1
    BICYCLE = 2
    TRAFFIC_CONE = 3
    BARRIER = 4
    CZONE_SIGN = 5
    GENERIC_OBJECT = 6


@dataclass(frozen=True)
class Polygons:
    """Polygons with holes and parts, as rings in one flat array; inside is the even-odd rule over a polygon's rings.

    vertices: (V, 2), rings closed (first vertex repeated at the end).
    ring_start: (R + 1,) int64 into `vertices`.  polygon_start: (P + 1,) int64 into `ring_start`.
    """

    vertices: np.ndarray
    ring_start: np.ndarray
    polygon_start: np.ndarray

    def __len__(self) -> int:
        return len(self.polygon_start) - 1

    def take(self, indices: np.ndarray) -> Polygons:
        """The polygons of these indices, in this order (repeats allowed)."""
        rings, polygon_start = _gather(self.polygon_start, indices)
        points, ring_start = _gather(self.ring_start, rings)
        return Polygons(self.vertices[points], ring_start, polygon_start)


@dataclass(frozen=True)
class SceneCache:
    """Everything a score needs of one scene (metric 3, 4)."""

    token: str
    log_name: str
    map_name: str
    time_us: int
    is_synthetic: bool  # a second-stage scene: no human filter

    ego_state: np.ndarray  # (11,) x, y, heading, vx, vy, ax, ay, steering, steering rate, yaw rate, yaw acceleration
    centerline: np.ndarray  # (C, 3) x, y, heading (unwrapped) of the baseline vertices, joints duplicated (metric 3.5)
    route_lane_ids: tuple[str, ...]  # keys of the corrected route's lanes, in order (metric 3.4)

    areas: Polygons  # the drivable map in its official order (metric 3.3)
    area_type: np.ndarray  # (P,) int8, AreaType
    area_on_route: np.ndarray  # (P,) bool: LANE or LANE_CONNECTOR whose id is in route_lane_ids
    area_ids: tuple[str, ...]

    object_tokens: tuple[str, ...]  # (M,)
    object_type: np.ndarray  # (M,) int8, ObjectType
    object_versions: np.ndarray  # (M,) uint8: PDMS | EPDMS
    object_size: np.ndarray  # (M, 2) length, width
    object_pose: np.ndarray  # (M, 51, 3) x, y, heading of the box center; NaN where absent
    object_velocity: np.ndarray  # (M, 2) global, at the first step where it is present (metric 4.2, unique_objects)

    lights: Polygons  # red-light polygons (EPDMS), each a lane connector's polygon
    light_red: np.ndarray  # (L, 41) bool: red at step k
    light_ids: tuple[str, ...]  # lane connector ids

    human_future: np.ndarray | None  # (8, 3) ego frame, None where the log has none (metric 4.5)
    past_states: np.ndarray  # (4, 11) frames -3..0 (metric 4.5)
    past_time_us: np.ndarray  # (4,) int64

    reference_pdms: np.ndarray  # (41, 3) PDM-Closed's planned rear-axle poses at 10 Hz (metric 4.4), v1.1
    reference_epdms: np.ndarray  # (41, 3) the same, v2.2

    object_knots: np.ndarray | None = None  # (M, 11, 3) what `object_pose` was resampled from; lets the store keep less
    versions: int = PDMS | EPDMS  # metrics that the scene has enough recorded future for (5 s, 4 s)
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)  # precomputed arrays of the scorer, by name


def _gather(start: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Members of the chosen groups, one after the other, and the start of each group among them."""
    indices = np.asarray(indices, np.int64)
    first, size = start[indices], start[indices + 1] - start[indices]
    new_start = np.zeros(len(indices) + 1, np.int64)
    np.cumsum(size, out=new_start[1:])
    return np.arange(new_start[-1]) + np.repeat(first - new_start[:-1], size), new_start
