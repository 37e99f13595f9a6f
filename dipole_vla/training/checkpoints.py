"""Checkpoints that cannot be torn, and when they are taken: every so many steps, at the last, and before a stop.

One file, the same for every strategy and every number of ranks: what trains in float32, the optimiser's state by
parameter, the schedule, the loops. It is a zip of plain tensors: read without running code, checked by its CRCs.
"""

from __future__ import annotations

import warnings
import zipfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from dipole_vla import preemption
from dipole_vla.backbones.base import Backbone
from dipole_vla.progress import console
from dipole_vla.training.ema import WeightMean
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import atomic_path, sync_folder
from navsim_adapter.foundation.foreign import check_archive
from navsim_adapter.foundation.option_checks import check_range


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
        place = trainer.fit_loop.epoch_loop.total_batch_idx * trainer.world_size + trainer.global_rank
        torch.manual_seed((self._seed * 1_000_003 + place) % 2**63)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs, batch, batch_idx) -> None:
        step = trainer.global_step
        if step == self._last:  # gradients are still being accumulated
            trainer.should_stop = False  # `max_time` asks again after every batch; here nothing whole can be saved
            return
        self._last = step
        self.notice = self._agreed(trainer)
        if self.notice or trainer.should_stop or step % self.every == 0 or self._ends(trainer):
            trainer.save_checkpoint(self.folder / f"step={step:08d}.ckpt", weights_only=False)
            if trainer.is_global_zero:
                self._prune()
        if self.notice:
            trainer.should_stop = True

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """`trainer.max_time` counts from each start: a resumed run would else have none left."""
        checkpoint["callbacks"].pop("Timer", None)

    def _ends(self, trainer: L.Trainer) -> bool:
        return trainer.global_step == trainer.max_steps

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


class AdapterCheckpoints(Checkpoints):
    """What our own trainings have, for a LightningModule of anybody: checkpoints of what trains alone, exact resume.

    Give it as the last callback, and `newest` as `ckpt_path` of `fit`. Whatever the module draws from torch's global
    generator, the loader's shuffling too, is then as in a run that was never stopped; a loader that keeps no state is
    wound on to where the checkpoint was taken. Data whose order comes from another generator resumes by its own rules.

    folder: of `step=00000500.ckpt`.  every: optimiser steps between two.  keep: how many to keep.
    ema_decay: of a running mean of what trains (e.g. 0.99), see `averaged`; 0 for none.
    """

    def __init__(self, folder: str | Path, every: int, ema_decay: float = 0.0, keep: int = 2):
        check_range("every", every, 1)
        check_range("keep", keep, 1)
        if not 0 <= ema_decay < 1:
            raise InputError(f"ema_decay: must be in (0, 1), or 0 for none, got {ema_decay}")
        super().__init__(Path(folder), every, keep)
        self.ema_decay = ema_decay
        self.mean: WeightMean | None = None
        self._resumed: dict[str, Any] = {}

    @property
    def newest(self) -> Path | None:
        """The newest checkpoint that is whole, to go on from; None where there is none."""
        return newest_checkpoint(self.folder)

    def averaged(self) -> AbstractContextManager[None]:
        """Within the block the weights are their running mean, where there is one: what to save and to judge."""
        return nullcontext() if self.mean is None else self.mean.in_place()

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        module.strict_loading = False  # what is frozen is not in the checkpoint
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = SyncedFiles()
        self._seed = torch.initial_seed()

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Seed the first epoch of this process: a loader draws its order when it is opened, before any epoch begins.

        The mean is made here, too, for a run that was finished and has nothing left to do.
        """
        if self.ema_decay:
            self.mean = WeightMean(_trained(module), self.ema_decay)
            if self._resumed:
                self.mean.restore(self._resumed["mean"])
        self._seed = self._resumed.get("seed", self._seed)
        self._seed_epoch(self._resumed.get("epoch", trainer.current_epoch))

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        seed, state = self._seed, torch.get_rng_state()
        super().on_train_start(trainer, module)
        self._seed, self._first_epoch = seed, trainer.current_epoch
        if self._resumed:
            _wind_on(trainer)
        torch.set_rng_state(state)

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.current_epoch != self._first_epoch:
            self._seed_epoch(trainer.current_epoch)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs, batch, batch_idx) -> None:
        if self.mean is not None and trainer.global_step != self._last:
            self.mean.update()
        super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """A script that its scheduler stops must not go on as if the training were done."""
        if self.notice:
            raise SystemExit(preemption.EXIT_CODE)

    def _ends(self, trainer: L.Trainer) -> bool:
        is_last_epoch = trainer.max_epochs is not None and trainer.current_epoch + 1 == trainer.max_epochs
        return super()._ends(trainer) or (is_last_epoch and trainer.is_last_batch)

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(trainer, module, checkpoint)
        frozen = _frozen(module)
        checkpoint["state_dict"] = {name: x for name, x in checkpoint["state_dict"].items() if name not in frozen}
        for name in ("hyper_parameters", "hparams_name", "datamodule_hyper_parameters", "datamodule_hparams_name"):
            checkpoint.pop(name, None)  # objects of any kind, which the safe reader would refuse
        begun = trainer.current_epoch + 1  # Lightning does not count an epoch that it resumes at its first batch
        for counts in checkpoint["loops"]["fit_loop"]["epoch_progress"].values():
            if counts["processed"] < begun:
                counts.update(ready=begun, started=begun)
        next_epoch = trainer.current_epoch + trainer.is_last_batch  # of the next batch
        own: dict[str, Any] = {"seed": self._seed, "epoch": next_epoch}
        checkpoint["adapters"] = own if self.mean is None else {**own, "mean": self.mean.state()}

    def on_load_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        missing = dict(_trained(module)).keys() - checkpoint["state_dict"].keys()
        if missing:
            what = f"{len(missing)} trained tensors are missing, first {min(missing)}"
            raise InputError(f"checkpoint: {what}; start afresh in another folder")
        self._resumed = checkpoint.get("adapters", {})
        if self.ema_decay and "mean" not in self._resumed:
            raise InputError("checkpoint: made without ema_decay; start afresh in another folder, or set it to 0")

    def _seed_epoch(self, epoch: int) -> None:
        torch.manual_seed((self._seed * 1_000_003 + 2**62 + epoch) % 2**63)


def _trained(module: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]


def _frozen(module: torch.nn.Module) -> set[str]:
    """Names, all that a tensor has, of parameters without gradients and of the buffers of frozen backbones."""
    backbones = [part for part in module.modules() if isinstance(part, Backbone) and part.is_frozen]
    still = {id(buffer) for backbone in backbones for buffer in backbone.buffers()}
    parameters = {name for name, tensor in module.named_parameters(remove_duplicate=False) if not tensor.requires_grad}
    return parameters | {name for name, tensor in module.named_buffers(remove_duplicate=False) if id(tensor) in still}


def _wind_on(trainer: L.Trainer) -> None:
    """Pass over the batches of the epoch that were trained on before: Lightning opens a loader at its first."""
    fetcher, progress = trainer.fit_loop._data_fetcher, trainer.fit_loop.epoch_loop.batch_progress
    loaders = trainer.fit_loop._combined_loader.flattened  # type: ignore[union-attr]
    if fetcher is None or all(hasattr(loader, "load_state_dict") for loader in loaders):
        return
    done = progress.current.ready
    if done >= trainer.num_training_batches:
        return
    warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")
    for _ in range(done):
        next(fetcher)
    fetcher.fetched -= done  # Lightning adds them itself


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
