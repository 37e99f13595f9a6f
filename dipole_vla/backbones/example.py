"""A made-up scene as a family's own processor sees it: for counting, tracing and timing, where only shapes matter."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from dipole_vla.backbones.base import Backbone

SCENE: dict[str, Any] = {
    "token": "planned",
    "command": "straight",
    "velocity": [5.0, 0.0],
    "acceleration": [0.0, 0.0],
    "history": [[-9.0, 0.0, 0.0], [-6.0, 0.0, 0.0], [-3.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
    "history_velocity": [[5.0, 0.0]] * 4,
    "history_acceleration": [[0.0, 0.0]] * 4,
}


def example_observation(
    backbone: Backbone, scenes: int, scene: Mapping[str, Any] = SCENE, picture: np.ndarray | None = None
) -> dict[str, Tensor]:
    """What the family's own processor makes of one scene, `scenes` times; picture (H, W, 3) uint8, else black ones.

    A network built without its tokenizer is given the family's small one: here only shapes matter.
    """
    if getattr(backbone, "tokenizer", backbone) is None:
        backbone.tokenizer = sys.modules[type(backbone).__module__].small_tokenizer()
    processor = backbone.processor()
    shown = Image.fromarray(np.zeros((1080, 1920, 3), dtype=np.uint8) if picture is None else picture)
    one = processor(scene, dict.fromkeys(processor.cameras, shown))
    return {name: value[None].repeat(scenes, *[1] * value.dim()) for name, value in one.items()}
