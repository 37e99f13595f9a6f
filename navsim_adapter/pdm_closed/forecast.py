"""What PDM-Closed believes the next five seconds hold: objects at constant velocity, red lights that stay red.

Metric 4.4 (a). The forecast knows the current frame only. It is made once per scene and serves both the roll-outs and
the scoring of the proposals. Objects on top of the ego stay in the forecast but are listed in `is_collided`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import shapely

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.nuplan.boxes import box_corners, ego_center, ego_corners
from navsim_adapter.nuplan.objects import FrameObjects, wrap
from navsim_adapter.scene_cache import STEPS, ObjectType

RADIUS = 100.0
NEAREST_STATIC = 50
NEAREST_AGENTS = {ObjectType.VEHICLE: 50, ObjectType.PEDESTRIAN: 25, ObjectType.BICYCLE: 10}
STEPS_PER_MAP = 2  # the official forecast holds one set of polygons for two steps
MAP_TIMES = 0.1 * np.arange(0, STEPS, STEPS_PER_MAP)


@dataclass(frozen=True)
class Forecast:
    """Objects (static, vehicles, pedestrians, bicycles; each nearest first), then lights, for steps 0..50.

    pose: (M, 3) box centers at step 0; velocity: (M, 2) as annotated, 0 if static; motion: (M, 2) what moves the box,
    along its heading or against it; lights: (L,) polygons; is_collided: (M + L,) overlaps the ego at step 0, and is
    then left out of the roll-outs and of the proposals' collision scores.
    """

    tokens: tuple[str, ...]
    type: np.ndarray
    pose: np.ndarray
    size: np.ndarray
    velocity: np.ndarray
    motion: np.ndarray
    light_ids: tuple[str, ...]
    lights: np.ndarray
    is_collided: np.ndarray

    @cached_property
    def corners(self) -> np.ndarray:
        """(26, M, 4, 2) box corners; row k // 2 holds those of step k."""
        first = box_corners(self.pose[:, :2], self.pose[:, 2], self.size / 2)
        return first + (self.motion * MAP_TIMES[:, None, None])[:, :, None]

    def poses(self) -> np.ndarray:
        """(M, 51, 3) box poses at every step, as the scorer takes objects."""
        poses = np.repeat(self.pose[:, None], STEPS, axis=1)
        poses[..., :2] += self.motion[:, None] * MAP_TIMES[np.arange(STEPS) // STEPS_PER_MAP][:, None]
        return poses

    def polygons(self, row: int) -> np.ndarray:
        """(M + L,) polygons of the steps 2 * row and 2 * row + 1, in the official order."""
        return np.concatenate([shapely.polygons(self.corners[row]), self.lights])


def forecast(
    ego_pose: np.ndarray,
    objects: FrameObjects,
    red_lights: Sequence[tuple[str, shapely.Geometry]],
    memory: set[str] | None = None,
) -> Forecast:
    """Select the objects near the ego and say how they will move.

    ego_pose: (3,) rear axle.  red_lights: (connector id, polygon) of the current frame's red connectors on the
    corrected route.  memory: what stood on the ego in earlier scenes, in the official builder's way (metric 10.3):
    objects in it are left out before anything is counted, lights in it are `is_collided`; it grows by what stands on
    the ego now.  Raises InputError where an agent has no finite velocity; the devkit makes no cache (metric 7.4).
    """
    known = memory or set()
    chosen = _nearest(ego_center(ego_pose), objects, np.array([token in known for token in objects.tokens], bool))
    pose, velocity, kind = objects.pose[chosen], objects.velocity[chosen], objects.type[chosen]
    if not np.isfinite(velocity).all():
        token = objects.tokens[chosen[~np.isfinite(velocity).all(axis=1)][0]]
        raise InputError(f"objects: track {token} has velocity NaN in the current frame; leave this scene out")
    velocity = np.where(kind[:, None] > ObjectType.BICYCLE, 0.0, velocity)
    lights = np.array([polygon for _, polygon in red_lights], dtype=object)
    scene = Forecast(
        tokens=tuple(objects.tokens[i] for i in chosen),
        type=kind,
        pose=pose,
        size=objects.size[chosen],
        velocity=velocity,
        motion=_motion(pose[:, 2], velocity),
        light_ids=tuple(name for name, _ in red_lights),
        lights=lights,
        is_collided=np.zeros(len(chosen) + len(lights), dtype=bool),
    )
    footprint = shapely.polygons(ego_corners(ego_pose))
    scene.is_collided[: len(chosen)] = shapely.intersects(shapely.polygons(scene.corners[0]), footprint)
    scene.is_collided[len(chosen) :] = shapely.covers(lights, footprint)
    if memory is not None:
        memory |= {name for name, is_on in zip((*scene.tokens, *scene.light_ids), scene.is_collided) if is_on}
        scene.is_collided[len(chosen) :] |= np.array([name in known for name in scene.light_ids], bool)
    return scene


def _motion(heading: np.ndarray, velocity: np.ndarray) -> np.ndarray:
    speed = np.hypot(velocity[:, 0], velocity[:, 1])
    reverses = np.abs(wrap(heading - np.arctan2(velocity[:, 1], velocity[:, 0]))) >= np.pi / 2
    track = np.where(reverses, wrap(heading + np.pi), heading)
    return np.stack([np.cos(track) * speed, np.sin(track) * speed], axis=-1)


def _nearest(center: np.ndarray, objects: FrameObjects, is_gone: np.ndarray) -> np.ndarray:
    """Indices of the forecast's objects in its order, without those that are gone (M,).

    On equal distances the same unstable sort as the devkit's.
    """
    offset = objects.pose[:, :2] - center
    distance = np.sqrt((offset**2).sum(axis=-1))
    near = (distance <= RADIUS) & ~is_gone
    static = np.flatnonzero(near & (objects.type > ObjectType.BICYCLE))
    groups = [static[np.argsort(distance[static])][:NEAREST_STATIC]]
    for kind, limit in NEAREST_AGENTS.items():
        members = np.flatnonzero(near & (objects.type == kind))
        groups.append(members[np.argsort(distance[members])][:limit])
    return np.concatenate(groups)
