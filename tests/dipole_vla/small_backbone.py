"""A DP-VLA of a few hundred thousand random weights, for tests: every part of the real one, nothing mocked."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from torch import Tensor

from dipole_vla.backbones.dp_vla.model import DPVLA, DPVLAConfig
from dipole_vla.policy import ActionSpec

SIZES = {"width": 32, "depth": 2, "text_layers": 1, "text_hidden": 32, "image_size": 32}


SCENE = {
    "token": "abc",
    "command": "left",
    "velocity": [6.0, 0.8],
    "acceleration": [0.3, -0.4],
    "history": [[-9.0, 0.1, -0.2], [-6.0, 0.1, -0.15], [-3.0, 0.0, -0.1], [0.0, 0.0, 0.0]],
}


def make_backbone(seed: int = 0, **overrides: object) -> DPVLA:
    """Random everywhere: fresh weights start with closed gates, through which no adapter could be seen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DPVLA.tiny(DPVLAConfig.tiny(**{**SIZES, **overrides}))
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.any():
                    parameter.normal_(0, 0.1)
    model.action = ActionSpec(offset=(10.0, 0.0, 0.9, 0.0), scale=(8.0, 2.0, 0.2, 0.3))
    return model.eval()


def make_observation(scenes: int = 3, seed: int = 0, image_size: int = 32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "pixels": torch.randint(0, 256, (scenes, 3, 3, image_size, image_size), generator=generator, dtype=torch.uint8),
        "input_ids": torch.randint(4, 200, (scenes, 40), generator=generator),
        "proprio": torch.randn(scenes, 12, generator=generator),
    }


def spread_adapters(pair, seed: int = 1, scale: float = 0.2) -> None:
    """Give both adapters random weights, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
