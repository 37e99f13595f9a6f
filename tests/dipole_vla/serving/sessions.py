"""Both ends of the contract for tests: a policy that drives straight and notes what it saw, and a client by hand."""

from __future__ import annotations

import io
import uuid
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import torch
from carla_driver_interface.contract import CONTRACT_REVISION, contract_metadata
from carla_driver_interface.geometry import Pose, Trajectory, waypoints_to_proto
from carla_driver_interface.inprocess import InProcessChannel
from carla_driver_interface.protocol import (
    DriveRequest,
    DriveSessionCloseRequest,
    DriveSessionRequest,
    DynamicState,
    EgodriverServiceStub,
    RolloutCameraImage,
    RolloutEgoTrajectory,
    Route,
    RouteRequest,
    Vec3,
    add_EgodriverServiceServicer_to_server,
    channel_options,
)
from carla_driver_interface.testing import FakeCamera
from PIL import Image

from dipole_vla.policy import ActionSpec
from dipole_vla.serving.cameras import views
from dipole_vla.serving.driver import PolicyDriver, Setting
from dipole_vla.serving.server import Border
from dipole_vla.solvers import SolverSpec

CAMERAS = ("CAM_L0", "CAM_F0", "CAM_R0")


class Straight:
    """A policy that goes on straight at the speed it sees."""

    def __init__(self, cameras: Sequence[str] = CAMERAS):
        self.backbone = SimpleNamespace(solver=SolverSpec(), action=ActionSpec())
        self.device, self.noise_shape, self.fingerprint = torch.device("cpu"), (8, 4), "0" * 64
        self.rows: list[dict[str, Any]] = []
        self.pictures: list[dict[str, Image.Image]] = []
        self.passes: list[int] = []
        self.noise: list[torch.Tensor] = []
        self.broken = False
        self.processor = self
        self.cameras = tuple(cameras)

    def __call__(self, row: dict[str, Any], pictures: dict[str, Image.Image]) -> dict[str, torch.Tensor]:
        self.rows.append(row)
        self.pictures.append(pictures)
        return {"speed": torch.tensor(row["velocity"][0])}

    def act(self, observation: Any, omega: Any, candidates: int, noise: torch.Tensor, *_: Any, **__: Any) -> Any:
        speed = observation["speed"]
        self.passes.append(len(speed))
        self.noise.append(noise)
        plan = torch.zeros(len(speed), 8, 3)
        plan[..., 0] = speed[:, None] * torch.arange(1, 9) * 0.5
        return plan * float("nan") if self.broken else plan


def jpeg(width: int = 32, height: int = 18, colour: tuple[int, int, int] = (90, 90, 90)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(stream, "JPEG")
    return stream.getvalue()


class Client:
    """A session, call by call."""

    def __init__(self, channel: grpc.Channel, cameras: Sequence[str] = CAMERAS, seed: int = 0, name: str = ""):
        self.stub, self.name = EgodriverServiceStub(channel), name or str(uuid.uuid4())
        request = DriveSessionRequest(session_uuid=self.name, random_seed=seed)
        declared = [FakeCamera(camera, 32, 18).available_camera() for camera in cameras]
        request.rollout_spec.vehicle.available_cameras.extend(declared)
        self.stub.start_session(request, metadata=contract_metadata(CONTRACT_REVISION))

    def pose(self, time_us: int, x: float = 0.0, y: float = 0.0, heading: float = 0.0, **motion: Any) -> None:
        self.poses([time_us], [(x, y, heading)], **motion)

    def poses(self, times: Sequence[int], poses: Any, velocity: Any = None, acceleration: Any = None) -> None:
        """poses (n, 3), velocity and acceleration (n, 2), or nothing, which sends no such field."""
        trajectory = Trajectory(list(times), [Pose.from_xyz_yaw(x, y, 0.0, heading) for x, y, heading in poses])
        request = RolloutEgoTrajectory(session_uuid=self.name, trajectory=trajectory.to_proto())
        for i in range(len(times) if velocity is not None else 0):
            state = DynamicState(linear_velocity=Vec3(x=velocity[i][0], y=velocity[i][1]))
            if acceleration is not None:
                state.linear_acceleration.CopyFrom(Vec3(x=acceleration[i][0], y=acceleration[i][1]))
            request.dynamic_states.append(state)
        self.stub.submit_egomotion_observation(request)

    def route(self, time_us: int, points: Any) -> None:
        """points: (n, 2) in the rig frame of that time."""
        flat = np.column_stack([np.asarray(points, float), np.zeros(len(points))])
        route = Route(timestamp_us=time_us, waypoints=waypoints_to_proto(flat))
        self.stub.submit_route(RouteRequest(session_uuid=self.name, route=route))

    def picture(self, time_us: int, camera: str, content: bytes | None = None) -> None:
        request = RolloutCameraImage(session_uuid=self.name)
        request.camera_image.logical_id = camera
        request.camera_image.frame_start_us = request.camera_image.frame_end_us = time_us
        request.camera_image.image_bytes = jpeg() if content is None else content
        self.stub.submit_image_observation(request)

    def pictures(self, time_us: int) -> None:
        for camera in CAMERAS:
            self.picture(time_us, camera)

    def drive(self, time_us: int, step_us: int = 100_000) -> Trajectory:
        request = DriveRequest(session_uuid=self.name, time_now_us=time_us, time_query_us=time_us + step_us)
        return Trajectory.from_proto(self.stub.drive(request).trajectory)

    def go(self, time_us: int, speed: float = 8.0) -> Trajectory:
        """Everything a drive needs, and the drive."""
        self.pose(time_us, speed * time_us * 1e-6, velocity=[(speed, 0.0)])
        self.pictures(time_us)
        return self.drive(time_us)

    def close(self) -> None:
        self.stub.close_session(DriveSessionCloseRequest(session_uuid=self.name))


def straight_driver(cameras: Any = None, **setting: Any) -> PolicyDriver:
    policy = Straight()
    return PolicyDriver(policy, views(policy.cameras, cameras or {}), Setting(omega=None, **setting))  # type: ignore[arg-type]


def in_process(driver: PolicyDriver, most: int = 8, mode: Any = "carla") -> InProcessChannel:
    """The service with its border, without a socket; every byte as on one."""
    channel = InProcessChannel(channel_options())
    add_EgodriverServiceServicer_to_server(Border(driver, mode, most), channel)
    return channel
