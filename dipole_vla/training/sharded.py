"""FSDP2 for training with few trainable parameters: the frozen backbone in parts, the rest whole on every rank.

In a recipe:

    trainer:
      strategy: {class_path: dipole_vla.training.sharded.ShardedBackbone}

Adapters are about a percent of the model: to shard them, their gradients and Adam's moments would save nothing. Left
whole, they make everything else (checkpoints, clipping, running means, export) what it is under plain data parallelism.
The repeated blocks of the encoder are gathered one at a time; the head, which is used at every noise level and by both
signs, stays gathered for the length of a step. DeepSpeed's stage 3 (`training.deepspeed`) shards what trains, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from dipole_vla.policy import Backbone
from navsim_adapter.foundation.errors import InputError

ENTRIES = ("encode", "prepare", "denoise", "features")
"""Methods by which a backbone is used from outside: weights are whole while one of them runs."""


class ShardedBackbone(DDPStrategy):
    """Data parallel, with the frozen weights of `module.backbone` divided among the ranks."""

    _accumulates = False

    def model_to_device(self) -> None:
        """Each weight goes to the device in this rank's part only."""
        module: Any = self.lightning_module
        shard_frozen(module.backbone, self.root_device.type)
        super().model_to_device()

    def configure_ddp(self) -> None:
        """No wrapper: gradients are averaged below. The ranks start from what rank 0 has."""
        for tensor in [p.detach() for _, p in self._trained()]:
            torch.distributed.broadcast(tensor, src=0)

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Around each batch of a step but the last one: until then every rank adds up its own gradients."""
        self._accumulates = True
        try:
            yield
        finally:
            self._accumulates = False

    def post_backward(self, closure_loss: Tensor) -> None:
        """Average what the ranks have added up, once a step."""
        if self._accumulates:
            return
        gradients = [p.grad for _, p in self._trained() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        flat /= self.world_size
        for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients])):
            gradient.copy_(mean.view_as(gradient))

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        assert self.lightning_module is not None
        return [(name, p) for name, p in self.lightning_module.named_parameters() if p.requires_grad]


def shard_frozen(backbone: Backbone, device_type: str) -> None:
    """Divide the frozen parameters of a backbone among all ranks, in place (torch's `fully_shard`).

    InputError if weights of its own train (imitation): they would be exported, whole, by one rank.
    """
    own = [name for name, parameter in backbone.named_parameters() if parameter.requires_grad and "lora_" not in name]
    if own:
        raise InputError(
            "trainer.strategy: ShardedBackbone is for training adapters or a critic on a frozen backbone, "
            f"here its own {own[0]} trains; use ddp or dipole_vla.training.deepspeed.PairDeepSpeed"
        )
    adapters = {parameter for parameter in backbone.parameters() if parameter.requires_grad}
    mesh = init_device_mesh(device_type, (torch.distributed.get_world_size(),))
    for block in () if backbone.reads_blocks else _encoder_blocks(backbone):
        fully_shard(block, mesh=mesh, ignored_params=adapters)
    fully_shard(backbone, mesh=mesh, ignored_params=adapters, reshard_after_forward=False)
    for name in ENTRIES:
        register_fsdp_forward_method(backbone, name)


def _encoder_blocks(backbone: Backbone) -> Iterator[nn.Module]:
    """Elements of the encoder's module lists, each with a pass of its own; of nested lists the innermost."""
    for name, module in backbone.named_modules():
        if not isinstance(module, nn.ModuleList) or not name.startswith(backbone.encoder_names):
            continue
        for block in module:
            if not any(isinstance(inner, nn.ModuleList) for inner in block.modules()):
                yield block
