"""Which camera of a rig a policy sees under which name, and pictures resampled to the camera it was trained on.

Camera axes: x right, y down, z along the optical axis. A pixel's centre is at its index + 0.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from carla_driver_interface.geometry import BODY_TO_OPTICAL, Pose
from carla_driver_interface.protocol import AvailableCamera
from PIL import Image
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn.functional import grid_sample

from dipole_vla.serving.lenses import project, ray
from navsim_adapter.foundation.errors import InputError, did_you_mean

LARGEST = 8192  # pixels of a side of a picture
_KEYS = ("source", "size", "focal", "center", "distortion", "yaw", "pitch", "roll")


@dataclass(frozen=True)
class Pinhole:
    """What a policy's pictures were taken with.

    size: (width, height). focal, center: pixels, in x and y. distortion: OpenCV's k1, k2, p1, p2, k3.
    direction: yaw to the left, pitch down, roll, degrees from straight ahead; None looks where the rig's camera looks.
    """

    size: tuple[int, int]
    focal: tuple[float, float]
    center: tuple[float, float]
    distortion: tuple[float, ...] = (0.0,) * 5
    direction: tuple[float, float, float] | None = None

    def rays(self) -> np.ndarray:
        """(height, width, 3) along which each pixel looks, in the camera's own axes."""
        x, y = np.meshgrid(np.arange(self.size[0]) + 0.5, np.arange(self.size[1]) + 0.5)
        flat = np.stack([(x - self.center[0]) / self.focal[0], (y - self.center[1]) / self.focal[1]], axis=-1)
        return ray(flat, self.distortion)

    def in_rig(self) -> Rotation | None:
        """The optical axes in the rig's."""
        if self.direction is None:
            return None
        return Rotation.from_euler("ZYX", self.direction, degrees=True) * Rotation.from_matrix(BODY_TO_OPTICAL)


@dataclass(frozen=True)
class View:
    """The policy's camera `name` is the rig's `source`, taken as it is, or resampled to `pinhole`."""

    name: str
    source: str
    pinhole: Pinhole | None = None

    def check(self, declared: Mapping[str, AvailableCamera]) -> None:
        """InputError where a rig does not have the camera, or has it with a lens that cannot be resampled."""
        if self.source not in declared:
            hint = did_you_mean(self.source, list(declared))
            raise InputError(
                f"cameras.{self.name}: the rig has no camera {self.source!r}{hint}, only "
                f"{', '.join(sorted(declared)) or 'none'}; name the one to show as --cameras.{self.name} NAME"
            )
        self.grid(declared[self.source])

    def grid(self, camera: AvailableCamera) -> Tensor | None:
        """Where each pixel of the pinhole is in the rig's picture, for `grid_sample`: (height, width, 2), -1 to 1."""
        return None if self.pinhole is None else _grid(camera.SerializeToString(), self.pinhole)

    def show(self, picture: Image.Image, camera: AvailableCamera) -> Image.Image:
        """The picture as the policy's camera would have taken it; black where the rig's camera did not look."""
        grid = self.grid(camera)
        if grid is None:
            return picture
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
        shown = grid_sample(pixels, grid[None], mode="bilinear", padding_mode="zeros", align_corners=False)
        return Image.fromarray(shown[0].permute(1, 2, 0).round().to(torch.uint8).numpy())


def views(names: Sequence[str], given: Mapping[str, Any]) -> tuple[View, ...]:
    """The views of a policy that sees `names`; given: of --cameras, name -> the rig's name, or keys of a pinhole."""
    for name in given:
        if name not in names:
            raise InputError(
                f"cameras.{name}: the policy does not see it{did_you_mean(name, list(names))}, it sees "
                f"{', '.join(names)}; leave it out"
            )
    return tuple(_view(name, given.get(name, name)) for name in names)


def _view(name: str, given: Any) -> View:
    if isinstance(given, str):
        return View(name, given)
    where = f"cameras.{name}"
    if not isinstance(given, Mapping):
        raise InputError(f"{where}: must be the rig's name of it, or keys, got {given!r}")
    for key in given:
        if key not in _KEYS:
            raise InputError(f"{where}.{key}: no such key{did_you_mean(str(key), list(_KEYS))}; of {', '.join(_KEYS)}")
    source = given.get("source", name)
    if not isinstance(source, str):
        raise InputError(f"{where}.source: must be the rig's name of the camera, got {source!r}")
    return View(name, source, _pinhole(where, given) if set(given) - {"source"} else None)


def _pinhole(where: str, given: Mapping[str, Any]) -> Pinhole:
    def numbers(key: str, count: int) -> tuple[float, ...]:
        if key not in given:
            raise InputError(f"{where}.{key}: is missing; give size, focal and center of the camera to resample to")
        value = given[key] if isinstance(given[key], list | tuple) else [given[key]] * (2 if key == "focal" else 1)
        if len(value) != count or not all(_is_number(each) for each in value):
            raise InputError(f"{where}.{key}: must be {count} finite numbers, got {given[key]!r}")
        return tuple(float(each) for each in value)

    size, focal = numbers("size", 2), numbers("focal", 2)
    if not all(each.is_integer() and 1 <= each <= LARGEST for each in size) or min(focal) <= 0:
        raise InputError(f"{where}: size must be whole, 1 to {LARGEST}, and focal above 0, got {size} and {focal}")
    is_turned = any(key in given for key in ("yaw", "pitch", "roll"))
    angles = {"yaw": 0.0, "pitch": 0.0, "roll": 0.0, **given}
    return Pinhole(
        (int(size[0]), int(size[1])),
        (focal[0], focal[1]),
        numbers("center", 2),  # type: ignore[arg-type]
        numbers("distortion", 5) if "distortion" in given else (0.0,) * 5,
        _angles(where, angles) if is_turned else None,
    )


def _angles(where: str, given: Mapping[str, Any]) -> tuple[float, float, float]:
    for key in ("yaw", "pitch", "roll"):
        if not _is_number(given[key]):
            raise InputError(f"{where}.{key}: must be degrees, got {given[key]!r}")
    return float(given["yaw"]), float(given["pitch"]), float(given["roll"])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


@lru_cache(maxsize=16)  # rigs of one runtime are alike, and a grid takes 16 MB
def _grid(declared: bytes, pinhole: Pinhole) -> Tensor:
    camera = AvailableCamera.FromString(declared)
    width, height = camera.intrinsics.resolution_w, camera.intrinsics.resolution_h
    if not width or not height:
        raise InputError(f"camera {camera.logical_id}: is declared without resolution; it cannot be resampled")
    rays, wanted = pinhole.rays(), pinhole.in_rig()
    if wanted is not None:
        turn = Pose.from_proto(camera.rig_to_camera).rotation.inv() * wanted
        rays = rays @ turn.as_matrix().T
    pixels, is_seen = project(rays, camera.intrinsics)
    flat = 2 * pixels / np.array([width, height]) - 1
    return torch.from_numpy(np.where(is_seen[..., None], flat, 2.0).astype(np.float32))  # 2 lies outside
