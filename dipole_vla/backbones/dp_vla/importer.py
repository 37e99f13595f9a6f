"""DP-VLA's published files -> `DPVLA`: full, decoder-only and adapters-only folders, Lightning files, Florence-2.

The files say little about themselves: not the encoder's sizes (they come from its own folder, or are recognised as
Florence-2-large or -base), and not what the network predicts. What is assumed is printed; what cannot be known is an
error that names the option to give.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from dipole_vla.backbones import load_backbone
from dipole_vla.backbones.base import ActionSpec
from dipole_vla.backbones.dit import DiT, DiTSizes
from dipole_vla.backbones.dp_vla.model import DPVLA, DPVLAConfig
from dipole_vla.backbones.florence.encoder import FlorenceEncoder, FlorenceSizes
from dipole_vla.backbones.florence.importer import (
    LOGITS_BIAS,
    SHARED,
    TOKENS,
    EncoderLayout,
    is_florence,
    read_florence,
    read_sizes,
)
from dipole_vla.backbones.imported import Imported, PublishedPair
from dipole_vla.backbones.observing import IMAGE_MEAN, IMAGE_STD
from dipole_vla.backbones.source_files import (
    check_pixels,
    field,
    load_tokenizer,
    read_config,
    read_tensors_of,
    refuse_adapters,
    weights_path,
)
from dipole_vla.backbones.weights import assign_strict, check_names, read_json
from dipole_vla.guidance import SIGNS
from navsim_adapter.foundation.errors import InputError

_PREFIX = re.compile(r"^(?:(?:module|agent\.model|model)\.)*(?=(?:encoder|decoder|lora_decoder)\.)")
_LORA = re.compile(r"^decoder\.(.+\.lora_[AB])\.(\w+)\.weight$")

FLORENCE_BASE = FlorenceSizes(
    vision_dims=(128, 256, 512, 1024),
    vision_heads=(4, 8, 16, 32),
    text_width=768,
    text_layers=6,
    text_heads=12,
    text_hidden=3072,
    text_positions=1024,
)


@dataclass(frozen=True)
class Encoder:
    """Where the encoder's description comes from: sizes, tokenizer, and weights under our names if it has them."""

    sizes: FlorenceSizes
    tokenizer: PreTrainedTokenizerFast | None = None
    tensors: Mapping[str, Tensor] | None = None


def read(
    source: Path,
    prediction: str | None = None,
    kinematic: str | None = None,
    encoder: Path | None = None,
    tokenizer: Path | None = None,
    base: Path | None = None,
    heads: int | None = None,
    seed: int = 0,
) -> Imported:
    """See `commands.import_.convert` for the options."""
    config = _config_of(source)
    if config is not None and is_florence(config):
        return _from_florence(source, prediction or "noise", kinematic or "waypoint", tokenizer, seed)
    if config is not None and "hidden_size" not in config:
        raise InputError(
            f"{source}: its config.json is neither DP-VLA's (no hidden_size) nor Florence-2's (no vision_config); "
            "pass the folder of a DP-VLA or Florence-2 model"
        )
    weights = source if source.is_file() else weights_path(source, [f"lora/{role}" for role in SIGNS])
    if weights is None:
        return _from_adapters(source, base)
    if source.is_file():
        refuse_adapters(source)
        if (source.parent / "lora").is_dir():
            raise InputError(f"{source}: lora/ beside it would be lost; pass the folder instead of the file")
    check_pixels(weights.parent, IMAGE_MEAN, IMAGE_STD)
    state, embedded = _sort(read_tensors_of(weights), str(weights))
    notes: list[str] = []
    head = _head_sizes(config, state, source, heads)
    if head.heads < 1 or head.width % head.heads:
        raise InputError(
            f"{source}: {head.heads} heads do not divide the width {head.width}; correct num_heads or --heads"
        )
    kinematic = kinematic or _kinematic(config, source, notes)
    prediction = prediction or _prediction(config, kinematic, notes)
    found = _encoder(source, config, state, encoder)
    full = DPVLAConfig(**{**asdict(found.sizes), **asdict(head)}, prediction=prediction)
    model = _assemble(full, kinematic, state, found, str(weights))
    model.tokenizer = load_tokenizer(tokenizer) if tokenizer is not None else found.tokenizer
    _check_tokenizer(model, notes)
    return Imported(model, _pair(source, config, embedded), notes=notes)


def _config_of(source: Path) -> dict[str, Any] | None:
    """The config.json of a folder, or beside a file, where it may be missing."""
    if source.is_dir():
        return read_config(source)
    return read_config(source.parent) if (source.parent / "config.json").is_file() else None


# --- the file's keys -------------------------------------------------------------------------------------------


def _sort(file: Mapping[str, Tensor], where: str) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """(model tensors under published names, adapters by name) of a file whose model may be wrapped.

    Once adapters are attached, the published code names the layers under them `base_layer`, and a Lightning file
    has the whole decoder a second time as `lora_decoder`.
    """
    state: dict[str, Tensor] = {}
    adapters: dict[str, dict[str, Tensor]] = {}
    copies: dict[str, Tensor] = {}
    for raw, tensor in file.items():
        name = _PREFIX.sub("", raw).replace(".base_layer.", ".")
        if name.startswith("lora_decoder."):
            name, place = name.replace("lora_decoder.base_model.model.", "decoder."), copies
        else:
            place = state
        if name in place:
            raise InputError(f"{where}: {raw} is there twice under different prefixes; keep one of them")
        place[name] = tensor
    for name, tensor in copies.items():
        if name not in state or not torch.equal(tensor, state[name]):
            raise InputError(f"{where}: unexpected key lora_{name}: it is no copy of {name}; save the model again")
    for name in list(state):
        if match := _LORA.match(name):
            adapters.setdefault(match[2], {})[f"base_model.model.decoder.{match[1]}.weight"] = state.pop(name)
    return state, adapters


def _assemble(config: DPVLAConfig, kinematic: str, state: Mapping[str, Tensor], found: Encoder, where: str) -> DPVLA:
    """The model with the file's tensors, and the encoder's from elsewhere if the file has none."""
    with torch.device("meta"):
        model = DPVLA(config, ActionSpec(config.horizon, config.action_dim, kinematic=kinematic))  # type: ignore[arg-type]
    wanted = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("decoder.")}
    if found.tensors is not None:
        check_names(state, wanted, where)
        encoder = dict(found.tensors)
    else:
        layout = EncoderLayout(model.encoder.state_dict(), is_older=True, prefix="encoder.")
        bias = torch.empty(1, config.text_vocabulary, device="meta")
        check_names(state, {**layout.wanted((SHARED, TOKENS)), "encoder." + LOGITS_BIAS: bias, **wanted}, where)
        encoder = layout.read(state, where)
    tensors = {f"encoder.{name}": tensor for name, tensor in encoder.items()}
    assign_strict(model, {**tensors, **{name: state[name] for name in wanted}}, where)
    return model.eval()


# --- what the file says about itself ---------------------------------------------------------------------------


def _head_sizes(
    config: Mapping[str, Any] | None, state: Mapping[str, Tensor], source: Path, heads: int | None
) -> DiTSizes:
    if config is not None:
        where = str((source if source.is_dir() else source.parent) / "config.json")
        width = field(config, "hidden_size", int, where)
        return DiTSizes(
            width=width,
            depth=field(config, "depth", int, where),
            heads=heads or field(config, "num_heads", int, where),
            mlp_ratio=field(config, "mlp_ratio", float, where),
            context_width=width,
            horizon=field(config, "num_actions", int, where),
            action_dim=field(config, "dim_action", int, where),
            proprio_dim=field(config, "dim_y", int, where),
        )
    shapes = [_shape(state, f"decoder.{name}", source) for name in
              ("pos_emb", "blocks.0.mlp.fc1.weight", "action_in_proj.fc1.weight", "y_in_proj.fc1.weight")]  # fmt: skip
    (_, horizon, width), (hidden, _), (_, action_dim), (_, proprio_dim) = shapes
    if heads is None and width != 1024:
        raise InputError(
            f"{source}: has no config.json beside it, and {width} wide is not the published size; pass --heads"
        )
    depth = 1 + max(int(match[1]) for name in state if (match := re.match(r"decoder\.blocks\.(\d+)\.", name)))
    return DiTSizes(
        width=width,
        depth=depth,
        heads=heads or 16,
        mlp_ratio=hidden / width,
        context_width=width,
        horizon=horizon,
        action_dim=action_dim,
        proprio_dim=proprio_dim,
    )


def _shape(state: Mapping[str, Tensor], name: str, source: Path) -> tuple[int, ...]:
    if name not in state:
        raise InputError(f"{source}: missing key {name}; this file is not a DP-VLA checkpoint")
    return tuple(state[name].shape)


def _kinematic(config: Mapping[str, Any] | None, source: Path, notes: list[str]) -> str:
    if config is None:
        notes.append(f"{source.name} does not say what x and y mean; took waypoints (--kinematic diff for the other)")
        return "waypoint"
    return field(config, "kinematic_type", str, str(source))


def _prediction(config: Mapping[str, Any] | None, kinematic: str, notes: list[str]) -> str:
    """The published recipes pair noise with waypoints and clean actions with steps; a file never says which."""
    said = (config or {}).get("model_type", "dp_vla")
    if said == "score":
        raise InputError("config.json: model_type score cannot be imported; noise and x_start can")
    if said in ("noise", "x_start"):
        return "noise" if said == "noise" else "sample"
    prediction = "noise" if kinematic == "waypoint" else "sample"
    notes.append(f"took prediction {prediction}, as published for {kinematic}; the file does not say (--prediction)")
    return prediction


def _check_tokenizer(model: DPVLA, notes: list[str]) -> None:
    if model.tokenizer is None:
        notes.append("no tokenizer found, so it cannot read scenes yet; import with --tokenizer or --encoder FOLDER")
    elif len(model.tokenizer) > model.config.text_vocabulary:
        raise InputError(
            f"tokenizer: has {len(model.tokenizer)} tokens, the model {model.config.text_vocabulary}; "
            "pass the tokenizer that belongs to this encoder"
        )


# --- the encoder -----------------------------------------------------------------------------------------------


def _encoder(
    source: Path, config: Mapping[str, Any] | None, state: Mapping[str, Tensor], given: Path | None
) -> Encoder:
    has_weights = any(name.startswith("encoder.") for name in state)
    folder = given or _named_encoder(source, (config or {}).get("encoder_name"))
    if folder is None and not has_weights:
        raise InputError(
            f"{source}: holds only the decoder; pass --encoder with a Florence-2 folder or a full DP-VLA folder"
        )
    if folder is None:
        return Encoder(_recognised(state, source))
    raw = read_config(folder)
    check_pixels(folder, IMAGE_MEAN, IMAGE_STD)
    if not is_florence(raw):
        return _encoder_of_full(folder, has_weights)
    if has_weights:
        return Encoder(read_sizes(raw, str(folder / "config.json")), load_tokenizer(folder))
    sizes, tensors = read_florence(folder)
    return Encoder(sizes, load_tokenizer(folder), tensors)


def _named_encoder(source: Path, name: Any) -> Path | None:
    """The Florence-2 folder that config.json names, if it is on this machine: as named, or in or beside the source.

    A path of the machine it was trained on is of no use here; then the only Florence-2 folder in the source is meant.
    """
    folder = source if source.is_dir() else source.parent
    if isinstance(name, str) and name:
        places = (Path(name), folder / name, folder / Path(name).name, folder.parent / Path(name).name)
        for place in places:
            if (place / "config.json").is_file() and is_florence(read_config(place)):
                return place
    inside = [path.parent for path in folder.glob("*/config.json") if is_florence(read_config(path.parent))]
    return inside[0] if len(inside) == 1 else None


def _encoder_of_full(folder: Path, has_weights: bool) -> Encoder:
    """The encoder of another DP-VLA checkpoint, published or imported."""
    raw = read_config(folder)
    other = load_backbone(folder) if "family" in raw else read(folder).backbone
    if not isinstance(other, DPVLA):
        raise InputError(f"{folder}: holds a {other.family} model; pass a Florence-2 or DP-VLA folder as --encoder")
    tensors = None if has_weights else other.encoder.state_dict()
    return Encoder(other.config.part(FlorenceSizes), other.tokenizer, tensors)


def _recognised(state: Mapping[str, Tensor], source: Path) -> FlorenceSizes:
    """Florence-2-large or -base, if the encoder's shapes are exactly theirs: head counts are in no tensor."""
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items() if name.startswith("encoder.")}
    for sizes in (FlorenceSizes(), FLORENCE_BASE):
        positions = shapes.get(
            "encoder.language_model.model.encoder.embed_positions.weight", (sizes.text_positions + 2,)
        )
        sizes = replace(sizes, text_positions=positions[0] - 2)
        with torch.device("meta"):
            layout = EncoderLayout(FlorenceEncoder(sizes).state_dict(), True, "encoder.")
        wanted = {name: tuple(tensor.shape) for name, tensor in layout.wanted((SHARED, TOKENS)).items()}
        same = sum(shapes.get(name) == shape for name, shape in wanted.items())
        if same > 0.9 * len(wanted):  # a few wrong keys are reported one by one later
            return sizes
    raise InputError(
        f"{source}: its encoder is neither Florence-2-large nor -base, and the file does not hold its head counts; "
        "pass --encoder with the Florence-2 folder it was made from"
    )


def _from_florence(source: Path, prediction: str, kinematic: str, tokenizer: Path | None, seed: int) -> Imported:
    """A published encoder with a new head: where imitation training starts."""
    sizes, tensors = read_florence(source)
    head = DiTSizes(width=sizes.text_width, heads=max(sizes.text_width // 64, 1), context_width=sizes.text_width)
    config = DPVLAConfig(**{**asdict(sizes), **asdict(head)}, prediction=prediction)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = {f"decoder.{name}": tensor for name, tensor in DiT(head).state_dict().items()}
    model = _assemble(config, kinematic, state, Encoder(sizes, None, tensors), str(source))
    model.tokenizer = load_tokenizer(tokenizer or source)
    notes = [f"Florence-2 has no action head; made a new one with random weights (seed {seed}), to be trained"]
    _check_tokenizer(model, notes)
    return Imported(model, notes=notes)


# --- adapters --------------------------------------------------------------------------------------------------


def _from_adapters(source: Path, base: Path | None) -> Imported:
    pair = _pair(source, read_config(source), {})
    if pair is None:
        raise InputError(f"{source}: holds neither weights nor lora/positive and lora/negative; download it again")
    if base is None:
        raise InputError(f"{source}: holds adapters only; import their base first and pass its folder as --base")
    backbone = load_backbone(base)
    if not isinstance(backbone, DPVLA):
        raise InputError(f"{base}: holds a {backbone.family} model; pass an imported DP-VLA folder as --base")
    return Imported(backbone, pair, base=base)


def _pair(
    source: Path, config: Mapping[str, Any] | None, embedded: Mapping[str, Mapping[str, Tensor]]
) -> PublishedPair | None:
    """The adapters in lora/, or those inside the weights; InputError if it is not a positive and a negative one."""
    folder = source / "lora" if source.is_dir() else source.parent / "lora"
    omega = float((config or {}).get("cfg_scale", 1.0))
    if source.is_dir() and folder.is_dir():
        pair = _pair_of_folder(folder, omega)
        if embedded and not _are_same(embedded, pair.states):
            raise InputError(f"{source}: the adapters inside its weights are not those in lora/; keep one of them")
        return pair
    if not embedded:
        return None
    if sorted(embedded) != sorted(SIGNS):
        raise InputError(f"{source}: has adapters {', '.join(sorted(embedded))}; positive and negative were expected")
    where = f"{source}: config.json"
    if config is None:
        raise InputError(
            f"{source}: has adapters, but no config.json beside it with lora_r and lora_alpha; copy it there"
        )
    rank, alpha = field(config, "lora_r", int, where), field(config, "lora_alpha", float, where)
    return PublishedPair(rank, alpha, embedded, omega, str(source))


def _are_same(one: Mapping[str, Mapping[str, Tensor]], other: Mapping[str, Mapping[str, Tensor]]) -> bool:
    """Whether two pairs hold equal tensors under equal names."""
    return one.keys() == other.keys() and all(
        one[role].keys() == other[role].keys()
        and all(torch.equal(tensor, other[role][name]) for name, tensor in one[role].items())
        for role in one
    )


def _pair_of_folder(folder: Path, omega: float) -> PublishedPair:
    states: dict[str, dict[str, Tensor]] = {}
    scales = set()
    for role in SIGNS:
        path = folder / role / "adapter_config.json"
        if not path.is_file():
            raise InputError(f"{path}: no such file; a policy needs lora/positive and lora/negative")
        raw = read_json(path)
        for name in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save"):
            if raw.get(name):
                raise InputError(f"{path}: {name} is {raw[name]!r}; only plain LoRA can be imported")
        scales.add((field(raw, "r", int, str(path)), field(raw, "lora_alpha", float, str(path))))
        weights = read_tensors_of(folder / role / "adapter_model.safetensors")
        states[role] = {
            re.sub(r"^(base_model\.model\.)", r"\1decoder.", name): tensor for name, tensor in weights.items()
        }
    if len(scales) != 1:
        raise InputError(f"{folder}: the adapters have different rank or alpha {sorted(scales)}; they are no pair")
    rank, alpha = scales.pop()
    return PublishedPair(rank, alpha, states, omega, str(folder))
