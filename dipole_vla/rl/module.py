"""The Lightning module of the RL benchmarks: one Adam over all stacked networks, Polyak targets after each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from dipole_vla.objective import effective_fraction
from dipole_vla.rl.learner import Learner, LearnerConfig
from dipole_vla.rl.transitions import WEIGHING
from navsim_adapter.foundation.errors import InputError

LOG_EVERY = 100


class RLModule(L.LightningModule):
    """IQL critic and policy heads of several seeds at once (see `dipole_vla.rl.learner`).

    updates: of the whole run, at whose end the learning rate has fallen by `lr_decay`.
    """

    def __init__(
        self, observation_dim: int, action_dim: int, seeds: Sequence[int], config: LearnerConfig, updates: int
    ):
        super().__init__()
        self.updates = updates
        self.learner = Learner(observation_dim, action_dim, seeds, config)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = adam(self.learner)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.share_of_lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def share_of_lr(self, update: int) -> float:
        """Part of the learning rate that update number `update` has: 1, then linearly down to 0 after the last."""
        falling = self.learner.config.lr_decay * self.updates
        return 1.0 if falling == 0 else max(0.0, min(1.0, (self.updates - update) / falling))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss, scalars = self.learner.loss(batch, batch["noise"], batch["t"])
        if (self.trainer.global_step + 1) % LOG_EVERY == 0:
            if not torch.isfinite(loss):
                raise InputError(
                    f"step {self.trainer.global_step}: loss is {loss.item()}; lower learner.lr; the last checkpoint "
                    "is intact"
                )
            self.log_dict({"loss": loss.detach(), **self._named(scalars)})
        return loss

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Targets move here, so that a checkpoint taken at the end of the step has them."""
        super().optimizer_step(*arguments, **options)
        self.learner.after_step()

    def _named(self, scalars: dict[str, Tensor]) -> dict[str, Tensor]:
        """Means over seeds; per head the weighted loss, the mean weight and the effective sample fraction."""
        of_critics = (prefix + name for prefix in ("", WEIGHING) for name in ("loss_q", "loss_v", "v"))
        named = {name: scalars[name].mean() for name in of_critics if name in scalars}
        if "weighted" in scalars:
            named["advantage_std"] = scalars["advantage_std"].mean()
        for number, head in enumerate(self.learner.config.heads if "weighted" in scalars else []):
            weight = scalars["weight"][:, number]
            named[f"loss/{head}"] = scalars["weighted"][:, number].mean()
            named[f"weight/{head}"] = weight.mean()
            named[f"ess/{head}"] = torch.stack([effective_fraction(row) for row in weight]).mean()
        return named


def adam(learner: Learner) -> torch.optim.Optimizer:
    """One fused Adam: the networks share no parameter, so it is each network's own."""
    trained = [p for p in learner.parameters() if p.requires_grad]
    return torch.optim.Adam(trained, lr=learner.config.lr, fused=True)
