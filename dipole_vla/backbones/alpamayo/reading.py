"""The frozen half of Alpamayo: pictures and prompt through Qwen3-VL's own layers, once per scene.

Written out over transformers' modules, because their own passes ask the data for shapes: they take pictures one by one,
can be counted only with weights, and not be exported. All pictures have one size here, so everything is dense.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate, scaled_dot_product_attention

from dipole_vla.backbones.dit import KeysValues


class Seen(NamedTuple):
    """Pictures as tokens, (n, tokens, text_width), and what the text's first layers add to them, as many each."""

    tokens: Tensor
    deep: list[Tensor]


def see(visual: Any, pixels: Tensor) -> Seen:
    """pixels (n, 3, H, W) in [-1, 1]; H and W are whole numbers of merged patches."""
    patch, merge = visual.config.patch_size, visual.config.spatial_merge_size
    high, wide = pixels.shape[2] // patch, pixels.shape[3] // patch
    blocks = pixels.unflatten(3, (wide // merge, merge, patch)).unflatten(2, (high // merge, merge, patch))
    patches = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7).flatten(1, 4)  # (n, high * wide, 3, patch, patch)
    twice = patches[:, :, :, None].expand(-1, -1, -1, visual.config.temporal_patch_size, -1, -1)
    x = visual.patch_embed(twice.flatten(0, 1).flatten(1)).unflatten(0, patches.shape[:2])
    x = x + _by_blocks(_places(visual.pos_embed.weight, high, wide), merge)
    rotation = _turned(x, high, wide, merge, visual.config.hidden_size // visual.config.num_heads)
    deep: list[Tensor] = []
    for i, block in enumerate(visual.blocks):
        x = x + _look(block.attn, block.norm1(x), rotation)
        x = x + block.mlp(block.norm2(x))
        if i in visual.deepstack_visual_indexes:
            merger = visual.deepstack_merger_list[len(deep)]
            deep.append(merger(x.flatten(0, 1)).unflatten(0, (len(x), -1)))
    return Seen(visual.merger(x.flatten(0, 1)).unflatten(0, (len(x), -1)), deep)


def _look(attention: Any, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    q, k, v = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    attended = scaled_dot_product_attention(rotated(q, rotation), rotated(k, rotation), v)
    return attention.proj(attended.transpose(1, 2).flatten(2))


def _places(table: Tensor, high: int, wide: int) -> Tensor:
    """The learned square of positions, (side^2, width), stretched to (high, wide, width)."""
    side = round(len(table) ** 0.5)
    square = table.unflatten(0, (side, side)).permute(2, 0, 1)[None]
    return interpolate(square, (high, wide), mode="bilinear", align_corners=True)[0].permute(1, 2, 0)


def _by_blocks(grid: Tensor, merge: int) -> Tensor:
    """(high, wide, d) -> (high * wide, d), the patches that will be merged side by side."""
    high, wide = grid.shape[:2]
    blocks = grid.reshape(high // merge, merge, wide // merge, merge, -1)
    return blocks.transpose(1, 2).flatten(0, 3)


def _turned(x: Tensor, high: int, wide: int, merge: int, size: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (high * wide, size) of row and column."""
    rows, columns = torch.arange(high, device=x.device), torch.arange(wide, device=x.device)
    places = _by_blocks(torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1), merge)
    frequencies = 10000.0 ** -(torch.arange(0, size // 2, 2, device=x.device) / (size // 2))
    angles = (places[..., None] * frequencies).flatten(1).repeat(1, 2)
    return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def rotated(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """x (..., steps, size) turned by cosines and sines that broadcast over it."""
    first, second = x.chunk(2, dim=-1)
    return x * rotation[0] + torch.cat([-second, first], dim=-1) * rotation[1]


def projected(attention: Any, x: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (rows, heads, steps, head_dim) of x (rows, steps, width); cosines and sines as keys."""
    q, k, v = (
        project(x).unflatten(-1, (-1, attention.head_dim))
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    turn = rotation[0][:, None], rotation[1][:, None]
    q, k = attention.q_norm(q).transpose(1, 2), attention.k_norm(k).transpose(1, 2)
    return rotated(q, turn), rotated(k, turn), v.transpose(1, 2)


def read(
    text: Any,
    x: Tensor,
    positions: Tensor,
    mask: Tensor,
    before: list[KeysValues] | None = None,
    deep: Sequence[Tensor] = (),
) -> tuple[Tensor, list[KeysValues]]:
    """Last hidden states (B, steps, width), after the final norm, and every layer's keys and values, `before` included.

    x (B, steps, width) at positions (3, B, steps). mask (B, 1, steps, all), true where a token may look; `all` counts
    the tokens `before`. deep: added after each of the first layers, of x's shape.
    """
    rotation = text.rotary_emb(x, positions)
    found = []
    for i, layer in enumerate(text.layers):
        q, k, v = projected(layer.self_attn, layer.input_layernorm(x), rotation)
        if before is not None:
            k, v = torch.cat([before[i].keys, k], dim=2), torch.cat([before[i].values, v], dim=2)
        attended = scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        x = x + layer.self_attn.o_proj(attended.transpose(1, 2).flatten(2))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
        x = x + deep[i] if i < len(deep) else x
        found.append(KeysValues(k, v))
    return text.norm(x), found


def causal(mask: Tensor) -> Tensor:
    """(B, 1, length, length) for tokens (B, length) of which the true ones are real; padding sees itself alone."""
    steps = torch.arange(mask.shape[1], device=mask.device)
    seen = (steps[:, None] >= steps) & mask[:, None, None]
    return seen | (steps[:, None] == steps)


def positions_of(is_picture: Tensor, mask: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Time, row and column (3, B, length) of each token, and the position after the last (B,).

    A picture takes the place of max(grid) words: its tokens share a time, and count rows and columns from there.
    grid: tokens of a picture, high and wide.
    """
    high, wide = grid
    pictures = is_picture.long().cumsum(1) - is_picture.long()
    words = (mask & ~is_picture).long()
    within = pictures % (high * wide)
    start = words.cumsum(1) - words + pictures.div(high * wide, rounding_mode="floor") * max(grid)
    row, column = within.div(wide, rounding_mode="floor") * is_picture, within % wide * is_picture
    after = words.sum(1) + is_picture.long().sum(1).div(high * wide, rounding_mode="floor") * max(grid)
    return torch.stack([start, start + row, start + column]), after
