"""ReCogDrive: its sizes, its published files, and parity with the public code.

`data/parity/recogdrive/` holds tiny planner files of both variants written by the public code (fork 47ef5e7 of
xiaomi-research/recogdrive), a tiny language model in the published naming written by InternVL's remote code, and what
they computed: hidden states, one prediction and full sampling runs each. `rl_names.json` lists the keys of a file of
the reinforcement-learning stage, with its frozen copy of the policy.
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from identities import change_json, check_every_key_counts, check_identities, check_saved
from PIL import Image
from safetensors.torch import load_file, save_file
from small_backbone import SCENE

from dipole_vla.backbones import load_backbone
from dipole_vla.backbones.internvl import model as internvl
from dipole_vla.backbones.internvl.importer import published_name
from dipole_vla.backbones.internvl.model import InternVLSizes
from dipole_vla.backbones.recogdrive.input import picture_tiles, prompt
from dipole_vla.backbones.recogdrive.model import DDIM, EULER, ReCogDrive, ReCogDriveConfig
from dipole_vla.backbones.recogdrive.planner import Planner, PlannerSizes
from dipole_vla.commands.import_ import import_checkpoint
from dipole_vla.paths import to_x0
from dipole_vla.policy import Backbone, GuidedPolicy
from dipole_vla.solvers import solve
from navsim_adapter.foundation.errors import InputError
from tests.same_numbers import SAMPLED, assert_same_numbers

PARITY = Path(__file__).resolve().parents[1] / "data" / "parity" / "recogdrive"
LAYOUTS = Path(__file__).resolve().parents[3] / "shared" / "checkpoint_layouts"
VARIANTS = {"ddim": "noise", "flow": "velocity"}


@pytest.fixture(scope="module")
def facts():
    return load_file(PARITY / "facts.safetensors")


def cached(facts):
    """A scene as the planner alone is given it."""
    return {name: facts[f"in.{name}"] for name in ("last_hidden_state", "proprio", "status")}


def seen(facts):
    """A scene as the language model is given it."""
    read = {name: facts[f"vlm.{name}"] for name in ("pixels", "tiles", "input_ids", "attention_mask")}
    return {**read, "proprio": facts["in.proprio"], "status": facts["in.status"]}


@pytest.fixture
def source(tmp_path):
    return Path(shutil.copytree(PARITY, tmp_path / "source"))


# --- parity ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_imported_planner_gives_the_upstream_numbers(tmp_path, facts, variant):
    import_checkpoint("recogdrive", PARITY / f"{variant}.ckpt", tmp_path / "out")
    model = load_backbone(tmp_path / "out")
    assert isinstance(model, ReCogDrive)
    assert (model.prediction, model.solver) == (VARIANTS[variant], DDIM if variant == "ddim" else EULER)
    with torch.no_grad():
        context = model.encode(cached(facts))
        # the public code is given the integer the network sees; ours the schedule's own time
        t = facts[f"{variant}.t"] if variant == "ddim" else facts[f"{variant}.t"].double() / 1000
        assert_same_numbers(model.denoise(context, facts["in.x_t"], t), facts[f"{variant}.prediction"])
    plans = GuidedPolicy(model).sample(cached(facts), omega=None, noise=facts["in.noise"][:, None])
    assert_same_numbers(plans[:, 0], facts[f"{variant}.sampled"], SAMPLED)


def test_the_published_sampler_draws_the_upstream_noise(tmp_path, facts):
    """eta 1, a floor of 1e-4 under the deviation, noise clipped to 1, at every step and the last."""
    import_checkpoint("recogdrive", PARITY / "ddim.ckpt", tmp_path / "out", sampler="published")
    model = load_backbone(tmp_path / "out")
    assert (model.solver.eta, model.solver.std_floor, model.solver.noise_clip) == (1.0, 1e-4, 1.0)
    with torch.no_grad():
        context = model.encode(cached(facts))

        def denoise(x_t, t):
            return to_x0(model.prediction, model.schedule, model.denoise(context, x_t, t), x_t, t)

        generator = torch.Generator().manual_seed(3)  # the same stream as the global generator, seeded alike
        sampled = solve(model.solver, model.schedule, denoise, facts["in.noise"], generator)
    assert_same_numbers(model.action.decode(sampled), facts["ddim.sampled.published"], SAMPLED)


def test_the_language_model_gives_the_upstream_hidden_states(tmp_path, facts):
    """Padding rows too: the planner sees them. Every padding row is the same, since it attends to nothing."""
    import_checkpoint("recogdrive", PARITY / "ddim.ckpt", tmp_path / "out", encoder=PARITY / "vlm")
    model = load_backbone(tmp_path / "out")
    scene = seen(facts)
    with torch.no_grad():
        found = internvl.hidden_states(
            model.vlm, scene["pixels"], scene["tiles"], scene["input_ids"], scene["attention_mask"]
        )
        assert_same_numbers(found, facts["vlm.last_hidden_state"])
        context = model.encode({**cached(facts), "last_hidden_state": found})
        assert_same_numbers(model.encode(scene)["tokens"], context["tokens"])


def test_the_action_is_normalised_as_published(facts):
    action = ReCogDrive.tiny().action
    assert_same_numbers(action.encode(facts["in.poses"]), facts["normalised"])
    assert_same_numbers(action.decode(facts["normalised"]), facts["in.poses"])


def test_delta_targets_are_velocities(tmp_path):
    """Straight on at 5 m/s is the same number eight times; a turn through pi comes back as it went."""
    import_checkpoint("recogdrive", PARITY / "ddim.ckpt", tmp_path / "out", kinematic="velocity")
    action = load_backbone(tmp_path / "out").action
    straight = torch.zeros(8, 3, dtype=torch.float64)
    straight[:, 0] = 2.5 * torch.arange(1, 9)
    wanted = [2 * (value - low) / (high - low) - 1
              for value, low, high in ((5, -1.62, 29.72), (0, -9.38, 9.98), (0, -1.02, 0.86))]  # fmt: skip
    assert_same_numbers(action.encode(straight), torch.tensor([wanted] * 8, dtype=torch.float64), bits=30)
    turning = torch.cat(
        [straight[:, :2], torch.tensor([[3.0], [3.1], [-3.1], [-3.0], [-2.9], [-2.8], [-2.7], [-2.6]])], 1
    )
    assert_same_numbers(action.decode(action.encode(turning)), turning, bits=30)
    assert action.encode(turning)[2, 2] > 0  # across pi: a small left turn, not a full one to the right
    with pytest.raises(InputError, match="waypoint or velocity"):
        import_checkpoint("recogdrive", PARITY / "ddim.ckpt", tmp_path / "bad", kinematic="diff")


@pytest.mark.parametrize("scope", ["head", "all"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_identities_hold(tmp_path, facts, variant, scope):
    import_checkpoint("recogdrive", PARITY / f"{variant}.ckpt", tmp_path / "out", encoder=PARITY / "vlm")
    check_identities(load_backbone(tmp_path / "out"), seen(facts), scope)


# --- forms of the source ---------------------------------------------------------------------------------------


def test_a_folder_with_planner_and_language_model_is_read(source, tmp_path):
    (source / "flow.ckpt").unlink()
    import_checkpoint("recogdrive", source, tmp_path / "folder")
    import_checkpoint("recogdrive", PARITY / "ddim.ckpt", tmp_path / "file", encoder=PARITY / "vlm")
    one, other = (load_backbone(tmp_path / name) for name in ("folder", "file"))
    assert one.config.has_vlm
    assert one.fingerprint() == other.fingerprint()


def test_a_file_of_the_reinforcement_learning_stage_is_read(source, tmp_path):
    """It carries frozen copies of earlier policies, an optimiser and a trainer's objects."""
    state = torch.load(source / "ddim.ckpt", weights_only=True)["state_dict"]
    names = json.loads((PARITY / "rl_names.json").read_text())
    file = {name: state[name.replace("old_policy.", "")] + 0 for name in names}
    torch.save({"state_dict": file, "optimizer_states": [{"state": {}}]}, tmp_path / "rl.ckpt")
    import_checkpoint("recogdrive", tmp_path / "rl.ckpt", tmp_path / "out")
    import_checkpoint("recogdrive", source / "ddim.ckpt", tmp_path / "plain", encoder=None)
    stripped = load_backbone(tmp_path / "plain").action_head.state_dict()
    for name, tensor in load_backbone(tmp_path / "out").action_head.state_dict().items():
        assert torch.equal(tensor, stripped[name])
    file["agent.action_head.old_policy.extra"] = torch.zeros(1)
    torch.save({"state_dict": file}, tmp_path / "rl.ckpt")
    with pytest.raises(InputError, match=r"unexpected key agent\.action_head\.old_policy\.extra"):
        import_checkpoint("recogdrive", tmp_path / "rl.ckpt", tmp_path / "bad")


def test_a_language_model_trained_with_the_planner_comes_from_the_same_file(source, tmp_path):
    state = torch.load(source / "ddim.ckpt", weights_only=True)["state_dict"]
    vlm = load_file(source / "vlm" / "model.safetensors")
    joint = {**state, **{f"agent.backbone.model.{name}": tensor + 0.5 for name, tensor in vlm.items()}}
    torch.save({"state_dict": joint}, source / "joint.ckpt")
    import_checkpoint("recogdrive", source / "joint.ckpt", tmp_path / "out")
    model = load_backbone(tmp_path / "out")
    wanted = vlm["language_model.model.norm.weight"] + 0.5
    assert torch.equal(model.vlm.language_model.norm.weight, wanted)
    shutil.rmtree(source / "vlm")
    with pytest.raises(InputError, match="pass its published folder as --encoder"):
        import_checkpoint("recogdrive", source / "joint.ckpt", tmp_path / "bad")


def test_the_native_naming_of_the_language_model_is_read(source, tmp_path, facts):
    import_checkpoint("recogdrive", source / "ddim.ckpt", tmp_path / "published", encoder=source / "vlm")
    model = load_backbone(tmp_path / "published")
    native = {f"model.{name}": tensor.clone() for name, tensor in model.vlm.state_dict().items()}
    native["lm_head.weight"] = load_file(source / "vlm" / "model.safetensors")["language_model.lm_head.weight"]
    save_file(native, source / "vlm" / "model.safetensors")
    (source / "vlm" / "config.json").write_text(model.vlm.config.to_json_string(use_diff=False))
    import_checkpoint("recogdrive", source / "ddim.ckpt", tmp_path / "native", encoder=source / "vlm")
    assert load_backbone(tmp_path / "native").fingerprint() == model.fingerprint()


def test_settings_of_the_trainer_are_not_run(source, tmp_path):
    """Objects of known packages beside the weights are replaced by inert ones; any other foreign name is refused."""
    state = torch.load(source / "ddim.ckpt", weights_only=True)["state_dict"]
    foreign = type("DictConfig", (), {"__module__": "omegaconf.dictconfig", "__qualname__": "DictConfig"})

    import sys
    import types

    module = types.ModuleType("omegaconf.dictconfig")
    module.DictConfig = foreign
    sys.modules["omegaconf.dictconfig"] = module
    sys.modules.setdefault("omegaconf", types.ModuleType("omegaconf"))
    try:
        setting = foreign()
        setting.lr = 1e-4
        torch.save({"state_dict": state, "hyper_parameters": setting}, tmp_path / "with.ckpt")
    finally:
        del sys.modules["omegaconf.dictconfig"]
    import_checkpoint("recogdrive", tmp_path / "with.ckpt", tmp_path / "out")
    assert load_backbone(tmp_path / "out").prediction == "noise"


def test_a_tokenizer_travels_with_the_model(tmp_path):
    model = ReCogDrive.tiny()
    folder = tmp_path / "vlm"
    folder.mkdir()
    model.tokenizer.save_pretrained(str(folder))
    save_file({f"model.{n}": t.clone() for n, t in model.vlm.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(model.vlm.config.to_json_string(use_diff=False))
    buffers = torch.load(PARITY / "ddim.ckpt", weights_only=True)["state_dict"]
    tables = {n: t for n, t in buffers.items() if n.startswith(("agent.action_head.dd", "agent.action_head.eta"))}
    planner = {f"agent.action_head.{n}": t for n, t in model.action_head.state_dict().items()}
    rotary = buffers["agent.action_head.model.rotary_embedder.inv_freq"]  # heads of 8 numbers in both
    torch.save(
        {"state_dict": {**planner, **tables, "agent.action_head.model.rotary_embedder.inv_freq": rotary}},
        tmp_path / "planner.ckpt",
    )
    import_checkpoint("recogdrive", tmp_path / "planner.ckpt", tmp_path / "out", encoder=folder)
    found = load_backbone(tmp_path / "out")
    assert found.config.image_token == model.config.image_token
    assert found.tokenizer("turn left")["input_ids"] == model.tokenizer("turn left")["input_ids"]
    assert found.processor().prompt_tokens == 2800


def test_a_tokenizer_as_published_is_read(source, tmp_path):
    """Vocabulary, merges and added tokens; the folder's config.json names remote code, which is not asked for."""
    folder = source / "vlm"
    (folder / "tokenizer.json").unlink()
    letters = {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    (folder / "vocab.json").write_text(json.dumps(letters))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
    added = {name: 26 + number for number, name in enumerate(names)}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    described = {str(number): {"content": name, "special": True} for name, number in added.items()}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "Qwen2Tokenizer",
                "added_tokens_decoder": described,
                "pad_token": "<|endoftext|>",
                "eos_token": "<|im_end|>",
                "model_max_length": 12288,
            }
        )
    )
    import_checkpoint("recogdrive", source / "ddim.ckpt", tmp_path / "out", encoder=folder)
    model = load_backbone(tmp_path / "out")
    assert model.config.image_token == 31
    assert model.tokenizer("cab<img><IMG_CONTEXT></img>")["input_ids"] == [2, 0, 1, 29, 31, 30]
    assert model.tokenizer.pad_token_id == 26


# --- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_key_counts(tmp_path, variant):
    state = torch.load(PARITY / f"{variant}.ckpt", weights_only=True)["state_dict"]
    special = [n for n in state if "ddim_t" in n or "eta" in n or "inv_freq" in n or "ddpm_var" in n]
    planner = tmp_path / "planner.ckpt"
    check_every_key_counts(
        state, [*special, *list(state)[::31]], lambda damaged: torch.save({"state_dict": damaged}, planner),
        lambda: import_checkpoint("recogdrive", planner, tmp_path / "out"),
    )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_every_key_of_the_language_model_counts(source, tmp_path):
    file = load_file(source / "vlm" / "model.safetensors")
    names = ["language_model.lm_head.weight", *list(file)[::19]]
    check_every_key_counts(
        file, names, partial(save_file, filename=source / "vlm" / "model.safetensors"),
        lambda: import_checkpoint("recogdrive", source / "ddim.ckpt", tmp_path / "out", encoder=source / "vlm"),
    )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_another_schedule_is_refused(source, tmp_path):
    state = torch.load(source / "ddim.ckpt", weights_only=True)["state_dict"]
    for table in ("ddpm_betas", "ddim_alphas_prev", "model.rotary_embedder.inv_freq"):
        name = f"agent.action_head.{table}"
        torch.save({"state_dict": {**state, name: state[name] * 0.9}}, tmp_path / "other.ckpt")
        with pytest.raises(InputError, match=f"{table} is not the published table"):
            import_checkpoint("recogdrive", tmp_path / "other.ckpt", tmp_path / "out")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("ps_version",), "v1", "ps_version: must be 'v2', got 'v1'"),
        (("select_layer",), -4, "select_layer: must be -1"),
        (("llm_config", "architectures"), ["InternLM2ForCausalLM"], "model_type: must be 'qwen2'"),
        (("llm_config", "rope_scaling"), {"type": "linear", "factor": 2.0}, "rope type must be default or dynamic"),
        (("llm_config", "hidden_size"), "wide", "hidden_size must be int, got 'wide'"),
        (("vision_config",), None, "vision_config is missing"),
        (("model_type",), "florence2", "model_type is 'florence2'"),
    ],
)
def test_a_bad_configuration_names_its_field(source, tmp_path, path, value, message):
    change_json(source / "vlm" / "config.json", path, value)
    if path[-1] == "architectures":
        change_json(source / "vlm" / "config.json", (path[0], "model_type"), None)
    with pytest.raises(InputError, match=message):
        import_checkpoint("recogdrive", source / "ddim.ckpt", tmp_path / "out", encoder=source / "vlm")


def test_options_that_make_no_sense_are_refused(source, tmp_path):
    for options, message in (
        ({"prediction": "velocity"}, "predicts noise; leave out --prediction"),
        ({"horizon": 9}, "must be 1 to 8"),
        ({"sampler": "random"}, "deterministic or published"),
    ):
        with pytest.raises(InputError, match=message):
            import_checkpoint("recogdrive", source / "ddim.ckpt", tmp_path / "out", **options)
    with pytest.raises(InputError, match=r"holds 2 \.ckpt files"):
        import_checkpoint("recogdrive", source, tmp_path / "out")


def test_a_planner_of_another_width_is_refused(source, tmp_path):
    state = torch.load(source / "ddim.ckpt", weights_only=True)["state_dict"]
    name = "agent.action_head.feature_encoder.weight"
    torch.save({"state_dict": {**state, name: torch.zeros(16, 20)}}, source / "ddim.ckpt")
    with pytest.raises(InputError, match="reads 20 numbers, the language model writes 32"):
        import_checkpoint("recogdrive", source / "ddim.ckpt", tmp_path / "out")


# --- true sizes ------------------------------------------------------------------------------------------------


def listed(path):
    """[(name, shape)] of every section of a published key list."""
    sections = re.split(r"^# .*Section \d", path.read_text(), flags=re.MULTILINE)[1:]
    found = [re.findall(r"^(\S+) \[([\d, ]*)\]", section, re.MULTILINE) for section in sections]
    return [{name: tuple(int(n) for n in shape.split(",")) for name, shape in rows} for rows in found]


@pytest.mark.skipif(not LAYOUTS.is_dir(), reason="the published key lists are not beside this clone")
@pytest.mark.parametrize("size", ["small", "large"])
def test_the_published_planner_fits_name_by_name(size):
    small, large = listed(LAYOUTS / "recogdrive.keys.txt")[:2]
    file = {name: shape for name, shape in (small if size == "small" else large).items()
            if not name.startswith(("ddpm_", "ddim_", "eta.")) and "inv_freq" not in name}  # fmt: skip
    sizes = PlannerSizes() if size == "small" else PlannerSizes(heads=32, output_width=1536, feature_width=3584)
    with torch.device("meta"):
        planner = Planner(sizes)
    assert {name: tuple(tensor.shape) for name, tensor in planner.state_dict().items()} == file


@pytest.mark.skipif(not LAYOUTS.is_dir(), reason="the published key lists are not beside this clone")
def test_the_published_language_model_fits_name_by_name():
    published, native = listed(LAYOUTS / "recogdrive_vlm.keys.txt")[:2]
    with torch.device("meta"):
        ours = internvl.build(InternVLSizes()).state_dict()
    assert published.pop("language_model.lm_head.weight") == native.pop("lm_head.weight")
    assert {f"model.{name}": tuple(tensor.shape) for name, tensor in ours.items()} == native
    assert {published_name(name) for name in ours} == set(published)


# --- the family ------------------------------------------------------------------------------------------------


def make_recogdrive(seed=0, **overrides):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ReCogDrive.tiny(ReCogDriveConfig.tiny(**overrides)).eval()


def picture(width=160, height=90):
    generator = np.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def batch_of(model, scenes=2):
    sample = model.processor()(SCENE, {"CAM_F0": picture()})
    return {name: torch.stack([tensor] * scenes) for name, tensor in sample.items()}


def test_a_saved_model_gives_the_same_numbers(tmp_path):
    model = make_recogdrive(prediction="velocity")
    again = check_saved(model, batch_of(model), tmp_path, "action_head.extra")
    assert all(torch.equal(tensor, batch_of(model)[name]) for name, tensor in batch_of(again).items())


def test_every_parameter_trains():
    model: Backbone = make_recogdrive().train()
    for _, parameter in model.named_parameters():  # gates start at zero, which hides what is behind them
        if parameter.dim() == 2 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(0))
    context = model.encode(batch_of(model))
    model.denoise(context, torch.randn(2, 8, 3), torch.tensor([3, 70])).square().mean().backward()
    assert not {name for name, p in model.named_parameters() if p.grad is None}


def test_the_processor_gives_what_encode_takes():
    model = make_recogdrive()
    processor = pickle.loads(pickle.dumps(model.processor()))  # noqa: S301 our own object: workers pickle it
    assert processor.cameras == ("CAM_F0",)
    sample = processor(SCENE, {"CAM_F0": picture()})
    assert sample["pixels"].shape == (3, 3, 32, 32)
    assert int(sample["tiles"]) == 3  # two tiles and the thumbnail
    places = (sample["input_ids"] == model.config.image_token).sum()
    assert int(places) == 3 * model.config.tokens_per_tile
    assert not sample["attention_mask"][0]
    assert sample["attention_mask"][-1]
    square = processor(SCENE, {"CAM_F0": picture(90, 90)})
    assert int(square["tiles"]) == 1
    assert model.features(model.encode({n: torch.stack([sample[n], square[n]]) for n in sample})).shape == (2, 32 + 20)
    with pytest.raises(InputError, match="CAM_F0"):
        processor(SCENE, {})
    with pytest.raises(InputError, match="longer than prompt_tokens 100"):
        make_recogdrive(prompt_tokens=100).processor()(SCENE, {"CAM_F0": picture()})


def test_the_planner_alone_reads_no_scenes():
    model = make_recogdrive(has_vlm=False)
    with pytest.raises(InputError, match="no language model"):
        model.processor()
    with pytest.raises(InputError, match="planner alone"):
        model.encode({"pixels": torch.zeros(1, 1, 3, 32, 32)})


def test_a_wide_picture_becomes_eight_tiles_and_a_thumbnail():
    """The official camera's shape: 4 x 2 tiles, though 7 : 4 of fewer tiles would be nearer at equal error."""
    frame = picture(1920, 1080)
    tiles = picture_tiles(frame, 448, 12)
    assert tiles.shape == (9, 3, 448, 448)
    whole = np.array(frame.resize((4 * 448, 2 * 448), Image.Resampling.BICUBIC))
    assert np.array_equal(tiles[5].permute(1, 2, 0).numpy(), whole[448:896, 448:896])
    assert np.array_equal(
        tiles[8].permute(1, 2, 0).numpy(), np.array(frame.resize((448, 448), Image.Resampling.BICUBIC))
    )
    assert picture_tiles(picture(100, 100), 448, 12).shape[0] == 1
    assert picture_tiles(picture(1000, 1000), 448, 12).shape[0] == 10  # 3 x 3: more than half its pixels are there


def test_the_prompt_is_the_published_one():
    scene = {**SCENE, "history": [[-4.0, 0.011, 0.0149], [-2.5, -0.02, 0.0], [-1.0, 0.0, 0.0], [0, 0, 0]]}
    text = prompt({**scene, "command": "straight"}, tiles=2, tokens_per_tile=3)
    assert text.startswith("<|im_start|>system\n\nYou are a vehicle trajectory prediction model")
    assert "the higher your score.\n<|im_end|>\n<|im_start|>user\n<img>" + "<IMG_CONTEXT>" * 6 + "</img>\nAs an" in text
    assert "(last 4 timesteps):   - t-3: (-4.00, 0.0, 0.0)    - t-2: (-2.50, -0.02, 0.0)" in text
    assert "[GO STRAIGHT]\nOutput requirements:" in text
    assert text.endswith("2 decimal places<|im_end|>\n<|im_start|>assistant\n")
    assert "[UNKNOWN]" in prompt({**scene, "command": "unknown"}, 1, 1)


def test_a_configuration_that_cannot_work_is_refused():
    for overrides, message in (
        ({"prediction": "sample"}, "config.prediction"),
        ({"feature_width": 8}, "feature_width"),
    ):
        with pytest.raises(InputError, match=message):
            ReCogDriveConfig.tiny(**overrides)
