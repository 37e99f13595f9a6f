"""From a plan to the trajectory of the contract, and a plan that is followed until the next one is made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from carla_driver_interface.geometry import Pose, Trajectory
from scipy.interpolate import PchipInterpolator

RATE = 0.1  # seconds between poses of a trajectory where it will be driven: a runtime's control step


def trajectory(plan: np.ndarray, interval: float, now_us: int, driven: float = 1.0) -> Trajectory:
    """The plan in the rig frame of `now_us`, which it begins after: every 0.1 s as far as it is driven, then as it is.

    plan: (T, 3) x, y, heading at `interval` seconds. Between its poses monotone cubics (PCHIP) in x, y and heading: the
    velocity has no jumps, a standing ego stands, and nothing overshoots. driven: seconds; a pose costs 0.2 ms to send.
    """
    knots = np.concatenate([np.zeros((1, 3)), plan])
    knots[:, 2] = np.unwrap(knots[:, 2])
    own = np.arange(len(knots)) * interval
    dense = np.arange(RATE, min(driven, own[-1]) + RATE / 2, RATE)
    times_us = np.unique(np.round(np.concatenate([dense, own[1:]]) * 1e6).astype(np.int64))
    poses = PchipInterpolator(own, knots)(times_us * 1e-6)
    return Trajectory([now_us + int(each) for each in times_us], [_pose(*row) for row in poses])


def _pose(x: float, y: float, heading: float) -> Pose:
    return Pose(np.array([x, y, 0.0]), np.array([0.0, 0.0, np.sin(heading / 2), np.cos(heading / 2)]))


@dataclass(frozen=True)
class Kept:
    """A plan on its way: made at `made_us` by an ego at `rig`, in whose frame it stays put."""

    made_us: int
    rig: Pose
    ahead: Trajectory

    def covers(self, time_us: int) -> bool:
        return bool(self.ahead) and self.ahead.timestamps_us[-1] >= time_us

    def seen_from(self, rig: Pose, now_us: int) -> Trajectory:
        """What is left of it after `now_us`, in the frame of an ego at `rig`."""
        start = int(np.searchsorted(self.ahead.timestamps_us, now_us, side="right"))
        left = Trajectory(self.ahead.timestamps_us[start:], self.ahead.poses[start:])
        return left.transform(rig.inverse() @ self.rig)
