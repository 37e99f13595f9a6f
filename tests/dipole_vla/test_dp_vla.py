"""DP-VLA: its sizes, its order of operations, its inputs, and strict checkpoints."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small_backbone import SCENE, make_backbone, make_observation
from transformers.models.florence2.modeling_florence2 import Florence2Model

from dipole_vla.backbones import load_backbone
from dipole_vla.backbones.dit import Layout
from dipole_vla.backbones.dp_vla.model import DPVLA, DPVLAConfig
from dipole_vla.backbones.florence.encoder import FlorenceSizes, native_names
from dipole_vla.backbones.observing import normalised_pixels
from dipole_vla.backbones.prompt import prompt, small_tokenizer, steering_angle
from dipole_vla.policy import ActionSpec, AdapterPair
from navsim_adapter.foundation.errors import InputError
from tests.same_numbers import assert_same_numbers

PUBLISHED_KEYS = Path(__file__).resolve().parents[3] / "shared" / "checkpoint_layouts" / "dp_vla.keys.txt"


@pytest.fixture(scope="module")
def published():
    with torch.device("meta"):
        return DPVLA(DPVLAConfig())


def count(parameters):
    return sum(parameter.numel() for parameter in parameters)


def test_the_published_size_is_built_on_the_meta_device(published):
    parts = {"vision": 360.63e6, "language": 207.9e6, "projector": 2.2e6, "decoder": 462.06e6}
    found = {
        "vision": count(published.encoder.vision_tower.parameters()),
        "language": count(published.encoder.language_model.parameters()),
        "projector": count(published.encoder.multi_modal_projector.parameters()),
        "decoder": count(published.decoder.parameters()),
    }
    for part, expected in parts.items():
        assert found[part] == pytest.approx(expected, rel=0.02), part
    assert count(published.parameters()) == pytest.approx(1032.8e6, rel=1e-4)
    assert all(parameter.is_meta for parameter in published.parameters())


@pytest.mark.parametrize(("rank", "millions"), [(16, 6.7), (32, 13.4), (64, 26.74)])
def test_each_adapter_has_its_published_share(rank, millions, monkeypatch):
    with torch.device("meta"):
        model = DPVLA(DPVLAConfig())
        total = count(model.parameters())
        monkeypatch.setattr(model, "fingerprint", lambda: "0" * 64)  # no values on the meta device
        pair = AdapterPair(model, rank=rank)
    for role in ("positive", "negative"):
        assert count(pair.parameters(role)) == pytest.approx(millions * 1e6, rel=0.01)
    if rank == 32:
        assert 0.010 < count(pair.parameters("positive")) / total < 0.020
    assert count(p for p in model.parameters() if p.requires_grad) == count(pair.parameters())


@pytest.mark.skipif(not PUBLISHED_KEYS.is_file(), reason="the published key list is not beside this clone")
def test_the_published_file_fits_name_by_name(published):
    lines = re.findall(r"^((?:encoder|decoder)\S*) \[(.*?)\]", PUBLISHED_KEYS.read_text(), re.MULTILINE)
    file = {name: torch.empty([int(n) for n in shape.split(",")], device="meta") for name, shape in lines}
    head = {name: tensor for name, tensor in file.items() if name.startswith("decoder.")}
    encoder = native_names({name[8:]: tensor for name, tensor in file.items() if name.startswith("encoder.")})
    wanted = {name: tensor.shape for name, tensor in published.state_dict().items()}
    found = {**{f"encoder.{name}": tensor for name, tensor in encoder.items()}, **head}
    assert {name: tensor.shape for name, tensor in found.items()} == wanted
    assert [name for name in wanted if name.startswith("decoder.")] == list(head)


def test_the_encoder_is_transformers_florence_without_its_decoder():
    model = make_backbone()
    reference = Florence2Model(model.config.part(FlorenceSizes).native()).eval()
    weights = dict(model.encoder.state_dict())
    weights["language_model.shared.weight"] = weights["language_model.encoder.embed_tokens.weight"]
    missing, unexpected = reference.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all("decoder" in name for name in missing)
    seen = make_observation()
    with torch.no_grad():
        pixels = normalised_pixels(seen["pixels"])
        views = [reference.get_image_features(pixels[:, i]).pooler_output for i in range(3)]
        text = reference.language_model.shared(seen["input_ids"])
        tokens = reference.language_model.encoder(inputs_embeds=torch.cat([*views, text], 1)).last_hidden_state
        found = model.encode(seen)["tokens"]
    assert found.shape[1] == 3 * (1 + 2 * 2) + 40
    assert_same_numbers(found, tokens)


def test_old_names_translate_to_ours():
    model = make_backbone()
    state = model.encoder.state_dict()
    old = {}
    for name, tensor in state.items():
        name = re.sub(r"^(vision_tower\.convs\.\d+)\.conv\.", r"\1.proj.", name)
        name = re.sub(r"_block\.(conv[12])\.", r"_block.\1.fn.dw.", name)
        name = re.sub(r"spatial_block\.norm1\.", "spatial_block.window_attn.norm.", name)
        name = re.sub(r"channel_block\.norm1\.", "channel_block.channel_attn.norm.", name)
        name = re.sub(r"\.(window|channel)_attn\.(qkv|proj)\.", r".\1_attn.fn.\2.", name)
        name = re.sub(r"_block\.norm2\.", "_block.ffn.norm.", name)
        name = re.sub(r"\.ffn\.(fc[12])\.", r".ffn.fn.net.\1.", name)
        name = name.replace("multi_modal_projector.image_position_embed.", "image_pos_embed.")
        name = name.replace("multi_modal_projector.image_proj_norm.", "image_proj_norm.")
        name = name.replace("multi_modal_projector.visual_temporal_embed.", "visual_temporal_embed.")
        name = name.replace("language_model.", "language_model.model.")
        old[name] = tensor
    old["image_projection"] = old.pop("multi_modal_projector.image_projection.weight").T
    old["language_model.model.shared.weight"] = old["language_model.model.encoder.embed_tokens.weight"]
    old["language_model.final_logits_bias"] = torch.zeros(1, 5)
    for names in (old, state):  # both namings are understood
        found = native_names(names)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize(("gate", "module"), [(2, "attn"), (5, "cross_attn"), (8, "mlp"), (11, "cross_mlp")])
def test_modulation_vectors_come_in_the_published_order(gate, module):
    """With only one gate open, only that operation can change the result."""
    model = make_backbone()
    block = model.decoder.blocks[0]
    width = model.config.width
    with torch.no_grad():
        block.adaLN_modulation[1].weight.zero_()
        block.adaLN_modulation[1].bias.zero_()
        block.adaLN_modulation[1].bias[gate * width : (gate + 1) * width] = 1
    context = model.encode(make_observation(2))
    x_t, t = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.6])
    before = model.denoise(context, x_t, t)
    for name in ("attn", "cross_attn", "mlp", "cross_mlp"):
        parameter = next(getattr(block, name).parameters())
        saved = parameter.data.clone()
        parameter.data.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        changed = not torch.equal(model.denoise(context, x_t, t), before)
        parameter.data.copy_(saved)
        assert changed == (name == module)


def test_fresh_weights_predict_zero():
    model = DPVLA.tiny(DPVLAConfig.tiny(image_size=32)).eval()
    context = model.encode(make_observation(2))
    assert not model.denoise(context, torch.randn(2, 8, 4), torch.tensor([0.3, 0.6])).any()


def test_rows_of_a_scene_are_served_as_if_alone():
    model, seen = make_backbone(), make_observation(3)
    context = model.encode(seen)
    generator = torch.Generator().manual_seed(0)
    x_t, t = torch.randn(12, 8, 4, generator=generator), torch.rand(12, generator=generator)
    together = model.denoise(context, x_t, t)
    assert together.dtype == torch.float32
    for scene in range(3):
        for row in range(4 * scene, 4 * scene + 4):
            alone = model.denoise(context.rows(torch.tensor([scene])), x_t[row : row + 1], t[row : row + 1])
            assert_same_numbers(alone[0], together[row])
    prepared = model.denoise(model.prepare(context), x_t, t)
    assert torch.equal(prepared, together)


def test_a_ragged_layout_packs_and_unpacks():
    serves = torch.tensor([2, 0, 2, 2, 1])
    layout = Layout(3, 5, serves)
    x = torch.randn(5, 8, 6, generator=torch.Generator().manual_seed(0))
    packed = layout.pack(x)
    assert packed.shape == (3, 3 * 8, 6)
    assert torch.equal(packed[2], x[[0, 2, 3]].reshape(24, 6))
    assert not packed[0, 8:].any()
    assert torch.equal(layout.unpack(packed, 8), x)


def test_padding_of_the_prompt_is_attended_to():
    """As in the published code: the mask is all ones, so a padding id changes the result."""
    model, seen = make_backbone(), make_observation(1)
    before = model.encode(seen)["tokens"][:, 0]
    seen["input_ids"][0, -1] += 1
    assert not torch.equal(model.encode(seen)["tokens"][:, 0], before)


def test_features_are_one_row_per_scene():
    model = make_backbone()
    context = model.encode(make_observation(2))
    assert model.features(context).shape == (2, 4 * 32 + 12)


def test_the_prompt_has_the_published_words():
    assert prompt(SCENE) == (
        "- Steering: 0.10 degrees\n- Speed: 6.05 m/s\n- Acceleration: 0.50 m/s^2\n- Navigation: left\n\n"
        "What trajectory comes next?"
    )  # arctan(0.1 / 0.5 * 3.089 / 6) = 0.1026 radians
    assert steering_angle({**SCENE, "velocity": [0.19, 3.0]}) == 0.0
    wrapped = [*SCENE["history"][:2], [0, 0, 3.1], [0, 0, -3.1]]
    assert 0 < steering_angle({**SCENE, "history": wrapped}) < 0.1


def images(size=(64, 36)):
    generator = np.random.default_rng(0)
    picture = generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return {name: Image.fromarray(np.roll(picture, i, 0)) for i, name in enumerate(("CAM_F0", "CAM_L0", "CAM_R0"))}


def test_the_processor_gives_what_encode_takes():
    model = make_backbone()
    processor = pickle.loads(pickle.dumps(model.processor()))  # noqa: S301 our own object: workers pickle it
    assert processor.cameras == ("CAM_L0", "CAM_F0", "CAM_R0")
    sample = processor(SCENE, images())
    assert sample["pixels"].shape == (3, 3, 32, 32)
    assert sample["pixels"].dtype == torch.uint8
    assert sample["input_ids"].shape == (40,)
    assert sample["proprio"].tolist() == pytest.approx(np.ravel(SCENE["history"]).tolist())
    front = np.asarray(images()["CAM_F0"].resize((32, 32), Image.Resampling.BICUBIC))
    assert np.array_equal(sample["pixels"][1].permute(1, 2, 0).numpy(), front)
    batch = {name: torch.stack([tensor, tensor]) for name, tensor in sample.items()}
    assert len(model.encode(batch)) == 2
    with pytest.raises(InputError, match="CAM_L0"):
        processor(SCENE, {"CAM_F0": images()["CAM_F0"]})


def test_pixels_are_normalised_as_imagenet():
    white = normalised_pixels(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten()
    assert white.tolist() == pytest.approx([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225], rel=1e-6)


def test_the_small_tokenizer_keeps_the_command_within_forty_tokens():
    tokenizer = small_tokenizer()
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    longest = prompt({**SCENE, "velocity": [19.87, 0.0], "command": "unknown", "acceleration": [3.87, 0.0]})
    ids = tokenizer(longest, truncation=True, max_length=40)["input_ids"]
    assert "Navigation: unknown" in tokenizer.decode(ids)
    assert tokenizer.unk_token_id not in ids


@pytest.fixture
def saved(tmp_path):
    make_backbone().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_model_gives_the_same_numbers(saved):
    model, again = make_backbone(), load_backbone(saved)
    assert isinstance(again, DPVLA)
    assert (again.config, again.action, again.solver) == (model.config, model.action, model.solver)
    assert again.fingerprint() == model.fingerprint()
    assert not any(tensor.is_meta for tensor in (*again.parameters(), *again.buffers()))
    x_t, t = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 0.5, 0.9])
    one, other = (m.denoise(m.encode(make_observation()), x_t, t) for m in (model, again))
    assert torch.equal(one, other)
    for name, tensor in model.processor()(SCENE, images()).items():
        assert torch.equal(again.processor()(SCENE, images())[name], tensor)


def test_a_loaded_model_trains(saved):
    model = load_backbone(saved).train()
    context = model.encode(make_observation(2))
    model.denoise(context, torch.randn(2, 8, 4), torch.tensor([0.3, 0.6])).square().mean().backward()
    untouched = {name for name, p in model.named_parameters() if p.grad is None}
    assert not untouched


def damage_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({"decoder.extra": torch.zeros(1)}), "unexpected key decoder.extra"),
        (lambda t: t.pop("decoder.pos_emb"), "missing key decoder.pos_emb"),
        (lambda t: t.update({"decoder.pos_emb": torch.zeros(1, 8, 7)}), r"decoder.pos_emb has shape \[1, 8, 7\]"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(saved, change, message):
    damage_weights(saved, change)
    with pytest.raises(InputError, match=message):
        load_backbone(saved)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("family",), "dp_vl", "did you mean 'dp_vla'"),
        (("config", "widht"), 3, "did you mean 'width'"),
        (("config", "width"), "wide", r"config.width: must be int, got 'wide'"),
        (("config", "prediction"), "score", "config.prediction"),
        (("action", "scale"), [0.0, 1.0, 1.0, 1.0], "action.scale"),
        (("solver", "name"), "heun", "solver.name"),
        (("extra",), 1, "unknown field 'extra'"),
    ],
)
def test_a_bad_configuration_names_its_field(saved, path, value, message):
    file = saved / "config.json"
    raw = json.loads(file.read_text())
    target = raw
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    file.write_text(json.dumps(raw))
    with pytest.raises(InputError, match=message):
        load_backbone(saved)


def test_what_is_not_a_checkpoint_of_ours_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_backbone(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "dp_vla"}')
    with pytest.raises(InputError, match="not a checkpoint of this program"):
        load_backbone(tmp_path)


def test_an_action_survives_the_round_trip_in_every_meaning():
    generator = torch.Generator().manual_seed(0)
    poses = torch.randn(5, 8, 3, generator=generator).cumsum(1)
    poses[..., 2] = torch.atan2(poses[..., 2].sin(), poses[..., 2].cos())
    for kinematic in ("waypoint", "diff"):
        for heading, dim in (("cos_sin", 4), ("angle", 3), ("cos_sin", 20)):
            spec = ActionSpec(dim=dim, kinematic=kinematic, heading=heading, is_padded=dim == 20).fitted(poses)
            action = spec.encode(poses)
            assert action.shape == (5, 8, dim)
            assert not action[..., spec.real_dim :].any()
            assert_same_numbers(spec.decode(action), poses)
            real = action[..., : spec.real_dim]
            assert real.mean(0).abs().max() < 1e-5
            assert spec.mask().sum() == 8 * spec.real_dim
    plain = ActionSpec(kinematic="diff").encode(torch.tensor([[[1.0, 0.5, 0.0]] * 8]))
    assert plain[0, 0].tolist() == [1.0, 0.5, 1.0, 0.0]
    assert plain[0, 1].tolist() == [0.0, 0.0, 1.0, 0.0]


def test_the_published_start_noise_is_the_default():
    with torch.device("meta"):
        assert DPVLA(DPVLAConfig()).solver.start_scale == 0.5
