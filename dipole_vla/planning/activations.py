"""What one training step keeps in memory and computes, counted on tensors that have shapes but no data.

Counted, not modelled: the step's own passes run on fake CPU tensors, and every tensor that autograd holds for a
backward pass is added up by storage (weights and views left out) while it is held. So attention is the fused kind,
and a new family needs nothing. Not counted: the allocator's fragmentation and the kernels' workspaces.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

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
    observation: real or meta tensors; all of each counts, also what a backbone's `lengths` call padding.
    """
    lengths = getattr(backbone, "lengths", ())
    with _OnCpu(allow_non_fake_inputs=True), torch.random.fork_rng(devices=[]):
        _fake(backbone, dtype)
        shown = {
            name: torch.empty(value.shape, dtype=value.dtype)
            for name, value in observation.items()
            if name not in lengths
        }
        weights = {_storage(p) for p in [*backbone.parameters(), *backbone.buffers()]}
        kept, operations = _Kept(weights), Operations(weights)
        with _encoding(backbone) as sizes:
            with saved_tensors_hooks(kept.pack, kept.unpack), operations:
                step(shown)
            if not sizes:  # the step was given its contexts
                with torch.no_grad():
                    backbone.encode({name: value[:1] for name, value in shown.items()})
    return StepCost(kept.most, operations.largest, sizes[0], operations.flops)


class _OnCpu(FakeTensorMode):
    avoid_device_init = True  # torch's own property looks for a GPU's driver at every operation
    """No tensor here lies anywhere else."""


@contextmanager
def _encoding(backbone: Backbone) -> Iterator[list[int]]:
    """Bytes of one scene's context, each time that the backbone encodes within the block."""
    encode, sizes = backbone.encode, list[int]()

    def measured(observation: dict[str, Tensor]) -> Context:
        context: Context = encode(observation)
        sizes.append(sum(tensor.nbytes for tensor in context.tensors.values()) // len(context))
        return context

    backbone.encode = measured  # type: ignore[method-assign]
    try:
        yield sizes
    finally:
        del backbone.encode


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


class Operations(TorchDispatchMode):
    """Counts products within its block, and remembers the most bytes any one operation reads and writes.

    weights: storages that are no part of those bytes. flops: a product of (m, k) and (k, n) is 2 m k n.
    """

    def __init__(self, weights: Collection[int] = ()) -> None:
        super().__init__()
        self.weights, self.largest, self.flops = weights, 0, 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the guard costs as much as an operation

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # more than half of all calls
            return args[0].fake_device
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        storages = {_storage(one): one.untyped_storage().nbytes() for one in _tensors((args, kwargs.values(), result))}
        self.largest = max(self.largest, sum(size for key, size in storages.items() if key not in self.weights))
        count = _FLOPS.get(func._overloadpacket)
        self.flops += count(*args, **kwargs, out_val=result) if count else 0
        return result


def _tensors(tree: Any) -> Iterator[Tensor]:
    """Those in lists within lists; quicker than torch's walk, which looks up how each node is taken apart."""
    for leaf in tree:
        if isinstance(leaf, Tensor):
            yield leaf
        elif isinstance(leaf, tuple | list):
            yield from _tensors(leaf)


def _attention_flops(query: Tensor, key: Tensor, *_: Any, **__: Any) -> int:
    """Scores and answers: two products; every head counts, also where heads share keys."""
    return 4 * query.numel() * key.shape[2]


def _attention_backward_flops(gradient: Tensor, query: Tensor, key: Tensor, *_: Any, **__: Any) -> int:
    """Scores anew, and the gradients of probabilities, values, queries and keys: five products."""
    return 10 * query.numel() * key.shape[2]


_aten = torch.ops.aten
_FLOPS = {
    **flop_registry,
    _aten.addmm_: flop_registry[_aten.addmm],
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
"""torch's own, which know neither the CPU's attention nor products added in place."""


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
