"""PI0's published folders -> `PI0`: transformers' own form and lerobot's, whose files share one set of names.

A folder is taken for what it is; for driving, `--horizon 8` makes the start of a fine-tuning. Statistics of a robot's
state and actions are not taken over.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dipole_vla.backbones.base import ActionSpec
from dipole_vla.backbones.experts import PUBLISHED_SOLVER
from dipole_vla.backbones.imported import Imported
from dipole_vla.backbones.paligemma.importer import common_sizes, lerobot_sizes, tensors_of
from dipole_vla.backbones.pi0.model import PI0, PI0Sizes
from dipole_vla.backbones.source_files import (
    check_pixels,
    field,
    load_tokenizer,
    read_config,
    read_weights,
    weights_path,
)
from dipole_vla.backbones.weights import assign_strict
from dipole_vla.solvers import SolverSpec
from navsim_adapter.foundation.errors import InputError


def read(source: Path, tokenizer: Path | None = None, horizon: int | None = None) -> Imported:
    """See `commands.import_.convert` for the options."""
    raw, where = read_config(source), str(source / "config.json")
    path = weights_path(source)
    check_pixels(source, (0.5,) * 3, (0.5,) * 3)
    if path is None:
        raise InputError(f"{source}: has no weights (model.safetensors or its index); download them")
    if raw.get("model_type") == "pi0":
        sizes = _native_sizes(raw, where)
    elif raw.get("type") == "pi0":
        sizes = PI0Sizes(**lerobot_sizes(raw, where))
    else:
        kind = raw.get("type", raw.get("model_type"))
        raise InputError(f"{where}: is of type {kind!r}, not pi0; pass the folder of a PI0 model")
    steps = int(raw.get("num_inference_steps") or raw.get("num_steps") or PUBLISHED_SOLVER.steps)
    action = ActionSpec(horizon or field(raw, "chunk_size", int, where), dim=sizes.max_action, is_padded=True)
    with torch.device("meta"):
        model = PI0(sizes, action, SolverSpec("euler", steps=steps))
    assign_strict(model, tensors_of(model, read_weights(path), str(path)), str(path))
    model.load_assets(source / "nowhere")  # no assets yet: this computes the buffers that no file holds
    model.tokenizer = load_tokenizer(tokenizer or source)
    notes = ["the expert's token table is not used and was left out"]
    if model.tokenizer is None:
        notes.append("no tokenizer found, so it cannot read scenes yet; import with --tokenizer FOLDER")
    if horizon is None:
        notes.append(f"plans have the checkpoint's {action.horizon} steps; for driving import with --horizon 8")
    return Imported(model.eval(), notes=notes)


# --- sizes -----------------------------------------------------------------------------------------------------


def _native_sizes(raw: Mapping[str, Any], where: str) -> PI0Sizes:
    vlm, expert = _section(raw, "vlm_config", where), _section(raw, "dit_config", where)
    text = _section(vlm, "text_config", f"{where}: vlm_config")
    vision = _section(vlm, "vision_config", f"{where}: vlm_config")
    here, there, third = (f"{where}: {part}" for part in ("text_config", "vision_config", "dit_config"))
    for one, other in (("num_hidden_layers", here), ("num_key_value_heads", here), ("head_dim", here)):
        if expert.get(one, text.get(one)) != text.get(one):
            raise InputError(f"{third}: {one} is {expert[one]}, {other} says {text.get(one)}; they must be equal")
    return PI0Sizes(
        vision_width=field(vision, "hidden_size", int, there),
        vision_layers=field(vision, "num_hidden_layers", int, there),
        vision_heads=field(vision, "num_attention_heads", int, there),
        vision_hidden=field(vision, "intermediate_size", int, there),
        vision_patch=field(vision, "patch_size", int, there),
        image_size=field(vision, "image_size", int, there),
        text_width=field(text, "hidden_size", int, here),
        text_layers=field(text, "num_hidden_layers", int, here),
        text_heads=field(text, "num_attention_heads", int, here),
        text_kv_heads=field(text, "num_key_value_heads", int, here),
        text_hidden=field(text, "intermediate_size", int, here),
        text_vocabulary=field(text, "vocab_size", int, here),
        head_dim=int(text.get("head_dim", PI0Sizes.head_dim)),
        image_token=int(vlm.get("image_token_id", vlm.get("image_token_index", PI0Sizes.image_token))),
        expert_width=field(expert, "hidden_size", int, third),
        expert_hidden=field(expert, "intermediate_size", int, third),
        expert_heads=field(expert, "num_attention_heads", int, third),
        **common_sizes(raw, where),
    )


def _section(raw: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    if not isinstance(raw.get(name), Mapping):
        raise InputError(f"{where}: {name} is missing; pass the config.json that belongs to these weights")
    return raw[name]
