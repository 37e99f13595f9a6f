"""What watches a training: bad gradients stop it, a settling loss scale does not; strategies that are refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dipole_vla.cli import main
from dipole_vla.demo import shipped_recipes
from dipole_vla.training.callbacks import FiniteGradients
from navsim_adapter.foundation.errors import InputError


def step_with(scaler: torch.amp.GradScaler | None, slope: float) -> None:
    module = nn.Linear(2, 1)
    module.weight.grad = torch.full((1, 2), slope)
    trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler), global_step=3)
    watch = FiniteGradients()
    watch.on_train_batch_start(trainer, module, {"token": ["one", "two"]}, 0)
    watch.on_before_optimizer_step(trainer, module, torch.optim.SGD(module.parameters(), 1.0))


@pytest.mark.parametrize("slope", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_stops_the_run(slope: float) -> None:
    step_with(None, 1.0)
    with pytest.raises(InputError, match="step 3: the gradient is not finite on tokens one, two"):
        step_with(None, slope)


def test_a_bad_gradient_may_come_from_any_batch_of_its_step() -> None:
    module, trainer = nn.Linear(2, 1), SimpleNamespace(precision_plugin=None, global_step=2)
    watch = FiniteGradients()
    watch.on_train_batch_start(trainer, module, {"token": ["of the step before"]}, 3)
    trainer.global_step = 3
    watch.on_train_batch_start(trainer, module, {"token": ["one"]}, 4)
    watch.on_train_batch_start(trainer, module, {"token": ["two"]}, 5)
    module.weight.grad = torch.full((1, 2), float("nan"))
    with pytest.raises(InputError, match="step 3: the gradient is not finite on tokens one, two "):
        watch.on_before_optimizer_step(trainer, module, None)


def test_a_settling_loss_scale_does_not_stop_the_run() -> None:
    step_with(torch.amp.GradScaler("cpu", init_scale=2.0**16), float("inf"))
    with pytest.raises(InputError, match="not finite"):  # nothing left to settle
        step_with(torch.amp.GradScaler("cpu", init_scale=1.0), float("inf"))


LIGHTNINGS = "lightning.pytorch.strategies"


@pytest.mark.parametrize(
    "strategy",
    ["fsdp", f"{LIGHTNINGS}.ModelParallelStrategy", "deepspeed_stage_2", f"{LIGHTNINGS}.DeepSpeedStrategy"],
)
def test_a_strategy_without_our_checkpoints_is_refused(strategy: str, tmp_path: Path, capsys) -> None:
    recipe = str(shipped_recipes() / "imitation.yaml")
    out = tmp_path / "x"
    assert main(["fit", "--config", recipe, "--out", str(out), "--trainer.strategy", strategy]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    for word in ("trainer.strategy", strategy, "PairDeepSpeed"):
        assert word in told[0]
    assert not out.exists()
