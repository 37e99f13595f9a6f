"""Weights and losses of Eq. 7-9."""

from __future__ import annotations

import itertools

import pytest
import torch

from dipole_vla import objective
from dipole_vla.objective import (
    RULES,
    dichotomous_loss,
    effective_fraction,
    negative_weight,
    per_sample_loss,
    positive_weight,
)
from dipole_vla.paths import LinearFlow, VPLinear, interpolate, target
from navsim_adapter.errors import InputError

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
        monkeypatch.setattr(objective, "_routed", lambda p, g, route=route: {"positive": route, "negative": ~route})
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


def test_a_sign_without_samples_still_gets_a_gradient_of_zero(monkeypatch):
    every = torch.ones(ROWS, dtype=torch.bool)
    monkeypatch.setattr(objective, "_routed", lambda p, g: {"positive": every, "negative": ~every})
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
