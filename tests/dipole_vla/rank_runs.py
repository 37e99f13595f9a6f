"""Short trainings of one small pair by any engine, one after another in the same ranks; each leaves checkpoints.

As a script it is one of two ranks: `rank_runs.py RUNS.json`, started with LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from small_backbone import spread_adapters
from small_data import train

from dipole_vla.training import DipoleModule
from dipole_vla.training.checkpoints import SyncedFiles
from dipole_vla.training.deepspeed import PairDeepSpeed
from dipole_vla.training.sharded import ShardedBackbone

STEPS, HALF = 3, 2


def run(
    inputs: Path,
    out: Path,
    engine: str,
    accumulate: int,
    clip: float | None,
    precision: str,
    epoch: int | None = None,
    mean: bool = True,
    resume: Path | None = None,
) -> None:
    """Train STEPS steps of one scene a batch; `out` then holds step=HALF, step=STEPS and norms.json.

    engine: plain, in one process; ddp, FSDP2 or ZeRO-1, -2, -3 on two ranks; ZeRO-2+ has Adam in main memory.
    epoch: batches after which the data begins anew, and a step ends.  mean: keep the weights' running mean, too.
    resume: a checkpoint to go on from.
    """
    decay = 0.9 if mean else 0.0
    module = DipoleModule(Path(inputs) / "backbone", rank=2, lr=1e-3, warmup_steps=1, ema_decay=decay)
    spread_adapters(module.pair)
    options = {
        "accumulate_grad_batches": accumulate,
        "gradient_clip_val": clip,
        "precision": precision,
        "limit_train_batches": epoch,
        "max_epochs": -1,
        "strategy": strategy(engine),
        "devices": 1 if engine == "plain" else 2,
        "plugins": [LightningEnvironment(), SyncedFiles()],
        "callbacks": [_Record(Path(out))],
    }
    train(Path(inputs), STEPS, {"batch_size": 1}, options, module, resume)


def strategy(engine: str) -> Any:
    if engine.startswith("ZeRO-"):
        return PairDeepSpeed(stage=int(engine[5]), offload_optimizer=engine.endswith("+"), reduce_bucket_size=2**20)
    return {"plain": "auto", "ddp": "ddp", "FSDP2": ShardedBackbone()}[engine]


class _Record(L.Callback):
    """Saves checkpoints, and the norm of all gradients before clipping: as logged, or as DeepSpeed has it."""

    def __init__(self, out: Path) -> None:
        self.out, self.norms = out, dict[int, float]()

    def on_train_start(self, trainer, module) -> None:
        self.last = trainer.global_step

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        step = trainer.global_step
        if step == self.last:
            return
        self.last, engine = step, getattr(trainer.strategy, "deepspeed_engine", None)
        logged = [value for name, value in trainer.callback_metrics.items() if name.startswith("grad_norm")]
        self.norms[step] = float(engine.get_global_grad_norm() if engine else torch.tensor(logged).norm())
        if step in (HALF, STEPS):
            trainer.save_checkpoint(self.out / f"step={step}.ckpt")
        if trainer.is_global_zero:
            (self.out / "norms.json").write_text(json.dumps(self.norms))


def as_on_gpus() -> None:
    """DeepSpeed asks whether autocast is on without naming a device, which means GPUs: let it mean these CPUs."""
    asked = torch.is_autocast_enabled
    torch.is_autocast_enabled = lambda *device: asked(*device or ("cpu",))


if __name__ == "__main__":
    as_on_gpus()
    for options in json.loads(Path(sys.argv[1]).read_text()):
        run(**options)
