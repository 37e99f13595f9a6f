"""What watches a training: a quiet progress bar, curves that go on after a restart, gradients that must be finite."""

from __future__ import annotations

import csv
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment

from dipole_vla.progress import bar
from dipole_vla.training.base import suspects
from navsim_adapter.foundation.errors import InputError


class StepProgress(L.Callback):
    """One bar over the steps of the run, with the loss; starts where a resumed run starts."""

    def __init__(self, what: str, refresh: int = 10):
        self.what, self.refresh = what, refresh
        self._open = ExitStack()
        self._shown = 0

    def on_train_start(self, trainer, module) -> None:
        if trainer.is_global_zero:
            self._bar = self._open.enter_context(bar(self.what, max(trainer.max_steps, 0)))
            self._shown = 0
            self._show(trainer)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if trainer.is_global_zero and trainer.global_step - self._shown >= self.refresh:
            self._show(trainer)

    def on_train_end(self, trainer, module) -> None:
        if trainer.is_global_zero:
            self._show(trainer)
        self._open.close()

    def on_exception(self, trainer, module, exception) -> None:
        self._open.close()

    def _show(self, trainer) -> None:
        loss = trainer.callback_metrics.get("loss")
        note = "" if loss is None else f"loss {float(loss):.4f}"
        self._bar.advance(trainer.global_step - self._shown, note)
        self._shown = trainer.global_step


class FiniteGradients(L.Callback):
    """Stops the run before a gradient that is not finite reaches the weights, naming the scenes of the step.

    Under 16-mixed a scaler multiplies the loss, leaves out steps that overflow, and halves its scale: such a step is
    no fault of the scenes, unless the scale is down to one.
    """

    def __init__(self) -> None:
        self._step, self._tokens = -1, list[str]()

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        if trainer.global_step != self._step:  # else a further batch is accumulated
            self._step, self._tokens = trainer.global_step, []
        named = batch.get("token", ()) if isinstance(batch, dict) else ()
        texts = [token for token in named if isinstance(token, str)]  # in somebody else's batch it may be anything
        self._tokens += texts or [f"of batch {batch_idx}"]

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and scaler.get_scale() > 1:
            return
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        if gradients and not torch.stack(torch._foreach_norm(gradients)).isfinite().all():
            self._stop(trainer, trainer.global_step)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if getattr(trainer.strategy, "skipped_step", False):  # DeepSpeed steps, and looks, in its engine
            self._stop(trainer, trainer.global_step - 1)

    def _stop(self, trainer, step: int) -> None:
        raise InputError(
            f"step {step}: the gradient is not finite on tokens {', '.join(self._tokens)} (of this rank); the step was "
            f"not applied, the last checkpoint is intact; {suspects(trainer)}"
        )


class Curves(CSVLogger):
    """Lightning's CSV log that goes on: a resumed run keeps the rows up to the step it starts from.

    folder: of `metrics.csv`.  until: that step.
    """

    def __init__(self, folder: Path, until: int = 0):
        super().__init__(folder.parent, name=folder.name, version="", flush_logs_every_n_steps=1)
        self.path, self.until = folder / "metrics.csv", until

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            rows = self._kept()
            writer = super().experiment  # which begins an empty file
            writer.metrics = rows
            writer.save()
        return self._experiment

    def _kept(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        with open(self.path, newline="") as file:
            rows = list(csv.DictReader(file))
        return [row for row in rows if (row.get("step") or "").isdigit() and int(row["step"]) < self.until]
