"""Wan2.2's transformer, under its published names: one kind of block, in a video expert and in an action expert.

A block's self-attention is mixed with what another expert saw, so the block is given its attention from outside: the
action expert's tokens look at the video expert's keys and values and at themselves, those of the video at themselves.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from dipole_vla.backbones.dit import KeysValues

EPSILON = 1e-6

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines (tokens, head_dim / 2) of the tokens' places."""
Mix = Callable[[Tensor, KeysValues], Tensor]
"""Queries, keys and values of one's own, (rows, heads, tokens, head_dim) each -> (rows, tokens, heads * head_dim)."""
Look = Callable[[Tensor], Tensor]
"""Queries (rows, heads, tokens, head_dim) -> what they find elsewhere, (rows, tokens, heads * head_dim)."""


class Attention(nn.Module):
    """Projections of one attention. Queries and keys are normalised over all heads together."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, inner) for _ in range(3))
        self.o = nn.Linear(inner, width)
        self.norm_q, self.norm_k = (nn.RMSNorm(inner, eps=EPSILON) for _ in range(2))

    def queries(self, x: Tensor) -> Tensor:
        """(rows, tokens, width) -> (rows, heads, tokens, head_dim)."""
        return self._split(self.norm_q(self.q(x)))

    def project(self, x: Tensor) -> KeysValues:
        """Keys and values of x (rows, tokens, width)."""
        return KeysValues(self._split(self.norm_k(self.k(x))), self._split(self.v(x)))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """Mixed self-attention, cross-attention to the prompt, and a network of each token's own."""

    def __init__(self, width: int, hidden: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.self_attn, self.cross_attn = (Attention(width, heads, head_dim) for _ in range(2))
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=EPSILON, elementwise_affine=False) for _ in range(2))
        self.norm3 = nn.LayerNorm(width, eps=EPSILON)
        self.ffn = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))
        self.modulation = nn.Parameter(torch.randn(1, 6, width) / width**0.5)

    def forward(self, x: Tensor, time: Tensor, rotation: Rotation, mix: Mix, look: Look) -> tuple[Tensor, KeysValues]:
        """x (rows, tokens, width) after the block, and its keys and values; time (rows or 1, 6, width)."""
        shift, scale, gate, shift_own, scale_own, gate_own = (self.modulation + time).unsqueeze(2).unbind(1)
        shown = self.norm1(x) * (1 + scale) + shift
        own = self.self_attn.project(shown)
        own = own._replace(keys=rotated(own.keys, rotation))
        x = x + gate * self.self_attn.o(mix(rotated(self.self_attn.queries(shown), rotation), own))
        x = x + self.cross_attn.o(look(self.cross_attn.queries(self.norm3(x))))
        return x + gate_own * self.ffn(self.norm2(x) * (1 + scale_own) + shift_own), own


class Expert(nn.Module):
    """What both experts have: blocks, and embeddings of the time and of the prompt."""

    def __init__(self, width: int, hidden: int, layers: int, heads: int, head_dim: int, text: int, time: int) -> None:
        super().__init__()
        self.waves, self.head_dim = time, head_dim
        self.text_embedding = nn.Sequential(
            nn.Linear(text, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )
        self.time_embedding = nn.Sequential(nn.Linear(time, width), nn.SiLU(), nn.Linear(width, width))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(Block(width, hidden, heads, head_dim) for _ in range(layers))

    def modulated(self, t: Tensor) -> Tensor:
        """(rows, 6, width): shifts, scales and gates of the blocks at times t (rows,) in thousandths."""
        seen = waves(t, self.waves).to(self.time_embedding[0].weight.dtype)  # type: ignore[arg-type]
        return self.time_projection(self.time_embedding(seen)).unflatten(1, (6, -1))


class VideoExpert(Expert):
    """Reads the latents of the present picture, which is clean: its time is 0."""

    def __init__(self, channels: int, width: int, *sizes: int) -> None:
        super().__init__(width, *sizes)
        self.patch_embedding = nn.Conv3d(channels, width, (1, 2, 2), (1, 2, 2))

    def forward(self, latents: Tensor, told: Tensor) -> tuple[Tensor, list[KeysValues]]:
        """Last tokens (B, tokens, width), and keys and values of every layer.

        latents (B, channels, H, W) of one frame; told (B, length, text width).
        """
        grid = self.patch_embedding(latents[:, :, None])[:, :, 0]
        x, told, found = grid.flatten(2).transpose(1, 2), self.text_embedding(told), []
        rotation = place_in_picture(grid.shape[2], grid.shape[3], self.head_dim, x)
        time = self.modulated(latents.new_zeros(1))
        for block in self.blocks:
            words = block.cross_attn.project(told)  # type: ignore[union-attr, operator]
            x, own = block(x, time, rotation, attend, lambda queries, words=words: attend(queries, words))
            found.append(own)
        return x, found


class ActionExpert(Expert):
    """Turns noisy actions into velocities."""

    def __init__(self, channels: int, width: int, *sizes: int) -> None:
        super().__init__(width, *sizes)
        self.action_encoder = nn.Linear(channels, width)
        self.head = nn.Linear(width, channels)

    def project(self, told: Tensor) -> list[KeysValues]:
        """Keys and values of every layer's cross-attention for an embedded prompt (B, length, width)."""
        return [block.cross_attn.project(told) for block in self.blocks]  # type: ignore[union-attr, operator]

    def forward(self, x_t: Tensor, t: Tensor, layers: list[tuple[Mix, Look]]) -> Tensor:
        """(rows, horizon, channels) of x_t of that shape and t (rows,) in thousandths; attention of each layer."""
        x, time = self.action_encoder(x_t), self.modulated(t)
        rotation = _turns(torch.arange(x_t.shape[1], device=x.device), self.head_dim, x)
        for block, (mix, look) in zip(self.blocks, layers):
            x, _ = block(x, time, rotation, mix, look)
        return self.head(x)


def attend(queries: Tensor, seen: KeysValues, mask: Tensor | None = None) -> Tensor:
    """(rows, tokens, heads * head_dim); mask: true where a token may look."""
    return scaled_dot_product_attention(queries, seen.keys, seen.values, attn_mask=mask).transpose(1, 2).flatten(2)


def rotated(x: Tensor, rotation: Rotation) -> Tensor:
    """x (rows, heads, tokens, head_dim), each pair of neighbouring numbers turned by its token's place."""
    cos, sin = rotation
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2)


def place_in_picture(high: int, wide: int, head_dim: int, like: Tensor) -> Rotation:
    """Of (high * wide) tokens, row by row, in the first frame: a third of each head for the row, one for the column."""
    third = head_dim // 3
    rows, columns = (torch.arange(side, device=like.device) for side in (high, wide))
    frame = _turns(torch.zeros(high * wide, device=like.device), head_dim - 2 * third, like)
    row = _turns(rows.repeat_interleave(wide), third, like)
    column = _turns(columns.repeat(high), third, like)
    cos, sin = (torch.cat(parts, dim=-1) for parts in zip(frame, row, column))
    return cos, sin


def _turns(place: Tensor, size: int, like: Tensor) -> Rotation:
    """Cosines and sines (tokens, size / 2) in the dtype of `like`."""
    cos, sin = waves(place, size).chunk(2, dim=-1)
    return cos.to(like.dtype), sin.to(like.dtype)


def waves(place: Tensor, size: int) -> Tensor:
    """(n,) -> (n, size), float32: cosines, then sines, of frequencies 10000^(-i / (size / 2))."""
    precision = torch.float32 if place.device.type == "mps" else torch.float64
    frequencies = 10000.0 ** -(torch.arange(size // 2, device=place.device, dtype=precision) / (size // 2))
    angles = place.to(precision)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1).float()
