"""The timm family: any image encoder and DP-VLA's head."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import timm
import torch
from identities import check_identities
from PIL import Image
from safetensors.torch import load_file, save_file
from small_backbone import SCENE

from dipole_vla.backbones.timm.model import TimmConfig, TimmDriver, channels_last, token_shape
from dipole_vla.commands.init import init
from dipole_vla.training import ImitationModule
from navsim_adapter.foundation.errors import InputError

# one encoder of each shape of features: (N, C, H, W), (N, T, C) with a class token, (N, H, W, C)
ENCODERS = ["test_convnext", "test_vit", "swin_tiny_patch4_window7_224"]


def make_timm(seed=0, **overrides):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TimmDriver.tiny(TimmConfig.tiny(**overrides)).eval()


def make_observation(model, scenes=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    height, width = model.config.image_size
    return {
        "pixels": torch.randint(0, 256, (scenes, 3, 3, height, width), generator=generator, dtype=torch.uint8),
        "proprio": torch.randn(scenes, 20, generator=generator),
    }


@pytest.mark.parametrize("scope", ["head", "all"])
def test_identities_hold(scope):
    model = make_timm(prediction="sample")
    torch.nn.init.normal_(model.decoder.final_layer.proj[-1].weight, std=0.05)
    for block in model.decoder.blocks:
        torch.nn.init.normal_(block.adaLN_modulation[1].weight, std=0.05)
    check_identities(model, make_observation(model), scope)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_any_encoder_is_saved_and_gives_the_same_numbers(tmp_path, encoder):
    model = make_timm(encoder=encoder, image_size=(64, 64), depth=1)
    model.save_pretrained(tmp_path / "model")
    again = TimmDriver.from_pretrained(tmp_path / "model")
    assert again.fingerprint() == model.fingerprint()
    assert not any(tensor.is_meta for tensor in (*again.parameters(), *again.buffers()))
    x_t, t = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 0.9])
    one, other = (m.encode(make_observation(m)) for m in (model, again))
    assert torch.equal(one["tokens"], other["tokens"])
    assert torch.equal(model.denoise(one, x_t, t), again.denoise(other, x_t, t))
    assert one["tokens"].shape == (2, 3 * token_shape(model.config)[0], 32)
    file = load_file(tmp_path / "model" / "model.safetensors")
    save_file({**file, "encoder.extra": torch.zeros(1)}, tmp_path / "model" / "model.safetensors")
    with pytest.raises(InputError, match=r"unexpected key encoder\.extra"):
        TimmDriver.from_pretrained(tmp_path / "model")


def test_features_come_as_tokens_whatever_their_shape():
    """Token 5 of a 2 x 3 map is its last place in every layout."""
    grid = torch.arange(2 * 4 * 2 * 3, dtype=torch.float32).reshape(2, 4, 2, 3)
    rows = channels_last(grid, 4)
    assert torch.equal(rows[1, 5], grid[1, :, 1, 2])
    assert torch.equal(channels_last(grid.permute(0, 2, 3, 1), 4), rows)
    assert torch.equal(channels_last(rows, 4), rows)
    with pytest.raises(InputError, match="no image tokens"):
        channels_last(torch.zeros(2, 4), 4)


def test_every_parameter_trains():
    model = make_timm().train()
    for block in model.decoder.blocks:
        torch.nn.init.normal_(block.adaLN_modulation[1].weight, std=0.05)
    torch.nn.init.normal_(model.decoder.final_layer.proj[-1].weight, std=0.05)
    context = model.encode(make_observation(model))
    model.denoise(context, torch.randn(2, 8, 4), torch.rand(2)).square().mean().backward()
    assert not {name for name, p in model.named_parameters() if p.grad is None}


def test_weights_of_timm_are_read_strictly(tmp_path):
    """A file as timm writes it, classifier and all."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        published = timm.create_model("test_convnext").state_dict()
    path = tmp_path / "encoder.safetensors"
    save_file(published, path)
    init("timm", tmp_path / "out", sizes={"encoder": "test_convnext"}, encoder_weights=path)
    found = TimmDriver.from_pretrained(tmp_path / "out").encoder.state_dict()
    assert found
    assert all(torch.equal(tensor, published[name]) for name, tensor in found.items())
    for change in ("missing", "unexpected"):
        name = "stem.0.weight"
        damaged = {**published, name + "_x": torch.zeros(1)} if change == "unexpected" else dict(published)
        if change == "missing":
            del damaged[name]
        save_file(damaged, path)
        with pytest.raises(InputError, match=rf"{change} key stem\.0\.weight"):
            make_timm().read_encoder(path)
    with pytest.raises(InputError, match="encoder_weights: means nothing to family xvla"):
        init("xvla", tmp_path / "other", encoder_weights=path)


@pytest.mark.parametrize("scale", [0.0, 0.1])
def test_imitation_trains_the_encoder_slower_or_not_at_all(tmp_path, scale):
    make_timm().save_pretrained(tmp_path / "model")
    module = ImitationModule(tmp_path / "model", lr=1.0, encoder_lr_scale=scale)
    rates = {id(p): group.get("lr", 1.0) for group in module.parameter_groups() for p in group["params"]}
    encoder = [p for name, p in module.backbone.named_parameters() if name.startswith("encoder.")]
    others = [p for name, p in module.backbone.named_parameters() if not name.startswith("encoder.")]
    assert {rates.get(id(p)) for p in encoder} == {scale or None}
    assert {rates.get(id(p)) for p in others} == {1.0}


def test_the_processor_gives_what_encode_takes():
    model = make_timm()
    processor = pickle.loads(pickle.dumps(model.processor()))  # noqa: S301 our own object: workers pickle it
    white = Image.fromarray(np.full((36, 64, 3), 255, dtype=np.uint8))
    sample = processor(SCENE, dict.fromkeys(processor.cameras, white))
    assert sample["pixels"].shape == (3, 3, 64, 96)
    history = np.asarray(SCENE["history"], dtype=np.float32).reshape(-1)
    assert sample["proprio"].tolist() == pytest.approx([*history, 1, 0, 0, 0, 6.0, 0.8, 0.3, -0.4])
    batch = {name: torch.stack([tensor, tensor]) for name, tensor in sample.items()}
    assert model.features(model.encode(batch)).shape == (2, 3 * 32 + 20)
    with pytest.raises(InputError, match="CAM_R0"):
        processor(SCENE, {"CAM_F0": white, "CAM_L0": white})
    with pytest.raises(InputError, match="command 'back' is not one of"):
        processor({**SCENE, "command": "back"}, dict.fromkeys(processor.cameras, white))


def test_a_configuration_that_cannot_work_is_refused():
    with pytest.raises(InputError, match=r"no model 'convnext_tinny' \(did you mean 'convnext_tiny'"):
        TimmConfig.tiny(encoder="convnext_tinny")
    with pytest.raises(InputError, match=r"config\.prediction"):
        TimmConfig.tiny(prediction="velocity")
