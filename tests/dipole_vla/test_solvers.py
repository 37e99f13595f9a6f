"""Solvers, against oracles, closed-form ODE solutions and a second implementation."""

from __future__ import annotations

import math

import pytest
import torch

from dipole_vla.paths import CosineTable, LinearFlow, VPLinear, log_snr
from dipole_vla.solvers import SOLVERS, SolverSpec, solve, step_table, walk
from navsim_adapter.foundation.errors import InputError

CASES = {
    "dpm++2m": (SolverSpec("dpm++2m", 10), VPLinear()),
    "dpm++2m on a flow": (SolverSpec("dpm++2m", 10), LinearFlow(noise_at=0)),
    "ddim": (SolverSpec("ddim", 5), CosineTable()),
    "ddim, clamped": (SolverSpec("ddim", 5, clamp=(-3.0, 3.0)), CosineTable()),
    "euler, noise at 1": (SolverSpec("euler", 10), LinearFlow(noise_at=1)),
    "euler, noise at 0": (SolverSpec("euler", 5), LinearFlow(noise_at=0)),
    "renoise": (SolverSpec("renoise", 10), LinearFlow(noise_at=1)),
}


def noise_of(rows=5, dtype=torch.float64):
    return torch.randn(rows, 8, 4, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("name", CASES)
def test_an_oracle_gives_the_data(name):
    spec, schedule = CASES[name]
    x0 = noise_of() * 0.5
    result = solve(spec, schedule, lambda x_t, t: x0, noise_of())
    torch.testing.assert_close(result, x0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_the_loop_never_looks_at_a_time(name):
    """It hands on what the table holds in its place, so all that follows from a time can be fixed before."""
    spec, schedule = CASES[name]
    table = step_table(spec, schedule)
    ends, seen = [], []
    wanted = solve(spec, schedule, lambda x, t: ends.append(t[0]) or torch.tanh(x), noise_of())
    named = [step._replace(t=f"step {index}") for index, step in enumerate(table)]
    assert torch.equal(walk(spec, named, lambda x, t: seen.append(t) or torch.tanh(x), noise_of()), wanted)
    assert seen == [f"step {index}" for index in range(len(table))]
    assert torch.equal(torch.stack(ends), torch.stack([step.t for step in table]))


def gaussian_denoiser(schedule, mean, std):
    """E[x0 | x_t] for data N(mean, std^2)."""

    def denoise(x_t, t):
        alpha, sigma = schedule.alpha(t)[:, None, None], schedule.sigma(t)[:, None, None]
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        return mean + gain * (x_t - alpha * mean)

    return denoise


def exact_end(schedule, noise, mean, std):
    """The probability-flow ODE keeps (x - alpha mean) / sqrt(alpha^2 std^2 + sigma^2); then the clean estimate."""
    ends = torch.tensor([schedule.noise_time, schedule.data_time], dtype=torch.float64)
    alpha, sigma = schedule.alpha(ends), schedule.sigma(ends)
    spread = (alpha**2 * std**2 + sigma**2).sqrt()
    end = alpha[1] * mean + (noise - alpha[0] * mean) / spread[0] * spread[1]
    return gaussian_denoiser(schedule, mean, std)(end, ends[1:].expand(len(noise)))


def test_dpm_solver_converges_with_order_two_to_the_closed_form():
    schedule, mean, std = VPLinear(), 1.5, 0.4
    wanted = exact_end(schedule, noise_of(), mean, std)
    errors = []
    for steps in (20, 40, 80):
        found = solve(SolverSpec("dpm++2m", steps), schedule, gaussian_denoiser(schedule, mean, std), noise_of())
        errors.append((found - wanted).abs().max().item())
    assert errors[-1] < 2e-3
    assert errors[0] / errors[1] > 3
    assert errors[1] / errors[2] > 3


@pytest.mark.parametrize("steps", [1, 2, 5, 9, 10, 12])
def test_dpm_solver_equals_the_general_multistep_formula(steps):
    """Second implementation: arbitrary step ratios, exponential integrator terms, explicit order of each step."""
    schedule = VPLinear()
    denoise = gaussian_denoiser(schedule, 0.7, 0.5)
    levels = torch.linspace(*log_snr(schedule, torch.tensor([1.0, 1e-3], dtype=torch.float64)).tolist(), steps + 1)
    grid = schedule.time_of(levels.double())
    x, models, lambdas = noise_of(), [], []
    for i in range(steps):
        s, t = grid[i], grid[i + 1]
        models.append(denoise(x, s.expand(len(x))))
        lambdas.append(log_snr(schedule, s[None])[0])
        h = log_snr(schedule, t[None])[0] - lambdas[-1]
        order = 1 if i == 0 or (steps < 10 and i == steps - 1) else 2
        x = schedule.sigma(t) / schedule.sigma(s) * x - schedule.alpha(t) * torch.expm1(-h) * models[-1]
        if order == 2:
            ratio = (lambdas[-1] - lambdas[-2]) / h
            x = x - 0.5 * schedule.alpha(t) * torch.expm1(-h) * (models[-1] - models[-2]) / ratio
    wanted = denoise(x, grid[-1].expand(len(x)))
    found = solve(SolverSpec("dpm++2m", steps), schedule, denoise, noise_of())
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)  # the reference grid is float32


def test_dpm_solver_evaluates_once_more_at_the_clean_end():
    seen = []
    solve(SolverSpec("dpm++2m", 10), VPLinear(), lambda x, t: seen.append(t[0].item()) or x, noise_of())
    assert len(seen) == 11
    assert seen[0] == 1.0
    assert seen[-1] == pytest.approx(1e-3)


def test_ddim_visits_the_published_times():
    seen = []
    solve(SolverSpec("ddim", 5), CosineTable(), lambda x, t: seen.append(int(t[0])) or x, noise_of())
    assert seen == [80, 60, 40, 20, 0]


def test_stochastic_ddim_is_reproducible_and_ends_within_its_floor():
    spec = SolverSpec("ddim", 5, clamp=(-1.0, 1.0), eta=1.0, std_floor=1e-4, noise_clip=1.0)
    x0 = torch.full((5, 8, 4), 0.25, dtype=torch.float64)
    runs = [
        solve(spec, CosineTable(), lambda x, t: x0, noise_of(), torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert (runs[0] - x0).abs().max() <= 1e-4


@pytest.mark.parametrize("noise_at", [0, 1])
def test_euler_follows_the_flow_in_either_direction(noise_at):
    schedule, mean, std = LinearFlow(noise_at=noise_at), 0.5, 0.3
    found = solve(SolverSpec("euler", 400), schedule, gaussian_denoiser(schedule, mean, std), noise_of())
    torch.testing.assert_close(found, mean + std * noise_of(), rtol=0, atol=0.02)


def test_renoise_keeps_the_first_noise_and_is_not_euler():
    schedule, noise = LinearFlow(noise_at=1), noise_of()
    inputs = []

    def denoise(x_t, t):
        inputs.append((t[0].item(), x_t))
        return 0.3 * x_t

    result = solve(SolverSpec("renoise", 4), schedule, denoise, noise)
    estimate = torch.zeros_like(noise)
    for (t, x_t), expected_t in zip(inputs, (1.0, 0.75, 0.5, 0.25)):
        assert t == expected_t
        torch.testing.assert_close(x_t, t * noise + (1 - t) * estimate)
        estimate = 0.3 * x_t
    assert torch.equal(result, estimate)
    assert not torch.allclose(result, solve(SolverSpec("euler", 4), schedule, denoise, noise), atol=1e-2)


def test_start_noise_is_scaled_and_coefficients_stay_precise_in_half_precision():
    starts = []
    solve(SolverSpec("dpm++2m", 2, start_scale=0.5), VPLinear(), lambda x, t: starts.append((x, t)) or x, noise_of())
    torch.testing.assert_close(starts[0][0], 0.5 * noise_of())
    assert starts[0][1].dtype == torch.float64


def test_clamp_acts_on_every_estimate():
    seen = []

    def denoise(x_t, t):
        seen.append(x_t.abs().max().item())
        return torch.full_like(x_t, 100.0)

    result = solve(SolverSpec("dpm++2m", 10, clamp=(-2.0, 2.0)), VPLinear(), denoise, noise_of())
    assert result.max() == 2.0
    assert max(seen) < 10


@pytest.mark.parametrize("name", ["euler", "renoise", "dpm++2m"])
def test_clamp_at_the_end_leaves_the_estimates_alone(name):
    """As ReCogDrive's flow variant: the answer is the unclamped run's, clamped."""
    schedule = LinearFlow(noise_at=0)

    def denoise(x_t, t):
        return 3 * torch.ones_like(x_t) - 0.1 * x_t

    free = solve(SolverSpec(name, 5), schedule, denoise, noise_of())
    late = solve(SolverSpec(name, 5, clamp=(-1.0, 2.0), clamp_at="end"), schedule, denoise, noise_of())
    early = solve(SolverSpec(name, 5, clamp=(-1.0, 2.9)), schedule, denoise, noise_of())
    assert free.max() > 2.0
    assert torch.equal(late, free.clamp(-1.0, 2.0))
    assert not torch.allclose(early, free.clamp(-1.0, 2.9))


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"clamp_at": "start"}, "solver.clamp_at"),
        ({"name": "heun"}, "solver.name"),
        ({"steps": 0}, "solver.steps"),
        ({"start_scale": math.nan}, "solver.start_scale"),
        ({"start_scale": 1e38}, "solver.start_scale"),  # an action is lost beside it
        ({"eta": -1.0}, "solver.eta"),
        ({"std_floor": math.nan}, "solver.std_floor"),
        ({"noise_clip": math.inf}, "solver.noise_clip"),
        ({"clamp": (1.0, -1.0)}, "solver.clamp"),
    ],
)
def test_a_bad_spec_names_its_field(options, names):
    with pytest.raises(InputError, match=names):
        SolverSpec(**options)


def test_a_solver_refuses_a_schedule_it_cannot_walk():
    with pytest.raises(InputError, match="ddim"):
        solve(SolverSpec("ddim"), VPLinear(), lambda x, t: x, noise_of())
    with pytest.raises(InputError, match="euler"):
        solve(SolverSpec("euler"), CosineTable(), lambda x, t: x, noise_of())
    with pytest.raises(InputError, match="dpm"):
        solve(SolverSpec("dpm++2m"), CosineTable(), lambda x, t: x, noise_of())
    assert set(SOLVERS) == {"ddim", "dpm++2m", "euler", "renoise"}
