"""Published InternVL folders -> our language model: the remote-code naming and transformers' own.

Everything is checked under the file's own names. The LM head must be there as published, but is not kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dipole_vla.backbones.internvl import model as internvl
from dipole_vla.backbones.internvl.model import InternVLSizes
from dipole_vla.backbones.observing import IMAGE_MEAN, IMAGE_STD
from dipole_vla.backbones.source_files import check_pixels, field, read_config, read_weights, weights_path
from dipole_vla.backbones.weights import check_names
from navsim_adapter.foundation.errors import InputError

_PUBLISHED = (  # transformers' name (under vlm.) -> the remote code's
    (r"^vision_tower\.embeddings\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^vision_tower\.embeddings\.position_embeddings$", "vision_model.embeddings.position_embedding"),
    (r"^vision_tower\.embeddings\.patch_embeddings\.projection\.", "vision_model.embeddings.patch_embedding."),
    (r"^vision_tower\.encoder\.layer\.", "vision_model.encoder.layers."),
    (r"\.attention\.projection_layer\.", ".attn.proj."),
    (r"\.attention\.([qk])_norm\.", r".attn.\1_norm."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.lambda_([12])$", r".ls\1"),
    (r"^multi_modal_projector\.layer_norm\.", "mlp1.0."),
    (r"^multi_modal_projector\.linear_1\.", "mlp1.1."),
    (r"^multi_modal_projector\.linear_2\.", "mlp1.3."),
    (r"^language_model\.", "language_model.model."),
)
_SPLIT = re.compile(r"^(vision_model\.encoder\.layers\.\d+)\.attention\.([qkv])_proj\.(weight|bias)$")


def is_internvl(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of an InternVL folder, in either form."""
    return raw.get("model_type") in ("internvl_chat", "internvl")


def find_folder(source: Path, given: Path | None) -> Path | None:
    """The language model's folder: the one given, the source itself, or the only one in it or beside the file."""
    if given is not None:
        return given
    folder = source if source.is_dir() else source.parent
    places = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    found = [place for place in places if (place / "config.json").is_file() and is_internvl(read_config(place))]
    return found[0] if len(found) == 1 else None


def read_sizes(folder: Path) -> InternVLSizes:
    """Sizes from the folder's configuration; InputError for what transformers' class cannot be."""
    raw, where = read_config(folder), str(folder / "config.json")
    if not is_internvl(raw):
        raise InputError(f"{where}: model_type is {raw.get('model_type')!r}, not internvl_chat or internvl")
    check_pixels(folder, IMAGE_MEAN, IMAGE_STD)
    return _published_sizes(raw, where) if raw["model_type"] == "internvl_chat" else _native_sizes(raw, where)


def read_weights_of(folder: Path, sizes: InternVLSizes) -> dict[str, Tensor]:
    """The folder's tensors under our names."""
    path = weights_path(folder)
    if path is None:
        raise InputError(f"{folder}: has no weights (model.safetensors or its index); download them")
    return to_ours(read_weights(path), sizes, str(path))


def to_ours(file: Mapping[str, Tensor], sizes: InternVLSizes, where: str, prefix: str = "") -> dict[str, Tensor]:
    """Tensors of a language model in either naming, each name after `prefix`, under our names (without `vlm.`)."""
    with torch.device("meta"):
        ours = internvl.build(sizes).state_dict()
    is_published = any(name.startswith(prefix + "vision_model.") for name in file)
    head = prefix + ("language_model.lm_head.weight" if is_published else "lm_head.weight")
    places = {name: prefix + (published_name(name) if is_published else f"model.{name}") for name in ours}
    wanted: dict[str, Tensor] = {}
    for name, place in places.items():
        shape = ours[name].shape
        if is_published and _fused(name):
            shape = torch.Size([3 * shape[0], *shape[1:]])
        wanted[place] = torch.empty(shape, device="meta")
    if is_published or head in file:  # the native form leaves a tied head out
        wanted[head] = torch.empty(sizes.text_vocabulary, sizes.text_width, device="meta")
    check_names(file, wanted, where)
    return {name: _part(name, file[place]) if is_published else file[place] for name, place in places.items()}


def published_name(name: str) -> str:
    """Where one of our tensors is in the remote code's naming; queries, keys and values share one place."""
    for pattern, replacement in _PUBLISHED:
        name = re.sub(pattern, replacement, name, count=1)
    return _SPLIT.sub(r"\1.attn.qkv.\3", name)


def _fused(name: str) -> bool:
    return "vision_tower" in name and re.search(r"\.attention\.[qkv]_proj\.", name) is not None


def _part(name: str, tensor: Tensor) -> Tensor:
    """The third of a fused tensor that is this name's, or all of another."""
    if not _fused(name):
        return tensor
    letter = name.split(".attention.")[1][0]
    return tensor.chunk(3)["qkv".index(letter)].clone()


def _published_sizes(raw: Mapping[str, Any], where: str) -> InternVLSizes:
    vision, text = (_section(raw, name, where) for name in ("vision_config", "llm_config"))
    there, here = f"{where}: vision_config", f"{where}: llm_config"
    _check(raw.get("select_layer", -1), -1, f"{where}: select_layer")
    _check(raw.get("ps_version", "v2"), "v2", f"{where}: ps_version")
    _check(vision.get("hidden_act", "gelu"), "gelu", f"{there}: hidden_act")
    _check(_text_kind(text), "qwen2", f"{here}: model_type")
    return InternVLSizes(
        vision_width=field(vision, "hidden_size", int, there),
        vision_layers=field(vision, "num_hidden_layers", int, there),
        vision_heads=field(vision, "num_attention_heads", int, there),
        vision_hidden=field(vision, "intermediate_size", int, there),
        vision_patch=field(vision, "patch_size", int, there),
        vision_qkv_bias=bool(vision.get("qkv_bias", False)),
        vision_qk_norm=bool(vision.get("qk_normalization", False)),
        vision_norm=str(vision.get("norm_type", "layer_norm")),
        vision_epsilon=float(vision.get("layer_norm_eps", 1e-6)),
        tile_size=int(raw.get("force_image_size") or field(vision, "image_size", int, there)),
        downsample=float(raw.get("downsample_ratio", 0.5)),
        **_text_sizes(text, here),
    )


def _native_sizes(raw: Mapping[str, Any], where: str) -> InternVLSizes:
    vision, text = (_section(raw, name, where) for name in ("vision_config", "text_config"))
    there, here = f"{where}: vision_config", f"{where}: text_config"
    _check(raw.get("vision_feature_layer", -1), -1, f"{where}: vision_feature_layer")
    _check(_text_kind(text), "qwen2", f"{here}: model_type")
    sizes = InternVLSizes(
        vision_width=field(vision, "hidden_size", int, there),
        vision_layers=field(vision, "num_hidden_layers", int, there),
        vision_heads=field(vision, "num_attention_heads", int, there),
        vision_hidden=field(vision, "intermediate_size", int, there),
        vision_patch=_side(vision.get("patch_size", 14)),
        vision_qkv_bias=bool(vision.get("attention_bias", False)),
        vision_qk_norm=bool(vision.get("use_qk_norm", False)),
        vision_norm=str(vision.get("norm_type", "layer_norm")),
        vision_epsilon=float(vision.get("layer_norm_eps", 1e-6)),
        tile_size=_side(vision.get("image_size", 448)),
        downsample=float(raw.get("downsample_ratio", 0.5)),
        **_text_sizes(text, here),
    )
    return replace(sizes, image_token=int(raw.get("image_token_id", sizes.image_token)))


def _text_sizes(text: Mapping[str, Any], where: str) -> dict[str, Any]:
    heads = field(text, "num_attention_heads", int, where)
    _check(text.get("hidden_act", "silu"), "silu", f"{where}: hidden_act")
    _check(bool(text.get("use_sliding_window", False)), False, f"{where}: use_sliding_window")
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "dynamic"):
        raise InputError(f"{where}: rope type must be default or dynamic, got {kind!r}; not supported")
    return {
        "text_width": field(text, "hidden_size", int, where),
        "text_layers": field(text, "num_hidden_layers", int, where),
        "text_heads": heads,
        "text_kv_heads": int(text.get("num_key_value_heads") or heads),
        "text_hidden": field(text, "intermediate_size", int, where),
        "text_vocabulary": field(text, "vocab_size", int, where),
        "text_positions": int(text.get("max_position_embeddings", 32768)),
        "text_rope_base": float(rope.get("rope_theta", text.get("rope_theta", 10000.0))),
        "text_rope_factor": float(rope.get("factor", 1.0)) if kind == "dynamic" else 1.0,
        "text_epsilon": float(text.get("rms_norm_eps", 1e-6)),
    }


def _text_kind(text: Mapping[str, Any]) -> str:
    names = text.get("architectures") or []
    return str(text.get("model_type") or (names[0].removesuffix("ForCausalLM").lower() if names else "qwen2"))


def _section(raw: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    if not isinstance(raw.get(name), Mapping):
        raise InputError(f"{where}: {name} is missing; pass the folder of an InternVL model")
    return raw[name]


def _side(size: Any) -> int:
    return int(size[0]) if isinstance(size, list | tuple) else int(size)


def _check(found: Any, wanted: Any, where: str) -> None:
    if found != wanted:
        raise InputError(f"{where}: must be {wanted!r}, got {found!r}; this language model cannot be imported")
