"""Tier 0: the stability claim in numbers, from the library's own weights and losses, on worlds that are known.

The identities on densities and the rise of E[G] with omega are in tests/dipole_vla/test_guidance.py; here are the
effective samples against quadrature, and what trained heads show on the bandit.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from dipole_vla.objective import RULES, effective_fraction
from dipole_vla.rl.experiments import bandit
from dipole_vla.rl.experiments.exponential import UNCLIPPED
from dipole_vla.rl.heads import Head

GRID = np.linspace(-6, 6, 6001)


def mixture():
    """(density, G with mean 0 and variance 1) on the grid: three components, unequal gains."""
    parts = zip((0.3, 0.4, 0.3), (-2.0, 0.0, 2.0), (0.4, 0.5, 0.4))
    density = sum(share * np.exp(-((GRID - mean) ** 2) / (2 * std**2)) / std for share, mean, std in parts)
    density /= density.sum()
    gain = np.tanh(GRID) + 0.3 * np.sin(3 * GRID)
    gain -= (density * gain).sum()
    return density, gain / np.sqrt((density * gain**2).sum())


def by_quadrature(weight):
    density, _ = mixture()
    return (density * weight).sum() ** 2 / (density * weight**2).sum()


def samples(rows=200_000):
    density, gain = mixture()
    return torch.from_numpy(np.random.default_rng(0).choice(gain, rows, p=density))


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0, 10.0])
def test_effective_sample_of_the_signs_is_the_integral_and_never_below_half(beta):
    _, gain = mixture()
    rule = RULES["dichotomous"]
    for function, exact in (
        (rule.positive, by_quadrature(1 / (1 + np.exp(-beta * gain)))),
        (rule.negative, by_quadrature(1 / (1 + np.exp(beta * gain)))),
    ):
        found = float(effective_fraction(function(samples(), beta)))
        assert found == pytest.approx(exact, abs=0.01)
        assert found > 0.5
    published = {0.5: 0.94, 1.0: 0.83, 3.0: 0.60, 10.0: 0.52}[beta]  # another G of unit variance: near, not equal
    assert by_quadrature(1 / (1 + np.exp(-beta * gain))) == pytest.approx(published, abs=0.03)


@pytest.mark.parametrize("omega", [1.0, 3.0])
def test_one_exponential_weight_of_the_same_tilt_starves(omega):
    """beta (1 + omega): what DIPOLE asks of a single weight for the same greed."""
    _, gain = mixture()
    found = []
    for beta in (0.5, 1.0, 3.0, 10.0):
        tilt = beta * (1 + omega)
        weight = UNCLIPPED.positive(samples(), tilt)
        assert float(effective_fraction(weight)) == pytest.approx(by_quadrature(np.exp(tilt * gain)), rel=0.05)
        found.append(float(effective_fraction(weight)))
    assert all(before > after for before, after in pairwise(found))
    assert found[0] < 0.6
    assert found[-1] < 0.06


@pytest.fixture(scope="module")
def trained():
    """Ten heads: bc; positive and negative at beta 1, 3 and 10; unclipped exponentials of 1, 3 and 9 G."""
    heads = [Head(), *bandit.pairs([1.0, 3.0, 10.0]), *[Head(UNCLIPPED, scale=scale) for scale in (1.0, 3.0, 9.0)]]
    data = bandit.draw(4000, torch.Generator().manual_seed(0))
    return bandit.train(data, heads, updates=400, hidden=32, batch_size=128)


def test_gradient_norms_of_the_signs_are_those_of_imitation_and_exponentials_have_tails(trained):
    norm = trained.settled(trained.gradient_norm)
    tail = (norm.quantile(0.99, 0) / norm.median(0).values).tolist()
    bc, signs, exponential = tail[0], tail[1:7], tail[7:]
    assert max(signs) < 1.6 * bc
    assert exponential[0] < exponential[1] < exponential[2]
    assert exponential[2] > 3 * bc


def test_losses_of_the_signs_stay_below_imitation_for_any_beta(trained):
    loss = trained.settled(trained.loss).mean(0)
    for positive, negative in ((1, 2), (3, 4), (5, 6)):
        assert loss[positive] + loss[negative] < 1.1 * loss[0]
    assert loss[9] > 10 * loss[0]


def test_learnt_gain_rises_with_omega(trained):
    gains = [bandit.behaviour(trained.policies, 1, 2, omega, draws=32).gain for omega in (-1.0, -0.5, 0.0, 0.5, 1.0)]
    assert all(before < after for before, after in pairwise(gains))
