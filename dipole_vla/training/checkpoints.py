"""Checkpoints that cannot be torn, and when they are taken: every so many steps, at the last, and before a stop.

One file, the same for every strategy and every number of ranks: what trains in float32, the optimiser's state by
parameter, the schedule, the loops. It is a zip of plain tensors: read without running code, checked by its CRCs.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from dipole_vla import preemption
from dipole_vla.progress import console
from navsim_adapter.foundation.files import atomic_path, sync_folder
from navsim_adapter.foundation.foreign import check_archive


class SyncedFiles(TorchCheckpointIO):
    """Lightning's single-file checkpoints, written aside, synced and renamed; read as plain data only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path, storage_options: Any | None = None) -> None:
        with atomic_path(path) as aside, open(aside, "wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        return torch.load(path, map_location=map_location, weights_only=True)


class Checkpoints(L.Callback):
    """Saves at the end of a step; must be the last callback, so that what the others do in a step is saved too.

    folder: of `step=00000500.ckpt`.  every: steps between two.  keep: how many to keep.
    """

    def __init__(self, folder: Path, every: int, keep: int = 2):
        self.folder, self.every, self.keep = folder, every, keep
        self.notice: str | None = None
        self._last = self._seed = 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        preemption.listen()  # again, since the Trainer has put its own handlers there
        self._last, self._seed = trainer.global_step, torch.initial_seed()

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch, batch_idx) -> None:
        """Dropout draws from the global generator: a seed of its own for every step and rank resumes it, too."""
        place = batch_idx * trainer.world_size + trainer.global_rank
        torch.manual_seed((self._seed * 1_000_003 + place) % 2**63)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs, batch, batch_idx) -> None:
        step = trainer.global_step
        if step == self._last:  # gradients are still being accumulated
            trainer.should_stop = False  # `max_time` asks again after every batch; here nothing whole can be saved
            return
        self._last = step
        self.notice = self._agreed(trainer)
        if self.notice or trainer.should_stop or step % self.every == 0 or step == trainer.max_steps:
            trainer.save_checkpoint(self.folder / f"step={step:08d}.ckpt")
            if trainer.is_global_zero:
                self._prune()
        if self.notice:
            trainer.should_stop = True

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """`trainer.max_time` counts from each start: a resumed run would else have none left."""
        checkpoint["callbacks"].pop("Timer", None)

    def _agreed(self, trainer: L.Trainer) -> str | None:
        """The notice that any rank has had; all ranks ask at the same step and hear the same."""
        own = preemption.notice()
        if trainer.world_size == 1:
            return own
        heard = torch.tensor(float(own is not None), device=trainer.strategy.root_device)
        anyone = trainer.strategy.reduce(heard, reduce_op="max")
        return (own or "a signal to another rank") if float(anyone) > 0 else None

    def _prune(self) -> None:
        for path in sorted(self.folder.glob("step=*.ckpt"))[: -self.keep]:
            path.unlink(missing_ok=True)
        sync_folder(self.folder)


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step that is whole; a damaged one is named and skipped. Clocks do not matter."""
    for path in sorted(folder.glob("*.ckpt"), reverse=True):
        damage = _damage(path)
        if damage is None:
            return path
        console.print(f"[yellow]{path}: damaged ({damage}), using the one before[/yellow]")
    return None


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file, None if every byte is as it was written."""
    try:
        check_archive(path)
        with zipfile.ZipFile(path) as content:
            bad = content.testzip()
        if bad is not None:
            return f"checksum of {bad}"
        torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except Exception as problem:  # zip directory, pickle, storage: whatever a damaged file makes its readers do
        return type(problem).__name__
    return None
