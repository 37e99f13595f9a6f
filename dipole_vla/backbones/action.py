"""What a network's action means: `Poses` of the ego vehicle, controls of a `Unicycle`, or `Plain` numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dipole_vla.backbones.base import ActionSpec as Poses
from dipole_vla.backbones.unicycle import Unicycle
from navsim_adapter.foundation.errors import InputError

__all__ = ["Action", "Plain", "Poses", "Unicycle"]


@dataclass(frozen=True)
class Plain:
    """Actions of any shape, number by number: network action = (raw - offset) / scale.

    shape: of one action, e.g. (8, 7) for eight steps of seven joints.
    offset, scale: empty (0 and 1), or numbers that broadcast over `shape`.
    """

    shape: tuple[int, ...]
    offset: tuple[Any, ...] = ()
    scale: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        sizes = self.shape if isinstance(self.shape, tuple | list) else ()
        if not sizes or any(type(size) is not int or size < 1 for size in sizes):
            raise InputError(f"action.shape: must be whole numbers >= 1, e.g. (8, 7), got {self.shape!r}")
        object.__setattr__(self, "shape", tuple(sizes))
        for name in ("offset", "scale"):
            if not _broadcasts(getattr(self, name), self.shape):
                raise InputError(f"action.{name}: must be finite numbers that broadcast over {self.shape}")
        if np.any(np.asarray(self.scale) <= 0):
            raise InputError(f"action.scale: must be > 0 everywhere, got {self.scale}")

    @property
    def raw_shape(self) -> tuple[int, ...]:
        """Of one action as the user gives it: here the network's own."""
        return self.shape

    def meaning(self) -> dict[str, Any]:
        """The fields that say what numbers mean: part of a backbone's fingerprint."""
        return {"shape": self.shape, "offset": self.offset, "scale": self.scale}

    def encode(self, raw: Tensor) -> Tensor:
        """Raw actions (..., *shape) -> network actions of the same shape."""
        offset, scale = self._normaliser(raw)
        return (raw - offset) / scale

    def decode(self, action: Tensor) -> Tensor:
        """Inverse of `encode`."""
        offset, scale = self._normaliser(action)
        return action * scale + offset

    def mask(self) -> Tensor:
        """(*shape) of ones: every number counts."""
        return torch.ones(self.shape, dtype=torch.float32)

    def _normaliser(self, like: Tensor) -> tuple[Tensor, Tensor]:
        offset = torch.tensor(self.offset or 0.0, dtype=like.dtype, device=like.device)
        return offset, torch.tensor(self.scale or 1.0, dtype=like.dtype, device=like.device)


Action = Poses | Plain


def _broadcasts(values: Any, shape: tuple[int, ...]) -> bool:
    try:
        table = np.asarray(values, dtype=np.float64)
        fits = not table.size or np.broadcast_shapes(table.shape, shape) == shape
    except (TypeError, ValueError):
        return False
    return fits and bool(np.isfinite(table).all())
