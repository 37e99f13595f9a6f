"""Checkpoints in shards: the hub's layout, read tensor by tensor, refused by name when something is off."""

from __future__ import annotations

import json
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_backbone import make_backbone
from torch import nn

from dipole_vla.backbones import weights
from dipole_vla.backbones.dp_vla.model import DPVLA
from navsim_adapter.foundation.errors import InputError

LIMIT = 200_000


@pytest.fixture
def sharded(tmp_path):
    make_backbone().save_pretrained(tmp_path, max_shard_bytes=LIMIT)
    return tmp_path


def test_shards_are_within_the_limit_and_in_the_hubs_layout(sharded):
    shards = sorted(sharded.glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    state = weights.base_state(make_backbone())
    assert index["weight_map"].keys() == state.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in state.values())
    for shard in shards:
        held = load_file(shard)
        assert {name for name, place in index["weight_map"].items() if place == shard.name} == held.keys()
        assert sum(tensor.nbytes for tensor in held.values()) <= LIMIT or len(held) == 1


def test_a_sharded_backbone_loads_to_the_same_weights(sharded):
    assert DPVLA.from_pretrained(sharded).fingerprint() == make_backbone().fingerprint()


def test_saving_again_leaves_no_stale_shards(sharded):
    make_backbone(seed=1).save_pretrained(sharded)
    assert [path.name for path in sorted(sharded.glob("model*"))] == ["model.safetensors"]
    assert DPVLA.from_pretrained(sharded).fingerprint() == make_backbone(seed=1).fingerprint()
    make_backbone(seed=2).save_pretrained(sharded, max_shard_bytes=LIMIT)
    assert not (sharded / "model.safetensors").exists()
    assert DPVLA.from_pretrained(sharded).fingerprint() == make_backbone(seed=2).fingerprint()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("lost", "no such file"),
        ("short", "missing key .*copy again"),
        ("extra", "unexpected key stray"),
        ("outside", "not a file of this folder"),
        ("empty", "no 'weight_map'"),
    ],
)
def test_a_damaged_set_of_shards_is_refused_by_name(sharded, damage, message):
    first, index = sorted(sharded.glob("*.safetensors"))[0], sharded / "model.safetensors.index.json"
    if damage == "lost":
        first.unlink()
    elif damage == "short":
        save_file(dict(list(load_file(first).items())[1:]), first)
    elif damage == "extra":
        save_file({**load_file(first), "stray": torch.zeros(1)}, first)
    elif damage == "outside":
        index.write_text(index.read_text().replace(first.name, f"../{first.name}"))
    else:
        index.write_text("{}")
    with pytest.raises(InputError, match=message):
        DPVLA.from_pretrained(sharded)


def test_nothing_is_assigned_unless_all_fits(tmp_path):
    """A wrong shape in the last tensor: the first one must not have been taken."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = model[0].weight.detach().clone()
    state = {name: torch.ones_like(tensor) for name, tensor in model.state_dict().items()}
    weights.write_tensors(tmp_path / "m.safetensors", {**state, "1.weight": torch.ones(3, 2)})
    with pytest.raises(InputError, match=r"1\.weight has shape \[3, 2\]"):
        weights.load_strict(model, tmp_path / "m.safetensors")
    assert torch.equal(model[0].weight, before)


def test_weights_are_cast_one_by_one_and_never_held_twice(tmp_path, monkeypatch):
    """float32 files into a bfloat16 model: at most one tensor of the file is alive at a time."""
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(5)]).bfloat16()
    wanted = {name: torch.randn(tensor.shape) for name, tensor in model.state_dict().items()}
    weights.write_shards(tmp_path / "m.safetensors", wanted, max_bytes=200)
    alive, most, opened = weakref.WeakSet(), [], weights._opened

    class Watched:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            self.open = self.file.__enter__()
            return self

        def __exit__(self, *problem):
            return self.file.__exit__(*problem)

        def get_tensor(self, name):
            tensor = self.open.get_tensor(name)
            alive.add(tensor)
            most.append(len(alive))
            return tensor

        def __getattr__(self, name):
            return getattr(self.open, name)

    monkeypatch.setattr(weights, "_opened", lambda *a: Watched(opened(*a)))
    weights.load_strict(model, tmp_path / "m.safetensors")
    assert max(most) <= 1
    assert len(most) == len(wanted)
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, wanted[name].bfloat16())
