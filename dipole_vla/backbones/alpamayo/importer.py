"""Published Alpamayo folders -> `Alpamayo`: versions 1 and 1.5, whose files share one set of names.

The folder describes the expert and the actions; the language model's sizes and tokenizer are in a folder of their own,
which its config.json names (`vlm_name_or_path`) and `--encoder` gives.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from dipole_vla.backbones.alpamayo.input import FEW_NAMED, NAMED, Bins, expanded, id_of
from dipole_vla.backbones.alpamayo.model import PUBLISHED_SOLVER, Alpamayo, AlpamayoSizes
from dipole_vla.backbones.imported import Imported
from dipole_vla.backbones.source_files import (
    check_pixels,
    field,
    load_tokenizer,
    read_config,
    read_weights,
    weights_path,
)
from dipole_vla.backbones.unicycle import Unicycle
from dipole_vla.backbones.weights import assign_strict, check_names
from dipole_vla.solvers import SolverSpec
from navsim_adapter.foundation.errors import InputError

KINDS = {"alpamayo_r1": False, "alpamayo1_5": True, "alpamayo_reasoning_vla_expert": True}
"""model_type -> whether the prompt names cameras, frames and the route."""
LICENCE = (
    "these weights are gated and for research only (non-commercial), and so is what is trained from them; "
    "see their model card"
)
PIXELS = (0.5,) * 3, (0.5,) * 3
"""Mean and deviation that pictures are shown with."""
_TABLE, _HEAD = "vlm.model.language_model.embed_tokens.weight", "vlm.lm_head.weight"
_COMPUTED = re.compile(r"action_space\.\w+|action_in_proj\.(sinus\.\d+|timestep_fourier_encoder)\.freqs")
"""Numbers of the configuration that version 1 also keeps among the weights."""


def read(
    source: Path, encoder: Path | None = None, tokenizer: Path | None = None, reasoning: int | None = None
) -> Imported:
    """See `commands.import_.convert` for the options."""
    raw, where = read_config(source), str(source / "config.json")
    if raw.get("model_type") not in KINDS:
        known = ", ".join(KINDS)
        raise InputError(
            f"{where}: model_type is {raw.get('model_type')!r}, not one of {known}; pass an Alpamayo folder"
        )
    path = weights_path(source)
    if path is None:
        raise InputError(
            f"{source}: has no weights (model.safetensors or its index); they are gated: accept their licence on the "
            "model card, then download the folder"
        )
    check_pixels(source, *PIXELS)
    vlm = _language_model(source, raw, encoder, where)
    words = _tokenizer(source, raw, tokenizer or vlm, where)
    sizes = _sizes(raw, read_config(vlm), words, reasoning or 0, where, str(vlm / "config.json"))
    action, solver = _action(raw, where), _solver(raw, where)
    with torch.device("meta"):
        model = Alpamayo(sizes, action, solver)
    assign_strict(model, _tensors(model, read_weights(path), str(path)), str(path))
    model.load_assets(source / "nowhere")  # no assets yet: this computes the buffers that no file holds
    model.tokenizer = words
    notes = [LICENCE, f"plans have {action.horizon} poses every {action.interval:g} s"]
    if not sizes.reasoning:
        notes.append("plans are made without reasoning before them; for some import with --reasoning TOKENS")
    return Imported(model.eval(), notes=notes)


def _tensors(model: Alpamayo, file: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The file's tensors, after every key has been accounted for; the tied head as a tensor of its own."""
    wanted = dict(model.state_dict())
    extra = {name: tensor for name, tensor in file.items() if _COMPUTED.fullmatch(name)}
    found = {name: tensor for name, tensor in file.items() if name not in extra}
    for name, tensor in extra.items():
        _check_computed(model, name, tensor, where)
    if _HEAD not in found and _TABLE in found:
        found[_HEAD] = found[_TABLE].clone()
    check_names(found, wanted, where)
    return found


def _check_computed(model: Alpamayo, name: str, tensor: Tensor, where: str) -> None:
    """InputError where a number kept among the weights is not the one that the configuration gives."""
    action, (half, highest) = model.action, model.action_in_proj.frequencies
    ours = {
        "action_space.accel_mean": action.offset[0],
        "action_space.curvature_mean": action.offset[1],
        "action_space.accel_std": action.scale[0],
        "action_space.curvature_std": action.scale[1],
    }
    if not name.endswith(".freqs") and name not in ours:
        raise InputError(f"{where}: unexpected key {name}; this file is of another model or configuration")
    wanted = torch.logspace(0, torch.tensor(highest).log10().item(), half) if name.endswith(".freqs") else ours[name]
    wanted = torch.as_tensor(wanted, dtype=torch.float32)
    if tensor.numel() != wanted.numel() or not torch.allclose(tensor.float().reshape(wanted.shape), wanted, rtol=1e-2):
        raise InputError(f"{where}: {name} differs from what config.json says; pass the config.json of these weights")


def _language_model(source: Path, raw: Mapping[str, Any], given: Path | None, where: str) -> Path:
    """The folder of the language model's configuration: the one given, or the one named, where it is beside us."""
    named = str(raw.get("vlm_name_or_path"))
    places = [given] if given is not None else [source / named, source.parent / named, Path(named)]
    for place in places:
        if (place / "config.json").is_file() and place.resolve() != source.resolve():
            check_pixels(place, *PIXELS)
            return place
    raise InputError(
        f"{where}: names the language model {named!r}, of which sizes and tokenizer are needed; pass --encoder FOLDER "
        "with its config.json and tokenizer files (no weights)"
    )


def _tokenizer(source: Path, raw: Mapping[str, Any], folder: Path, where: str) -> PreTrainedTokenizerFast:
    """The tokenizer with all of the model's own tokens."""
    own = load_tokenizer(source)
    words = own if own is not None and "<i0>" in own.get_vocab() else load_tokenizer(folder)
    if words is None:
        raise InputError(
            f"{folder}: has no tokenizer files; pass --tokenizer FOLDER of {raw.get('vlm_name_or_path')!r}"
        )
    if "<i0>" not in words.get_vocab():
        names = NAMED if raw.get("add_special_tokens") or raw["model_type"] == "alpamayo1_5" else FEW_NAMED
        words = expanded(words, field(raw, "traj_vocab_size", int, where), names)
    first = raw.get("traj_token_start_idx", id_of(words, "<i0>"))
    found, named = id_of(words, "<i0>"), raw.get("vlm_name_or_path")
    if found != first or len(words) > int(raw.get("vocab_size", len(words))):
        raise InputError(
            f"{folder}: its tokenizer has {len(words)} tokens, trajectories from {found}; {where} says "
            f"{raw.get('vocab_size')} and {first}: pass --tokenizer FOLDER of {named!r}"
        )
    return words


def _sizes(
    raw: Mapping[str, Any],
    vlm: Mapping[str, Any],
    words: PreTrainedTokenizerFast,
    reasoning: int,
    where: str,
    there: str,
) -> AlpamayoSizes:
    if vlm.get("model_type") != "qwen3_vl":
        raise InputError(
            f"{there}: model_type is {vlm.get('model_type')!r}, not qwen3_vl; pass --encoder of this model"
        )
    text, vision = _section(vlm, "text_config", there), _section(vlm, "vision_config", there)
    expert = {**text, **_section(raw, "expert_cfg", where)}
    here, eye, third = f"{there}: text_config", f"{there}: vision_config", f"{where}: expert_cfg"
    for name in ("num_hidden_layers", "num_key_value_heads", "head_dim"):
        _check(expert.get(name), text.get(name), f"{third}: {name}")
    _check(raw.get("expert_non_causal_attention", True), True, f"{where}: expert_non_causal_attention")
    rope = text.get("rope_parameters") or {**(text.get("rope_scaling") or {}), "rope_theta": text.get("rope_theta")}
    _check(rope.get("rope_type", "default"), "default", f"{here}: rope type")
    project = _part(raw, "action_in_proj_cfg", "PerWaypointActionInProjV2", where)
    _part(raw, "action_out_proj_cfg", "Linear", where)
    bins = _bins(raw, words, where)
    vocabulary = field(raw, "vocab_size", int, where) if "vocab_size" in raw else len(words)
    return AlpamayoSizes(
        vision_width=field(vision, "hidden_size", int, eye),
        vision_layers=field(vision, "depth", int, eye),
        vision_heads=field(vision, "num_heads", int, eye),
        vision_hidden=field(vision, "intermediate_size", int, eye),
        vision_patch=field(vision, "patch_size", int, eye),
        vision_merge=field(vision, "spatial_merge_size", int, eye),
        vision_positions=field(vision, "num_position_embeddings", int, eye),
        vision_deep=tuple(field(vision, "deepstack_visual_indexes", list, eye)),
        text_width=field(text, "hidden_size", int, here),
        text_layers=field(text, "num_hidden_layers", int, here),
        text_heads=field(text, "num_attention_heads", int, here),
        text_kv_heads=field(text, "num_key_value_heads", int, here),
        text_hidden=field(text, "intermediate_size", int, here),
        text_vocabulary=vocabulary,
        head_dim=field(text, "head_dim", int, here),
        rope_base=field(rope, "rope_theta", float, here),
        rope_sections=tuple(rope.get("mrope_section", AlpamayoSizes.rope_sections)),
        epsilon=float(text.get("rms_norm_eps", AlpamayoSizes.epsilon)),
        expert_width=field(expert, "hidden_size", int, third),
        expert_hidden=field(expert, "intermediate_size", int, third),
        expert_heads=field(expert, "num_attention_heads", int, third),
        input_layers=int(project.get("num_enc_layers", 4)),
        input_width=int(project.get("hidden_size", 1024)),
        fourier=int(project.get("num_fourier_feats", 20)),
        max_frequency=float(project.get("max_freq", 100.0)),
        image_token=field(vlm, "image_token_id", int, there),
        start_token=id_of(words, "<|traj_future_start|>"),
        trajectory=(id_of(words, "<i0>"), field(raw, "traj_vocab_size", int, where)),
        past_bins=bins.count,
        past_low=bins.low,
        past_high=bins.high,
        names_views=KINDS[raw["model_type"]] and bool(raw.get("include_camera_ids", True)),
        reasoning=reasoning,
        image_size=_image_size(raw, vision),
    )


def _bins(raw: Mapping[str, Any], words: PreTrainedTokenizerFast, where: str) -> Bins:
    """How the past becomes tokens; they follow those of plans."""
    past = _part(raw, "hist_traj_tokenizer_cfg", "DeltaTrajectoryTokenizer", where)
    _check(bool(past.get("predict_yaw", False)), False, f"{where}: hist_traj_tokenizer_cfg: predict_yaw")
    plans = raw.get("traj_tokenizer_cfg") or {"num_bins": 0}
    first = id_of(words, "<i0>") + int(plans.get("num_bins", 0))
    found = Bins(
        first,
        int(past.get("num_bins", 1000)),
        tuple(map(float, past.get("ego_xyz_min", Bins.low))),
        tuple(map(float, past.get("ego_xyz_max", Bins.high))),
    )
    total = first + found.count - id_of(words, "<i0>")
    _check(total, field(raw, "traj_vocab_size", int, where), f"{where}: bins of plans and past together")
    return found


def _image_size(raw: Mapping[str, Any], vision: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width that the published processor gives 1080 x 1920: whole merged patches within its pixels."""
    unit = int(vision["patch_size"]) * int(vision["spatial_merge_size"])
    most = int(raw.get("max_pixels") or AlpamayoSizes.image_size[0] * AlpamayoSizes.image_size[1])
    shrink = max((1080 * 1920 / most) ** 0.5, 1.0)
    high, wide = (max(int(side / shrink) // unit, 1) * unit for side in (1080, 1920))
    return high, wide


def _action(raw: Mapping[str, Any], where: str) -> Unicycle:
    space = _part(raw, "action_space_cfg", "UnicycleAccelCurvatureActionSpace", where)
    default = Unicycle()

    def pair(first: str, second: str, other: tuple[float, float]) -> tuple[float, float]:
        return float(space.get(first, other[0])), float(space.get(second, other[1]))

    return Unicycle(
        horizon=int(space.get("n_waypoints", default.horizon)),
        interval=float(space.get("dt", default.interval)),
        offset=pair("accel_mean", "curvature_mean", default.offset),
        scale=pair("accel_std", "curvature_std", default.scale),
        heading=pair("theta_lambda", "theta_ridge", default.heading),
        speed=pair("v_lambda", "v_ridge", default.speed),
        acceleration=pair("a_lambda", "a_ridge", default.acceleration),
        curvature=pair("kappa_lambda", "kappa_ridge", default.curvature),
    )


def _solver(raw: Mapping[str, Any], where: str) -> SolverSpec:
    flow = _part(raw, "diffusion_cfg", "FlowMatching", where)
    _check(flow.get("int_method", "euler"), "euler", f"{where}: diffusion_cfg: int_method")
    return SolverSpec("euler", steps=int(flow.get("num_inference_steps", PUBLISHED_SOLVER.steps)))


def _part(raw: Mapping[str, Any], name: str, kind: str, where: str) -> Mapping[str, Any]:
    """A section that names a class of the published code, which must be this one."""
    found = _section(raw, name, where)
    _check(str(found.get("_target_", "")).rpartition(".")[2], kind, f"{where}: {name}: _target_")
    return found


def _section(raw: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    if not isinstance(raw.get(name), Mapping):
        raise InputError(f"{where}: {name} is missing; pass the config.json that belongs to these weights")
    return raw[name]


def _check(found: Any, wanted: Any, where: str) -> None:
    if found != wanted:
        raise InputError(f"{where}: must be {wanted!r}, got {found!r}; this model cannot be imported")
