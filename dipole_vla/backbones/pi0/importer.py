"""PI0's published folders -> `PI0`: transformers' own form and lerobot's, whose files share one set of names.

A folder is taken for what it is; for driving, `--horizon 8` makes the start of a fine-tuning. Statistics of a robot's
state and actions are not taken over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dipole_vla.backbones.base import ActionSpec
from dipole_vla.backbones.imported import Imported
from dipole_vla.backbones.pi0.model import PI0, PUBLISHED_SOLVER, PI0Sizes
from dipole_vla.backbones.source_files import (
    check_pixels,
    field,
    load_tokenizer,
    read_config,
    read_weights,
    weights_path,
)
from dipole_vla.backbones.weights import assign_strict, check_names
from dipole_vla.solvers import SolverSpec
from navsim_adapter.foundation.errors import InputError, did_you_mean

_EXPERT, _VLM = "paligemma_with_expert.gemma_expert.", "paligemma_with_expert.paligemma."
_TABLE = "model.vlm.language_model.embed_tokens.weight"

_OURS = (  # a file's name (without a leading `model.` of lerobot's) -> ours
    (rf"^{re.escape(_VLM)}model\.", "model.vlm."),
    (rf"^{re.escape(_EXPERT)}model\.", "model.dit."),
    (r"^(state_proj|action_in_proj|action_time_mlp_in|action_time_mlp_out)\.", r"embed_action_time.\1."),
    (r"^model\.vlm\.vision_tower\.vision_model\.", "model.vlm.vision_tower."),
    (r"^model\.vlm\.language_model\.model\.", "model.vlm.language_model."),
)
_UNUSED = ("model.dit.embed_tokens.weight", _EXPERT + "lm_head.weight")  # the expert's token table, under either name
_TIED = (_VLM + "lm_head.weight", "lm_head.weight")  # the prefix's token table, as its head

VARIANTS = {  # lerobot's names for sizes: width, layers, hidden, heads, key-value heads, width of a head
    "gemma_300m": (1024, 18, 4096, 8, 1, 256),
    "gemma_2b": (2048, 18, 16384, 8, 1, 256),
}


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
        sizes = _lerobot_sizes(raw, where)
    else:
        kind = raw.get("type", raw.get("model_type"))
        raise InputError(f"{where}: is of type {kind!r}, not pi0; pass the folder of a PI0 model")
    steps = int(raw.get("num_inference_steps") or raw.get("num_steps") or PUBLISHED_SOLVER.steps)
    action = ActionSpec(horizon or field(raw, "chunk_size", int, where), dim=sizes.max_action, is_padded=True)
    with torch.device("meta"):
        model = PI0(sizes, action, SolverSpec("euler", steps=steps))
    assign_strict(model, _tensors(model, read_weights(path), str(path)), str(path))
    model.load_assets(source / "nowhere")  # no assets yet: this computes the buffers that no file holds
    model.tokenizer = load_tokenizer(tokenizer or source)
    notes = ["the expert's token table is not used and was left out"]
    if model.tokenizer is None:
        notes.append("no tokenizer found, so it cannot read scenes yet; import with --tokenizer FOLDER")
    if horizon is None:
        notes.append(f"plans have the checkpoint's {action.horizon} steps; for driving import with --horizon 8")
    return Imported(model.eval(), notes=notes)


def _tensors(model: PI0, file: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The file's tensors under our names, after every key has been accounted for under the file's own."""
    wanted = model.state_dict()
    places: dict[str, str] = {}
    expected: dict[str, Tensor] = {}
    tables = []
    for name in file:
        ours = _our_name(name)
        plain = name.removeprefix("model.") if "paligemma_with_expert" in name else name
        if ours in _UNUSED or plain in _UNUSED:
            expected[name] = torch.empty(model.config.text_vocabulary, model.config.expert_width, device="meta")
        elif plain in _TIED or ours == _TABLE:
            tables.append(name)
            expected[name] = wanted[_TABLE]
        elif ours in wanted:
            if ours in places:
                raise InputError(f"{where}: {name} and {places[ours]} are the same tensor twice; keep one of them")
            places[ours] = name
            expected[name] = wanted[ours]
    missing = [name for name in wanted if name not in places and name != _TABLE]
    if not tables:
        missing.append(_TABLE)
    expected |= {_published_name(name, file): wanted[name] for name in missing}
    check_names(file, expected, where)
    for other in tables[1:]:
        if not torch.equal(file[tables[0]], file[other]):
            raise InputError(f"{where}: {tables[0]} and {other} differ, but are one tied table; save the model again")
    return {**{ours: file[name] for ours, name in places.items()}, _TABLE: file[tables[0]]}


def _our_name(name: str) -> str:
    if re.match(r"model\.(paligemma_with_expert|state_proj|action_)", name):
        name = name.removeprefix("model.")
    for pattern, replacement in _OURS:
        name = re.sub(pattern, replacement, name, count=1)
    return name


def _published_name(ours: str, file: Mapping[str, Tensor]) -> str:
    """What the file would call one of our tensors: in a message, the user sees the names of the file."""
    if not any("paligemma_with_expert" in name for name in file):
        return ours
    prefix = "model." if any(name.startswith("model.paligemma_with_expert") for name in file) else ""
    name = ours.replace("model.vlm.", _VLM + "model.").replace("model.dit.", _EXPERT + "model.")
    return prefix + name.removeprefix("embed_action_time.")


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
        **_common(raw, where),
    )


def _lerobot_sizes(raw: Mapping[str, Any], where: str) -> PI0Sizes:
    text = _variant(raw.get("paligemma_variant", "gemma_2b"), f"{where}: paligemma_variant")
    expert = _variant(raw.get("action_expert_variant", "gemma_300m"), f"{where}: action_expert_variant")
    size = raw.get("image_resolution") or raw.get("resize_imgs_with_padding") or (PI0Sizes.image_size,) * 2
    if size[0] != size[1]:
        raise InputError(f"{where}: image size {size!r} must be square; this model cannot be imported")
    return PI0Sizes(
        image_size=int(size[0]),
        text_width=text[0],
        text_layers=text[1],
        text_hidden=text[2],
        text_heads=text[3],
        text_kv_heads=text[4],
        head_dim=text[5],
        expert_width=expert[0],
        expert_hidden=expert[2],
        expert_heads=expert[3],
        prompt_tokens=int(raw.get("tokenizer_max_length", PI0Sizes.prompt_tokens)),
        **_common(raw, where),
    )


def _common(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    return {
        "max_state": field(raw, "max_state_dim", int, where),
        "max_action": field(raw, "max_action_dim", int, where),
        "min_period": float(raw.get("min_period", PI0Sizes.min_period)),
        "max_period": float(raw.get("max_period", PI0Sizes.max_period)),
    }


def _variant(name: Any, where: str) -> tuple[int, ...]:
    if name not in VARIANTS:
        hint = did_you_mean(str(name), list(VARIANTS))
        raise InputError(f"{where}: {name!r} is not known{hint}; known are {', '.join(VARIANTS)}")
    return VARIANTS[name]


def _section(raw: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    if not isinstance(raw.get(name), Mapping):
        raise InputError(f"{where}: {name} is missing; pass the config.json that belongs to these weights")
    return raw[name]
