"""Sharing and freeing activations between the two policies, so that a pair costs what one policy costs.

Frozen work is shared, one sign's activations are kept at a time, or activations are computed again. All three leave
every number as it is (the first two bit for bit).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dipole_vla.policy.adapters import AdapterPair
from dipole_vla.policy.mixed_rows import current_route, routed
from dipole_vla.policy.separate import Pair


@contextmanager
def shared_base(pair: Pair) -> Iterator[None]:
    """Within the block a frozen layer that is given the very same tensor again returns what it gave before.

    Both signs project the same scene tokens to keys and values: the frozen part of that, nearly all of it, is done
    once and each adapter adds its own small part.
    """
    bases = [layer.get_base_layer() for layer in pair.layers] if isinstance(pair, AdapterPair) else []
    for base in bases:
        base.forward = _Remembered(base.forward)
    try:
        yield
    finally:
        for base in bases:
            del base.forward  # the class's own shows again


class _Remembered:
    def __init__(self, forward: Any):
        self.forward = forward
        self.last: tuple[Tensor, Tensor] | None = None  # as one, for a thread to see both or none

    def __call__(self, x: Tensor) -> Tensor:
        if x.requires_grad:  # the output belongs to one pass's graph
            return self.forward(x)
        last = self.last
        if last is None or last[0] is not x:
            self.last = last = x, self.forward(x)
        return last[1]


def backward_early(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Run the backward pass of `loss` now, which frees its activations; the value returned hands the gradients on.

    For a backward pass over a sum of such values nothing changes: the gradients arrive at the parameters then,
    through autograd, so accumulation, scaling and the reducers of distributed training work as before.
    """
    gradients = torch.autograd.grad(loss, parameters)
    handed_on: Tensor = _HandOn.apply(loss.detach(), gradients, *parameters)
    return handed_on


class _HandOn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss, gradients, *parameters):
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx, factor):
        return None, None, *(gradient * factor for gradient in ctx.gradients)


def recompute_blocks(pair: Pair) -> int:
    """Activation checkpointing of every repeated block that trains; returns how many there are.

    A block runs again in the backward pass, under the route it ran under, in whichever thread autograd does that.
    """
    blocks = _blocks(pair)
    for block in blocks:
        block.forward = _Recomputed(block.forward)
    return len(blocks)


def recomputes(pair: Pair) -> bool:
    """Whether any block has run since `recompute_blocks`: a family that calls parts of blocks alone saves nothing."""
    found = (block.forward for block in _blocks(pair))
    return any(isinstance(forward, _Recomputed) and forward.has_run for forward in found)


class _Recomputed:
    has_run = False

    def __init__(self, forward: Any):
        self.forward = forward

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.has_run = True
        if not torch.is_grad_enabled():
            return self.forward(*arguments, **named)
        route = current_route()

        def under_its_route(*again: Any, **named_again: Any) -> Any:
            with routed(route):
                return self.forward(*again, **named_again)

        return checkpoint(under_its_route, *arguments, use_reentrant=False, **named)


def _blocks(pair: Pair) -> list[nn.Module]:
    """Elements of module lists that hold trained parameters; of nested ones the outermost."""
    if isinstance(pair, AdapterPair):
        return list(_outermost(pair.backbone))
    return [block for copies in pair.copies.values() for part in copies for block in _outermost(part)]  # type: ignore[attr-defined]


def _outermost(module: nn.Module) -> Iterable[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from (block for block in child if any(p.requires_grad for p in block.parameters()))
        else:
            yield from _outermost(child)
