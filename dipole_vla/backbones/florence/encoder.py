"""DP-VLA's encoder: Florence-2's vision tower, projector and text encoder, from transformers' own classes.

The text decoder and the LM head are left out, and the token embedding exists once (transformers also names it
`shared`). `native_names` translates the older naming that published DP-VLA files use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BartConfig, Florence2Config
from transformers.models.bart.modeling_bart import BartEncoder
from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig
from transformers.models.florence2.modeling_florence2 import Florence2MultiModalProjector, Florence2VisionBackbone

from navsim_adapter.foundation.errors import InputError


@dataclass(frozen=True)
class FlorenceSizes:
    """Sizes of the encoder; the defaults are Florence-2-large.

    Empty means as in every Florence-2 published: as many channel groups as heads, patches padded by half their size,
    a norm before the patches of all stages but the first.
    """

    vision_dims: tuple[int, ...] = (256, 512, 1024, 2048)
    vision_heads: tuple[int, ...] = (8, 16, 32, 64)
    vision_depths: tuple[int, ...] = (1, 1, 9, 1)
    vision_patch: tuple[int, ...] = (7, 3, 3, 3)
    vision_stride: tuple[int, ...] = (4, 2, 2, 2)
    vision_window: int = 12
    vision_groups: tuple[int, ...] = ()
    vision_padding: tuple[int, ...] = ()
    vision_prenorm: tuple[bool, ...] = ()
    vision_mlp_ratio: float = 4.0
    vision_qkv_bias: bool = True
    vision_drop_path: float = 0.1
    image_positions: int = 50
    temporal_positions: int = 100
    text_width: int = 1024
    text_layers: int = 12
    text_heads: int = 16
    text_hidden: int = 4096
    text_vocabulary: int = 51289
    text_positions: int = 4096
    text_dropout: float = 0.1

    def check_read_by(self, context_width: int) -> None:
        """InputError unless a head that reads `context_width` numbers per token fits."""
        if context_width != self.text_width:
            raise InputError(
                f"config.context_width: is {context_width}, text_width is {self.text_width}; make them equal"
            )

    def native(self) -> Florence2Config:
        """The same as transformers' own configuration."""
        stages = len(self.vision_dims)
        vision = Florence2VisionConfig(
            embed_dim=self.vision_dims,
            num_heads=self.vision_heads,
            num_groups=self.vision_groups or self.vision_heads,
            depths=self.vision_depths,
            patch_size=self.vision_patch,
            patch_stride=self.vision_stride,
            patch_padding=self.vision_padding or tuple(size // 2 for size in self.vision_patch),
            patch_prenorm=self.vision_prenorm or tuple(stage > 0 for stage in range(stages)),
            mlp_ratio=self.vision_mlp_ratio,
            qkv_bias=self.vision_qkv_bias,
            window_size=self.vision_window,
            drop_path_rate=self.vision_drop_path,
            projection_dim=self.text_width,
            max_position_embeddings=self.image_positions,
            max_temporal_embeddings=self.temporal_positions,
        )
        text = BartConfig(
            d_model=self.text_width,
            encoder_layers=self.text_layers,
            encoder_attention_heads=self.text_heads,
            encoder_ffn_dim=self.text_hidden,
            vocab_size=self.text_vocabulary,
            max_position_embeddings=self.text_positions,
            dropout=self.text_dropout,
        )
        joint = Florence2Config(vision_config=vision, text_config=text)
        joint._attn_implementation = "sdpa"  # set after joining: joining clears it in the parts
        return joint


def small_florence(width: int, layers: int, vocabulary: int) -> dict[str, Any]:
    """`FlorenceSizes` of a few 100,000 parameters with every part of the real one, as keywords."""
    return {
        "vision_dims": (width // 2, width),
        "vision_heads": (2, 4),
        "vision_depths": (1, 1),
        "vision_patch": (9, 3),
        "vision_stride": (8, 2),
        "vision_window": 4,
        "vision_drop_path": 0.0,
        "image_positions": 16,
        "text_width": width,
        "text_layers": layers,
        "text_heads": 4,
        "text_hidden": 2 * width,
        "text_vocabulary": vocabulary,
        "text_positions": 128,
        "text_dropout": 0.0,
    }


class FlorenceEncoder(nn.Module):
    """Pictures and a prompt -> scene tokens."""

    def __init__(self, sizes: FlorenceSizes) -> None:
        super().__init__()
        config = sizes.native()
        vision, text = config.vision_config, config.text_config
        assert isinstance(vision, Florence2VisionConfig)
        assert isinstance(text, BartConfig)
        self.vision_tower = Florence2VisionBackbone(vision)
        self.multi_modal_projector = Florence2MultiModalProjector(config)
        self.language_model = nn.Module()
        self.language_model.encoder = BartEncoder(text)

    def forward(self, pixels: Tensor, input_ids: Tensor) -> Tensor:
        """pixels (B, views, 3, H, W), normalised, and input_ids (B, length) -> tokens (B, views*(1+h*w)+length, width).

        Image tokens first, view by view, each view's mean before its grid. The mask is all ones: padding of the
        prompt is attended to, as the published weights expect.
        """
        text: BartEncoder = self.language_model.encoder  # type: ignore[assignment]
        features = self.vision_tower(pixels.flatten(0, 1)).last_hidden_state
        images = self.multi_modal_projector(features).unflatten(0, pixels.shape[:2]).flatten(1, 2)
        embeds = torch.cat([images, text.embed_tokens(input_ids)], dim=1)
        return text(inputs_embeds=embeds).last_hidden_state


_RENAMED = (  # older (Microsoft) naming -> transformers' naming, in files of DP-VLA and X-VLA
    (r"^(vision_tower\.convs\.\d+)\.proj\.", r"\1.conv."),
    (r"\.(conv[12])\.fn\.dw\.", r".\1."),
    (r"\.(?:window|channel)_attn\.norm\.", r".norm1."),
    (r"\.(window_attn|channel_attn)\.fn\.", r".\1."),
    (r"\.ffn\.norm\.", r".norm2."),
    (r"\.ffn\.fn\.net\.", r".ffn."),
    (r"^image_projection$", r"multi_modal_projector.image_projection.weight"),
    (r"^image_proj_norm\.", r"multi_modal_projector.image_proj_norm."),
    (r"^image_pos_embed\.", r"multi_modal_projector.image_position_embed."),
    (r"^visual_temporal_embed\.", r"multi_modal_projector.visual_temporal_embed."),
    (r"^language_model\.model\.", r"language_model."),
)


def native_names(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a Florence-2 encoder in either naming (no prefix) -> this module's names.

    The image projection is transposed; the token embedding is taken from `shared` where there is one (the published
    code reads it there) and stored once; the unused zero `final_logits_bias` is dropped.
    """
    native = {}
    for name, tensor in published.items():
        value = tensor.T.contiguous() if name == "image_projection" else tensor
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        native[name] = value
    native.pop("language_model.final_logits_bias", None)
    shared = native.pop("language_model.shared.weight", None)
    if shared is not None:
        native["language_model.encoder.embed_tokens.weight"] = shared
    return native
