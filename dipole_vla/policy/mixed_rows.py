"""How an adapted layer computes: the route of the pass it is called in, never a state of the layer.

Threads share a policy and its layers. So the caller of the backbone says within `routed` how the adapted layers
compute, and only passes of that thread see it; outside all adapters are off. Routes: `alone` (PEFT's
own operations), rows of two roles side by side (`mixed`), and work shared between roles (`sharing`). The latter two
read weights directly, not through PEFT's modules: not for an engine that partitions them around modules (ZeRO-3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from peft.tuners import lora
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from dipole_vla.guidance import Role
from navsim_adapter.foundation.errors import InputError

Route = Callable[[LoraLayer, Tensor], Tensor]
"""(adapted layer, its input (..., in)) -> its output (..., out)."""


def alone(layer: LoraLayer, x: Tensor, role: Role = None) -> Tensor:
    """The layer with one adapter, operation by operation as PEFT computes it; None is the frozen layer."""
    output = layer.base_layer(x)
    if role is None:
        return output
    down: Any = layer.lora_A[role]
    up: Any = layer.lora_B[role]
    return (output + up(down(x.to(down.weight.dtype))) * layer.scaling[role]).to(output.dtype)


_route: ContextVar[Route] = ContextVar("route", default=alone)


@contextmanager
def routed(route: Route) -> Iterator[None]:
    """Let every adapted layer compute by `route` within the block, in this thread."""
    before = _route.set(route)
    try:
        yield
    finally:
        _route.reset(before)


def current_route() -> Route:
    """To run a part of this pass again, later or in another thread: within `routed` of it."""
    return _route.get()


class RoutedLinear(lora.Linear):
    """A PEFT layer that asks the pass it is called in."""

    def forward(self, x: Tensor) -> Tensor:
        return _route.get()(self, x)


class RoutedConv2d(lora.Conv2d):
    """The same for a convolution, of an encoder: only the route `alone` meets it."""

    def forward(self, x: Tensor) -> Tensor:
        return _route.get()(self, x)


ROUTED: dict[type, type] = {lora.Linear: RoutedLinear, lora.Conv2d: RoutedConv2d}


def routable(layer: LoraLayer) -> LoraLayer:
    """The same object, which computes as it is routed from now on."""
    if type(layer) not in ROUTED:
        kind = type(layer.get_base_layer()).__name__
        raise InputError(f"scope: reaches a layer of type {kind}; adapters are for linear layers, name only these")
    layer.__class__ = ROUTED[type(layer)]
    return layer


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


def mixed(layer: LoraLayer, x: Tensor, roles: tuple[Role, Role], rows: tuple[int, int] | None = None) -> Tensor:
    """The layer for rows [first role | second role]: one product with the frozen weight, each part its own update.

    rows: how many of either role; None if as many of both. A table of scenes always has as many of both and is told
    from one of rows by its length, which is why there must not be two rows for every scene.
    """
    flat = x.flatten(0, -2)
    output = layer.base_layer(flat)
    counts = rows if rows is not None and sum(rows) == len(x) else (len(x) // 2, len(x) // 2)
    sizes = [count * math.prod(x.shape[1:-1]) for count in counts]
    pairs = [matrix for role in roles for matrix in _matrices_in(layer, role, output.dtype)]
    add = _AddUpdates.apply if torch.is_grad_enabled() else _add_updates
    add(output, flat.to(output.dtype), sizes, layer.scaling["positive"], *pairs)
    return output.unflatten(0, x.shape[:-1])


def sharing(layer: LoraLayer, x: Tensor, role: Role, seen: dict[LoraLayer, tuple[Tensor, Tensor]]) -> Tensor:
    """The layer under one role, which keeps the frozen part of its last input: the other role mostly asks the same.

    seen: empty at first and handed to the passes of all roles; layer -> its last input and the frozen part of that.
    """
    if layer not in seen or seen[layer][0] is not x:
        seen[layer] = x, layer.base_layer(x)
    return _updated(layer, role, seen[layer][1], x)


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
