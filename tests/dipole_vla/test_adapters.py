"""The pair on a real, small backbone: what trains, what is saved, what is refused."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from small_backbone import make_backbone, make_observation, spread_adapters

from dipole_vla.backbones.dp_vla.model import DPVLA
from dipole_vla.guidance import guide
from dipole_vla.objective import dichotomous_loss
from dipole_vla.policy import AdapterPair
from navsim_adapter.foundation.errors import InputError
from tests.same_numbers import assert_same_numbers

ROLES = ("positive", "negative", None)


def inputs(scenes=3, group=2, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(scenes * group, 8, 4, generator=generator), torch.rand(scenes * group, generator=generator)


def predictions(pair, observation=None):
    observation = observation or make_observation()
    contexts = pair.encode(observation, ROLES)
    with torch.no_grad():
        return {role: pair.denoise(contexts[role], *inputs(), role) for role in ROLES}


@pytest.fixture(params=["head", "all"])
def pair(request):
    return AdapterPair(make_backbone(), scope=request.param, rank=4, seed=3)


def step_loss(pair, routing="both", group=2, **options):
    x0, t = inputs(group=group)
    generator = torch.Generator().manual_seed(9)
    return dichotomous_loss(
        pair.denoiser(pair.encode(make_observation()), group),
        pair.backbone.schedule,
        pair.backbone.prediction,
        x0,
        torch.linspace(-1.5, 1.5, len(x0)),
        torch.randn(x0.shape, generator=generator),
        t.clamp_min(1e-3),
        routing=routing,
        generator=generator,
        **options,
    )


def test_a_fresh_pair_is_the_base_for_every_omega(pair):
    found = predictions(pair)
    plain = make_backbone()
    with torch.no_grad():
        base = plain.denoise(plain.encode(make_observation()), *inputs())
    assert torch.equal(found[None], base)
    for omega in (-1.0, -0.5, 0.0, 1.0, 10.0):
        terms = (1 + abs(omega)) * float(base.abs().max())  # (1 + w) x - w x rounds at the size of its terms
        assert_same_numbers(guide(found["positive"], found["negative"], omega), base, size=terms)


def test_first_matrices_differ_second_ones_are_zero(pair):
    positive, negative = pair.state("positive"), pair.state("negative")
    assert positive.keys() == negative.keys()
    for name in positive:
        if "lora_A" in name:
            assert not torch.equal(positive[name], negative[name])
        else:
            assert not positive[name].any()
            assert not negative[name].any()


def test_the_same_seed_gives_the_same_pair_and_leaves_the_global_generator_alone():
    backbones = [make_backbone(), make_backbone()]
    before = torch.get_rng_state()
    first, second = (AdapterPair(backbone, rank=4, seed=3) for backbone in backbones)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))


@pytest.mark.parametrize("routing", ["both", "bernoulli"])
def test_after_a_step_both_adapters_train_differently_and_nothing_else_does(pair, routing):
    frozen = {name: tensor.clone() for name, tensor in pair.backbone.state_dict().items() if "lora_" not in name}
    optimiser = torch.optim.AdamW(pair.parameters(), lr=1e-2)
    for _ in range(2):  # at the first step only the second matrices have gradients: they start at zero
        optimiser.zero_grad()
        step_loss(pair, routing)[0].backward()
        gradients = {name: p.grad.clone() for name, p in pair.backbone.named_parameters() if p.grad is not None}
        optimiser.step()
    own = dict(pair.named_parameters())
    assert gradients.keys() == own.keys()
    assert {name for name, p in pair.backbone.named_parameters() if p.requires_grad} == own.keys()
    for name, gradient in gradients.items():
        assert gradient.any(), name
        if "positive" in name:
            assert not torch.allclose(gradient, gradients[name.replace("positive", "negative")]), name
    for name, tensor in frozen.items():
        assert torch.equal(tensor, pair.backbone.state_dict()[name]), name


def test_each_pass_reaches_its_own_adapter_only(pair):
    """PEFT's own state is neither asked nor touched, and every gradient flag stays."""
    before = [(layer.active_adapter, layer.disable_adapters) for layer in pair.layers]
    spread_adapters(pair)
    contexts = pair.encode(make_observation())
    for role, other in (("positive", "negative"), ("negative", "positive")):
        pair.denoise(contexts[role], *inputs(), role).sum().backward()
        touched = {name for name, p in pair.backbone.named_parameters() if p.grad is not None and p.grad.any()}
        assert touched
        assert all(f".{role}." in name for name in touched)
        assert all(p.requires_grad for p in pair.parameters(other))
        pair.backbone.zero_grad()
    assert [(layer.active_adapter, layer.disable_adapters) for layer in pair.layers] == before


def test_a_backward_pass_in_another_thread_reaches_the_same_gradients(pair):
    spread_adapters(pair)
    wanted, found = [], []
    for gradients, run in ((wanted, lambda work: work()), (found, lambda work: ThreadPoolExecutor(1).submit(work))):
        loss = step_loss(pair)[0]
        getattr(run(loss.backward), "result", lambda: None)()
        gradients += [parameter.grad.clone() for parameter in pair.parameters()]
        pair.backbone.zero_grad()
    assert all(map(torch.equal, found, wanted))


def test_adapters_are_for_linear_layers():
    backbone = make_backbone()
    backbone.lora_scopes = {"head": r"decoder\..*qkv|encoder.*embed_tokens"}
    with pytest.raises(InputError, match="Embedding"):
        AdapterPair(backbone, rank=2)


def test_roles_predict_differently_and_the_base_stays_the_base(pair):
    base = predictions(pair)[None]
    spread_adapters(pair)
    found = predictions(pair)
    assert torch.equal(found[None], base)
    for one, other in (("positive", "negative"), ("positive", None), ("negative", None)):
        assert (found[one] - found[other]).abs().max() > 1e-3


def test_the_head_scope_shares_one_encoding(pair):
    contexts = pair.encode(make_observation(), ROLES)
    assert (contexts["positive"] is contexts["negative"]) == (pair.scope == "head")
    if pair.scope == "head":
        assert not any("encoder" in name for name, _ in pair.named_parameters())
    else:
        spread_adapters(pair)
        contexts = pair.encode(make_observation(), ROLES)
        assert not torch.equal(contexts["positive"]["tokens"], contexts["negative"]["tokens"])


def test_the_frozen_base_stays_in_evaluation_mode():
    backbone = make_backbone(dropout=0.5, text_dropout=0.5, vision_drop_path=0.5)
    pair = AdapterPair(backbone, rank=4)
    backbone.train()
    assert not any(module.training for module in backbone.modules())
    assert torch.equal(predictions(pair)["positive"], predictions(pair)["positive"])


def test_bernoulli_shares_a_scenes_keys_and_values_between_its_rows(pair):
    """Rows routed anywhere, scenes of unequal counts: the same numbers as the whole batch."""
    spread_adapters(pair)
    denoise = pair.denoiser(pair.encode(make_observation(), ROLES), group=2)
    x_t, t = inputs()
    rows = torch.tensor([0, 1, 3, 5])
    with torch.no_grad():
        whole = denoise("positive", x_t, t, None)
        part = denoise("positive", x_t[rows], t[rows], rows)
    assert_same_numbers(part, whole[rows])


def test_saved_adapters_load_in_plain_peft(pair, tmp_path):
    spread_adapters(pair)
    pair.save(tmp_path)
    wanted = predictions(pair)
    peft = PeftModel.from_pretrained(make_backbone(), tmp_path / "positive", adapter_name="positive")
    peft.load_adapter(tmp_path / "negative", adapter_name="negative")
    backbone = peft.base_model.model
    with torch.no_grad():
        for role in ("positive", "negative"):
            peft.set_adapter(role)
            found = backbone.denoise(backbone.encode(make_observation()), *inputs())
            assert torch.equal(found, wanted[role])
        with peft.disable_adapter():
            assert torch.equal(backbone.denoise(backbone.encode(make_observation()), *inputs()), wanted[None])


def test_a_saved_pair_loads_back_to_the_same_numbers(pair, tmp_path):
    spread_adapters(pair)
    pair.save(tmp_path)
    again = AdapterPair.from_pretrained(make_backbone(), tmp_path)
    assert (again.scope, again.rank, again.alpha) == (pair.scope, pair.rank, pair.alpha)
    wanted = predictions(pair)
    for role, found in predictions(again).items():
        assert torch.equal(found, wanted[role])


def test_swapped_folders_are_refused_and_nothing_changes(tmp_path):
    pair = AdapterPair(make_backbone(), rank=4)
    pair.save(tmp_path)
    spread_adapters(pair)
    before = [parameter.clone() for parameter in pair.parameters()]
    (tmp_path / "positive").rename(tmp_path / "aside")
    (tmp_path / "negative").rename(tmp_path / "positive")
    (tmp_path / "aside").rename(tmp_path / "negative")
    with pytest.raises(InputError, match="role is negative, this pair's is positive"):
        pair.load(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before, pair.parameters()))


@pytest.mark.parametrize(
    ("made_with", "message"),
    [
        ({"rank": 8}, "rank is 8, this pair's is 4"),
        ({"scope": "all"}, "scope is all, this pair's is head"),
        ({"alpha": 16.0}, "alpha is 16.0, this pair's is 4"),
        ({"seed_of_base": 1}, "base is .*, this pair's is .*; pass the matching checkpoint"),
    ],
)
def test_adapters_of_another_kind_are_refused_naming_both_sides(tmp_path, made_with, message):
    options = {"rank": 4, **made_with}
    AdapterPair(make_backbone(options.pop("seed_of_base", 0)), **options).save(tmp_path)
    with pytest.raises(InputError, match=message):
        AdapterPair(make_backbone(), rank=4).load(tmp_path)


def test_another_action_normaliser_is_another_base(tmp_path):
    AdapterPair(make_backbone(), rank=4).save(tmp_path)
    other = make_backbone()
    other.action = other.action.fitted(torch.randn(50, 8, 3, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(InputError, match="base is"):
        AdapterPair(other, rank=4).load(tmp_path)


def test_damaged_adapter_files_are_refused_by_name(tmp_path):
    pair = AdapterPair(make_backbone(), rank=4)
    pair.save(tmp_path / "good")
    file = "positive/adapter_model.safetensors"
    tensors = load_file(tmp_path / "good" / file)
    first = next(iter(tensors))
    for damage, message in (
        ({"base_model.model.extra.lora_A.weight": torch.zeros(1)}, "unexpected key base_model.model.extra"),
        ({first: torch.zeros(2, 2)}, f"{first} has shape"),
    ):
        shutil.copytree(tmp_path / "good", tmp_path / "bad", dirs_exist_ok=True)
        save_file({**tensors, **damage}, tmp_path / "bad" / file)
        with pytest.raises(InputError, match=message):
            pair.load(tmp_path / "bad")
    save_file({name: tensor for name, tensor in tensors.items() if name != first}, tmp_path / "bad" / file)
    with pytest.raises(InputError, match=f"missing key {first}"):
        pair.load(tmp_path / "bad")
    (tmp_path / "bad" / file).write_bytes(b"not safetensors")
    with pytest.raises(InputError, match="cannot be read"):
        pair.load(tmp_path / "bad")
    (tmp_path / "bad" / "positive" / "dipole.json").write_text(json.dumps({"role": "positive"}))
    with pytest.raises(InputError, match=r"dipole\.json"):
        pair.load(tmp_path / "bad")


def test_the_base_is_saved_and_fingerprinted_without_its_adapters(tmp_path):
    backbone = make_backbone()
    before = backbone.fingerprint()
    spread_adapters(AdapterPair(backbone, rank=4))
    assert backbone.fingerprint() == before
    backbone.save_pretrained(tmp_path)
    assert DPVLA.from_pretrained(tmp_path).fingerprint() == before


def test_wrong_arguments_are_named():
    with pytest.raises(InputError, match="did you mean 'head'"):
        AdapterPair(make_backbone(), scope="heads")
    with pytest.raises(InputError, match="rank"):
        AdapterPair(make_backbone(), rank=0)
    backbone = make_backbone()
    AdapterPair(backbone, rank=2)
    with pytest.raises(InputError, match="already carries adapters"):
        AdapterPair(backbone, rank=2)
