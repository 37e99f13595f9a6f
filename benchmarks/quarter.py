"""Published geometries at a quarter of their widths, layer for layer and picture for picture, with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dipole_vla.backbones import backbone_class
from dipole_vla.backbones.base import Backbone

Sizes = Mapping[str, Any]

DP_VLA: Sizes = {
    "width": 256, "depth": 12, "heads": 8, "input_width": 256, "context_width": 256, "text_width": 256,
    "text_layers": 12, "text_heads": 8, "text_hidden": 1024, "text_positions": 1024, "image_size": 384,
    "vision_dims": (64, 128, 256, 512), "vision_heads": (2, 4, 8, 16), "vision_depths": (1, 1, 9, 1),
    "vision_patch": (7, 3, 3, 3), "vision_stride": (4, 2, 2, 2), "vision_window": 12, "image_positions": 50,
}  # fmt: skip

ALPAMAYO: Sizes = {
    "vision_width": 288, "vision_layers": 27, "vision_heads": 4, "vision_hidden": 1076, "vision_patch": 16,
    "vision_positions": 2304, "vision_deep": (8, 16, 24), "text_width": 1024, "text_layers": 36, "text_heads": 8,
    "text_kv_heads": 2, "text_hidden": 3072, "head_dim": 128, "rope_sections": (24, 20, 20), "expert_width": 512,
    "expert_hidden": 2064, "expert_heads": 4, "input_width": 128, "image_size": (320, 576),
}  # fmt: skip

PI05: Sizes = {
    "vision_width": 288, "vision_layers": 27, "vision_heads": 4, "vision_hidden": 1076, "vision_patch": 14,
    "image_size": 224, "text_width": 512, "text_layers": 18, "text_heads": 2, "text_hidden": 4096, "head_dim": 256,
    "expert_width": 256, "expert_hidden": 1024, "expert_heads": 2, "max_state": 32, "max_action": 32,
}  # fmt: skip

SMOLVLA: Sizes = {
    "vision_width": 192, "vision_layers": 12, "vision_heads": 3, "vision_hidden": 768, "image_size": 512,
    "picture_size": 512, "shuffle": 4, "text_width": 240, "text_layers": 16, "text_heads": 15, "text_kv_heads": 5,
    "text_hidden": 640, "head_dim": 16, "expert_width": 180, "expert_hidden": 512, "max_state": 32, "max_action": 32,
}  # fmt: skip

FOUR_CAMERAS_FOUR_TIMES = ("CAM_L0",) * 4 + ("CAM_F0",) * 4 + ("CAM_R0",) * 4 + ("CAM_B0",) * 4


@dataclass(frozen=True)
class Quarter:
    """rank: a quarter of the recipe's."""

    family: str
    rank: int
    sizes: Sizes


QUARTERS = {
    "dp_vla": Quarter("dp_vla", 8, DP_VLA),
    "alpamayo": Quarter("alpamayo", 24, ALPAMAYO),
    "alpamayo_16_pictures": Quarter("alpamayo", 24, {**ALPAMAYO, "cameras": FOUR_CAMERAS_FOUR_TIMES}),
    "pi05": Quarter("pi05", 24, PI05),
    "smolvla": Quarter("smolvla", 6, SMOLVLA),
}


def build(name: str, quick: bool = False) -> Backbone:
    """quick: a tiny one, to see that a script works. What starts at zero is filled, so that every part does work."""
    torch.manual_seed(0)
    quarter = QUARTERS[name]
    kind: Any = backbone_class(quarter.family)
    backbone: Backbone = kind.tiny(kind.config_class.tiny(**({} if quick else quarter.sizes))).eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.02)
    return backbone
