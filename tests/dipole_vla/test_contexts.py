"""Contexts on disk: the same training, announced, resumable, and refused for another model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_backbone import make_backbone
from small_data import adapters, train, write_inputs

from dipole_vla.cli import main
from dipole_vla.data import contexts as module
from dipole_vla.data.batches import batches
from dipole_vla.data.contexts import ContextStore, Encoder, Ranks, make_contexts
from dipole_vla.data.tables import SceneTable
from dipole_vla.training import CriticModule, ImitationModule
from navsim_adapter.foundation.errors import InputError
from tests.same_numbers import assert_same_numbers


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def encoder_of(backbone) -> Encoder:
    return Encoder(backbone.encode, backbone.processor(), backbone.fingerprint(), backbone.device)


def test_training_from_float32_contexts_gives_the_same_bits(inputs, tmp_path):
    plain, _ = train(inputs, routing="bernoulli")
    first, _ = train(inputs, routing="bernoulli", data={"contexts": tmp_path / "c"})
    stamp = {path: path.stat().st_mtime_ns for path in (tmp_path / "c").iterdir()}
    second, _ = train(inputs, routing="bernoulli", data={"contexts": tmp_path / "c", "workers": 1})
    assert stamp == {path: path.stat().st_mtime_ns for path in (tmp_path / "c").iterdir()}
    for other in (first, second):
        for name, tensor in adapters(plain).items():
            assert torch.equal(adapters(other)[name], tensor), name


def test_pictures_are_not_read_once_contexts_are_there(inputs, tmp_path):
    train(inputs, steps=1, data={"contexts": tmp_path / "c"})
    _, rows = train(inputs, steps=1, data={"contexts": tmp_path / "c", "sensors": tmp_path / "nowhere"})
    with pytest.raises(InputError, match="cannot be read"):
        train(inputs, steps=1, data={"sensors": tmp_path / "nowhere"})
    assert len(rows) == 1


def test_bfloat16_contexts_change_numbers_by_their_rounding_only(inputs, tmp_path):
    _, plain = train(inputs, steps=2)
    _, half = train(inputs, steps=2, data={"contexts": tmp_path / "c", "contexts_dtype": "bfloat16"})
    assert half[0]["loss"] != plain[0]["loss"]
    assert half[0]["loss"] == pytest.approx(plain[0]["loss"], rel=2e-2)
    full = make_contexts(tmp_path / "f", encoder_of(make_backbone()), SceneTable(inputs / "scenes"), "float32")
    for name, tensor in ContextStore(tmp_path / "c")[3].items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, full[3][name].bfloat16())


def test_every_scene_is_its_own_encoding_whatever_the_shards_and_ranks(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD_BYTES", 1)  # one batch a shard
    backbone, scenes = make_backbone(), SceneTable(inputs / "scenes")
    make_contexts_by_two_ranks(tmp_path / "c", backbone, scenes)
    store = ContextStore(tmp_path / "c")
    assert store.shape.shards == 3
    assert len(store) == 8
    for i, batch in enumerate(batches(scenes, range(8), backbone.processor(), 1, backbone.device)):
        with torch.no_grad():
            wanted = backbone.encode(batch.observation)
        for name, tensor in store[i].items():
            assert_same_numbers(tensor, wanted[name][0])


def make_contexts_by_two_ranks(folder, backbone, scenes):
    """Rank 0 first, which stops where it would wait for rank 1 to finish its shards."""

    class AtBarrier(Exception):
        pass

    def stop_at(count):
        seen = []

        def wait():
            seen.append(1)
            if len(seen) == count:
                raise AtBarrier

        return wait

    with pytest.raises(AtBarrier):
        make_contexts(folder, encoder_of(backbone), scenes, "model", 3, Ranks(0, 2, stop_at(2)))
    assert {path.name for path in folder.glob("*.safetensors")} == {"00000.safetensors", "00002.safetensors"}
    with pytest.raises(AtBarrier):
        make_contexts(folder, encoder_of(backbone), scenes, "model", 3, Ranks(1, 2, stop_at(2)))
    make_contexts(folder, encoder_of(backbone), scenes, "model", 3)


def test_an_interrupted_run_goes_on_without_encoding_again(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD_BYTES", 1)
    backbone, scenes = make_backbone(), SceneTable(inputs / "scenes")
    encoder, encoded = encoder_of(backbone), []

    def killed(observation):
        if len(encoded) == 4:
            raise KeyboardInterrupt
        encoded.append(len(observation["proprio"]))
        return backbone.encode(observation)

    dying = Encoder(killed, encoder.processor, encoder.fingerprint, encoder.device)
    with pytest.raises(KeyboardInterrupt):
        make_contexts(tmp_path / "c", dying, scenes, batch_size=2)
    assert not (tmp_path / "c" / "manifest.json").exists()
    done = len(list((tmp_path / "c").glob("0*.safetensors")))
    assert done == 3
    encoded.clear()
    counting = Encoder(
        lambda o: encoded.append(1) or backbone.encode(o), encoder.processor, encoder.fingerprint, encoder.device
    )
    make_contexts(tmp_path / "c", counting, scenes, batch_size=2)
    assert len(encoded) == 1
    whole = make_contexts(tmp_path / "w", encoder, scenes, batch_size=2)
    for i in range(8):
        for name, tensor in ContextStore(tmp_path / "c")[i].items():
            assert torch.equal(tensor, whole[i][name])


def test_the_size_is_said_and_a_full_disk_refused_before_anything_is_written(inputs, tmp_path, monkeypatch, capsys):
    backbone, scenes = make_backbone(), SceneTable(inputs / "scenes")
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(InputError, match=r"8 scenes x .* are free; choose another disk"):
        make_contexts(tmp_path / "c", encoder_of(backbone), scenes)
    assert not list((tmp_path / "c").glob("*.safetensors"))
    monkeypatch.undo()
    make_contexts(tmp_path / "c", encoder_of(backbone), scenes)
    said = capsys.readouterr().out
    size = sum(path.stat().st_size for path in (tmp_path / "c").glob("*.safetensors"))
    assert "8 scenes x" in said
    assert ContextStore(tmp_path / "c").shape.bytes_per_scene * 8 == pytest.approx(size, rel=0.02)


def test_the_critic_reads_the_same_features_from_them(inputs, tmp_path):
    plain, _ = train(inputs, steps=1, module=CriticModule(inputs / "backbone"))
    stored, _ = train(inputs, steps=1, module=CriticModule(inputs / "backbone"), data={"contexts": tmp_path / "c"})
    assert plain.features.keys() == stored.features.keys()
    for token, feature in plain.features.items():  # 8 scenes at once against 4
        assert_same_numbers(stored.features[token], feature)


def test_contexts_of_another_backbone_are_refused(inputs, tmp_path):
    scenes = SceneTable(inputs / "scenes")
    make_contexts(tmp_path / "c", encoder_of(make_backbone()), scenes)
    with pytest.raises(InputError, match=r"backbone_fingerprint: .*choose another folder"):
        make_contexts(tmp_path / "c", encoder_of(make_backbone(seed=1)), scenes)
    with pytest.raises(InputError, match="dtype"):
        make_contexts(tmp_path / "c", encoder_of(make_backbone()), scenes, "bfloat16")


def test_a_training_that_changes_the_encoder_cannot_use_contexts(inputs, tmp_path):
    with pytest.raises(InputError, match=r"data\.contexts.*scope head"):
        train(inputs, steps=1, scope="all", data={"contexts": tmp_path / "c"})
    with pytest.raises(InputError, match=r"data\.contexts"):
        train(inputs, steps=1, module=ImitationModule(inputs / "backbone"), data={"contexts": tmp_path / "c"})
    assert not (tmp_path / "c").exists()


def test_a_damaged_shard_is_refused(inputs, tmp_path):
    make_contexts(tmp_path / "c", encoder_of(make_backbone()), SceneTable(inputs / "scenes"))
    shard = tmp_path / "c" / "00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(InputError, match="not finished or damaged"):
        ContextStore(tmp_path / "c")


def test_a_scene_that_encodes_to_nan_is_named(inputs, tmp_path):
    broken = make_backbone()
    with torch.no_grad():
        broken.encoder.multi_modal_projector.image_projection.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="not finite on tokens scene00"):
        make_contexts(tmp_path / "c", encoder_of(broken), SceneTable(inputs / "scenes"))


def test_the_command_makes_them_for_a_training_to_read(inputs, tmp_path, capsys):
    words = ["contexts", "--backbone", inputs / "backbone", "--scenes", inputs / "scenes", "--out", tmp_path / "c"]
    line = [str(word) for word in (*words, "--device", "cpu", "--batch_size", 4)]
    assert main(line) == 0
    assert "scenes x" in capsys.readouterr().out
    assert main(line) == 0
    assert "already complete" in capsys.readouterr().out
    before = (tmp_path / "c" / "manifest.json").stat().st_mtime_ns
    train(inputs, steps=1, data={"contexts": tmp_path / "c"})
    assert (tmp_path / "c" / "manifest.json").stat().st_mtime_ns == before
