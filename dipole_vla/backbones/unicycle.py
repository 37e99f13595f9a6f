"""A unicycle's controls as an action: acceleration and curvature, held over each step from the ego's speed now.

Plans are integrated from the controls; controls are fitted to plans by four regularised least squares in a row
(heading, speed, acceleration, curvature), as Alpamayo's code does it (`UnicycleAccelCurvatureActionSpace`). All in
float64: the fit solves for third differences of positions.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from dipole_vla.backbones import weights
from navsim_adapter.foundation.errors import InputError

Smoothing = tuple[float, float]
"""(weight of the squared highest difference quotient, ridge)."""


@dataclass(frozen=True)
class Unicycle:
    """`horizon` pairs of acceleration (m/s^2) and curvature (1/m), each held for `interval` seconds.

    Network action = (raw - offset) / scale, channel by channel.

    heading, speed, acceleration, curvature: smoothing of the fit.
    """

    horizon: int = 64
    interval: float = 0.1
    offset: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float] = (1.0, 1.0)
    heading: Smoothing = (1e-6, 1e-8)
    speed: Smoothing = (1e-6, 1e-4)
    acceleration: Smoothing = (1e-4, 1e-4)
    curvature: Smoothing = (1e-4, 1e-4)
    kinematic: Literal["unicycle"] = "unicycle"

    def __post_init__(self) -> None:
        if self.horizon < 3:
            raise InputError(f"action.horizon: must be at least 3 steps to be fitted, got {self.horizon}")
        if not 0 < self.interval < math.inf:
            raise InputError(f"action.interval: must be seconds > 0, got {self.interval}")
        for name in ("offset", "scale", "heading", "speed", "acceleration", "curvature"):
            values = getattr(self, name)
            if len(values) != 2 or not all(isinstance(x, int | float) and math.isfinite(x) for x in values):
                raise InputError(f"action.{name}: must be two finite numbers, got {values!r}")
        if min(self.scale) <= 0:
            raise InputError(f"action.scale: must be > 0 in both channels, got {self.scale}")

    @property
    def dim(self) -> int:
        """Channels of the network's action."""
        return 2

    @property
    def shape(self) -> tuple[int, int]:
        """(horizon, 2) of one action as the network has it."""
        return self.horizon, self.dim

    @property
    def raw_shape(self) -> tuple[int, int]:
        """(horizon, 3) of one action as the user gives it: x, y, heading."""
        return self.horizon, 3

    def meaning(self) -> dict[str, Any]:
        """The fields that say what numbers mean: part of a backbone's fingerprint."""
        return asdict(self)

    @classmethod
    def from_record(cls, raw: Any, where: str) -> Unicycle:
        """The action of a config.json."""
        return weights.record_from(cls, raw, where)

    def fitted(self, poses: Tensor) -> Unicycle:
        raise InputError("model.fit_action: controls keep the normaliser they were published with; set it to false")

    def mask(self) -> Tensor:
        """(horizon, 2) of ones: both channels count."""
        return torch.ones(self.shape, dtype=torch.float32)

    def encode(self, poses: Tensor, speed: Tensor) -> Tensor:
        """Poses (..., horizon, 3), x, y, heading in the ego frame, and speed now (...), m/s -> (..., horizon, 2).

        InputError for another horizon. A fit: poses that no smooth drive gives come back smoother from `decode`.
        """
        if tuple(poses.shape[-2:]) != self.raw_shape:
            raise InputError(f"poses: must end in {self.raw_shape} (x, y, heading), got {tuple(poses.shape)}")
        path, start, step = poses.double(), speed.double(), self.interval
        angles = _after_zero(_smooth_after_zero(_unwrapped(path[..., 2]), self.heading, step))
        moves = path[..., :2].diff(dim=-2, prepend=torch.zeros_like(path[..., :1, :2]))
        speeds = _speeds(moves, angles, self.speed, step, start)
        change = speeds.diff(dim=-1) / step
        acceleration = _fit(torch.ones_like(change), change, self.acceleration, step)
        lengths = step * speeds[..., :-1] + step**2 / 2 * acceleration
        curvature = _fit(lengths, angles.diff(dim=-1), self.curvature, step)
        offset, scale = self._normaliser(path)
        return ((torch.stack([acceleration, curvature], dim=-1) - offset) / scale).to(poses.dtype)

    def decode(self, action: Tensor, speed: Tensor) -> Tensor:
        """Action (..., horizon, 2) and speed now (...) in m/s -> poses (..., horizon, 3).

        Speed and heading are exact for the controls held; x and y by the trapezoidal rule, as published.
        """
        offset, scale = self._normaliser(action)
        acceleration, curvature = (action.double() * scale + offset).unbind(-1)
        step, start = self.interval, speed.double()[..., None].expand(*action.shape[:-2], 1)
        speeds = torch.cat([start, start + (acceleration * step).cumsum(-1)], dim=-1)
        turns = curvature * (speeds[..., :-1] * step + acceleration * step**2 / 2)
        angles = torch.cat([torch.zeros_like(start), turns.cumsum(-1)], dim=-1)
        velocity = speeds[..., None] * torch.stack([angles.cos(), angles.sin()], dim=-1)
        xy = ((velocity[..., :-1, :] + velocity[..., 1:, :]) * (step / 2)).cumsum(-2)
        return torch.cat([xy, _wrapped(angles[..., 1:, None])], dim=-1).to(action.dtype)

    def speed_of(self, history: Tensor) -> Tensor:
        """Speed now (...), m/s, from poses (..., n, 3), n >= 4, `interval` apart, the last of them now."""
        path = history.double()
        speeds = _speeds(path[..., :2].diff(dim=-2), _unwrapped(path[..., 2]), self.speed, self.interval)
        return speeds[..., -1].to(history.dtype)

    def _normaliser(self, like: Tensor) -> tuple[Tensor, Tensor]:
        offset, scale = (
            torch.tensor(pair, dtype=torch.float64, device=like.device) for pair in (self.offset, self.scale)
        )
        return offset, scale


def _speeds(moves: Tensor, angles: Tensor, smoothing: Smoothing, step: float, start: Tensor | None = None) -> Tensor:
    """(..., n + 1) speeds v whose trapezoidal rule gives the moves (..., n, 2) along the headings (..., n + 1).

    Least squares of u_t v_t + u_{t+1} v_{t+1} = 2 move_t / step, with unit vectors u. start: v_0, where it is known.
    """
    along = torch.stack([angles.cos(), angles.sin()], dim=-1)
    wanted = 2 / step * moves
    right_side = pad((along[..., :-1, :] * wanted).sum(-1), (0, 1)) + pad((along[..., 1:, :] * wanted).sum(-1), (1, 0))
    ends = torch.full_like(angles, 2.0)
    ends[..., 0] = ends[..., -1] = 1.0
    beside = angles.diff(dim=-1).cos()
    matrix = torch.diag_embed(ends) + torch.diag_embed(beside, 1) + torch.diag_embed(beside, -1)
    matrix = matrix + _roughness(angles, 3, smoothing[0], step)
    if start is None:
        return _solved(matrix, right_side, smoothing[1])
    start = start.expand(angles.shape[:-1])[..., None]
    free = _solved(matrix[..., 1:, 1:], right_side[..., 1:] - matrix[..., 1:, 0] * start, smoothing[1])
    return torch.cat([start, free], dim=-1)


def _smooth_after_zero(target: Tensor, smoothing: Smoothing, step: float) -> Tensor:
    """(..., n) near the target, smooth with a zero before it."""
    rough = _roughness(_after_zero(target), 3, smoothing[0], step)[1:, 1:]
    return _solved(rough + torch.eye(target.shape[-1], dtype=target.dtype, device=target.device), target, smoothing[1])


def _fit(slope: Tensor, target: Tensor, smoothing: Smoothing, step: float) -> Tensor:
    """x (..., n) of least sum of (slope x - target)^2 + weight * (second difference of x / step^2)^2 + ridge x^2."""
    rough = _roughness(target, 2, smoothing[0], step)
    return _solved(torch.diag_embed(slope**2) + rough, slope * target, smoothing[1])


def _roughness(like: Tensor, order: int, weight: float, step: float) -> Tensor:
    """(n, n) matrix of the squared difference quotients of `order`, for `like` (..., n)."""
    identity = torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
    differences = identity.diff(n=order, dim=0)
    return weight / step ** (2 * order) * differences.T @ differences


def _solved(matrix: Tensor, right_side: Tensor, ridge: float) -> Tensor:
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    factor = torch.linalg.cholesky(matrix + ridge * identity)
    return torch.cholesky_solve(right_side[..., None], factor)[..., 0]


def _after_zero(x: Tensor) -> Tensor:
    return pad(x, (1, 0))


def _unwrapped(angles: Tensor) -> Tensor:
    """Without jumps of a turn along the last axis; the first is kept."""
    return torch.cat([angles[..., :1], angles[..., :1] + _wrapped(angles.diff(dim=-1)).cumsum(-1)], dim=-1)


def _wrapped(angle: Tensor) -> Tensor:
    """In [-pi, pi); by whole turns, for exported plans run where arcs of float64 are not to be had."""
    return angle - 2 * math.pi * torch.floor(angle / (2 * math.pi) + 0.5)
