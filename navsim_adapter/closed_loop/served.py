"""A driver behind a port that speaks AlpaSim's egodriver contract; `carla-driver-interface` knows the wire.

The contract's local frame has its origin where the car starts and the map's axes: the messages hold 32 bit numbers, too
few for a northing. What is sent before a plan: the egomotion since the last one (of a second and a half at first), the
way ahead, and the pictures of the present.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from navsim_adapter.closed_loop.course import START, STEP_US, Course
from navsim_adapter.closed_loop.drive import Drive, Manner, Plan, View, drive
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.synthetic.cameras import CAMERAS, HEIGHT, HORIZON, PICTURED, WIDTH, Camera
from navsim_adapter.synthetic.cameras import FOCAL as FOCAL_LENGTH
from navsim_adapter.synthetic.world import EgoState
from navsim_adapter.vehicle import FARTHEST

PAST = 15  # steps of egomotion that are told at first: all that the log's four frames hold
WAY_AHEAD = 100.0  # m
PATIENCE = 60.0  # s that a call may take
_LAST_US = 2**62  # the wire's times are unsigned


def ask_name(address: str) -> str:
    """What the driver at `address` calls itself; raises InputError where none answers, or the extra is missing."""
    with _channel(address) as stub:
        from carla_driver_interface.contract import negotiate

        return str(_asked(address, lambda: negotiate(stub, timeout=PATIENCE))[0].version_id)


@dataclass(frozen=True)
class Served:
    address: str
    name: str

    def drive(self, course: Course, manner: Manner, seed: int) -> Drive:
        with _channel(self.address) as stub:
            session = _Session(self.address, stub, course)
            session.open(seed)
            try:
                return drive(course, session.plan, manner, seed)
            finally:
                session.close()


@dataclass
class _Session:
    address: str
    stub: Any
    course: Course
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    told: int = START - PAST - 1  # the last step whose egomotion the driver knows
    is_over: bool = False  # the driver has ended the session: no more plans

    @property
    def origin(self) -> np.ndarray:
        start = self.course.human[START].ego
        return np.array([start.x, start.y, 0.0])

    def call(self, name: str, request: Any, **more: Any) -> Any:
        return _asked(self.address, lambda: getattr(self.stub, name)(request, timeout=PATIENCE, **more))

    def open(self, seed: int) -> None:
        from carla_driver_interface.contract import camera_to_revision, contract_metadata, negotiate
        from carla_driver_interface.protocol import DriveSessionRequest

        _, revision = _asked(self.address, lambda: negotiate(self.stub, timeout=PATIENCE))
        request = DriveSessionRequest(session_uuid=self.id, random_seed=seed)
        request.debug_info.scene_id = self.course.name
        request.rollout_spec.vehicle.available_cameras.extend(
            camera_to_revision(_declared(camera), 2, revision) for camera in CAMERAS if camera.name in PICTURED
        )
        self.call("start_session", request, metadata=contract_metadata(revision))

    def close(self) -> None:
        """A driver that is gone closes nothing; what was driven with it has been said already."""
        import grpc
        from carla_driver_interface.protocol import DriveSessionCloseRequest

        with suppress(grpc.RpcError):
            self.stub.close_session(DriveSessionCloseRequest(session_uuid=self.id), timeout=PATIENCE)

    def plan(self, view: View) -> Plan | None:
        from carla_driver_interface.protocol import DriveRequest

        if self.is_over:
            return None
        self._tell_motion(view)
        self._tell_way(view)
        self._show(view)
        request = DriveRequest(session_uuid=self.id, time_now_us=view.time_us, time_query_us=view.time_us + STEP_US)
        answer = self.call("drive", request)
        self.is_over = bool(answer.terminate_session)
        return None if self.is_over else _plan_of(answer.trajectory, self.origin)

    def _tell_motion(self, view: View) -> None:
        from carla_driver_interface.geometry import Trajectory
        from carla_driver_interface.protocol import RolloutEgoTrajectory

        steps = range(self.told + 1, view.step + 1)
        egos = [view.past[step].ego for step in steps[:-1]] + [view.ego]
        times = [self.course.time_us(step) for step in steps]
        request = RolloutEgoTrajectory(session_uuid=self.id)
        request.trajectory.CopyFrom(Trajectory(times, [self._pose(ego) for ego in egos]).to_proto())
        request.dynamic_states.extend(map(_motion, egos))
        self.call("submit_egomotion_observation", request)
        self.told = view.step

    def _tell_way(self, view: View) -> None:
        from carla_driver_interface.geometry import waypoints_to_proto
        from carla_driver_interface.protocol import Route, RouteRequest

        points = self.course.way.ahead(view.ego.s, WAY_AHEAD)
        there = np.column_stack([points, np.zeros(len(points))]) - self.origin
        here = self._pose(view.ego).inverse().transform_points(there)
        route = Route(timestamp_us=view.time_us, waypoints=waypoints_to_proto(here))
        self.call("submit_route", RouteRequest(session_uuid=self.id, route=route))

    def _show(self, view: View) -> None:
        from carla_driver_interface.protocol import RolloutCameraImage

        for name, content in self.course.pictures(view.past[-1]).items():
            request = RolloutCameraImage(session_uuid=self.id)
            image = request.camera_image
            image.logical_id, image.image_bytes = name, content
            image.frame_start_us = image.frame_end_us = view.time_us
            self.call("submit_image_observation", request)

    def _pose(self, ego: EgoState) -> Any:
        from carla_driver_interface.geometry import Pose

        return Pose.from_xyz_yaw(ego.x - self.origin[0], ego.y - self.origin[1], 0.0, ego.heading)


def _plan_of(trajectory: Any, origin: np.ndarray) -> Plan | None:
    """The contract's trajectory in the map's frame; None for one without poses, or that is no path in time."""
    from carla_driver_interface.geometry import Trajectory

    numbers = [(p.pose.vec.x, p.pose.vec.y, *(getattr(p.pose.quat, axis) for axis in "wxyz")) for p in trajectory.poses]
    times = [p.timestamp_us for p in trajectory.poses]
    is_path = all(before < after for before, after in pairwise([-1, *times, _LAST_US]))
    if not times or not is_path or not np.abs(numbers).max() <= FARTHEST:  # NaN is not
        return None
    poses = Trajectory.from_proto(trajectory).poses
    return Plan(np.array(times), np.array([(*pose.position[:2] + origin[:2], pose.yaw) for pose in poses]))


def _motion(ego: EgoState) -> Any:
    from carla_driver_interface.protocol import DynamicState, Vec3

    return DynamicState(
        linear_velocity=Vec3(x=ego.velocity[0], y=ego.velocity[1]),
        linear_acceleration=Vec3(x=ego.acceleration[0], y=ego.acceleration[1]),
        angular_velocity=Vec3(z=ego.yaw_rate),
    )


def _declared(camera: Camera) -> Any:
    """The camera with its pinhole and its optical frame (x right, y down, z ahead) in the rig."""
    from carla_driver_interface.geometry import Pose
    from carla_driver_interface.protocol import (
        AvailableCamera,
        CameraSpec,
        OpenCVPinholeCameraParam,
        ShutterType,
    )
    from scipy.spatial.transform import Rotation

    pinhole = OpenCVPinholeCameraParam(
        principal_point_x=WIDTH / 2, principal_point_y=HORIZON,
        focal_length_x=FOCAL_LENGTH, focal_length_y=FOCAL_LENGTH,
    )  # fmt: skip
    spec = CameraSpec(
        opencv_pinhole_param=pinhole, logical_id=camera.name, resolution_w=WIDTH, resolution_h=HEIGHT,
        shutter_type=ShutterType.GLOBAL,
    )  # fmt: skip
    pose = Pose.from_rotation(np.array(camera.position), Rotation.from_matrix(camera.rotation))
    return AvailableCamera(intrinsics=spec, rig_to_camera=pose.to_proto(), logical_id=camera.name)


@contextmanager
def _channel(address: str) -> Iterator[Any]:
    port = address.rpartition(":")[2]
    if port.isdigit() and not 0 < int(port) < 2**16:  # gRPC takes what is left of it in 16 bits
        raise InputError(f"--driver {address}: ports are 1 to 65535")
    try:
        import grpc
        from carla_driver_interface.protocol import EgodriverServiceStub, channel_options
    except ImportError as problem:
        raise InputError(
            f"--driver {address}: {problem.name} is not installed; pip install 'dipole-vla[drive]'"
        ) from None
    with grpc.insecure_channel(address, options=channel_options()) as channel:
        yield EgodriverServiceStub(channel)


def _asked(address: str, call: Callable[[], Any]) -> Any:
    """A call's answer; raises InputError with what the driver, or the lack of one, said."""
    import grpc
    from carla_driver_interface.contract import ContractError

    try:
        return call()
    except ContractError as problem:
        raise InputError(f"--driver {address}: {problem}") from problem
    except grpc.RpcError as problem:
        code, said = problem.code().name, " ".join(str(problem.details()).split())[:200]
        if problem.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            raise InputError(
                f"--driver {address}: no driver answers there ({code}: {said}); start it and run the same command "
                "again, finished drives are kept"
            ) from None
        raise InputError(f"--driver {address}: the driver failed ({code}: {said}); finished drives are kept") from None
