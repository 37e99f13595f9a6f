"""DP-VLA's action head: a diffusion transformer that attends to scene tokens, under its published parameter names.

Names and order of operations are those of the published `decoder.*` weights, odd as some are (the modulation
vectors come as self-attention, cross-attention, MLP, cross-MLP; the operations as self-attention, MLP,
cross-attention, cross-MLP). The encoder is in `dipole_vla.backbones.florence.encoder`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from navsim_adapter.foundation.errors import InputError


class KeysValues(NamedTuple):
    """Projected scene tokens of one block, each (B, heads, tokens, head_dim)."""

    keys: Tensor
    values: Tensor


def packed(blocks: Sequence[KeysValues]) -> dict[str, Tensor]:
    """As named tensors of a context, "keys.0", "keys.1", ... and "values.0", ...; inverse of `unpacked`."""
    keys = {f"keys.{i}": block.keys for i, block in enumerate(blocks)}
    return keys | {f"values.{i}": block.values for i, block in enumerate(blocks)}


def unpacked(tensors: Mapping[str, Tensor]) -> list[KeysValues]:
    depth = sum(name.startswith("keys.") for name in tensors)
    return [KeysValues(tensors[f"keys.{i}"], tensors[f"values.{i}"]) for i in range(depth)]


@dataclass(frozen=True)
class DiTSizes:
    """Sizes of the head; the defaults are the published ones."""

    width: int = 1024
    depth: int = 12
    heads: int = 16
    mlp_ratio: float = 4.0
    input_width: int = 512  # hidden width of the action and proprio MLPs
    context_width: int = 1024
    horizon: int = 8
    action_dim: int = 4
    proprio_dim: int = 12
    dropout: float = 0.1


class DiT(nn.Module):
    """Noisy actions, time, proprio and scene tokens -> the raw prediction."""

    def __init__(self, sizes: DiTSizes) -> None:
        super().__init__()
        width = sizes.width
        if sizes.heads < 1 or width % sizes.heads:
            raise InputError(f"config.heads: must divide the width {width}, got {sizes.heads}")
        self.pos_emb = nn.Parameter(_position_table(sizes.horizon, width)[None])
        self.t_embedder = TimeEmbedder(width)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.depth))
        self.action_in_proj = MLP(sizes.action_dim, sizes.input_width, width, approximate="none")
        self.y_in_proj = MLP(sizes.proprio_dim, sizes.input_width, width, approximate="none")
        self.final_layer = FinalLayer(width, sizes.action_dim)
        self._start_as_identity()

    def _start_as_identity(self) -> None:
        """Gates, shifts, scales and the last layer at zero, so that training starts from "predict zero"."""
        for modulated in (*self.blocks, self.final_layer):
            for parameter in modulated.adaLN_modulation[1].parameters():
                nn.init.zeros_(parameter)
        for parameter in self.final_layer.proj[-1].parameters():
            nn.init.zeros_(parameter)

    def project(self, tokens: Tensor) -> list[KeysValues]:
        """Keys and values of every block for scene tokens (B, tokens, context_width): the part without x_t and t."""
        return [block.cross_attn.project(tokens) for block in self.blocks]  # type: ignore[union-attr, operator]

    def forward(self, x_t: Tensor, t: Tensor, proprio: Tensor, scene: Iterable[KeysValues], layout: Layout) -> Tensor:
        """(rows, horizon, action_dim) from x_t of that shape, t (rows,) in [0, 1] and proprio (B, proprio_dim)."""
        condition = self.t_embedder(t, x_t.dtype) + layout.per_row(self.y_in_proj(proprio))
        x = self.action_in_proj(x_t) + self.pos_emb
        for block, keys_values in zip(self.blocks, scene):
            x = block(x, condition, keys_values, layout)
        return self.final_layer(x, condition)


class Layout:
    """Which scene each row of actions belongs to, so that a scene's keys and values serve all its rows uncopied.

    scenes: number of scenes B; rows: number of action rows; serves: (rows,) scene of each row, or None when scene i
    serves rows [i*G, (i+1)*G), and again in each of `rounds` (`Context.rounds`). Where rounds are 2, `serves` counts
    the second role's scenes on from the first's.
    """

    def __init__(self, scenes: int, rows: int, serves: Tensor | None = None, rounds: int = 1) -> None:
        self.scenes, self.serves, self.rounds = scenes, serves, rounds
        self.per_scene = rows // scenes
        if serves is not None:
            self.serves = serves = serves % scenes
            counts = torch.bincount(serves, minlength=scenes)
            order = torch.argsort(serves, stable=True)
            first = counts.cumsum(0) - counts
            self.slot = torch.empty_like(serves)
            self.slot[order] = torch.arange(rows, device=serves.device) - first[serves[order]]
            self.per_scene = int(counts.max())

    def per_row(self, table: Tensor) -> Tensor:
        """(B, ...) -> (rows, ...)."""
        if self.serves is not None:
            return table[self.serves]
        once = table.repeat_interleave(self.per_scene // self.rounds, 0)
        return once if self.rounds == 1 else torch.cat([once] * self.rounds)

    def pack(self, x: Tensor) -> Tensor:
        """(rows, T, d) -> (B, G*T, d), where scenes with fewer rows are padded with zeros."""
        if self.serves is not None:
            padded = x.new_zeros(self.scenes, self.per_scene, *x.shape[1:])
            x = padded.index_put((self.serves, self.slot), x)
        elif self.rounds > 1:
            x = x.unflatten(0, (self.rounds, self.scenes, -1)).transpose(0, 1)
        return x.reshape(self.scenes, -1, x.shape[-1])

    def unpack(self, x: Tensor, steps: int) -> Tensor:
        """(B, G*T, d) -> (rows, T, d) with T = steps; inverse of `pack`."""
        if self.serves is None:
            rounds = x.reshape(self.scenes, self.rounds, -1, steps, x.shape[-1]).transpose(0, 1)
            return rounds.reshape(-1, steps, x.shape[-1])
        return x.reshape(self.scenes, self.per_scene, steps, x.shape[-1])[self.serves, self.slot]


class Block(nn.Module):
    def __init__(self, sizes: DiTSizes) -> None:
        super().__init__()
        width, hidden = sizes.width, int(sizes.width * sizes.mlp_ratio)
        self.attn = SelfAttention(width, sizes.heads, sizes.dropout)
        self.mlp = MLP(width, hidden, width, dropout=sizes.dropout)
        self.cross_attn = CrossAttention(width, sizes.context_width, sizes.heads, sizes.dropout)
        self.cross_mlp = MLP(width, hidden, width, dropout=sizes.dropout)
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 12 * width))

    def forward(self, x: Tensor, condition: Tensor, scene: KeysValues, layout: Layout) -> Tensor:
        vectors = self.adaLN_modulation(condition)[:, None].chunk(12, dim=-1)
        attn, cross, mlp, cross_mlp = (vectors[i : i + 3] for i in range(0, 12, 3))
        x = x + attn[2] * self.attn(_modulate(self.norm(x), attn[0], attn[1]))
        x = x + mlp[2] * self.mlp(_modulate(self.norm(x), mlp[0], mlp[1]))
        x = x + cross[2] * self.cross_attn(_modulate(self.norm(x), cross[0], cross[1]), scene, layout)
        return x + cross_mlp[2] * self.cross_mlp(_modulate(self.norm(x), cross_mlp[0], cross_mlp[1]))


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, steps, width = x.shape
        q, k, v = self.qkv(x).reshape(rows, steps, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.proj(x.transpose(1, 2).reshape(rows, steps, width))


class CrossAttention(nn.Module):
    """Actions attend to scene tokens; every token counts, padding of the prompt too (as in the published weights)."""

    def __init__(self, width: int, context_width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.proj_q = nn.Linear(width, width)
        self.proj_k = nn.Linear(context_width, width)
        self.proj_v = nn.Linear(context_width, width)
        self.proj = nn.Linear(width, width)

    def project(self, tokens: Tensor) -> KeysValues:
        return KeysValues(self._heads(self.proj_k(tokens)), self._heads(self.proj_v(tokens)))

    def forward(self, x: Tensor, scene: KeysValues, layout: Layout) -> Tensor:
        queries = self._heads(layout.pack(self.proj_q(x)))
        dropout = self.dropout if self.training else 0.0
        attended = scaled_dot_product_attention(queries, scene.keys, scene.values, dropout_p=dropout)
        return self.proj(layout.unpack(attended.transpose(1, 2).flatten(2), x.shape[1]))

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, width) -> (B, heads, T, head_dim)."""
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)


class MLP(nn.Module):
    def __init__(
        self, width_in: int, hidden: int, width_out: int, approximate: str = "tanh", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width_in, hidden)
        self.act = nn.GELU(approximate=approximate)
        self.fc2 = nn.Linear(hidden, width_out)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class TimeEmbedder(nn.Module):
    """Sinusoid of a time in [0, 1] (cosines first, frequencies 100^(-i/128), no factor 1000), then an MLP."""

    size = 256

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(self.size, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        return self.mlp(_sinusoid(t.float(), self.size).to(dtype))


class FinalLayer(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        hidden = 4 * width  # whatever mlp_ratio is, as published
        self.norm_final = nn.LayerNorm(width)
        self.proj = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.GELU(approximate="tanh"),
            nn.LayerNorm(hidden),
            nn.Linear(hidden, out),
        )
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition)[:, None].chunk(2, dim=-1)
        return self.proj(_modulate(self.norm_final(x), shift, scale))


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


def _sinusoid(position: Tensor, size: int, base: float = 100.0) -> Tensor:
    """(n,) -> (n, size): cosines, then sines, of frequencies base^(-i / (size/2))."""
    half = size // 2
    frequencies = torch.exp(-math.log(base) * torch.arange(half, device=position.device) / half)
    angles = position[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _position_table(horizon: int, width: int) -> Tensor:
    """Start of the learned positions: sines of base 100."""
    return _sinusoid(torch.arange(horizon, dtype=torch.float32), width)
