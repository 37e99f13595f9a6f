"""What PI0.5, SmolVLA and SimWAM are for: one training step moves both adapters alone, and the loop can be exported.

What the experts of all families of their kind have in common, too.
"""

from __future__ import annotations

import pytest
import torch
from small_backbone import spread_adapters

from dipole_vla.backbones.alpamayo.model import Alpamayo
from dipole_vla.backbones.example import example_observation
from dipole_vla.backbones.pi0.model import PI0
from dipole_vla.backbones.pi05.model import PI05
from dipole_vla.backbones.simwam.model import SimWAM
from dipole_vla.backbones.smolvla.model import SmolVLA
from dipole_vla.export.program import write_loop
from dipole_vla.objective import dichotomous_loss
from dipole_vla.policy import AdapterPair, GuidedPolicy
from dipole_vla.training.memory import recompute_blocks, recomputes

FAMILIES = [PI05, SmolVLA, SimWAM]


def make_pair(family):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pair = AdapterPair(family.tiny().eval(), "head", rank=2)
    spread_adapters(pair)
    return pair


@pytest.mark.parametrize("routing", ["both", "bernoulli"])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_step_moves_both_adapters_and_nothing_else(family, routing):
    pair, group = make_pair(family), 4
    model, generator = pair.backbone, torch.Generator().manual_seed(1)
    contexts = pair.encode(example_observation(model, 2))
    x0, noise = (torch.randn(2 * group, *model.action.shape, generator=generator) for _ in range(2))
    t, advantage = (torch.rand(2 * group, generator=generator) for _ in range(2))
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    optimiser = torch.optim.SGD(pair.parameters(), lr=0.1)
    denoise = pair.denoiser(contexts, group)
    options = {"routing": routing, "generator": generator}
    loss, _ = dichotomous_loss(denoise, model.schedule, model.prediction, x0, advantage, noise, t, **options)
    loss.backward()
    optimiser.step()
    moved = {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}
    assert moved == {name for name, _ in pair.named_parameters()}


@pytest.mark.parametrize("family", [PI0, *FAMILIES, Alpamayo])
def test_what_is_computed_again_gives_the_same_gradients(family):
    """Layers of the experts run as a whole, so that `checkpointing` spares what they would keep."""
    found = []
    for again in (False, True):
        pair = make_pair(family)
        assert not again or recompute_blocks(pair)
        model, generator = pair.backbone, torch.Generator().manual_seed(1)
        contexts = pair.encode(example_observation(model, 2))
        x_t = torch.randn(6, *model.action.shape, generator=generator)
        pair.denoise(contexts["positive"], x_t, torch.full((6,), 0.5), "positive").square().mean().backward()
        assert recomputes(pair) is again
        found.append([parameter.grad for parameter in pair.parameters("positive")])
    assert all(torch.equal(*gradients) for gradients in zip(*found))


@pytest.mark.parametrize("family", [PI05, SmolVLA, pytest.param(SimWAM, marks=pytest.mark.slow)])
def test_the_loop_is_exported(family, tmp_path):
    """`write_loop` runs what it wrote and refuses plans that differ."""
    pair = make_pair(family)
    about = write_loop(GuidedPolicy(pair.backbone, pair), tmp_path, "program", candidates=2, steps=2)
    assert about["candidates"] == 2
