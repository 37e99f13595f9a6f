"""Guidance: exact on densities, the same in every parameterisation, exact at its ends."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from dipole_vla.guidance import Combination, adjusted, guide, guided_denoiser, label, roles_for
from dipole_vla.objective import negative_weight, positive_weight
from dipole_vla.paths import CosineTable, LinearFlow, VPLinear, interpolate, target, to_x0
from dipole_vla.solvers import SolverSpec, solve
from navsim_adapter.foundation.errors import InputError

GRID = torch.linspace(-6, 6, 1201, dtype=torch.float64)
MEANS, STDS, SHARES = (-2.0, 0.0, 2.0), (0.4, 0.5, 0.4), (0.3, 0.4, 0.3)


def log_mu():
    """Three-component mixture, normalised on the grid."""
    parts = [
        math.log(share) - (GRID - mean) ** 2 / (2 * std**2) - math.log(std)
        for mean, std, share in zip(MEANS, STDS, SHARES)
    ]
    return normalised(torch.logsumexp(torch.stack(parts), 0))


def gain():
    """G(a), with mean zero under mu."""
    value = torch.tanh(GRID) + 0.3 * torch.sin(3 * GRID)
    return value - (log_mu().exp() * value).sum()


def normalised(log_density):
    return log_density - torch.logsumexp(log_density, 0)


def total_variation(one, other):
    return 0.5 * (one.exp() - other.exp()).abs().sum().item()


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("omega", [0.0, 0.5, 1.0, 3.0])
def test_recombination_is_exact_on_clean_densities(beta, omega):
    """[pi+]^(1+w) / [pi-]^w = mu sigma(beta G) exp(w beta G), in logs."""
    positive = normalised(log_mu() + positive_weight(gain(), beta).log())
    negative = normalised(log_mu() + negative_weight(gain(), beta).log())
    combined = normalised(guide(positive, negative, omega))
    wanted = normalised(log_mu() + torch.nn.functional.logsigmoid(beta * gain()) + omega * beta * gain())
    assert total_variation(combined, wanted) < (1e-13 if beta <= 3 else 2e-8)


def posterior_mean(schedule, x_t, t, log_density, function=GRID):
    """E[function(a) | x_t] for a ~ density on the grid; x_t (rows, 1, 1)."""
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    log_weight = log_density - (x_t.reshape(-1, 1) - alpha * GRID) ** 2 / (2 * sigma**2)
    return (torch.softmax(log_weight, -1) * function).sum(-1).reshape(-1, 1, 1)


def optimal(schedule, beta):
    """The exact minimisers of the two weighted losses and of the plain one, as clean estimates."""
    densities = {
        "positive": log_mu() + positive_weight(gain(), beta).log(),
        "negative": log_mu() + negative_weight(gain(), beta).log(),
        None: log_mu(),
    }
    return lambda x_t, t, role: posterior_mean(schedule, x_t, t, densities[role])


def test_base_prediction_lies_between_the_signs():
    """x0_base = m x0+ + (1 - m) x0-, m = E[sigma(beta G) | x_t]: the base-score identity."""
    schedule, beta = VPLinear(), 3.0
    predict = optimal(schedule, beta)
    x_t = torch.linspace(-2, 2, 41, dtype=torch.float64).reshape(-1, 1, 1)
    for time in (0.1, 0.4, 0.8):
        t = torch.full((41,), time, dtype=torch.float64)
        m = posterior_mean(schedule, x_t, t, log_mu(), positive_weight(gain(), beta))
        between = m * predict(x_t, t, "positive") + (1 - m) * predict(x_t, t, "negative")
        torch.testing.assert_close(between, predict(x_t, t, None), rtol=0, atol=1e-10)


def sample(schedule, omega, rows, steps, beta=1.0):
    """Euler samples of the guided policy with exact predictions, sorted."""
    noise = torch.randn(rows, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    denoise = guided_denoiser(optimal(schedule, beta), schedule, "sample", omega)
    return solve(SolverSpec("euler", steps), schedule, denoise, noise).flatten().sort().values


def gain_of(samples):
    index = ((samples - GRID[0]) / (GRID[1] - GRID[0])).round().long().clamp(0, len(GRID) - 1)
    return gain()[index].mean().item()


def test_omega_zero_samples_the_positive_policy():
    """The quantiles of the samples are those of mu sigma(beta G): Wasserstein-1 within sampling error."""
    found = sample(LinearFlow(), 0.0, rows=1000, steps=40)
    density = normalised(log_mu() + positive_weight(gain(), 1.0).log()).exp()
    levels = (torch.arange(len(found), dtype=torch.float64) + 0.5) / len(found)
    exact = GRID[torch.searchsorted(density.cumsum(0), levels).clamp(max=len(GRID) - 1)]
    assert (found - exact).abs().mean() < 0.15  # 1,000 samples of spread 1.6: about 0.07


def test_expected_gain_rises_with_omega():
    gains = [gain_of(sample(LinearFlow(), omega, rows=200, steps=20)) for omega in (-1.0, -0.5, 0.0, 0.5, 1.0, 2.0)]
    assert all(before < after for before, after in pairwise(gains))


@pytest.mark.parametrize("schedule", [VPLinear(), CosineTable(), LinearFlow(noise_at=1), LinearFlow(noise_at=0)])
@pytest.mark.parametrize("omega", [-1.0, -0.5, 0.0, 0.7, 4.0])
def test_noise_sample_and_velocity_agree(schedule, omega):
    generator = torch.Generator().manual_seed(0)
    positive, negative, noise = torch.randn(3, 9, 8, 4, generator=generator, dtype=torch.float64)
    t = torch.full((9,), 40.0 if isinstance(schedule, CosineTable) else 0.4, dtype=torch.float64)
    x_t = interpolate(schedule, positive, noise, t)
    clean = {"positive": positive, "negative": negative}

    def predicting(prediction):
        def predict(x, time, role):
            implied = (x - schedule.alpha(t)[:, None, None] * clean[role]) / schedule.sigma(t)[:, None, None]
            return target(prediction, schedule, clean[role], implied, time)

        return predict

    estimates = [
        guided_denoiser(predicting(prediction), schedule, prediction, omega)(x_t, t)
        for prediction in ("noise", "sample", "velocity")
    ]
    torch.testing.assert_close(estimates[0], estimates[1], rtol=0, atol=1e-11)
    torch.testing.assert_close(estimates[2], estimates[1], rtol=0, atol=1e-11)


def test_weights_that_do_not_sum_to_one_would_disagree():
    """Why the coefficients are (1 + w, -w): with (1 + w, -w/2) noise and sample combine to other things."""
    schedule, omega = VPLinear(), 1.0
    positive, negative, x_t = torch.randn(3, 9, 8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.full((9,), 0.4, dtype=torch.float64)
    in_noise = to_x0("noise", schedule, (1 + omega) * positive - omega / 2 * negative, x_t, t)
    clean = [to_x0("noise", schedule, output, x_t, t) for output in (positive, negative)]
    in_sample = (1 + omega) * clean[0] - omega / 2 * clean[1]
    assert (in_noise - in_sample).abs().max() > 1


def test_ends_run_one_role_only_and_give_it_bit_for_bit():
    asked = []

    def predict(x_t, t, role):
        asked.append(role)
        return {"positive": x_t * 1.1, "negative": x_t * 0.3, None: x_t}[role]

    x_t, t = torch.randn(4, 8, 4, generator=torch.Generator().manual_seed(0)), torch.full((4,), 0.5)
    for omega, role in ((0.0, "positive"), (-1.0, "negative"), (None, None), (torch.zeros(4), "positive")):
        asked.clear()
        found = guided_denoiser(predict, VPLinear(), "sample", omega)(x_t, t)
        assert asked == [role]
        assert torch.equal(found, predict(x_t, t, role))


def test_omega_per_row_equals_one_omega_at_a_time():
    positive, negative = torch.randn(2, 3, 8, 4, generator=torch.Generator().manual_seed(0))
    rows = guide(positive, negative, torch.tensor([0.0, 1.0, 2.5]))
    for row, omega in enumerate((0.0, 1.0, 2.5)):
        torch.testing.assert_close(rows[row], guide(positive[row], negative[row], omega))


def test_outside_the_interval_the_positive_policy_acts_alone():
    asked = []

    def predict(x_t, t, role):
        asked.append((round(t[0].item(), 3), role))
        return x_t

    schedule, x_t = LinearFlow(), torch.zeros(2, 8, 4)
    denoise = guided_denoiser(predict, schedule, "sample", 2.0, Combination(low=0.5))
    for time in (0.9, 0.2):
        denoise(x_t, torch.full((2,), time))
    assert asked == [(0.9, "positive"), (0.9, "negative"), (0.2, "positive")]


def test_omega_must_be_finite():
    with pytest.raises(ValueError, match="omega"):
        roles_for(math.nan)


SHAPES = [{"distance": 0.7}, {"power": 0.5}, {"power": -0.5}, {"early": 0.6}, {"decay": 1.5}]


def random_pair(rows=4):
    positive, negative = torch.randn(2, rows, 8, 4, generator=torch.Generator().manual_seed(3))
    return positive, negative


def test_the_plain_combination_is_guidance_bit_for_bit():
    pair, omega = random_pair(), torch.tensor([-1.0, 0.0, 1.5, 4.0])
    for value in (0.7, omega):
        assert torch.equal(Combination().combine(*pair, value, 0.3), guide(*pair, value))


@pytest.mark.parametrize("keys", SHAPES)
def test_a_shape_leaves_positive_and_negative_policy_as_they_are_and_changes_the_rest(keys):
    positive, negative = random_pair()
    found = Combination(**keys).combine(positive, negative, torch.tensor([0.0, -1.0, -0.5, 2.0]), 0.8)
    plain = guide(positive, negative, torch.tensor([0.0, -1.0, -0.5, 2.0]))
    assert torch.equal(found[0], positive[0])
    assert torch.equal(found[1], negative[1])
    assert torch.equal(found[2], plain[2])
    assert not torch.allclose(found[3], plain[3])


def test_each_shape_is_its_formula():
    positive, negative = random_pair()
    d = positive - negative
    size, ratio = (d**2).mean((1, 2)).sqrt(), (d**2).sum((1, 2)) / (negative**2).sum((1, 2))
    level = 0.8
    for keys, factor in (
        ({"distance": 0.7}, torch.exp(-0.7 * ratio)),
        ({"power": 0.5}, size**0.5),
        ({"early": 0.6}, torch.full((4,), 0.2 / 0.6)),
        ({"early": 0.1}, torch.ones(4)),
        ({"decay": 1.5}, torch.full((4,), math.exp(-1.2))),
        ({"power": 1.0, "decay": 1.0}, size * math.exp(-0.8)),
    ):
        if keys == {"early": 0.1}:
            found = Combination(**keys).combine(positive, negative, 2.0, 0.5)
        else:
            found = Combination(**keys).combine(positive, negative, 2.0, level)
        torch.testing.assert_close(found, guide(positive, negative, 2.0 * factor))


def test_predictions_that_agree_stay_finite_under_every_shape():
    same = torch.zeros(2, 8, 4)
    for keys in SHAPES:
        assert torch.equal(Combination(**keys).combine(same, same, 3.0, 0.5), same)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("distance", [-1.0, math.inf, "1", True, None]),
        ("power", [-1.0, math.nan, "1"]),
        ("early", [-0.1, 1.1, None]),
        ("decay", [-0.1, math.inf]),
        ("low", [1.0, -0.1]),
        ("clamp", ["12", 3.0, [1.0, 0.0], None]),
    ],
)
def test_a_combination_that_cannot_be_meant_is_refused(field, values):
    for value in values:
        with pytest.raises(InputError, match=rf"guidance\.{field}"):
            adjusted(Combination(), {field: value})


def test_an_unknown_key_is_named_and_nothing_is_changed_by_none():
    with pytest.raises(InputError, match=r"'pwoer'.*power"):
        adjusted(Combination(), {"pwoer": 1.0})
    own = Combination(low=0.5, clamp=(-1.0, 1.0))
    assert adjusted(own, {}) == own
    assert adjusted(own, {"clamp": [], "power": 1}) == Combination(low=0.5, power=1)
    assert label({"clamp": [-3, 3], "power": 0.5}) == "clamp -3 to 3, power 0.5"
    assert label({}) == ""
