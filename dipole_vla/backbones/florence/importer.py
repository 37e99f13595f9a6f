"""Published Florence-2 encoders in both namings and both configuration formats -> ours.

"Native" is transformers' naming and format, "older" Microsoft's, which DP-VLA and early X-VLA files use. Everything
is checked under the file's own names, so that a message names what is in the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import BartConfig
from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig

from dipole_vla.backbones.florence.encoder import FlorenceEncoder, FlorenceSizes
from dipole_vla.backbones.observing import IMAGE_MEAN, IMAGE_STD
from dipole_vla.backbones.source_files import check_pixels, read_config, read_weights, weights_path
from dipole_vla.backbones.weights import check_names
from navsim_adapter.foundation.errors import InputError

PROJECTION = "multi_modal_projector.image_projection.weight"
TOKENS = "language_model.encoder.embed_tokens.weight"
SHARED = "language_model.shared.weight"
LOGITS_BIAS = "language_model.final_logits_bias"  # older naming only; zeros that nothing reads

_OLDER = (  # our name -> the older one
    (r"^(vision_tower\.convs\.\d+)\.conv\.", r"\1.proj."),
    (r"_block\.(conv[12])\.", r"_block.\1.fn.dw."),
    (r"\.spatial_block\.norm1\.", r".spatial_block.window_attn.norm."),
    (r"\.channel_block\.norm1\.", r".channel_block.channel_attn.norm."),
    (r"\.(window_attn|channel_attn)\.(qkv|proj)\.", r".\1.fn.\2."),
    (r"_block\.norm2\.", r"_block.ffn.norm."),
    (r"\.ffn\.(fc[12])\.", r".ffn.fn.net.\1."),
    (r"^multi_modal_projector\.image_projection\.weight$", r"image_projection"),
    (r"^multi_modal_projector\.image_position_embed\.", r"image_pos_embed."),
    (r"^multi_modal_projector\.", r""),
    (r"^language_model\.", r"language_model.model."),
)

_UNUSED = re.compile(r"(model\.)?(lm_head\.|language_model\.(model\.)?decoder\.|language_model\.lm_head\.)")

# What FlorenceSizes does not describe must be as transformers' defaults have it.
_VISION = ("activation_function", "projection_dim", "in_channels")
_TEXT = ("activation_function", "scale_embedding")


def older_name(name: str) -> str:
    """The older name of one of our encoder's tensors."""
    for pattern, replacement in _OLDER:
        name = re.sub(pattern, replacement, name, count=1)
    return name


def is_older(names: Iterable[str]) -> bool:
    """Whether encoder names (without prefix) are in the older naming."""
    return any(name == "image_projection" or name.startswith("language_model.model.") for name in names)


@dataclass(frozen=True)
class EncoderLayout:
    """Where each tensor of our encoder is in a file.

    encoder: our encoder's state (the meta device will do); prefix: before every name in the file.
    """

    encoder: Mapping[str, Tensor]
    is_older: bool
    prefix: str = ""

    def name(self, ours: str) -> str:
        return self.prefix + (older_name(ours) if self.is_older else ours)

    def wanted(self, aliases: Iterable[str] = (TOKENS,)) -> dict[str, Tensor]:
        """The file's names and shapes. aliases: our names under which the token table is in the file."""
        named = {ours: tensor for ours, tensor in self.encoder.items() if ours != TOKENS}
        wanted = {self.name(ours): self._turned(ours, tensor) for ours, tensor in named.items()}
        return {**wanted, **{self.name(alias): self.encoder[TOKENS] for alias in aliases}}

    def read(self, file: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
        """Our encoder's tensors out of a checked file; the token table is wherever an alias of it is."""
        tables = {self.name(alias): file[self.name(alias)] for alias in (SHARED, TOKENS) if self.name(alias) in file}
        tensors = {n: self._turned(n, file[self.name(n)]).contiguous() for n in self.encoder if n != TOKENS}
        return {**tensors, TOKENS: one_table(tables, where)}

    def _turned(self, ours: str, tensor: Tensor) -> Tensor:
        return tensor.T if self.is_older and ours == PROJECTION else tensor


def one_table(tables: Mapping[str, Tensor], where: str) -> Tensor:
    """The token table that a file holds under several names; InputError if they are not the same."""
    (name, table), *others = tables.items()
    for other, tensor in others:
        if not torch.equal(table, tensor):
            raise InputError(
                f"{where}: {name} and {other} differ, but are one tied table; save the model again, its weights tied"
            )
    return table


def read_sizes(raw: Mapping[str, Any], where: str) -> FlorenceSizes:
    """Sizes from a Florence-2 configuration in either format; InputError for what our encoder cannot be."""
    for part in ("vision_config", "text_config"):
        if not isinstance(raw.get(part), Mapping):
            raise InputError(f"{where}: {part} is missing; pass the configuration of a Florence-2 model")
    try:
        vision = _vision_config(raw["vision_config"], f"{where}: vision_config")
        text: Any = BartConfig(**{key: value for key, value in raw["text_config"].items() if key != "model_type"})
    except (StrictDataclassError, KeyError, TypeError) as problem:
        reason = " ".join(str(problem).split())
        raise InputError(f"{where}: cannot be read as a Florence-2 configuration ({reason}); correct it") from problem
    sizes = FlorenceSizes(
        vision_dims=tuple(vision.embed_dim),
        vision_heads=tuple(vision.num_heads),
        vision_depths=tuple(vision.depths),
        vision_patch=tuple(vision.patch_size),
        vision_stride=tuple(vision.patch_stride),
        vision_window=vision.window_size,
        vision_mlp_ratio=float(vision.mlp_ratio),
        vision_qkv_bias=bool(vision.qkv_bias),
        vision_drop_path=float(vision.drop_path_rate),
        image_positions=vision.max_position_embeddings,
        temporal_positions=vision.max_temporal_embeddings,
        text_width=text.d_model,
        text_layers=text.encoder_layers,
        text_heads=text.encoder_attention_heads,
        text_hidden=text.encoder_ffn_dim,
        text_vocabulary=text.vocab_size,
        text_positions=text.max_position_embeddings,
        text_dropout=float(text.dropout),
    )
    usual: Any = sizes.native().vision_config
    sizes = replace(  # recorded only where it is not the usual
        sizes,
        vision_groups=_unusual(vision.num_groups, usual.num_groups),
        vision_padding=_unusual(vision.patch_padding, usual.patch_padding),
        vision_prenorm=_unusual(vision.patch_prenorm, usual.patch_prenorm),
    )
    built = sizes.native()
    _check_same(vision, built.vision_config, _VISION, f"{where}: vision_config")
    _check_same(text, built.text_config, _TEXT, f"{where}: text_config")
    return sizes


def _unusual(found: Any, usual: Any) -> tuple[Any, ...]:
    return () if list(found) == list(usual) else tuple(found)


def _vision_config(raw: Mapping[str, Any], where: str) -> Florence2VisionConfig:
    vision = {key: value for key, value in raw.items() if key not in ("model_type", "enable_checkpoint")}
    position, temporal = vision.pop("image_pos_embed", None), vision.pop("visual_temporal_embedding", None)
    source = vision.pop("image_feature_source", None)
    for name, found, wanted in (
        ("image_pos_embed.type", position and position.get("type"), "learned_abs_2d"),
        ("visual_temporal_embedding.type", temporal and temporal.get("type"), "COSINE"),
        ("image_feature_source", source and list(source), ["spatial_avg_pool", "temporal_avg_pool"]),
    ):
        if found is not None and found != wanted:
            raise InputError(f"{where}.{name}: must be {wanted!r}, got {found!r}; this Florence-2 cannot be imported")
    if position:
        vision["max_position_embeddings"] = position["max_pos_embeddings"]
    if temporal:
        vision["max_temporal_embeddings"] = temporal["max_temporal_embeddings"]
    if "dim_embed" in vision:
        vision["embed_dim"] = vision.pop("dim_embed")
    return Florence2VisionConfig(**vision)


def _check_same(found: Any, built: Any, names: Iterable[str], where: str) -> None:
    for name in names:
        one, other = (_plain(getattr(config, name)) for config in (found, built))
        if one != other:
            raise InputError(f"{where}.{name}: must be {other!r} with these sizes, got {one!r}; not supported")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value


def is_florence(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a plain Florence-2 folder."""
    return isinstance(raw.get("vision_config"), Mapping) and isinstance(raw.get("text_config"), Mapping)


def read_florence(folder: Path) -> tuple[FlorenceSizes, dict[str, Tensor]]:
    """Sizes and our encoder's tensors from a plain Florence-2 folder, in either naming.

    The text decoder and the LM head are not used; every other key must be one of the encoder's.
    """
    raw = read_config(folder)
    check_pixels(folder, IMAGE_MEAN, IMAGE_STD)
    sizes = read_sizes(raw, str(folder / "config.json"))
    path = weights_path(folder)
    if path is None:
        raise InputError(f"{folder}: has no weights (model.safetensors or pytorch_model.bin); download them")
    with torch.device("meta"):
        encoder = FlorenceEncoder(sizes).state_dict()
    file = {name.removeprefix("model."): tensor for name, tensor in read_weights(path).items()}
    tied = _tied_elsewhere(file)
    file = {name: tensor for name, tensor in file.items() if not _UNUSED.match(name)}
    older = is_older(file)
    file.pop(LOGITS_BIAS, None)
    layout = EncoderLayout(encoder, older)
    if not any(layout.name(alias) in file for alias in (SHARED, TOKENS)) and tied is not None:
        file[layout.name(TOKENS)] = tied
    check_names(file, layout.wanted(present(layout, file)), str(path))
    return sizes, layout.read(file, str(path))


def present(layout: EncoderLayout, file: Mapping[str, Tensor]) -> list[str]:
    """The aliases of the token table that a file has; TOKENS if it has neither, so that the message names it."""
    return [alias for alias in (SHARED, TOKENS) if layout.name(alias) in file] or [TOKENS]


def _tied_elsewhere(file: Mapping[str, Tensor]) -> Tensor | None:
    """The token table under its names in the unused decoder, to which the encoder's is tied."""
    for name in ("lm_head.weight", "language_model.lm_head.weight", "language_model.decoder.embed_tokens.weight",
                 "language_model.model.decoder.embed_tokens.weight"):  # fmt: skip
        if name in file:
            return file[name]
    return None
