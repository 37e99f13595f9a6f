"""The real engine on two CPU ranks: the run is the one of a single process, at every stage, across restarts.

Two ranks with two scenes each are one process that accumulates two batches of two: same data, same noise. The single
process is therefore the truth, and DeepSpeed's arithmetic on it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dipole_vla.training.fit import CHECKPOINTS
from tests.dipole_vla.checkpoints import same_state
from tests.small_loop import small_steps

pytestmark = pytest.mark.slow

STRATEGY = "{class_path: dipole_vla.training.deepspeed.PairDeepSpeed, init_args: {stage: %d}}"
STEPS, HALF = 6, 4


def train(loop: Path, out: Path, *more: str) -> None:
    line = next(line for line in small_steps(loop) if line[1] == "fit" and line[5] == str(loop / "dipole"))
    argv = [*line[1:], "--out", str(out), "--trainer.max_steps", str(STEPS), "--data.batch_size", "2", *more]
    done = subprocess.run(
        [sys.executable, "-m", "dipole_vla.cli", *argv],
        capture_output=True, text=True, timeout=900, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def halfway(run: Path, out: Path) -> Path:
    """The folder as a kill after step HALF would leave it."""
    shutil.copytree(run, out)
    for path in (*out.glob("*.json"), *(out / CHECKPOINTS).glob(f"*{STEPS:08d}.ckpt")):
        if path.name != "stage.json":
            path.unlink()
    for name in ("positive", "negative", "critic"):
        shutil.rmtree(out / name)
    return out


def adapters(run: Path) -> dict[str, torch.Tensor]:
    return {
        f"{sign}.{name}": tensor
        for sign in ("positive", "negative")
        for name, tensor in load_file(run / sign / "adapter_model.safetensors").items()
    }


@pytest.fixture(scope="module")
def single(loop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("single") / "dipole"
    train(loop, out, "--trainer.accumulate_grad_batches", "2")
    return out


@pytest.fixture(scope="module")
def second_stage(loop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stage2") / "dipole"
    train(loop, out, "--trainer.devices", "2", "--trainer.strategy", STRATEGY % 2)
    return out


def close(one: Path, two: Path) -> None:
    first, second = adapters(one), adapters(two)
    assert first.keys() == second.keys()
    moved = max(float(t.abs().max()) for name, t in first.items() if "lora_B" in name)
    assert moved > 1e-4  # they start at zero
    for name in first:
        assert first[name].dtype == second[name].dtype == torch.float32
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=1e-2 * moved)
    configs = [
        (run / sign / "adapter_config.json").read_text() for run in (one, two) for sign in ("positive", "negative")
    ]
    assert configs[:2] == configs[2:]


def test_stage_2_is_the_single_process(single: Path, second_stage: Path) -> None:
    close(single, second_stage)


@pytest.mark.parametrize("stage", [1, 3])
def test_another_stage_is_the_single_process(loop: Path, single: Path, tmp_path: Path, stage: int) -> None:
    train(loop, tmp_path / "x", "--trainer.devices", "2", "--trainer.strategy", STRATEGY % stage)
    close(single, tmp_path / "x")


def test_plain_data_parallel_is_the_single_process(loop: Path, single: Path, tmp_path: Path) -> None:
    train(loop, tmp_path / "x", "--trainer.devices", "2", "--trainer.strategy", "ddp")
    close(single, tmp_path / "x")


def test_a_killed_run_resumes_to_the_bit(loop: Path, second_stage: Path, tmp_path: Path) -> None:
    out = halfway(second_stage, tmp_path / "x")
    train(loop, out, "--trainer.devices", "2", "--trainer.strategy", STRATEGY % 2)
    last = f"{CHECKPOINTS}/step={STEPS:08d}.ckpt"
    assert same_state(second_stage / last, out / last)


def test_a_checkpoint_resumes_at_another_stage(loop: Path, single: Path, second_stage: Path, tmp_path: Path) -> None:
    out = halfway(second_stage, tmp_path / "x")
    train(loop, out, "--trainer.devices", "2", "--trainer.strategy", STRATEGY % 3)
    close(single, out)


def test_a_checkpoint_of_two_ranks_resumes_on_one_without_the_engine(
    loop: Path, single: Path, second_stage: Path, tmp_path: Path
) -> None:
    out = halfway(second_stage, tmp_path / "x")
    began = (out / "stage.json").read_text()
    (out / "stage.json").write_text(began.replace('"accumulate_grad_batches": 1', '"accumulate_grad_batches": 2'))
    train(loop, out, "--trainer.accumulate_grad_batches", "2")
    close(single, out)


def test_checkpoints_hold_what_trains_and_nothing_else(second_stage: Path) -> None:
    path = second_stage / CHECKPOINTS / f"step={STEPS:08d}.ckpt"
    saved = torch.load(path, weights_only=True)
    trained = sum(tensor.numel() for tensor in adapters(second_stage).values())
    assert all("lora_" in name for name in saved["state_dict"])
    moments = [tensor for state in saved["optimizer_states"][0]["state"].values() for tensor in state.values()]
    assert sum(tensor.numel() for tensor in saved["state_dict"].values()) == trained
    assert sum(tensor.numel() for tensor in moments if tensor.ndim) == 2 * trained
    assert path.stat().st_size < 1.2 * 12 * trained + 200_000
