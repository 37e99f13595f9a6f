"""Solvers: from noise to a clean action, given something that estimates the clean action at (x_t, t).

`solve` is the entry; `SOLVERS` is the table. A solver never sees a network, a prediction kind or an adapter: it
calls `denoise(x_t, t) -> x0`, which `dipole_vla.guidance` builds. Clipping acts on that combined estimate, never on
one policy's. Coefficients are float64 whatever the state's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from dipole_vla.paths import CosineTable, LinearFlow, Schedule, VPLinear, interpolate, log_snr, to_noise
from navsim_adapter.foundation.errors import InputError

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x_t (rows, horizon, dim), t (rows,)) -> clean estimate of x_t's shape."""


@dataclass(frozen=True)
class SolverSpec:
    """How a backbone is sampled: data, stored with its checkpoint.

    steps: solver steps; "dpm++2m" makes one more evaluation at the clean end (denoise to zero).
    start_scale: standard deviation of the start noise; 0 starts at its mean, which gives one plan.
    clamp: empty, or (low, high) in normalised action units, applied to the combined clean action.
    clamp_at: "estimate" clamps every clean estimate and the answer, "end" the answer alone.
    eta, std_floor, noise_clip: DDIM's fresh noise; 0, 0, 0 is the deterministic sampler.
    """

    name: Literal["ddim", "dpm++2m", "euler", "renoise"] = "dpm++2m"
    steps: int = 10
    start_scale: float = 1.0
    clamp: tuple[float, ...] = ()
    clamp_at: Literal["estimate", "end"] = "estimate"
    eta: float = 0.0
    std_floor: float = 0.0
    noise_clip: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in SOLVERS:
            raise InputError(f"solver.name: must be one of {', '.join(SOLVERS)}, got {self.name!r}")
        if self.steps < 1:
            raise InputError(f"solver.steps: must be >= 1, got {self.steps}")
        if not 0 <= self.start_scale < math.inf:
            raise InputError(f"solver.start_scale: must be >= 0, got {self.start_scale}; 1 is the textbook start")
        if self.clamp and not (len(self.clamp) == 2 and self.clamp[0] < self.clamp[1]):
            raise InputError(f"solver.clamp: must be empty or (low, high) with low < high, got {self.clamp}")
        if self.clamp_at not in ("estimate", "end"):
            raise InputError(f"solver.clamp_at: must be estimate or end, got {self.clamp_at!r}")

    @property
    def is_random(self) -> bool:
        """Whether two draws of the start noise can give two actions."""
        return bool(self.start_scale or self.eta or self.std_floor)

    def with_steps(self, steps: int | None) -> SolverSpec:
        return self if steps is None else replace(self, steps=steps)

    def with_start(self, scale: float) -> SolverSpec:
        """Other start noise; InputError below 0."""
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 <= scale < math.inf:
            raise InputError(
                f"start_scale: must be a number >= 0, got {scale!r}; 0 gives one plan, 1 is standard normal"
            )
        return replace(self, start_scale=float(scale))


def solve(
    spec: SolverSpec,
    schedule: Schedule,
    denoise: Denoise,
    noise: Tensor,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Clean actions, shape of `noise` (rows, horizon, dim): standard normal, scaled here by `spec.start_scale`.

    generator: only for solvers with fresh noise (DDIM with eta or std_floor above zero).
    """

    def clamped(x: Tensor) -> Tensor:
        return x.clamp(*spec.clamp) if spec.clamp else x

    def estimate(x_t: Tensor, t: Tensor) -> Tensor:
        x0 = denoise(x_t, t.expand(x_t.shape[0]))
        return clamped(x0) if spec.clamp_at == "estimate" else x0

    return clamped(SOLVERS[spec.name](spec, schedule, estimate, noise * spec.start_scale, generator))


def ddim(spec: SolverSpec, schedule: Schedule, denoise: Denoise, x: Tensor, generator: Any = None) -> Tensor:
    """DDIM over the table's times at equal strides down to 0, e.g. 80, 60, 40, 20, 0 for 5 of 100.

    Sampling starts from unit noise at the first of these, not at the table's noisiest time (as the published
    planners do). The noise is derived again from the clamped clean estimate.
    """
    if not isinstance(schedule, CosineTable):
        raise InputError(f"solver ddim: needs a discrete schedule, got {type(schedule).__name__}; use dpm++2m or euler")
    if schedule.steps % spec.steps:
        raise InputError(f"solver.steps: must divide the schedule's {schedule.steps} times, got {spec.steps}")
    times = torch.arange(0, schedule.steps, schedule.steps // spec.steps).flip(0)
    for step, t in enumerate(times.to(x.device)):
        x0 = denoise(x, t)
        noise = to_noise("sample", schedule, x0, x, t.expand(x.shape[0]))
        before = schedule.alpha_bar[t]
        after = schedule.alpha_bar[times[step + 1]] if step + 1 < len(times) else torch.ones_like(before)
        std = spec.eta * ((1 - after) / (1 - before) * (1 - before / after)).sqrt()
        direction = (1 - after - std**2).clamp_min(0).sqrt()
        x = float(after.sqrt()) * x0 + float(direction) * noise
        if spec.eta or spec.std_floor:
            x = x + max(float(std), spec.std_floor) * _fresh(x, spec.noise_clip, generator)
    return x


def _fresh(like: Tensor, clip: float, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else like.device
    noise = torch.randn(like.shape, generator=generator, dtype=like.dtype, device=device).to(like.device)
    return noise.clamp(-clip, clip) if clip else noise


def dpm_solver_2m(spec: SolverSpec, schedule: Schedule, denoise: Denoise, x: Tensor, generator: Any = None) -> Tensor:
    """DPM-Solver++, multistep, order 2, on steps uniform in log(alpha / sigma), then one evaluation at the clean end.

    The first step is of order 1; so is the last, if there are fewer than 10 steps (as in DP-VLA's code).
    """
    if not isinstance(schedule, VPLinear | LinearFlow):
        raise InputError(f"solver dpm++2m: needs a continuous schedule, got {type(schedule).__name__}; use ddim")
    ends = torch.tensor([schedule.noise_time, schedule.data_time], dtype=torch.float64)
    if isinstance(schedule, LinearFlow):  # its ends have infinite log-SNR
        ends = ends.clamp(1e-3, 1 - 1e-3)
    first, last = log_snr(schedule, ends)
    levels = torch.linspace(float(first), float(last), spec.steps + 1, dtype=torch.float64)
    times = schedule.time_of(levels)
    times[0], times[-1] = ends
    alphas, sigmas = schedule.alpha(times).tolist(), schedule.sigma(times).tolist()
    times, step_size = times.to(x.device), float(levels[1] - levels[0])
    shrink = -torch.expm1(torch.tensor(-step_size, dtype=torch.float64)).item()
    previous = None
    for step in range(spec.steps):
        x0 = denoise(x, times[step])
        is_last_of_few = step == spec.steps - 1 and spec.steps < 10
        # equal steps, so the second-order estimate is a plain extrapolation
        estimate = x0 if previous is None or is_last_of_few else 1.5 * x0 - 0.5 * previous
        x = sigmas[step + 1] / sigmas[step] * x + alphas[step + 1] * shrink * estimate
        previous = x0
    return denoise(x, times[-1])


def euler(spec: SolverSpec, schedule: Schedule, denoise: Denoise, x: Tensor, generator: Any = None) -> Tensor:
    """Euler steps of the flow's velocity, equal in t, from the noise end to the data end."""
    if not isinstance(schedule, LinearFlow):
        raise InputError(f"solver euler: needs a linear flow, got {type(schedule).__name__}; use dpm++2m or ddim")
    for t, after in pairwise(_equal_times(spec, schedule, x.device)):
        x0 = denoise(x, t)
        noise = to_noise("sample", schedule, x0, x, t.expand(x.shape[0]))
        a, b = (float(coefficient) for coefficient in schedule.velocity(t))
        x = x + float(after - t) * (a * x0 + b * noise)
    return x


def renoise(spec: SolverSpec, schedule: Schedule, denoise: Denoise, x: Tensor, generator: Any = None) -> Tensor:
    """X-VLA's sampler: each step goes back to t with the *first* noise around the latest clean estimate.

    Not Euler, which would use the noise implied by the estimate; they agree only if the estimate never changes.
    """
    x0 = torch.zeros_like(x)
    for t in _equal_times(spec, schedule, x.device)[:-1]:
        x0 = denoise(interpolate(schedule, x0, x, t.expand(x.shape[0])), t)
    return x0


def _equal_times(spec: SolverSpec, schedule: Schedule, device: torch.device) -> Tensor:
    """(steps + 1,) float64, from the noise end to the data end."""
    times = torch.linspace(schedule.noise_time, schedule.data_time, spec.steps + 1, dtype=torch.float64)
    return times.to(device)


SOLVERS: dict[str, Callable[[SolverSpec, Schedule, Denoise, Tensor, Any], Tensor]] = {
    "ddim": ddim,
    "dpm++2m": dpm_solver_2m,
    "euler": euler,
    "renoise": renoise,
}
