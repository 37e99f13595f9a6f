"""Reactive traffic: every vehicle follows its lane by the intelligent-driver model (spec 8.3).

An agent looks along what is left of its lane for other agents and the ego, keeps its distance to the nearest, and
brakes for the end of the lane, since routes are never extended (`agents`, `motion`). Pedestrians, bicycles and static
objects replay. Two official assertions become an InputError for this trajectory: a lane of fewer than two vertices,
and an agent that its own path misses.
"""

from __future__ import annotations

import numpy as np
import shapely

from navsim_adapter.cache.scene_cache import SceneCache
from navsim_adapter.errors import InputError
from navsim_adapter.traffic.agents import Agents, boxes
from navsim_adapter.traffic.objects import STEPS, TrafficObjects, with_vehicles
from navsim_adapter.traffic.scene import TrafficScene, read_traffic_scene


def idm(cache: SceneCache, states: np.ndarray) -> TrafficObjects:
    """The objects around an ego that drives `states` (41, 11).

    Raises InputError where the cache has no traffic arrays and where the official run fails.
    """
    scene = read_traffic_scene(cache)
    if scene.short_path[0] >= 0:
        token = scene.current[scene.short_path[0]]
        raise InputError(f"scene {cache.token}: vehicle {token} is on a lane of two points, which IDM traffic rejects")
    return with_vehicles(cache, scene, vehicle_poses(cache.token, scene, states))


def vehicle_poses(token: str, scene: TrafficScene, states: np.ndarray) -> np.ndarray:
    """(V, 41, 3) poses of the vehicles of the current frame; step 0 raw, NaN where one has vanished.

    token: of the scene, for the error message.
    """
    poses = np.full((len(scene.vehicle_pose), STEPS, 3), np.nan)
    poses[:, 0] = scene.vehicle_pose
    agents = Agents(token, scene)
    for k in range(1, STEPS):
        agents.advance(states[k - 1])
        poses[agents.vehicle, k] = agents.pose
        _keep_bystanders(scene, poses[:, k])
    return poses


def _keep_bystanders(scene: TrafficScene, poses: np.ndarray) -> None:
    """Put the parked and the far vehicles back where they were, unless something stands there; (V, 3), in place."""
    radius = np.hypot(scene.vehicle_size[:, 0], scene.vehicle_size[:, 1]) / 2
    for row in np.flatnonzero(scene.vehicle_stays & np.isnan(poses[:, 0])):
        gap = np.hypot(*(poses[:, :2] - scene.vehicle_pose[row, :2]).T) - radius - radius[row]
        near = np.flatnonzero(gap <= 0.0)  # NaN: not there
        standing = boxes(poses[near], scene.vehicle_size[near])
        if not shapely.intersects(boxes(scene.vehicle_pose[row], scene.vehicle_size[row]), standing).any():
            poses[row] = scene.vehicle_pose[row]
