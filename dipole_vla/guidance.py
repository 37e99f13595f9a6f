"""Combining the two policies at inference (paper Eq. 10): a guided estimate of the clean action for a solver.

No network and no adapter here: `Predict` is any function of (x_t, t, role). Losses are in `dipole_vla.objective`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from dipole_vla.paths import Prediction, Schedule, noise_level, time_for_network, x0_coefficients, x0_from
from navsim_adapter.foundation.errors import InputError, did_you_mean

Role = Literal["positive", "negative"] | None
"""Which adapter predicts; None is the base model, adapters off."""
SIGNS: tuple[Literal["positive"], Literal["negative"]] = ("positive", "negative")
"""Names of the adapters and of their folders."""

Omega = float | Tensor | None
"""Greed: one number, one per row, or None for the reference policy (the base model)."""

Predict = Callable[[Tensor, Tensor, Role], Tensor]
"""(x_t (rows, horizon, dim), t (rows,), role) -> the role's native prediction, shape of x_t."""

PredictBoth = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(x_t, t) -> the native predictions of both roles, where one pass gives them for less than two."""

PredictGuided = Callable[[Tensor, Tensor], Tensor]
"""(x_t, t) -> the guided native prediction itself, of a network that was distilled to give it."""

C = TypeVar("C", bound="Combination")


LIMIT = 2.0**24
"""Omega stays below: from here on 1 + omega is omega in float32, and nothing of the combination is left."""


def as_omega(given: Any) -> Omega:
    """Omega as a float, as a float32 tensor of one axis or more, or None, from numbers of Python, numpy or torch.

    InputError for what is no number (a text, a truth value), not finite or not below `LIMIT` in size.
    """
    if given is None:
        return None
    values = given if isinstance(given, Tensor) else _tensor_of(given)
    if values is None or values.dtype == torch.bool or values.is_complex():
        raise InputError(
            f"omega: must be a number, one per scene or plan, or None for the reference, got {shown(given)}"
        )
    if not (values.abs() < LIMIT).all():
        raise InputError(f"omega: must be finite and below {LIMIT:.3g} in size, got {shown(given)}")
    return values.item() if values.dim() == 0 else values.float()


def shown(given: Any) -> str:
    """For a message: in one line, and not all of a long one."""
    text = " ".join(repr(given).split())
    return text if len(text) <= 80 else f"{text[:80]}…"


def _tensor_of(given: Any) -> Tensor | None:
    try:
        array = np.asarray(given)
    except (TypeError, ValueError):  # rows of unequal lengths
        return None
    return torch.from_numpy(array.astype(np.float64)) if array.dtype.kind in "iuf" else None


def guide(positive: Tensor, negative: Tensor, omega: float | Tensor) -> Tensor:
    """Combine the two policies' predictions at one denoising step (paper Eq. 10).

    The coefficients sum to one, so noise, clean actions and velocities all give the same combination; clamp
    afterwards, never before.

    Returns (1 + omega) positive - omega negative, (rows, ...).

    positive, negative: (rows, ...), in the backbone's own parameterisation.
    omega: greed, a number or (rows,); 0 is the positive policy alone, -1 the negative one.
    """
    if isinstance(omega, Tensor):
        omega = omega.to(positive.dtype).reshape(-1, *[1] * (positive.dim() - 1))
    return (1 + omega) * positive - omega * negative


@dataclass(frozen=True)
class Combination:
    """How the two predictions are combined at each denoising step, beside how greedily.

    Where omega > 0 it is multiplied at each step by the four factors below. Below that nothing is extrapolated and
    nothing changes: omega = 0 is the positive policy bit for bit, omega = -1 the negative one. d is the difference
    positive - negative of a row, in the backbone's own parameterisation, |.| a root mean square over the row, and s
    the noise level in [0, 1] (`paths.noise_level`; 1 is all noise). The defaults change nothing.

    low, high: guide between these noise levels only; elsewhere the positive policy acts alone, in one pass.
        (0.5, 1) is the noisier half. (Limited interval guidance, Kynkaanniemi et al., arXiv 2404.07724.)
    clamp: empty, or (low, high) in normalised action units for the combined clean action, instead of the solver's.
    distance: a >= 0, factor exp(-a |d|^2 / |negative|^2): weaker where the two are far apart, which spares the
        steps that guidance overshoots. (RAAG, arXiv 2508.03442: w = 1 + (w_max - 1) exp(-a ratio), with w = 1 + omega.)
    power: a > -1, factor |d|^a: above 0 stronger where the two differ, weaker where they agree. (Power-law guidance,
        arXiv 2502.07849: omega |d|^a d; that the strength follows the distance at each step is AFIL's, 2605.08434.)
    early: e in [0, 1], factor min(1, (1 - s) / e): rises from 0 at pure noise to 1 at noise level 1 - e. (That the
        earliest steps are the ones to damp: arXiv 2508.03442; the linear rise is ours.)
    decay: c >= 0, factor exp(-c s): full at the clean end, less the noisier. (C2FG, arXiv 2603.08155:
        omega(t) = omega_0 exp(-c t).)
    """

    low: float = 0.0
    high: float = 1.0
    clamp: tuple[float, ...] = ()
    distance: float = 0.0
    power: float = 0.0
    early: float = 0.0
    decay: float = 0.0

    def __post_init__(self) -> None:
        if not are_numbers(self.low, self.high) or not 0 <= self.low < self.high <= 1:
            raise InputError(f"guidance.low, high: must be 0 <= low < high <= 1, got {self.low!r}, {self.high!r}")
        ordered = isinstance(self.clamp, tuple) and len(self.clamp) == 2 and are_numbers(*self.clamp)
        if self.clamp != () and not (ordered and self.clamp[0] < self.clamp[1]):
            raise InputError(f"guidance.clamp: must be empty or (low, high) with low < high, got {self.clamp!r}")
        for name, is_inside, bounds in (
            ("distance", lambda value: value >= 0, ">= 0"),
            ("power", lambda value: value > -1, "> -1"),
            ("early", lambda value: 0 <= value <= 1, "from 0 to 1"),
            ("decay", lambda value: value >= 0, ">= 0"),
        ):
            value = getattr(self, name)
            if not are_numbers(value) or not math.isfinite(value) or not is_inside(value):
                raise InputError(f"guidance.{name}: must be a number {bounds}, got {value!r}")

    @property
    def shaped(self) -> tuple[str, ...]:
        """The keys by which omega changes from step to step; empty where it is constant."""
        return tuple(name for name in ("distance", "power", "early", "decay") if getattr(self, name))

    def guides_at(self, level: float) -> bool:
        return self.low <= level <= self.high

    def combine(self, positive: Tensor, negative: Tensor, omega: float | Tensor, level: float) -> Tensor:
        """The guided prediction of rows (rows, ...) at one noise level; arguments as `guide`."""
        return guide(positive, negative, self._strength(positive, negative, omega, level) if self.shaped else omega)

    def _strength(self, positive: Tensor, negative: Tensor, omega: float | Tensor, level: float) -> Tensor:
        """(rows,) what omega counts at this step."""
        squares = (positive - negative).flatten(1).pow(2).mean(1)
        early = min(1.0, (1 - level) / self.early) if self.early else 1.0
        factor = squares.new_tensor(math.exp(-self.decay * level) * early)
        tiny = torch.finfo(squares.dtype).tiny
        if self.distance:
            factor = factor * torch.exp(-self.distance * squares / negative.flatten(1).pow(2).mean(1).clamp_min(tiny))
        if self.power:
            factor = factor * squares.clamp_min(tiny).pow(self.power / 2)
        omega = torch.as_tensor(omega, dtype=squares.dtype, device=squares.device).expand_as(squares)
        return torch.where(omega > 0, omega * factor, omega)


SWEPT = tuple(field.name for field in fields(Combination))
"""Keys of `Combination`: what a way of guidance may set without a new policy."""


def adjusted(own: C, given: Mapping[str, Any], where: str = "guidance") -> C:
    """`own` with the keys of `given` replaced; InputError for an unknown key or a value out of range."""
    if not isinstance(given, Mapping):
        raise InputError(f"{where}: must be a mapping of {', '.join(SWEPT)}, got {shown(given)}")
    for name in given:
        if name not in SWEPT:
            hint = did_you_mean(str(name), list(SWEPT))
            raise InputError(f"{where}: {shown(name)} is not one of {', '.join(SWEPT)}{hint}")
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return replace(own, **values)


def label(given: Mapping[str, Any]) -> str:
    """A short name for a way of guidance: "low 0.5, power 1"; empty where nothing is given."""
    return ", ".join(f"{name} {_short(given[name])}" for name in SWEPT if name in given)


def _short(value: Any) -> str:
    return " to ".join(f"{part:g}" for part in value) or "none" if isinstance(value, list | tuple) else f"{value:g}"


def are_numbers(*values: Any) -> bool:
    """Whether all are Python's own numbers, as a file of settings holds them."""
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def roles_for(omega: Omega, negative: Role = "negative") -> tuple[Role, ...]:
    """The roles whose predictions omega needs: one where the other would be multiplied by zero."""
    if omega is None:
        return (None,)
    values = omega if isinstance(omega, Tensor) else torch.tensor(float(omega))
    if not torch.isfinite(values).all():
        raise InputError(f"omega: must be finite, got {omega}")
    if (values == 0).all():
        return ("positive",)
    return (negative,) if (values == -1).all() else ("positive", negative)


@dataclass(frozen=True)
class Moment:
    """What guidance takes from the schedule at one time, fixed before the loop where that is to compute none of it.

    at: (rows,) or (1,) the time as the network is given it. level: the noise level, where two roles are combined.
    parts: of the clean action, see `paths.x0_from`.
    """

    at: Tensor
    level: float | None
    parts: tuple[Tensor, Tensor] | None


def moment_of(schedule: Schedule, prediction: Prediction, t: Tensor, x_t: Tensor, is_combined: bool = True) -> Moment:
    """t: (rows,) or (1,). x_t: only its dtype counts."""
    level = float(noise_level(schedule, t[:1])) if is_combined else None
    parts = None if prediction == "sample" else x0_coefficients(prediction, schedule, t)
    return Moment(time_for_network(schedule, t, x_t), level, parts)


def guided_estimator(
    predict: Predict,
    omega: Omega,
    roles: tuple[Role, ...],
    combination: Combination,
    predict_both: PredictBoth | None = None,
    predict_guided: PredictGuided | None = None,
) -> Callable[[Tensor, Moment], Tensor]:
    """(x_t, moment) -> clean action; arguments as `guided_denoiser`, with one role or two that are combined."""

    def both(x_t: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        first, second = (predict(x_t, at, role) for role in roles)
        return first, second

    def output(x_t: Tensor, at: Tensor, level: float | None) -> Tensor:
        if level is None:
            return predict(x_t, at, roles[0])
        if not combination.guides_at(level):
            return predict(x_t, at, "positive")
        if predict_guided is not None:
            return predict_guided(x_t, at)
        assert omega is not None
        return combination.combine(*(predict_both or both)(x_t, at), omega, level)

    def estimate(x_t: Tensor, moment: Moment) -> Tensor:
        level = moment.level if len(roles) == 2 else None
        return x0_from(moment.parts, output(x_t, moment.at.expand(len(x_t)), level), x_t)

    return estimate


def guided_denoiser(
    predict: Predict,
    schedule: Schedule,
    prediction: Prediction,
    omega: Omega,
    combination: Combination | None = None,
    negative: Role = "negative",
    predict_both: PredictBoth | None = None,
    predict_guided: PredictGuided | None = None,
) -> Callable[[Tensor, Tensor], Tensor]:
    """The clean-action estimate of the guided policy, as `dipole_vla.solvers.solve` wants it.

    omega == 0 runs the positive policy only, omega == -1 the negative only: each is that policy bit for bit.
    combination: see the class; outside its noise levels the positive policy acts alone, without a second pass.
    negative: who takes the negative place; None (the base) for weighting rules that train no negative adapter.
    predict_both, predict_guided: used where both roles are needed, instead of two calls of `predict`.
    """
    roles = roles_for(omega, negative)
    estimate = guided_estimator(predict, omega, roles, combination or Combination(), predict_both, predict_guided)

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        return estimate(x_t, moment_of(schedule, prediction, t, x_t, len(roles) == 2))

    return denoise
