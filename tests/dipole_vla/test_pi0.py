"""PI0: parity with transformers' own `PI0ForConditionalGeneration`, and its published folders.

The upstream code is a dependency here, so it is run beside ours instead of being recorded.
"""

from __future__ import annotations

import json
import pickle
import re

import numpy as np
import pytest
import torch
from identities import check_identities, check_saved
from PIL import Image
from safetensors.torch import load_file, save_file
from small_backbone import SCENE
from transformers import PI0ForConditionalGeneration

from dipole_vla.backbones import load_backbone
from dipole_vla.backbones.pi0.model import PI0, PI0Sizes
from dipole_vla.backbones.prompt import small_tokenizer
from dipole_vla.commands.import_ import import_checkpoint
from dipole_vla.policy import Backbone, GuidedPolicy
from navsim_adapter.foundation.errors import InputError
from tests.same_numbers import SAMPLED, assert_same_numbers

CHUNK = 6


@pytest.fixture(scope="module")
def upstream():
    """The native model, tiny, with weights large enough that every path counts."""
    config = PI0Sizes.tiny().native()
    config.chunk_size = CHUNK
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PI0ForConditionalGeneration(config).eval()
        for name, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, std=0.1 if "norm" in name else 0.15)
    return model


@pytest.fixture(scope="module")
def published(upstream, tmp_path_factory):
    """As transformers saves it, with a tokenizer."""
    folder = tmp_path_factory.mktemp("pi0")
    upstream.save_pretrained(folder)
    small_tokenizer().save_pretrained(str(folder))
    return folder


def make_observation(scenes=2, seed=0):
    """Prompts of different lengths, three views of which the last scene has two."""
    sizes, generator = PI0Sizes.tiny(), torch.Generator().manual_seed(seed)
    places = torch.full((scenes, 3 * sizes.tokens_per_view), sizes.image_token)
    ids = torch.cat([places, torch.randint(4, 200, (scenes, 10), generator=generator)], dim=1)
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    views = torch.ones(scenes, 3, dtype=torch.bool)
    views[-1, 1] = False
    ids[-1, 2 * sizes.tokens_per_view : 3 * sizes.tokens_per_view] = 7  # fewer image places: words instead
    return {
        "pixels": torch.randn(scenes, 3, 3, 32, 32, generator=generator),
        "view_mask": views,
        "input_ids": ids,
        "attention_mask": mask,
        "proprio": torch.randn(scenes, 12, generator=generator),
    }


def native_inputs(seen):
    return {
        "state": torch.nn.functional.pad(seen["proprio"], (0, 12)),
        "input_ids": seen["input_ids"],
        "pixel_values": seen["pixels"],
        "pixel_attention_mask": seen["view_mask"],
        "attention_mask": seen["attention_mask"],
    }


def noise_of(rows, seed=4):
    return torch.randn(rows, CHUNK, 8, generator=torch.Generator().manual_seed(seed))


def test_an_imported_model_gives_the_upstream_numbers(upstream, published, tmp_path):
    import_checkpoint("pi0", published, tmp_path / "out")
    model, seen = load_backbone(tmp_path / "out"), make_observation()
    assert isinstance(model, PI0)
    x_t, t = noise_of(2), torch.tensor([0.3, 0.85])
    with torch.no_grad():
        wanted = upstream(noise=x_t, timestep=t, **native_inputs(seen)).logits
        found = model.denoise(model.encode(seen), x_t, t)
    assert_same_numbers(found, wanted)
    sampled = upstream.sample_actions(noise=x_t, num_steps=10, **native_inputs(seen))
    plans = GuidedPolicy(model).sample(seen, omega=None, noise=x_t[:, None])
    assert_same_numbers(plans[:, 0], model.action.decode(sampled), SAMPLED)


def test_the_training_target_is_upstreams(upstream):
    """Their per-element loss is that of our schedule's velocity target."""
    from dipole_vla.paths import interpolate, target

    model, seen = PI0.tiny(), make_observation()
    actions, noise, t = noise_of(2, 5), noise_of(2, 6), torch.tensor([0.2, 0.7])
    upstream.config.loss_reduction = "none"
    with torch.no_grad():
        output = upstream(noise=noise, timestep=t, actions=actions, **native_inputs(seen))
        x_t = interpolate(model.schedule, actions, noise, t)
        predicted = upstream(noise=x_t, timestep=t, **native_inputs(seen)).logits
    error = (predicted - target("velocity", model.schedule, actions, noise, t)).square()
    assert_same_numbers(output.loss, error)


@pytest.mark.parametrize("scope", ["head", "all"])
def test_identities_hold(published, tmp_path, scope):
    import_checkpoint("pi0", published, tmp_path / "out")
    check_identities(load_backbone(tmp_path / "out"), make_observation(), scope)


def rewritten(published, folder, rename):
    """The folder with its tensors under other names."""
    folder.mkdir()
    file = load_file(published / "model.safetensors")
    save_file({rename(name): tensor for name, tensor in file.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text((published / "config.json").read_text())
    return folder


@pytest.mark.parametrize("form", ["prefixed", "older towers", "native", "head only"])
def test_other_names_of_the_same_tensors_are_read(upstream, published, tmp_path, form):
    import_checkpoint("pi0", published, tmp_path / "plain")
    expected = load_backbone(tmp_path / "plain").fingerprint()
    if form == "native":
        folder = rewritten(published, tmp_path / "other", lambda name: name)
        state = {name: tensor.clone() for name, tensor in upstream.state_dict().items()}
        save_file(state, folder / "model.safetensors")
    elif form == "head only":  # lerobot saves the tied table as the language model's head
        table = "paligemma_with_expert.paligemma.model.language_model.model.embed_tokens.weight"
        head = "paligemma_with_expert.paligemma.lm_head.weight"
        folder = rewritten(published, tmp_path / "other", lambda name: head if name == table else name)
    elif form == "prefixed":
        folder = rewritten(published, tmp_path / "other", lambda name: f"model.{name}")
    else:
        folder = rewritten(
            published, tmp_path / "other", lambda name: name.replace(".vision_tower.", ".vision_tower.vision_model.")
        )
    import_checkpoint("pi0", folder, tmp_path / "out")
    assert load_backbone(tmp_path / "out").fingerprint() == expected


def test_every_key_counts(published, tmp_path):
    """Each key in turn: away, of another shape, or under another name, it is named and nothing is written."""
    source = rewritten(published, tmp_path / "source", lambda name: name)
    file = load_file(source / "model.safetensors")
    special = [name for name in file if "embed_tokens" in name or "state_proj" in name]
    assert len(special) == 3
    unused = "paligemma_with_expert.gemma_expert.lm_head.weight"
    for name in [unused, *special, *list(file)[::11]]:
        for change in ("missing", "shape", "unexpected"):
            damaged = dict(file)
            if change == "unexpected":
                damaged[name + "_x"] = torch.zeros(2)
            else:
                tensor = damaged.pop(name)
                if change == "shape":
                    damaged[name] = torch.zeros(*tensor.shape, 2)
            if change == "missing" and name == unused:
                continue
            save_file(damaged, source / "model.safetensors")
            wanted = name.replace("language_model.model.", "language_model.") if change == "missing" else name
            with pytest.raises(InputError, match=re.escape(wanted)):
                import_checkpoint("pi0", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "xvla"}, "is of type 'xvla', not pi0"),
        ({"vlm_config": None}, "vlm_config is missing"),
        ({"max_action_dim": "wide"}, "max_action_dim must be int"),
        ({"model_type": None, "type": "pi0", "paligemma_variant": "gemma_3b"}, "did you mean 'gemma_2b'"),
    ],
)
def test_a_bad_configuration_names_its_field(published, tmp_path, changes, message):
    source = rewritten(published, tmp_path / "source", lambda name: name)
    raw = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**raw, **changes}))
    with pytest.raises(InputError, match=message):
        import_checkpoint("pi0", source, tmp_path / "out")


def test_options_turn_it_into_the_start_of_a_driving_model(published, tmp_path):
    import_checkpoint("pi0", published, tmp_path / "out", horizon=8)
    import_checkpoint("pi0", published, tmp_path / "plain")
    one, other = (load_backbone(tmp_path / name) for name in ("out", "plain"))
    assert (one.action.horizon, other.action.horizon) == (8, CHUNK)
    assert one.tokenizer("- Speed")["input_ids"] == small_tokenizer()("- Speed")["input_ids"]


def make_pi0(seed=0, **overrides):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PI0.tiny(PI0Sizes.tiny(**overrides)).eval()


def test_a_saved_model_gives_the_same_numbers(tmp_path):
    check_saved(make_pi0(), make_observation(), tmp_path, "model.dit.extra")


def test_what_an_action_depends_on_trains():
    """All but what the prefix computes after its last keys and values."""
    model: Backbone = make_pi0().train()
    model.denoise(model.encode(make_observation()), torch.randn(2, 8, 8), torch.rand(2)).square().mean().backward()
    last = re.compile(r"model\.vlm\.language_model\.(norm|layers\.1\.(self_attn\.[qo]_proj|mlp|post_att))")
    assert {name for name, p in model.named_parameters() if p.grad is None and not last.match(name)} == set()


def test_the_processor_gives_what_encode_takes():
    model = make_pi0(prompt_tokens=64)
    processor = pickle.loads(pickle.dumps(model.processor()))  # noqa: S301 our own object: workers pickle it
    white = Image.fromarray(np.full((36, 64, 3), 255, dtype=np.uint8))
    sample = processor(SCENE, dict.fromkeys(processor.cameras, white))
    assert sample["pixels"].shape == (3, 3, 32, 32)
    assert sample["pixels"][0, :, 16, 0].tolist() == [255, 255, 255]
    assert sample["pixels"][0, :, 0, 0].tolist() == [0, 0, 0]  # 64 x 36 on a square: black above and below
    assert int((sample["input_ids"] == model.config.image_token).sum()) == 12
    assert sample["input_ids"].shape == (12 + 64,)
    batch = {name: torch.stack([tensor, tensor]) for name, tensor in sample.items()}
    assert model.features(model.encode(batch)).shape == (2, 32 + 24)
    with pytest.raises(InputError, match="CAM_L0"):
        processor(SCENE, {"CAM_F0": white})


def test_lerobots_configuration_gives_the_published_sizes():
    """The folder of lerobot's own class names its sizes by variant."""
    from dipole_vla.backbones.paligemma.importer import lerobot_sizes

    raw = {"type": "pi0", "chunk_size": 50, "max_state_dim": 32, "max_action_dim": 32, "tokenizer_max_length": 48}
    assert PI0Sizes(**lerobot_sizes(raw, "config.json")) == PI0Sizes()
