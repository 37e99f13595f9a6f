"""`dipole-vla consolidate RUN`: what an unfinished training has come to, as the folder its end would write.

A checkpoint is the same file for every strategy, so this is `fit` on one processor, told that the checkpoint's step is
the last.
"""

from __future__ import annotations

import re
from pathlib import Path

from dipole_vla.commands.fit import CHECKPOINTS, fit, newest_checkpoint
from navsim_adapter.foundation.errors import InputError


def consolidate(run: Path, out: Path | None = None, checkpoint: Path | None = None) -> None:
    """Export the newest checkpoint of a run: plain PEFT folders, a critic or a backbone.

    Args:
        run: output folder of `dipole-vla fit`, finished or not.
        out: folder to write; default is RUN-step-N beside it.
        checkpoint: another checkpoint of the run than the newest.
    """
    recipe = run / "recipe.yaml"
    if not recipe.is_file():
        raise InputError(f"{run}: no recipe.yaml here; give the --out folder of a `dipole-vla fit`")
    chosen = checkpoint or newest_checkpoint(run / CHECKPOINTS)
    if chosen is None or not chosen.is_file():
        raise InputError(f"{chosen or run / CHECKPOINTS}: no whole checkpoint; the run has not saved one yet")
    found = re.fullmatch(r"step=(\d+)\.ckpt", chosen.name)
    if not found:
        raise InputError(f"{chosen}: no checkpoint by its name; give a step=N.ckpt of {run / CHECKPOINTS}")
    step = int(found[1])
    argv = ["--config", str(recipe), "--out", str(out or run.with_name(f"{run.name}-step-{step}"))]
    argv += ["--trainer.max_steps", str(step), "--trainer.strategy", "auto", "--trainer.precision", "32-true"]
    argv += ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.num_nodes", "1"]
    fit(argv, chosen)
