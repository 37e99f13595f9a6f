"""Forward passes of an adapted layer that PEFT has not: rows of two roles side by side, and work shared between roles.

Used through `AdapterPair.layers_as`. Weights are read directly, not through PEFT's modules: not for an engine that
partitions them around modules (ZeRO-3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from dipole_vla.guidance import Role


def frozen(layer: LoraLayer) -> nn.Linear:
    """The linear layer under the adapters."""
    base = layer.get_base_layer()
    assert isinstance(base, nn.Linear)
    return base


def matrices(layer: LoraLayer, role: str) -> tuple[Tensor, Tensor, float]:
    """(rank, in) and (out, rank) matrices of one adapter, and its scaling: the update is scaling * up @ down."""
    down, up = layer.lora_A[role].weight, layer.lora_B[role].weight
    assert isinstance(down, Tensor)
    assert isinstance(up, Tensor)
    return down, up, layer.scaling[role]


def mixed(
    layer: LoraLayer, roles: tuple[Role, Role], rows: tuple[int, int] | None = None
) -> Callable[[Tensor], Tensor]:
    """The layer for rows [first role | second role]: one product with the frozen weight, each part its own update.

    rows: how many of either role; None if as many of both. A table of scenes always has as many of both and is told
    from one of rows by its length, which is why there must not be two rows for every scene.
    """

    def forward(x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        output = layer.base_layer(flat)
        counts = rows if rows is not None and sum(rows) == len(x) else (len(x) // 2, len(x) // 2)
        sizes = [count * math.prod(x.shape[1:-1]) for count in counts]
        pairs = [matrix for role in roles for matrix in _matrices_in(layer, role, output.dtype)]
        add = _AddUpdates.apply if torch.is_grad_enabled() else _add_updates
        add(output, flat.to(output.dtype), sizes, layer.scaling["positive"], *pairs)
        return output.unflatten(0, x.shape[:-1])

    return forward


def remembering(layer: LoraLayer) -> Callable[[Tensor], Tensor]:
    """The routed layer, which keeps the frozen part of its last input: the other role mostly asks the same."""
    last: list[Tensor] = []

    def forward(x: Tensor) -> Tensor:
        if not last or last[0] is not x:
            last[:] = [x, layer.base_layer(x)]
        role = None if layer._disable_adapters else layer._active_adapter[0]
        return _updated(layer, role, last[1], x)  # type: ignore[arg-type]

    return forward


def _updated(layer: LoraLayer, role: Role, output: Tensor, x: Tensor) -> Tensor:
    """The frozen layer's output (..., out) for x (..., in) with one adapter's update added."""
    if role is None:
        return output
    down, up, scaling = matrices(layer, role)
    hidden = nn.functional.linear(x.to(output.dtype), down.to(output.dtype)).flatten(0, -2)
    return torch.addmm(output.flatten(0, -2), hidden, up.T.to(output.dtype), alpha=scaling).reshape(output.shape)


def _matrices_in(layer: LoraLayer, role: Role, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    if role is None:
        return None, None
    down, up, _ = matrices(layer, role)
    return down.to(dtype), up.to(dtype)


def _add_updates(
    output: Tensor, x: Tensor, sizes: Sequence[int], scaling: float, *matrices: Tensor | None
) -> list[Tensor | None]:
    """output += scaling * up down x, where successive runs of rows have matrices (down, up) of their own, or none.

    output (rows, out) and x (rows, in); sizes of the runs. Returns down x of each run.
    """
    inner: list[Tensor | None] = []
    for rows, out, (down, up) in zip(x.split(sizes), output.split(sizes), _by_two(matrices)):
        inner.append(None if down is None else rows @ down.T)
        if down is not None:
            out.addmm_(inner[-1], up.T, alpha=scaling)
    return inner


class _AddUpdates(torch.autograd.Function):
    """`_add_updates` with gradients: autograd's own (slices, products, a concatenation) cost as much as the layer."""

    @staticmethod
    def forward(ctx, output, x, sizes, scaling, *matrices):
        ctx.sizes, ctx.scaling = sizes, scaling
        ctx.mark_dirty(output)
        ctx.save_for_backward(x, *_add_updates(output, x, sizes, scaling, *matrices), *matrices)
        return output

    @staticmethod
    def backward(ctx, gradient):
        x, *saved = ctx.saved_tensors
        runs = len(ctx.sizes)
        into_x = torch.zeros_like(x) if ctx.needs_input_grad[1] else None
        targets = [None] * runs if into_x is None else into_x.split(ctx.sizes)
        found: list[Tensor | None] = []
        for rows, out, inner, (down, up), target in zip(
            x.split(ctx.sizes), gradient.split(ctx.sizes), saved[:runs], _by_two(saved[runs:]), targets
        ):
            if down is None:
                found += [None, None]
                continue
            into_inner = ctx.scaling * (out @ up)
            found += [into_inner.T @ rows, ctx.scaling * (inner.T @ out).T]
            if target is not None:
                target.addmm_(into_inner, down)
        return gradient, into_x, None, None, *found


def _by_two(matrices: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(matrices[::2], matrices[1::2])
