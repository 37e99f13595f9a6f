"""Group-relative returns and the one-step critic."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import expectile as scipy_expectile

from dipole_vla.advantage import group_relative, informative
from dipole_vla.backbones.base import Context
from dipole_vla.members import Member
from dipole_vla.policy.critic import (
    CriticConfig,
    MeanCritic,
    OneStepCritic,
    TokenConfig,
    TokenCritic,
    expectile_loss,
    load_critic,
    scene_features,
)
from dipole_vla.training.critic import CriticModule
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import write_json
from tests.same_numbers import GRADIENT, assert_same_numbers


def test_group_relative_returns_are_standardised_within_the_scene():
    returns = torch.tensor([[0.0, 1.0], [0.5, 0.9]], dtype=torch.float64)
    torch.testing.assert_close(group_relative(returns), torch.tensor([[-1.0, 1.0]] * 2).double(), atol=1e-4, rtol=0)


def test_a_scene_whose_candidates_score_alike_has_no_advantage_and_is_marked():
    returns = torch.tensor([[0.3, 0.3, 0.3], [0.1, 0.2, 0.9]])
    assert group_relative(returns)[0].tolist() == [0.0, 0.0, 0.0]
    assert informative(returns.numpy()).tolist() == [False, True]


def test_bad_returns_are_refused():
    with pytest.raises(InputError, match="scene row 1"):
        group_relative(torch.tensor([[0.0, 1.0], [0.0, float("nan")]]))
    with pytest.raises(InputError, match="at least 2"):
        group_relative(torch.zeros(3, 1))


@pytest.mark.parametrize("level", [0.5, 0.7, 0.9])
def test_expectile_loss_has_the_expectile_as_its_minimum(level):
    values = torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([v], max_iter=25)

    def closure():
        optimiser.zero_grad()
        loss = expectile_loss(values - v, level).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    assert v.item() == pytest.approx(scipy_expectile(values.numpy(), alpha=level), abs=1e-5)


def problem(scenes=64, candidates=6):
    """Return = how near the plan's end is to where the scene's first feature says."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(scenes, 5, generator=generator)
    poses = torch.randn(scenes, candidates, 8, 3, generator=generator)
    return features, poses, torch.exp(-((poses[..., -1, 0] - features[:, None, 0]) ** 2))


def fitted():
    torch.manual_seed(0)
    critic = OneStepCritic(CriticConfig(feature_dim=5, hidden=32))
    features, poses, returns = problem()
    critic.fit_statistics(features, poses)
    optimiser = torch.optim.Adam(critic.parameters(), 1e-2)
    for _ in range(120):
        loss, _ = critic.loss(features, poses, returns)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return critic.eval()


def test_a_fitted_critic_ranks_plans_and_centres_the_advantage():
    critic = fitted()
    features, poses, returns = problem()
    chosen = critic(features, poses).argmax(1)
    picked = returns.gather(1, chosen[:, None]).mean()
    assert picked > 0.9 * returns.amax(1).mean()
    assert picked > returns.mean() + 0.2
    assert critic.advantage(features, poses).mean().abs() < 0.05


def test_v_does_not_teach_q_and_every_parameter_trains():
    critic = OneStepCritic(CriticConfig(feature_dim=5, hidden=16))
    loss, scalars = critic.loss(*problem())
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in critic.parameters())
    q_gradient = [parameter.grad.clone() for parameter in critic.q.parameters()]
    critic.zero_grad()
    ((critic.q_values(*problem()[:2]) - problem()[2]) ** 2).mean().backward()
    for found, alone in zip(q_gradient, critic.q.parameters()):
        assert_same_numbers(found, alone.grad, GRADIENT)
    assert not any(scalar.requires_grad for scalar in scalars.values())


def test_ensemble_counts_by_its_least_member():
    critic = OneStepCritic(CriticConfig(feature_dim=5, ensemble=3))
    features, poses, _ = problem(4)
    values = critic.q_values(features, poses)
    assert values.shape == (3, 4, 6)
    assert torch.equal(critic(features, poses), values.min(0).values)


def test_a_saved_critic_gives_the_same_numbers(tmp_path):
    critic = OneStepCritic(CriticConfig(feature_dim=5, hidden=16, expectile=0.7))
    features, poses, _ = problem()
    critic.fit_statistics(features, poses)
    critic.eval().save_pretrained(tmp_path / "critic")
    again = OneStepCritic.from_pretrained(tmp_path / "critic")
    assert again.config == critic.config
    assert torch.equal(again.advantage(features, poses), critic.advantage(features, poses))


def test_a_mean_of_critics_is_their_mean_also_when_saved(tmp_path):
    features, poses, returns = problem()
    members = [OneStepCritic(CriticConfig(feature_dim=5, hidden=hidden)) for hidden in (8, 16)]
    mean = MeanCritic(members).eval()
    mean.fit_statistics(features, poses)
    torch.testing.assert_close(mean(features, poses), (members[0](features, poses) + members[1](features, poses)) / 2)
    torch.testing.assert_close(
        mean.loss(features, poses, returns)[0], sum(m.loss(features, poses, returns)[0] for m in members)
    )
    mean.save_pretrained(tmp_path / "critic")
    again = load_critic(tmp_path / "critic")
    assert [member.config for member in again.members] == [member.config for member in members]
    assert torch.equal(again(features, poses), mean(features, poses))
    assert torch.equal(again.advantage(features, poses), mean.advantage(features, poses))


def token_critic(**sizes):
    torch.manual_seed(0)
    return TokenCritic(
        TokenConfig(feature_dim=2, hidden=16, ensemble=1, ego=1, tokens=3, token_width=4, **sizes)
    ).eval()


def test_a_plan_finds_the_token_that_pooled_features_have_lost(tmp_path):
    """Return = how near the plan's end is to what one token says; the pooled features are noise."""
    generator = torch.Generator().manual_seed(0)
    tokens, pooled = torch.randn(64, 3, 4, generator=generator), torch.randn(64, 2, generator=generator)
    poses = torch.randn(64, 6, 8, 3, generator=generator)
    returns = torch.exp(-((poses[..., -1, 0] - tokens[:, 1, :1]) ** 2))
    scenes, critic = torch.cat([pooled, pooled[:, :1], tokens.flatten(1)], 1), token_critic()
    critic.fit_statistics(scenes, poses)
    optimiser = torch.optim.Adam(critic.parameters(), 1e-2)
    for _ in range(200):
        loss, _ = critic.loss(scenes, poses, returns)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    picked = returns.gather(1, critic(scenes, poses).argmax(1)[:, None]).mean()
    assert picked > 0.85 * returns.amax(1).mean()
    critic.save_pretrained(tmp_path)
    again = load_critic(tmp_path)
    assert again.config == critic.config
    assert torch.equal(again.advantage(scenes, poses), critic.advantage(scenes, poses))


def test_a_plan_is_rated_alike_whatever_is_rated_beside_it():
    critic, generator = token_critic(), torch.Generator().manual_seed(0)
    scenes, poses = torch.randn(4, 15, generator=generator), torch.randn(4, 6, 8, 3, generator=generator)
    torch.testing.assert_close(critic(scenes, poses)[:, 2:3], critic(scenes, poses[:, 2:3]))


def test_members_read_their_own_share_of_a_scene():
    tokens, pooled = token_critic(), OneStepCritic(CriticConfig(feature_dim=2, hidden=8)).eval()
    scenes, poses = torch.randn(4, 15), torch.randn(4, 6, 8, 3)
    mean = MeanCritic([pooled, tokens]).eval()
    assert mean.reads_tokens
    torch.testing.assert_close(mean(scenes, poses), (pooled(scenes[:, :2], poses) + tokens(scenes, poses)) / 2)


def test_tokens_of_a_scene_are_asked_of_a_backbone_that_keeps_some():
    class Pooling:
        family = "pooling"

        def features(self, context):
            return context["mean"]

    with pytest.raises(InputError, match="pooling keeps no tokens"):
        scene_features(Pooling(), Context({"mean": torch.zeros(1, 2)}), True)
    context = Context({"mean": torch.zeros(1, 2), "proprio": torch.ones(1, 1), "tokens": torch.ones(1, 3, 4)})
    assert scene_features(Pooling(), context, True).shape == (1, 15)
    with pytest.raises(InputError, match="or no ego state"):
        scene_features(Pooling(), Context({"mean": torch.zeros(1, 2), "tokens": torch.ones(1, 3, 4)}), True)
    assert scene_features(Pooling(), context, False).shape == (1, 2)


def test_a_member_of_an_unknown_kind_is_refused():
    with pytest.raises(InputError, match="pooled or tokens, got 'sums'"):
        Member("sums")
    with pytest.raises(InputError, match="no multiple of the 4 heads"):
        TokenCritic(TokenConfig(feature_dim=2, hidden=10, tokens=3, token_width=4))


def test_a_member_keeps_its_learning_rate_also_where_it_is_nothing():
    critic = OneStepCritic(CriticConfig(feature_dim=2, hidden=4))
    module = SimpleNamespace(critic=critic, members=[(Member(lr=0.0), {})], lr=1.0, weight_decay=0.0)
    assert {group["lr"] for group in CriticModule.parameter_groups(module)} == {0.0}


def test_the_mean_of_one_critic_is_that_critic(tmp_path):
    critic, (features, poses, _) = fitted(), problem()
    assert torch.equal(MeanCritic([critic])(features, poses), critic(features, poses))
    critic.save_pretrained(tmp_path)  # as folders of before are
    assert torch.equal(load_critic(tmp_path)(features, poses), critic(features, poses))


def test_a_folder_that_lacks_a_member_says_which(tmp_path):
    MeanCritic([OneStepCritic(CriticConfig(feature_dim=5, hidden=8)) for _ in range(2)]).save_pretrained(tmp_path)
    shutil.rmtree(tmp_path / "1")
    with pytest.raises(InputError, match="no such file"):
        load_critic(tmp_path)
    write_json(tmp_path / "config.json", {"family": "mean_critic", "config": {"members": 0}})
    with pytest.raises(InputError, match="members: must be at least one"):
        load_critic(tmp_path)


def test_a_mean_within_a_mean_is_refused_not_left_out(tmp_path):
    member = OneStepCritic(CriticConfig(feature_dim=5, hidden=8))
    for folder in (tmp_path, tmp_path / "1"):
        MeanCritic([member, member]).save_pretrained(folder)
    with pytest.raises(InputError, match="1: is a mean of critics"):
        load_critic(tmp_path)


def test_a_bad_critic_configuration_names_its_field():
    with pytest.raises(InputError, match="expectile"):
        CriticConfig(feature_dim=5, expectile=1.0)
    with pytest.raises(InputError, match="feature_dim"):
        CriticConfig()
    for wrong in ({"hidden": 0}, {"layers": -1}, {"ensemble": 0}, {"dropout": 1.0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            CriticConfig(feature_dim=5, **wrong)
    with pytest.raises(InputError, match="layers: of kind tokens"):
        TokenConfig(feature_dim=5, layers=0)
