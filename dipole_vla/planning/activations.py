"""What one training step keeps in memory and computes, counted on tensors that have shapes but no data.

Counted, not modelled: the step's own passes run on fake CPU tensors, and every tensor that autograd holds for a
backward pass is added up by storage (weights and views left out) while it is held. So attention is the fused kind,
and a new family needs nothing. Not counted: the allocator's fragmentation and the kernels' workspaces.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from dipole_vla.backbones.base import Backbone, Context


@dataclass(frozen=True)
class StepCost:
    """saved: most bytes kept for a backward pass at any one time. working: bytes of the largest single operation.

    context: bytes of one scene's encoding. flops: of the whole step, forward and backward.
    """

    saved: int
    working: int
    context: int
    flops: int


def step_cost(
    backbone: Backbone,
    step: Callable[[dict[str, Tensor]], None],
    observation: dict[str, Tensor],
    dtype: torch.dtype = torch.float32,
) -> StepCost:
    """Count `step(observation)`, forward and backward, of a backbone whose weights are on the meta device.

    backbone: given fake CPU weights of `dtype`, for good; what requires gradients says what trains.
    observation: real or meta tensors.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), torch.random.fork_rng(devices=[]):
        _fake(backbone, dtype)
        shown = {name: torch.empty(value.shape, dtype=value.dtype) for name, value in observation.items()}
        weights = {_storage(p) for p in [*backbone.parameters(), *backbone.buffers()]}
        kept, largest, flops = _Kept(weights), _LargestOperation(weights), FlopCounterMode(display=False)
        with saved_tensors_hooks(kept.pack, kept.unpack), largest, flops:
            step(shown)
        with torch.no_grad():
            context: Context = backbone.encode({name: value[:1] for name, value in shown.items()})
        size = sum(tensor.nbytes for tensor in context.tensors.values())
    return StepCost(kept.most, largest.bytes, size, flops.get_total_flops())


class _Kept:
    """Bytes that autograd holds, storage by storage, and the most there ever were."""

    def __init__(self, weights: set[int]) -> None:
        self.weights, self.holders, self.bytes, self.most = weights, dict[int, int](), 0, 0

    def pack(self, tensor: Tensor) -> _Holder | Tensor:
        return tensor if _storage(tensor) in self.weights else _Holder(self, tensor)

    def unpack(self, packed: _Holder | Tensor) -> Tensor:
        return packed if isinstance(packed, Tensor) else packed.tensor


class _Holder:
    """One saved tensor; its storage counts as long as any holder of it lives."""

    def __init__(self, kept: _Kept, tensor: Tensor) -> None:
        self.kept, self.tensor, self.key = kept, tensor, _storage(tensor)
        holders = kept.holders.get(self.key, 0)
        kept.holders[self.key] = holders + 1
        if not holders:
            kept.bytes += tensor.untyped_storage().nbytes()
            kept.most = max(kept.most, kept.bytes)

    def __del__(self) -> None:
        self.kept.holders[self.key] -= 1
        if not self.kept.holders[self.key]:
            del self.kept.holders[self.key]
            self.kept.bytes -= self.tensor.untyped_storage().nbytes()


class _LargestOperation(TorchDispatchMode):
    """Remembers the most bytes any one operation reads and writes, weights left out."""

    def __init__(self, weights: set[int]) -> None:
        super().__init__()
        self.weights, self.bytes = weights, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs or {}, result)) if isinstance(leaf, Tensor)]
        storages = {_storage(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}
        total = sum(size for key, size in storages.items() if key not in self.weights)
        self.bytes = max(self.bytes, total)
        return result


def _fake(model: nn.Module, dtype: torch.dtype) -> None:
    """Weights on the meta device -> fake CPU weights; floating ones of `dtype`."""
    for module in model.modules():
        tables: list[dict[str, Any]] = [module._parameters, module._buffers]
        for table in tables:
            for name, tensor in table.items():
                if tensor is None:
                    continue
                kind = dtype if tensor.is_floating_point() else tensor.dtype
                empty = torch.empty(tensor.shape, dtype=kind, device="cpu")
                if isinstance(tensor, nn.Parameter):
                    table[name] = nn.Parameter(empty, requires_grad=tensor.requires_grad)
                else:
                    table[name] = empty


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
