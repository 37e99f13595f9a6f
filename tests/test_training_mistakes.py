"""What goes wrong in a training, through the real command line: one line that helps, exit 2, nothing lost."""

from __future__ import annotations

import itertools
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parent / "dipole_vla"))  # `small_data` lies with the tests of the package

from lightning.pytorch.callbacks import timer
from safetensors.torch import load_file
from small_data import write_inputs

from dipole_vla.cli import main
from dipole_vla.preemption import EXIT_CODE
from dipole_vla.training import DipoleModule
from tests.dipole_vla.checkpoints import same, same_state


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def fit(inputs: Path, out: Path, model: dict | None = None, data: dict | None = None, **top) -> list[str]:
    """The command line of a recipe of two steps."""
    recipe = {
        "out": str(out),
        "checkpoint_every": 1,
        "model": {
            "class_path": "dipole_vla.training.DipoleModule",
            "init_args": {"backbone": str(inputs / "backbone"), "rank": 2, **(model or {})},
        },
        "data": {
            "class_path": "dipole_vla.data.module.DrivingData",
            "init_args": {
                "scenes": str(inputs / "scenes"),
                "candidates": str(inputs / "candidates"),
                "batch_size": 4,
                **(data or {}),
            },
        },
        "trainer": {"accelerator": "cpu", "devices": 1, "max_steps": 2, "log_every_n_steps": 1, **top},
    }
    path = out.parent / f"{out.name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return ["fit", "--config", str(path)]


def refused(line: list[str], capsys: pytest.CaptureFixture[str], *words: str) -> None:
    capsys.readouterr()
    assert main(line) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1, said
    for word in words:
        assert word in said[0], said[0]


def test_out_of_memory_says_what_to_lower(inputs, tmp_path, capsys) -> None:
    """A real refusal of the allocator: 10^11 noise levels for each candidate."""
    refused(fit(inputs, tmp_path / "out", {"draws": 10**11}), capsys, "out of memory", "data.batch_size", "model.draws")


def test_out_of_memory_after_a_step_keeps_what_was_saved(inputs, tmp_path, capsys, monkeypatch) -> None:
    step = DipoleModule.training_step

    def dying(self, batch, batch_idx):
        if self.trainer.global_step == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has …")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DipoleModule, "training_step", dying)
    line = fit(inputs, tmp_path / "out")
    refused(line, capsys, "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0", "the same command resumes")
    monkeypatch.setattr(DipoleModule, "training_step", step)
    remedies = {"checkpointing": True}, {"workers": 1, "keep_in_memory": True}
    assert main(fit(inputs, tmp_path / "out", *remedies)) == 0
    assert "resuming from" in capsys.readouterr().out
    assert (tmp_path / "out" / "policy.json").is_file()
    assert main(fit(inputs, tmp_path / "whole")) == 0
    for sign in ("positive", "negative"):
        one, two = (load_file(tmp_path / out / sign / "adapter_model.safetensors") for out in ("out", "whole"))
        assert same(one, two)


def test_a_corrupt_picture_found_by_a_loader_process(tmp_path, capsys) -> None:
    inputs = write_inputs(tmp_path)
    for picture in (inputs / "pictures").rglob("*.jpg"):
        picture.write_bytes(picture.read_bytes()[:100])
    refused(fit(inputs, tmp_path / "out", data={"workers": 1}), capsys, ".jpg", "cannot be read", "leave the token out")


def test_contexts_of_another_backbone(inputs, tmp_path, capsys) -> None:
    first = fit(inputs, tmp_path / "one", data={"contexts": str(tmp_path / "contexts")})
    assert main(first) == 0
    other = tmp_path / "inputs"
    shutil.copytree(inputs, other)
    from small_backbone import make_backbone
    from small_data import write_manifest

    shutil.rmtree(other / "backbone")
    make_backbone(seed=1).save_pretrained(other / "backbone")
    write_manifest(other / "backbone")
    line = fit(other, tmp_path / "two", data={"contexts": str(tmp_path / "contexts")})
    refused(line, capsys, "backbone_fingerprint", "choose another folder")


def test_a_folder_of_adapters_is_not_a_backbone(inputs, tmp_path, capsys) -> None:
    assert main(fit(inputs, tmp_path / "policy", {"pair": "separate"})) == 0
    line = fit(inputs, tmp_path / "out", {"backbone": str(tmp_path / "policy")})
    refused(line, capsys, "policy", "config.json")


def test_loggers_are_a_matter_of_the_recipe(inputs, tmp_path, capsys) -> None:
    logger = {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": {"save_dir": str(tmp_path)}}
    assert main(fit(inputs, tmp_path / "out", logger=logger)) == 0
    assert list(tmp_path.rglob("events.out.tfevents*"))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_out_of_time_is_not_a_finished_one_and_goes_on(inputs, tmp_path, capsys, monkeypatch, accumulate) -> None:
    """On a clock of one second a look, the time is over at the third step, or amid the second of two batches."""
    limits = {"max_steps": 4, "accumulate_grad_batches": accumulate}
    assert main(fit(inputs, tmp_path / "whole", **limits)) == 0
    clock = itertools.count()
    monkeypatch.setattr(timer, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    line = fit(inputs, tmp_path / "out", **limits, max_time="00:00:00:04")
    capsys.readouterr()
    assert main(line) == EXIT_CODE
    step = 4 - accumulate
    assert f"trainer.max_time is over, step {step} of 4 is saved; run the same command" in capsys.readouterr().err
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert main(line) == 0
    last = Path("checkpoints") / "step=00000004.ckpt"
    assert same_state(tmp_path / "out" / last, tmp_path / "whole" / last)


@pytest.mark.parametrize(
    "end", [{"fast_dev_run": True}, {"limit_train_batches": 3}, {"overfit_batches": 1}, {"max_epochs": 1}]
)
def test_a_run_is_counted_in_steps_and_in_nothing_else(inputs, tmp_path, capsys, end) -> None:
    (key,) = end
    refused(fit(inputs, tmp_path / "out", **end), capsys, f"trainer.{key}", "--trainer.max_steps N and another --out")
    assert not (tmp_path / "out").exists()


def test_another_clipping_is_another_run(inputs, tmp_path, capsys) -> None:
    assert main(fit(inputs, tmp_path / "out", gradient_clip_val=1.0)) == 0
    assert main(fit(inputs, tmp_path / "out", gradient_clip_val=1.0)) == 0
    line = fit(inputs, tmp_path / "out", gradient_clip_val=0.1)
    refused(line, capsys, "trainer.gradient_clip_val", "made with 1.0, now 0.1", "another --out")
    line = fit(inputs, tmp_path / "out", gradient_clip_val=1.0, gradient_clip_algorithm="value")
    refused(line, capsys, "trainer.gradient_clip_algorithm", "another --out")


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("model", "draws", 0, "must be at least 1, got 0"),
        ("model", "lr", -1.0, "must be at least 0, got -1.0"),
        ("model", "warmup_steps", -5, "must be at least 0, got -5"),
        ("model", "beta", float("nan"), "must be a finite number, got nan"),
        ("data", "batch_size", 0, "must be at least 1, got 0"),
        ("data", "workers", -1, "must be at least 0, got -1"),
        ("trainer", "accumulate_grad_batches", 0, "must be at least 1, got 0"),
        ("trainer", "devices", 0, "not a valid input using cpu accelerator"),
        pytest.param(
            "trainer", "accelerator", "gpu", "No supported gpu backend",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)  # fmt: skip
def test_a_number_out_of_range_is_one_line_and_begins_nothing(
    inputs, tmp_path, capsys, section, key, value, words
) -> None:
    wrong = {key: value}
    line = fit(inputs, tmp_path / "out", *({} if section != name else wrong for name in ("model", "data")))
    if section == "trainer":
        line = fit(inputs, tmp_path / "out", **wrong)
    refused(line, capsys, section, key, words)
    assert not (tmp_path / "out").exists()
