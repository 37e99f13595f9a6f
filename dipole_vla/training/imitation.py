"""Imitation: the backbone's own denoising loss on human futures. Makes the reference policy that DIPOLE tilts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dipole_vla.backbones import load_backbone
from dipole_vla.backbones.weights import float32_by_default
from dipole_vla.data.module import DrivingData, DrivingDataset
from dipole_vla.objective import per_sample_loss
from dipole_vla.paths import interpolate, target
from dipole_vla.training.base import FineTuning, split_decay
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import write_json
from navsim_adapter.foundation.option_checks import check_range


class ImitationModule(FineTuning):
    """Fine-tune every weight of a backbone on the human futures of the scenes."""

    def __init__(
        self,
        backbone: Path,
        fit_action: bool = False,
        draws: int = 4,
        lr: float = 1e-4,
        encoder_lr_scale: float = 0.1,
        warmup_steps: int = 100,
        weight_decay: float = 0.01,
        ema_decay: float = 0.0,
        seed: int = 0,
    ):
        """
        Args:
            backbone: checkpoint folder to start from.
            fit_action: set the action normaliser to the mean and standard deviation of the training futures.
            draws: noise levels per scene and step; the encoder runs once for all of them.
            lr: learning rate of the head.
            encoder_lr_scale: the encoder's learning rate as a part of the head's; 0 freezes it.
            warmup_steps: steps of linear warm-up; then linear decay to zero at trainer.max_steps.
            weight_decay: AdamW, on matrices only.
            ema_decay: export the weights' running mean (e.g. 0.999), kept in float32; 0 exports the last step's.
            seed: noise and times.
        """
        super().__init__(lr, warmup_steps, weight_decay, seed, ema_decay)
        check_range("model.draws", draws, 1)
        check_range("model.encoder_lr_scale", encoder_lr_scale, 0)
        self.backbone = load_backbone(backbone).train()
        self.fit_action, self.draws, self.encoder_lr_scale = fit_action, draws, encoder_lr_scale
        for name, parameter in self.backbone.named_parameters():
            if encoder_lr_scale == 0 and name.startswith(self.backbone.encoder_names):
                parameter.requires_grad_(False)

    def meet(self, data: Any, may_open: bool = True) -> None:
        super().meet(data, may_open)
        if self.fit_action and not isinstance(data, DrivingData):
            raise InputError("model.fit_action: only the futures of dipole_vla.data.module.DrivingData can be fitted")

    def look_at(self, dataset: DrivingDataset) -> None:
        """Set the action normaliser, where it is to be fitted."""
        super().look_at(dataset)
        if not self.fit_action:
            return
        scenes = dataset.scenes
        futures = torch.from_numpy(scenes.futures_at(dataset.sampling))
        bad = (~futures.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
        if bad:
            raise InputError(
                f"{scenes.folder}: future of scene {scenes.tokens[bad[0]]} (and {len(bad) - 1} more) is not finite; "
                "convert the log again, or leave the scene out"
            )
        self.backbone.action = self.backbone.action.fitted(futures)

    def parameter_groups(self) -> list[dict[str, Any]]:
        named = list(self.backbone.named_parameters())
        head = [(name, p) for name, p in named if not name.startswith(self.backbone.encoder_names)]
        encoder = [(name, p) for name, p in named if name.startswith(self.backbone.encoder_names)]
        return [
            *split_decay(head, self.weight_decay),
            *split_decay(encoder, self.weight_decay, lr=self.lr * self.encoder_lr_scale),
        ]

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        generator = self.step_generator()
        backbone = self.backbone
        with float32_by_default():
            context = backbone.encode(batch["observation"])
            x0 = backbone.to_action(batch["poses"][:, :1], lambda: context)[:, 0].repeat_interleave(self.draws, 0)
            noise = torch.randn(x0.shape, generator=generator, device=x0.device)
            t = backbone.schedule.sample_t(len(x0), generator=generator).to(x0.device)
            x_t = interpolate(backbone.schedule, x0, noise, t)
            output = backbone.denoise(context, x_t, t)
            wanted = target(backbone.prediction, backbone.schedule, x0, noise, t)
            loss = per_sample_loss(output, wanted, backbone.action.mask().to(x0.device)).mean()
        self.log("loss", loss)
        return self.checked(loss, batch)

    def export(self, folder: Path, provenance: Mapping[str, Any]) -> None:
        """Write the backbone as a checkpoint folder."""
        with self.averaged():
            self.backbone.save_pretrained(folder)
        write_json(folder / "provenance.json", dict(provenance))
