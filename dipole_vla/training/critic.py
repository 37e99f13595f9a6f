"""The one-step critic's training: Q and V on frozen features of the reference backbone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dipole_vla.backbones import load_backbone
from dipole_vla.critic.one_step import CriticConfig, OneStepCritic
from dipole_vla.data.module import DrivingData
from dipole_vla.training.base import FineTuning, split_decay
from navsim_adapter.errors import InputError
from navsim_adapter.files import write_json

STATISTICS_BATCH = 64


class CriticModule(FineTuning):
    """Fit Q(scene, trajectory) to scored returns and V(scene) to an expectile of Q."""

    def __init__(
        self,
        backbone: Path,
        hidden: int = 256,
        layers: int = 2,
        ensemble: int = 2,
        expectile: float = 0.5,
        dropout: float = 0.0,
        lr: float = 1e-3,
        warmup_steps: int = 50,
        weight_decay: float = 0.01,
        seed: int = 0,
    ):
        """
        Args:
            backbone: folder of the reference policy, whose frozen features the critic reads.
            hidden: width of the networks.
            layers: hidden layers.
            ensemble: number of Q networks; the least one counts.
            expectile: V is this expectile of Q; 0.5 is the mean and keeps G centred.
            dropout: after every hidden layer.
            lr: learning rate.
            warmup_steps: steps of linear warm-up; then linear decay to zero at trainer.max_steps.
            weight_decay: AdamW, on matrices only.
            seed: weights.
        """
        super().__init__(lr, warmup_steps, weight_decay, seed)
        self.backbone = load_backbone(backbone)
        self.backbone.freeze()
        self.backbone_folder = Path(backbone)
        self.sizes = {
            "hidden": hidden,
            "layers": layers,
            "ensemble": ensemble,
            "expectile": expectile,
            "dropout": dropout,
        }
        self.critic: OneStepCritic | None = None

    def setup(self, stage: str) -> None:
        """Size the critic by the features and fit its input statistics, on the same scenes whatever the order."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.critic is not None or not isinstance(data, DrivingData) or data.dataset is None:
            return
        if data.candidates is None:
            raise InputError("data.candidates: the critic learns from scored candidates; give the folder of `collect`")
        dataset = data.dataset
        features, poses = [], []
        for start in range(0, len(dataset), STATISTICS_BATCH):
            items = [dataset[i] for i in range(start, min(start + STATISTICS_BATCH, len(dataset)))]
            batch = torch.utils.data.default_collate([item["observation"] for item in items])
            features.append(self._features({name: value.to(self.device) for name, value in batch.items()}).cpu())
            poses.append(torch.stack([item["poses"] for item in items]))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.noise_seed)
            config = CriticConfig(feature_dim=features[0].shape[1], horizon=poses[0].shape[2], **self.sizes)
            self.critic = OneStepCritic(config)
        self.critic.fit_statistics(torch.cat(features), torch.cat(poses))

    def parameter_groups(self) -> list[dict[str, Any]]:
        assert self.critic is not None
        return split_decay(self.critic.named_parameters(), self.weight_decay)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        assert self.critic is not None
        loss, scalars = self.critic.loss(self._features(batch["observation"]), batch["poses"], batch["score"])
        self.log_dict({"loss": loss, **scalars})
        return self.checked(loss, batch["token"])

    @torch.no_grad()
    def _features(self, observation: dict[str, Tensor]) -> Tensor:
        return self.backbone.features(self.backbone.encode(observation))

    def export(self, folder: Path, provenance: Mapping[str, Any]) -> None:
        """Write the critic's folder."""
        assert self.critic is not None
        self.critic.save_pretrained(folder)
        write_json(
            folder / "provenance.json",
            {**provenance, "backbone": str(self.backbone_folder), "backbone_fingerprint": self.backbone.fingerprint()},
        )
