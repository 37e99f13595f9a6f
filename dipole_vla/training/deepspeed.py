"""DeepSpeed for training with few trainable parameters: ZeRO 1, 2 or 3 over a frozen backbone, on GPUs or CPUs.

In a recipe:

    trainer:
      precision: bf16-mixed
      strategy:
        class_path: dipole_vla.training.deepspeed.PairDeepSpeed
        init_args: {stage: 2}

What differs from Lightning's own strategy:
- A checkpoint is the same single file as without DeepSpeed (`training.checkpoints`): what trains, whole and in
  float32, and the optimiser's state by parameter. It loads at any stage, any number of ranks, and without DeepSpeed;
  DeepSpeed's own folders hold pickles and load at one world size. The price is a gather of the little that trains.
- Ranks may be CPUs (gloo): tests run this very engine.
- Lightning alone counts and averages accumulated batches, as it does without DeepSpeed: a step is the same step.
- Batches and buffers keep their precision, as under autocast: targets in bfloat16 would be 12 cm off at 30 m.
- At the end of training the module is made an ordinary one again, ready for export.

Build backbone and adapters in `__init__`, as our modules do: adapters injected under ZeRO-3's own construction
context would not start at zero.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed reads it when it is imported

from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW, the optimiser of all trainings


class PairDeepSpeed(DeepSpeedStrategy):
    """DeepSpeed with plain checkpoints, for any FineTuning module."""

    def __init__(self, stage: int = 2, offload_optimizer: bool = False, **options: Any):
        """
        Args:
            stage: ZeRO stage: 1 shards the optimiser, 2 the gradients too, 3 all parameters too (frozen ones as well).
            offload_optimizer: keep optimiser state and its float32 weights in main memory.
            options: further arguments of Lightning's DeepSpeedStrategy.
        """
        super().__init__(stage=stage, offload_optimizer=offload_optimizer, **options)
        assert isinstance(self.config, dict)
        self.config["zero_force_ds_cpu_optimizer"] = False  # AdamW of torch is fast enough for little that trains

    # -- ranks on CPUs -------------------------------------------------------------------------------------------------

    @property
    def is_on_cpu(self) -> bool:
        assert self.parallel_devices is not None
        return self.parallel_devices[self.local_rank].type == "cpu"

    def setup_environment(self) -> None:
        if not self.is_on_cpu:
            return super().setup_environment()
        super(DeepSpeedStrategy, self).setup_environment()  # the parent's asks for CUDA

    def setup_distributed(self) -> None:
        if not self.is_on_cpu:
            return super().setup_distributed()
        self._process_group_backend = "gloo"
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu", 0) if self.is_on_cpu else super().root_device  # DeepSpeed wants an index

    # -- the engine ----------------------------------------------------------------------------------------------------

    def setup(self, trainer) -> None:
        chosen: Any = self.precision_plugin
        self.precision_plugin = _Precision(chosen.precision)
        module = self.lightning_module
        assert module is not None
        self._autocast_steps(module, chosen._desired_dtype)
        self._dtypes = {name: p.dtype for name, p in module.named_parameters()}
        self._buffers = {name: b.clone() for name, b in module.named_buffers() if b.is_floating_point()}
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        exact = {name: p.detach().cpu().clone() for name, p in trained.items()}
        super().setup(trainer)
        for name, parameter in trained.items():  # the engine has rounded its float32 copies to its own precision
            self._set_weight(parameter, exact[name])
        self.deepspeed_engine.set_gradient_accumulation_boundary(True)

    def _autocast_steps(self, module: Any, dtype: torch.dtype) -> None:
        """Operations choose their precision, as without the engine, which turns off an autocast around its own call."""
        if dtype != torch.float32:
            module.training_step = torch.autocast(self.root_device.type, dtype)(module.training_step)

    @property
    def handles_gradient_accumulation(self) -> bool:
        """The engine's own count goes on over the end of an epoch, and calls the hooks of a step at every batch."""
        return False

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Around each batch of a step but the last one."""
        self.deepspeed_engine.set_gradient_accumulation_boundary(False)
        yield
        self.deepspeed_engine.set_gradient_accumulation_boundary(True)

    def _init_optimizers(self):
        optimizer, schedule = super()._init_optimizers()
        self._groups = [list(group["params"]) for group in optimizer.param_groups]  # before the engine flattens them
        return optimizer, schedule

    @property
    def skipped_step(self) -> bool:
        """Whether the engine left out its last step for a gradient that was not finite, and not for a loss scale."""
        optimizer = self.deepspeed_engine.optimizer
        return bool(optimizer.overflow) and optimizer.loss_scale <= 1

    def on_train_end(self) -> None:
        """Make the module an ordinary one again on rank 0, ready for export: parameters whole, in the dtype they had.

        What trained comes from its float32 copy. A frozen parameter has had the engine's precision; nothing exports it.
        """
        import deepspeed

        module = self.lightning_module
        assert module is not None
        vars(module).pop("training_step", None)  # the class's own shows again
        whole = {}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                whole[name] = self._weight(parameter).cpu()
            else:
                with deepspeed.zero.GatheredParameters([parameter]):  # does nothing below stage 3
                    whole[name] = parameter.detach().cpu().clone() if self.is_global_zero else torch.empty(0)
        if self.is_global_zero:
            for name, parameter in module.named_parameters():
                parameter.data = whole[name].to(self._dtypes[name])
            for name, buffer in module.named_buffers():
                buffer.data = self._buffers.get(name, buffer).cpu()

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath, storage_options: Any | None = None) -> None:
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options=storage_options)

    def load_checkpoint(self, checkpoint_path, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def lightning_module_state_dict(self) -> dict[str, Tensor]:
        """What trains, whole, and the buffers; called by all ranks."""
        module = self.lightning_module
        assert module is not None
        parameters = dict(module.named_parameters())
        state = {name: self._buffers.get(name, t) for name, t in module.state_dict().items() if name not in parameters}
        return state | {name: self._weight(p).cpu() for name, p in parameters.items() if p.requires_grad}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module = self.lightning_module
        assert module is not None
        state = checkpoint["state_dict"]
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and name in state:
                self._set_weight(parameter, state[name])
        for name, buffer in module.named_buffers():
            if name in state:
                buffer.data.copy_(state[name])
                self._buffers[name] = state[name]

    def optimizer_state(self, optimizer) -> dict[str, Any]:
        """The state dict that AdamW would give without the engine; called by all ranks."""
        inner = self._inner
        steps = [inner.state[flat]["step"] for flat in self._flats if "step" in inner.state.get(flat, {})]
        state = {}
        if steps:
            for index, parameter in enumerate(self._trained):
                moments = {name: self._moment(parameter, name).cpu() for name in MOMENTS}
                state[index] = {"step": torch.as_tensor(float(steps[0])), **moments}
        indices = iter(range(len(self._trained)))
        groups = [
            {**{k: v for k, v in options.items() if k != "params"}, "params": [next(indices) for _ in group]}
            for options, group in zip(inner.param_groups, self._groups)
        ]
        return {"state": state, "param_groups": groups}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        saved = checkpoint["optimizer_states"][0]
        for options, known in zip(self._inner.param_groups, saved["param_groups"]):
            options.update({k: v for k, v in known.items() if k != "params"})
        if not saved["state"]:
            return
        for flat in self._flats:
            moments = {name: torch.zeros_like(flat) for name in MOMENTS}
            self._inner.state[flat] = {"step": torch.as_tensor(float(saved["state"][0]["step"])), **moments}
        link = getattr(self.deepspeed_engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
        if link:
            link()
        for index, parameter in enumerate(self._trained):
            for name in MOMENTS:
                self._set_moment(parameter, saved["state"][index][name], name)

    # -- single parameters, whole or as this rank's part ---------------------------------------------------------------

    @property
    def _inner(self) -> torch.optim.Optimizer:
        """AdamW itself, which the engine's optimiser drives on flat parts."""
        return self.deepspeed_engine.optimizer.optimizer

    @property
    def _flats(self) -> list[Tensor]:
        """The float32 parts of this rank, which are what AdamW's state belongs to."""
        wrapper = self.deepspeed_engine.optimizer
        name = "fp32_partitioned_groups_flat" if self.zero_stage_3 else "single_partition_of_fp32_groups"
        return list(getattr(wrapper, name))

    @property
    def _trained(self) -> list[nn.Parameter]:
        return [parameter for group in self._groups for parameter in group]

    def _weight(self, parameter: nn.Parameter) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param

        return safe_get_full_fp32_param(parameter).detach().clone()

    def _moment(self, parameter: nn.Parameter, name: str) -> Tensor:
        from deepspeed.utils import safe_get_full_optimizer_state

        return safe_get_full_optimizer_state(parameter, name)

    def _set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        value = value.to(parameter.device, torch.float32)
        if self.zero_stage_3:
            part = _own_part(parameter, value)
            safe_set_local_fp32_param(parameter, part)
            parameter.ds_tensor.data.copy_(part)  # type: ignore[attr-defined]  # what the forward pass gathers
        else:
            safe_set_full_fp32_param(parameter, value)
            parameter.data.copy_(value)

    def _set_moment(self, parameter: nn.Parameter, value: Tensor, name: str) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        value = value.to(parameter.device, torch.float32)
        if self.zero_stage_3:
            safe_set_local_optimizer_state(parameter, _own_part(parameter, value), name)
        else:
            safe_set_full_optimizer_state(parameter, value, name)


class _Precision(DeepSpeedPrecision):
    """DeepSpeed's precision of parameters; a batch keeps its own, and a loss is averaged once."""

    def convert_input(self, data: Any) -> Any:
        return data

    def backward(self, tensor: Tensor, model: Any, optimizer: Any, *arguments: Any, **named: Any) -> None:
        """Lightning has divided the loss by the number of batches in a step, and the engine will."""
        batches = model.trainer.strategy.deepspeed_engine.gradient_accumulation_steps()
        super().backward(tensor * batches, model, optimizer, *arguments, **named)


def _own_part(parameter: Any, value: Tensor) -> Tensor:
    """This rank's stretch of a parameter that ZeRO-3 has cut into equal parts, the last one padded with zeros."""
    length = parameter.ds_tensor.numel()
    rank = torch.distributed.get_rank(parameter.ds_process_group)
    world = torch.distributed.get_world_size(parameter.ds_process_group)
    padded = torch.nn.functional.pad(value.flatten(), (0, length * world - value.numel()))
    return padded[rank * length : (rank + 1) * length]
