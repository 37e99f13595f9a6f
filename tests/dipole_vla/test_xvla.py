"""X-VLA: its sizes, its published files, and parity with the upstream code.

`data/parity/xvla/` holds two tiny checkpoints written by lerobot's own X-VLA code, one by its present state (commit
7427f31, native Florence-2 naming) and one by its state before the native port (parent of 1bb9933, older naming),
with inputs, encoder features, one prediction and one full sampling run each, for the `auto` and `ee6d` action modes.
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

from dipole_vla.backbones import FAMILIES
from dipole_vla.backbones.florence.importer import EncoderLayout, present
from dipole_vla.backbones.xvla.model import XVLA, XVLAConfig
from dipole_vla.commands.import_ import import_checkpoint
from dipole_vla.paths import to_x0
from dipole_vla.policy import AdapterPair, Backbone
from dipole_vla.solvers import SolverSpec, solve
from navsim_adapter.foundation.errors import InputError
from tests.same_numbers import SAMPLED, assert_same_numbers

PARITY = Path(__file__).resolve().parents[1] / "data" / "parity" / "xvla"
PUBLISHED_KEYS = Path(__file__).resolve().parents[3] / "shared" / "checkpoint_layouts" / "xvla.keys.txt"


@pytest.fixture(scope="module", autouse=True)
def family():
    """Known to `load_backbone`, whether or not this clone's table has it yet."""
    FAMILIES.setdefault("xvla", ("dipole_vla.backbones.xvla.model", "XVLA"))


@pytest.fixture(scope="module")
def published():
    with torch.device("meta"):
        return XVLA(XVLAConfig())


def count(parameters):
    return sum(parameter.numel() for parameter in parameters)


# --- sizes -----------------------------------------------------------------------------------------------------


def test_the_published_size_is_built_on_the_meta_device(published):
    assert count(published.parameters()) == pytest.approx(879.48e6, rel=1e-5)
    assert count(published.vlm.parameters()) == pytest.approx(570.71e6, rel=1e-3)
    assert count(published.transformer.parameters()) == pytest.approx(308.78e6, rel=1e-4)
    assert all(parameter.is_meta for parameter in published.parameters())


@pytest.mark.parametrize(("rank", "millions"), [(16, 6.29), (32, 12.58)])
def test_each_adapter_has_its_share_of_the_head(rank, millions, monkeypatch):
    with torch.device("meta"):
        model = XVLA(XVLAConfig())
        total = count(model.parameters())
        monkeypatch.setattr(model, "fingerprint", lambda: "0" * 64)  # no values on the meta device
        pair = AdapterPair(model, rank=rank)
    for role in ("positive", "negative"):
        assert count(pair.parameters(role)) == pytest.approx(millions * 1e6, rel=1e-3)
    if rank == 32:
        assert 0.010 < count(pair.parameters("positive")) / total < 0.020
    assert count(p for p in model.parameters() if p.requires_grad) == count(pair.parameters())


@pytest.mark.skipif(not PUBLISHED_KEYS.is_file(), reason="the published key list is not beside this clone")
@pytest.mark.parametrize("is_older", [False, True])
def test_the_published_file_fits_name_by_name(published, is_older):
    first, second = re.split(r"# section 2.*", PUBLISHED_KEYS.read_text())
    listed = dict(re.findall(r"^(model\.\S+) \[(.*?)\]", first, re.MULTILINE))
    if is_older:
        head = {name: shape for name, shape in listed.items() if name.startswith("model.transformer.")}
        listed = {**head, **dict(re.findall(r"^(model\.\S+) \[(.*?)\]", second, re.MULTILINE))}
        listed.pop("model.vlm.language_model.final_logits_bias")
    file = {name: tuple(int(n) for n in shape.split(",")) for name, shape in listed.items()}
    layout = EncoderLayout(published.vlm.state_dict(), is_older, "model.vlm.")
    wanted = {name: tuple(t.shape) for name, t in layout.wanted(present(layout, file)).items()}
    wanted |= {f"model.{n}": tuple(t.shape) for n, t in published.state_dict().items() if n.startswith("transformer.")}
    assert wanted == file


# --- parity with the upstream code -----------------------------------------------------------------------------


def facts_of(naming):
    return load_file(PARITY / naming / "facts.safetensors")


def observation_of(facts):
    return {key: facts[f"in.{key}"] for key in ("pixels", "view_mask", "input_ids", "proprio", "domain_id")}


@pytest.mark.parametrize("mode", ["auto", "ee6d"])
@pytest.mark.parametrize("naming", ["native", "older"])
def test_an_imported_checkpoint_gives_the_upstream_numbers(tmp_path, naming, mode):
    import_checkpoint("xvla", PARITY / naming, tmp_path / "model", action_mode=mode)
    model, facts = XVLA.from_pretrained(tmp_path / "model"), facts_of(naming)
    with torch.no_grad():
        context = model.encode(observation_of(facts))
        assert_same_numbers(context["tokens"], facts[f"{mode}.tokens"])
        assert_same_numbers(context["auxiliary"], facts[f"{mode}.auxiliary"])
        found = model.denoise(context, facts["in.x_t"], facts["in.t"])
        assert_same_numbers(found, facts[f"{mode}.prediction"])

        def denoise(x_t, t):
            return to_x0(model.prediction, model.schedule, model.denoise(context, x_t, t), x_t, t)

        sampled = solve(model.solver, model.schedule, denoise, facts["in.noise"])
    wanted = facts[f"{mode}.sampled"]
    if mode == "ee6d":  # the published code ends with a sigmoid on the grippers; ours returns the network's numbers
        sampled[..., [9, 19]] = sampled[..., [9, 19]].sigmoid()
    assert_same_numbers(sampled[..., : wanted.shape[-1]], wanted, SAMPLED)


@pytest.fixture
def imported(tmp_path):
    import_checkpoint("xvla", PARITY / "native", tmp_path / "imported")
    return XVLA.from_pretrained(tmp_path / "imported")


def test_the_folder_says_how_it_is_used(imported):
    assert (imported.config.domain, imported.config.prompt_tokens, imported.config.views) == (2, 12, 3)
    assert imported.config.image_size == (32, 32)
    assert (imported.action.horizon, imported.action.dim, imported.action.real_dim) == (6, 20, 4)
    assert imported.solver == SolverSpec("renoise", steps=10)


def test_options_turn_it_into_the_start_of_a_driving_model(tmp_path):
    import_checkpoint("xvla", PARITY / "native", tmp_path / "m", action_mode="auto", horizon=8, domain=1)
    model = XVLA.from_pretrained(tmp_path / "m")
    assert (model.action.horizon, model.config.domain, model.config.muted) == (8, 1, ())


def test_the_domain_of_the_folder_is_used_where_an_observation_names_none(imported):
    facts = facts_of("native")
    seen = observation_of(facts)
    named = imported.encode({**seen, "domain_id": torch.full((2,), 2)})
    del seen["domain_id"]
    one, other = (imported.denoise(c, facts["in.x_t"], facts["in.t"]) for c in (named, imported.encode(seen)))
    assert torch.equal(one, other)


def test_a_missing_view_is_a_hidden_one(imported):
    """Fewer pictures than views: as the published code, which fills up with masked black ones."""
    seen = observation_of(facts_of("native"))
    seen["view_mask"] = torch.tensor([[True, True, False]] * 2)
    hidden = imported.encode(seen)
    del seen["view_mask"]
    seen["pixels"] = seen["pixels"][:, :2]
    shown = imported.encode(seen)
    assert_same_numbers(shown["auxiliary"], hidden["auxiliary"])
    assert not shown["auxiliary"][:, 17:].any()
    seen["view_mask"] = torch.zeros(2, 2)
    with pytest.raises(InputError, match="view_mask hides every view"):
        imported.encode(seen)


# --- keys ------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path):
    return Path(shutil.copytree(PARITY / "native", tmp_path / "source"))


def test_either_name_of_the_tied_table_is_read(source, tmp_path):
    file = load_file(source / "model.safetensors")
    names = [f"model.vlm.language_model.{name}.weight" for name in ("shared", "encoder.embed_tokens")]
    held = next(name for name in names if name in file)
    other = next(name for name in names if name != held)
    table = file.pop(held)
    prints = set()
    for number, tables in enumerate(({held: table}, {other: table}, {held: table, other: table.clone()})):
        save_file({**file, **tables}, source / "model.safetensors")
        import_checkpoint("xvla", source, tmp_path / f"out{number}")
        prints.add(XVLA.from_pretrained(tmp_path / f"out{number}").fingerprint())
    assert len(prints) == 1
    save_file({**file, held: table, other: table + 1}, source / "model.safetensors")
    with pytest.raises(InputError, match="differ, but are one tied table"):
        import_checkpoint("xvla", source, tmp_path / "bad")


def test_a_file_of_the_original_repository_is_read(source, tmp_path):
    """No `model.` prefix, other field names, no processor files, no lerobot fields."""
    file = load_file(source / "model.safetensors")
    save_file({name.removeprefix("model."): tensor for name, tensor in file.items()}, source / "model.safetensors")
    raw = json.loads((source / "config.json").read_text())
    kept = ("florence_config", "hidden_size", "depth", "num_heads", "num_domains", "max_len_seq", "dim_time")
    original = {name: raw[name] for name in kept}
    original |= {"num_actions": raw["chunk_size"], "soft_prompt_length": raw["len_soft_prompts"], "action_mode": "ee6d"}
    (source / "config.json").write_text(json.dumps({"model_type": "xvla", **original}))
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        (source / name).unlink()
    import_checkpoint("xvla", source, tmp_path / "out", domain=2, action_mode="auto")
    import_checkpoint("xvla", PARITY / "native", tmp_path / "other")
    one, other = (XVLA.from_pretrained(tmp_path / name) for name in ("out", "other"))
    assert one.fingerprint() == other.fingerprint()


@pytest.mark.parametrize("naming", ["native", "older"])
def test_every_key_counts(tmp_path, naming):
    source = Path(shutil.copytree(PARITY / naming, tmp_path / "source"))
    file = load_file(source / "model.safetensors")
    names = list(file)[::23] if naming == "native" else list(file)[4::29]
    check_every_key_counts(
        file, names, partial(save_file, filename=source / "model.safetensors"),
        lambda: import_checkpoint("xvla", source, tmp_path / "out"),
    )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_a_float16_file_becomes_float32(source, tmp_path):
    file = load_file(source / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in file.items()}, source / "model.safetensors")
    import_checkpoint("xvla", source, tmp_path / "out")
    assert {p.dtype for p in XVLA.from_pretrained(tmp_path / "out").parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("type",), "pi0", "type is 'pi0'"),
        (("hidden_size",), "wide", "hidden_size must be int, got 'wide'"),
        (("action_mode",), "eed6", "did you mean 'ee6d'"),
        (("florence_config",), None, "florence_config is missing"),
        (("florence_config", "vision_config", "activation_function"), "relu", "activation_function: must be 'gelu'"),
        (("florence_config", "vision_config", "num_heads"), "many", "cannot be read as a Florence-2 configuration"),
        (("num_heads",), 5, "heads: must divide the width 24, got 5"),
    ],
)
def test_a_bad_configuration_names_its_field(source, tmp_path, path, value, message):
    change_json(source / "config.json", path, value)
    with pytest.raises(InputError, match=message):
        import_checkpoint("xvla", source, tmp_path / "out")


def test_sizes_that_no_published_encoder_has_are_taken_as_they_are(source, tmp_path):
    """The channel attention's groups split the same weights otherwise, so only the answer changes."""
    raw = json.loads((source / "config.json").read_text())
    raw["florence_config"]["vision_config"] |= {"num_groups": [1, 4], "patch_prenorm": [False, True]}
    (source / "config.json").write_text(json.dumps(raw))
    import_checkpoint("xvla", source, tmp_path / "out")
    import_checkpoint("xvla", PARITY / "native", tmp_path / "usual")
    one, usual = (XVLA.from_pretrained(tmp_path / name) for name in ("out", "usual"))
    assert (one.config.vision_groups, one.config.vision_prenorm) == ((1, 4), ())
    seen = observation_of(facts_of("native"))
    assert not torch.allclose(one.encode(seen)["tokens"], usual.encode(seen)["tokens"], atol=1e-3)
    raw["florence_config"]["vision_config"]["mlp_ratio"] = 2.0  # the weights are of ratio 4
    (source / "config.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match=r"fc1\.weight has shape"):
        import_checkpoint("xvla", source, tmp_path / "bad")


def test_processing_that_would_be_lost_is_refused(source, tmp_path):
    path = source / "policy_preprocessor.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "steps": [*raw["steps"], {"registry_name": "image_crop_resize_processor"}]}))
    with pytest.raises(InputError, match="image_crop_resize_processor"):
        import_checkpoint("xvla", source, tmp_path / "out")
    raw["steps"][-1]["config"]["norm_map"]["STATE"] = "MEAN_STD"
    path.write_text(json.dumps(raw))
    with pytest.raises(InputError, match="STATE is normalised by MEAN_STD"):
        import_checkpoint("xvla", source, tmp_path / "out")


@pytest.mark.parametrize(("mode", "names"), [("MEAN_STD", ("mean", "std")), ("QUANTILES", ("q01", "q99"))])
def test_a_normalised_action_keeps_its_statistics(source, tmp_path, mode, names):
    """Read as every folder of lerobot: an action counts whether or not it is listed among the features."""
    path = source / "policy_preprocessor.json"
    raw = json.loads(path.read_text())
    raw["steps"][-1]["config"]["norm_map"]["ACTION"] = mode
    path.write_text(json.dumps(raw))
    with pytest.raises(InputError, match=f"ACTION is normalised by {mode}, but the step has no statistics"):
        import_checkpoint("xvla", source, tmp_path / "out")
    raw["steps"][-1]["state_file"] = "statistics.safetensors"
    path.write_text(json.dumps(raw))
    first, second = torch.tensor([10.0, 0.0, 0.9, 0.0]), torch.tensor([18.0, 2.0, 1.2, 0.3])
    save_file(dict(zip([f"action.{name}" for name in names], (first, second))), source / "statistics.safetensors")
    import_checkpoint("xvla", source, tmp_path / "out")
    action = XVLA.from_pretrained(tmp_path / "out").action
    is_range = mode == "QUANTILES"
    assert torch.allclose(torch.tensor(action.offset), (first + second) / 2 if is_range else first)
    assert torch.allclose(torch.tensor(action.scale), (second - first) / 2 if is_range else second)


# --- the family ------------------------------------------------------------------------------------------------


def make_xvla(seed=0, **overrides):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = {"width": 32, "depth": 2, "text_layers": 1, "text_hidden": 32, "image_size": (32, 32)}
        return XVLA.tiny(XVLAConfig.tiny(**{**sizes, **overrides})).eval()


def make_observation(scenes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "pixels": torch.randint(0, 256, (scenes, 3, 3, 32, 32), generator=generator, dtype=torch.uint8),
        "input_ids": torch.randint(4, 200, (scenes, 64), generator=generator),
        "proprio": torch.randn(scenes, 12, generator=generator),
    }


@pytest.mark.parametrize("scope", ["head", "all"])
def test_identities_hold(scope):
    check_identities(make_xvla(), make_observation(2), scope)


def test_a_saved_model_gives_the_same_numbers(tmp_path):
    check_saved(make_xvla(is_hetero=True, prompts=0), make_observation(), tmp_path, "transformer.extra")


def test_every_parameter_trains():
    model: Backbone = make_xvla().train()
    seen = {**make_observation(4), "domain_id": torch.tensor([0, 1, 2, 3])}
    context = model.encode(seen)
    model.denoise(context, torch.randn(4, 8, 20), torch.rand(4)).square().mean().backward()
    assert not {name for name, p in model.named_parameters() if p.grad is None}


def test_muted_channels_are_not_shown():
    """The gripper channels of "ee6d" are zero in the noisy action and in the state, whatever they hold."""
    model = make_xvla(muted=(9, 19), action_mode="ee6d")
    seen = make_observation(2)
    seen["proprio"] = torch.randn(2, 20, generator=torch.Generator().manual_seed(1))
    x_t, t = torch.randn(2, 8, 20, generator=torch.Generator().manual_seed(2)), torch.tensor([0.2, 0.7])
    before = model.denoise(model.encode(seen), x_t, t)
    x_t[..., 9], x_t[..., 19] = 5.0, -5.0
    seen["proprio"][:, 9] = 7.0
    assert torch.equal(model.denoise(model.encode(seen), x_t, t), before)
    x_t[..., 8] = 5.0
    assert not torch.equal(model.denoise(model.encode(seen), x_t, t), before)


def test_too_many_tokens_are_refused():
    model = make_xvla(max_tokens=60)
    with pytest.raises(InputError, match="exceed max_tokens 60"):
        model.denoise(model.encode(make_observation(1)), torch.zeros(1, 8, 20), torch.zeros(1))


def test_features_are_one_row_per_scene():
    model = make_xvla()
    assert model.features(model.encode(make_observation(2))).shape == (2, 4 * 32 + 20)


@pytest.mark.parametrize("fit", ["stretch", "pad"])
def test_the_processor_gives_what_encode_takes(fit):
    model = make_xvla(fit=fit)
    processor = pickle.loads(pickle.dumps(model.processor()))  # noqa: S301 our own object: workers pickle it
    assert processor.cameras == ("CAM_F0", "CAM_L0", "CAM_R0")
    white = Image.fromarray(np.full((36, 64, 3), 255, dtype=np.uint8))
    sample = processor(SCENE, dict.fromkeys(processor.cameras, white))
    assert sample["pixels"].shape == (3, 3, 32, 32)
    assert sample["pixels"].dtype == torch.uint8
    assert sample["pixels"][0, :, 31, 31].tolist() == [255, 255, 255]
    corner = [124, 116, 104] if fit == "pad" else [255, 255, 255]  # padded on the top: ImageNet's mean
    assert sample["pixels"][0, :, 0, 0].tolist() == corner
    batch = {name: torch.stack([tensor, tensor]) for name, tensor in sample.items()}
    assert len(model.encode(batch)) == 2
    with pytest.raises(InputError, match="CAM_L0"):
        processor(SCENE, {"CAM_F0": white})


def test_a_configuration_that_cannot_work_is_refused():
    for overrides, message in (
        ({"domain": 4}, "config.domain"),
        ({"fit": "crop"}, "config.fit"),
        ({"views": 2}, "config.cameras"),
        ({"muted": (9, 19), "proprio_dim": 12}, "config.muted"),
        ({"context_width": 16}, "config.context_width"),
    ):
        with pytest.raises(InputError, match=message):
            XVLAConfig.tiny(**overrides)
