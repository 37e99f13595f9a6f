"""What saves time and memory must change no number: one sign at a time, shared frozen work, recomputed blocks."""

from __future__ import annotations

import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from small_backbone import make_backbone, make_observation, spread_adapters
from torch import Tensor

from dipole_vla.backbones import backbone_class
from dipole_vla.backbones.example import example_observation
from dipole_vla.objective import dichotomous_loss
from dipole_vla.policy.mixed_rows import current_route
from dipole_vla.policy.separate import make_pair
from dipole_vla.training import memory
from dipole_vla.training.memory import backward_early, recompute_blocks, recomputes, shared_base
from tests.same_numbers import GRADIENT, assert_same_numbers

GROUP = 3


def make(kind="lora", scope="head"):
    pair = make_pair(kind, make_backbone(), scope, rank=4, seed=3)
    if kind == "lora":
        spread_adapters(pair)
    return pair


def gradients(pair, routing="both", on_role_loss=None, sharing=False, group=GROUP, backward=Tensor.backward):
    """Gradients of one step of the whole objective, by parameter name."""
    generator = torch.Generator().manual_seed(9)
    noise, x0 = torch.randn(2, 3 * group, 8, 4, generator=generator)
    with shared_base(pair) if sharing else nullcontext():
        loss, _ = dichotomous_loss(
            pair.denoiser(pair.encode(make_observation()), group),
            pair.backbone.schedule,
            pair.backbone.prediction,
            x0,
            torch.linspace(-1.5, 1.5, len(x0)).unflatten(0, (group, 3)).T.flatten(),  # every scene has both kinds
            noise,
            torch.linspace(0.1, 0.9, len(x0)),
            routing=routing,
            generator=generator,
            **({"on_role_loss": on_role_loss(pair)} if on_role_loss else {}),
        )
        backward(2 * loss)  # a factor, as gradient accumulation and loss scaling have one
    found = {name: parameter.grad for name, parameter in pair.named_parameters()}
    assert all(gradient is not None for gradient in found.values())
    return found


def early(pair):
    return lambda role, loss: backward_early(loss, list(pair.parameters(role)))


def assert_same(found, wanted, exactly=True):
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        if exactly:
            assert torch.equal(found[name], gradient), name
        else:
            assert_same_numbers(found[name], gradient, GRADIENT)


@pytest.mark.parametrize("kind", ["lora", "separate"])
@pytest.mark.parametrize("scope", ["head", "all"])
@pytest.mark.parametrize("routing", ["both", "bernoulli"])
def test_gradients_taken_sign_by_sign_are_those_of_the_sum(kind, scope, routing):
    assert_same(gradients(make(kind, scope), routing, early), gradients(make(kind, scope), routing))


def test_the_first_signs_activations_are_gone_before_the_second_sign_runs():
    pair, alive = make(), []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            saved = torch.zeros(1)
            alive.append(weakref.ref(saved))
            ctx.saved = saved
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    counts = []
    denoise = pair.denoise

    def watched(context, x_t, t, role):
        counts.append(sum(ref() is not None for ref in alive))
        return Watched.apply(denoise(context, x_t, t, role))

    pair.denoise = watched
    gradients(pair)
    assert counts == [0, 1]
    alive.clear()
    counts.clear()
    gradients(pair, on_role_loss=early)
    assert counts == [0, 0]


@pytest.mark.parametrize("routing", ["both", "bernoulli"])
def test_sharing_the_frozen_part_is_exact_and_runs_keys_and_values_once(routing, monkeypatch):
    plain, sharing = make(), make()
    block = sharing.backbone.decoder.blocks[1]
    keys, queries = (getattr(block.cross_attn, name).get_base_layer() for name in ("proj_k", "proj_q"))
    runs, forward = [], torch.nn.Linear.forward
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda self, x: runs.append(self) or forward(self, x))
    found = gradients(sharing, routing, early, sharing=True, group=12)
    assert_same(found, gradients(plain, routing, early, group=12))
    assert runs.count(keys) == 1
    assert runs.count(queries) == 2
    assert "forward" not in vars(keys)  # put back


def test_a_remembered_output_is_for_the_very_same_tensor_only():
    layer, calls = torch.nn.Linear(3, 3), []
    forward = layer.forward
    remembered = memory._Remembered(lambda x: calls.append(1) or forward(x))
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert remembered(x) is remembered(x)
        assert len(calls) == 1
        assert torch.equal(remembered(x + 1), forward(x + 1))
        assert torch.equal(remembered(x), forward(x))
    assert remembered(x.clone().requires_grad_()).requires_grad


@pytest.mark.parametrize("scope", ["head", "all"])
@pytest.mark.parametrize("kind", ["lora", "separate"])
def test_recomputed_blocks_give_the_gradients_of_kept_ones(kind, scope):
    pair = make(kind, scope)
    assert recompute_blocks(pair) > 0
    assert_same(gradients(pair), gradients(make(kind, scope)))
    pair.backbone.zero_grad()


def test_a_block_is_recomputed_under_the_route_it_ran_under():
    """After both forward passes no adapter acts any more; the blocks of both run again all the same."""
    pair = make()
    blocks, roles = pair.backbone.decoder.blocks, []
    forward = blocks[0].forward
    blocks[0].forward = lambda *arguments: roles.append(current_route().keywords["role"]) or forward(*arguments)
    recompute_blocks(pair)
    gradients(pair)
    assert roles[:2] == ["positive", "negative"]
    assert sorted(roles[2:]) == ["negative", "positive"]


def test_a_block_may_be_recomputed_in_another_thread():
    """As autograd does on a GPU, whose backward passes run in threads of its own."""

    def backward(loss):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(loss.backward).result()

    pair = make()
    recompute_blocks(pair)
    assert_same(gradients(pair, backward=backward), gradients(make()))


def test_recomputation_keeps_less():
    def kept(pair):
        size = 0

        def count(tensor):
            nonlocal size
            size += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            context = pair.encode(make_observation())["positive"]
            x_t = torch.zeros(3 * 16, 8, 4)
            pair.denoise(context, x_t, torch.full((len(x_t),), 0.5), "positive")
        return size

    plain, recomputing = make(), make()
    recompute_blocks(recomputing)
    assert kept(recomputing) < 0.5 * kept(plain)


@pytest.mark.parametrize("family", ["dp_vla", "timm", "simwam", "pi0", "smolvla"])
def test_a_family_runs_its_blocks_whole_so_that_they_are_computed_again(family):
    """One that did not would be refused by the training, before it ran out of the memory that it was to save."""
    backbone = backbone_class(family).tiny()
    pair = make_pair("lora", backbone, "head", rank=2, seed=0)
    assert recompute_blocks(pair) > 0
    assert not recomputes(pair)
    contexts = pair.encode(example_observation(backbone, 1), ("positive",))
    x_t = torch.zeros(1, *backbone.action.shape)
    pair.denoise(contexts["positive"], x_t, torch.full((1,), 0.5), "positive")
    assert recomputes(pair)
