"""Ranks started by torchrun; one is killed; the others end, and the same command goes on from the checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dipole_vla.commands.fit import CHECKPOINTS
from navsim_adapter.foundation.files import MANIFEST
from tests.small_loop import small_steps

pytestmark = pytest.mark.faults

LIMIT = 600  # s, bounds hangs only


def start(loop: Path, out: Path, log: Path) -> subprocess.Popen:
    line = next(line for line in small_steps(loop) if line[1] == "fit" and line[5] == str(loop / "dipole"))
    torchrun = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "29517",
        "-m",
        "dipole_vla.cli",
    ]
    argv = [*line[1:], "--out", str(out), "--trainer.max_steps", "400", "--checkpoint_every", "5"]
    argv += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    with open(log, "a") as file:
        return subprocess.Popen(
            [sys.executable, *torchrun, *argv], stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )


def ranks(agent: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(agent)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def test_the_death_of_a_rank_ends_the_run_and_costs_nothing(loop: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "dipole", tmp_path / "said"
    agent = start(loop, out, log)
    ends = time.monotonic() + LIMIT
    while not list((out / CHECKPOINTS).glob("*.ckpt")):
        assert time.monotonic() < ends, log.read_text()
        assert agent.poll() is None, log.read_text()
        time.sleep(0.05)
    workers = ranks(agent.pid)
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    assert agent.wait(LIMIT) != 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert not (out / MANIFEST).exists()
    again = start(loop, out, log)
    assert again.wait(LIMIT) == 0, log.read_text()
    assert (out / MANIFEST).is_file()
    assert "resuming from" in log.read_text()
