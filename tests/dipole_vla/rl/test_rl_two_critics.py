"""One critic judges candidates, another weighs the samples: each is the one that a run of its own steps would have."""

from __future__ import annotations

import pytest
import torch
from line_world import line_data

from dipole_vla.rl.heads import HEADS
from dipole_vla.rl.learner import Learner, LearnerConfig
from dipole_vla.rl.module import adam
from dipole_vla.rl.transitions import BatchStream, Transitions
from navsim_adapter.foundation.errors import InputError


def trained(n_step, weigh_n_step=None, **keys):
    """(critic that judges, policies) after five updates on the line."""
    config = LearnerConfig(hidden=8, layers=1, n_step=n_step, weigh_n_step=weigh_n_step, **keys)
    data = line_data(10, n_step, weigh_n_step)
    learner = Learner(2, 2, [0, 3], config)
    learner.fit_statistics(data.observation)
    optimizer, stream = adam(learner), BatchStream(data, [0, 3], 8)
    for step in range(5):
        batch = stream.batch(step)
        loss, _ = learner.loss(batch, batch["noise"], batch["t"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learner.after_step()
    return learner.critic.state_dict(), learner.policies.state_dict()


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_weighing_critic_of_the_same_steps_changes_no_bit():
    for one, other in zip(trained(3), trained(3, 3)):
        assert same(one, other)


def test_the_judge_is_that_of_its_own_steps_and_the_policies_those_of_the_weighing_critics():
    far_judge, _ = trained(5)
    near_judge, near_policies = trained(1)
    judge, policies = trained(5, 1)
    assert same(judge, far_judge)
    assert not same(judge, near_judge)
    assert same(policies, near_policies)


def test_replay_keeps_both_returns():
    parts = [line_data(3, 5, 1), line_data(3, 5, 1)]
    joined, near = Transitions.concatenate(parts), line_data(3)
    assert torch.equal(joined.weighing_reward, torch.cat([near.reward, near.reward]))
    assert torch.equal(joined.weighing_next_observation[: len(near)], near.next_observation)


def test_shift_moves_every_rules_weight():
    advantage = torch.linspace(-2, 2, 9)
    shifted = HEADS["positive"].weight(advantage, 2.0, 0.5)
    torch.testing.assert_close(shifted, torch.sigmoid(2 * advantage + 0.5))
    torch.testing.assert_close(HEADS["negative"].weight(advantage, 2.0, 0.5), 1 - shifted)
    assert HEADS["indicator"].weight(torch.tensor([-0.2]), 2.0, 0.5) == 1
    assert same(dict(enumerate(trained(1)[1].values())), dict(enumerate(trained(1, shift=0.0)[1].values())))
    assert not same(trained(1)[1], trained(1, shift=0.5)[1])


@pytest.mark.parametrize(("key", "value"), [("weigh_n_step", 0), ("shift", float("nan"))])
def test_wrong_keys_are_named(key, value):
    with pytest.raises(InputError, match=rf"learner\.{key}"):
        LearnerConfig(**{key: value})
