"""What action experts share that denoise by the keys and values of a prefix which was read once (PI0 and its kin).

All candidates of a scene lie side by side in one sequence, so that they use its keys and values uncopied; a mask keeps
them apart. The prefix itself, norms and how actions become tokens are the families' own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from dipole_vla.backbones.dit import Layout
from dipole_vla.paths import LinearFlow
from dipole_vla.solvers import SolverSpec

PATH = LinearFlow(noise_at=1, power=1.5, slope=0.999, floor=0.001)
PUBLISHED_SOLVER = SolverSpec("euler", steps=10)

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


def attend(
    attention: Any, x: Tensor, rotation: Rotation, seen: tuple[Tensor, Tensor], mask: Tensor, layout: Layout
) -> Tensor:
    """(rows, steps, width): each row of normalised tokens attends to its scene's prefix and to itself.

    attention: transformers' layer with q_proj to o_proj and head_dim.
    seen: keys and values of the prefix, (B, kv_heads, length, head_dim) each.
    """
    queries = _packed(attention, attention.q_proj(x), layout, rotation)
    own = _packed(attention, attention.k_proj(x), layout, rotation)
    keys = torch.cat([seen[0], own], dim=2)
    values = torch.cat([seen[1], _packed(attention, attention.v_proj(x), layout)], dim=2)
    return _answers(attention, queries, keys, values, mask, layout, x.shape[1])


def attend_to(
    attention: Any, x: Tensor, rotation: Rotation, seen: tuple[Tensor, Tensor], mask: Tensor, layout: Layout
) -> Tensor:
    """(rows, steps, width): each row of normalised tokens attends to what is `seen` of its scene, and to nothing else.

    mask (B, 1, 1, length).
    """
    queries = _packed(attention, attention.q_proj(x), layout, rotation)
    return _answers(attention, queries, *seen, mask, layout, x.shape[1])


def _packed(attention: Any, projected: Tensor, layout: Layout, rotation: Rotation | None = None) -> Tensor:
    """(rows, steps, heads * head_dim) -> (B, heads, G * steps, head_dim), turned by the positions if they are given."""
    heads = projected.unflatten(-1, (-1, attention.head_dim))
    heads = heads if rotation is None else _rotated(heads, rotation)
    return layout.pack(heads.flatten(2)).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)


def _answers(
    attention: Any, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, layout: Layout, steps: int
) -> Tensor:
    attended = scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=True)
    return attention.o_proj(layout.unpack(attended.transpose(1, 2).flatten(2), steps))


def _rotated(x: Tensor, rotation: Rotation) -> Tensor:
    """x (rows, steps, heads, head_dim), turned by its positions."""
    cos, sin = (part[:, :, None] for part in rotation)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


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
