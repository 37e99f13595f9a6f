"""InternVL, ReCogDrive's language model, from transformers' own class: picture tiles and a prompt -> hidden states.

The LM head is left out: the planner reads the last hidden states. Reading published folders is in
`importer.py`, tiles and prompt in `recogdrive/input.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import InternVLConfig, InternVLModel, InternVLVisionConfig, Qwen2Config


@dataclass(frozen=True)
class InternVLSizes:
    """Sizes of the language model; the defaults are InternVL3-2B as published for ReCogDrive."""

    vision_width: int = 1024
    vision_layers: int = 24
    vision_heads: int = 16
    vision_hidden: int = 4096
    vision_patch: int = 14
    vision_qkv_bias: bool = True
    vision_qk_norm: bool = False
    vision_norm: str = "layer_norm"
    vision_epsilon: float = 1e-6
    tile_size: int = 448
    downsample: float = 0.5
    text_width: int = 1536
    text_layers: int = 28
    text_heads: int = 12
    text_kv_heads: int = 2
    text_hidden: int = 8960
    text_vocabulary: int = 151674
    text_positions: int = 32768
    text_rope_base: float = 1e6
    text_rope_factor: float = 1.0  # above 1: rotary frequencies stretch dynamically beyond text_positions
    text_epsilon: float = 1e-6
    image_token: int = 151667

    @property
    def tokens_per_tile(self) -> int:
        return int((self.tile_size // self.vision_patch * self.downsample) ** 2)

    def native(self) -> InternVLConfig:
        """The same as transformers' own configuration."""
        vision = InternVLVisionConfig(
            hidden_size=self.vision_width,
            num_hidden_layers=self.vision_layers,
            num_attention_heads=self.vision_heads,
            intermediate_size=self.vision_hidden,
            patch_size=(self.vision_patch,) * 2,
            image_size=(self.tile_size,) * 2,
            attention_bias=self.vision_qkv_bias,
            use_qk_norm=self.vision_qk_norm,
            norm_type=self.vision_norm,
            layer_norm_eps=self.vision_epsilon,
        )
        rope = {"rope_type": "default", "rope_theta": self.text_rope_base}
        if self.text_rope_factor != 1:
            rope = {**rope, "rope_type": "dynamic", "factor": self.text_rope_factor}
        text = Qwen2Config(
            hidden_size=self.text_width,
            num_hidden_layers=self.text_layers,
            num_attention_heads=self.text_heads,
            num_key_value_heads=self.text_kv_heads,
            intermediate_size=self.text_hidden,
            vocab_size=self.text_vocabulary,
            max_position_embeddings=self.text_positions,
            rope_parameters=rope,
            rms_norm_eps=self.text_epsilon,
            tie_word_embeddings=False,
        )
        joint = InternVLConfig(
            vision_config=vision,
            text_config=text,
            image_token_id=self.image_token,
            image_seq_length=self.tokens_per_tile,
            downsample_ratio=self.downsample,
            tie_word_embeddings=False,  # true by default, whatever the text configuration says
        )
        joint._attn_implementation = "sdpa"
        return joint


def build(sizes: InternVLSizes) -> InternVLModel:
    """The network with fresh weights; `native.restore_buffers` after its weights were read on the meta device."""
    return InternVLModel(sizes.native())


def hidden_states(model: InternVLModel, tiles: Tensor, counts: Tensor | None, ids: Tensor, mask: Tensor) -> Tensor:
    """(B, length, width) last hidden states, after the final norm, of padding rows too.

    tiles (B, T, 3, S, S), of which the first counts (B,) are real, all if None; ids, mask (B, length), padded on the
    left. Rows of padding attend to nothing (their attention is zero, as with the flash kernels of the published
    training).
    """
    if counts is None:
        shown = tiles.flatten(0, 1)
    else:
        shown = tiles[torch.arange(tiles.shape[1], device=tiles.device) < counts[:, None]]
    positions = (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 1)
    words, place = model.get_input_embeddings()(ids), (ids == model.config.image_token_id)[..., None]
    seen = model.get_image_features(shown, return_dict=True).pooler_output
    output = model.language_model(  # its own joint pass would ask the data whether places and pictures are as many
        inputs_embeds=words.masked_scatter(place, seen.to(words.dtype)),
        attention_mask=mask.long(),
        position_ids=positions,
        use_cache=False,
    )
    return output.last_hidden_state
