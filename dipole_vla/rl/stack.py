"""Many small networks of one shape as one batched network: seeds and heads are a batch dimension of every matmul.

Network k of a stack has the weights it would have alone under its own seed, and its gradient is its own: nothing but
the kernel launches is shared. What the networks stand for is in `heads` and `dipole_vla.rl.iql`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class StackedMLP(nn.Module):
    """`len(seeds)` MLPs: linear, GELU (, layer norm), ..., linear; every parameter has the stack as first dimension."""

    def __init__(
        self,
        sizes: Sequence[int],
        seeds: Sequence[int],
        layer_norm: bool = False,
        precision: torch.dtype = torch.float32,
        output_precision: torch.dtype = torch.float32,
    ):
        """sizes: widths from input to output. seeds: of the initial weights, one per network.

        precision, output_precision: of the products of the hidden layers and of the last one; weights, their gradients
        and what comes out are float32 in any case.
        """
        super().__init__()
        self.layer_norm, self.precision, self.output_precision = layer_norm, precision, output_precision
        generators = [torch.Generator().manual_seed(seed % 2**63) for seed in seeds]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for rows, columns in pairwise(sizes):
            # nn.Linear's own initialisation: uniform within 1 / sqrt(inputs)
            drawn = [(2 * torch.rand(rows + 1, columns, generator=g) - 1) / rows**0.5 for g in generators]
            layer = torch.stack(drawn)
            self.weights.append(nn.Parameter(layer[:, :rows].contiguous()))
            self.biases.append(nn.Parameter(layer[:, rows:].contiguous()))

    def forward(self, x: Tensor) -> Tensor:
        """(stack, rows, out) from x (groups, rows, in); stack / groups consecutive networks share a group's rows."""
        groups, rows, width = x.shape
        stack = self.weights[0].shape[0]
        if groups != stack:
            x = x[:, None].expand(groups, stack // groups, rows, width).reshape(stack, rows, width)
        *hidden, (last, shift) = zip(self.weights, self.biases)
        x = x.to(self.precision)
        for weight, bias in hidden:
            x = F.gelu(torch.baddbmm(bias.to(self.precision), x, weight.to(self.precision)))
            if self.layer_norm:  # without gain and shift: the next linear layer has both already
                x = F.layer_norm(x, x.shape[-1:])
        x, last = x.to(self.output_precision), last.to(self.output_precision)
        return _NarrowProduct.apply(x, last).float() + shift

    @torch.no_grad()
    def select(self, networks: Sequence[int]) -> StackedMLP:
        """A stack of copies of some of the networks, without gradients and in float32, for sampling."""
        sizes = [self.weights[0].shape[1], *[weight.shape[2] for weight in self.weights]]
        chosen = StackedMLP(sizes, [0] * len(networks), self.layer_norm).to(self.weights[0].device)
        index = torch.tensor(list(networks), device=self.weights[0].device)
        for mine, theirs in zip(chosen.parameters(), self.parameters()):
            mine.copy_(theirs[index])
        return chosen.requires_grad_(False)


class _NarrowProduct(torch.autograd.Function):
    """bmm(x, weight) for a weight of few columns, which the libraries multiply several times faster as rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.bmm(weight.mT, x.mT).mT

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return torch.bmm(gradient, weight.mT), torch.bmm(gradient.mT, x).mT


def per_network_norms(stack: StackedMLP) -> Tensor:
    """(stack,) float64 norm of each network's gradient, all parameters together (float32 overflows)."""
    squares = [p.grad.flatten(1).double().pow(2).sum(1) for p in stack.parameters() if p.grad is not None]
    return torch.stack(squares).sum(0).sqrt()
