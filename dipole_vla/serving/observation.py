"""From a session's egomotion to a row of the scene table: what `navsim-adapter convert` writes of the same instant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from carla_driver_interface.geometry import Pose
from carla_driver_interface.protocol import DynamicState

from navsim_adapter.cache.build import relative_poses
from navsim_adapter.metric.history import HISTORY

STEP = 0.5  # seconds between frames
SNAP_US = 2_000  # a pose as near as this to the instant of a frame is the frame's: logs' clocks jitter
KEPT_US = 2_000_000  # of egomotion: the history, and a frame more to interpolate from
KEPT = 512  # poses at most


@dataclass(frozen=True)
class Past:
    """The ego's recent way, n instants in order: poses of the rig, which is the rear axle, in the local frame.

    times_us: (n,). poses: (n, 3) x, y, heading, not wrapped. velocity, acceleration: (n, 2) in the rig's own axes; None
    where the runtime sent no dynamic states.
    """

    times_us: np.ndarray
    poses: np.ndarray
    velocity: np.ndarray | None
    acceleration: np.ndarray | None

    @classmethod
    def of(cls, times_us: Sequence[int], poses: Sequence[Pose], states: Sequence[DynamicState]) -> Past:
        flat = np.array([[*pose.position[:2], heading(pose)] for pose in poses])
        flat[:, 2] = np.unwrap(flat[:, 2])
        vectors = {
            name: np.array([[getattr(state, name).x, getattr(state, name).y] for state in states])
            for name in ("linear_velocity", "linear_acceleration")
            if all(state.HasField(name) for state in states)
        }
        velocity, acceleration = vectors.get("linear_velocity"), vectors.get("linear_acceleration")
        return cls(np.array(times_us, np.int64), flat, velocity, acceleration)

    def pose_at(self, times_us: np.ndarray) -> np.ndarray:
        """(m, 3) by straight lines between poses; before the first as if the ego had come at the first's velocity."""
        times = self._snapped(np.asarray(times_us))
        found = _interpolated(times, self.times_us, self.poses)
        before = np.minimum(times - self.times_us[0], 0)[:, None] * 1e-6
        found[:, :2] += before * _turned(self._first_velocity(), self.poses[0, 2])
        return found

    def relative(self, times_us: np.ndarray) -> np.ndarray:
        """(m, 3) x, y, heading of these instants in the frame of the latest pose."""
        return relative_poses(self.poses[-1], self.pose_at(times_us))

    def motion(self, times_us: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Velocity and acceleration (m, 2) at these equally spaced instants, each in the axes of its own pose: the
        runtime's dynamic states, or differences of poses and of velocities where it sent none."""
        poses, times = self.pose_at(times_us), self._snapped(np.asarray(times_us))
        if self.velocity is None:
            velocity = _turned(_slope(poses[:, :2]), -poses[:, 2])
        else:
            velocity = _interpolated(times, self.times_us, self.velocity)
        if self.acceleration is None:
            return velocity, _turned(_slope(_turned(velocity, poses[:, 2])), -poses[:, 2])
        return velocity, _interpolated(times, self.times_us, self.acceleration)

    def _first_velocity(self) -> np.ndarray:
        """(2,) in the rig's axes; of a single pose without dynamic state 0."""
        if self.velocity is not None:
            return self.velocity[0]
        if len(self.times_us) < 2:
            return np.zeros(2)
        step = (self.poses[1, :2] - self.poses[0, :2]) / ((self.times_us[1] - self.times_us[0]) * 1e-6)
        return _turned(step, -self.poses[0, 2])

    def _snapped(self, times_us: np.ndarray) -> np.ndarray:
        nearest = self.times_us[np.abs(self.times_us[:, None] - times_us).argmin(0)]
        return np.where(np.abs(nearest - times_us) <= SNAP_US, nearest, times_us)


def scene_row(past: Past, command: str, token: str) -> dict[str, Any]:
    """The row of the scene table at the latest pose, but for what only a log has: cameras, map and future."""
    instants = past.times_us[-1] - np.arange(HISTORY - 1, -1, -1) * round(STEP * 1e6)
    history = past.relative(instants)
    history[-1] = 0.0
    velocity, acceleration = (values.astype(np.float32) for values in past.motion(instants))
    return {
        "token": token,
        "timestamp_us": int(past.times_us[-1]),
        "command": command,
        "velocity": velocity[-1].tolist(),
        "acceleration": acceleration[-1].tolist(),
        "history": history.tolist(),
        "history_velocity": velocity.tolist(),
        "history_acceleration": acceleration.tolist(),
    }


def heading(pose: Pose) -> float:
    x, y, z, w = pose.quat_xyzw
    return float(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))


def _interpolated(times: np.ndarray, known: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.column_stack([np.interp(times, known, column) for column in values.T])


def _slope(values: np.ndarray) -> np.ndarray:
    """Per second, of rows `STEP` apart, to second order at the ends too."""
    return np.gradient(values, STEP, axis=0, edge_order=2)


def _turned(vectors: np.ndarray, angle: np.ndarray | float) -> np.ndarray:
    """(…, 2) turned to the left by `angle`."""
    c, s = np.cos(angle), np.sin(angle)
    x, y = vectors[..., 0], vectors[..., 1]
    return np.stack([c * x - s * y, s * x + c * y], axis=-1)
