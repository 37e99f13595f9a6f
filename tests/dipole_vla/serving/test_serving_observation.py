"""What a policy sees of a session is what `navsim-adapter convert` writes of the same instant of the log."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from navsim_adapter.cache.build import relative_poses
from navsim_adapter.dataset import scene_row
from navsim_adapter.nuplan.boxes import ego_center, ego_corners
from navsim_adapter.nuplan.maps import Map, load_map
from navsim_adapter.nuplan.root import DataRoot
from navsim_adapter.nuplan.route import plan_route
from navsim_adapter.nuplan.scenes import Scene, SceneFilter, find_scenes
from tests.dipole_vla.serving.sessions import Client, Straight, in_process, straight_driver

DATA = Path(__file__).resolve().parents[2] / "data" / "navsim"


def scenes() -> list[Scene]:
    return list(find_scenes(DataRoot(DATA, DATA / "maps"), "mini", SceneFilter()))


@cache
def city_of(name: str) -> Map:
    return load_map(str(DATA / "maps"), name)


def replayed(scene: Scene, route: np.ndarray, with_states: bool = True) -> dict:
    """The row a policy is given when a scene's past is sent through the contract; local frame: the first frame's."""
    driver = straight_driver()
    client = Client(in_process(driver))
    frames, now = scene.past, scene.now
    local = relative_poses(frames[0].ego_pose, np.array([frame.ego_pose for frame in frames]))
    velocity, acceleration = ([getattr(frame, name) for frame in frames] for name in ("velocity", "acceleration"))
    if with_states:
        client.poses([frame.time_us for frame in frames], local, velocity, acceleration)
    else:
        client.poses([frame.time_us for frame in frames], local)
    ahead = relative_poses(now.ego_pose, route)[:, :2]
    client.route(now.time_us, ahead[np.hypot(*ahead.T) < 80])
    client.pictures(now.time_us)
    client.drive(now.time_us)
    policy = driver.policy
    assert isinstance(policy, Straight)
    [row] = policy.rows
    return row


def centerline(scene: Scene) -> np.ndarray:
    """(n, 3) global poses along the route."""
    now, center = scene.now, ego_center(scene.now.ego_pose)
    city = city_of(now.map_name)
    near = city.drivable(center[0], center[1], 100.0)
    return plan_route(city, now.roadblock_ids, now.ego_pose, center, ego_corners(now.ego_pose), near).centerline


def command_by_rule(scene: Scene, route: np.ndarray) -> str:
    """Metric 2.2 with the map's own headings; these hand-made logs name the turn of their situation instead."""
    here = int(np.hypot(*(route[:, :2] - scene.now.ego_pose[:2]).T).argmin())
    along = np.concatenate([[0], np.hypot(*np.diff(route[:, :2], axis=0).T).cumsum()])
    ahead = min(int(np.searchsorted(along, along[here] + 20)), len(route) - 1)
    left = relative_poses(route[here], route[ahead : ahead + 1])[0, 1]
    return "left" if left >= 2 else "right" if left <= -2 else "straight"


@pytest.mark.parametrize("place", range(len(scenes())))
def test_a_replayed_scene_is_the_row_of_convert(place: int) -> None:
    scene = scenes()[place]
    route = centerline(scene)
    wanted, found = scene_row(scene), replayed(scene, route)
    assert set(wanted) - set(found) == {"log_name", "map", "split", "cameras", "future"}
    assert found["command"] == command_by_rule(scene, route)
    np.testing.assert_allclose(found["history"], wanted["history"], atol=1e-3)
    for name in ("velocity", "acceleration", "history_velocity", "history_acceleration"):
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-5)


def test_without_dynamic_states_motion_comes_from_poses() -> None:
    driver = straight_driver()
    client = Client(in_process(driver))
    times = np.arange(-30, 1) * 0.1
    speed, turn = 6.0 + 1.5 * times, 0.2  # steady acceleration along a circle
    heading = turn * times
    step = (
        np.diff(times, prepend=times[0])[:, None] * speed[:, None] * np.column_stack([np.cos(heading), np.sin(heading)])
    )
    client.poses((times * 1e6 + 1e7).astype(int), np.column_stack([step.cumsum(0), heading]))
    client.pictures(10_000_000)
    client.drive(10_000_000)
    [row] = driver.policy.rows  # type: ignore[attr-defined]
    np.testing.assert_allclose(row["velocity"], [6.0, 0.0], atol=0.15)
    np.testing.assert_allclose(row["acceleration"], [1.5, 6.0 * turn], atol=0.3)


@pytest.mark.parametrize(("speed", "with_states"), [(0.0, False), (0.0, True), (8.0, True), (8.0, False)])
def test_before_the_first_pose_the_ego_came_at_its_velocity(speed: float, with_states: bool) -> None:
    """A session that has just begun: standing it stood, driving it drove."""
    driver = straight_driver()
    client = Client(in_process(driver))
    times, places = [900_000, 1_000_000], [(0.1 * speed * i, 0.0, 0.0) for i in range(2)]
    client.poses(times, places, velocity=[(speed, 0.0)] * 2 if with_states else None)
    client.pictures(1_000_000)
    client.drive(1_000_000)
    [row] = driver.policy.rows  # type: ignore[attr-defined]
    np.testing.assert_allclose(
        row["history"], [(-1.5 * speed, 0, 0), (-speed, 0, 0), (-0.5 * speed, 0, 0), (0, 0, 0)], atol=1e-4
    )
    np.testing.assert_allclose(row["velocity"], [speed, 0.0], atol=1e-4)
    assert row["command"] == "unknown"  # no route yet


def test_poses_between_frames_are_interpolated_in_the_frame_now() -> None:
    driver = straight_driver()
    client = Client(in_process(driver))
    times = np.arange(0, 2_100_001, 70_000)  # no pose lies on a frame's instant but the latest
    angle = 0.1 * times * 1e-6  # a circle of 50 m at 5 m/s
    client.poses(times.tolist(), np.column_stack([50 * np.sin(angle), 50 - 50 * np.cos(angle), angle]))
    client.pictures(int(times[-1]))
    client.drive(int(times[-1]))
    [row] = driver.policy.rows  # type: ignore[attr-defined]
    back = -0.1 * np.array([1.5, 1.0, 0.5, 0.0])
    wanted = np.column_stack([50 * np.sin(back), 50 - 50 * np.cos(back), back])
    np.testing.assert_allclose(row["history"], wanted, atol=2e-3)  # a chord of 0.35 m is 0.3 mm off
    np.testing.assert_allclose(row["velocity"], [5.0, 0.0], atol=0.02)


def test_a_route_of_before_is_turned_into_the_frame_now() -> None:
    """It was given 10 m ago, before a turn to the left of 30 m radius that lies ahead now."""
    driver = straight_driver()
    client = Client(in_process(driver))
    client.poses([0, 1_000_000], [(0, 0, 0), (10, 0, 0)])
    arc = np.linspace(0, np.pi / 2, 30)
    curve = np.column_stack([20 + 30 * np.sin(arc), 30 - 30 * np.cos(arc)])
    client.route(0, np.concatenate([[(0, 0), (10, 0)], curve]))
    client.pictures(1_000_000)
    client.drive(1_000_000)
    assert driver.policy.rows[0]["command"] == "straight"  # type: ignore[attr-defined]  # 1.6 m aside after 20 m
    client.pose(1_200_000, 12.0)
    client.pictures(1_200_000)
    client.drive(1_200_000)
    assert driver.policy.rows[1]["command"] == "left"  # type: ignore[attr-defined]  # 2.4 m
