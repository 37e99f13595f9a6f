"""The one-step critic's training: Q and V on frozen features of the reference backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
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
from dipole_vla.members import Member
from dipole_vla.policy.critic import (
    Critic,
    MeanCritic,
    OneStepCritic,
    TokenCritic,
    scene_features,
)
from dipole_vla.progress import bar
from dipole_vla.training.base import FineTuning, split_decay, stored_context
from navsim_adapter.foundation.files import write_json

FEATURES_BATCH = 64
KINDS: dict[str, type[OneStepCritic]] = {"pooled": OneStepCritic, "tokens": TokenCritic}


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
        members: Sequence[Member] = (),
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
            members: unlike critics whose mean counts, each with what differs from the keys above; empty is one critic.
            seed: weights.
        """
        super().__init__(lr, warmup_steps, weight_decay, seed)
        self.backbone = load_backbone(backbone)
        self.backbone.freeze()
        self.fingerprint = self.backbone.fingerprint()  # as on disk: a trainer may cast it, or divide it among ranks
        self.backbone_folder = Path(backbone)
        sizes = {"hidden": hidden, "layers": layers, "ensemble": ensemble, "dropout": dropout}
        self.members = [
            (member, {"expectile": expectile} | sizes | member.sizes) for member in (list(members) or [Member()])
        ]
        for member, own in self.members:  # before features are read
            KINDS[member.kind].config_class(feature_dim=1, **own)
        self.critic: Critic | None = None
        self.features: dict[str, Tensor] = {}
        self.looked = {"ego": 0, "tokens": 0, "token_width": 0}  # sizes in a scene, where a member reads tokens

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
            made = [self._made(member, sizes, table.shape[1]) for member, sizes in self.members]
            self.critic = made[0] if len(made) == 1 else MeanCritic(made)
        self.critic.fit_statistics(table, poses)

    def parameter_groups(self) -> list[dict[str, Any]]:
        assert self.critic is not None
        critics = self.critic.members if isinstance(self.critic, MeanCritic) else [self.critic]
        rates = [self.lr if member.lr is None else member.lr for member, _ in self.members]
        groups = [split_decay(one.named_parameters(), self.weight_decay, lr=lr) for one, lr in zip(critics, rates)]
        return [group for groups_of_one in groups for group in groups_of_one]

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
        features = scene_features(self.backbone, context, self.reads_tokens)
        if self.reads_tokens:
            count, each = context["tokens"].shape[1:]
            self.looked = {"ego": context["proprio"].shape[1], "tokens": count, "token_width": each}
        return features

    @property
    def reads_tokens(self) -> bool:
        return any(member.kind == "tokens" for member, _ in self.members)

    def _made(self, member: Member, sizes: dict[str, Any], width: int) -> OneStepCritic:
        """One critic of that kind. width: of what all members together read of a scene."""
        looked = self.looked
        pooled = width - looked["ego"] - looked["tokens"] * looked["token_width"]
        kind = KINDS[member.kind]
        plans = asdict(self.backbone.sampling)
        return kind(kind.config_class(pooled, **plans, **sizes, **(looked if kind.reads_tokens else {})))

    def export(self, folder: Path, provenance: Mapping[str, Any]) -> None:
        """Write the critic's folder: the networks, whose features they read, and what reinforcement learning saw."""
        assert self.critic is not None
        self.critic.save_pretrained(folder)
        seen = self.candidates.seen
        write_json(folder / RL_TOKENS, sorted(seen.tokens))
        made = {
            "backbone": str(self.backbone_folder),
            "backbone_fingerprint": self.fingerprint,
            "cameras": list(self.backbone.processor().cameras),
            "metric": self.candidates.metric,
        }
        write_json(folder / "provenance.json", {**provenance, **made, **seen.provenance()})
