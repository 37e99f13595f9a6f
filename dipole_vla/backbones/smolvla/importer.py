"""SmolVLA's policy folders of lerobot -> `SmolVLA`.

config.json names the SmolVLM2 it begins with but holds none of its sizes: these are the published ones, or those of a
folder of that model. A folder is taken for what it is; for driving, `--horizon 8` makes the start of a fine-tuning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dipole_vla.backbones.experts import PUBLISHED_SOLVER
from dipole_vla.backbones.imported import Imported
from dipole_vla.backbones.lerobot import Folder, ego_state, pose_action, read_folder
from dipole_vla.backbones.smolvla.model import SmolVLA, SmolVLASizes
from dipole_vla.backbones.source_files import field, load_tokenizer, read_config
from dipole_vla.backbones.weights import assign_strict, check_names, record_from
from dipole_vla.solvers import SolverSpec
from navsim_adapter.foundation.errors import InputError

STEPS = ("smolvla_new_line_processor",)
PUBLISHED_VLM = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"

_PREFIX = "model.vlm_with_expert."
_HEAD = _PREFIX + "vlm.lm_head.weight"
_FILE = (  # our name -> the file's
    (r"^vlm\.", _PREFIX + "vlm.model."),
    (r"^lm_expert\.", _PREFIX + "lm_expert."),
    (r"^(action_time\.)?((state|action)_\w+)\.", r"model.\2."),
)


def read(
    source: Path,
    encoder: Path | None = None,
    tokenizer: Path | None = None,
    horizon: int | None = None,
    sizes: Mapping[str, Any] | None = None,
) -> Imported:
    """See `commands.import_.convert` for the options."""
    folder = read_folder(source, "smolvla", STEPS)
    folder.refuse(
        n_obs_steps=1, adapt_to_pi_aloha=False, use_delta_joint_actions_aloha=False, add_image_special_tokens=False
    )
    state, notes = ego_state(folder)
    vlm = _vlm_sizes(encoder) if encoder else _published_vlm(folder)
    config = record_from(SmolVLASizes, {**vlm, **_sizes(folder, vlm), **state, **(sizes or {})}, "--sizes")
    action, said = pose_action(folder, horizon, config.max_action)
    steps = int(folder.raw.get("num_steps") or PUBLISHED_SOLVER.steps)
    with torch.device("meta"):
        model = SmolVLA(config, action, SolverSpec("euler", steps=steps))
    assign_strict(model, _tensors(model, folder.tensors(), str(folder.weights)), str(folder.weights))
    model.load_assets(source / "nowhere")  # no assets yet: this computes the buffers that no file holds
    model.tokenizer = load_tokenizer(tokenizer or encoder or source)
    if model.tokenizer is None:
        notes.append("no tokenizer found, so it cannot read scenes yet; import with --encoder FOLDER of SmolVLM2")
    return Imported(model.eval(), notes=[*notes, *said, "SmolVLM2's language head is not used and was left out"])


def _tensors(model: SmolVLA, file: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The file's tensors under our names, after every key has been accounted for under the file's own."""
    state = model.state_dict()
    names = {ours: _published_name(ours) for ours in state}
    expected = {names[ours]: tensor for ours, tensor in state.items()}
    if _HEAD in file:
        expected[_HEAD] = state["vlm.text_model.embed_tokens.weight"]
    check_names(file, expected, where)
    return {ours: file[name] for ours, name in names.items()}


def _published_name(ours: str) -> str:
    for pattern, replacement in _FILE:
        if re.match(pattern, ours):
            return re.sub(pattern, replacement, ours, count=1)
    raise AssertionError(f"{ours} has no name in lerobot's files")


# --- sizes -----------------------------------------------------------------------------------------------------


def _sizes(folder: Folder, vlm: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says, given the VLM's own sizes."""
    raw, where = folder.raw, folder.where
    layers = field(raw, "num_vlm_layers", int, where)
    layers = layers if layers > 0 else vlm["text_layers"]
    if raw.get("num_expert_layers", -1) not in (layers, 0, -1):
        raise InputError(
            f"{where}: num_expert_layers is {raw['num_expert_layers']!r}; only -1 (as the VLM) can be imported"
        )
    picture = raw.get("resize_imgs_with_padding") or (0, 1)
    if picture[0] != picture[1]:
        raise InputError(
            f"{where}: resize_imgs_with_padding must be a square, got {raw.get('resize_imgs_with_padding')!r}"
        )
    width = int(vlm["text_width"] * float(raw.get("expert_width_multiplier", 0.75)))
    return {
        "text_layers": layers,
        "expert_width": width,
        "expert_hidden": _hidden(width),
        "joint_every": _joint_every(raw, where),
        "picture_size": int(picture[0]),
        "max_state": field(raw, "max_state_dim", int, where),
        "max_action": field(raw, "max_action_dim", int, where),
        "min_period": float(raw.get("min_period", SmolVLASizes.min_period)),
        "max_period": float(raw.get("max_period", SmolVLASizes.max_period)),
        "prompt_tokens": int(folder.prompt_tokens or raw.get("tokenizer_max_length", SmolVLASizes.prompt_tokens)),
    }


def _hidden(width: int) -> int:
    """Of an expert's MLP: 8/3 of the width, rounded up to whole 256s."""
    return -(-int(4 * int(2 * width / 3)) // 256) * 256


def _joint_every(raw: Mapping[str, Any], where: str) -> int:
    mode, every = raw.get("attention_mode", "cross_attn"), raw.get("self_attn_every_n_layers", 2)
    if mode not in ("cross_attn", "self_attn"):
        raise InputError(f"{where}: attention_mode must be cross_attn or self_attn, got {mode!r}")
    return 1 if mode == "self_attn" else max(int(every), 0)


def _published_vlm(folder: Folder) -> dict[str, Any]:
    name = folder.raw.get("vlm_model_name", PUBLISHED_VLM)
    if name != PUBLISHED_VLM:
        raise InputError(
            f"{folder.where}: begins with {name!r}, whose sizes are not known; pass its folder as --encoder"
        )
    return {"text_width": SmolVLASizes.text_width, "text_layers": 32}


def _vlm_sizes(folder: Path) -> dict[str, Any]:
    """Sizes in a SmolVLM2's own config.json."""
    raw, where = read_config(folder), str(folder / "config.json")
    if raw.get("model_type") != "smolvlm":
        raise InputError(f"{where}: is of type {raw.get('model_type')!r}, not smolvlm; pass the folder of SmolVLM2")
    text, vision = (field(raw, part, dict, where) for part in ("text_config", "vision_config"))
    here, there = f"{where}: text_config", f"{where}: vision_config"
    heads = field(text, "num_attention_heads", int, here)
    width = field(text, "hidden_size", int, here)
    return {
        "vision_width": field(vision, "hidden_size", int, there),
        "vision_layers": int(vision.get("num_hidden_layers", 12)),
        "vision_heads": field(vision, "num_attention_heads", int, there),
        "vision_hidden": int(vision.get("intermediate_size", 3072)),
        "vision_patch": field(vision, "patch_size", int, there),
        "image_size": field(vision, "image_size", int, there),
        "shuffle": field(raw, "scale_factor", int, where),
        "text_width": width,
        "text_layers": field(text, "num_hidden_layers", int, here),
        "text_heads": heads,
        "text_kv_heads": field(text, "num_key_value_heads", int, here),
        "text_hidden": field(text, "intermediate_size", int, here),
        "text_vocabulary": field(text, "vocab_size", int, here),
        "head_dim": int(text.get("head_dim") or width // heads),
        "norm_eps": float(text.get("rms_norm_eps", SmolVLASizes.norm_eps)),
    }
