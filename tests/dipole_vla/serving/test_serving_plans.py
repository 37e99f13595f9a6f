"""From a plan to a trajectory: through every pose, smooth between them, and in place when it is kept."""

from __future__ import annotations

import numpy as np
import pytest
from carla_driver_interface.geometry import Pose, Trajectory

from dipole_vla.serving.plans import Kept, trajectory

NOW = 5_000_000


def numbers(found: Trajectory) -> tuple[np.ndarray, np.ndarray]:
    """Seconds after NOW, and x, y, heading."""
    poses = np.array([[*pose.position[:2], pose.yaw] for pose in found.poses])
    return (np.array(found.timestamps_us) - NOW) * 1e-6, poses


def test_it_goes_through_every_pose_and_every_tenth_of_a_second() -> None:
    angle = 0.2 * np.arange(1, 9) * 0.5
    plan = np.column_stack([30 * np.sin(angle), 30 - 30 * np.cos(angle), angle])
    seconds, poses = numbers(trajectory(plan, 0.5, NOW, driven=4.0))
    np.testing.assert_allclose(seconds, np.arange(1, 41) * 0.1, atol=1e-9)
    np.testing.assert_allclose(poses[4::5], plan, atol=1e-9)
    fine = 0.2 * seconds
    np.testing.assert_allclose(poses, np.column_stack([30 * np.sin(fine), 30 - 30 * np.cos(fine), fine]), atol=0.02)


def test_beyond_what_is_driven_it_is_the_plan_itself() -> None:
    plan = np.column_stack([np.arange(1.0, 9.0), np.zeros(8), np.zeros(8)])
    seconds, poses = numbers(trajectory(plan, 0.5, NOW, driven=1.0))
    np.testing.assert_allclose(seconds, [*np.arange(1, 11) * 0.1, 1.5, 2, 2.5, 3, 3.5, 4], atol=1e-9)
    np.testing.assert_allclose(poses[-6:], plan[2:], atol=1e-12)


@pytest.mark.parametrize(("horizon", "interval"), [(8, 0.5), (20, 0.25), (64, 0.1), (6, 0.5)])
def test_any_horizon_and_step(horizon: int, interval: float) -> None:
    plan = np.column_stack([np.arange(1, horizon + 1) * interval * 7, np.zeros(horizon), np.zeros(horizon)])
    seconds, poses = numbers(trajectory(plan, interval, NOW, driven=1.0))
    assert seconds[-1] == pytest.approx(horizon * interval)
    assert (np.diff(seconds) > 0).all()
    np.testing.assert_allclose(poses[:, 0], 7 * seconds, atol=1e-9)


def test_a_standing_plan_stands_and_a_stop_does_not_roll_back() -> None:
    _, poses = numbers(trajectory(np.zeros((8, 3)), 0.5, NOW, 4.0))
    assert not poses.any()
    stop = np.column_stack([[2, 3, 3.2, 3.2, 3.2, 3.2, 3.2, 3.2], np.zeros(8), np.zeros(8)])
    _, poses = numbers(trajectory(stop, 0.5, NOW, 4.0))
    assert (np.diff(poses[:, 0]) >= 0).all()


def test_headings_pass_through_half_a_turn() -> None:
    plan = np.column_stack([np.arange(1, 9), np.zeros(8), 3.1 + 0.1 * np.arange(8)])
    plan[:, 2] = (plan[:, 2] + np.pi) % (2 * np.pi) - np.pi
    _, poses = numbers(trajectory(plan, 0.5, NOW, 4.0))
    steps = np.diff(np.unwrap(poses[4:, 2]))
    assert (np.abs(steps) < 0.05).all()


def test_a_kept_plan_stays_where_it_was_put() -> None:
    ahead = trajectory(np.column_stack([np.arange(1.0, 9.0), np.zeros(8), np.zeros(8)]), 0.5, NOW, 4.0)
    made, later = Pose.from_xyz_yaw(100, 50, 0, 0.7), Pose.from_xyz_yaw(101, 51.5, 0, 0.9)
    kept = Kept(NOW, made, ahead)
    left = kept.seen_from(later, NOW + 700_000)
    assert left.timestamps_us == ahead.timestamps_us[7:]
    np.testing.assert_allclose(left.transform(later).positions, ahead.transform(made).positions[7:], atol=1e-9)
    assert kept.covers(NOW + 4_000_000)
    assert not kept.covers(NOW + 4_000_001)
