"""A stack is its networks, one by one: outputs, gradients, updates, losses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dipole_vla.objective import RULES, dichotomous_loss
from dipole_vla.rl.heads import HEADS
from dipole_vla.rl.learner import PREDICTION, SCHEDULE, Learner, LearnerConfig, Policies
from dipole_vla.rl.module import RLModule, adam
from dipole_vla.rl.stack import StackedMLP, per_network_norms
from navsim_adapter.foundation.errors import InputError
from tests.same_numbers import GRADIENT, SAMPLED, assert_same_numbers


def alone(stack, number, layer_norm=False):
    """Network `number` of a stack as an ordinary module."""
    layers = []
    for layer, (weight, bias) in enumerate(zip(stack.weights, stack.biases)):
        linear = nn.Linear(weight.shape[1], weight.shape[2])
        linear.weight.data, linear.bias.data = weight.data[number].T.clone(), bias.data[number, 0].clone()
        layers.append(linear)
        if layer < len(stack.weights) - 1:
            layers.append(nn.GELU())
            if layer_norm:
                layers.append(nn.LayerNorm(weight.shape[2], elementwise_affine=False))
    return nn.Sequential(*layers)


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_stack_of_one_seed_is_that_seed_whatever_is_beside_it():
    stack = StackedMLP([3, 8, 2], [5, 6, 7])
    single = StackedMLP([3, 8, 2], [6])
    for together, apart in zip(stack.parameters(), single.parameters()):
        assert torch.equal(together[1], apart[0])


def test_outputs_gradients_and_adam_steps_are_each_networks_own():
    for layer_norm in (False, True):
        stack = StackedMLP([3, 8, 8, 2], [1, 2, 3], layer_norm)
        singles = [alone(stack, number, layer_norm) for number in range(3)]
        x, wanted = rows(3, 10, 3), rows(3, 10, 2, seed=1)
        ours = torch.optim.Adam(stack.parameters(), lr=1e-2, fused=True)
        theirs = [torch.optim.Adam(single.parameters(), lr=1e-2) for single in singles]
        for _ in range(3):
            ours.zero_grad()
            (stack(x) - wanted).pow(2).mean((1, 2)).sum().backward()
            norms = per_network_norms(stack)
            ours.step()
            for number, (single, optimizer) in enumerate(zip(singles, theirs)):
                optimizer.zero_grad()
                (single(x[number]) - wanted[number]).pow(2).mean().backward()
                flat = torch.cat([p.grad.flatten() for p in single.parameters()])
                assert_same_numbers(norms[number].float(), flat.norm(), GRADIENT)
                optimizer.step()
        for number, single in enumerate(singles):
            assert_same_numbers(stack(x)[number], single(x[number]), GRADIENT)


def test_networks_of_a_group_share_its_rows_and_selected_ones_are_copies():
    stack = StackedMLP([3, 8, 2], [1, 2, 3, 4])
    x = rows(2, 5, 3)
    together = stack(x)
    for number in range(4):
        assert_same_numbers(together[number], alone(stack, number)(x[number // 2]))
    chosen = stack.select([3, 0])
    assert_same_numbers(chosen(x)[0], alone(stack, 3)(x[0]))
    assert not any(p.requires_grad for p in chosen.parameters())


def test_every_head_has_the_driving_codes_loss():
    """The stacked loss of each rule is `dichotomous_loss` on that head's own network."""
    names = list(HEADS)
    policies = Policies(3, 2, [4], list(HEADS.values()), hidden=8, layers=2)
    observation, action, noise = rows(1, 16, 3), rows(1, 16, 2, seed=1), rows(1, 16, 2, seed=2)
    advantage, t = rows(1, 16, seed=3), torch.rand(1, 16, generator=torch.Generator().manual_seed(4))
    _, scalars = policies.loss(observation, action, advantage, noise, t, beta=2.0)
    found = dict(zip(names, scalars["weighted"][0]))
    networks = {name: alone(policies.networks, number) for number, name in enumerate(names)}
    for rule, scale, roles in (
        ("dichotomous", 1, {"positive": "positive", "negative": "negative"}),
        ("exponential", 1, {"positive": "exponential"}),
        ("exponential", 3, {"positive": "exponential_x3"}),
        ("indicator", 1, {"positive": "indicator"}),
        ("positive_only", 1, {"positive": "positive"}),
    ):

        def denoise(role, x_t, time, _, roles=roles):
            return networks[roles[role]](torch.cat([observation[0], x_t[:, 0], time[:, None]], -1))[:, None]

        _, wanted = dichotomous_loss(
            denoise,
            SCHEDULE,
            PREDICTION,
            action[0][:, None],
            advantage[0],
            noise[0][:, None],
            t[0],
            beta=2.0 * scale,
            rule=rule,
        )
        for role, head in roles.items():
            assert_same_numbers(found[head], wanted[f"loss_{role}"])
    plain = policies.losses(observation, action, noise, t)[0, names.index("bc")].mean()
    assert_same_numbers(found["bc"], plain)
    assert set(RULES) >= {"dichotomous", "exponential", "indicator", "positive_only"}


def learner_batch(seeds):
    each = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        each.append(
            {
                "observation": torch.randn(12, 3, generator=generator),
                "next_observation": torch.randn(12, 3, generator=generator),
                "action": torch.rand(12, 2, generator=generator) * 2 - 1,
                "reward": -torch.rand(12, generator=generator),
                "discount": torch.full((12,), 0.9),
                "noise": torch.randn(12, 2, generator=generator),
                "t": torch.rand(12, generator=generator),
            }
        )
    return {name: torch.stack([part[name] for part in each]) for name in each[0]}


def test_training_seeds_together_is_training_each_alone():
    config = LearnerConfig(hidden=8, layers=2)

    def trained(seeds, steps=4):
        learner = Learner(3, 2, seeds, config)
        optimizer = adam(learner)
        batch = learner_batch(seeds)
        for _ in range(steps):
            loss, _ = learner.loss(batch, batch["noise"], batch["t"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            learner.after_step()
        return learner

    together, one = trained([3, 9]), trained([9])
    heads = len(config.heads)
    for mine, other in zip(together.policies.parameters(), one.policies.parameters()):
        assert_same_numbers(mine[heads:], other, SAMPLED)
    for mine, other in zip(together.critic.target_q.parameters(), one.critic.target_q.parameters()):
        assert_same_numbers(mine[2:], other, SAMPLED)
    assert_same_numbers(together.advantage_std[1], one.advantage_std[0], SAMPLED)


def test_bfloat16_products_change_little_and_leave_weights_and_returns_in_float32():
    full = StackedMLP([3, 64, 64, 1], [1, 2], layer_norm=True)
    short = StackedMLP([3, 64, 64, 1], [1, 2], layer_norm=True, precision=torch.bfloat16)
    for stack in (full, short):
        stack.biases[-1].data.sub_(90.0)  # a return: in bfloat16 it would be a multiple of one half
        (stack(rows(2, 32, 3)) - rows(2, 32, 1, seed=1)).mean().backward()
    values, rounded = full(rows(2, 32, 3)), short(rows(2, 32, 3))
    assert rounded.dtype == torch.float32
    assert 0 < (values - rounded).abs().max() < 0.02
    for parameter, other in zip(short.parameters(), full.parameters()):
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        torch.testing.assert_close(parameter.grad, other.grad, rtol=0.05, atol=0.01 * float(other.grad.abs().max()))
    assert short.select([0]).precision == torch.float32


def test_a_policys_losses_in_bfloat16_are_those_in_float32_nearly():
    sizes = {
        "observation_dim": 3,
        "action_dim": 2,
        "seeds": [4],
        "heads": list(HEADS.values()),
        "hidden": 64,
        "layers": 2,
    }
    full, short = Policies(**sizes), Policies(**sizes, precision=torch.bfloat16)
    batch = rows(1, 256, 3), rows(1, 256, 2, seed=1), rows(1, 256, 2, seed=2), torch.full((1, 256), 0.3)
    exact, rounded = full.losses(*batch), short.losses(*batch)
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded.mean(-1), exact.mean(-1), rtol=2e-3, atol=0)


def test_the_learning_rate_falls_to_zero_over_the_last_part_of_the_run():
    config = LearnerConfig(hidden=8, layers=1, lr_decay=0.25)
    module = RLModule(3, 2, [0], config, updates=80)
    assert [module.share_of_lr(update) for update in (0, 60, 70, 79, 80)] == [1.0, 1.0, 0.5, 0.05, 0.0]
    assert RLModule(3, 2, [0], LearnerConfig(hidden=8, layers=1), updates=80).share_of_lr(80) == 1.0
    with pytest.raises(InputError, match="lr_decay"):
        LearnerConfig(lr_decay=1.5)
