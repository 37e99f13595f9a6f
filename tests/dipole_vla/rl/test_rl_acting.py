"""Playing: players side by side are players alone; noise is shared; the critic's choice is the best."""

from __future__ import annotations

import numpy as np
import torch
from line_world import Line

from dipole_vla.rl.acting import Panel, Player, start_noise
from dipole_vla.rl.environments import play
from dipole_vla.rl.heads import METHODS
from dipole_vla.rl.learner import Learner, LearnerConfig
from tests.same_numbers import SAMPLED, assert_same_numbers

HEADS = ["bc", "indicator", "positive", "negative"]


def learner():
    return Learner(2, 2, [0, 5], LearnerConfig(hidden=8, layers=1, heads=HEADS))


def given(players, rows, candidates):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(players, rows, 2, generator=generator), torch.randn(
        players, rows, candidates, 2, generator=generator
    )


def test_players_together_act_as_each_alone():
    table = [
        Player(0, METHODS["dipole"], 1.5, 4),
        Player(1, METHODS["dipole"], 0.5, 4),
        Player(1, METHODS["indicator"], 2.0, 4),
        Player(0, METHODS["bc"], 0.0, 4),
    ]
    model = learner()
    observation, noise = given(4, 3, 4)
    together = Panel(model, table).act(observation, noise)
    for number, player in enumerate(table):
        alone = Panel(model, [player]).act(observation[number : number + 1], noise[number : number + 1])
        assert_same_numbers(together[number], alone[0], SAMPLED)
    assert together.abs().max() <= 1


def test_the_kept_candidate_has_the_highest_least_target_q():
    model = learner()
    observation, noise = given(1, 6, 8)
    kept = Panel(model, [Player(1, METHODS["dipole"], 1.0, 8)]).act(observation, noise)
    single = Panel(model, [Player(1, METHODS["dipole"], 1.0, 1)])
    each = torch.stack([single.act(observation, noise[:, :, i : i + 1])[0] for i in range(8)])
    wide = observation[0].expand(8, 6, 2).reshape(1, 48, 2).expand(2, 48, 2)
    q = model.critic.least_q(model.standardise(wide), each.reshape(1, 48, 2).expand(2, 48, 2))[1].reshape(8, 6)
    assert_same_numbers(kept[0], each[q.argmax(0), torch.arange(6)], SAMPLED)


def test_start_noise_is_shared_by_methods_and_the_first_of_the_largest_n():
    episodes = np.array([[3, 4], [4, 9]])
    wide, narrow = start_noise(0, episodes, 5, 8, 2, 8), start_noise(0, episodes, 5, 3, 2, 8)
    assert torch.equal(wide[:, :, :3], narrow)
    assert torch.equal(wide[0, 1], wide[1, 0])
    assert not torch.equal(wide[0, 0], wide[0, 1])
    assert not torch.equal(start_noise(0, episodes, 6, 3, 2, 8), narrow)


def test_episodes_do_not_depend_on_how_many_are_played_side_by_side():
    """Ragged ends: fast players finish early, and the filling rows are not used."""

    def act(observation, episodes, step):
        players = len(observation)
        push = np.linspace(1.0, 0.1, players)[:, None] * np.ones(episodes.shape)
        return np.stack([push, 0 * push], -1).astype(np.float32)

    seeds = np.tile(np.arange(5), (3, 1))
    wide = play([Line() for _ in range(15)], act, seeds)
    narrow = play([Line() for _ in range(3)], act, seeds)
    for one, other in zip(wide, narrow):
        assert len(one) == 5
        for a, b in zip(one, other):
            np.testing.assert_array_equal(a.observation, b.observation)
            np.testing.assert_array_equal(a.next_observation[:-1], a.observation[1:])
            assert a.gain == b.gain
    assert {len(episode.reward) for episode in wide[0]} != {8}
    assert all(len(episode.reward) == 8 and episode.gain == 0 for episode in wide[2])
