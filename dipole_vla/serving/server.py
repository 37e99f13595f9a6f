"""The server: `carla_driver_interface`'s service behind a border that refuses what no session needs.

Nothing of the wire is here. The package's own `serving` shares a taken port with whoever has it, takes 64 MB a message,
keeps sessions for ever and gives a drive under way one second to end; so its service is put on a server of ours.
"""

from __future__ import annotations

import errno
import io
import itertools
import math
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import grpc
from carla_driver_interface.driver import BaseDriver
from carla_driver_interface.protocol import (
    DriveSessionCloseRequest,
    add_CarlaVehicleServiceServicer_to_server,
    add_EgodriverServiceServicer_to_server,
    channel_options,
)
from carla_driver_interface.server import bind_address
from carla_driver_interface.service import EgodriverServicer

from dipole_vla.data.pictures import UNREADABLE, check_header
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.vehicle import FARTHEST

Mode = Literal["carla", "alpasim"]
MESSAGE = 32 * 2**20  # bytes of a request: a picture of 4K as PNG fits
WAITING = 16  # calls of a session that may be under way: AlpaSim sends eight pictures, egomotion and route at once
POSES = 4096  # of egomotion in a call
CAMERAS = 64
LAST_US = 2**62
GRACE = 30.0  # seconds for drives under way when the server is told to stop
LONGEST_PATH = 107  # bytes of a Unix socket's
INVALID = grpc.StatusCode.INVALID_ARGUMENT


class Border(EgodriverServicer):
    """The package's service, for at most `most` sessions: one more closes the one that was silent the longest.

    A request that cannot be meant is refused with INVALID_ARGUMENT and leaves its session as it was.
    """

    def __init__(self, driver: BaseDriver, mode: Mode, most: int):
        super().__init__(driver, mode)
        self._most, self._opening = most, threading.Lock()
        self._heard: dict[str, float] = {}  # session -> monotonic seconds of its latest call

    def start_session(self, request: Any, context: Any) -> Any:
        problem = None if request.session_uuid else "session_uuid: is empty"
        if len(request.rollout_spec.vehicle.available_cameras) > CAMERAS:
            problem = f"available_cameras: more than {CAMERAS}"
        _refuse(context, problem or _not_numbers("rollout_spec", request.rollout_spec))
        with self._opening:
            self._make_room(request.session_uuid, context)
            answer = super().start_session(request, context)
            self._heard[request.session_uuid] = time.monotonic()
        return answer

    def close_session(self, request: Any, context: Any) -> Any:
        self._heard.pop(request.session_uuid, None)
        return super().close_session(request, context)

    def submit_image_observation(self, request: Any, context: Any) -> Any:
        _refuse(context, _picture_problem(request.camera_image))
        return self._hear(super().submit_image_observation, request, context)

    def submit_egomotion_observation(self, request: Any, context: Any) -> Any:
        _refuse(context, _egomotion_problem(request.trajectory.poses, request.dynamic_states))
        return self._hear(super().submit_egomotion_observation, request, context)

    def submit_route(self, request: Any, context: Any) -> Any:
        return self._hear(super().submit_route, request, context)

    def drive(self, request: Any, context: Any) -> Any:
        _refuse(context, _time_problem("time_now_us", request.time_now_us))
        try:
            return self._hear(super().drive, request, context)
        except InputError as problem:
            context.abort(INVALID, str(problem))

    def _hear(self, call: Callable[[Any, Any], Any], request: Any, context: Any) -> Any:
        if request.session_uuid in self._heard:
            self._heard[request.session_uuid] = time.monotonic()
        return call(request, context)

    def _make_room(self, coming: str, context: Any) -> None:
        while len(self._heard) >= self._most and coming not in self._heard:
            silent = min(self._heard, key=self._heard.__getitem__)
            self.close_session(DriveSessionCloseRequest(session_uuid=silent), context)


def _refuse(context: Any, problem: str | None) -> None:
    if problem:
        context.abort(INVALID, problem)


def _picture_problem(picture: Any) -> str | None:
    try:
        check_header(io.BytesIO(picture.image_bytes))
    except UNREADABLE as problem:
        return f"picture of {picture.logical_id!r}: cannot be read ({problem})"
    return _time_problem("frame_end_us", picture.frame_end_us)


def _egomotion_problem(poses: Sequence[Any], states: Sequence[Any]) -> str | None:
    if len(poses) > POSES:
        return f"trajectory: {len(poses)} poses, at most {POSES} a call"
    for pose in poses:
        problem = _time_problem("trajectory", pose.timestamp_us) or _not_numbers("trajectory", pose.pose)
        if problem is None and max(abs(pose.pose.vec.x), abs(pose.pose.vec.y)) > FARTHEST:
            problem = f"trajectory: ({pose.pose.vec.x}, {pose.pose.vec.y}) is no place"
        if problem:
            return problem
    return next(filter(None, (_not_numbers("dynamic_states", state) for state in states)), None)


def _time_problem(name: str, time_us: int) -> str | None:
    return f"{name}: {time_us} us is no time" if time_us > LAST_US else None


def _not_numbers(name: str, message: Any) -> str | None:
    """Which field of a message holds NaN or infinity."""
    for field, value in message.ListFields():
        for each in value if field.is_repeated else [value]:
            inner = f"{name}.{field.name}"
            if field.message_type is not None:
                problem = _not_numbers(inner, each)
            else:
                is_lost = isinstance(each, float) and not math.isfinite(each)
                problem = f"{inner}: is {each}" if is_lost else None
            if problem:
                return problem
    return None


@contextmanager
def opened(driver: BaseDriver, host: str, port: int, mode: Mode, most: int) -> Iterator[str]:
    """A server for the block's time; yields the address to dial. InputError where the address is taken or no address.

    host: a name or number, or unix:PATH, where port is not used; port: 0 takes a free one. most: sessions at once.
    """
    path = Path(host.removeprefix("unix:")) if host.startswith("unix:") else None
    if path:
        _refuse_taken_socket(path)
    else:
        _refuse_taken(host, port)
    options = {**dict(channel_options()), "grpc.max_receive_message_length": MESSAGE, "grpc.so_reuseport": 0}
    workers = ThreadPoolExecutor(most + WAITING, "calls")
    server = grpc.server(workers, options=list(options.items()), maximum_concurrent_rpcs=(most + 1) * WAITING)
    border = Border(driver, mode, most)
    add_EgodriverServiceServicer_to_server(border, server)
    add_CarlaVehicleServiceServicer_to_server(border, server)
    address = bind_address(host, port)
    try:
        bound = server.add_insecure_port(address)
    except RuntimeError as problem:
        raise InputError(f"{address}: cannot be opened ({problem}); choose another --port or --socket") from problem
    server.start()
    try:
        yield address if path else bind_address(host, bound)
    finally:
        server.stop(GRACE).wait()
        if path:
            path.unlink(missing_ok=True)


def until_told() -> None:
    """Wait for SIGTERM or SIGINT."""
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    told.wait()


def _refuse_taken(host: str, port: int) -> None:
    """gRPC itself would say so in its own words, on several lines, or make do with the one address that is free."""
    try:
        places = {(found[0], found[4]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
        problems = [problem for problem in itertools.starmap(_bind_problem, places) if problem]
        taken = [problem for problem in problems if problem.errno == errno.EADDRINUSE]
        if taken or len(problems) == len(places):
            raise (taken or problems)[0]
    except (OSError, OverflowError, UnicodeError) as problem:
        why = getattr(problem, "strerror", None) or problem
        raise InputError(f"--port: {host}:{port} cannot be opened ({why}); choose another") from problem


def _bind_problem(family: int, place: Any) -> OSError | None:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as problem:
        return problem
    return None


def _refuse_taken_socket(path: Path) -> None:
    if len(str(path).encode()) > LONGEST_PATH:
        raise InputError(f"--socket: {path} is longer than {LONGEST_PATH} bytes; choose a shorter path")
    if not path.parent.is_dir():
        raise InputError(f"--socket: there is no folder {path.parent}; make it, or choose another path")
    if not path.exists():
        return
    if not path.is_socket():
        raise InputError(f"--socket: {path} is there and is no socket; choose another path")
    with socket.socket(socket.AF_UNIX) as probe, suppress(ConnectionRefusedError):
        probe.connect(str(path))
        raise InputError(f"--socket: {path} is another server's; stop it, or choose another path")
