"""What a cluster does to a training: signals, dead workers, full disks, bad gradients, wrong clocks, a second run."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dipole_vla.commands.fit import CHECKPOINTS
from dipole_vla.preemption import EXIT_CODE
from tests.dipole_vla.checkpoints import same, same_state
from tests.faults.processes import Process, result
from tests.small_loop import small_steps

pytestmark = pytest.mark.faults


def training(loop: Path, out: Path, *more: str) -> list:
    line = next(line for line in small_steps(loop) if line[1] == "fit" and line[5] == str(loop / "dipole"))
    return [*line, "--out", out, "--trainer.max_steps", "8", "--trainer.log_every_n_steps", "1", *more]


def until(condition, process: Process, limit: float = 240.0) -> None:
    ends = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < ends, process.said()
        time.sleep(0.02)


def steps_saved(out: Path) -> list[int]:
    return sorted(int(path.stem.partition("=")[2]) for path in (out / CHECKPOINTS).glob("*.ckpt"))


@pytest.fixture(scope="module")
def undisturbed(loop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "dipole"
    assert Process(training(loop, out), out.parent / "said").wait() == 0
    return out


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM], ids=["SIGUSR1", "SIGTERM"])
def test_a_preemption_saves_the_step_and_requeues_once(
    loop: Path, undisturbed: Path, tmp_path: Path, number: int
) -> None:
    """The very state of the step at which it came, and the same end as without.

    One call of scontrol at the notice; none at SIGTERM, which is also how a job is cancelled.
    """
    asked = ["requeue 77"] if number == signal.SIGUSR1 else []
    calls, programs = tmp_path / "calls", tmp_path / "bin"
    programs.mkdir()
    (programs / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    (programs / "scontrol").chmod(0o755)

    def in_a_job() -> None:
        os.environ["PATH"] = f"{programs}:{os.environ['PATH']}"
        os.environ.update(SLURM_JOB_ID="77", SLURM_JOB_NAME="bash")

    out = tmp_path / "dipole"
    line = training(loop, out, "--checkpoint_every", "3")
    process = Process(line, tmp_path / "said", in_a_job)
    until(lambda: steps_saved(out), process)
    process.signal(number)
    assert process.wait() == EXIT_CODE, process.said()
    assert (calls.read_text().splitlines() if calls.is_file() else []) == asked
    assert ("job 77 is requeued" in process.said()) is bool(asked)
    stopped = steps_saved(out)[-1]
    assert 3 <= stopped < 8
    again = Process(line, tmp_path / "said again", in_a_job)
    assert again.wait() == 0, again.said()
    assert f"step={stopped:08d}.ckpt" in again.said().replace("\n", "")
    assert (calls.read_text().splitlines() if calls.is_file() else []) == asked
    assert same_state(out / CHECKPOINTS / "step=00000008.ckpt", undisturbed / CHECKPOINTS / "step=00000008.ckpt")
    rows = [line.split(",") for line in (out / "logs" / "metrics.csv").read_text().splitlines()]
    assert [int(row[rows[0].index("step")]) for row in rows[1:]] == list(range(8))


@pytest.mark.parametrize("stop", [1, 2, 3, 6], ids=["one step", "mid-pass", "a pass ends", "mid-pass with workers"])
def test_a_resumed_run_is_the_same_run(loop: Path, tmp_path: Path, stop: int) -> None:
    """Twelve scenes, four a step: a pass over the data is three steps."""
    more = ["--checkpoint_every", "1", *(["--data.workers", "1"] if stop == 6 else [])]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for out, kill in ((whole, False), (cut, True)):
        line = training(loop, out, *more)
        process = Process(line, tmp_path / f"{out.name} said")
        if kill:
            until(lambda: stop in steps_saved(cut), process)
            process.signal(signal.SIGKILL)
            process.wait()
            for path in (cut / CHECKPOINTS).glob("*.ckpt"):
                if int(path.stem.partition("=")[2]) > stop:
                    path.unlink()
            assert not (cut / "manifest.json").exists()
            process = Process(line, tmp_path / "again said")
        assert process.wait() == 0, process.said()
    assert same_state(whole / CHECKPOINTS / "step=00000008.ckpt", cut / CHECKPOINTS / "step=00000008.ckpt")
    for sign in ("positive", "negative"):
        one, two = (load_file(out / sign / "adapter_model.safetensors") for out in (whole, cut))
        assert same(one, two)


def test_a_dead_loader_worker_is_one_line_and_resumable(loop: Path, tmp_path: Path) -> None:
    from dipole_vla.data.module import DrivingDataset

    out, once = tmp_path / "dipole", tmp_path / "died"

    def dies_once() -> None:
        item = DrivingDataset.__getitem__

        def deadly(self, index: int):
            if not once.exists() and steps_saved(out):
                once.touch()
                os._exit(9)
            return item(self, index)

        DrivingDataset.__getitem__ = deadly

    line = training(loop, out, "--checkpoint_every", "1", "--data.workers", "1")
    process = Process(line, tmp_path / "said", dies_once)
    assert process.wait() == 2, process.said()
    told = [text for text in process.said().splitlines() if text.startswith("error: ")]
    assert len(told) == 1
    assert "loader worker" in told[0]
    assert "Traceback" not in process.said()
    assert Process(line, tmp_path / "said again", dies_once).wait() == 0


def test_a_gradient_that_is_not_finite_is_not_applied(loop: Path, tmp_path: Path) -> None:
    from dipole_vla.training import DipoleModule

    out = tmp_path / "dipole"

    def poisoned() -> None:
        step = DipoleModule.training_step

        def training_step(self, batch, index):
            loss = step(self, batch, index)
            if self.trainer.global_step == 4:  # a finite loss with an infinite slope
                loss = loss + 0 * torch.sqrt(next(iter(self.pair.parameters())).sum() * 0)
            return loss

        DipoleModule.training_step = training_step

    line = training(loop, out, "--checkpoint_every", "1")
    process = Process(line, tmp_path / "said", poisoned)
    assert process.wait() == 2, process.said()
    assert "step 4: the gradient is not finite on tokens" in process.said().replace("\n", "")
    assert steps_saved(out)[-1] == 4
    saved = torch.load(out / CHECKPOINTS / "step=00000004.ckpt", weights_only=True)["state_dict"]
    assert all(tensor.isfinite().all() for tensor in saved.values())


def test_a_second_run_in_the_same_folder_is_refused(loop: Path, tmp_path: Path) -> None:
    out = tmp_path / "dipole"
    line = training(loop, out, "--trainer.max_steps", "100000")
    first = Process(line, tmp_path / "first")
    until(lambda: steps_saved(out), first)
    second = Process(line, tmp_path / "second")
    assert second.wait() == 2, second.said()
    assert "is writing here; wait for it or choose another --out" in second.said().replace("\n", " ")
    first.signal(signal.SIGKILL)
    first.wait()
    third = Process(line, tmp_path / "third")  # the lock died with its holder
    until(lambda: "resuming from" in third.said(), third)
    third.signal(signal.SIGKILL)
    third.wait()


def test_clocks_do_not_choose_the_checkpoint(loop: Path, undisturbed: Path, tmp_path: Path) -> None:
    from dipole_vla.training.checkpoints import newest_checkpoint

    folder = tmp_path / CHECKPOINTS
    shutil.copytree(undisturbed / CHECKPOINTS, folder)
    older, newer = sorted(folder.glob("*.ckpt"))
    os.utime(older, (2**32, 2**32))
    os.utime(newer, (0, 0))
    assert newest_checkpoint(folder) == newer


def test_a_full_disk_is_one_line_and_costs_nothing(loop: Path, undisturbed: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: the write of a checkpoint fails half-way."""
    import resource

    out = tmp_path / "dipole"
    size = (undisturbed / CHECKPOINTS / "step=00000008.ckpt").stat().st_size
    line = training(loop, out, "--checkpoint_every", "2")

    def short_of_space() -> None:
        from dipole_vla.training.checkpoints import Checkpoints

        save = Checkpoints.on_train_batch_end

        def on_train_batch_end(self, trainer, *rest):
            if trainer.global_step == 6:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, resource.RLIM_INFINITY))
            save(self, trainer, *rest)

        Checkpoints.on_train_batch_end = on_train_batch_end

    process = Process(line, tmp_path / "said", short_of_space)
    assert process.wait() == 2, process.said()
    assert "make room and run the same command again" in process.said().replace("\n", " ")
    assert steps_saved(out) == [2, 4]
    assert not list(out.rglob("*.part"))
    assert Process(line, tmp_path / "said again").wait() == 0
    assert result(out).keys() == result(undisturbed).keys()
    assert same_state(out / CHECKPOINTS / "step=00000008.ckpt", undisturbed / CHECKPOINTS / "step=00000008.ckpt")
