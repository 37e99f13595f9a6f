"""A preflight: the contract's own fake loop drives the policy over a real socket, and a verdict comes of it."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
import torch
from carla_driver_interface.protocol import channel_options
from carla_driver_interface.testing import FakeCamera, FakeLoop

from dipole_vla.progress import console
from dipole_vla.serving.cameras import View
from dipole_vla.serving.driver import PolicyDriver
from dipole_vla.serving.server import Mode, opened
from navsim_adapter.foundation.exits import Unwell

BUDGET = 0.1  # seconds of a drive, by the challenge
MEMORY = 16 * 2**30  # bytes of GPU memory, by the challenge
SPEED = 8.0  # m/s at the start
SAME = 1e-3  # metres between paths that are the same
YAW = {"L0": 55.0, "R0": -55.0, "L1": 110.0, "R1": -110.0, "L2": 150.0, "R2": -150.0, "B0": 180.0}  # NAVSIM's rig


class Timed(grpc.UnaryUnaryClientInterceptor):
    """Seconds of every drive, as a client sees them."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        start = time.perf_counter()
        answer = continuation(details, request)
        if details.method.endswith("/drive"):
            answer.result()
            self.seconds.append(time.perf_counter() - start)
        return answer


def drive_loop(address: str, cameras: Sequence[FakeCamera], steps: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """One session of the fake loop against a server: seconds of each drive, and where the ego went (steps, 2)."""
    timed = Timed()
    with grpc.insecure_channel(address, options=channel_options()) as channel:
        loop = FakeLoop(grpc.intercept_channel(channel, timed), cameras, initial_speed_mps=SPEED)
        path = loop.run(steps, seed=seed).ego.positions
    return np.array(timed.seconds), path[:, :2]


def rig(views: Sequence[View]) -> list[FakeCamera]:
    """A camera of the fake loop for each that the policy sees, at NAVSIM's angles where its name says which."""
    return [FakeCamera(view.source, 640, 360, 64.0, yaw_left_deg=YAW.get(view.name[-2:], 0.0)) for view in views]


def preflight(driver: PolicyDriver, mode: Mode, steps: int) -> None:
    """Drive twice with one seed and print what came of it; Unwell where it would not do in the challenge."""
    with (
        tempfile.TemporaryDirectory(prefix="serve-") as folder,
        opened(driver, f"unix:{folder}/s", 0, mode, 2) as address,
    ):
        first, second = (drive_loop(address, rig(driver.views), steps) for _ in range(2))
    seconds = np.concatenate([first[0], second[0]])
    apart = float(np.abs(first[1] - second[1]).max())
    gpu = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
    median, worst = np.percentile(seconds, [50, 99])
    lines = [
        f"drives    {len(seconds)}, {driver.held} of them held; {len(driver.views)} cameras of 640 x 360",
        f"latency   p50 {1e3 * median:.0f} ms, p99 {1e3 * worst:.0f} ms, of {1e3 * BUDGET:.0f} ms",
        f"memory    {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GB resident at most",
        f"GPU       {gpu / 2**30:.1f} of {MEMORY / 2**30:.0f} GB" if gpu else "GPU       none used",
        f"repeat    the same seed's paths are {apart:.1g} m apart after {steps * 0.1:.1f} s",
    ]
    console.print("\n".join(lines), markup=False, soft_wrap=True)
    problems = _problems(worst, gpu, apart, driver.held)
    console.print(f"verdict   {'; '.join(problems) or 'fits'}", markup=False, soft_wrap=True)
    if problems:
        raise Unwell("the policy would not do in the challenge as it is served here")


def _problems(worst: float, gpu: int, apart: float, held: int) -> list[str]:
    told = (
        (worst > BUDGET, f"a drive takes more than {BUDGET:g} s: lower --candidates, distil, or --replan 0.5"),
        (gpu > MEMORY, "it takes more GPU memory than there is: lower --candidates"),
        (not apart < SAME, "the same seed gives another path"),
        (held > 0, "drives were held: the log says why"),
    )
    return [text for is_so, text in told if is_so]
