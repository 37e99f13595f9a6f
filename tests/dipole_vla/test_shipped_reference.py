"""The policy the demo starts from: whole, small, of this version, and a stranger to the worlds it is tried on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from dipole_vla.backbones import load_backbone
from dipole_vla.backbones.dp_vla.model import DPVLA
from dipole_vla.demo import shipped_recipes, steps
from dipole_vla.reference import FACTS, shipped_reference
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import MANIFEST, read_json

FIRST_TRAINING_SEED = 1000  # demos, tests and benchmarks use smaller ones
MOST_BYTES = 12_000_000


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A recipes folder with a reference that may be spoilt."""
    shutil.copytree(shipped_recipes() / "reference", tmp_path / "reference")
    return tmp_path


def test_it_is_a_whole_small_dp_vla_that_plans() -> None:
    reference = shipped_reference(shipped_recipes(), seed=0)
    network = load_backbone(reference.folder)
    assert isinstance(network, DPVLA)
    assert sum(path.stat().st_size for path in reference.folder.rglob("*") if path.is_file()) < MOST_BYTES
    size = network.config.image_size
    pixels = torch.zeros(1, len(network.config.cameras), 3, size, size, dtype=torch.uint8)
    ids = torch.zeros(1, network.config.prompt_tokens, dtype=torch.int64)
    with torch.inference_mode():
        context = network.encode({"pixels": pixels, "input_ids": ids, "proprio": torch.zeros(1, 12)})
        action = network.denoise(context, torch.zeros(1, *network.action.shape), torch.ones(1))
    assert network.action.decode(action).isfinite().all()


def test_its_worlds_are_no_others() -> None:
    reference = shipped_reference(shipped_recipes(), seed=0)
    assert min(reference.seeds) >= FIRST_TRAINING_SEED
    with pytest.raises(InputError, match=f"--seed: .*seed {reference.seeds[0]}"):
        shipped_reference(shipped_recipes(), reference.seeds[0])


def test_nothing_of_the_machine_that_made_it_is_in_it() -> None:
    folder = shipped_recipes() / "reference"
    for name in (MANIFEST, "provenance.json", "config.json"):
        assert '"/' not in (folder / name).read_text()
        assert ": /" not in (folder / name).read_text()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_changed_file_is_named(copied: Path, name: str) -> None:
    path = copied / "reference" / name
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=name):
        shipped_reference(copied, seed=0)


@pytest.mark.parametrize("key", ["format", "generator"])
def test_another_version_is_refused(copied: Path, key: str) -> None:
    path = copied / "reference" / FACTS
    path.write_text(json.dumps({**read_json(path), key: 99}))
    with pytest.raises(InputError, match=f"{key} is 99") as refusal:
        shipped_reference(copied, seed=0)
    assert "\n" not in str(refusal.value)


def test_a_missing_one_says_how_to_do_without(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--from-scratch"):
        shipped_reference(tmp_path, seed=0)


def test_the_demo_starts_from_it_or_from_scratch(tmp_path: Path) -> None:
    recipes = shipped_recipes()
    shipped = steps(tmp_path, 0, recipes, rounds=1, reference=recipes / "reference")
    scratch = steps(tmp_path, 0, recipes, rounds=1)
    trained = [word for line in scratch if line not in shipped for word in line]
    assert str(recipes / "init.yaml") in trained
    assert str(recipes / "imitation.yaml") in trained
    assert not any("imitation" in word or "init" in word for line in shipped for word in line)
    (first, *_) = [line[line.index("--policy") + 1] for line in shipped if line[1] == "collect"]
    assert first == str(recipes / "reference")
