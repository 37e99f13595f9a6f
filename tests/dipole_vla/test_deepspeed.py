"""The real engine on two CPU ranks: the run is the one of a single process, at every stage, across restarts.

Two ranks that accumulate two batches of a scene each are one process that accumulates four: same data, same noise. The
single process is therefore the truth, loss by loss, and DeepSpeed's arithmetic is measured on it. The finer measure, of
moments and gradients in all settings, is `test_accumulation.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks import LIMIT, ROOT, free_port
from safetensors.torch import load_file

from dipole_vla.commands.fit import CHECKPOINTS
from tests.dipole_vla.checkpoints import same_state
from tests.dipole_vla.rank_callbacks import losses
from tests.small_loop import small_steps

pytestmark = pytest.mark.slow

STEPS, HALF, SCENES = 6, 4, 4
ALONE = ["--trainer.accumulate_grad_batches", str(SCENES)]
FSDP2 = json.dumps({"class_path": "dipole_vla.training.sharded.ShardedBackbone"})
CALLBACKS = "tests.dipole_vla.rank_callbacks"


STARTERS = {
    "lightning": ["-m"],
    "torchrun": ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port(), "-m"],
    "accelerate": [
        "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", free_port(), "-m",
    ],
}  # fmt: skip


def start(loop: Path, out: Path, *more: str, starter: str = "lightning", callbacks: list | None = None):
    """`dipole-vla fit` on one scene a batch, in processes of its own."""
    line = next(line for line in small_steps(loop) if line[1] == "fit" and line[5] == str(loop / "dipole"))
    record = {"class_path": f"{CALLBACKS}.LossRecord", "init_args": {"folder": str(record_of(out))}}
    argv = [*line[1:], "--out", str(out), "--trainer.max_steps", str(STEPS), "--data.batch_size", "1", *more]
    argv += ["--allow-import", "tests", "--trainer.callbacks", json.dumps([*(callbacks or []), record])]
    return subprocess.run(
        [sys.executable, *STARTERS[starter], "dipole_vla.cli", *argv],
        capture_output=True, text=True, timeout=LIMIT, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def train(loop: Path, out: Path, *more: str, starter: str = "lightning") -> None:
    done = start(loop, out, *more, starter=starter)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]


def record_of(out: Path) -> Path:
    return out.with_name(f"{out.name}-losses")


def two_ranks(stage: int | str, offload: bool = False) -> list[str]:
    """stage: of PairDeepSpeed, or the name of another strategy."""
    engine = {"class_path": "dipole_vla.training.deepspeed.PairDeepSpeed"}
    options = {"init_args": {"stage": stage, "offload_optimizer": offload}}
    strategy = stage if isinstance(stage, str) else json.dumps({**engine, **options})
    return ["--trainer.devices", "2", "--trainer.strategy", strategy, "--trainer.accumulate_grad_batches", "2"]


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
    train(loop, out, *ALONE)
    assert len(losses(record_of(out))) == SCENES * STEPS
    return out


@pytest.fixture(scope="module")
def second_stage(loop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stage2") / "dipole"
    train(loop, out, *two_ranks(2))
    return out


def close(one: Path, two: Path, since: int = 0) -> None:
    """Same loss for every batch of every step from `since` on, same folders in the end, to rounding."""
    first, second = losses(record_of(one)), losses(record_of(two))
    assert list(second) == [place for place in first if place >= SCENES * since]
    assert [second[place] for place in second] == pytest.approx([first[place] for place in second], rel=1e-4)
    mine, theirs = adapters(one), adapters(two)
    assert mine.keys() == theirs.keys()
    moved = max(float(t.abs().max()) for name, t in mine.items() if "lora_B" in name)
    assert moved > 1e-4  # they start at zero
    for name in mine:
        assert mine[name].dtype == theirs[name].dtype == torch.float32
        torch.testing.assert_close(mine[name], theirs[name], rtol=0, atol=1e-2 * moved)
    for sign in ("positive", "negative"):
        assert sorted(path.name for path in (one / sign).iterdir()) == sorted(
            path.name for path in (two / sign).iterdir()
        )
        config = f"{sign}/adapter_config.json"
        assert (one / config).read_text() == (two / config).read_text()


def test_stage_2_is_the_single_process(single: Path, second_stage: Path) -> None:
    close(single, second_stage)


@pytest.mark.parametrize(
    ("stage", "starter"),
    [(1, "accelerate"), (3, "lightning"), ("ddp", "torchrun"), (FSDP2, "lightning")],
    ids=["ZeRO-1", "ZeRO-3", "ddp", "FSDP2"],
)
def test_any_strategy_however_started_is_the_single_process(
    loop: Path, single: Path, second_stage: Path, tmp_path: Path, stage: int | str, starter: str
) -> None:
    train(loop, tmp_path / "x", *two_ranks(stage), starter=starter)
    close(single, tmp_path / "x")
    if isinstance(stage, int):  # among the stages nothing is summed in another order
        found, wanted = adapters(tmp_path / "x"), adapters(second_stage)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_killed_run_resumes_to_the_bit(loop: Path, second_stage: Path, tmp_path: Path) -> None:
    out = halfway(second_stage, tmp_path / "x")
    train(loop, out, *two_ranks(2))
    last = f"{CHECKPOINTS}/step={STEPS:08d}.ckpt"
    assert same_state(second_stage / last, out / last)
    whole = losses(record_of(second_stage))
    assert losses(record_of(out)) == {place: loss for place, loss in whole.items() if place >= SCENES * HALF}


@pytest.mark.parametrize(
    ("stage", "offload"), [(3, False), (2, True), (FSDP2, False)], ids=["ZeRO-3", "offload", "FSDP2"]
)
def test_a_checkpoint_resumes_at_another_stage(
    loop: Path, single: Path, second_stage: Path, tmp_path: Path, stage: int | str, offload: bool
) -> None:
    out = halfway(second_stage, tmp_path / "x")
    train(loop, out, *two_ranks(stage, offload))
    close(single, out, since=HALF)


def test_a_checkpoint_of_two_ranks_resumes_on_one_without_the_engine(
    loop: Path, single: Path, second_stage: Path, tmp_path: Path
) -> None:
    out = halfway(second_stage, tmp_path / "x")
    began = (out / "stage.json").read_text()
    (out / "stage.json").write_text(began.replace('"accumulate_grad_batches": 2', '"accumulate_grad_batches": 4'))
    train(loop, out, *ALONE)
    close(single, out, since=HALF)


@pytest.mark.parametrize("stage", [2, 3])
def test_bfloat16_with_the_optimiser_in_main_memory_stays_close(
    loop: Path, single: Path, tmp_path: Path, stage: int
) -> None:
    """bfloat16 keeps 8 bits: the losses are other numbers, near those in float32."""
    out = tmp_path / "x"
    train(loop, out, *two_ranks(stage, offload=True), "--trainer.precision", "bf16-mixed")
    whole, half = losses(record_of(single)), losses(record_of(out))
    assert list(half) == list(whole)
    assert half != whole
    assert list(half.values()) == pytest.approx(list(whole.values()), rel=0.05)
    assert all(tensor.dtype == torch.float32 for tensor in adapters(out).values())
    saved = torch.load(out / CHECKPOINTS / f"step={STEPS:08d}.ckpt", weights_only=True)["state_dict"]
    assert all(tensor.dtype == torch.float32 for tensor in saved.values())


@pytest.mark.parametrize("stage", [2, 3])
def test_a_start_is_not_rounded_to_the_engines_precision(loop: Path, single: Path, tmp_path: Path, stage: int) -> None:
    out, still = tmp_path / "dipole", ["--model.lr", "0", "--trainer.max_steps", "1"]
    train(loop, out, *two_ranks(stage), "--trainer.precision", "bf16-mixed", "--model.start", str(single), *still)
    began, ended = adapters(single), adapters(out)
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in began.values())
    assert all(torch.equal(ended[name], tensor) for name, tensor in began.items())


@pytest.mark.parametrize(("stage", "precision"), [(2, "bf16-mixed"), (3, "32-true")])
def test_a_gradient_that_is_not_finite_on_one_rank_is_applied_on_none(
    loop: Path, tmp_path: Path, stage: int, precision: str
) -> None:
    poison = {"class_path": f"{CALLBACKS}.PoisonedGradient", "init_args": {"step": HALF}}
    more = [*two_ranks(stage), "--checkpoint_every", "1", "--trainer.precision", precision]
    done = start(loop, tmp_path / "x", *more, callbacks=[poison])
    assert done.returncode == 2, done.stderr[-3000:]
    assert f"step {HALF}: the gradient is not finite on tokens" in done.stderr
    assert "Traceback" not in done.stderr
    last = max((tmp_path / "x" / CHECKPOINTS).glob("*.ckpt"))
    assert last.name == f"step={HALF:08d}.ckpt"
    saved = torch.load(last, weights_only=True)["state_dict"]
    assert all(tensor.isfinite().all() for tensor in saved.values())


def test_checkpoints_hold_what_trains_and_nothing_else(second_stage: Path) -> None:
    path = second_stage / CHECKPOINTS / f"step={STEPS:08d}.ckpt"
    saved = torch.load(path, weights_only=True)
    trained = sum(tensor.numel() for tensor in adapters(second_stage).values())
    assert all("lora_" in name for name in saved["state_dict"])
    moments = [tensor for state in saved["optimizer_states"][0]["state"].values() for tensor in state.values()]
    assert sum(tensor.numel() for tensor in saved["state_dict"].values()) == trained
    assert sum(tensor.numel() for tensor in moments if tensor.ndim) == 2 * trained
    assert path.stat().st_size < 1.2 * 12 * trained + 200_000
