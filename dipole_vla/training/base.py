"""What the three trainings share: the optimiser and its schedule, seeded noise, the finite check, light checkpoints."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn

from navsim_adapter.errors import InputError


class FineTuning(L.LightningModule):
    """A LightningModule whose checkpoints hold only what trains, and which ends in an exported folder.

    needs_observation: whether training steps look at the scene itself (pictures, prompt, history).
    """

    needs_observation = True

    def __init__(self, lr: float, warmup_steps: int, weight_decay: float, seed: int):
        super().__init__()
        self.lr, self.warmup_steps, self.weight_decay, self.noise_seed = lr, warmup_steps, weight_decay, seed
        self.strict_loading = False  # frozen weights are not in the checkpoint

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimiser gets."""

    @abstractmethod
    def export(self, folder: Path, provenance: Mapping[str, Any]) -> None:
        """Write the result of the training (a backbone, a critic or a policy folder)."""

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameter_groups(), lr=self.lr, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, WarmupThenLinear(self.warmup_steps, self.trainer.max_steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def step_generator(self) -> torch.Generator:
        """Noise of this step and rank, whatever came before: a resumed run draws the same numbers."""
        generator = torch.Generator(device=self.device)
        step = self.trainer.global_step * self.trainer.world_size + self.trainer.global_rank
        return generator.manual_seed((self.noise_seed * 1_000_003 + step) % 2**63)

    def checked(self, loss: Tensor, tokens: Sequence[str]) -> Tensor:
        """The loss, or an InputError that names the batch when it is not finite."""
        if not torch.isfinite(loss):
            raise InputError(
                f"step {self.trainer.global_step}: loss is {loss.item()} on tokens {', '.join(tokens)}; "
                "check these scenes, or lower model.lr; the last checkpoint is intact"
            )
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        if frozen:  # a frozen backbone's buffers do not change either
            frozen |= {name for name, _ in self.named_buffers()}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in frozen}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        missing = trained - checkpoint["state_dict"].keys()
        if missing:
            raise InputError(
                f"checkpoint: {len(missing)} trained tensors are missing, first {min(missing)}; start afresh"
            )


class WarmupThenLinear:
    """Learning-rate factor: linear warm-up, then linear to zero at the last step."""

    def __init__(self, warmup_steps: int, max_steps: int):
        self.warmup_steps, self.max_steps = warmup_steps, max_steps

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.max_steps <= 0:
            return 1.0
        return max(0.0, (self.max_steps - step) / max(1, self.max_steps - self.warmup_steps))


def split_decay(named: Iterable[tuple[str, nn.Parameter]], weight_decay: float, **options: Any) -> list[dict[str, Any]]:
    """AdamW groups: matrices decay, vectors (biases, norms, embeddings of positions) do not."""
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for _, parameter in named:
        if parameter.requires_grad:
            (matrices if parameter.ndim >= 2 else vectors).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": weight_decay, **options},
        {"params": vectors, "weight_decay": 0.0, **options},
    ]
    return [group for group in groups if group["params"]]
