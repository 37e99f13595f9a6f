"""Published architectures on the meta device: their sizes, and what the recipes' adapters add to them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from dipole_vla.backbones import FAMILIES
from dipole_vla.backbones.published import PUBLISHED, build_meta
from dipole_vla.backbones.timm.model import TimmDriver
from dipole_vla.commands.init import init
from dipole_vla.policy import AdapterPair
from navsim_adapter.foundation.errors import InputError

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def count(parameters):
    return sum(parameter.numel() for parameter in parameters)


def recipe_of(name):
    """The recipe whose backbone folder bears the architecture's name."""
    found = [yaml.safe_load(path.read_text()) for path in sorted(RECIPES.glob("navsim_*.yaml"))]
    return next(
        raw["model"]["init_args"] for raw in found if raw["model"]["init_args"]["backbone"].endswith(f"/{name}")
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_and_adapter_shares(name):
    """Within 2 % of the published parts; each adapter 1 to 2 % of the model, or of its part; they alone train."""
    chosen, recipe = PUBLISHED[name], recipe_of(name)
    model = build_meta(name)
    total = count(model.parameters())
    whole = count(p for name, p in model.named_parameters() if name.startswith(chosen.adapted))
    assert model.family == chosen.family
    assert all(parameter.is_meta for parameter in model.parameters())
    assert total / 1e6 == pytest.approx(sum(chosen.parts.values()), rel=0.02)
    assert any(name.startswith(model.encoder_names) for name, _ in model.named_parameters())
    assert recipe["rank"] == chosen.rank
    with torch.device("meta"):
        pair = AdapterPair(model, recipe["scope"], recipe["rank"])
    for role in ("positive", "negative"):
        assert 0.010 < count(pair.parameters(role)) / whole < 0.020
    assert not any(name.startswith(model.encoder_names) for name, _ in pair.named_parameters())
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in pair.named_parameters()}


@pytest.mark.parametrize(
    ("name", "millions"),
    [("smolvla", 450.0), ("pi05", 3616.8), ("pi0", 3501.0), ("recogdrive_2b", 2088.96 + 34.33), ("alpamayo", None)],
)
def test_with_what_is_left_out_it_is_as_large_as_it_is_known(name, millions):
    """The counts that lerobot, transformers and model cards give, heads and tables that nothing reads included."""
    told = PUBLISHED[name].beside_published(count(build_meta(name).parameters()))
    assert (told is None) is (millions is None)
    if told is not None:
        assert float(told.split()[-2]) == pytest.approx(millions, rel=0.002)


def test_every_family_has_a_published_size():
    assert {chosen.family for chosen in PUBLISHED.values()} == set(FAMILIES)


def test_dp_vla_has_its_published_parts():
    """The counts of the public code, built at true size: 570.7 M of Florence-2-large are kept, the head has 462.1 M."""
    model = build_meta("dp_vla_1b")
    assert count(model.encoder.parameters()) == pytest.approx(570.7e6, rel=1e-3)
    assert count(model.decoder.parameters()) == pytest.approx(462.1e6, rel=1e-3)


def test_init_takes_a_published_size(tmp_path):
    sizes = {"encoder": "test_convnext", "width": 64, "heads": 4, "context_width": 64, "depth": 1}
    init("timm", tmp_path / "out", size="timm_60m", sizes=sizes)
    model = TimmDriver.from_pretrained(tmp_path / "out")
    assert (model.config.depth, model.config.image_size) == (1, (256, 448))  # the rest is the named size's


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "dp_vla_1B"}, r"'dp_vla_1B' is not known \(did you mean 'dp_vla_1b'"),
        ({"size": "xvla_0.9b"}, "xvla_0.9b is of family xvla, got family dp_vla"),
        ({"sizes": {"widht": 3}}, r"sizes\.widht: .*did you mean 'width'"),
    ],
)
def test_init_refuses_what_makes_no_sense(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        init("dp_vla", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
