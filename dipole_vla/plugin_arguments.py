"""What a user gives to `Dipole`, checked once: each mistake is an InputError that names the argument."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import Tensor, nn

from dipole_vla.backbones.action import Action, Plain
from dipole_vla.backbones.base import Backbone
from dipole_vla.backbones.own_network import OwnNetwork
from dipole_vla.paths import CosineTable, LinearFlow, Prediction, Schedule
from dipole_vla.solvers import SolverSpec, solve
from navsim_adapter.foundation.errors import InputError, did_you_mean

_OF_A_SCHEDULE = ("alpha", "sigma", "velocity", "sample_t", "network_time", "noise_time", "data_time")


def _usual_solver(schedule: Schedule) -> SolverSpec:
    """Ten steps, or the next fewer that divide a table of times, of what a schedule is usually sampled with."""
    if isinstance(schedule, CosineTable):
        return SolverSpec("ddim", steps=max(steps for steps in range(1, 11) if schedule.steps % steps == 0))
    return SolverSpec("euler" if isinstance(schedule, LinearFlow) else "dpm++2m", steps=10)


def own_network(
    net: nn.Module, given: Mapping[str, Any], action: Action, solver: SolverSpec | None, scope: str
) -> OwnNetwork:
    """The network behind the seam of the families, each argument checked."""
    schedule, encode = given["schedule"], given["encode"] or (lambda _, observation: observation)
    lacking = [name for name in _OF_A_SCHEDULE if not hasattr(schedule, name)]
    if lacking or isinstance(schedule, type):
        raise InputError(f"schedule: must be one such as LinearFlow(noise_at=1), got {schedule!r}")
    for name, value in (("denoise", given["denoise"]), ("encode", encode)):
        if not callable(value):
            raise InputError(f"{name}: must be a function, got {type(value).__name__}")
    require("adapt", given["adapt"], str)
    solver = _usual_solver(schedule) if solver is None else solver
    require("solver", solver, SolverSpec)
    start = torch.zeros(1, *action.shape, dtype=torch.float32, device="cpu")
    solve(solver, schedule, lambda x_t, t: torch.zeros_like(x_t), start)  # a solver of another schedule is named here
    return OwnNetwork(
        net,
        encode,
        given["denoise"],
        schedule,
        one_of("prediction", given["prediction"], get_args(Prediction)),
        action,
        solver,
        {one_of("scope", scope, ("head", "all")): given["adapt"]},
    )


def action_of(shape: tuple[int, ...] | None, action: Action | None) -> Action:
    if shape is None:
        if action is None:
            raise InputError("shape: is not given; say shape=(8, 7) for plain numbers, or action=Poses(...)")
        return require("action", action, Action)
    if action is not None:
        raise InputError("shape, action: give one of them; action has a shape of its own")
    return Plain(shape)


def refuse_given(backbone: Backbone, arguments: Mapping[str, Any]) -> None:
    given = [name for name, value in arguments.items() if value is not None]
    if given:
        raise InputError(f"{given[0]}: a backbone of family {backbone.family} brings its own; leave it out")


def require(name: str, value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        wanted = getattr(kind, "__name__", kind)
        raise InputError(f"{name}: must be a {wanted}, got {type(value).__name__}")
    return value


def one_of(name: str, value: Any, known: tuple[str, ...]) -> Any:
    if value not in known:
        hint = did_you_mean(str(value), list(known))
        raise InputError(f"{name}: must be one of {', '.join(known)}, got {value!r}{hint}")
    return value


def positive(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InputError(f"{name}: must be a number > 0, got {value!r}")
    return value


def finite(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{name}: must be a finite number, got {value!r}")
    return value


def candidates_of(action: Tensor, advantage: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """As (B, K, *shape) and (B, K), float32; without K one per observation is meant."""
    for name, value in (("action", action), ("advantage", advantage)):
        _check_real(name, value)
    if advantage.dim() == 1 and tuple(action.shape) == (len(advantage), *shape):
        action, advantage = action[:, None], advantage[:, None]
    if advantage.dim() != 2 or tuple(action.shape) != (*advantage.shape, *shape) or not advantage.numel():
        wanted = ", ".join(map(str, shape))
        raise InputError(
            f"action, advantage: must be (B, K, {wanted}) and (B, K), or both without K; "
            f"got {tuple(action.shape)} and {tuple(advantage.shape)}"
        )
    return action.float(), advantage.detach().float().to(action.device)


def _check_real(name: str, value: Any) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        found = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"{name}: must be a tensor of real numbers, got {found}")
    if not torch.isfinite(value).all():
        raise InputError(f"{name}: holds NaN or infinity")


def sample_weights(weight: Tensor, advantage: Tensor) -> Tensor:
    """(B, K), checked."""
    _check_real("sample_weight", weight)
    if weight.shape not in (advantage.shape, advantage.shape[:1]) or (weight < 0).any():
        wanted, found = tuple(advantage.shape), tuple(weight.shape)
        raise InputError(f"sample_weight: must be {wanted} numbers >= 0, as the advantage, got shape {found}")
    return weight.float().to(advantage.device).reshape(len(advantage), -1).expand(advantage.shape)


def signs(sign: Tensor, advantage: Tensor) -> Tensor:
    """(B, K), checked; whole numbers do as well as real ones."""
    if not isinstance(sign, Tensor) or sign.shape not in (advantage.shape, advantage.shape[:1]):
        found = tuple(sign.shape) if isinstance(sign, Tensor) else type(sign).__name__
        raise InputError(f"sign: must have the shape of the advantage, {tuple(advantage.shape)}, got {found}")
    neither = sign[(sign != 1) & (sign != -1) & (sign != 0)]
    if len(neither):
        raise InputError(f"sign: must be 1 (positive only), -1 (negative only) or 0, found {neither[0].item():g}")
    return sign.float().to(advantage.device).reshape(len(advantage), -1).expand(advantage.shape)
