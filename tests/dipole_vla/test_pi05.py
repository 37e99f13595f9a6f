"""PI0.5: parity with lerobot's own code, and what its folders must hold.

`data/parity/pi05/` was written by lerobot 0.6.1 (`make.py` there): checkpoint, processor files, inputs, one prediction,
one sampling run and one training loss. What every lerobot folder must hold is in `test_lerobot_folders.py`.
"""

from __future__ import annotations

import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from identities import check_every_key_counts, check_identities, check_saved
from PIL import Image
from safetensors.torch import load_file, save_file
from small_backbone import SCENE

from dipole_vla.backbones import load_backbone
from dipole_vla.backbones.observing import history
from dipole_vla.backbones.pi05.model import PI05, PI05Sizes, task_and_state
from dipole_vla.backbones.prompt import prompt, small_tokenizer
from dipole_vla.commands.import_ import import_checkpoint
from dipole_vla.paths import interpolate, target
from dipole_vla.policy import GuidedPolicy
from navsim_adapter.foundation.errors import InputError
from tests.same_numbers import SAMPLED, assert_same_numbers

SOURCE = Path(__file__).resolve().parents[1] / "data" / "parity" / "pi05"
TASKS = ["keep the_lane\nand go", " turn left "]  # as `make.py` has them
WORDS = len(small_tokenizer())
SIZES = {
    **{"vision_width": 16, "vision_layers": 1, "vision_heads": 4, "vision_hidden": 24, "vision_patch": 16},
    **{"text_width": 32, "text_layers": 2, "text_hidden": 48, "text_vocabulary": WORDS, "image_token": WORDS},
    **{"expert_width": 24, "expert_hidden": 40, "head_dim": 8},
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    small_tokenizer().save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    out = tmp_path_factory.mktemp("pi05") / "out"
    import_checkpoint("pi05", SOURCE, out, tokenizer=tokenizer, sizes=SIZES)
    return load_backbone(out)


@pytest.fixture(scope="module")
def facts():
    return load_file(SOURCE / "facts.safetensors")


def observation_of(facts):
    """lerobot's inputs as ours: places for two views of four tokens each, then the words."""
    views = facts["view_mask"]
    return {
        "pixels": facts["pixels"],
        "view_mask": views,
        "input_ids": torch.cat([torch.full((2, 8), WORDS), facts["input_ids"]], dim=1),
        "attention_mask": torch.cat([views.long().repeat_interleave(4, 1), facts["attention_mask"]], dim=1),
    }


def test_an_imported_model_gives_the_upstream_numbers(model, facts):
    with torch.no_grad():
        context = model.encode(observation_of(facts))
        assert_same_numbers(model.denoise(context, facts["noise"], facts["t"]), facts["prediction"])
        x_t = interpolate(model.schedule, facts["actions"], facts["noise"], facts["t"])
        wanted = target("velocity", model.schedule, facts["actions"], facts["noise"], facts["t"])
        assert_same_numbers((model.denoise(context, x_t, facts["t"]) - wanted).square(), facts["loss"])


def test_the_sampler_ends_in_the_upstream_poses(model, facts):
    """Ten steps from their noise, then their quantiles undone."""
    plans = GuidedPolicy(model).sample(observation_of(facts), omega=None, noise=facts["noise"][:, None])
    assert_same_numbers(plans[:, 0], facts["decoded"], SAMPLED)


def test_quantiles_normalise_state_and_action(model, facts):
    assert_same_numbers(model.action.encode(facts["raw_action"])[..., :3], facts["action"])
    offset, scale = (np.float32(each) for each in (model.config.state_offset, model.config.state_scale))
    for i, task in enumerate(TASKS):
        text = task_and_state(task, (facts["raw_state"][i].numpy() - offset) / scale)
        ids = model.tokenizer(text, padding="max_length", truncation=True, max_length=64)["input_ids"]
        assert ids == facts["input_ids"][i].tolist()


@pytest.mark.parametrize("scope", ["head", "all"])
def test_identities_hold(tokenizer, facts, tmp_path, scope):
    import_checkpoint("pi05", SOURCE, tmp_path / "out", tokenizer=tokenizer, sizes=SIZES)
    check_identities(load_backbone(tmp_path / "out"), observation_of(facts), scope)


def test_a_saved_model_gives_the_same_numbers(model, facts, tmp_path):
    check_saved(model, observation_of(facts), tmp_path, "model.dit.extra")


def test_every_key_counts(tmp_path):
    source = Path(shutil.copytree(SOURCE, tmp_path / "source"))
    file = load_file(source / "model.safetensors")
    table = "model.paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
    names = [name for name in file if "lm_head" not in name and name != table]  # a head stands in for the table
    check_every_key_counts(
        file,
        names[::9],
        lambda damaged: save_file(damaged, source / "model.safetensors"),
        lambda: import_checkpoint("pi05", source, tmp_path / "out", sizes=SIZES),
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kept", ["table", "head"])
def test_the_token_table_is_read_wherever_it_lies(tmp_path, kept):
    """lerobot 0.6 no longer ties the language head to it; older files hold the head alone."""
    source = Path(shutil.copytree(SOURCE, tmp_path / "source"))
    file = load_file(source / "model.safetensors")
    head = "model.paligemma_with_expert.paligemma.lm_head.weight"
    table = "model.paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
    assert not torch.equal(file[head], file[table])
    wanted = file[table]
    if kept == "head":
        file[head] = file.pop(table)
    save_file(file, source / "model.safetensors")
    import_checkpoint("pi05", source, tmp_path / "out", sizes=SIZES)
    assert torch.equal(load_backbone(tmp_path / "out").model.vlm.language_model.embed_tokens.weight, wanted)


def test_sizes_that_do_not_fit_name_the_tensor(tmp_path):
    with pytest.raises(
        InputError, match=r"time_mlp_in.*\[24, 24\].*\[1024, 1024\]|has shape .* the configuration asks"
    ):
        import_checkpoint("pi05", SOURCE, tmp_path / "out")
    with pytest.raises(InputError, match=r"--sizes\.text_widht: unknown field .*did you mean 'text_width'"):
        import_checkpoint("pi05", SOURCE, tmp_path / "out", sizes={"text_widht": 3})


def make_pi05(**overrides):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PI05.tiny(PI05Sizes.tiny(**overrides)).eval()


def test_what_an_action_depends_on_trains(facts):
    """All but what the prefix computes after its last keys and values."""
    model = make_pi05().train()
    seen = {"pixels": torch.randn(2, 3, 3, 32, 32), "input_ids": torch.randint(4, 200, (2, 20))}
    seen["input_ids"][:, :12] = model.config.image_token
    model.denoise(model.encode(seen), torch.randn(2, 8, 8), torch.rand(2)).square().mean().backward()
    last = re.compile(r"model\.vlm\.language_model\.(norm|layers\.1\.(self_attn\.[qo]_proj|mlp|post_att))")
    assert {name for name, p in model.named_parameters() if p.grad is None and not last.match(name)} == set()


def test_the_processor_shows_the_state_in_words():
    model = make_pi05(prompt_tokens=120)
    processor = pickle.loads(pickle.dumps(model.processor()))  # noqa: S301 our own object: workers pickle it
    white = Image.fromarray(np.full((36, 64, 3), 255, dtype=np.uint8))
    sample = processor(SCENE, dict.fromkeys(processor.cameras, white))
    words = sample["input_ids"][12:][sample["attention_mask"][12:].bool()]
    text = model.tokenizer.decode(words, skip_special_tokens=True)
    x, y, heading = history(SCENE)[:3].tolist()
    steps = [int((value + 1) * 128) for value in (x / 24 + 1, y / 8, heading)]
    assert text.startswith("Task: " + prompt(SCENE).replace("\n", " ") + ", State: " + " ".join(map(str, steps)) + " ")
    assert text.endswith(";\nAction: ")
    batch = {name: torch.stack([tensor, tensor]) for name, tensor in sample.items()}
    assert model.features(model.encode(batch)).shape == (2, 32 + 24)


def test_a_state_out_of_range_is_shown_as_upstream_shows_it():
    assert task_and_state("a", np.array([-1.5, -1.0, 0.0, 0.999, 3.0])) == "Task: a, State: -1 0 128 255 255;\nAction: "
