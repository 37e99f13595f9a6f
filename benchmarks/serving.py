"""What a drive costs through the server, beside the bare `policy.act`: one table, one run.

    python benchmarks/serving.py                      # a DP-VLA at a quarter of its width (minutes)
    python benchmarks/serving.py --quick              # a tiny one
    python benchmarks/serving.py --policy DIR         # a policy of yours; --device cuda
    python benchmarks/serving.py --memory 10000       # memory after the 100th and the last of so many drives, too

The client is in this process and sends bytes made before. Sessions drive in step: a round ends when each is answered.
Bare is what any use of the policy takes for as many scenes, from resized pictures on: its processor for each, and one
`act` for all. Bare and served are measured in turns. CPU is that of all threads, the client's too. Pictures are decoded
and resized before the drive, as they come; what that takes stands above the table.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import grpc
import numpy as np
import torch
from carla_driver_interface.contract import contract_metadata
from carla_driver_interface.geometry import Pose, Trajectory, waypoints_to_proto
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
    channel_options,
)
from carla_driver_interface.testing import FakeCamera
from PIL import Image
from sampling import make_policy
from torch.utils.data import default_collate

from dipole_vla.backbones.base import Showing
from dipole_vla.backbones.example import SCENE, example_observation
from dipole_vla.data.pictures import decoded
from dipole_vla.policy import GuidedPolicy, load_policy
from dipole_vla.policy.critic import CriticConfig, OneStepCritic
from dipole_vla.serving.cameras import views
from dipole_vla.serving.driver import PolicyDriver, Setting
from dipole_vla.serving.server import opened

STEP_US = 100_000
OMEGA = 1.0


@dataclass(frozen=True)
class Cost:
    """Seconds: of each drive as its client sees it; of a round by the clock and of CPU, the medians."""

    drives: np.ndarray
    wall: float
    cpu: float


class Session:
    """One client: everything a drive needs is sent before its clock starts."""

    def __init__(self, address: str, cameras: Sequence[str], picture: bytes):
        self.channel = grpc.insecure_channel(address, options=channel_options())
        self.stub, self.now_us, self.name = EgodriverServiceStub(self.channel), 0, f"session-{id(self)}"
        request = DriveSessionRequest(session_uuid=self.name)
        declared = [FakeCamera(name).available_camera() for name in cameras]
        request.rollout_spec.vehicle.available_cameras.extend(declared)
        self.stub.start_session(request, metadata=contract_metadata())
        self.cameras, self.picture = cameras, picture

    def observe(self) -> None:
        self.now_us += STEP_US
        pose = Trajectory([self.now_us], [Pose.from_xyz_yaw(8e-6 * self.now_us, 0.0, 0.0, 0.0)]).to_proto()
        state = DynamicState(linear_velocity=Vec3(x=8.0), linear_acceleration=Vec3())
        self.stub.submit_egomotion_observation(
            RolloutEgoTrajectory(session_uuid=self.name, trajectory=pose, dynamic_states=[state])
        )
        ahead = np.column_stack([np.arange(0, 80, 4.0), np.zeros(20), np.zeros(20)])
        route = Route(timestamp_us=self.now_us, waypoints=waypoints_to_proto(ahead))
        self.stub.submit_route(RouteRequest(session_uuid=self.name, route=route))
        for camera in self.cameras:
            request = RolloutCameraImage(session_uuid=self.name)
            request.camera_image.logical_id, request.camera_image.image_bytes = camera, self.picture
            request.camera_image.frame_start_us = request.camera_image.frame_end_us = self.now_us
            self.stub.submit_image_observation(request)

    def drive(self) -> float:
        start = time.perf_counter()
        request = DriveRequest(session_uuid=self.name, time_now_us=self.now_us, time_query_us=self.now_us + STEP_US)
        answer = self.stub.drive(request)
        assert len(answer.trajectory.poses) > 1
        return time.perf_counter() - start

    def close(self) -> None:
        self.stub.close_session(DriveSessionCloseRequest(session_uuid=self.name))
        self.channel.close()


@contextmanager
def served(policy: GuidedPolicy, count: int, candidates: int, replan: float, picture: bytes) -> Iterator[list[Session]]:
    cameras = policy.processor.cameras
    setting = Setting(OMEGA if policy.pair else None, candidates, replan=replan)
    driver = PolicyDriver(policy, views(cameras, {}), setting)
    driver.warm_up()
    with (
        tempfile.TemporaryDirectory(prefix="s-") as folder,
        opened(driver, f"unix:{folder}/s", 0, "carla", 32) as address,
    ):
        sessions = [Session(address, cameras, picture) for _ in range(count)]
        yield sessions
        for session in sessions:
            session.close()


def driven(sessions: Sequence[Session], rounds: int, between: Callable[[], None] = lambda: None) -> Cost:
    drives, walls, cpus = [], [], []
    with ThreadPoolExecutor(len(sessions)) as pool:
        for _ in range(rounds):
            for session in sessions:
                session.observe()
            wall, cpu = time.perf_counter(), time.process_time()
            drives += pool.map(Session.drive, sessions)
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
            between()
    return Cost(np.array(drives), float(np.median(walls)), float(np.median(cpus)))


def shown(policy: GuidedPolicy, picture: bytes) -> Image.Image | torch.Tensor:
    """What the driver makes of a picture as it comes."""
    image, processor = decoded(io.BytesIO(picture)), policy.processor
    return processor.shown(image) if isinstance(processor, Showing) else image


def bare(policy: GuidedPolicy, scenes: int, candidates: int, picture: bytes) -> Callable[[], None]:
    """From pictures that are decoded and resized to plans."""
    pictures = {name: shown(policy, picture) for name in policy.processor.cameras}
    noise, omega = torch.randn(scenes, candidates, *policy.noise_shape), OMEGA if policy.pair else None
    processor: Any = policy.processor

    def act() -> None:
        rows = default_collate([processor(SCENE, pictures) for _ in range(scenes)])
        seen = {name: value.to(policy.device) for name, value in rows.items()}
        with torch.inference_mode():
            policy.act(seen, omega, candidates, noise).cpu()

    return act


def seconds(work: Callable[[], object], times: int) -> tuple[float, float]:
    """Median by the clock and of CPU."""
    found = []
    for _ in range(times):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        found.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall, cpu = np.median(found, axis=0)
    return float(wall), float(cpu)


def _said(found: tuple[float, float]) -> str:
    wall, cpu = found
    return f"{1e3 * cpu:.0f} ms of CPU, {1 / wall:.0f} a second"


def jpeg(size: str) -> bytes:
    """A picture of a street's worth of detail. size: WIDTHxHEIGHT."""
    noise = np.random.default_rng(0).integers(0, 255, (68, 120, 3)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).resize([int(side) for side in size.split("x")], Image.Resampling.BICUBIC).save(
        stream, "JPEG", quality=90
    )
    return stream.getvalue()


def with_critic(policy: GuidedPolicy) -> GuidedPolicy:
    """A random critic where there is none: what it costs does not depend on its weights."""
    if policy.critic is None:
        context = policy.encode(example_observation(policy.backbone, 1)).encoded(None)
        width = policy.backbone.features(context).shape[1]
        policy.critic = OneStepCritic(CriticConfig(feature_dim=width, horizon=policy.noise_shape[0])).eval()
    return policy


def resident() -> float:
    """MB of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(policy: GuidedPolicy, options: argparse.Namespace, picture: bytes) -> None:
    decoding = seconds(lambda: decoded(io.BytesIO(picture)), options.rounds)
    both = seconds(lambda: shown(policy, picture), options.rounds)
    print(f"a picture of {options.size}, decoded: {_said(decoding)}; decoded and resized: {_said(both)}\n")
    print("| sessions | N | replan | p50, ms | p99, ms | CPU a round, ms | bare, ms | served / bare | of one session |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for candidates in options.candidates:
        for replan in options.replan:
            one = None
            for sessions in options.sessions:
                act, acts = bare(policy, sessions, candidates, picture), list[tuple[float, float]]()
                act()
                with served(policy, sessions, candidates, replan, picture) as clients:
                    driven(clients, 2)
                    cost = driven(clients, options.rounds, lambda: acts.append(seconds(act, 1)))  # noqa: B023
                alone = float(np.median([cpu for _, cpu in acts]))
                one = one or cost.cpu
                p50, p99 = 1e3 * np.percentile(cost.drives, [50, 99])
                print(
                    f"| {sessions} | {candidates} | {replan:g} | {p50:.0f} | {p99:.0f} | {1e3 * cost.cpu:.0f} | "
                    f"{1e3 * alone:.0f} | {cost.cpu / alone:.2f} | {cost.cpu / one:.2f} |",
                    flush=True,
                )


def memory(policy: GuidedPolicy, drives: int, picture: bytes) -> None:
    with served(policy, 1, 1, 0.5, picture) as [session]:
        for drive in range(1, drives + 1):
            session.observe()
            session.drive()
            if drive in (100, drives):
                print(f"resident after {drive:6d} drives: {resident():.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--policy", type=Path, help="a policy folder; default is one of random weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--replan", type=float, nargs="+", default=[0.0, 0.5])
    parser.add_argument("--size", default="1920x1080", help="of the pictures")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--memory", type=int, default=0, metavar="DRIVES")
    options = parser.parse_args()
    torch.set_num_threads(1)
    policy = load_policy(options.policy, device=options.device) if options.policy else make_policy(options.quick, 8)
    policy, picture = with_critic(policy), jpeg(options.size)
    size = sum(parameter.numel() for parameter in policy.backbone.parameters()) / 1e6
    print(f"{policy.backbone.family}, {size:.0f} M parameters, on {policy.device}, {torch.get_num_threads()} thread\n")
    measure(policy, options, picture)
    if options.memory:
        memory(policy, options.memory, picture)


if __name__ == "__main__":
    main()
