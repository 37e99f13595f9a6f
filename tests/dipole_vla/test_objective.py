"""Weights and losses of Eq. 7-9."""

from __future__ import annotations

import itertools

import pytest
import torch

from dipole_vla import objective
from dipole_vla.guidance import guide
from dipole_vla.objective import (
    RULES,
    base_distance,
    dichotomous_loss,
    effective_fraction,
    negative_weight,
    per_sample_loss,
    positive_weight,
    sign_distance,
)
from dipole_vla.paths import LinearFlow, VPLinear, interpolate, target
from navsim_adapter.foundation.errors import InputError

ROWS = 4


class TwoLinearPolicies(torch.nn.Module):
    """One matrix per sign on (x_t, t): enough to have gradients."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.signs = torch.nn.ParameterDict(
            {
                role: torch.nn.Parameter(torch.randn(4, 4, generator=generator, dtype=torch.float64))
                for role in ("positive", "negative")
            }
        )
        self.calls = []

    def forward(self, role, x_t, t, rows):
        self.calls.append((role, None if rows is None else rows.tolist()))
        return x_t @ self.signs[role] + t[:, None, None]

    def gradients(self, loss):
        return torch.autograd.grad(loss, [self.signs["positive"], self.signs["negative"]])


def batch(rows=ROWS):
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, rows, 8, 4, generator=generator, dtype=torch.float64)
    advantage = torch.randn(rows, generator=generator, dtype=torch.float64)
    return x0, advantage, noise, torch.rand(rows, generator=generator, dtype=torch.float64) * 0.9 + 0.05


def loss_of(policies, **options):
    x0, advantage, noise, t = batch()
    return dichotomous_loss(policies, VPLinear(), "noise", x0, advantage, noise, t, beta=2.0, **options)


def test_weights_are_bounded_and_sum_to_one_for_any_advantage_and_beta():
    advantage = torch.tensor([-1e6, -50.0, -1.0, 0.0, 1.0, 50.0, 1e6], dtype=torch.float64)
    for beta in (0.5, 1.0, 10.0, 1e6):
        positive, negative = positive_weight(advantage, beta), negative_weight(advantage, beta)
        assert ((positive >= 0) & (positive <= 1)).all()
        torch.testing.assert_close(positive + negative, torch.ones(7, dtype=torch.float64))
    assert negative_weight(torch.tensor(50.0), 1.0) > 0  # 1 - sigmoid would round to 0


def test_equal_policies_spend_exactly_one_imitation_loss():
    x0, _, noise, t = batch()
    policies = TwoLinearPolicies()
    policies.signs["negative"] = policies.signs["positive"]
    loss, _ = loss_of(policies)
    wanted = target("noise", VPLinear(), x0, noise, t)
    imitation = per_sample_loss(policies("positive", interpolate(VPLinear(), x0, noise, t), t, None), wanted).mean()
    torch.testing.assert_close(loss, imitation)


def test_loss_is_the_weighted_mean_of_each_sign():
    x0, advantage, noise, t = batch()
    policies = TwoLinearPolicies()
    loss, scalars = loss_of(policies)
    x_t = VPLinear().alpha(t)[:, None, None] * x0 + VPLinear().sigma(t)[:, None, None] * noise
    sigma = 1 / (1 + torch.exp(-2.0 * advantage))
    errors = {role: ((policies(role, x_t, t, None) - noise) ** 2).mean((1, 2)) for role in policies.signs}
    torch.testing.assert_close(scalars["loss_positive"], (sigma * errors["positive"]).mean())
    torch.testing.assert_close(scalars["loss_negative"], ((1 - sigma) * errors["negative"]).mean())
    torch.testing.assert_close(loss, scalars["loss_positive"] + scalars["loss_negative"])
    assert not any(scalar.requires_grad for scalar in scalars.values())
    assert {"weight_positive", "ess_positive", "ess_negative", "sign_distance"} <= scalars.keys()


def test_bernoulli_has_the_gradient_of_both_in_expectation(monkeypatch):
    """Every one of the 2^4 routings, weighted by its probability: exact, no sampling."""
    policies = TwoLinearPolicies()
    wanted = policies.gradients(loss_of(policies)[0])
    probability = positive_weight(batch()[1], 2.0)
    expected = [torch.zeros_like(gradient) for gradient in wanted]
    for routing in itertools.product([True, False], repeat=ROWS):
        route = torch.tensor(routing)
        monkeypatch.setattr(objective, "_routes", lambda p, g, route=route: route)
        chance = torch.where(route, probability, 1 - probability).prod()
        for total, gradient in zip(expected, policies.gradients(loss_of(policies, routing="bernoulli")[0])):
            total += chance * gradient
    for total, gradient in zip(expected, wanted):
        torch.testing.assert_close(total, gradient)


def test_bernoulli_shows_each_sample_to_one_sign_as_often_as_its_weight_says():
    policies, generator = TwoLinearPolicies(), torch.Generator().manual_seed(0)
    counts = torch.zeros(ROWS)
    for _ in range(500):
        policies.calls.clear()
        _, scalars = loss_of(policies, routing="bernoulli", generator=generator)
        routes = dict(policies.calls)
        positive = routes["positive"] if scalars["fraction_positive"] > 0 else []
        negative = routes["negative"] if scalars["fraction_positive"] < 1 else []
        assert sorted(positive + negative) == list(range(ROWS))
        counts[positive] += 1
    torch.testing.assert_close(counts.double() / 500, positive_weight(batch()[1], 2.0), atol=0.08, rtol=0)


def test_one_pass_of_routed_rows_is_the_same_loss():
    policies, found = TwoLinearPolicies(), []

    def in_one_pass(x_t, t, is_positive):
        each = [policies(role, x_t, t, None) for role in ("positive", "negative")]
        return torch.where(is_positive[:, None, None], *each)

    for denoise_routed in (None, in_one_pass):
        generator = torch.Generator().manual_seed(3)
        loss, scalars = loss_of(policies, routing="bernoulli", generator=generator, denoise_routed=denoise_routed)
        found.append((policies.gradients(loss), scalars))
    for one, other in zip(*(gradients for gradients, _ in found)):
        torch.testing.assert_close(one, other)
    assert found[0][1].keys() == found[1][1].keys()
    for name, scalar in found[0][1].items():
        torch.testing.assert_close(scalar, found[1][1][name])


def test_a_sign_without_samples_still_gets_a_gradient_of_zero(monkeypatch):
    every = torch.ones(ROWS, dtype=torch.bool)
    monkeypatch.setattr(objective, "_routes", lambda p, g: every)
    policies = TwoLinearPolicies()
    positive, negative = policies.gradients(loss_of(policies, routing="bernoulli")[0])
    assert positive.abs().sum() > 0
    assert torch.equal(negative, torch.zeros_like(negative))


def test_sample_weight_leaves_scenes_out():
    x0, advantage, noise, t = batch()
    policies = TwoLinearPolicies()
    some, _ = loss_of(policies, sample_weight=torch.tensor([1.0, 0.0, 1.0, 0.0]))
    kept = torch.tensor([0, 2])
    alone, _ = dichotomous_loss(
        policies, VPLinear(), "noise", x0[kept], advantage[kept], noise[kept], t[kept], beta=2.0
    )
    torch.testing.assert_close(some, alone)
    assert loss_of(policies, sample_weight=torch.zeros(ROWS))[0] == 0


def test_mask_hides_padded_channels():
    output, wanted = torch.randn(2, 3, 8, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(8, 4)
    torch.testing.assert_close(per_sample_loss(output, wanted, mask), per_sample_loss(output[..., :2], wanted[..., :2]))


@pytest.mark.parametrize("prediction", ["noise", "sample", "velocity"])
def test_the_backbones_own_loss_is_weighted(prediction):
    """At saturated weights the loss is the plain loss in the native parameterisation, whatever it is."""
    x0, _, noise, t = batch()
    schedule = LinearFlow(noise_at=0)
    policies = TwoLinearPolicies()
    advantage = torch.full((ROWS,), 1e3, dtype=torch.float64)
    loss, _ = dichotomous_loss(policies, schedule, prediction, x0, advantage, noise, t)
    native = {"noise": noise, "sample": x0, "velocity": x0 - noise}[prediction]
    x_t = t[:, None, None] * x0 + (1 - t)[:, None, None] * noise
    torch.testing.assert_close(loss, ((policies("positive", x_t, t, None) - native) ** 2).mean())


@pytest.mark.parametrize(("weights", "fraction"), [([1, 1, 1, 1], 1.0), ([1, 0, 0, 0], 0.25), ([1, 1, 0, 0], 0.5)])
def test_effective_fraction(weights, fraction):
    assert effective_fraction(torch.tensor(weights, dtype=torch.float64)).item() == pytest.approx(fraction)


def test_the_exponential_rule_starves_where_ours_does_not():
    """Effective sample fraction at beta = 10 on unit-variance advantages: near one sample against about half."""
    advantage = torch.randn(4096, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = effective_fraction(positive_weight(advantage, 10.0)).item()
    exponential = effective_fraction((10.0 * advantage).exp()).item()
    assert ours > 0.45
    assert exponential < 0.01
    assert RULES["exponential"].positive(advantage, 10.0).max() == objective.MAX_EXPONENTIAL_WEIGHT


@pytest.mark.parametrize("rule", ["exponential", "indicator", "positive_only"])
def test_rules_with_one_policy_train_the_positive_only(rule):
    policies = TwoLinearPolicies()
    _, scalars = loss_of(policies, rule=rule)
    assert {role for role, _ in policies.calls} == {"positive"}
    assert RULES[rule].negative_role is None
    assert "loss_negative" not in scalars
    with pytest.raises(InputError, match="bernoulli"):
        loss_of(policies, rule=rule, routing="bernoulli")


def with_base(policies):
    policies.base = torch.randn(4, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)

    def denoise(role, x_t, t, rows):
        return x_t @ policies.base if role is None else policies(role, x_t, t, rows)

    return denoise


@pytest.mark.parametrize(("prediction", "schedule"), [("noise", VPLinear()), ("velocity", LinearFlow(noise_at=0))])
def test_the_implicit_rule_is_the_published_pair_at_strength_one(prediction, schedule):
    """DiffusionNFT: r |(1-s) old + s new - v|^2 + (1-r) |(1+s) old - s new - v|^2; here s = 1, r = sigma(beta G)."""
    x0, advantage, noise, t = batch()
    policies = TwoLinearPolicies()
    denoise = with_base(policies)
    loss, scalars = dichotomous_loss(denoise, schedule, prediction, x0, advantage, noise, t, beta=2.0, rule="implicit")
    x_t = schedule.alpha(t)[:, None, None] * x0 + schedule.sigma(t)[:, None, None] * noise
    v = noise if prediction == "noise" else x0 - noise
    old, new = x_t @ policies.base, policies("positive", x_t, t, None)
    r, s = 1 / (1 + torch.exp(-2 * advantage)), 1.0
    positive = (((1 - s) * old + s * new - v) ** 2).mean((1, 2))
    negative = (((1 + s) * old - s * new - v) ** 2).mean((1, 2))
    torch.testing.assert_close(loss, (r * positive + (1 - r) * negative).mean())
    torch.testing.assert_close(scalars["loss_negative"], ((1 - r) * negative).mean())
    signs = [policies.signs["positive"], policies.signs["negative"]]
    found, other = torch.autograd.grad(loss, signs, allow_unused=True)
    assert found.any()
    assert other is None


def test_the_implicit_rule_stays_at_the_base_where_good_and_bad_balance():
    """Gradient at new = base is -2 (2 sigma - 1)(v - base): zero advantage moves nothing, bad ones push away."""
    x0, _, noise, t = batch()
    policies = TwoLinearPolicies()
    policies.signs["positive"].data.copy_(torch.zeros(4, 4))

    def denoise(role, x_t, t, rows):
        return torch.zeros_like(x_t) if role is None else x_t @ policies.signs["positive"]

    def gradient(advantage):
        loss, _ = dichotomous_loss(
            denoise, VPLinear(), "noise", x0, torch.full((ROWS,), advantage, dtype=torch.float64), noise, t,
            beta=2.0, rule="implicit",
        )  # fmt: skip
        return torch.autograd.grad(loss, policies.signs["positive"])[0]

    assert gradient(0.0).abs().max() < 1e-12
    torch.testing.assert_close(gradient(1.0), -gradient(-1.0))


def test_a_mirrored_negative_in_guidance_is_the_base_at_twice_the_greed():
    generator = torch.Generator().manual_seed(0)
    positive, base = torch.randn(2, 5, 8, 4, generator=generator, dtype=torch.float64)
    rule = RULES["implicit"]
    assert rule.negative_role is None
    for omega in (-1.0, 0.0, 0.7, 3.0):
        torch.testing.assert_close(
            guide(positive, base, rule.greed * omega), guide(positive, 2 * base - positive, omega)
        )


def test_an_unknown_rule_is_answered_with_the_near_one():
    with pytest.raises(InputError, match="did you mean 'indicator'"):
        loss_of(TwoLinearPolicies(), rule="indicater")


def test_base_distance_is_zero_for_every_mixture_and_the_rest_beyond_the_ends():
    generator = torch.Generator().manual_seed(0)
    positive, negative = torch.randn(2, 6, 8, 4, generator=generator)
    m = torch.rand(6, 1, 1, generator=generator)
    assert base_distance(positive, negative, m * positive + (1 - m) * negative) < 1e-6
    assert base_distance(positive, positive, positive) == 0
    beyond = positive + 0.5 * (positive - negative)
    torch.testing.assert_close(base_distance(positive, negative, beyond), 0.5 * sign_distance(positive, negative))
    aside = torch.zeros(6, 8, 4)
    aside[:, 0, 0] = 1
    flat_positive, flat_negative = aside.clone(), -aside
    off = torch.zeros(6, 8, 4)
    off[:, 1, 1] = 3
    torch.testing.assert_close(base_distance(flat_positive, flat_negative, off), torch.tensor(3 / 32**0.5))
