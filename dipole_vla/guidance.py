"""Combining the two policies at inference (paper Eq. 10): a guided estimate of the clean action for a solver.

No network and no adapter here: `Predict` is any function of (x_t, t, role). Losses are in `dipole_vla.objective`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dipole_vla.paths import Prediction, Schedule, noise_level, time_for_network, to_x0
from navsim_adapter.foundation.errors import InputError

Role = Literal["positive", "negative"] | None
"""Which adapter predicts; None is the base model, adapters off."""
SIGNS: tuple[Literal["positive"], Literal["negative"]] = ("positive", "negative")
"""Names of the adapters and of their folders."""

Omega = float | Tensor | None
"""Greed: one number, one per row, or None for the reference policy (the base model)."""

Predict = Callable[[Tensor, Tensor, Role], Tensor]
"""(x_t (rows, horizon, dim), t (rows,), role) -> the role's native prediction, shape of x_t."""

PredictGuided = Callable[[Tensor, Tensor], Tensor]
"""(x_t, t) -> the guided native prediction itself, where one pass gives it for less than two."""


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


def guided_denoiser(
    predict: Predict,
    schedule: Schedule,
    prediction: Prediction,
    omega: Omega,
    interval: tuple[float, float] = (0.0, 1.0),
    negative: Role = "negative",
    predict_guided: PredictGuided | None = None,
) -> Callable[[Tensor, Tensor], Tensor]:
    """The clean-action estimate of the guided policy, as `dipole_vla.solvers.solve` wants it.

    omega == 0 runs the positive policy only, omega == -1 the negative only: each is that policy bit for bit.
    interval: noise levels (see `paths.noise_level`) in which to guide; elsewhere the positive policy acts alone,
        without a second pass. (0.5, 1) guides the noisier half, the cheap remedy for large omega.
    negative: who takes the negative place; None (the base) for weighting rules that train no negative adapter.
    predict_guided: used where both roles are needed, instead of two calls of `predict`.
    """
    roles = roles_for(omega, negative)

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        at = time_for_network(schedule, t, x_t)
        if len(roles) == 1:
            output = predict(x_t, at, roles[0])
        elif not interval[0] <= float(noise_level(schedule, t[:1])) <= interval[1]:
            output = predict(x_t, at, "positive")
        elif predict_guided is not None:
            output = predict_guided(x_t, at)
        else:
            assert omega is not None
            output = guide(predict(x_t, at, "positive"), predict(x_t, at, negative), omega)
        return to_x0(prediction, schedule, output, x_t, t)

    return denoise
