"""Probability paths x_t = alpha(t) x0 + sigma(t) noise, and what networks trained on them predict.

A schedule is a value that owns its time convention: which end is noise, how training times are drawn, what number
the network is given. x0 is data (a normalised action) everywhere. Solvers are in `dipole_vla.solvers`, the
combination of two predictions in `dipole_vla.guidance`. Arithmetic is float32, or float64 where t is float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

Prediction = Literal["noise", "sample", "velocity"]


class Schedule(Protocol):
    """alpha, sigma and time of one path. Every method takes and returns tensors of the shape of t."""

    @property
    def noise_time(self) -> float:
        """Time of (nearly) pure noise, where sampling starts."""
        ...

    @property
    def data_time(self) -> float:
        """Time of (nearly) clean data, where sampling ends."""
        ...

    def alpha(self, t: Tensor) -> Tensor: ...

    def sigma(self, t: Tensor) -> Tensor: ...

    def velocity(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(a, b) such that the path's velocity target is a * x0 + b * noise."""
        ...

    def sample_t(self, batch: int, generator: torch.Generator | None = None, device: Any = None) -> Tensor:
        """Training times, (batch,), on `device`; drawn on the generator's, which it is if not given, else the CPU."""
        ...

    def network_time(self, t: Tensor) -> Tensor:
        """The number the network is trained to be given for time t."""
        ...


@dataclass(frozen=True)
class VPLinear:
    """Variance-preserving diffusion with beta rising linearly over t in [0, 1]; t = 1 is noise (DP-VLA)."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3  # training and sampling stop here; below it the noise is under 1 % of the data

    @property
    def noise_time(self) -> float:
        return 1.0

    @property
    def data_time(self) -> float:
        return self.t_min

    def log_alpha(self, t: Tensor) -> Tensor:
        t = _precise(t)
        return -(t**2) * (self.beta_max - self.beta_min) / 4 - t * self.beta_min / 2

    def alpha(self, t: Tensor) -> Tensor:
        return self.log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def velocity(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -self.sigma(t), self.alpha(t)

    def sample_t(self, batch: int, generator: torch.Generator | None = None, device: Any = None) -> Tensor:
        return self.t_min + (1 - self.t_min) * _uniform(batch, generator, device)

    def network_time(self, t: Tensor) -> Tensor:
        return t.float()

    def time_of(self, log_snr: Tensor) -> Tensor:
        """The t with log(alpha / sigma) = log_snr: the positive root of the quadratic in log_alpha."""
        slope = self.beta_max - self.beta_min
        minus_log_alpha = torch.nn.functional.softplus(-2 * _precise(log_snr)) / 2
        return 4 * minus_log_alpha / (self.beta_min + (self.beta_min**2 + 4 * slope * minus_log_alpha).sqrt())


@dataclass(frozen=True)
class CosineTable:
    """Discrete cosine diffusion with `steps` integer times; t = steps - 1 is noise (ReCogDrive: 100 steps).

    Betas are cut at 0.999, so the table is the running product of 1 - beta, not the cosine itself.
    """

    steps: int = 100
    offset: float = 0.008
    max_beta: float = 0.999

    @property
    def noise_time(self) -> float:
        return self.steps - 1

    @property
    def data_time(self) -> float:
        return 0

    @cached_property
    def alpha_bar(self) -> Tensor:
        """(steps,) float64: share of the signal's variance left at each time."""
        # linspace(0, T+1, T+1) / (T+1), as the checkpoints' code writes it
        points = torch.linspace(0, self.steps + 1, self.steps + 1, dtype=torch.float64) / (self.steps + 1)
        curve = torch.cos((points + self.offset) / (1 + self.offset) * math.pi / 2) ** 2
        betas = (1 - curve[1:] / curve[:-1]).clamp(0, self.max_beta)
        return (1 - betas).cumprod(0)

    def alpha(self, t: Tensor) -> Tensor:
        return self._lookup(self.alpha_bar.sqrt(), t)

    def sigma(self, t: Tensor) -> Tensor:
        return self._lookup((1 - self.alpha_bar).sqrt(), t)

    def velocity(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -self.sigma(t), self.alpha(t)

    def sample_t(self, batch: int, generator: torch.Generator | None = None, device: Any = None) -> Tensor:
        return torch.randint(self.steps, (batch,), generator=generator, device=_source(generator, device)).to(device)

    def network_time(self, t: Tensor) -> Tensor:
        return t.long()

    def _lookup(self, table: Tensor, t: Tensor) -> Tensor:
        values = table.to(t.device)[t.long()]
        return values if t.dtype == torch.float64 else values.float()


@dataclass(frozen=True)
class LinearFlow:
    """Straight path between data and noise: with noise level u, x = (1 - u) x0 + u noise; either time direction.

    noise_at: the t that is pure noise: 1 (pi0, SmolVLA, X-VLA) or 0 (ReCogDrive flow, GR00T).
    Training: u = floor + slope * U**(1/power), U uniform; power 1.5 is Beta(1.5, 1). `is_stratified` spreads one
    draw evenly over the batch (X-VLA).
    shift: above 1 levels crowd at the noise end, u' = shift u / (1 + (shift - 1) u), in training and sampling (SimWAM:
    5).
    network_scale: 0 gives the network t itself, 1000 gives it floor(1000 t).
    """

    noise_at: Literal[0, 1] = 1
    power: float = 1.0
    slope: float = 1.0
    floor: float = 0.0
    is_stratified: bool = False
    network_scale: int = 0
    shift: float = 1.0

    def __post_init__(self) -> None:
        if self.noise_at not in (0, 1):
            raise ValueError(f"noise_at: must be 0 or 1, the time of pure noise, got {self.noise_at!r}")

    @property
    def noise_time(self) -> float:
        return float(self.noise_at)

    @property
    def data_time(self) -> float:
        return 1.0 - self.noise_at

    def sigma(self, t: Tensor) -> Tensor:
        return _precise(t) if self.noise_at else 1 - _precise(t)

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - _precise(t) if self.noise_at else _precise(t)

    def velocity(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """d x_t / dt, so its sign turns with the direction of time."""
        one = torch.ones_like(_precise(t))
        return (-one, one) if self.noise_at else (one, -one)

    def sample_t(self, batch: int, generator: torch.Generator | None = None, device: Any = None) -> Tensor:
        if self.is_stratified:
            one = torch.rand(1, generator=generator, device=_source(generator, device)).to(device)
            draw = (one + torch.arange(batch, device=one.device) / batch) % (1 - 1e-5)
        else:
            draw = _uniform(batch, generator, device)
        level = self.floor + self.slope * draw ** (1 / self.power)
        return self.shifted(level if self.noise_at else 1 - level)

    def shifted(self, t: Tensor) -> Tensor:
        """Times as `shift` moves them; t itself where it is 1."""
        if self.shift == 1:
            return t
        level = self.sigma(t)
        level = self.shift * level / (1 + (self.shift - 1) * level)
        return level if self.noise_at else 1 - level

    def network_time(self, t: Tensor) -> Tensor:
        return (t * self.network_scale).long() if self.network_scale else t.float()

    def time_of(self, log_snr: Tensor) -> Tensor:
        level = torch.sigmoid(-_precise(log_snr))
        return level if self.noise_at else 1 - level


def time_for_network(schedule: Schedule, t: Tensor, x_t: Tensor) -> Tensor:
    """A solver's float64 time as float32, like the x_t that networks are given, with the same `network_time`.

    Where that counts in steps, the nearest float32 may lie on the other side of one; then it is one close to it.
    """
    if t.dtype != torch.float64 or x_t.dtype == torch.float64:
        return t
    short, wanted = t.float(), schedule.network_time(t)
    if wanted.is_floating_point():
        return short
    for _ in range(2):  # the product with the number of steps rounds as well
        found = schedule.network_time(short)
        nearer = torch.nextafter(short, torch.where(found > wanted, -torch.inf, torch.inf).float())
        short = torch.where(found == wanted, short, nearer)
    return short


def log_snr(schedule: Schedule, t: Tensor) -> Tensor:
    """log(alpha / sigma), DPM-Solver's lambda: falls from data to noise, whichever way t runs."""
    return schedule.alpha(t).log() - schedule.sigma(t).log()


def noise_level(schedule: Schedule, t: Tensor) -> Tensor:
    """sigma / (alpha + sigma), in [0, 1]: 0 is data, 1 pure noise; comparable between schedules."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return sigma / (alpha + sigma)


def interpolate(schedule: Schedule, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = alpha(t) x0 + sigma(t) noise; x0, noise (rows, ...), t (rows,)."""
    return _rows(schedule.alpha(t), x0) * x0 + _rows(schedule.sigma(t), x0) * noise


def target(prediction: Prediction, schedule: Schedule, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """What a network of this prediction is regressed on at time t."""
    if prediction == "noise":
        return noise
    if prediction == "sample":
        return x0
    a, b = schedule.velocity(t)
    return _rows(a, x0) * x0 + _rows(b, x0) * noise


# Every prediction is p = a x0 + b noise, next to x_t = alpha x0 + sigma noise: a 2 x 2 system in (x0, noise).


def to_x0(prediction: Prediction, schedule: Schedule, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Clean action meant by a network's `output` at (x_t, t); undefined for noise at pure noise (alpha = 0)."""
    return x0_from(None if prediction == "sample" else x0_coefficients(prediction, schedule, t), output, x_t)


def x0_coefficients(prediction: Prediction, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """(c, d) of t's shape with x0 = c x_t - d output."""
    (a, b), alpha, sigma = _coefficients(prediction, schedule, t), schedule.alpha(t), schedule.sigma(t)
    determinant = alpha * b - sigma * a
    return b / determinant, sigma / determinant


def x0_from(coefficients: tuple[Tensor, Tensor] | None, output: Tensor, x_t: Tensor) -> Tensor:
    """`to_x0` with the coefficients at hand; None where the output is the clean action."""
    output, x_t = _at_least_float(output), _at_least_float(x_t)
    if coefficients is None:
        return output
    of_state, of_output = coefficients
    return _rows(of_state, x_t) * x_t - _rows(of_output, x_t) * output


def to_noise(prediction: Prediction, schedule: Schedule, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Noise meant by a network's `output` at (x_t, t); undefined for sample at clean data (sigma = 0)."""
    output, x_t = _at_least_float(output), _at_least_float(x_t)
    if prediction == "noise":
        return output
    of_output, of_state = noise_coefficients(prediction, schedule, t)
    return _rows(of_output, x_t) * output - _rows(of_state, x_t) * x_t


def noise_coefficients(prediction: Prediction, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """(c, d) of t's shape with noise = c output - d x_t."""
    (a, b), alpha, sigma = _coefficients(prediction, schedule, t), schedule.alpha(t), schedule.sigma(t)
    determinant = alpha * b - sigma * a
    return alpha / determinant, a / determinant


def _coefficients(prediction: Prediction, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    if prediction == "velocity":
        return schedule.velocity(t)
    alpha = schedule.alpha(t)
    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    return (zero, one) if prediction == "noise" else (one, zero)


def _precise(t: Tensor) -> Tensor:
    return t if t.dtype == torch.float64 else t.float()


def _at_least_float(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _rows(values: Tensor, like: Tensor) -> Tensor:
    """(rows,) shaped to broadcast over like (rows, ...), in like's dtype."""
    return values.to(like.dtype).reshape(-1, *[1] * (like.dim() - 1))


def _uniform(batch: int, generator: torch.Generator | None, device: Any) -> Tensor:
    return torch.rand(batch, generator=generator, device=_source(generator, device)).to(device)


def _source(generator: torch.Generator | None, device: Any) -> Any:
    """Where numbers are drawn: a generator draws on its own device alone."""
    return generator.device if generator is not None else device or "cpu"
