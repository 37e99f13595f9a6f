"""IQL: its losses by hand, its fixed point on a chain, n-step returns against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import expectile as scipy_expectile

from dipole_vla.rl.experiments import gridworld
from dipole_vla.rl.iql import IQLCritic
from dipole_vla.rl.transitions import n_step_transitions
from navsim_adapter.foundation.errors import InputError


def small_critic(**options):
    return IQLCritic(2, 1, [0, 1], hidden=8, layers=1, **options)


def batch(rows=6):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(2, rows, *shape, generator=generator)  # noqa: E731
    return {
        "observation": draw(2),
        "next_observation": draw(2),
        "action": draw(1),
        "reward": draw(),
        "discount": torch.tensor([0.9, 0.0]).repeat(2, rows // 2),
    }


def test_losses_and_advantage_are_the_formulas():
    critic, data = small_critic(expectile=0.8), batch()
    with torch.no_grad():
        for p in critic.target_q.parameters():
            p.add_(0.1)
    loss, advantage, _ = critic.loss(data)
    with torch.no_grad():
        pairs = torch.cat([data["observation"], data["action"]], -1)
        v, after = critic.v(data["observation"])[..., 0], critic.v(data["next_observation"])[..., 0]
        target = critic.target_q(pairs)[..., 0].reshape(2, 2, -1).min(1).values
        q = critic.q(pairs)[..., 0].reshape(2, 2, -1)
        wanted = data["reward"] + data["discount"] * after
        difference = target - v
        v_loss = (torch.where(difference > 0, 0.8, 0.2) * difference**2).mean(1).sum()
        q_loss = sum(((q[:, member] - wanted) ** 2).mean(1).sum() for member in range(2))
    torch.testing.assert_close(loss.detach(), q_loss + v_loss)
    torch.testing.assert_close(advantage, difference)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in [*critic.q.parameters(), *critic.v.parameters()])
    assert all(p.grad is None for p in critic.target_q.parameters())


def test_targets_move_by_polyak():
    critic = small_critic(polyak=0.25)
    before = [p.clone() for p in critic.target_q.parameters()]
    with torch.no_grad():
        for p in critic.q.parameters():
            p.add_(1.0)
    critic.update_targets()
    for old, new, goal in zip(before, critic.target_q.parameters(), critic.q.parameters()):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * goal)


def test_wrong_settings_are_named():
    with pytest.raises(InputError, match="expectile"):
        small_critic(expectile=1.0)
    with pytest.raises(InputError, match="polyak"):
        small_critic(polyak=0.0)


@pytest.mark.parametrize("n_step", [1, 2, 3, 7])
def test_n_step_returns_stop_at_ends_and_terminals(n_step):
    """Against a loop that walks each transition; episodes of several lengths, some ended by success."""
    rng, gamma = np.random.default_rng(0), 0.9
    rows = 40
    observation, after = rng.standard_normal((rows, 2)), rng.standard_normal((rows, 2))
    action, reward = rng.standard_normal((rows, 1)), rng.standard_normal(rows)
    last, mask = np.zeros(rows, bool), np.ones(rows)
    last[[0, 4, 9, 20, 39]] = True
    mask[[4, 15, 39]] = 0  # 15: a terminal state in the middle of a recorded episode
    found = n_step_transitions(observation, action, reward, mask, after, last, gamma, n_step)
    for row in range(rows):
        total, discount, step = 0.0, 1.0, row
        while True:
            total += discount * reward[step]
            discount *= gamma * mask[step]
            if step - row + 1 == n_step or last[step] or mask[step] == 0:
                break
            step += 1
        assert found.reward[row] == pytest.approx(total, abs=1e-5)
        assert found.discount[row] == pytest.approx(discount, abs=1e-6)
        np.testing.assert_allclose(found.next_observation[row], after[step], rtol=1e-6)


def test_the_gridworlds_exact_values_solve_their_equations():
    world = gridworld.make()
    np.testing.assert_allclose(world.transition.sum(-1), 1)
    value = world.value_of(world.behaviour)
    np.testing.assert_allclose(value, (world.behaviour * world.q_of(value)).sum(1), atol=1e-12)
    mean = world.expectile_value(0.5)
    np.testing.assert_allclose(mean[~world.is_final], value[~world.is_final], atol=1e-9)
    high = world.expectile_value(0.9)
    assert (high >= mean - 1e-9).all()
    q = world.q_of(high)
    for state in np.flatnonzero(~world.is_final)[:5]:
        wanted = scipy_expectile(q[state], 0.9, weights=world.behaviour[state])
        assert high[state] == pytest.approx(wanted, abs=1e-9)


def test_iql_learns_the_exact_expectile_advantage_of_the_gridworld():
    from dipole_vla.rl.experiments.advantages import _advantage, _learn

    world = gridworld.make()
    learnt, exact = _learn(world, 0.7, 700, 0), _advantage(world, world.expectile_value(0.7))
    inside = ~world.is_final
    assert np.corrcoef(learnt[inside].ravel(), exact[inside].ravel())[0, 1] > 0.9
