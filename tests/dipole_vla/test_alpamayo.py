"""Alpamayo: parity with the published code, whose numbers are recorded, and with transformers' own; its folders."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from identities import change_json, check_every_key_counts, check_identities, check_saved
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from small_backbone import SCENE, spread_adapters

from dipole_vla.backbones import load_backbone
from dipole_vla.backbones.alpamayo.input import SPEED_UNIT, Bins, past
from dipole_vla.backbones.alpamayo.model import Alpamayo, AlpamayoSizes
from dipole_vla.commands.import_ import import_checkpoint
from dipole_vla.export.program import write_loop
from dipole_vla.plugin import Dipole
from dipole_vla.policy import AdapterPair, Backbone, GuidedPolicy
from navsim_adapter.foundation.errors import InputError
from tests.same_numbers import SAMPLED, assert_same_numbers

PARITY = Path(__file__).resolve().parents[1] / "data" / "parity" / "alpamayo"
FORMS = {"plain": {}, "reasoned": {"reasoning": 6}}


@pytest.fixture(scope="module")
def facts():
    return load_file(PARITY / "facts.safetensors")


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """The published folder's model by form: planning at once, and after reasoning."""
    folder = tmp_path_factory.mktemp("alpamayo")
    for form, options in FORMS.items():
        import_checkpoint("alpamayo", PARITY / "model", folder / form, **options)
    return folder


@pytest.fixture
def source(tmp_path):
    """A copy of the published folder, to be damaged; the language model's lies beside it."""
    shutil.copytree(PARITY / "vlm", tmp_path / "vlm")
    return Path(shutil.copytree(PARITY / "model", tmp_path / "source"))


def observation_of(facts, form, model):
    speed = model.action.speed_of(facts["in.past"].double())
    return {
        "pixels": facts["in.pixels"],
        "input_ids": facts[f"{form}.input_ids"],
        "attention_mask": facts[f"{form}.mask"],
        "speed": (speed / SPEED_UNIT).round().long(),
    }


# --- parity ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_an_imported_model_gives_the_published_numbers(facts, imported, form):
    """One prediction of the flow, and plans of ten steps from the same noise: in metres, through the unicycle."""
    model = load_backbone(imported / form)
    assert isinstance(model, Alpamayo)
    observation = observation_of(facts, form, model)
    with torch.no_grad():
        velocity = model.denoise(model.encode(observation), facts["in.x_t"], facts["in.t"])
    torch.testing.assert_close(velocity, facts[f"{form}.velocity"], rtol=0, atol=1e-5)
    noise = facts["in.noise"].unflatten(0, (2, 2))
    plans = GuidedPolicy(model).sample(observation, omega=None, candidates=2, noise=noise)
    torch.testing.assert_close(plans, facts[f"{form}.plans"], rtol=0, atol=1e-4)


def test_reasoning_is_the_published_text_and_ends_where_it_ends(facts, imported):
    model = load_backbone(imported / "reasoned")
    with torch.no_grad():
        context = model.encode(observation_of(facts, "reasoned", model))
    ends = [row.tolist().index(model.config.start_token) for row in facts["reasoned.tokens"]]
    words = facts["reasoned.mask"].sum(1)
    assert (context["mask"].sum(1) - words).tolist() == [end + 1 for end in ends]
    assert context["keys.0"].shape[2] == facts["reasoned.input_ids"].shape[1] + 6  # as long for every scene


def test_reasoning_that_does_not_end_is_cut(facts, imported):
    model = load_backbone(imported / "reasoned")
    with torch.no_grad():
        model.vlm.lm_head.weight[model.config.start_token] = 0
        context = model.encode(observation_of(facts, "reasoned", model))
    assert (context["mask"].sum(1) - facts["reasoned.mask"].sum(1)).tolist() == [6, 6]
    assert model.denoise(context, facts["in.x_t"], facts["in.t"]).isfinite().all()


def test_the_past_becomes_the_published_tokens(facts, imported):
    model = load_backbone(imported / "plain")
    sizes, ids = model.config, facts["plain.input_ids"]
    path = np.concatenate([facts["in.past"][..., :2].numpy(), np.zeros((2, 16, 1))], axis=-1)
    first, count = sizes.trajectory
    for row, poses in zip(ids, path):
        written = row[(row >= first) & (row < first + count)]
        assert written.tolist() == sizes.bins.tokens(poses)


def test_the_processor_writes_the_published_prompt(facts, imported, tmp_path):
    """Word for word the prompt of the recorded run, but for the past; the same pictures, a film of the front camera."""
    import_checkpoint("alpamayo", PARITY / "model", tmp_path / "out")
    change_json(tmp_path / "out" / "config.json", ["config", "cameras"], ["CAM_L0", "CAM_F0", "CAM_F0"])
    change_json(tmp_path / "out" / "config.json", ["config", "image_size"], [32, 64])
    model = load_backbone(tmp_path / "out")
    white = Image.fromarray(np.full((36, 64, 3), 255, dtype=np.uint8))
    first, count = model.config.trajectory

    def words(ids):
        return [token for token in ids.tolist() if not first <= token < first + count]

    samples = [model.processor()({**SCENE, "command": name}, dict.fromkeys(["CAM_L0", "CAM_F0"], white))
               for name in ("left", "unknown")]  # fmt: skip
    for sample, ids, mask in zip(samples, facts["plain.input_ids"], facts["plain.mask"]):
        assert words(sample["input_ids"][sample["attention_mask"].bool()]) == words(ids[mask.bool()])
    assert len({sample["input_ids"].shape for sample in samples}) == 1


def test_the_prefix_is_transformers_own():
    """Keys and values of every layer, with padding, against the pass that the library itself makes."""
    model = make_alpamayo()
    sizes, seen = model.config, make_observation()
    blocks = seen["pixels"].flatten(0, 1).unflatten(3, (4, 2, 8)).unflatten(2, (2, 2, 8))
    patches = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7).flatten(0, 4)
    native = model.vlm.model(
        input_ids=seen["input_ids"],
        attention_mask=seen["attention_mask"],
        pixel_values=patches[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1),
        image_grid_thw=torch.tensor([[1, 4, 8]] * 6),
        mm_token_type_ids=(seen["input_ids"] == sizes.image_token).int(),
        use_cache=True,
    )
    context, real = model.encode(seen), seen["attention_mask"].bool()
    for index, layer in enumerate(native.cache.layers):
        for found, wanted in ((f"keys.{index}", layer.keys), (f"values.{index}", layer.values)):
            assert_same_numbers(context[found].transpose(1, 2)[real], wanted.transpose(1, 2)[real])


# --- identities --------------------------------------------------------------------------------------------------


def make_alpamayo(seed=0, **overrides):
    """Random everywhere, so that every path counts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Alpamayo.tiny(AlpamayoSizes.tiny(**overrides)).eval()
        for name, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, std=0.5 if "norm" in name else 0.2)
    return model


def make_observation(scenes=2, seed=0):
    """Prompts of different lengths, padded on the left; three pictures of 32 x 64."""
    sizes, generator = AlpamayoSizes.tiny(), torch.Generator().manual_seed(seed)
    words = torch.randint(5, 100, (scenes, 12), generator=generator)
    places = torch.full((scenes, 8), sizes.image_token)
    start = torch.full((scenes, 1), sizes.start_token)
    ids = torch.cat([words[:, :5], places, words[:, 5:7], places, words[:, 7:8], places, words[:, 8:], start], dim=1)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    return {
        "pixels": torch.rand(scenes, 3, 3, 32, 64, generator=generator) * 2 - 1,
        "input_ids": ids,
        "attention_mask": mask,
        "speed": torch.tensor([4_000_000, 9_500_000])[:scenes],
    }


@pytest.mark.parametrize(("scope", "reasoning"), [("head", 0), ("all", 0), ("head", 4), ("all", 4)])
def test_identities_hold(scope, reasoning):
    check_identities(make_alpamayo(reasoning=reasoning), make_observation(), scope)


def test_a_saved_model_gives_the_same_numbers(tmp_path):
    check_saved(make_alpamayo(), make_observation(), tmp_path, "expert.extra")


def test_neither_signs_nor_candidates_copy_the_context(monkeypatch):
    """What `denoise` is given for both signs and all candidates are the very tensors that `encode` gave."""
    model = make_alpamayo()
    policy = GuidedPolicy(model, AdapterPair(model, "head", rank=2))
    spread_adapters(policy.pair)
    scenes, seen = policy.encode(make_observation()), []
    denoise = model.denoise
    monkeypatch.setattr(model, "denoise", lambda context, *rest: seen.append(context) or denoise(context, *rest))
    policy.sample(scenes, omega=1.0, candidates=3, noise=torch.randn(2, 3, 64, 2))
    assert {len(context["keys.0"]) for context in seen} == {2}
    given = scenes.encoded(None).tensors
    assert all(context[name] is given[name] for context in seen for name in given)


def test_adapters_are_plain_peft(tmp_path):
    model, seen = make_alpamayo(), make_observation()
    pair = AdapterPair(model, "head", rank=2)
    spread_adapters(pair)
    pair.save(tmp_path)
    x_t, t = torch.randn(2, 64, 2), torch.tensor([0.3, 0.8])
    with torch.no_grad():
        wanted = pair.denoise(pair.encode(seen)["positive"], x_t, t, "positive")
        peft = PeftModel.from_pretrained(make_alpamayo(), tmp_path / "positive").base_model.model.eval()
        assert_same_numbers(peft.denoise(peft.encode(seen), x_t, t), wanted)


@pytest.mark.parametrize("routing", ["both", "bernoulli"])
@pytest.mark.parametrize("scope", ["head", "all"])
def test_a_training_step_reaches_both_signs(routing, scope):
    dipole = Dipole(make_alpamayo(), rank=2, scope=scope, routing=routing)
    spread_adapters(dipole.pair)
    seen, generator = make_observation(), torch.Generator().manual_seed(0)
    context = dipole.backbone.encode(seen)
    plans = dipole.backbone.to_raw(torch.randn(2, 4, 64, 2, generator=generator), lambda: context)
    loss, _ = dipole.loss(seen, plans, torch.randn(2, 4, generator=generator), generator=generator)
    loss.backward()
    moved = {
        name: p.grad is not None and bool(p.grad.any()) for name, p in dipole.named_parameters() if "lora_" in name
    }
    unread = re.compile(r"vlm\.model\.language_model\.layers\.1\.(self_attn\.[qo]_proj|mlp)")  # after the last keys
    assert {name for name, did in moved.items() if not did and not unread.search(name)} == set()
    assert not any(p.requires_grad for name, p in dipole.named_parameters() if "lora_" not in name)


def test_what_an_action_depends_on_trains():
    """All but what the prompt computes after its last keys and values, and the head, which only reasons."""
    model: Backbone = make_alpamayo().train()
    model.denoise(model.encode(make_observation()), torch.randn(2, 64, 2), torch.rand(2)).square().mean().backward()
    last = re.compile(
        r"vlm\.(lm_head|model\.language_model\.(norm|layers\.1\.(self_attn\.([qo]_proj|q_norm)|mlp|post_att)))"
    )
    assert {name for name, p in model.named_parameters() if p.grad is None and not last.match(name)} == set()


def test_what_is_said_before_a_plan_is_part_of_the_fingerprint():
    plain, reasoned = make_alpamayo(), make_alpamayo(reasoning=4)
    assert plain.fingerprint() != reasoned.fingerprint()
    assert plain.fingerprint() == make_alpamayo().fingerprint()


def test_a_context_in_half_precision_keeps_the_speed():
    """A thousandth of the speed is six centimetres at the end of a plan."""
    model = make_alpamayo()
    context = model.encode(make_observation()).extended({})
    half = type(context)({name: t.bfloat16() if t.is_floating_point() else t for name, t in context.tensors.items()})
    action = torch.randn(2, 1, 64, 2)
    assert torch.equal(model.to_raw(action, lambda: half), model.to_raw(action, lambda: context))


# --- scenes ------------------------------------------------------------------------------------------------------


def test_the_processor_gives_what_encode_takes():
    model = make_alpamayo()
    processor = pickle.loads(pickle.dumps(model.processor()))  # noqa: S301 our own object: workers pickle it
    white = Image.fromarray(np.full((36, 64, 3), 255, dtype=np.uint8))
    samples = [processor({**SCENE, "command": name}, dict.fromkeys(processor.cameras, white))
               for name in ("left", "straight", "right", "unknown")]  # fmt: skip
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    assert batch["pixels"].shape == (4, 3, 3, 32, 64)
    assert ((batch["input_ids"] == model.config.image_token).sum(1) == 24).all()
    assert batch["input_ids"][:, -1].tolist() == [model.config.start_token] * 4
    assert model.features(model.encode(batch)).shape == (4, 32 + 1)
    with pytest.raises(InputError, match="CAM_L0"):
        processor(SCENE, {"CAM_F0": white})


def test_the_past_is_the_cubic_through_the_poses_known():
    """Constant jerk is met exactly; the speed now is its derivative at the end, as far as the published fit is."""
    known, wanted = -0.5 * np.arange(3, -1, -1.0), -0.1 * np.arange(15, -1, -1.0)

    def drive(time):
        return np.stack([8 * time + 0.5 * time**2 + 0.1 * time**3, 0 * time, 0 * time], axis=-1)

    np.testing.assert_allclose(past(drive(known), 0.1), drive(wanted), atol=1e-12)
    speed = AlpamayoSizes.tiny() and Alpamayo.tiny().action.speed_of(torch.from_numpy(past(drive(known), 0.1)))
    assert speed.item() == pytest.approx(8.0, abs=0.01)
    turning = np.array([[0, 0, 3.1], [0, 0, -3.1], [0, 0, -3.0], [0, 0, -2.9]])
    assert np.abs(np.diff(past(turning, 0.1)[:, 2])).max() < 0.1  # across half a turn
    with pytest.raises(InputError, match=r"history: must be four poses"):
        past(np.zeros((3, 3)), 0.1)


def test_moves_beyond_the_bins_are_the_outermost():
    tokens = Bins(100, 11, (-4, -4, -10), (4, 4, 10)).tokens(np.array([[-30.0, 0, 0], [0, 0.8, 0]]))
    assert tokens == [100, 105, 105, 110, 106, 105]


# --- importing ---------------------------------------------------------------------------------------------------


def test_every_key_counts(source, tmp_path):
    file = load_file(source / "model.safetensors")
    special = [name for name in file if re.search(r"lm_head|norm\.weight|action_", name)]
    check_every_key_counts(
        file,
        [name for name in [*special[::5], *list(file)[::17]] if "lm_head" not in name],
        lambda damaged: save_file(damaged, source / "model.safetensors"),
        lambda: import_checkpoint("alpamayo", source, tmp_path / "out"),
    )
    assert not (tmp_path / "out").exists()


def test_a_tied_head_and_numbers_of_the_configuration_are_taken(source, tmp_path, imported):
    """As version 1 and smaller language models are saved."""
    file = load_file(source / "model.safetensors")
    table = file["vlm.model.language_model.embed_tokens.weight"]
    frequencies = torch.logspace(0, 2, 10)[None]
    older = {name: tensor for name, tensor in file.items() if name != "vlm.lm_head.weight"}
    older |= {"action_space.accel_std": torch.tensor(0.6875), "action_in_proj.sinus.0.freqs": frequencies}
    save_file(older, source / "model.safetensors")
    import_checkpoint("alpamayo", source, tmp_path / "out")
    model = load_backbone(tmp_path / "out")
    assert torch.equal(model.vlm.lm_head.weight, table)
    for name, wrong in (
        ("action_space.accel_std", torch.tensor(1.0)),
        ("action_in_proj.sinus.0.freqs", 2 * frequencies),
    ):
        save_file({**older, name: wrong}, source / "model.safetensors")
        with pytest.raises(InputError, match=f"{re.escape(name)} differs from what config.json says"):
            import_checkpoint("alpamayo", source, tmp_path / "other")


def test_version_1_names_no_views(source, tmp_path):
    change_json(source / "config.json", ["model_type"], "alpamayo_r1")
    import_checkpoint("alpamayo", source, tmp_path / "out")
    model = load_backbone(tmp_path / "out")
    white = Image.fromarray(np.full((36, 64, 3), 255, dtype=np.uint8))
    sample = model.processor()(SCENE, dict.fromkeys(model.config.cameras, white))
    text = model.tokenizer.decode(sample["input_ids"])
    assert "camera" not in text
    assert "route" not in text


def test_the_licence_and_the_horizon_are_said(source, tmp_path, capsys):
    import_checkpoint("alpamayo", source, tmp_path / "out")
    told = " ".join(capsys.readouterr().out.split())
    assert "gated and for research only" in told
    assert "64 poses every 0.1 s" in told


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["model_type"], "qwen3_vl", "model_type is 'qwen3_vl', not one of alpamayo_r1"),
        (["expert_cfg"], None, "expert_cfg is missing"),
        (["expert_cfg", "head_dim"], 16, "expert_cfg: head_dim: must be 8"),
        (["action_space_cfg", "_target_"], "a.JerkActionSpace", "action_space_cfg: _target_"),
        (["action_space_cfg", "dt"], 0.0, r"action\.interval"),
        (["diffusion_cfg", "int_method"], "heun", "int_method: must be 'euler'"),
        (["hist_traj_tokenizer_cfg", "num_bins"], 13, "bins of plans and past together"),
        (["traj_token_start_idx"], 5, "trajectories from 160"),
        (["vlm_name_or_path"], "nvidia/Cosmos-Reason2-8B", "pass --encoder FOLDER"),
        (["expert_non_causal_attention"], False, "expert_non_causal_attention: must be True"),
    ],
)
def test_a_bad_configuration_names_its_field(source, tmp_path, keys, value, message):
    change_json(source / "config.json", keys, value)
    with pytest.raises(InputError, match=message):
        import_checkpoint("alpamayo", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_partial_folder_says_what_is_missing(source, tmp_path):
    shutil.rmtree(tmp_path / "vlm")
    with pytest.raises(InputError, match="pass --encoder FOLDER"):
        import_checkpoint("alpamayo", source, tmp_path / "out")
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(PARITY / "vlm" / "config.json", bare)
    with pytest.raises(InputError, match="has no tokenizer files"):
        import_checkpoint("alpamayo", source, tmp_path / "out", encoder=bare)
    (bare / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.4, 0.4, 0.4]}))
    with pytest.raises(InputError, match="image_mean"):
        import_checkpoint("alpamayo", source, tmp_path / "out", encoder=bare)
    (source / "model.safetensors").unlink()
    with pytest.raises(InputError, match="gated: accept their licence"):
        import_checkpoint("alpamayo", source, tmp_path / "out", encoder=PARITY / "vlm")
    index = {"weight_map": {"expert.norm.weight": "model-00001-of-00005.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="model-00001-of-00005"):
        import_checkpoint("alpamayo", source, tmp_path / "out", encoder=PARITY / "vlm")
    with pytest.raises(InputError, match="--horizon: means nothing"):
        import_checkpoint("alpamayo", source, tmp_path / "out", horizon=8)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"image_size": (300, 576)}, r"config\.image_size"),
        ({"cameras": ("CAM_L1",)}, r"config\.cameras: .*CAM_L1"),
        ({"cameras": ()}, r"config\.cameras"),
        ({"reasoning": -1}, r"config\.reasoning"),
    ],
)
def test_sizes_that_cannot_be_are_named(sizes, message):
    with pytest.raises(InputError, match=message):
        AlpamayoSizes(**sizes)


def test_sampling_stays_exact_when_cast(facts, imported):
    """Weights in bfloat16 change the controls by their rounding, never how they are driven."""
    model = load_backbone(imported / "plain")
    observation, noise = observation_of(facts, "plain", model), facts["in.noise"].unflatten(0, (2, 2))
    exact = GuidedPolicy(model).sample(observation, omega=None, candidates=2, noise=noise)
    assert_same_numbers(exact, facts["plain.plans"], SAMPLED)
    rough = GuidedPolicy(model.bfloat16()).sample(observation, omega=None, candidates=2, noise=noise)
    assert rough.dtype == torch.float32
    assert (rough - exact)[..., :2].norm(dim=-1).max() < 3.0


@pytest.mark.slow
@pytest.mark.parametrize("form", ["program", "onnx"])
def test_the_loop_is_written_without_reasoning(tmp_path, form):
    """Both files, read again, give the policy's plans; the context is one of their inputs."""
    model = make_alpamayo()
    policy = GuidedPolicy(model, AdapterPair(model, "head", rank=2))
    spread_adapters(policy.pair)
    told = write_loop(policy, tmp_path, form, candidates=2, steps=2)
    assert told["difference_m"] <= told["allowed_m"]
    assert told["interval_s"] == 0.1
