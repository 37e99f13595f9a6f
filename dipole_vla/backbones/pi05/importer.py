"""PI0.5's policy folders of lerobot -> `PI05`.

A folder is taken for what it is; for driving, `--horizon 8` makes the start of a fine-tuning.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dipole_vla.backbones.experts import PUBLISHED_SOLVER
from dipole_vla.backbones.imported import Imported
from dipole_vla.backbones.lerobot import ego_state, pose_action, read_folder
from dipole_vla.backbones.paligemma.importer import lerobot_sizes, tensors_of
from dipole_vla.backbones.pi05.model import PI05, PI05Sizes
from dipole_vla.backbones.source_files import load_tokenizer
from dipole_vla.backbones.weights import assign_strict, record_from
from dipole_vla.solvers import SolverSpec

STEPS = ("pi05_prepare_state_tokenizer_processor_step",)


def read(
    source: Path, tokenizer: Path | None = None, horizon: int | None = None, sizes: Mapping[str, Any] | None = None
) -> Imported:
    """See `commands.import_.convert` for the options."""
    folder = read_folder(source, "pi05", STEPS)
    folder.refuse(use_relative_actions=False, n_obs_steps=1)
    state, notes = ego_state(folder)
    told = {**lerobot_sizes(folder.raw, folder.where), **state}
    told["prompt_tokens"] = folder.prompt_tokens or PI05Sizes.prompt_tokens
    config = record_from(PI05Sizes, {**told, **(sizes or {})}, "--sizes")
    action, said = pose_action(folder, horizon, config.max_action)
    steps = int(folder.raw.get("num_inference_steps") or PUBLISHED_SOLVER.steps)
    with torch.device("meta"):
        model = PI05(config, action, SolverSpec("euler", steps=steps))
    where = str(folder.weights)
    assign_strict(model, tensors_of(model, folder.tensors(), where), where)
    model.load_assets(source / "nowhere")  # no assets yet: this computes the buffers that no file holds
    model.tokenizer = load_tokenizer(tokenizer or source)
    if model.tokenizer is None:
        notes.append("no tokenizer found, so it cannot read scenes yet; import with --tokenizer FOLDER of PaliGemma's")
    return Imported(
        model.eval(), notes=[*notes, *said, "the language head and the expert's are not used and were left out"]
    )
