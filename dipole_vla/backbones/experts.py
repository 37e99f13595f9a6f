"""What action experts share that denoise by the keys and values of a prefix which was read once (PI0 and its kin).

A scene's candidates lie side by side in one sequence, so that they share its keys and values; a mask keeps them apart.
The prefix itself, norms and how actions become tokens are the families' own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from dipole_vla.backbones.dit import KeysValues, Layout
from dipole_vla.paths import LinearFlow
from dipole_vla.solvers import SolverSpec

PATH = LinearFlow(noise_at=1, power=1.5, slope=0.999, floor=0.001)
PUBLISHED_SOLVER = SolverSpec("euler", steps=10)

TOGETHER = 256
"""Most tokens of candidates in one attention, or those of one candidate (`beside`)."""

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines of a sequence's positions, (rows, steps, head_dim) each."""


class Suffix(NamedTuple):
    """The expert's tokens (rows, steps, width), the actions last.

    sees: which tokens of its own row a token sees, (steps, steps). condition: what norms are steered by, (rows, any).
    """

    tokens: Tensor
    sees: Tensor
    condition: Tensor | None = None


class ActionTime(nn.Module):
    """Noisy actions and time -> one token per action, under the published names.

    periods: shortest and longest of the time's sinusoids. precision: what their angles are computed in.
    """

    def __init__(
        self, width: int, actions: int, periods: tuple[float, float], precision: torch.dtype = torch.float64
    ) -> None:
        super().__init__()
        self.width, self.periods, self.precision = width, periods, precision
        self.action_in_proj = nn.Linear(actions, width)
        self.action_time_mlp_in = nn.Linear(2 * width, width)
        self.action_time_mlp_out = nn.Linear(width, width)

    def tokens(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(rows, horizon, width) from x_t (rows, horizon, actions) and t (rows,)."""
        time = sinusoids(t, self.width, self.periods, self.precision).to(x_t.dtype)
        joined = torch.cat([self.action_in_proj(x_t), time[:, None].expand(-1, x_t.shape[1], -1)], dim=-1)
        return self.action_time_mlp_out(silu(self.action_time_mlp_in(joined)))


def sinusoids(t: Tensor, width: int, periods: tuple[float, float], precision: torch.dtype) -> Tensor:
    """(rows, width): sines, then cosines, of t (rows,) at periods spaced evenly in their logarithm."""
    precision = torch.float32 if t.device.type == "mps" else precision  # which has no float64
    shortest, longest = periods
    place = torch.linspace(0, 1, width // 2, device=t.device, dtype=precision)
    angles = t.to(precision)[:, None] * (2 * math.pi / (shortest * (longest / shortest) ** place))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def normed(norm: nn.Module, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """x normalised, and the gate of what is computed from it; only a norm with a condition has one."""
    return (norm(x), None) if condition is None else norm(x, condition)


def residual(x: Tensor, norm: nn.Module, block: Callable[[Tensor], Tensor], condition: Tensor | None = None) -> Tensor:
    """x and what `block` makes of x normalised."""
    h, gate = normed(norm, x, condition)
    return x + (block(h) if gate is None else gate * block(h))


class Sight(NamedTuple):
    """Where a layer's tokens are, and what they may look at.

    rotation: of their positions. seen: keys and values of their scenes' prefix, (B, kv_heads, length, head_dim) each.
    mask: of `mask_beside`; (B, 1, 1, length) where the prefix is all they see.
    """

    rotation: Rotation
    seen: KeysValues
    mask: Tensor
    layout: Layout


class ExpertLayer(nn.Module):
    """What a decoder layer of transformers does in an expert; called as a whole, so that it can be computed again."""

    input_layernorm: Any
    post_attention_layernorm: Any
    self_attn: Any
    mlp: Any

    def forward(self, x: Tensor, sight: Sight, condition: Tensor | None = None) -> Tensor:
        """x (rows, steps, width), and the same after attention and MLP. condition: see `Suffix`."""
        x = residual(x, self.input_layernorm, partial(self.look, sight=sight), condition)
        return residual(x, self.post_attention_layernorm, self.mlp, condition)

    def look(self, x: Tensor, sight: Sight) -> Tensor:
        """Each row of normalised tokens attends to its scene's prefix and to itself."""
        attention, layout = self.self_attn, sight.layout
        queries, keys = (
            _packed(attention, project(x), layout, sight.rotation) for project in (attention.q_proj, attention.k_proj)
        )
        own = KeysValues(keys, _packed(attention, attention.v_proj(x), layout))
        attended = beside(queries, own, sight.seen, sight.mask)
        return attention.o_proj(one_by_one(attended, layout, x.shape[1]))


class CrossLayer(ExpertLayer):
    """The same for a layer whose tokens see nothing but the prefix."""

    def look(self, x: Tensor, sight: Sight) -> Tensor:
        attention, layout = self.self_attn, sight.layout
        queries = _packed(attention, attention.q_proj(x), layout, sight.rotation)
        return attention.o_proj(one_by_one(answers(queries, sight.seen, sight.mask), layout, x.shape[1]))


def beside(queries: Tensor, own: KeysValues, seen: KeysValues, mask: Tensor) -> Tensor:
    """What queries of candidates side by side find in the prefix and in their own row, (B, heads, G * steps, head_dim).

    A few candidates at a time, as many as `mask` (see `mask_beside`) is for: every one is a further copy of the prefix
    in that layer, every one less is work on pairs of rows that do not see each other.
    """
    length, together = seen.keys.shape[2], mask.shape[2]
    if queries.shape[2] <= together:
        return answers(queries, _joined(seen, own), mask)
    found = []
    for some, keys, values in zip(*(part.split(together, dim=2) for part in (queries, *own))):
        shown = mask[:, :, : some.shape[2], : length + some.shape[2]]
        found.append(answers(some, _joined(seen, KeysValues(keys, values)), shown))
    return torch.cat(found, dim=2)


def answers(queries: Tensor, seen: KeysValues, mask: Tensor) -> Tensor:
    """Attention of queries (B, heads, n, head_dim) to what is seen, true where the mask lets them look."""
    return scaled_dot_product_attention(queries, *seen, attn_mask=mask, enable_gqa=True)


def _joined(first: KeysValues, second: KeysValues) -> KeysValues:
    return KeysValues(*(torch.cat(parts, dim=2) for parts in zip(first, second)))


def side_by_side(heads: Tensor, layout: Layout) -> Tensor:
    """(rows, steps, heads, head_dim) -> (B, heads, G * steps, head_dim)."""
    return layout.pack(heads.flatten(2)).unflatten(-1, heads.shape[2:]).transpose(1, 2)


def one_by_one(x: Tensor, layout: Layout, steps: int) -> Tensor:
    """(B, heads, G * steps, head_dim) -> (rows, steps, heads * head_dim)."""
    return layout.unpack(x.transpose(1, 2).flatten(2), steps)


def _packed(attention: Any, projected: Tensor, layout: Layout, rotation: Rotation | None = None) -> Tensor:
    """(rows, steps, heads * head_dim), turned by the positions if they are given, side by side."""
    heads = projected.unflatten(-1, (-1, attention.head_dim))
    return side_by_side(heads if rotation is None else _rotated(heads, rotation), layout)


def _rotated(x: Tensor, rotation: Rotation) -> Tensor:
    """x (rows, steps, heads, head_dim), turned by its positions."""
    cos, sin = (part[:, :, None] for part in rotation)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def mask_beside(prefix: Tensor, rows: int, sees: Tensor) -> Tensor:
    """`joint_mask` for as many of a scene's rows as `beside` takes at a time: all of them where they are few."""
    return joint_mask(prefix, min(rows, max(TOGETHER // len(sees), 1)), sees)


def joint_mask(prefix: Tensor, rows: int, sees: Tensor) -> Tensor:
    """(B, 1, rows * steps, length + rows * steps), true where a token may look.

    prefix (B, length): a scene's real tokens, seen by all. sees (steps, steps): which of its own tokens a row's token
    sees; rows do not see each other.
    """
    number = torch.arange(rows * len(sees), device=prefix.device)
    row, step = number // len(sees), number % len(sees)
    own = (row[:, None] == row) & sees[step[:, None], step]
    seen = prefix[:, None, None].expand(-1, -1, len(number), -1)
    return torch.cat([seen, own.expand(len(prefix), 1, -1, -1)], dim=-1)
