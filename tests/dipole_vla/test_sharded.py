"""FSDP2 over the frozen weights: a rank's part of them is held, every number stays; see also test_deepspeed.py."""

from __future__ import annotations

import pytest
import torch
from small_backbone import make_backbone, make_observation, spread_adapters
from torch.distributed.tensor import DTensor

from dipole_vla.backbones import FAMILIES, backbone_class
from dipole_vla.backbones.example import example_observation
from dipole_vla.policy import AdapterPair
from dipole_vla.training.sharded import shard_frozen
from navsim_adapter.foundation.errors import InputError
from tests.same_numbers import assert_same_numbers


@pytest.fixture
def ranks():
    """A group of one: what is sharded is gathered all the same."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def outcome(pair, observation):
    """Predictions of both signs and the gradients of their adapters."""
    backbone, scenes = pair.backbone, len(next(iter(observation.values())))
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(3 * scenes, backbone.action.horizon, backbone.action.dim, generator=generator)
    t = torch.rand(3 * scenes, generator=generator) * 0.9 + 0.05
    contexts = pair.encode(observation)
    outputs = [pair.denoise(contexts[role], x_t, t, role) for role in ("positive", "negative")]
    outputs.append(pair.denoise_routed(contexts, x_t, t, torch.arange(len(t)) % 4 > 0, group=3))
    loss = torch.stack(outputs).square().mean()
    gradients = torch.autograd.grad(loss, list(pair.parameters()), allow_unused=True, materialize_grads=True)
    return [*(output.detach() for output in outputs), *gradients, backbone.features(contexts["positive"]).detach()]


@pytest.mark.parametrize("scope", ["head", "all"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_sharding_changes_no_number(ranks, family, scope):
    torch.manual_seed(0)
    backbone = backbone_class(family).tiny().eval()
    pair = AdapterPair(backbone, scope, rank=2)
    spread_adapters(pair)
    observation = example_observation(backbone, 2)
    wanted = outcome(pair, observation)
    shard_frozen(backbone, "cpu")
    for name, parameter in backbone.named_parameters():
        assert isinstance(parameter, DTensor) == (not parameter.requires_grad), name
    for _ in range(2):  # gathered, freed, gathered again
        for found, value in zip(outcome(pair, observation), wanted):
            assert_same_numbers(found, value)


def test_a_backbone_that_trains_itself_is_refused(ranks):
    backbone = make_backbone()
    backbone.requires_grad_(False)
    backbone.decoder.requires_grad_(True)
    with pytest.raises(InputError, match=r"its own decoder\S* trains; use ddp"):
        shard_frozen(backbone, "cpu")
    assert backbone.encode(make_observation()) is not None
