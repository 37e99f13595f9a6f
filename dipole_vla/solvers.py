"""Solvers: from noise to a clean action, given something that estimates the clean action at (x_t, t).

`solve` is the entry; `SOLVERS` is the table. A solver never sees a network, a prediction kind or an adapter: it
calls `denoise(x_t, t) -> x0`, which `dipole_vla.guidance` builds. Clipping acts on that combined estimate, never on
one policy's. All that follows from the schedule alone is fixed before the loop (`step_table`), in float64 whatever
the state's dtype; the loop itself (`walk`) only multiplies and adds, so that it can leave PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from dipole_vla.guidance import LIMIT
from dipole_vla.paths import CosineTable, LinearFlow, Schedule, VPLinear, log_snr, noise_coefficients
from navsim_adapter.foundation.errors import InputError

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x_t (rows, horizon, dim), t (rows,)) -> clean estimate of x_t's shape."""

T = TypeVar("T")


class Step(NamedTuple, Generic[T]):
    """One evaluation, and the move after it.

    t: when; a number () of the schedule. A solver hands it to `denoise` and never looks at it.
    numbers: what the move multiplies by; their meaning is the solver's.
    """

    t: T
    numbers: tuple[float, ...] = ()


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
        for name in ("start_scale", "eta", "std_floor", "noise_clip"):
            _check_scale(f"solver.{name}", getattr(self, name))
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
        """Other start noise; InputError below 0, and where an action is lost beside it."""
        _check_scale("start_scale", scale)
        return replace(self, start_scale=float(scale))


def _check_scale(name: str, scale: Any) -> None:
    """A standard deviation that float32 can add to a normalised action."""
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 <= scale < LIMIT:
        hint = "; 0 gives one plan, 1 is standard normal" if name.endswith("start_scale") else ""
        raise InputError(f"{name}: must be a number from 0 to below {LIMIT:.3g}, got {scale!r}{hint}")


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
    steps = step_table(spec, schedule, noise.device)
    return walk(spec, steps, lambda x_t, t: denoise(x_t, t.expand(x_t.shape[0])), noise, generator)


def step_table(spec: SolverSpec, schedule: Schedule, device: torch.device | str = "cpu") -> list[Step[Tensor]]:
    """All evaluations in order, their times on `device`; InputError where solver and schedule do not fit."""
    times, numbers = SOLVERS[spec.name].table(spec, schedule)
    return [Step(t, row) for t, row in zip(times.to(device), numbers)]


def walk(
    spec: SolverSpec,
    steps: Sequence[Step[T]],
    denoise: Callable[[Tensor, T], Tensor],
    noise: Tensor,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The loop of `solve` over a table of `step_table`, whose times may have been replaced by what denoise takes."""

    def clamped(x: Tensor) -> Tensor:
        return x.clamp(*spec.clamp) if spec.clamp else x

    def estimate(x_t: Tensor, t: T) -> Tensor:
        x0 = denoise(x_t, t)
        return clamped(x0) if spec.clamp_at == "estimate" else x0

    return clamped(SOLVERS[spec.name].walk(spec, steps, estimate, noise * spec.start_scale, generator))


Table = tuple[Tensor, Iterable[tuple[float, ...]]]
"""(times (evaluations,), the numbers of each)."""


def _ddim_table(spec: SolverSpec, schedule: Schedule) -> Table:
    """Equal strides of the table's times down to 0, e.g. 80, 60, 40, 20, 0 for 5 of 100.

    Sampling starts from unit noise at the first of these, not at the table's noisiest time (as the published
    planners do). Numbers: the noise from estimate and state, the next state from estimate and noise, fresh noise.
    """
    if not isinstance(schedule, CosineTable):
        raise InputError(f"solver ddim: needs a discrete schedule, got {type(schedule).__name__}; use dpm++2m or euler")
    if schedule.steps % spec.steps:
        raise InputError(f"solver.steps: must divide the schedule's {schedule.steps} times, got {spec.steps}")
    times = torch.arange(0, schedule.steps, schedule.steps // spec.steps).flip(0)
    before = schedule.alpha_bar[times]
    after = torch.cat([before[1:], torch.ones_like(before[:1])])
    std = spec.eta * ((1 - after) / (1 - before) * (1 - before / after)).sqrt()
    direction = (1 - after - std**2).clamp_min(0).sqrt()
    fresh = [max(each, spec.std_floor) for each in std.tolist()]
    return times, zip(*_listed(*noise_coefficients("sample", schedule, times), after.sqrt(), direction), fresh)


def _ddim(spec: SolverSpec, steps: Sequence[Step[T]], denoise: Any, x: Tensor, generator: Any) -> Tensor:
    """The noise is derived again from the clamped clean estimate."""
    for t, (from_estimate, from_state, signal, direction, std) in steps:
        x0 = denoise(x, t)
        x = signal * x0 + direction * (from_estimate * x0 - from_state * x)
        if spec.eta or spec.std_floor:
            x = x + std * _fresh(x, spec.noise_clip, generator)
    return x


def _fresh(like: Tensor, clip: float, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else like.device
    noise = torch.randn(like.shape, generator=generator, dtype=like.dtype, device=device).to(like.device)
    return noise.clamp(-clip, clip) if clip else noise


def _dpm_table(spec: SolverSpec, schedule: Schedule) -> Table:
    """Steps uniform in log(alpha / sigma), then one evaluation at the clean end.

    The first step is of order 1; so is the last, if there are fewer than 10 steps (as in DP-VLA's code).
    Numbers: what of the latest change is extrapolated, the next state from state and estimate.
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
    alphas, sigmas = _listed(schedule.alpha(times), schedule.sigma(times))
    shrink = -torch.expm1(torch.tensor(-float(levels[1] - levels[0]), dtype=torch.float64)).item()
    second = range(1, spec.steps if spec.steps >= 10 else spec.steps - 1)
    ahead = [0.5 if step in second else 0.0 for step in range(spec.steps)]  # a plain extrapolation: steps are equal
    kept = [after / before for before, after in pairwise(sigmas)]
    return times, [*zip(ahead, kept, (alpha * shrink for alpha in alphas[1:])), ()]


def _dpm_solver_2m(spec: SolverSpec, steps: Sequence[Step[T]], denoise: Any, x: Tensor, generator: Any) -> Tensor:
    """DPM-Solver++, multistep, order 2."""
    previous = x
    for t, (ahead, kept, added) in steps[:-1]:
        x0 = denoise(x, t)
        estimate = (1 + ahead) * x0 - ahead * previous if ahead else x0
        x = kept * x + added * estimate
        previous = x0
    return denoise(x, steps[-1].t)


def _euler_table(spec: SolverSpec, schedule: Schedule) -> Table:
    """Steps equal in t, or as the flow shifts them, from the noise end to the data end.

    Numbers: the noise from estimate and state, the velocity from estimate and noise, the step's length.
    """
    if not isinstance(schedule, LinearFlow):
        raise InputError(f"solver euler: needs a linear flow, got {type(schedule).__name__}; use dpm++2m or ddim")
    times = _equal_times(spec, schedule)
    starts, lengths = times[:-1], times[1:] - times[:-1]
    found = _listed(*noise_coefficients("sample", schedule, starts), *schedule.velocity(starts), lengths)
    return starts, zip(*found)


def _euler(spec: SolverSpec, steps: Sequence[Step[T]], denoise: Any, x: Tensor, generator: Any) -> Tensor:
    """Euler steps of the flow's velocity."""
    for t, (from_estimate, from_state, a, b, length) in steps:
        x0 = denoise(x, t)
        x = x + length * (a * x0 + b * (from_estimate * x0 - from_state * x))
    return x


def _renoise_table(spec: SolverSpec, schedule: Schedule) -> Table:
    """Times equal from the noise end, without the data end. Numbers: alpha and sigma."""
    times = _equal_times(spec, schedule)[:-1]
    return times, zip(*_listed(schedule.alpha(times), schedule.sigma(times)))


def _renoise(spec: SolverSpec, steps: Sequence[Step[T]], denoise: Any, x: Tensor, generator: Any) -> Tensor:
    """X-VLA's sampler: each step goes back to t with the *first* noise around the latest clean estimate.

    Not Euler, which would use the noise implied by the estimate; they agree only if the estimate never changes.
    """
    x0 = torch.zeros_like(x)
    for t, (alpha, sigma) in steps:
        x0 = denoise(alpha * x0 + sigma * x, t)
    return x0


def _equal_times(spec: SolverSpec, schedule: Schedule) -> Tensor:
    """(steps + 1,) float64, from the noise end to the data end; moved where the schedule is a shifted flow."""
    times = torch.linspace(schedule.noise_time, schedule.data_time, spec.steps + 1, dtype=torch.float64)
    return schedule.shifted(times) if isinstance(schedule, LinearFlow) else times


def _listed(*columns: Tensor) -> list[list[float]]:
    return [column.tolist() for column in columns]


class Solver(NamedTuple):
    """table: (spec, schedule) -> times and numbers. walk: (spec, steps, denoise, scaled noise, generator) -> action."""

    table: Callable[[SolverSpec, Schedule], Table]
    walk: Callable[[SolverSpec, Sequence[Step[Any]], Any, Tensor, Any], Tensor]


SOLVERS: dict[str, Solver] = {
    "ddim": Solver(_ddim_table, _ddim),
    "dpm++2m": Solver(_dpm_table, _dpm_solver_2m),
    "euler": Solver(_euler_table, _euler),
    "renoise": Solver(_renoise_table, _renoise),
}
