"""The objects that a traffic policy gives to the scorer, in place of those of the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from navsim_adapter.scene_cache import EPDMS, ObjectType, SceneCache
from navsim_adapter.traffic.scene import TrafficScene

STEPS = 41


@dataclass(frozen=True)
class TrafficObjects:
    """One row per object, in the order in which the scorer meets them.

    tokens: (M,); type: (M,) ObjectType; size: (M, 2) length, width; pose: (M, 41, 3) x, y, heading of the box center,
    NaN where absent; velocity: (M, 2) global, at the first step where the object is present.
    """

    tokens: tuple[str, ...]
    type: np.ndarray
    size: np.ndarray
    pose: np.ndarray
    velocity: np.ndarray

    def rows(self, chosen: np.ndarray) -> TrafficObjects:
        """The objects at these row indices."""
        tokens = tuple(self.tokens[row] for row in chosen)
        return TrafficObjects(tokens, self.type[chosen], self.size[chosen], self.pose[chosen], self.velocity[chosen])


TrafficPolicy = Callable[[SceneCache, np.ndarray], TrafficObjects]  # scene, (41, 11) simulated ego states -> objects


def recorded(cache: SceneCache) -> TrafficObjects:
    """Everything that EPDMS sees of the log, before a policy has its say."""
    chosen = np.flatnonzero(cache.object_versions & EPDMS)
    return TrafficObjects(
        tuple(cache.object_tokens[row] for row in chosen),
        cache.object_type[chosen],
        cache.object_size[chosen],
        cache.object_pose[chosen, :STEPS],
        cache.object_velocity[chosen],
    )


def with_vehicles(cache: SceneCache, scene: TrafficScene, poses: np.ndarray) -> TrafficObjects:
    """Simulated vehicles, then everything else as recorded; step 0 holds what the current frame shows.

    poses: (V, 41, 3) of the current frame's vehicles, NaN where absent.
    """
    logged = recorded(cache)
    others = logged.rows(np.flatnonzero(logged.type != ObjectType.VEHICLE))
    current = frozenset(scene.current)
    other_poses = others.pose.copy()
    other_poses[[token not in current for token in others.tokens], 0] = np.nan
    return TrafficObjects(
        scene.current[: len(poses)] + others.tokens,
        np.concatenate([np.full(len(poses), ObjectType.VEHICLE, dtype=np.int8), others.type]),
        np.concatenate([scene.vehicle_size, others.size]),
        np.concatenate([poses, other_poses]),
        np.concatenate([scene.vehicle_velocity, others.velocity]),
    )
