"""What a policy may be asked: an argument of `GuidedPolicy.sample` and its like that cannot be meant is an InputError.

Omega's own check is `dipole_vla.guidance.as_omega`.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dipole_vla.guidance import LIMIT, Combination, are_numbers, shown
from dipole_vla.objective import rule_named
from navsim_adapter.foundation.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Guidance(Combination):
    """How the pair is sampled when the caller does not say, and how its predictions are combined (`Combination`).

    omega: greed; 0 = positive policy alone. candidates: plans drawn per scene, of which the critic picks one.
    variants: of each plan, among which the critic picks, too (`navsim_adapter.variants`).
    rule: the weighting rule the pair was trained with (`objective.RULES`); says who takes the negative place.
    """

    omega: float = 1.0
    candidates: int = 1
    variants: int = 0
    rule: str = "dichotomous"

    def __post_init__(self) -> None:
        super().__post_init__()
        rule_named(self.rule, where="guidance.rule")
        if not are_numbers(self.omega) or not abs(self.omega) < LIMIT:
            raise InputError(f"guidance.omega: must be a finite number below {LIMIT:.3g} in size, got {self.omega!r}")
        whole("guidance.candidates", self.candidates)
        whole("guidance.variants", self.variants, 0)


def whole(name: str, value: Any, least: int = 1) -> int:
    """A whole number from `least` on, of Python, numpy or torch."""
    try:
        found = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        found = least - 1
    if found < least or getattr(value, "dtype", None) == torch.bool:
        raise InputError(f"{name}: must be a whole number >= {least}, got {shown(value)}")
    return found


def per_row(omega: Tensor, batch: int, count: int) -> Tensor:
    """(B,) or (B, N) -> (B*N,)."""
    if omega.shape not in ((batch,), (batch, count)):
        raise InputError(f"omega: must be a number, ({batch},) or ({batch}, {count}), got {tuple(omega.shape)}")
    return omega.reshape(batch, -1).expand(batch, count).flatten()


def scenes_in(observation: Any) -> int:
    """Number of scenes B, which is that of every tensor's rows."""
    if not isinstance(observation, Mapping):
        raise InputError(f"observation: must be tensors by name, as the policy's processor, got {_kind(observation)}")
    for name, value in observation.items():
        if not isinstance(value, Tensor):
            raise InputError(f"observation: {name} must be a tensor, got {_kind(value)}")
    shapes = {name: tuple(map(int, getattr(value, "shape", ()))) for name, value in observation.items()}
    rows = {shape[0] if shape else 0 for shape in shapes.values()}
    if len(rows) != 1 or 0 in rows:
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "no tensor"
        raise InputError(f"observation: the first axis must be the scenes, at least one, in every tensor, got {found}")
    return rows.pop()


def misfit(observation: Mapping[str, Tensor], made: Mapping[str, Tensor]) -> str | None:
    """In what an observation differs from one that the policy's processor made; None where names and sizes agree."""
    lacks = [f"has no {name}" for name in made if name not in observation]
    both = {name: observation[name] for name in made if name in observation}
    other = [f"{name} is {_size(value)}" for name, value in both.items() if value.shape[1:] != made[name].shape[1:]]
    if not lacks and not other:
        return None
    makes = ", ".join(f"{name} {_size(value)}" for name, value in made.items())
    return f"{', '.join(lacks or other)}; this policy's processor makes {makes}"


def _size(value: Tensor) -> str:
    """For any number of scenes B."""
    return f"({', '.join(['B', *map(str, value.shape[1:])])})"


def check_generator(generator: Any) -> None:
    if generator is not None and not isinstance(generator, torch.Generator):
        raise InputError(f"generator: must be a torch.Generator, got {_kind(generator)}")


def check_noise(noise: Any, shape: tuple[int, ...]) -> None:
    """Start noise (B, N, horizon, dim): real and finite."""
    _check_real("noise", noise)
    if tuple(noise.shape) != shape:
        raise InputError(f"noise: must have shape {shape} for these scenes, got {tuple(noise.shape)}")
    if not torch.isfinite(noise).all():
        raise InputError("noise: holds NaN or infinity; give standard normal numbers")


def check_plans(plans: Any, scenes: int, horizon: int) -> None:
    """Plans (B, N, horizon, 3): real and finite."""
    _check_real("plans", plans)
    if plans.dim() != 4 or not plans.shape[1] or (plans.shape[0], *plans.shape[2:]) != (scenes, horizon, 3):
        found = tuple(plans.shape)
        raise InputError(f"plans: must have shape ({scenes}, N, {horizon}, 3) for these scenes, got {found}")
    if not torch.isfinite(plans).all():
        raise InputError("plans: hold NaN or infinity; rate finite ones")


def _check_real(name: str, value: Any) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise InputError(f"{name}: must be a tensor of real numbers, got {_kind(value)}")


def _kind(value: Any) -> str:
    return f"one of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
