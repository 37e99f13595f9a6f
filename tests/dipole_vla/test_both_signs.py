"""Both signs in one batch: the numbers of two passes, and the frozen work once."""

from __future__ import annotations

import pytest
import torch
from small_backbone import make_backbone, make_observation, spread_adapters

from dipole_vla.policy import AdapterPair, GuidedPolicy
from tests.same_numbers import assert_same_numbers

SCENES = 3


@pytest.fixture(params=["head", "all"])
def pair(request):
    pair = AdapterPair(make_backbone(), request.param, rank=4, alpha=6)
    spread_adapters(pair, scale=0.1)
    return pair


def inputs(group, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = SCENES * group
    return torch.randn(rows, 8, 4, generator=generator), torch.rand(rows, generator=generator)


@pytest.mark.parametrize("roles", [("positive", "negative"), ("positive", None), ("negative", "positive")])
@pytest.mark.parametrize("group", [1, 4])
def test_one_pass_of_both_gives_the_two_passes(pair, roles, group):
    x_t, t = inputs(group)
    with torch.no_grad():
        contexts = pair.encode(make_observation(), roles)
        found = pair.denoise_both(pair.prepare_both(contexts, roles), x_t, t, roles)
        for role, output in zip(roles, found):
            wanted = pair.denoise(pair.prepare(contexts[role], role), x_t, t, role)
            assert_same_numbers(output, wanted)


def test_prepared_contexts_are_those_of_each_role(pair):
    roles = ("positive", "negative")
    with torch.no_grad():
        contexts = pair.encode(make_observation(), roles)
        both = pair.prepare_both(contexts, roles)
        for index, role in enumerate(roles):
            alone, part = pair.prepare(contexts[role], role), both.part(index * SCENES, SCENES)
            assert alone.tensors.keys() == part.tensors.keys()
            for name, tensor in alone.tensors.items():
                assert_same_numbers(part[name], tensor)


def test_afterwards_the_adapters_are_off(pair):
    x_t, t = inputs(1)
    with torch.no_grad():
        contexts = pair.encode(make_observation())
        before = pair.denoise(contexts["negative"], x_t, t, "negative")
        roles = ("positive", "negative")
        with pytest.raises(KeyError):
            pair.denoise_both(pair.prepare_both(contexts, roles).part(0, 1), *inputs(0), ("positive", "neither"))
        assert torch.equal(pair.denoise(contexts["negative"], x_t, t, "negative"), before)
        plain = make_backbone()
        base = plain.denoise(plain.encode(make_observation()), x_t, t)
        assert torch.equal(pair.backbone.denoise(pair.backbone.encode(make_observation()), x_t, t), base)


@pytest.mark.parametrize("is_positive", [True, False])
def test_a_sign_without_rows_gets_gradients_of_zero(pair, is_positive):
    """Distributed reducers wait for every parameter."""
    x_t, t = inputs(4)
    routes = torch.full((len(t),), is_positive)
    pair.denoise_routed(pair.encode(make_observation()), x_t, t, routes, group=4).sum().backward()
    asked, other = ("positive", "negative") if is_positive else ("negative", "positive")
    assert all(p.grad.any() for p in pair.parameters(asked))
    assert all(p.grad is not None and not p.grad.any() for p in pair.parameters(other))


def test_frozen_weights_see_each_scene_and_each_step_once():
    """The bill of guidance: keys and values projected once for both signs, one head pass a step, nothing per plan."""
    backbone = make_backbone()
    policy = GuidedPolicy(backbone, AdapterPair(backbone, "head", rank=4))
    spread_adapters(policy.pair, scale=0.1)
    keys, queries = [], []
    block = backbone.decoder.blocks[0]
    block.cross_attn.proj_k.base_layer.register_forward_hook(lambda *call: keys.append(len(call[1][0])))
    block.attn.qkv.base_layer.register_forward_hook(lambda *call: queries.append(call[1][0][..., 0].numel()))
    policy.sample(make_observation(), 1.0, candidates=4, generator=torch.Generator().manual_seed(0))
    assert keys == [SCENES]
    assert queries == [2 * 4 * SCENES * 8] * 11  # ten steps and the one at the clean end
