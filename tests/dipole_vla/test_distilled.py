"""The distilled network: what holds by construction, whatever its training did; and what training must improve."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_backbone import make_backbone, make_observation, spread_adapters

from dipole_vla.backbones.weights import read_tensors, write_tensors
from dipole_vla.export.distil import guided_states, held_out
from dipole_vla.guidance import guide
from dipole_vla.objective import RULES, per_sample_loss
from dipole_vla.policy import AdapterPair, Guidance, GuidedPolicy, load_policy
from dipole_vla.policy.distilled import DistilledPair
from dipole_vla.policy.predictions import under_both
from navsim_adapter.foundation.errors import InputError
from tests.same_numbers import MAGNIFIED, SAMPLED, assert_same_numbers

SCENES, CANDIDATES = 3, 2


def noise_of(scenes=SCENES, candidates=CANDIDATES, seed=0):
    return torch.randn(scenes, candidates, 8, 4, generator=torch.Generator().manual_seed(seed))


def make_policy(scale=0.1, is_trained=True, rule="dichotomous"):
    backbone = make_backbone()
    pair = AdapterPair(backbone, "head", rank=4)
    spread_adapters(pair, scale=scale)
    negative = None if rule == "indicator" else "negative"
    distilled = DistilledPair(pair, highest=3.0, negative=negative)
    if is_trained:
        spread_adapters(distilled, seed=5, scale=0.05)
    return GuidedPolicy(backbone, pair, guidance=Guidance(rule=rule), distilled=distilled)


def predictions(policy, omega):
    """The distilled network's own prediction, without the policy's shortcut for the ends."""
    generator = torch.Generator().manual_seed(1)
    x_t, t = torch.randn(SCENES * 2, 8, 4, generator=generator), torch.rand(SCENES * 2, generator=generator)
    with torch.no_grad():
        context = policy.encode(make_observation()).encoded(None)
        network = policy.distilled.at(omega)
        found = network.denoise(network.prepare(context), x_t, t)
        signs = [
            policy.pair.denoise(policy.pair.prepare(context, role), x_t, t, role) for role in ("positive", "negative")
        ]
    return found, signs


@pytest.mark.parametrize(("omega", "sign"), [(0.0, 0), (-1.0, 1)])
def test_the_ends_are_the_signs_whatever_the_correction(omega, sign):
    found, signs = predictions(make_policy(), omega)
    assert_same_numbers(found, signs[sign])
    assert (predictions(make_policy(), 2.0)[0] - predictions(make_policy(is_trained=False), 2.0)[0]).abs().max() > 1e-3


def test_without_correction_it_is_guidance_to_first_order_and_its_error_is_of_second():
    """Halving the adapters' updates divides the error by about four, and the error grows as omega (1 + omega)."""

    def error(scale, omega):
        found, signs = predictions(make_policy(scale, is_trained=False), omega)
        return (found - guide(*signs, omega)).square().mean().sqrt().item()

    # the update is a product of two matrices of this scale, so scale / sqrt(2) halves it
    assert error(0.02, 1.0) / error(0.02 / 2**0.5, 1.0) == pytest.approx(4, rel=0.15)
    assert error(0.02, 3.0) / error(0.02, 1.0) == pytest.approx(6, rel=0.15)


def test_folding_an_omega_changes_nothing_but_rounding():
    policy = make_policy()
    before = policy.sample(make_observation(), 1.5, CANDIDATES, noise_of())
    others = policy.sample(make_observation(), 0.5, CANDIDATES, noise_of())
    policy.distilled.fold(1.5)
    assert_same_numbers(policy.sample(make_observation(), 1.5, CANDIDATES, noise_of()), before, MAGNIFIED)
    assert torch.equal(policy.sample(make_observation(), 0.5, CANDIDATES, noise_of()), others)


def test_guidance_takes_one_pass_over_the_head():
    policy, rows = make_policy(), []
    poses = policy.backbone.action.horizon
    layer = policy.backbone.decoder.blocks[0].attn.qkv.base_layer
    layer.register_forward_pre_hook(lambda _, x: rows.append(x[0][..., 0].numel() // poses))
    policy.sample(make_observation(), 1.5, CANDIDATES, noise_of())
    assert rows == [SCENES * CANDIDATES] * 11  # ten steps and the one at the clean end
    rows.clear()
    policy.distilled = None
    policy.sample(make_observation(), 1.5, CANDIDATES, noise_of())
    assert rows == [2 * SCENES * CANDIDATES] * 11


def test_omega_per_scene_and_per_plan():
    policy = make_policy()
    omegas = torch.tensor([0.3, 1.0, 2.0])
    plans = policy.sample(make_observation(), omegas, CANDIDATES, noise_of())
    table = torch.tensor([[0.3, 2.0], [1.0, 0.3], [2.0, 1.0]])
    mixed = policy.sample(make_observation(), table, CANDIDATES, noise_of())
    for scene in range(SCENES):
        alone = policy.sample(make_observation(), omegas[scene].item(), CANDIDATES, noise_of())
        assert_same_numbers(plans[scene], alone[scene], MAGNIFIED)
        for plan in range(CANDIDATES):
            alone = policy.sample(make_observation(), table[scene, plan].item(), CANDIDATES, noise_of())
            assert_same_numbers(mixed[scene, plan], alone[scene, plan], MAGNIFIED)


def test_rules_without_a_negative_adapter_are_distilled_against_the_base():
    policy = make_policy(is_trained=False, rule="indicator")
    found, _ = predictions(policy, -1.0)
    generator = torch.Generator().manual_seed(1)
    x_t, t = torch.randn(SCENES * 2, 8, 4, generator=generator), torch.rand(SCENES * 2, generator=generator)
    with torch.no_grad():
        base = policy.pair.denoise(policy.encode(make_observation()).encoded(None), x_t, t, None)
    assert_same_numbers(found, base)


def test_guided_states_are_those_of_the_guided_sampler():
    policy, omega = make_policy(), torch.tensor([0.5, 1.0, 2.0])
    policy.distilled = None
    context = policy.encode(make_observation()).encoded(None)
    x_t, t, wanted = guided_states(policy, context, omega, noise_of()[:, 0])
    assert x_t.shape == wanted.shape == (SCENES * 11, 8, 4)
    with torch.no_grad():
        signs = [policy.pair.denoise(context, x_t, t, role) for role in ("positive", "negative")]
    assert_same_numbers(wanted, guide(*signs, omega.repeat_interleave(11)), SAMPLED)
    assert torch.equal(x_t.unflatten(0, (SCENES, 11))[:, 0], noise_of()[:, 0])  # it starts from the noise given


@pytest.mark.parametrize("rule", ["dichotomous", "indicator", "implicit"])
def test_the_target_is_the_guided_policys_own_field(rule, monkeypatch):
    """What `sample` itself predicts at the states that it visits, whatever its rule and its clamp."""
    policy, omega, seen = make_policy(rule=rule), torch.tensor([0.5, 1.0, 2.0]), []
    policy.distilled, policy.guidance = None, Guidance(rule=rule, clamp=(-0.5, 0.5))
    policy.backbone.solver = replace(policy.backbone.solver, clamp_at="end")
    acting = omega * RULES[rule].greed

    def watched(*of_a_policy):
        predict = under_both(*of_a_policy)

        def both(x_t, t):
            outputs = predict(x_t, t)
            seen.append((x_t, guide(*outputs, acting)))
            return outputs

        return both

    monkeypatch.setattr("dipole_vla.policy.guided.under_both", watched)
    policy.sample(make_observation(), omega, 1, noise_of(candidates=1))
    context = policy.encode(make_observation()).encoded(None)
    x_t, t, wanted = guided_states(policy, context, omega, noise_of(candidates=1)[:, 0])
    states, field = (torch.stack(parts, 1).flatten(0, 1) for parts in zip(*seen))
    assert_same_numbers(x_t, states, MAGNIFIED)
    assert_same_numbers(wanted, field, MAGNIFIED)
    if rule == "implicit":  # (1 + omega) positive - omega (2 base - positive)
        with torch.no_grad():
            positive, base = (policy.pair.denoise(context, x_t, t, role) for role in ("positive", None))
        by_hand = guide(positive, 2 * base - positive, omega.repeat_interleave(11))
        assert_same_numbers(wanted, by_hand, SAMPLED)


def test_training_brings_it_nearer_to_guidance_than_the_merge_is():
    policy = make_policy(0.2, is_trained=False)
    distilled, policy.distilled = policy.distilled, None
    context, omega = policy.encode(make_observation()).encoded(None), torch.tensor([1.0, 2.0, 3.0])
    x_t, t, wanted = guided_states(policy, context, omega, noise_of()[:, 0])

    def loss():
        network = distilled.at(omega)
        return per_sample_loss(network.denoise(network.prepare(context), x_t, t), wanted).mean()

    policy.backbone.requires_grad_(False)
    merged = loss().item()
    optimiser = torch.optim.AdamW(distilled.parameters(), lr=3e-3)
    for _ in range(30):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    assert loss().item() < 0.5 * merged
    assert not any(p.grad is not None for p in policy.backbone.parameters())


def test_held_out_scenes_are_decided_by_their_names_alone():
    tokens = [f"{i:04x}" for i in range(40)]
    inside, outside = held_out(tokens, 0.25)
    assert len(outside) == 10
    assert sorted(inside + outside) == list(range(40))
    turned = [tokens[-1 - i] for i in range(40)]
    assert {turned[i] for i in held_out(turned, 0.25)[1]} == {tokens[i] for i in outside}


@pytest.fixture
def saved(tmp_path):
    make_backbone().save_pretrained(tmp_path / "base")
    make_policy().save_pretrained(tmp_path / "policy", backbone=tmp_path / "base")
    return tmp_path / "policy"


def test_a_saved_distilled_policy_samples_the_same_numbers(saved):
    policy, again = make_policy(), load_policy(saved, device="cpu")
    assert again.fingerprint == policy.fingerprint
    for omega in (None, -1.0, 0.0, 1.0, 2.5):
        wanted = policy.sample(make_observation(), omega, CANDIDATES, noise_of())
        assert torch.equal(again.sample(make_observation(), omega, CANDIDATES, noise_of()), wanted)
    pair_alone = GuidedPolicy(policy.backbone, policy.pair)
    assert again.fingerprint != pair_alone.fingerprint
    two_passes = pair_alone.sample(make_observation(), 2.5, CANDIDATES, noise_of())
    assert not torch.allclose(two_passes, again.sample(make_observation(), 2.5, CANDIDATES, noise_of()), atol=1e-2)


def test_a_damaged_or_foreign_correction_is_named(saved):
    path = saved / "distilled" / "correction.safetensors"
    tensors = read_tensors(path)
    first = next(iter(tensors))
    write_tensors(path, {name: tensor for name, tensor in tensors.items() if name != first})
    with pytest.raises(InputError, match=f"missing key {first}"):
        load_policy(saved, device="cpu")
    record = saved / "distilled" / "distilled.json"
    record.write_text(record.read_text().replace('"base_fingerprint": "', '"base_fingerprint": "0'))
    with pytest.raises(InputError, match="distilled on base 0"):
        load_policy(saved, device="cpu")


def test_only_pairs_that_share_a_context_can_be_distilled():
    with pytest.raises(InputError, match="scope 'head'"):
        DistilledPair(AdapterPair(make_backbone(), "all", rank=2))
