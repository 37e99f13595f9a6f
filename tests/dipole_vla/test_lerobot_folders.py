"""lerobot's policy folders: what of their files is read, and what is refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from identities import change_json
from safetensors.torch import load_file, save_file
from test_pi05 import SIZES

from dipole_vla.backbones import load_backbone
from dipole_vla.commands.import_ import import_checkpoint
from navsim_adapter.foundation.errors import InputError

PARITY = Path(__file__).resolve().parents[1] / "data" / "parity"
OPTIONS = {"pi05": {"sizes": SIZES}, "smolvla": {"encoder": PARITY / "smolvla" / "vlm"}}


@pytest.fixture(params=["pi05", "smolvla"])
def family(request):
    return request.param


@pytest.fixture
def source(family, tmp_path):
    return Path(shutil.copytree(PARITY / family, tmp_path / "source"))


@pytest.fixture
def read(family, source, tmp_path):
    def read(**options):
        import_checkpoint(family, source, tmp_path / "out", **{**OPTIONS[family], **options})
        return load_backbone(tmp_path / "out")

    return read


def refused(read, tmp_path, message):
    with pytest.raises(InputError, match=message) as caught:
        read()
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def change_step(source, step, field, value, name="policy_preprocessor.json"):
    raw = json.loads((source / name).read_text())
    next(each for each in raw["steps"] if each["registry_name"] == step)[field] = value
    (source / name).write_text(json.dumps(raw))


def test_the_family_of_another_policy_is_named(family, source, read, tmp_path):
    change_json(source / "config.json", ("type",), "act")
    refused(read, tmp_path, f"config.json: is of type 'act', not {family}")


@pytest.mark.parametrize("name", ["policy_preprocessor.json", "policy_postprocessor.json"])
def test_processor_files_must_be_there(source, read, tmp_path, name):
    (source / name).unlink()
    refused(read, tmp_path, f"{name}: no such file; .*migrate_policy_normalization")


def test_statistics_must_be_there(source, read, tmp_path):
    next(source.glob("policy_preprocessor_step_*")).unlink()
    refused(read, tmp_path, "policy_preprocessor.json: normalizer_processor: its statistics .* are not in the folder")


@pytest.mark.parametrize("content", ["[]", '{"name": "policy_preprocessor"}', '{"steps": {"a": 1}}'])
def test_another_form_of_processor_file_is_refused(source, read, tmp_path, content):
    (source / "policy_preprocessor.json").write_text(content)
    refused(read, tmp_path, "policy_preprocessor.json: has no list of steps")


def test_a_step_that_is_not_known_is_refused(source, read, tmp_path):
    change_step(source, "device_processor", "registry_name", "flip_pictures")
    refused(read, tmp_path, "step 'flip_pictures' is not known")


def test_the_steps_of_the_other_family_are_refused(family, source, read, tmp_path):
    other = {"pi05": "smolvla", "smolvla": "pi05"}[family]
    shutil.copy(PARITY / other / "policy_preprocessor.json", source)
    refused(read, tmp_path, "policy_preprocessor.json: step '.*' is not known")


def test_a_normaliser_among_the_weights_is_an_older_lerobots(source, read, tmp_path):
    file = load_file(source / "model.safetensors")
    save_file({**file, "normalize_inputs.buffer_observation_state.mean": torch.zeros(12)}, source / "model.safetensors")
    refused(read, tmp_path, "lerobot before 0.4; run lerobot's migrate_policy_normalization")


def test_weights_must_be_there_and_whole(source, read, tmp_path):
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    refused(read, tmp_path, "model.safetensors: cannot be read as safetensors")
    weights.unlink()
    refused(read, tmp_path, "has no weights")


def test_an_adapter_beside_the_weights_is_refused(source, read, tmp_path):
    (source / "adapter_config.json").write_text("{}")
    refused(read, tmp_path, "an adapter lies with the weights")


def test_actions_normalised_in_two_ways_are_refused(source, read, tmp_path):
    file = next(source.glob("policy_postprocessor_step_*"))
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)
    refused(read, tmp_path, "normalise actions differently")


def test_pictures_by_statistics_are_refused(source, read, tmp_path):
    raw = json.loads((source / "policy_preprocessor.json").read_text())
    step = next(each for each in raw["steps"] if each["registry_name"] == "normalizer_processor")
    step["config"]["norm_map"]["VISUAL"] = "MEAN_STD"
    (source / "policy_preprocessor.json").write_text(json.dumps(raw))
    file = source / step["state_file"]
    picture = next(name for name in step["config"]["features"] if "images" in name)
    more = {f"{picture}.{name}": torch.ones(3) for name in ("mean", "std")}
    save_file({**load_file(file), **more}, file)
    refused(read, tmp_path, "normalises pictures by MEAN_STD")


@pytest.mark.parametrize(
    ("mode", "names"),
    [
        ("MIN_MAX", ("min", "max")),
        ("QUANTILES", ("q01", "q99")),
        ("QUANTILE10", ("q10", "q90")),
        ("MEAN_STD", ("mean", "std")),
    ],
)
def test_every_mode_is_read(source, read, tmp_path, mode, names):
    """Ranges go to -1 and 1, means to 0; a channel that never moves is not divided by zero."""
    first, second = torch.tensor([1.0, 2.0, 5.0, -4.0]), torch.tensor([3.0, 6.0, 5.0, 4.0])
    channels = json.loads((source / "config.json").read_text())["output_features"]["action"]["shape"][0]
    for name, step in (("pre", "normalizer_processor"), ("post", "unnormalizer_processor")):
        path = source / f"policy_{name}processor.json"
        raw = json.loads(path.read_text())
        found = next(each for each in raw["steps"] if each["registry_name"] == step)
        found["config"]["norm_map"]["ACTION"] = mode
        path.write_text(json.dumps(raw))
        both = zip(names, (first[:channels], second[:channels]))
        statistics = {
            name: tensor for name, tensor in load_file(source / found["state_file"]).items() if "state" in name
        }
        save_file({**statistics, **{f"action.{key}": tensor for key, tensor in both}}, source / found["state_file"])
    action = read().action
    if mode == "MEAN_STD":
        assert action.offset == tuple(first[:channels].tolist())
        assert action.scale == tuple(second[:channels].tolist())
    else:
        assert action.offset == (2.0, 4.0, 5.0, 0.0)[:channels]
        assert action.scale == pytest.approx((1.0, 2.0, 1e-8, 4.0)[:channels])


def test_a_robots_channels_become_padding(source, read, capsys):
    """Six joints are no poses: the network is taken, their statistics are not, and that is said."""
    change_json(source / "config.json", ("output_features", "action", "shape"), [6])
    model = read(horizon=8)
    assert (model.action.shape, model.action.scale) == ((8, 8), ())
    assert "its 6 channels are no poses" in capsys.readouterr().out


def test_a_base_model_without_statistics_is_taken_as_it_is(source, read):
    for name, step in (("pre", "normalizer_processor"), ("post", "unnormalizer_processor")):
        change_step(source, step, "state_file", None, f"policy_{name}processor.json")
    model = read()
    assert (model.action.offset, model.config.state_offset) == ((), ())


def test_cameras_are_the_users(family, read):
    sizes = {**OPTIONS[family].get("sizes", {}), "cameras": ["CAM_F0"]}
    assert read(sizes=sizes).config.cameras == ("CAM_F0",)
