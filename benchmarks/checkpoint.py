"""Checkpoints of a real recipe: their size against what trains, and the pause they cost against the steps between them.

    python benchmarks/checkpoint.py      # the DP-VLA of benchmarks/training.py, a quarter of the published width
    python benchmarks/checkpoint.py --config recipes/demo/dipole.yaml [--steps 20] [--every 500] [-- further options]

Runs the recipe for a few steps in a scratch folder, saves after each, and prints the table. The pause at the recipe's
interval is (time of one save) / (interval x time of one step).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import lightning.pytorch as L

from dipole_vla.commands import fit as fitting
from dipole_vla.demo import shipped_recipes
from dipole_vla.training.checkpoints import Checkpoints
from navsim_adapter.foundation.files import finish, write_json


class Timed(Checkpoints):
    """Notes how long steps and saves take, from the second on."""

    steps: list[float] = []  # noqa: RUF012
    saves: list[float] = []  # noqa: RUF012
    trained = frozen = size = 0

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch, batch_idx) -> None:
        super().on_train_batch_start(trainer, module, batch, batch_idx)
        self._began = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs, batch, batch_idx) -> None:
        ended = time.perf_counter()
        super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)
        if trainer.global_step > 1:
            Timed.steps.append(ended - self._began)
            Timed.saves.append(time.perf_counter() - ended)
        Timed.trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        Timed.frozen = sum(p.numel() for p in module.parameters() if not p.requires_grad)
        Timed.size = max(path.stat().st_size for path in self.folder.glob("*.ckpt"))


def quarter_width(folder: Path) -> list[str]:
    """Inputs of benchmarks/training.py, and the recipe options that train on them."""
    from training import RANKS, write_inputs  # the script beside this one

    write_inputs(folder, "middle", scenes=8, group=16)
    about = {"metric": "none", "split": "trainval", "advantage": "none", "allow_eval_split": False}
    write_json(folder / "candidates" / "candidates.json", about)
    finish(folder / "candidates", {"command": "benchmark"})
    options = {
        "model.backbone": folder / "backbone", "model.critic": "null", "model.rank": RANKS["middle"],
        "data.scenes": folder / "scenes", "data.candidates": folder / "candidates", "data.batch_size": 2,
    }  # fmt: skip
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", help="default: a DP-VLA of a quarter of the published width")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--every", type=int, default=500, help="the recipe's checkpoint_every")
    parser.add_argument("more", nargs="*", help="further options of dipole-vla fit, after --")
    options = parser.parse_args()
    fitting.Checkpoints = Timed  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        line = ["--config", options.config or str(shipped_recipes() / "dipole.yaml")]
        line += [] if options.config else quarter_width(Path(folder))
        line += ["--out", str(Path(folder) / "run"), "--checkpoint_every", "1"]
        fitting.fit([*line, "--trainer.max_steps", str(options.steps), *options.more])
    step, save = statistics.median(Timed.steps), statistics.median(Timed.saves)
    least = 3 * 4 * Timed.trained  # weights and Adam's two moments in float32
    print(f"trained parameters      {Timed.trained:,} (frozen {Timed.frozen:,})")
    print(f"weights + Adam          {least / 2**20:.2f} MiB")
    print(f"checkpoint              {Timed.size / 2**20:.2f} MiB ({Timed.size / least:.2f} x)")
    print(f"step                    {1000 * step:.1f} ms (median of {len(Timed.steps)})")
    print(f"save                    {1000 * save:.1f} ms (synced to disk)")
    print(f"pause, every {options.every:<6}     {100 * save / (options.every * step):.2f} % of the step time")


if __name__ == "__main__":
    main()
