"""DIPOLE: two adapters on one frozen backbone, weighted by sigma(beta G) and 1 - sigma(beta G) (paper Eq. 9)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dipole_vla.backbones import load_backbone
from dipole_vla.data.module import DrivingData
from dipole_vla.objective import Routing, dichotomous_loss
from dipole_vla.policy import AdapterPair, Guidance, GuidedPolicy
from dipole_vla.training.base import FineTuning
from navsim_adapter.errors import InputError
from navsim_adapter.files import read_json


class DipoleModule(FineTuning):
    """Fit the positive and the negative adapter to scored candidates. Sees only (observation, action, advantage)."""

    def __init__(
        self,
        backbone: Path,
        critic: Path | None = None,
        beta: float = 1.0,
        routing: Routing = "both",
        rule: str = "dichotomous",
        scope: Literal["head", "all"] = "head",
        rank: int = 32,
        alpha: float | None = None,
        draws: int = 1,
        lr: float = 3e-4,
        warmup_steps: int = 50,
        weight_decay: float = 0.0,
        seed: int = 0,
    ):
        """
        Args:
            backbone: folder of the reference policy; it stays frozen.
            critic: folder of a fitted critic, copied into the policy, where it picks the best of N.
            beta: temperature of the sigmoid weight on the advantage; larger is closer to a hard split.
            routing: both = every sample to both adapters; bernoulli = to one, drawn by its weight, at half the cost.
            rule: weighting rule, a name of dipole_vla.objective.RULES.
            scope: head = the encoder stays as it is and runs once for both policies; all = adapters there too.
            rank: LoRA rank.
            alpha: LoRA scale numerator; null is the rank (scale 1).
            draws: noise levels per candidate and step.
            lr: learning rate of both adapters.
            warmup_steps: steps of linear warm-up; then linear decay to zero at trainer.max_steps.
            weight_decay: AdamW, on the adapters.
            seed: adapter initialisation, noise, times and routes.
        """
        super().__init__(lr, warmup_steps, weight_decay, seed)
        if not beta > 0:
            raise InputError(f"model.beta: must be > 0, got {beta}; larger values are closer to a hard split")
        self.backbone_folder, self.critic_folder = Path(backbone), critic
        self.backbone = load_backbone(backbone)
        self.pair = AdapterPair(self.backbone, scope=scope, rank=rank, alpha=alpha, seed=seed)
        self.beta, self.rule, self.draws, self.scope = beta, rule, draws, scope
        self.routing: Routing = routing

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.pair.parameters())}]

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        generator = self.step_generator()
        group = batch["advantage"].shape[1]
        x0 = self.backbone.action.encode(batch["poses"]).repeat_interleave(self.draws, 1).flatten(0, 1)
        advantage = batch["advantage"].repeat_interleave(self.draws, 1).flatten()
        noise = torch.randn(x0.shape, generator=generator, device=x0.device)
        t = self.backbone.schedule.sample_t(len(x0), generator=generator).to(x0.device)
        contexts = self.pair.encode(batch["observation"])
        loss, scalars = dichotomous_loss(
            self.pair.denoiser(contexts, group * self.draws),
            self.backbone.schedule,
            self.backbone.prediction,
            x0,
            advantage,
            noise,
            t,
            beta=self.beta,
            routing=self.routing,
            rule=self.rule,
            generator=generator,
            mask=self.backbone.action.mask().to(x0.device),
        )
        self.log_dict(scalars)
        return self.checked(loss, batch["token"])

    def export(self, folder: Path, provenance: Mapping[str, Any]) -> None:
        """Write the policy folder: adapters in plain PEFT layout, critic, and what reinforcement learning saw."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, DrivingData)
        assert data.candidates is not None
        assert data.dataset is not None
        about = read_json(Path(data.candidates) / "candidates.json")
        GuidedPolicy(self.backbone, self.pair, guidance=Guidance(rule=self.rule)).save_pretrained(
            folder,
            backbone=self.backbone_folder,
            critic=self.critic_folder,
            rl_tokens=data.dataset.candidates.tokens if data.dataset.candidates else [],
            provenance={
                **provenance,
                "rl_split": about["split"],
                "allow_eval_split": about["allow_eval_split"],
                "advantage": about["advantage"],
                "metric": about["metric"],
                "beta": self.beta,
                "routing": self.routing,
                "rule": self.rule,
                "scope": self.scope,
                "candidates": str(data.candidates),
                "backbone": str(self.backbone_folder),
            },
        )
