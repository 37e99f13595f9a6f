"""The client's side of the egodriver contract, against the package's own policies behind a real port."""

from __future__ import annotations

import io
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from navsim_adapter.cli import main
from navsim_adapter.closed_loop.course import START
from navsim_adapter.closed_loop.drive import Manner, Plan, View, drive, play
from navsim_adapter.closed_loop.judge import judge
from navsim_adapter.closed_loop.served import Served, ask_name
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.synthetic.cameras import FOCAL, PICTURED

pytest.importorskip("carla_driver_interface")

from carla_driver_interface.driver import BaseDriver, DriveResult
from carla_driver_interface.geometry import Pose, Trajectory
from carla_driver_interface.policies.constant_speed import ConstantSpeedPolicy
from carla_driver_interface.policies.route_follower import RouteFollowerPolicy
from carla_driver_interface.server import serving

SHORT = Manner(steps=40)


def driven(policy, course, manner=SHORT, seed=0):
    with serving(policy, port=0, host="127.0.0.1") as port:
        return Served(f"127.0.0.1:{port}", policy.name).drive(course, manner, seed)


def straight(view: View) -> Plan:
    """What the package's constant_speed plans, without the wire."""
    ahead = 0.5 * np.arange(1, 41)
    x, y, heading = view.past[-1].ego.x, view.past[-1].ego.y, view.past[-1].ego.heading
    poses = np.column_stack([x + ahead * np.cos(heading), y + ahead * np.sin(heading), np.full(40, heading)])
    return Plan(view.time_us + 100_000 * np.arange(1, 41), poses)


def test_a_served_policy_drives_as_the_same_one_at_hand(courses):
    """On coordinates of four million metres, which the wire's 32 bit numbers do not hold."""
    for course in courses[:2]:
        served, own = driven(ConstantSpeedPolicy(), course).states, drive(course, straight, SHORT, 0).states
        np.testing.assert_allclose(served[:, :3], own[:, :3], atol=1e-3)


def test_the_route_that_is_told_leads_along_the_way(courses):
    """route_follower knows nothing but the route: it stays near the way's line."""
    for course in courses:
        states = driven(RouteFollowerPolicy(cruise_speed_mps=6.0), course).states
        s = course.human[START].ego.s
        for state in states[10:]:
            s = course.way.along(state[0], state[1], s)
            x, y = course.way.points[round(s)]
            assert np.hypot(state[0] - x, state[1] - y) < 2.0
        assert s > course.human[START].ego.s + 10


class Listening(BaseDriver):
    """Says no plan, and keeps what it was told."""

    name = "listening"

    def drive(self, ctx):
        self.told = ctx.session
        return DriveResult(trajectory_in_rig=Trajectory.empty())


def test_a_driver_is_told_past_motion_cameras_and_pictures(courses):
    policy, course = Listening(), courses[0]
    found = driven(policy, course, seed=11)
    told = policy.told
    assert found.held == 8  # an empty plan is a hold
    assert told.seed == 11
    assert told.scene_id == course.name
    assert set(told.cameras) == set(PICTURED)
    first = told.ego_trajectory.poses[0].position
    start, past = course.human[START].ego, course.human[0].ego
    np.testing.assert_allclose(first[:2], [past.x - start.x, past.y - start.y], atol=1e-4)
    steps = np.diff(told.ego_trajectory.timestamps_us)
    assert set(steps.tolist()) == {100_000}
    assert len(told.ego_trajectory) == START + 1 + 35
    assert told.dynamic_states[0].linear_velocity.x == pytest.approx(past.velocity[0], abs=0.1)
    front = told.cameras["CAM_F0"]
    assert front.intrinsics.opencv_pinhole_param.focal_length_x == FOCAL
    ahead = Pose.from_proto(front.rig_to_camera).rotation.apply([0, 0, 1])  # of the optical axis
    np.testing.assert_allclose(ahead, [1, 0, 0], atol=1e-6)
    picture = Image.open(io.BytesIO(told.latest_frame("CAM_L0").image_bytes))
    assert picture.size == (front.intrinsics.resolution_w, front.intrinsics.resolution_h)
    assert told.latest_frame("CAM_L0").timestamp_us == told.ego_trajectory.timestamps_us[-1]


class Broken(ConstantSpeedPolicy):
    """Now and then a plan that cannot be meant."""

    def __init__(self, position=(0.0, 0.0, 0.0), late=0):
        super().__init__()
        self.position, self.late = np.array(position), late

    def drive(self, ctx):
        result = super().drive(ctx)
        if ctx.session.drive_count % 2:
            result.trajectory_in_rig.poses[3] = Pose(self.position, np.array([0, 0, 0, 1.0]))
            result.trajectory_in_rig.timestamps_us[3] += self.late
        return result


@pytest.mark.parametrize(
    "policy",
    [Broken((np.nan, 0, 0)), Broken((np.inf, 0, 0)), Broken((1e30, 0, 0)), Broken(late=2**63)],
    ids=["NaN", "infinite", "far", "the end of time"],
)
def test_a_plan_that_is_no_path_is_a_hold(courses, policy):
    assert driven(policy, courses[0]).held == 4


def test_a_plan_to_another_city_is_driven_off_the_road(courses):
    found = driven(Broken((0, 9e5, 0)), courses[0])
    assert found.held == 0
    assert judge(courses[0], play(courses[0], "idm", found.states), found.states).off_road


class Dying(ConstantSpeedPolicy):
    def drive(self, ctx):
        if ctx.session.drive_count == 3:
            raise RuntimeError("out of memory")
        return super().drive(ctx)


def test_a_driver_that_fails_is_one_line(courses):
    with pytest.raises(InputError, match=r"the driver failed.*out of memory"):
        driven(Dying(), courses[0])


def test_nobody_at_the_port_is_one_line():
    with pytest.raises(InputError, match="no driver answers there"):
        ask_name("127.0.0.1:1")


def test_a_missing_extra_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "carla_driver_interface.protocol", None)
    with pytest.raises(InputError, match=r"dipole-vla\[drive\]"):
        ask_name("127.0.0.1:1")


@pytest.mark.faults
def test_a_killed_server_ends_the_run_in_one_line_and_the_same_command_resumes(world, tmp_path, capsys):
    """The package's own server as a process of its own; it is killed as soon as the first drive is on disk."""
    out, port = tmp_path / "out", free_port()
    words = [
        "closed-loop",
        "--world",
        str(world),
        "--driver",
        f"127.0.0.1:{port}",
        "--out",
        str(out),
        "--seed",
        "0",
        "1",
    ]
    server = policy_server(port)
    threading.Thread(target=lambda: (wait_for(out), server.kill()), daemon=True).start()
    assert main(words) == 2
    server.wait()
    problem = capsys.readouterr().err.splitlines()[-1]
    assert "no driver answers there" in problem
    kept = {path: path.stat().st_mtime_ns for path in (out / "drives").iterdir()}
    assert 0 < len(kept) < 6
    server = policy_server(port)
    try:
        assert main(words) == 0
    finally:
        server.kill()
    assert len(list((out / "drives").iterdir())) == 6
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def free_port():
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


def policy_server(port):
    words = ["serve", "--policy", "constant_speed", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen([sys.executable, "-m", "carla_driver_interface.cli", *words])
    for _ in range(600):
        try:
            ask_name(f"127.0.0.1:{port}")
            return server
        except InputError:
            time.sleep(0.1)
    raise AssertionError("the server did not start")


def wait_for(out):
    while not list(out.glob("drives/*.npz")):
        time.sleep(0.01)
