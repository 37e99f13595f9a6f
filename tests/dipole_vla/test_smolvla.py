"""SmolVLA: parity with lerobot's own code, and what its folders must hold.

`data/parity/smolvla/` was written by lerobot 0.6.1 (`make.py` there): checkpoint, processor files, inputs, one
prediction, one sampling run and one training loss. What every lerobot folder must hold is in `test_lerobot_folders.py`.
"""

from __future__ import annotations

import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from identities import change_json, check_every_key_counts, check_identities, check_saved
from PIL import Image
from safetensors.torch import load_file, save_file
from small_backbone import SCENE

from dipole_vla.backbones import load_backbone
from dipole_vla.backbones.prompt import small_tokenizer
from dipole_vla.backbones.smolvla.model import SmolVLA, SmolVLASizes
from dipole_vla.commands.import_ import import_checkpoint
from dipole_vla.paths import interpolate, target
from dipole_vla.policy import AdapterPair, GuidedPolicy
from navsim_adapter.foundation.errors import InputError
from tests.same_numbers import SAMPLED, assert_same_numbers

SOURCE = Path(__file__).resolve().parents[1] / "data" / "parity" / "smolvla"


def imported(out, source=SOURCE, **options):
    import_checkpoint("smolvla", source, out, encoder=SOURCE / "vlm", **options)
    return load_backbone(out)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smolvla")
    small_tokenizer().save_pretrained(str(folder / "tokenizer"))
    return imported(folder / "out", tokenizer=folder / "tokenizer")


@pytest.fixture(scope="module")
def facts():
    return load_file(SOURCE / "facts.safetensors")


def observation_of(facts):
    names = ("pixels", "view_mask", "input_ids", "attention_mask")
    return {**{name: facts[name] for name in names}, "proprio": facts["state"]}


def test_an_imported_model_gives_the_upstream_numbers(model, facts):
    with torch.no_grad():
        context = model.encode(observation_of(facts))
        assert_same_numbers(model.denoise(context, facts["noise"], facts["t"]), facts["prediction"])
        prepared = model.prepare(context)
        assert_same_numbers(model.denoise(prepared, facts["noise"], facts["t"]), facts["prediction"])
        x_t = interpolate(model.schedule, facts["actions"], facts["noise"], facts["t"])
        wanted = target("velocity", model.schedule, facts["actions"], facts["noise"], facts["t"])
        assert_same_numbers((model.denoise(context, x_t, facts["t"]) - wanted).square(), facts["loss"])


def test_the_sampler_ends_in_the_upstream_numbers(model, facts):
    """Ten steps from their noise; then mean and deviation undone: x and y as they are, the heading of (cos, sin)."""
    plans = GuidedPolicy(model).sample(observation_of(facts), omega=None, noise=facts["noise"][:, None])[:, 0]
    wanted = facts["decoded"]
    assert_same_numbers(plans[..., :2], wanted[..., :2], SAMPLED)
    assert_same_numbers(plans[..., 2], torch.atan2(wanted[..., 3], wanted[..., 2]), SAMPLED)


def test_mean_and_deviation_normalise_state_and_action(model, facts):
    offset, scale = (torch.tensor(each) for each in (model.config.state_offset, model.config.state_scale))
    assert_same_numbers((facts["raw_state"] - offset) / scale, facts["state"])
    offset, scale = (torch.tensor(each) for each in (model.action.offset, model.action.scale))
    assert_same_numbers((facts["raw_action"] - offset) / scale, facts["action"])


def test_a_picture_is_fitted_as_upstream_fits_it(model, facts):
    """To half a step of uint8: lower right on black, resized without smoothing."""
    for i, picture in enumerate(facts["picture"]):
        found = model.processor().shown(Image.fromarray(picture.permute(1, 2, 0).numpy()))
        torch.testing.assert_close(found / 127.5 - 1, facts["pixels"][i, 0], rtol=0, atol=0.51 / 127.5)


@pytest.mark.parametrize("scope", ["head", "all"])
def test_identities_hold(facts, tmp_path, scope):
    check_identities(imported(tmp_path / "out"), observation_of(facts), scope)


@pytest.mark.parametrize("every", [0, 1, 3])
def test_identities_hold_whatever_layers_are_joint(tmp_path, every):
    model = make_smolvla(joint_every=every)
    assert [model.config.is_joint(i) for i in range(3)] == {0: [0, 0, 0], 1: [1, 1, 1], 3: [1, 0, 0]}[every]
    seen = {"pixels": torch.randn(2, 1, 3, 64, 64), "input_ids": torch.randint(4, 200, (2, 8))}
    check_identities(model, {**seen, "proprio": torch.randn(2, 12)}, "head")


def test_both_signs_share_the_frozen_part_of_what_cross_layers_read(tmp_path, facts):
    """Under scope "head" the two adapters ask a cross layer's keys and values of one and the same tensor."""
    model = imported(tmp_path / "out")
    pair, calls = AdapterPair(model, "head", rank=2), []
    model.lm_expert.layers[1].self_attn.k_proj.base_layer.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        pair.prepare_both(pair.encode(observation_of(facts)), ("positive", "negative"))
    assert len(calls) == 1


def test_a_saved_model_gives_the_same_numbers(model, facts, tmp_path):
    check_saved(model, observation_of(facts), tmp_path, "lm_expert.extra")


def test_every_key_counts(tmp_path):
    source = Path(shutil.copytree(SOURCE, tmp_path / "source"))
    file = load_file(source / "model.safetensors")
    names = [name for name in file if "lm_head" not in name]  # which nothing reads
    check_every_key_counts(
        file,
        names[::15],
        lambda damaged: save_file(damaged, source / "model.safetensors"),
        lambda: imported(tmp_path / "out", source),
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("adapt_to_pi_aloha",), True, "adapt_to_pi_aloha is True; only False"),
        (("add_image_special_tokens",), True, "add_image_special_tokens is True"),
        (("num_expert_layers",), 2, "num_expert_layers is 2"),
        (("attention_mode",), "other", "attention_mode must be"),
        (("resize_imgs_with_padding",), [32, 64], "resize_imgs_with_padding must be a square"),
        (("num_vlm_layers",), "16", "num_vlm_layers must be int"),
    ],
)
def test_what_cannot_be_done_is_named(tmp_path, keys, value, message):
    source = Path(shutil.copytree(SOURCE, tmp_path / "source"))
    change_json(source / "config.json", keys, value)
    with pytest.raises(InputError, match=message):
        imported(tmp_path / "out", source)


def test_a_vlm_of_other_sizes_is_asked_for(tmp_path):
    with pytest.raises(InputError, match=r"begins with 'HuggingFaceTB/tiny'.*--encoder"):
        import_checkpoint("smolvla", SOURCE, tmp_path / "out")
    with pytest.raises(InputError, match="is of type None, not smolvlm"):
        import_checkpoint("smolvla", SOURCE, tmp_path / "out", encoder=SOURCE)


def make_smolvla(**overrides):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SmolVLA.tiny(SmolVLASizes.tiny(**overrides)).eval()


def test_what_an_action_depends_on_trains():
    """All but what the prefix computes after its last keys and values."""
    model = make_smolvla().train()
    seen = {"pixels": torch.randn(2, 3, 3, 64, 64), "input_ids": torch.randint(4, 200, (2, 8))}
    context = model.encode({**seen, "proprio": torch.randn(2, 12)})
    model.denoise(context, torch.randn(2, 8, 8), torch.rand(2)).square().mean().backward()
    last = re.compile(r"vlm\.text_model\.(norm|layers\.2\.(self_attn\.[qo]_proj|mlp|post_att))")
    assert {name for name, p in model.named_parameters() if p.grad is None and not last.match(name)} == set()


def test_the_processor_gives_what_encode_takes():
    model = make_smolvla()
    processor = pickle.loads(pickle.dumps(model.processor()))  # noqa: S301 our own object: workers pickle it
    white = Image.fromarray(np.full((36, 64, 3), 255, dtype=np.uint8))
    sample = processor(SCENE, dict.fromkeys(processor.cameras, white))
    assert sample["pixels"].shape == (3, 3, 64, 64)
    assert sample["pixels"][0, :, 63, 0].tolist() == [255, 255, 255]
    assert sample["pixels"][0, :, 27, 0].tolist() == [0, 0, 0]  # 64 x 36 on a square: black above
    batch = {name: torch.stack([tensor, tensor]) for name, tensor in sample.items()}
    assert model.features(model.encode(batch)).shape == (2, 32 + 24)
    with pytest.raises(InputError, match="CAM_L0"):
        processor(SCENE, {"CAM_F0": white})
