"""Callbacks for trainings in processes of their own: what each rank saw, and a rank whose gradient is poisoned."""

from __future__ import annotations

import csv
from pathlib import Path

import lightning.pytorch as L
from lightning.pytorch.loggers import CSVLogger


class LossRecord(L.Callback):
    """Writes the loss of every batch of every rank, by its place in the data's global order, one file per rank."""

    only_looks = True  # a resumed run may write elsewhere

    def __init__(self, folder: str):
        self.folder = Path(folder)

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch, batch_idx) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs, batch, batch_idx) -> None:
        every = trainer.accumulate_grad_batches
        place = (self._step * every + batch_idx % every) * trainer.world_size + trainer.global_rank
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / f"rank-{trainer.global_rank}.csv", "a", newline="") as file:
            csv.writer(file).writerow([place, repr(float(outputs["loss"]) * every)])  # accumulation divides it


def losses(folder: Path) -> dict[int, float]:
    """Loss by place, of all ranks; a place that was run twice holds the later value."""
    rows = [row for path in sorted(folder.glob("rank-*.csv")) for row in csv.reader(path.open(newline=""))]
    return {int(place): float(loss) for place, loss in sorted(rows, key=lambda row: int(row[0]))}


class Scaled(L.Callback):
    """Trains: multiplies every gradient."""

    def __init__(self, factor: float):
        if factor == 0:
            raise TypeError("a mistake in a class of the user's")
        self.factor = factor

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer) -> None:
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.grad *= self.factor


class ScatteredLogger(CSVLogger):
    """Writes into a folder of its own wherever it is told to, and does not say where."""

    def __init__(self, save_dir: str):
        super().__init__(save_dir, name="scattered", version=0)


class PoisonedGradient(L.Callback):
    """At one step the gradient of one parameter is NaN, on the last rank alone."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch, batch_idx) -> None:
        if trainer.global_step == self.step and trainer.global_rank == trainer.world_size - 1:
            trained = next(parameter for parameter in module.parameters() if parameter.requires_grad)
            trained.register_hook(lambda gradient: gradient * float("nan"))
