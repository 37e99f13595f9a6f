"""The tolerance lets rounding through and no wrong operation: some are put into networks whose numbers are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dipole_vla.backbones import load_backbone
from dipole_vla.commands.import_ import import_checkpoint
from tests.same_numbers import assert_same_numbers

PARITY = Path(__file__).resolve().parent / "data" / "parity"
SOURCES = {
    "dp_vla": (PARITY / "dp_vla", "facts.safetensors", "noise.prediction", {"prediction": "noise"}),
    "xvla": (PARITY / "xvla" / "native", "facts.safetensors", "auto.prediction", {"action_mode": "auto"}),
    "recogdrive": (PARITY / "recogdrive" / "flow.ckpt", "../recogdrive/facts.safetensors", "flow.prediction", {}),
}


@pytest.fixture(scope="module", params=SOURCES)
def case(request, tmp_path_factory) -> tuple[nn.Module, Callable[[], Tensor], Tensor]:
    """An imported network, its prediction, and the one that its own authors' code gave."""
    source, file, name, options = SOURCES[request.param]
    out = tmp_path_factory.mktemp("out") / request.param
    import_checkpoint(request.param, source, out, **options)
    folder = source if source.is_dir() else source.parent
    model, facts = load_backbone(out), load_file(folder / Path(file).name)
    seen = {key.removeprefix("in."): tensor for key, tensor in facts.items() if key.startswith("in.")}
    t = facts["flow.t"].double() / 1000 if request.param == "recogdrive" else facts["in.t"]

    def predict() -> Tensor:
        with torch.no_grad():
            return model.denoise(model.encode(seen), facts["in.x_t"], t)

    return model, predict, facts[name]


@contextmanager
def changed(modules: list[nn.Module], name: str, change: Callable[[Any], Any]) -> Iterator[None]:
    before = [getattr(module, name) for module in modules]
    for module, old in zip(modules, before):
        setattr(module, name, change(old))
    yield
    for module, old in zip(modules, before):
        setattr(module, name, old)


def test_rounding_passes_and_another_epsilon_of_the_norms_does_not(case):
    model, predict, wanted = case
    assert_same_numbers(predict(), wanted)
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    with changed(norms, "eps", lambda eps: 1e-6 if eps > 2e-6 else 1e-5), pytest.raises(AssertionError):
        assert_same_numbers(predict(), wanted)


def test_another_form_of_gelu_in_one_place_does_not_pass(case):
    model, predict, wanted = case
    for gelu in [module for module in model.modules() if isinstance(module, nn.GELU)]:
        other = changed([gelu], "approximate", lambda form: "none" if form == "tanh" else "tanh")
        with other, pytest.raises(AssertionError):
            assert_same_numbers(predict(), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_order_of_a_sum_is_no_difference_and_a_lost_term_is(dtype):
    """A sum of 4096 terms, forwards and backwards, of numbers of any size; at 2^-16 of the largest."""
    generator = torch.Generator().manual_seed(0)
    for size in (1e-6, 1.0, 1e6):
        terms = size * torch.randn(8, 4096, generator=generator, dtype=dtype)
        forwards, backwards = terms.cumsum(1)[:, -1], terms.flip(1).cumsum(1)[:, -1]
        assert_same_numbers(forwards, backwards)
        with pytest.raises(AssertionError):
            assert_same_numbers(forwards - terms[:, 0], backwards)
