"""Reactive traffic: every vehicle follows its lane by the intelligent-driver model (metric 8.3).

An agent looks along what is left of its lane for other agents and the ego, keeps its distance to the nearest, and
brakes for the end of the lane, since routes are never extended (`agents`, `motion`). Pedestrians, bicycles and static
objects replay. Two official assertions become an InputError for this trajectory: a lane of fewer than two vertices,
and an agent that its own path misses.
"""

from __future__ import annotations

import numpy as np
import shapely

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.scene_cache import SceneCache
from navsim_adapter.traffic.agents import Agents, boxes
from navsim_adapter.traffic.objects import STEPS, TrafficObjects, with_vehicles
from navsim_adapter.traffic.scene import TrafficScene, read_traffic_scene


def idm(cache: SceneCache, states: np.ndarray) -> TrafficObjects:
    """The objects around an ego that drives `states` (41, 11).

    Raises InputError where the cache has no traffic arrays and where the official run fails.
    """
    scene = read_traffic_scene(cache)
    if scene.failing[0] >= 0:
        token = scene.current[scene.failing[0]]
        raise InputError(
            f"scene {cache.token}: vehicle {token} is on a lane whose baseline is missing or has two points, where IDM "
            "traffic fails; this scene has no reactive score"
        )
    return with_vehicles(cache, scene, vehicle_poses(cache.token, scene, states))


def vehicle_poses(token: str, scene: TrafficScene, states: np.ndarray) -> np.ndarray:
    """(V, 41, 3) poses of the vehicles of the current frame; step 0 raw, NaN where one has vanished.

    token: of the scene, for the error message.
    """
    poses = np.full((len(scene.vehicle_pose), STEPS, 3), np.nan)
    poses[:, 0] = scene.vehicle_pose
    agents, bystanders = Agents(token, scene), _Bystanders(scene)
    for k in range(1, STEPS):
        agents.advance(states[k - 1])
        poses[agents.vehicle, k] = agents.pose
        kept = bystanders.vehicle[bystanders.remain(agents)]
        poses[kept, k] = scene.vehicle_pose[kept]
    return poses


class _Bystanders:
    """Parked and far vehicles, which are put back where they were unless something stands there (metric 8.3, output).

    vehicle: (S,) their rows in the traffic scene; none of them is ever an agent.
    """

    def __init__(self, scene: TrafficScene):
        self.vehicle = np.flatnonzero(scene.vehicle_stays)
        self._center = scene.vehicle_pose[self.vehicle, :2]
        self._radius = np.hypot(*scene.vehicle_size[self.vehicle].T) / 2
        self._boxes = boxes(scene.vehicle_pose[self.vehicle], scene.vehicle_size[self.vehicle])
        self._overlaps = np.tril(shapely.intersects(self._boxes[:, None], self._boxes), k=-1)

    def remain(self, agents: Agents) -> np.ndarray:
        """(S,) bool: meets neither an agent nor a bystander that was put back before it."""
        gap = np.hypot(*(self._center[:, None] - agents.pose[:, :2]).T).T - self._radius[:, None] - agents.radius
        own, other = np.nonzero(gap <= 0.0)  # NaN, an agent that is gone, is never near
        remains = np.ones(len(self.vehicle), dtype=bool)
        if len(own):
            met = shapely.intersects(self._boxes[own], boxes(agents.pose[other], agents.size[other]))
            remains[own[met]] = False
        for row in np.flatnonzero(self._overlaps.any(axis=1)):
            remains[row] &= not (self._overlaps[row] & remains).any()
        return remains
