"""The one-step critic's training: Q and V on frozen features of the reference backbone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch import Tensor
from torch.utils.data import default_collate

from dipole_vla.backbones import load_backbone
from dipole_vla.backbones.weights import float32_by_default
from dipole_vla.data.contexts import Encoder
from dipole_vla.data.module import DrivingDataset
from dipole_vla.data.splits import RL_TOKENS
from dipole_vla.policy.critic import CriticConfig, OneStepCritic
from dipole_vla.progress import bar
from dipole_vla.training.base import FineTuning, split_decay, stored_context
from navsim_adapter.foundation.files import write_json

FEATURES_BATCH = 64


class CriticModule(FineTuning):
    """Fit Q(scene, trajectory) to scored returns and V(scene) to an expectile of Q."""

    needs_observation = False  # features are read once, before the first step
    needs_candidates = "the critic"
    reads_of_advantage = ("reference_below", "reward")
    reads_variants = True

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
        self.fingerprint = self.backbone.fingerprint()  # as on disk: a trainer may cast it, or divide it among ranks
        self.backbone_folder = Path(backbone)
        self.sizes: dict[str, Any] = {
            "hidden": hidden,
            "layers": layers,
            "ensemble": ensemble,
            "expectile": expectile,
            "dropout": dropout,
        }
        self.critic: OneStepCritic | None = None
        self.features: dict[str, Tensor] = {}

    def look_at(self, dataset: DrivingDataset) -> None:
        super().look_at(dataset)
        self.say(self.candidates.refuse_other_base(self.fingerprint))

    def setup(self, stage: str) -> None:
        """Read every scene's features once (the backbone is frozen), size the critic by them, fit its statistics."""
        super().setup(stage)
        dataset, device = self.dataset, self.trainer.strategy.root_device
        if self.critic is not None or dataset is None or stage != "fit":
            return
        self.backbone.to(device)  # the trainer moves the module only after this hook
        with bar("critic features", len(dataset)) as progress:
            for start in range(0, len(dataset), FEATURES_BATCH):
                scenes = [dataset.items[i][0] for i in range(start, min(start + FEATURES_BATCH, len(dataset)))]
                batch = move_data_to_device(default_collate([dataset.view(scene) for scene in scenes]), device)
                features = self._features(batch).cpu()
                self.features.update(zip([dataset.scenes.tokens[scene] for scene in scenes], features))
                progress.advance(len(scenes))
        table = torch.stack(list(self.features.values()))
        poses = torch.from_numpy(np.asarray(self.candidates.poses))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.noise_seed)
            self.critic = OneStepCritic(CriticConfig(table.shape[1], poses.shape[2], **self.sizes))
        self.critic.fit_statistics(table, poses)

    def parameter_groups(self) -> list[dict[str, Any]]:
        assert self.critic is not None
        return split_decay(self.critic.named_parameters(), self.weight_decay)

    def named_exact(self) -> list[tuple[str, Tensor]]:
        return [] if self.critic is None else [*self.critic.named_parameters(), *self.critic.named_buffers()]

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        assert self.critic is not None
        features = torch.stack([self.features[token] for token in batch["token"]]).to(self.device)
        with float32_by_default():
            loss, scalars = self.critic.loss(features, batch["poses"], batch["score"])
        self.log_dict({"loss": loss, **scalars})
        return self.checked(loss, batch)

    def frozen_encoder(self, device: torch.device) -> Encoder:
        self.backbone.to(device)
        return Encoder(self.backbone.encode, self.backbone.processor(), self.fingerprint, device)

    @torch.inference_mode()
    def _features(self, batch: dict[str, Any]) -> Tensor:
        is_stored = "context" in batch
        context = stored_context(self.backbone, batch) if is_stored else self.backbone.encode(batch["observation"])
        return self.backbone.features(context)

    def export(self, folder: Path, provenance: Mapping[str, Any]) -> None:
        """Write the critic's folder: the networks, whose features they read, and what reinforcement learning saw."""
        assert self.critic is not None
        self.critic.save_pretrained(folder)
        seen = self.candidates.seen
        write_json(folder / RL_TOKENS, sorted(seen.tokens))
        made = {
            "backbone": str(self.backbone_folder),
            "backbone_fingerprint": self.fingerprint,
            "metric": self.candidates.metric,
        }
        write_json(folder / "provenance.json", {**provenance, **made, **seen.provenance()})
