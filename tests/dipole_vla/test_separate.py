"""Two full copies instead of two adapters: the same face, the same identities."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from identities import check_identities
from small_backbone import make_backbone, make_observation
from small_data import adapters, train, write_inputs

from dipole_vla.backbones.xvla.model import XVLA, XVLAConfig
from dipole_vla.policy import AdapterPair, GuidedPolicy
from dipole_vla.policy.separate import SeparatePair, load_pair, make_pair
from navsim_adapter.foundation.errors import InputError


@pytest.fixture(params=["head", "all"])
def pair(request):
    return SeparatePair(make_backbone(), request.param)


def predictions(pair, observation=None):
    generator = torch.Generator().manual_seed(5)
    x_t, t = torch.randn(6, 8, 4, generator=generator), torch.rand(6, generator=generator)
    roles = ("positive", "negative", None)
    contexts = pair.encode(observation or make_observation(), roles)
    with torch.no_grad():
        return {role: pair.denoise(pair.prepare(contexts[role], role), x_t, t, role) for role in roles}


@pytest.mark.parametrize("scope", ["head", "all"])
def test_the_identities_of_a_pair_hold(monkeypatch, scope):
    monkeypatch.setattr("identities.AdapterPair", lambda backbone, scope, rank: SeparatePair(backbone, scope))
    monkeypatch.setattr("identities.spread_adapters", move)
    check_identities(make_backbone(), make_observation(), scope)


def move(pair, scale: float = 0.05) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * scale


def test_a_fresh_pair_is_the_base_to_the_bit(pair):
    found = predictions(pair)
    assert torch.equal(found["positive"], found[None])
    assert torch.equal(found["negative"], found[None])


def test_exactly_the_copies_train_and_the_backbone_is_itself_again_after_every_pass(pair):
    own = dict(pair.backbone.named_modules())
    before = {name: tensor.clone() for name, tensor in pair.backbone.state_dict().items()}
    optimiser = torch.optim.SGD(pair.parameters(), lr=0.1)
    contexts = pair.encode(make_observation())
    x_t, t = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(0)), torch.full((3,), 0.5)
    pair.denoise(contexts["positive"], x_t, t, "positive").square().mean().backward()
    assert all(parameter.grad is None for parameter in pair.parameters("negative"))
    moved = [parameter for parameter in pair.parameters("positive") if parameter.grad is not None]
    assert len(moved) > 20
    optimiser.step()
    assert all(found is own[name] for name, found in pair.backbone.named_modules())
    for name, tensor in pair.backbone.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert not any(parameter.requires_grad for parameter in pair.backbone.parameters())
    found = predictions(pair)
    assert torch.equal(found["negative"], found[None])
    assert not torch.equal(found["positive"], found[None])


def test_a_pass_that_fails_leaves_the_backbone_whole(pair):
    own = pair.backbone.decoder
    with pytest.raises(RuntimeError):
        pair.denoise(pair.encode(make_observation())["positive"], torch.zeros(3, 8, 99), torch.zeros(3), "positive")
    assert pair.backbone.decoder is own


def test_the_head_scope_copies_the_head_and_shares_the_encoding():
    head, everything = SeparatePair(make_backbone()), SeparatePair(make_backbone(), "all")
    assert head.paths == ["decoder"]
    assert set(everything.paths) == {"encoder", "decoder"}
    contexts = head.encode(make_observation())
    assert contexts["positive"] is contexts["negative"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert SeparatePair(XVLA.tiny(XVLAConfig.tiny(width=32))).paths == ["transformer"]


def test_saved_copies_load_back_and_a_folder_says_what_it_holds(pair, tmp_path):
    move(pair)
    pair.save(tmp_path / "separate")
    AdapterPair(make_backbone(), rank=2).save(tmp_path / "lora")
    again = load_pair(make_backbone(), tmp_path / "separate")
    assert isinstance(again, SeparatePair)
    wanted = predictions(pair)
    assert all(torch.equal(found, wanted[role]) for role, found in predictions(again).items())
    assert isinstance(load_pair(make_backbone(), tmp_path / "lora"), AdapterPair)


def test_copies_of_another_base_and_swapped_folders_are_refused(tmp_path):
    SeparatePair(make_backbone(seed=1)).save(tmp_path / "other")
    with pytest.raises(InputError, match=r"base is .*matching checkpoint"):
        load_pair(make_backbone(), tmp_path / "other")
    SeparatePair(make_backbone()).save(tmp_path / "own")
    (tmp_path / "own" / "positive").rename(tmp_path / "own" / "aside")
    (tmp_path / "own" / "negative").rename(tmp_path / "own" / "positive")
    (tmp_path / "own" / "aside").rename(tmp_path / "own" / "negative")
    with pytest.raises(InputError, match="role is negative, this pair's is positive"):
        load_pair(make_backbone(), tmp_path / "own")
    with pytest.raises(InputError, match="did you mean 'head'"):
        make_pair("separate", make_backbone(), "heads")


def test_trained_separately_exported_and_driven(tmp_path):
    inputs = write_inputs(tmp_path)
    module, rows = train(inputs, pair="separate", routing="bernoulli", lr=1e-4, trainer={"gradient_clip_val": 1.0})
    assert rows[-1]["grad_norm_positive"] > 0
    assert not any(name.startswith("backbone") for name in _saved(module))
    assert len(_saved(module)) == len(adapters(module))
    module.export(tmp_path / "policy", {})
    policy = GuidedPolicy.from_pretrained(tmp_path / "policy")
    assert isinstance(policy.pair, SeparatePair)
    plans = {w: policy.sample(make_observation(), omega=w, noise=torch.zeros(3, 1, 8, 4)) for w in (-1, 0, 1, None)}
    assert all(torch.isfinite(plan).all() for plan in plans.values())
    assert not torch.equal(plans[0], plans[-1])
    assert (Path(tmp_path) / "policy" / "negative" / "model.safetensors").is_file()


def _saved(module) -> dict:
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    return checkpoint["state_dict"]
