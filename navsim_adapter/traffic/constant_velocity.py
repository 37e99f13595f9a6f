"""Vehicles that keep their velocity and heading; everything else replays (the devkit's third policy).

Merged with the log as reactive traffic is (metric 8.3): step 0 shows the current frame as it is, overlaps included, and
vehicles first seen later do not exist.
"""

from __future__ import annotations

import numpy as np

from navsim_adapter.scene_cache import SceneCache
from navsim_adapter.traffic.objects import STEPS, TrafficObjects, with_vehicles
from navsim_adapter.traffic.scene import read_traffic_scene

STEP_TIME = 0.1


def constant_velocity(cache: SceneCache, states: np.ndarray | None = None) -> TrafficObjects:
    """The objects of the 41 steps.

    states: not read; this traffic does not react.  Raises InputError where the cache has no traffic arrays.
    """
    scene = read_traffic_scene(cache)
    poses = np.repeat(scene.vehicle_pose[:, None], STEPS, axis=1)
    poses[..., :2] += scene.vehicle_velocity[:, None] * (STEP_TIME * np.arange(STEPS))[:, None]
    return with_vehicles(cache, scene, poses)
