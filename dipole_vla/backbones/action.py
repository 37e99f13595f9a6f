"""What a network's action means: `Poses` of the ego vehicle, controls of a `Unicycle`, or `Plain` numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from dipole_vla.backbones import weights
from dipole_vla.backbones.unicycle import Unicycle
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.sampling import Sampling

__all__ = ["Action", "ActionSpec", "Plain", "Poses", "Unicycle"]


@dataclass(frozen=True)
class ActionSpec:
    """What the network's action means: `horizon` ego poses, `interval` seconds apart, and their normaliser.

    Network action = (raw - offset) / scale, channel by channel; raw channels are x, y (metres, ego frame), then the
    heading as (cos, sin) or as an angle. Further channels up to `dim` are padding, always zero, and must be asked for.

    kinematic: "waypoint" gives x and y as positions, "diff" as steps between poses (the first from the origin),
        "velocity" all three as such steps per second (ReCogDrive's delta targets; heading as an angle).
    offset, scale: empty (0 and 1), one number per raw channel, or horizon rows of them.
    is_padded: whether channels beyond the pose are meant as padding; a network of other quantities is refused.
    """

    horizon: int = 8
    dim: int = 4
    interval: float = 0.5
    kinematic: Literal["waypoint", "diff", "velocity"] = "waypoint"
    heading: Literal["cos_sin", "angle"] = "cos_sin"
    offset: tuple[Any, ...] = ()
    scale: tuple[Any, ...] = ()
    is_padded: bool = False

    def __post_init__(self) -> None:
        Sampling(self.horizon, self.interval)
        if self.kinematic not in ("waypoint", "diff", "velocity"):
            raise InputError(f"action.kinematic: must be waypoint, diff or velocity, got {self.kinematic!r}")
        if self.heading not in ("cos_sin", "angle"):
            raise InputError(f"action.heading: must be cos_sin or angle, got {self.heading!r}")
        if self.kinematic == "velocity" and self.heading != "angle":
            raise InputError(f"action.heading: must be angle with kinematic velocity, got {self.heading!r}")
        if self.dim < self.real_dim:
            raise InputError(f"action.dim: must be >= {self.real_dim} for heading {self.heading!r}, got {self.dim}")
        if self.dim > self.real_dim and not self.is_padded:
            raise InputError(
                f"action.dim: is {self.dim}, but a pose with heading {self.heading!r} has {self.real_dim} channels and "
                "the others would be zeroed; set is_padded=True where they are padding"
            )
        for name in ("offset", "scale"):
            shape = np.shape(getattr(self, name))
            if shape not in ((0,), (self.real_dim,), (self.horizon, self.real_dim)):
                raise InputError(
                    f"action.{name}: must be empty, {self.real_dim} numbers or {self.horizon} x {self.real_dim} "
                    f"numbers, got shape {shape}"
                )
        if np.any(np.asarray(self.scale) <= 0):
            raise InputError(f"action.scale: must be > 0 in every channel, got {self.scale}")

    @property
    def real_dim(self) -> int:
        """Channels that mean something; losses and guidance see only these."""
        return 4 if self.heading == "cos_sin" else 3

    @property
    def shape(self) -> tuple[int, int]:
        """(horizon, dim) of one action as the network has it."""
        return self.horizon, self.dim

    @property
    def raw_shape(self) -> tuple[int, int]:
        """(horizon, 3) of one action as the user gives it: x, y, heading."""
        return self.horizon, 3

    def meaning(self) -> dict[str, Any]:
        """The fields that say what numbers mean: part of a backbone's fingerprint."""
        return {name: value for name, value in asdict(self).items() if name != "is_padded"}

    @classmethod
    def from_record(cls, raw: Any, where: str) -> ActionSpec:
        """The action of a config.json; folders written before `is_padded` existed get True."""
        values = weights.checked_fields(cls, raw, where)
        return cls(**{"is_padded": True, **values})

    def encode(self, poses: Tensor) -> Tensor:
        """Poses (..., horizon, 3), x, y, heading in the ego frame -> network action (..., horizon, dim)."""
        if tuple(poses.shape[-2:]) != self.raw_shape:
            raise InputError(f"poses: must end in {self.raw_shape} (x, y, heading), got {tuple(poses.shape)}")
        raw = self._raw(poses)
        offset, scale = self._normaliser(raw)
        return nn.functional.pad((raw - offset) / scale, (0, self.dim - self.real_dim))

    def decode(self, action: Tensor) -> Tensor:
        """Network action (..., horizon, dim) -> poses (..., horizon, 3); inverse of `encode`."""
        action = action[..., : self.real_dim]
        offset, scale = self._normaliser(action)
        raw = action * scale + offset
        if self.kinematic == "velocity":
            poses = (raw * self.interval).cumsum(-2)
            return torch.cat([poses[..., :2], _wrapped(poses[..., 2:])], dim=-1)
        xy = raw[..., :2] if self.kinematic == "waypoint" else raw[..., :2].cumsum(-2)
        heading = raw[..., 2:3] if self.heading == "angle" else torch.atan2(raw[..., 3:4], raw[..., 2:3])
        return torch.cat([xy, heading], dim=-1)

    def fitted(self, poses: Tensor, floor: float = 0.05) -> ActionSpec:
        """This action normalised by the mean and standard deviation of `poses` (N, horizon, 3), pose by pose.

        floor: least standard deviation, in raw units, so that a nearly constant channel is not blown up.
        """
        raw = self._raw(poses.double())
        mean, std = raw.mean(0), raw.std(0, correction=0).clamp_min(floor)
        return replace(self, offset=_as_tuples(mean), scale=_as_tuples(std))

    def mask(self) -> Tensor:
        """(horizon, dim), 1 where a channel is real and 0 where it is padding."""
        real = torch.arange(self.dim) < self.real_dim
        return real.float().expand(self.horizon, self.dim)

    def _raw(self, poses: Tensor) -> Tensor:
        xy, heading = poses[..., :2], poses[..., 2:3]
        if self.kinematic == "velocity":
            steps = torch.diff(poses, dim=-2, prepend=torch.zeros_like(poses[..., :1, :]))
            return torch.cat([steps[..., :2], _wrapped(steps[..., 2:])], dim=-1) / self.interval
        if self.kinematic == "diff":
            xy = torch.diff(xy, dim=-2, prepend=torch.zeros_like(xy[..., :1, :]))
        angles = [heading] if self.heading == "angle" else [torch.cos(heading), torch.sin(heading)]
        return torch.cat([xy, *angles], dim=-1)

    def _normaliser(self, like: Tensor) -> tuple[Tensor, Tensor]:
        offset = torch.tensor(self.offset or (0.0,), dtype=like.dtype, device=like.device)
        return offset, torch.tensor(self.scale or (1.0,), dtype=like.dtype, device=like.device)


Poses = ActionSpec  # as users of plain networks call it, beside `Plain`


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


def _as_tuples(table: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in table.tolist())


def _wrapped(angle: Tensor) -> Tensor:
    return torch.atan2(angle.sin(), angle.cos())
