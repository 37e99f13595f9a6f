"""X-VLA's published files -> `XVLA`: lerobot folders, today's and older ones, and the original repository's.

A folder is taken for what it is: its chunk size, action mode and domain stay unless an option says otherwise. For
driving, `--action_mode auto --horizon 8` makes the start of a fine-tuning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dipole_vla.backbones.base import ActionSpec
from dipole_vla.backbones.florence.importer import LOGITS_BIAS, EncoderLayout, is_older, present, read_sizes
from dipole_vla.backbones.imported import Imported
from dipole_vla.backbones.lerobot import (
    NORMALISERS,
    POSTPROCESSOR,
    PREPROCESSOR,
    Normaliser,
    modes_of,
    read_normalisers,
    read_steps,
)
from dipole_vla.backbones.observing import IMAGE_MEAN, IMAGE_STD
from dipole_vla.backbones.source_files import (
    check_pixels,
    field,
    load_tokenizer,
    read_config,
    read_weights,
    weights_path,
)
from dipole_vla.backbones.weights import assign_strict, check_names
from dipole_vla.backbones.xvla.model import XVLA, XVLAConfig
from dipole_vla.backbones.xvla.soft_transformer import SoftTransformerSizes
from dipole_vla.solvers import SolverSpec
from navsim_adapter.foundation.errors import InputError, did_you_mean

ACTION_MODES: dict[str, tuple[int | None, tuple[int, ...]]] = {
    "auto": (None, ()),
    "ee6d": (20, (9, 19)),
    "joint": (14, (6, 13)),
    "agibot_ee6d": (20, ()),
    "franka_joint7": (20, ()),
    "so101_bimanual": (20, (5, 11)),
}
"""Action mode -> width of the network's action (None: max_action_dim) and the channels it is not shown."""

_OWN_STEPS = (
    "xvla_image_to_float",
    "xvla_imagenet_normalize",
    "xvla_image_scale",
    "xvla_add_domain_id",
    "xvla_rotation_6d_to_axis_angle",
)
"""Processor steps whose work is done by our processor and model, or that only a robot needs."""


@dataclass(frozen=True)
class Processing:
    """What the processor files add to config.json."""

    domain: int = 0
    prompt_tokens: int | None = None
    tokenizer_name: str | None = None
    offset: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()


def read(
    source: Path,
    tokenizer: Path | None = None,
    action_mode: str | None = None,
    horizon: int | None = None,
    domain: int | None = None,
) -> Imported:
    """See `commands.import_.convert` for the options."""
    raw, where = read_config(source), str(source / "config.json")
    if raw.get("type", "xvla") != "xvla":
        raise InputError(f"{where}: type is {raw['type']!r}, wanted 'xvla'; pass an X-VLA folder")
    path = weights_path(source)
    if path is None:
        raise InputError(f"{source}: has no model.safetensors; download it")
    check_pixels(source, IMAGE_MEAN, IMAGE_STD)
    file = read_weights(path)
    raw = _with_defaults(raw, file)
    processing = _processing(source)
    config = _config(raw, where, processing, action_mode, domain)
    steps = field(raw, "num_denoising_steps", int, where)
    with torch.device("meta"):
        model = XVLA(config, _action(raw, where, config, processing, horizon), SolverSpec("renoise", steps=steps))
    assign_strict(model, _tensors(model, file, str(path)), str(path))
    notes: list[str] = []
    model.tokenizer = load_tokenizer(_tokenizer_folder(source, tokenizer, raw, processing))
    if model.tokenizer is None:
        name = processing.tokenizer_name or raw.get("tokenizer_name", "facebook/bart-large")
        notes.append(f"no tokenizer in the folder; it cannot read scenes yet: import with --tokenizer FOLDER of {name}")
    elif len(model.tokenizer) > config.text_vocabulary:
        raise InputError(
            f"tokenizer: has {len(model.tokenizer)} tokens, the model {config.text_vocabulary}; pass its own"
        )
    if config.action_mode != "auto":
        notes.append(f"action mode {config.action_mode} is for robot arms; for driving import with --action_mode auto")
    return Imported(model.eval(), notes=notes)


def _tensors(model: XVLA, file: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The file's tensors under our names, after every key has been accounted for under the file's own."""
    prefix = "model." if any(name.startswith("model.") for name in file) else ""
    vlm = f"{prefix}vlm."
    older = is_older(name.removeprefix(vlm) for name in file if name.startswith(vlm))
    layout = EncoderLayout(model.vlm.state_dict(), older, vlm)
    head = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("transformer.")}
    wanted = {prefix + name: tensor for name, tensor in head.items()}
    if older and vlm + LOGITS_BIAS in file:  # unused; lerobot's own reader drops it
        wanted[vlm + LOGITS_BIAS] = torch.empty(1, model.config.text_vocabulary, device="meta")
    check_names(file, {**layout.wanted(present(layout, file)), **wanted}, where)
    encoder = {f"vlm.{name}": tensor for name, tensor in layout.read(file, where).items()}
    return {**encoder, **{name: file[prefix + name] for name in head}}


def _config(
    raw: Mapping[str, Any], where: str, processing: Processing, action_mode: str | None, domain: int | None
) -> XVLAConfig:
    if not isinstance(raw.get("florence_config"), Mapping):
        raise InputError(f"{where}: florence_config is missing; pass the config.json that belongs to these weights")
    florence = read_sizes(raw["florence_config"], f"{where}: florence_config")
    own_mode = _known_mode(field(raw, "action_mode", str, where).lower(), where)
    mode = _known_mode(action_mode or own_mode, "--action_mode")
    head = SoftTransformerSizes(
        width=field(raw, "hidden_size", int, where),
        depth=field(raw, "depth", int, where),
        heads=field(raw, "num_heads", int, where),
        mlp_ratio=field(raw, "mlp_ratio", float, where),
        context_width=florence.text_width,
        domains=field(raw, "num_domains", int, where),
        prompts=field(raw, "len_soft_prompts", int, where),
        time_dim=field(raw, "dim_time", int, where),
        max_tokens=field(raw, "max_len_seq", int, where),
        is_hetero=field(raw, "use_hetero_proj", bool, where),
        # the weights have the width of their own mode, whatever they are to be used for
        action_dim=ACTION_MODES[own_mode][0] or field(raw, "max_action_dim", int, where),
        proprio_dim=field(raw, "max_state_dim", int, where) if raw["use_proprio"] else 0,
    )
    views, size = _views(raw, where)
    return XVLAConfig(
        **{**asdict(florence), **asdict(head)},
        action_mode=mode,
        muted=ACTION_MODES[mode][1],
        domain=processing.domain if domain is None else domain,
        cameras=XVLAConfig.cameras[:views],
        views=views,
        image_size=size,
        fit="pad" if raw["resize_imgs_with_padding"] else "stretch",
        prompt_tokens=processing.prompt_tokens or field(raw, "tokenizer_max_length", int, where),
    )


def _known_mode(mode: str, where: str) -> str:
    if mode not in ACTION_MODES:
        hint = did_you_mean(mode, list(ACTION_MODES))
        raise InputError(f"{where}: action mode {mode!r} is not known{hint}; known are {', '.join(ACTION_MODES)}")
    return mode


def _with_defaults(raw: Mapping[str, Any], file: Mapping[str, Tensor]) -> dict[str, Any]:
    """config.json with the original repository's names replaced and the gaps filled."""
    renamed = {_ORIGINAL.get(name, name): value for name, value in raw.items()}
    filled = {**_DEFAULTS, **renamed}
    if "num_actions" in raw and "max_state_dim" not in raw:  # there the state is as wide as the mode has it
        tables = [tensor for name, tensor in file.items() if name.endswith("transformer.action_encoder.fc.weight")]
        inputs = tables[0].shape[1] // filled["hidden_size"] if tables else 0
        filled["max_state_dim"] = (
            inputs - filled["dim_time"] - (ACTION_MODES.get(filled["action_mode"], (None,))[0] or 20)
        )
    return filled


_ORIGINAL = {"num_actions": "chunk_size", "soft_prompt_length": "len_soft_prompts"}

_DEFAULTS: dict[str, Any] = {
    "hidden_size": 1024,
    "depth": 24,
    "num_heads": 16,
    "mlp_ratio": 4.0,
    "num_domains": 30,
    "len_soft_prompts": 32,
    "dim_time": 32,
    "max_len_seq": 512,
    "use_hetero_proj": False,
    "action_mode": "ee6d",
    "chunk_size": 32,
    "use_proprio": True,
    "max_state_dim": 32,
    "max_action_dim": 20,
    "resize_imgs_with_padding": None,
    "num_image_views": None,
    "empty_cameras": 0,
    "num_denoising_steps": 10,
    "tokenizer_max_length": 64,
    "input_features": {},
    "output_features": {},
}
"""What the published configuration class assumes where a file is silent."""


def _views(raw: Mapping[str, Any], where: str) -> tuple[int, tuple[int, int]]:
    """Number of views and their (height, width)."""
    images = _shapes(raw["input_features"], "VISUAL")
    views = max(len(images) + raw["empty_cameras"], raw["num_image_views"] or 0)
    size = raw["resize_imgs_with_padding"] or (images[0][-2:] if images else XVLAConfig.image_size)
    if len(size) != 2:
        raise InputError(f"{where}: image size {size!r} must be (height, width)")
    return views or XVLAConfig.views, (int(size[0]), int(size[1]))


def _shapes(features: Mapping[str, Any] | None, kind: str) -> list[Any]:
    return [each["shape"] for each in (features or {}).values() if str(each.get("type", "")).upper().endswith(kind)]


def _action(
    raw: Mapping[str, Any], where: str, config: XVLAConfig, processing: Processing, horizon: int | None
) -> ActionSpec:
    shapes = _shapes(raw["output_features"], "ACTION")
    is_angle = config.action_mode == "auto" and bool(shapes) and shapes[0][-1] == 3
    return ActionSpec(
        horizon=horizon or field(raw, "chunk_size", int, where),
        dim=config.action_dim,
        is_padded=True,
        heading="angle" if is_angle else "cos_sin",
        offset=processing.offset,
        scale=processing.scale,
    )


# --- processor files -------------------------------------------------------------------------------------------


def _processing(source: Path) -> Processing:
    found: dict[str, Any] = {}
    for file in (PREPROCESSOR, POSTPROCESSOR):
        if not (source / file).is_file():  # the original repository has none
            continue
        steps = read_steps(source / file, _OWN_STEPS)
        action = read_normalisers(source, file, steps).get("ACTION", Normaliser())
        for name, settings, _ in steps:
            if name == "xvla_add_domain_id":
                found["domain"] = int(settings.get("domain_id", 0))
            elif name == "tokenizer_processor":
                found["prompt_tokens"] = settings.get("max_length")
                found["tokenizer_name"] = settings.get("tokenizer_name")
            elif name in NORMALISERS:
                _check_modes(source / file, modes_of(settings), has_statistics=len(action) > 0)
        found |= asdict(action) if len(action) else {}
    return Processing(**found)


def _check_modes(path: Path, modes: Mapping[str, str], has_statistics: bool) -> None:
    for kind, mode in modes.items():
        if mode != "IDENTITY" and kind != "ACTION":
            raise InputError(f"{path}: {kind} is normalised by {mode}; only IDENTITY can be imported (X-VLA's own)")
        if mode != "IDENTITY" and not has_statistics:
            raise InputError(f"{path}: ACTION is normalised by {mode}, but the step has no statistics; download them")


def _tokenizer_folder(source: Path, given: Path | None, raw: Mapping[str, Any], processing: Processing) -> Path:
    name = processing.tokenizer_name or raw.get("tokenizer_name") or ""
    if given is not None:
        return given
    if name and Path(name).is_dir():
        return Path(name)
    return source / "tokenizer" if (source / "tokenizer").is_dir() else source
