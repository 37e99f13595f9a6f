"""What the processors of all families share: pictures as pixels, the past as numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from dipole_vla.backbones.base import Showing
from navsim_adapter.foundation.errors import InputError

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
COMMANDS = ("left", "straight", "right", "unknown")


def pictures(scene: Mapping[str, Any], images: Mapping[str, Image], cameras: Sequence[str]) -> list[Image]:
    """RGB pictures in the order of the cameras; InputError names the camera that a scene lacks."""
    for camera in cameras:
        if camera not in images:
            raise InputError(f"scene {scene.get('token', '?')}: no picture of {camera}; convert with this camera")
    return [images[camera].convert("RGB") for camera in cameras]


def all_shown(scene: Mapping[str, Any], images: Mapping[str, Image | Tensor], processor: Showing) -> list[Tensor]:
    """What the network takes of each picture, in the order of the cameras; what is a tensor was shown before.

    InputError names the camera that a scene lacks.
    """
    found = {name: image for name, image in images.items() if isinstance(image, Tensor)}
    whole = {name: image for name, image in images.items() if not isinstance(image, Tensor)}
    rest = [name for name in processor.cameras if name not in found]
    found |= {name: processor.shown(image) for name, image in zip(rest, pictures(scene, whole, rest))}
    return [found[name] for name in processor.cameras]


def pixels(image: Image) -> Tensor:
    """(3, height, width) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def normalised_pixels(pixels: Tensor, mean: Sequence[float] = IMAGE_MEAN, std: Sequence[float] = IMAGE_STD) -> Tensor:
    """uint8 (..., 3, H, W) -> float32 with mean and deviation (of 0 to 1) removed; float pixels pass unchanged."""
    if pixels.dtype != torch.uint8:
        return pixels
    offset, scale = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (mean, std))
    return (pixels.float() / 255 - offset) / scale


def history(scene: Mapping[str, Any]) -> Tensor:
    """(12,) float32: x, y, heading of the last four frames, ego frame."""
    return torch.from_numpy(np.asarray(scene["history"], dtype=np.float32).reshape(-1))


def status(scene: Mapping[str, Any]) -> Tensor:
    """(8,) float32: command one-hot (left, straight, right, unknown), velocity, acceleration."""
    command = str(scene["command"])
    one_hot = [float(command == name) for name in COMMANDS]
    if not any(one_hot):
        raise InputError(f"scene {scene.get('token', '?')}: command {command!r} is not one of {', '.join(COMMANDS)}")
    return torch.tensor([*one_hot, *scene["velocity"], *scene["acceleration"]], dtype=torch.float32)
