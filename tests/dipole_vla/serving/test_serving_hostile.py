"""A client that sends what no runtime would: an error by the contract or a hold, bounded memory, the next unharmed."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import grpc
import numpy as np
import pytest
from carla_driver_interface.contract import contract_metadata
from carla_driver_interface.driver import SessionState
from carla_driver_interface.protocol import (
    DriveRequest,
    DriveSessionCloseRequest,
    DriveSessionRequest,
    RolloutCameraImage,
    RolloutEgoTrajectory,
    channel_options,
)
from carla_driver_interface.testing import FakeCamera
from PIL import Image

from dipole_vla.serving.driver import PolicyDriver
from dipole_vla.serving.server import opened
from tests.dipole_vla.serving.sessions import Client, jpeg, straight_driver

MOST = 6
NAN = float("nan")


@pytest.fixture(scope="module")
def driver() -> PolicyDriver:
    return straight_driver()


@pytest.fixture(scope="module")
def address(driver: PolicyDriver) -> Iterator[str]:
    with opened(driver, "localhost", 0, "carla", MOST) as dialled:
        yield dialled


@pytest.fixture
def channel(address: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(address, options=channel_options()) as open_channel:
        yield open_channel


@pytest.fixture(autouse=True)
def unharmed(channel: grpc.Channel) -> Iterator[None]:
    """Whatever a test sends, a session after it drives."""
    yield
    client = Client(channel)
    plan = client.go(1_000_000, speed=5.0)
    assert plan.positions[-1, 0] == pytest.approx(25.0, abs=1e-3)
    client.close()


def refuses(code: str, call: Any, *arguments: Any, says: str = "") -> None:
    with pytest.raises(grpc.RpcError, match=code) as caught:
        call(*arguments)
    assert says in caught.value.details()  # type: ignore[attr-defined]
    assert "Traceback" not in caught.value.details()  # type: ignore[attr-defined]


POSES: list[tuple[tuple[float, float, float], int, str]] = [
    ((NAN, 0, 0), 2_000_000, "trajectory.vec.x: is nan"),
    ((0, float("inf"), 0), 2_000_000, "trajectory.vec.y: is inf"),
    ((1e9, 0, 0), 2_000_000, "is no place"),
    ((0, 0, 0), 2**63, "is no time"),
]


@pytest.mark.parametrize(("place", "time_us", "says"), POSES)
def test_a_pose_that_is_none_is_refused_and_leaves_the_session_as_it_was(
    channel, place, time_us: int, says: str
) -> None:
    client = Client(channel)
    client.go(1_000_000)
    refuses("INVALID_ARGUMENT", client.pose, time_us, *place, says=says)
    assert len(client.go(2_100_000)) > 10


def test_nan_in_a_quaternion_or_a_velocity_is_refused(channel) -> None:
    client = Client(channel)
    request = RolloutEgoTrajectory(session_uuid=client.name)
    request.trajectory.poses.add(timestamp_us=5).pose.quat.w = NAN
    refuses("INVALID_ARGUMENT", client.stub.submit_egomotion_observation, request, says="quat.w: is nan")
    with pytest.raises(grpc.RpcError, match=r"linear_velocity\.x: is nan"):
        client.pose(7, velocity=[(NAN, 0.0)])


def test_too_much_egomotion_is_refused(channel) -> None:
    client = Client(channel)
    request = RolloutEgoTrajectory(session_uuid=client.name)
    for i in range(5_000):
        request.trajectory.poses.add(timestamp_us=i)
    refuses("INVALID_ARGUMENT", client.stub.submit_egomotion_observation, request, says="5000 poses, at most")


def huge_png(width: int, height: int) -> bytes:
    """A picture whose header alone is there."""
    stream = io.BytesIO()
    Image.new("L", (1, 1)).save(stream, "PNG")
    head = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    content = bytearray(stream.getvalue())
    content[12:33] = head + zlib.crc32(head).to_bytes(4, "big")
    return bytes(content)


PICTURES = {
    "nothing": b"",
    "noise": bytes(range(256)) * 20,
    "another format": b"GIF89a" + bytes(40),
    "a program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nquit\n",
    "absurd sizes": huge_png(60_000, 60_000),
    "large": huge_png(9_000, 9_000),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_that_is_none_is_refused(channel, kind: str) -> None:
    client = Client(channel)
    client.go(1_000_000)
    refuses("INVALID_ARGUMENT", client.picture, 1_100_000, "CAM_F0", PICTURES[kind], says="CAM_F0")
    assert len(client.go(1_100_000)) > 10


def test_a_picture_of_64_mb_is_refused_by_the_wire(channel) -> None:
    client = Client(channel)
    refuses("RESOURCE_EXHAUSTED", client.picture, 0, "CAM_F0", jpeg() + bytes(60 * 2**20))


def test_a_camera_that_was_not_declared_is_refused(channel) -> None:
    refuses("INVALID_ARGUMENT", Client(channel).picture, 0, "CAM_X", says="CAM_X")


def test_a_rig_without_the_policys_cameras_is_refused(channel) -> None:
    with pytest.raises(grpc.RpcError, match=r"FAILED_PRECONDITION[\s\S]*the rig has no camera 'CAM_L0'"):
        Client(channel, cameras=("CAM_F0",))


def test_absurd_rigs_are_refused(channel) -> None:
    client = Client(channel)
    many = DriveSessionRequest(session_uuid="many")
    many.rollout_spec.vehicle.available_cameras.extend(FakeCamera(f"c{i}").available_camera() for i in range(100))
    lost = DriveSessionRequest(session_uuid="lost")
    lost.rollout_spec.vehicle.available_cameras.add(logical_id="CAM_L0").rig_to_camera.quat.w = NAN
    nameless = DriveSessionRequest()
    for request, says in ((many, "more than 64"), (lost, "quat.w: is nan"), (nameless, "session_uuid: is empty")):
        refuses(
            "INVALID_ARGUMENT", lambda r: client.stub.start_session(r, metadata=contract_metadata()), request, says=says
        )


def test_a_session_that_does_not_exist_is_not_found(channel) -> None:
    client = Client(channel)
    client.close()
    client.close()  # closing twice is no error by the contract
    for call in (client.drive, client.pose, client.pictures):
        refuses("NOT_FOUND", call, 0, says=client.name)


def test_the_same_session_twice_is_refused_and_the_first_goes_on(channel) -> None:
    client = Client(channel)
    client.go(0)
    with pytest.raises(grpc.RpcError, match="ALREADY_EXISTS"):
        Client(channel, name=client.name)
    assert len(client.go(100_000)) > 10


def test_a_route_of_rubbish_is_no_route(channel, driver) -> None:
    client = Client(channel)
    for points in ([(NAN, NAN)] * 9, [(1e30, -1e30), (-1e30, 1e30)], np.zeros((20_000, 2))):
        client.route(0, points)
        assert len(client.go(0)) > 10
    client.route(2**62, [(0, 0), (50, 0)])
    assert len(client.go(100_000)) > 10


def test_a_drive_at_no_time_is_refused(channel) -> None:
    client = Client(channel)
    request = DriveRequest(session_uuid=client.name, time_now_us=2**64 - 1, time_query_us=0)
    refuses("INVALID_ARGUMENT", client.stub.drive, request, says="time_now_us")
    plan = client.stub.drive(DriveRequest(session_uuid=client.name, time_now_us=5, time_query_us=2**64 - 1)).trajectory
    assert len(plan.poses) == 0


@pytest.mark.parametrize("count", [60, pytest.param(1_000, marks=pytest.mark.faults)])
def test_sessions_that_are_never_closed(channel, driver: PolicyDriver, count: int) -> None:
    kept: list[SessionState] = []
    begun = driver.on_session_start
    driver.on_session_start = lambda session: (kept.append(session), begun(session))  # type: ignore[method-assign, func-returns-value]
    busy = Client(channel)
    for i in range(count):
        other = Client(channel)
        if i % 3 == 0:
            busy.go(i * 100_000)
            other.go(0)
        assert len(driver._drives) <= MOST
    driver.on_session_start = begun  # type: ignore[method-assign]
    assert len(busy.go(200_000_000)) > 10  # who is heard often stays
    with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
        busy.stub.drive(DriveRequest(session_uuid=kept[5].uuid))


def test_a_client_killed_in_mid_drive(channel, address: str, driver: PolicyDriver) -> None:
    begun, gate, act = threading.Event(), threading.Event(), driver.policy.act

    def slow(*arguments: Any, **options: Any) -> Any:
        begun.set()
        gate.wait(20)
        return act(*arguments, **options)

    driver.policy.act = slow  # type: ignore[method-assign]
    text = (
        "import grpc, sys; from carla_driver_interface.protocol import DriveRequest, EgodriverServiceStub; "
        "EgodriverServiceStub(grpc.insecure_channel(sys.argv[1])).drive(DriveRequest(session_uuid=sys.argv[2]))"
    )
    client = Client(channel)
    client.pose(0)
    client.pictures(0)
    process = subprocess.Popen([sys.executable, "-c", text, address, client.name], stderr=subprocess.DEVNULL)
    try:
        assert begun.wait(60)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(20)
    finally:
        gate.set()
        driver.policy.act = act  # type: ignore[method-assign]


def test_requests_of_random_bytes_are_no_harm(channel) -> None:
    generator = np.random.default_rng(0)
    client = Client(channel)
    calls = {
        "submit_image_observation": RolloutCameraImage,
        "submit_egomotion_observation": RolloutEgoTrajectory,
        "drive": DriveRequest,
        "start_session": DriveSessionRequest,
        "close_session": DriveSessionCloseRequest,
    }
    for name, kind in calls.items():
        raw = channel.unary_unary(f"/egodriver.EgodriverService/{name}")
        head = kind(session_uuid=client.name).SerializeToString()
        for size in (0, 3, 50, 1000):
            with suppress(grpc.RpcError):
                raw(head + generator.bytes(size), timeout=20)
