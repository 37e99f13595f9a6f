"""Files of a PaliGemma prefix with a Gemma expert -> our tensors and sizes: what PI0's and PI0.5's files share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dipole_vla.backbones.paligemma.expert import PaliGemmaExpert, PaliGemmaSizes
from dipole_vla.backbones.source_files import field
from dipole_vla.backbones.weights import check_names
from navsim_adapter.foundation.errors import InputError, did_you_mean

_EXPERT, _VLM = "paligemma_with_expert.gemma_expert.", "paligemma_with_expert.paligemma."
_TABLE = "model.vlm.language_model.embed_tokens.weight"

_OURS = (  # a file's name (without a leading `model.` of lerobot's) -> ours
    (rf"^{re.escape(_VLM)}model\.", "model.vlm."),
    (rf"^{re.escape(_EXPERT)}model\.", "model.dit."),
    (r"^(state_proj|action_in_proj|(action_)?time_mlp_(in|out))\.", r"embed_action_time.\1."),
    (r"^model\.vlm\.vision_tower\.vision_model\.", "model.vlm.vision_tower."),
    (r"^model\.vlm\.language_model\.model\.", "model.vlm.language_model."),
)
_UNUSED = ("model.dit.embed_tokens.weight", _EXPERT + "lm_head.weight")  # the expert's token table, under either name
_HEADS = (_VLM + "lm_head.weight", "lm_head.weight")

VARIANTS = {  # lerobot's names for sizes: width, layers, hidden, heads, key-value heads, width of a head
    "gemma_300m": (1024, 18, 4096, 8, 1, 256),
    "gemma_2b": (2048, 18, 16384, 8, 1, 256),
}


def tensors_of(model: PaliGemmaExpert, file: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The file's tensors under our names, after every key has been accounted for under the file's own.

    The prefix's language head is never used. Files that hold it alone, once tied, mean it as the token table; beside a
    table of its own it may differ, since lerobot 0.5 and later no longer tie them.
    """
    wanted = model.state_dict()
    places: dict[str, str] = {}
    heads = [name for name in file if name.removeprefix("model.") in _HEADS]
    unused = torch.empty(model.config.text_vocabulary, model.config.expert_width, device="meta")
    expected = dict.fromkeys(heads, wanted[_TABLE])
    for name in file:
        ours = _our_name(name)
        if ours in _UNUSED:
            expected[name] = unused
        elif ours in wanted:
            if ours in places:
                raise InputError(f"{where}: {name} and {places[ours]} are the same tensor twice; keep one of them")
            places[ours] = name
            expected[name] = wanted[ours]
    if heads:
        places.setdefault(_TABLE, heads[0])
    expected |= {_published_name(name, file): wanted[name] for name in wanted if name not in places}
    check_names(file, expected, where)
    return {ours: file[name] for ours, name in places.items()}


def _our_name(name: str) -> str:
    if re.match(r"model\.(paligemma_with_expert|state_proj|action_|time_)", name):
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
    if any(".vision_tower.vision_model." in name for name in file):
        name = name.replace(".vision_tower.", ".vision_tower.vision_model.")
    return prefix + name.removeprefix("embed_action_time.")


def lerobot_sizes(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Sizes that lerobot's config.json tells by variant; of the vision tower it says nothing."""
    text = _variant(raw.get("paligemma_variant", "gemma_2b"), f"{where}: paligemma_variant")
    expert = _variant(raw.get("action_expert_variant", "gemma_300m"), f"{where}: action_expert_variant")
    size = raw.get("image_resolution") or raw.get("resize_imgs_with_padding") or (PaliGemmaSizes.image_size,) * 2
    if size[0] != size[1]:
        raise InputError(f"{where}: image size {size!r} must be square; this model cannot be imported")
    return {
        "image_size": int(size[0]),
        "text_width": text[0],
        "text_layers": text[1],
        "text_hidden": text[2],
        "text_heads": text[3],
        "text_kv_heads": text[4],
        "head_dim": text[5],
        "expert_width": expert[0],
        "expert_hidden": expert[2],
        "expert_heads": expert[3],
        "prompt_tokens": int(raw.get("tokenizer_max_length", PaliGemmaSizes.prompt_tokens)),
        **common_sizes(raw, where),
    }


def common_sizes(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Sizes that both forms of config.json name alike."""
    return {
        "max_state": field(raw, "max_state_dim", int, where),
        "max_action": field(raw, "max_action_dim", int, where),
        "min_period": float(raw.get("min_period", PaliGemmaSizes.min_period)),
        "max_period": float(raw.get("max_period", PaliGemmaSizes.max_period)),
    }


def _variant(name: Any, where: str) -> tuple[int, ...]:
    if name not in VARIANTS:
        hint = did_you_mean(str(name), list(VARIANTS))
        raise InputError(f"{where}: {name!r} is not known{hint}; known are {', '.join(VARIANTS)}")
    return VARIANTS[name]
