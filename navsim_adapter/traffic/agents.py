"""The vehicles of reactive traffic in motion: what each occupies, what is on its way, how it moves (metric 8.3).

The shapes are GEOS's, because the gaps between them decide the accelerations: an agent occupies its box united with
the strip of lane in front of it, and looks along the strip of lane that is left. They are made only for agents that
have something near their path; compiled tests with circles sort out the others.
"""

from __future__ import annotations

import numpy as np
import shapely

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.nuplan.boxes import box_corners
from navsim_adapter.traffic import motion
from navsim_adapter.traffic.scene import TrafficScene
from navsim_adapter.vehicle import HALF_LENGTH, HALF_WIDTH

RADIUS = 100.0  # agents farther from the ego are removed for good
SIMPLIFICATION = 1e-5
EGO_SIZE = np.array([2 * HALF_LENGTH, 2 * HALF_WIDTH])
X, Y, HEADING, VX, VY = range(5)


class Agents:
    """pose: (A, 3) boxes, NaN once removed; size: (A, 2); radius: (A,) of the circle around a box.

    vehicle: (A,) their rows in the traffic scene.
    """

    def __init__(self, token: str, scene: TrafficScene):
        """token: of the scene, for error messages."""
        self._token = token
        self.vehicle = np.flatnonzero(scene.vehicle_agent >= 0)
        self._names = [scene.current[row] for row in self.vehicle]
        self._state = motion.start(
            scene.path, scene.path_start, scene.agent_progress, scene.agent_speed, scene.target_speed,
            scene.vehicle_size[self.vehicle],
        )  # fmt: skip
        self.pose, self.size = self._state.pose, self._state.size
        self.radius = np.hypot(self.size[:, 0], self.size[:, 1]) / 2
        # What each occupies (the ego last): its snapped box at first, later made when asked for.
        snapped = _simplified(boxes(scene.agent_pose, self._state.size))
        self._shape: list[np.ndarray | None] = [*snapped[:, None], None]

    def advance(self, ego: np.ndarray) -> None:
        """One step of all agents, each seeing the new state of those before it.  ego: (11,) one step before.

        The ego's body is centered on its rear axle, 1.461 m too far back, as officially.
        """
        count = len(self.pose)
        self.pose[np.hypot(self.pose[:, 0] - ego[X], self.pose[:, 1] - ego[Y]) > RADIUS] = np.nan
        motion.cover_ego(self._state, ego)
        self._shape[-1] = _simplified(boxes(ego[None, : HEADING + 1], EGO_SIZE))
        agent = motion.advance_alone(self._state, 0)
        while agent < count:
            self._forget_moved()
            leader, gap = self._leader(agent)
            if leader < 0:
                motion.follow_lane_end(self._state, agent)
            else:
                is_ego = leader == count
                speed = np.hypot(ego[VX], ego[VY]) if is_ego else self._state.speed[leader]
                heading = ego[HEADING] if is_ego else self.pose[leader, 2]
                motion.follow(self._state, agent, gap, speed * np.cos(heading - self.pose[agent, 2]), 0.0)
            agent = motion.advance_alone(self._state, agent + 1)
        self._forget_moved()

    def _forget_moved(self) -> None:
        for agent in np.flatnonzero(self._state.is_moved):
            self._shape[agent] = None
        self._state.is_moved[:] = False

    def _leader(self, agent: int) -> tuple[int, float]:
        """Index of what is nearest among all on the agent's path (A: the ego; -1: nothing), and its distance."""
        met = np.flatnonzero(self._on_path(agent)).tolist()
        if not met:
            return -1, np.inf
        own = self._occupied(agent)[:, None]
        distance = [float(shapely.distance(own, self._occupied(other)).min()) for other in met]
        least = min(distance)
        if distance.count(least) > 1:
            return self._first_in_tree(agent), least
        return met[distance.index(least)], least

    def _on_path(self, agent: int) -> np.ndarray:
        """(A + 1,) what meets the strip of lane ahead of the agent."""
        near, is_met = self._state.near, self._state.is_met.copy()
        is_past_end = motion.is_past_end(self._state, agent)
        unsure = np.flatnonzero(near & ~is_met)
        if not len(unsure) and not is_past_end:
            return is_met
        strip = self._strip(agent, motion.path_to_go(self._state, agent, False))
        shapely.prepare(strip)
        if is_past_end and not shapely.intersects(strip, self._occupied(agent)).any():
            raise InputError(
                f"scene {self._token}: vehicle {self._names[agent]} is past the end of its lane, where IDM traffic "
                "fails; this trajectory has no score"
            )
        for other in unsure.tolist():
            is_met[other] = shapely.intersects(strip, self._occupied(other)).any()
        return is_met

    def _first_in_tree(self, agent: int) -> int:
        """Among equally near ones the official choice is that of a tree over those that the path meets."""
        strip = self._strip(agent, motion.path_to_go(self._state, agent, True))
        everyone = np.append(np.flatnonzero(~np.isnan(self.pose[:, 0])), len(self.pose))
        shapes = np.array([shapely.union_all(self._occupied(other)) for other in everyone.tolist()], dtype=object)
        order = shapely.STRtree(shapes, node_capacity=10).query(strip)
        met = [row for row in order if everyone[row] != agent and shapely.intersects(strip, shapes[row])]
        own = shapes[np.flatnonzero(everyone == agent)[0]]
        return int(everyone[met[shapely.STRtree(shapes[met], node_capacity=10).nearest(own)]])

    def _occupied(self, agent: int) -> np.ndarray:
        """Polygons (1 or 2) of the agent's box and the strip of lane from its tail to its headway in front.

        The official shape is their union, simplified by 1e-5 m, which distances and contacts need not know.
        """
        shape = self._shape[agent]
        if shape is None:
            swept = _simplified(self._strip(agent, motion.occupied_path(self._state, agent)))
            box = shapely.polygons(motion.corners(self._state, agent))
            parts = [box] if shapely.is_empty(swept) else [swept, box]  # empty past the end of the path
            shape = self._shape[agent] = np.array(parts, dtype=object)
        return shape

    def _strip(self, agent: int, path: np.ndarray) -> shapely.Geometry:
        return shapely.buffer(shapely.linestrings(path), self._state.size[agent, 1] / 2, cap_style="flat")


def boxes(poses: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Polygons (...) of boxes at `poses` (..., 3) with `sizes` (..., 2) length, width."""
    return shapely.polygons(box_corners(poses[..., :2], poses[..., 2], sizes / 2))


def _simplified(shapes: np.ndarray) -> np.ndarray:
    return shapely.simplify(shapes, SIMPLIFICATION, preserve_topology=True)
