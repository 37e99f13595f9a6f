"""What must hold for every model family and both scopes, whatever the network: used by the families' own tests."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_backbone import spread_adapters
from torch import Tensor

from dipole_vla.guidance import guide
from dipole_vla.paths import to_noise, to_x0
from dipole_vla.policy import AdapterPair, Backbone, GuidedPolicy
from dipole_vla.solvers import solve
from navsim_adapter.foundation.errors import InputError
from tests.same_numbers import GRADIENT, MAGNIFIED, assert_same_numbers


def check_every_key_counts(
    file: Mapping[str, Tensor], names: Iterable[str], save: Callable[[dict[str, Tensor]], None], read: Callable[[], Any]
) -> None:
    """Each key in turn: away, of another shape, or under another name beside itself, it is named."""
    for name in names:
        for damaged in (
            {key: tensor for key, tensor in file.items() if key != name},
            {**file, name: torch.zeros(*file[name].shape, 2)},
            {**file, name + "_x": torch.zeros(2)},
        ):
            save(damaged)
            with pytest.raises(InputError, match=re.escape(name)):
                read()


def check_saved(model: Backbone, observation: dict[str, Tensor], folder: Path, extra: str) -> Backbone:
    """Saved and loaded, a model is the same to the bit, and whole; a key too many, `extra`, is named."""
    model.save_pretrained(folder)
    again = type(model).from_pretrained(folder)
    assert (again.config, again.action, again.solver) == (model.config, model.action, model.solver)
    assert again.fingerprint() == model.fingerprint()
    assert not any(tensor.is_meta for tensor in (*again.parameters(), *again.buffers()))
    rows = len(observation["pixels"])
    x_t, t = _noise(model, rows, 1)[:, 0], torch.linspace(0.1, 0.9, rows)
    one, other = (m.denoise(m.encode(observation), x_t, t) for m in (model, again))
    assert torch.equal(one, other)
    file = load_file(folder / "model.safetensors")
    save_file({**file, extra: torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(InputError, match=re.escape(f"unexpected key {extra}")):
        type(model).from_pretrained(folder)
    return again


def change_json(path: Path, keys: Sequence[str], value: Any) -> None:
    """Set one field of a file, however deep."""
    raw = field = json.loads(path.read_text())
    for key in keys[:-1]:
        field = field[key]
    field[keys[-1]] = value
    path.write_text(json.dumps(raw))


def check_identities(backbone: Backbone, observation: dict[str, Tensor], scope: str) -> None:
    """A fresh pair is the base for every omega; a trained one is each sign bit for bit at omega 0 and -1."""
    policy = GuidedPolicy(backbone, AdapterPair(backbone, scope, rank=2))
    scenes, noise = len(observation["pixels"]), _noise(backbone, len(observation["pixels"]), 2)
    base = policy.sample(observation, omega=None, candidates=2, noise=noise)
    for omega in (-1.0, 0.0, 0.7, 3.0):
        plans = policy.sample(observation, omega=omega, candidates=2, noise=noise)
        assert_same_numbers(plans, base, MAGNIFIED)
    spread_adapters(policy.pair)
    for omega, sign in ((0.0, "positive"), (-1.0, "negative")):
        alone = _alone(policy, observation, noise, sign)
        assert torch.equal(policy.sample(observation, omega=omega, candidates=2, noise=noise), alone)
        assert not torch.allclose(alone, base, rtol=1e-3, atol=1e-3)
    assert torch.equal(policy.sample(observation, omega=None, candidates=2, noise=noise), base)
    _check_parameterisations(policy, observation)
    _check_rows(policy, observation, scenes)
    if hasattr(policy.pair, "denoise_routed"):
        _check_routed_rows(policy.pair, observation, scenes)


def _alone(policy: GuidedPolicy, observation: dict[str, Tensor], noise: Tensor, sign: str) -> Tensor:
    backbone, pair = policy.backbone, policy.pair
    with torch.no_grad():
        context = pair.prepare(pair.encode(observation, (sign,))[sign], sign)

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            return to_x0(backbone.prediction, backbone.schedule, pair.denoise(context, x_t, t, sign), x_t, t)

        action = solve(backbone.solver, backbone.schedule, denoise, noise.flatten(0, 1))
    return backbone.to_raw(action.unflatten(0, noise.shape[:2]), lambda: context)


def _check_parameterisations(policy: GuidedPolicy, observation: dict[str, Tensor]) -> None:
    """Combining clean actions or noises is combining the native predictions."""
    backbone, pair = policy.backbone, policy.pair
    x_t = _noise(backbone, len(observation["pixels"]), 1, seed=4)[:, 0]
    t = torch.full((len(x_t),), 0.4)
    with torch.no_grad():
        contexts = pair.encode(observation)
        signs = [pair.denoise(contexts[sign], x_t, t, sign) for sign in ("positive", "negative")]
    combined = guide(*signs, 1.5)
    for convert in (to_x0, to_noise):
        native, *each = (convert(backbone.prediction, backbone.schedule, p, x_t, t) for p in (combined, *signs))
        assert_same_numbers(native, guide(*each, 1.5))


def _check_rows(policy: GuidedPolicy, observation: dict[str, Tensor], scenes: int) -> None:
    """G rows per scene, contiguous or by index, are as G separate calls."""
    backbone, pair = policy.backbone, policy.pair
    x_t = _noise(backbone, scenes, 3, seed=5).flatten(0, 1)
    t = torch.rand(len(x_t), generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        context = pair.encode(observation, ("positive",))["positive"]
        together = pair.denoise(context, x_t, t, "positive")
        assert together.dtype == torch.float32
        for row in range(len(x_t)):
            alone = pair.denoise(
                context.rows(torch.tensor([row // 3])), x_t[row : row + 1], t[row : row + 1], "positive"
            )
            assert_same_numbers(alone[0], together[row])
        rows = torch.tensor([4, 0, 3, 5])
        some = pair.denoise(context.serving(rows // 3), x_t[rows], t[rows], "positive")
        assert_same_numbers(some, together[rows])


def _check_routed_rows(pair: AdapterPair, observation: dict[str, Tensor], scenes: int) -> None:
    """Rows of both signs in one pass: predictions and gradients of one pass for each sign."""
    x_t = _noise(pair.backbone, scenes, 3, seed=7).flatten(0, 1)
    t = torch.rand(len(x_t), generator=torch.Generator().manual_seed(8)) * 0.9 + 0.05
    is_positive = torch.arange(len(x_t)) % 4 > 0
    signs = torch.where(is_positive, 0, 1)
    outputs, gradients = [], []
    for one_pass in (True, False):
        contexts = pair.encode(observation)
        if one_pass:
            output = pair.denoise_routed(contexts, x_t, t, is_positive, group=3)
        else:
            each = [pair.denoise(contexts[sign], x_t, t, sign) for sign in ("positive", "negative")]
            output = torch.stack(each)[signs, torch.arange(len(x_t))]
        outputs.append(output)
        gradients.append(torch.autograd.grad(output.square().mean(), list(pair.parameters()), allow_unused=True))
    assert_same_numbers(*outputs)
    for found, wanted in zip(*gradients):
        if wanted is None:  # nothing reads the last layer of PI0's prefix but its keys and values
            assert found is None
            continue
        assert_same_numbers(found, wanted, GRADIENT)
        assert wanted.any()


def _noise(backbone: Backbone, scenes: int, candidates: int, seed: int = 3) -> Tensor:
    shape = (scenes, candidates, backbone.action.horizon, backbone.action.dim)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
