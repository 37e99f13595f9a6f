"""SimWAM: parity with public code, whose numbers are recorded, and what its files must hold.

`data/parity/simwam/` was written by `make.py` there: checkpoint, VAE, the prompt's embedding, inputs, one prediction
and one sampling run.
"""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from identities import check_every_key_counts, check_identities, check_saved
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from small_backbone import SCENE, spread_adapters
from torch.nn.functional import interpolate

from dipole_vla.backbones import load_backbone
from dipole_vla.backbones.example import example_observation
from dipole_vla.backbones.simwam.model import PATH, PUBLISHED_ACTION, SimWAM, SimWAMSizes
from dipole_vla.commands.import_ import import_checkpoint
from dipole_vla.policy import AdapterPair, GuidedPolicy
from dipole_vla.solvers import step_table
from navsim_adapter.foundation.errors import InputError
from tests.same_numbers import assert_same_numbers

SOURCE = Path(__file__).resolve().parents[1] / "data" / "parity" / "simwam"


def imported(out, source=SOURCE, **options):
    import_checkpoint("simwam", source, out, **{"heads": 2, **options})
    return load_backbone(out)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return imported(tmp_path_factory.mktemp("simwam") / "out")


@pytest.fixture(scope="module")
def facts():
    return load_file(SOURCE / "facts.safetensors")


@pytest.fixture
def source(tmp_path):
    """A copy of the published files, to be damaged."""
    return Path(shutil.copytree(SOURCE, tmp_path / "source"))


def observation_of(facts):
    return {"pixels": facts["pixels"], "proprio": facts["state"]}


def make_simwam(**overrides):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SimWAM.tiny(SimWAMSizes.tiny(**overrides)).eval()


# --- parity ------------------------------------------------------------------------------------------------------


def test_an_imported_model_gives_the_upstream_numbers(model, facts):
    """Alone with the first frame, and beside future frames as in training, which the mask hides from actions."""
    with torch.no_grad():
        assert_same_numbers(model.vae(facts["pixels"]), facts["latents"])
        velocity = model.denoise(model.encode(observation_of(facts)), facts["x_t"], facts["t"])
    for name in ("velocity", "joint"):
        torch.testing.assert_close(velocity, facts[name], rtol=0, atol=1e-5)


def test_the_sampler_ends_in_the_upstream_numbers(model, facts):
    """Ten shifted steps from their noise, in metres and radians."""
    plans = GuidedPolicy(model).sample(observation_of(facts), omega=None, noise=facts["noise"][:, None])[:, 0]
    torch.testing.assert_close(plans, model.action.decode(facts["plans"]), rtol=0, atol=1e-4)


def test_actions_lie_within_the_published_bounds():
    low, high = torch.tensor([-1.57, -19.68, -1.67]), torch.tensor([65.17, 22.32, 1.86])
    for bound, wanted in ((low, -1.0), (high, 1.0)):
        found = PUBLISHED_ACTION.encode(bound.expand(8, 3))
        torch.testing.assert_close(found, torch.full((8, 3), wanted), rtol=0, atol=1e-6)


def test_times_are_shifted_in_sampling_and_training():
    even = np.linspace(1, 0, 11)[:-1]
    times = [float(step.t) for step in step_table(SimWAM.tiny().solver, PATH)]
    np.testing.assert_allclose(times, 5 * even / (1 + 4 * even), atol=1e-12)
    drawn = PATH.sample_t(20_000, torch.Generator().manual_seed(0))
    assert (drawn < 5 / 6).float().mean().item() == pytest.approx(0.5, abs=0.02)  # the median of u is moved to 5 / 6


def test_a_picture_and_the_state_are_shown_as_upstream_shows_them():
    """To half a step of uint8: smoothed bilinear, then to -1 and 1; the command after the motion."""
    image = Image.fromarray(np.random.default_rng(0).integers(256, size=(108, 192, 3), dtype=np.uint8))
    model = make_simwam()
    processor = pickle.loads(pickle.dumps(model.processor()))  # noqa: S301 our own object: workers pickle it
    sample = processor(SCENE, {"CAM_F0": image})
    raw = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    wanted = interpolate(raw, (32, 64), mode="bilinear", antialias=True)[0]
    torch.testing.assert_close(sample["pixels"] / 255, wanted, rtol=0, atol=1.01 / 255)
    assert sample["proprio"].tolist() == pytest.approx([6.0, 0.8, 0.3, -0.4, 1, 0, 0, 0])
    batch = {name: torch.stack([tensor, tensor]) for name, tensor in sample.items()}
    assert model.features(model.encode(batch)).shape == (2, 32 + 8)
    with pytest.raises(InputError, match="CAM_F0"):
        processor(SCENE, {"CAM_L0": image})


# --- what holds of every family ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["head", "all"])
def test_identities_hold(facts, tmp_path, scope):
    check_identities(imported(tmp_path / "out"), observation_of(facts), scope)


def test_a_saved_model_gives_the_same_numbers(model, facts, tmp_path):
    check_saved(model, observation_of(facts), tmp_path, "mixtures.extra")


def test_both_signs_share_the_picture_and_differ_in_what_they_are_told(tmp_path, facts):
    """Of the large keys and values there is one tensor; each sign has made its own of the prompt."""
    model = imported(tmp_path / "out")
    pair = AdapterPair(model, "head", rank=2)
    spread_adapters(pair)
    with torch.no_grad():
        contexts = pair.encode(observation_of(facts))
        both = pair.prepare_both(contexts, ("positive", "negative"))
        x_t, t = torch.randn(6, 8, 3), torch.rand(6)
        together = pair.denoise_both(both, x_t, t, ("positive", "negative"))
        apart = [pair.denoise(contexts[sign], x_t, t, sign) for sign in ("positive", "negative")]
    for name in ("keys.0", "values.2"):
        assert both[name] is contexts["positive"][name]
        assert len(both[f"told.{name}"]) == 2 * len(both)
    for one, other in zip(together, apart):
        assert_same_numbers(one, other)


def test_the_picture_is_read_once_for_all_steps_and_candidates(model, facts):
    calls = []
    handle = model.mixtures["video"].blocks[0].register_forward_hook(lambda *_: calls.append(1))
    GuidedPolicy(model).sample(observation_of(facts), omega=None, candidates=3)
    handle.remove()
    assert len(calls) == 1


def test_adapters_load_into_plain_peft(facts, tmp_path):
    pair = AdapterPair(imported(tmp_path / "out"), "head", rank=2)
    spread_adapters(pair)
    GuidedPolicy(pair.backbone, pair).save_pretrained(tmp_path / "policy", tmp_path / "out")
    plain = PeftModel.from_pretrained(load_backbone(tmp_path / "out"), tmp_path / "policy" / "positive").eval()
    observation = observation_of(facts)
    with torch.no_grad():
        found = plain.denoise(plain.encode(observation), facts["x_t"], facts["t"])
        wanted = pair.denoise(pair.encode(observation)["positive"], facts["x_t"], facts["t"], "positive")
    assert_same_numbers(found, wanted)


def test_what_an_action_depends_on_trains():
    """All but what the video expert computes after its last keys and values."""
    model = make_simwam().train()
    context = model.encode({"pixels": torch.randn(2, 3, 32, 64), "proprio": torch.randn(2, 8)})
    model.denoise(context, torch.randn(2, 8, 3), torch.rand(2)).square().mean().backward()
    idle = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    last = "mixtures.video.blocks.1."
    assert all(name.startswith(last) and not name.startswith(f"{last}self_attn.k.") for name in idle), idle


# --- importing -----------------------------------------------------------------------------------------------------


def test_every_key_counts(source, tmp_path):
    path = source / "SimWAM.pt"
    raw = torch.load(path, weights_only=True)
    names = [name for name in raw["mot"] if not name.startswith("mixtures.video.head.")]
    check_every_key_counts(
        raw["mot"],
        [name for name in names[::17] if "blocks.0" not in name],
        lambda damaged: torch.save({**raw, "mot": damaged}, path),
        lambda: imported(tmp_path / "out", source),
    )
    torch.save(raw, path)
    vae = torch.load(source / "Wan2.2_VAE.pth", weights_only=True)
    check_every_key_counts(
        vae,
        ["conv1.bias", "encoder.middle.1.proj.weight", "encoder.downsamples.1.downsamples.2.resample.1.bias"],
        lambda damaged: torch.save(damaged, source / "Wan2.2_VAE.pth"),
        lambda: imported(tmp_path / "out", source),
    )
    assert not (tmp_path / "out").exists()


def change(path, **entries):
    torch.save({**torch.load(path, weights_only=True), **entries}, path)


def test_other_checkpoints_are_named(source, tmp_path):
    path = source / "SimWAM.pt"
    mot = torch.load(path, weights_only=True)["mot"]
    q = "mixtures.action.blocks.0.self_attn.q"
    waymo = {**mot, "mixtures.action.action_encoder.weight": torch.zeros(16, 2)}
    trained = {**mot, f"{q}.base.weight": mot[f"{q}.weight"], f"{q}.lora_A": torch.zeros(2, 16)}
    for damaged, message in (
        ({**mot, "mixtures.radar.bias": torch.zeros(1)}, r"unexpected key mixtures\.radar\.bias"),
        (waymo, "actions have 2 channels, states 8"),
        (trained, r"an adapter lies among the weights .*lora_A"),
        ({}, "mot: unexpected key"),
    ):
        change(path, mot=damaged)
        with pytest.raises(InputError, match=message):
            imported(tmp_path / "out", source)
    torch.save({"dit": mot}, path)
    with pytest.raises(InputError, match="has no 'mot'"):
        imported(tmp_path / "out", source)
    torch.save({"mot": mot}, path)
    with pytest.raises(InputError, match="has no 'proprio_encoder'"):
        imported(tmp_path / "out", source)
    assert not (tmp_path / "out").exists()


def test_a_partial_folder_says_what_is_missing(source, tmp_path):
    with pytest.raises(InputError, match="channels of attention are not 5 heads; pass --heads"):
        imported(tmp_path / "out", source, heads=5)
    with pytest.raises(InputError, match="--sizes: layers"):
        imported(tmp_path / "out", source, sizes={"layers": 3})
    for name, message in (("*.wan22ti2v5b.pt", "the prompt's embedding, has 0"), ("Wan2.2_VAE.pth", "pass --encoder")):
        next(source.glob(name)).unlink()
        with pytest.raises(InputError, match=message):
            imported(tmp_path / "out", source)
    shutil.copy(source / "SimWAM.pt", source / "SimWAM-RL.pt")
    with pytest.raises(InputError, match=r"has SimWAM-RL\.pt, SimWAM\.pt; pass the file"):
        imported(tmp_path / "out", source)
    again = imported(tmp_path / "out", source / "SimWAM-RL.pt", encoder=SOURCE)
    assert again.config.layers == 3


def test_padding_of_the_prompt_is_zeros_that_are_seen(model):
    assert model.prompt[4:].eq(0).all()
    assert model.prompt[:4].ne(0).all()
    assert torch.equal(model.prompt, model.prompt.bfloat16().float())


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"image_size": (384, 680)}, r"config\.image_size"),
        ({"cameras": ("CAM_L0", "CAM_F0")}, r"config\.cameras"),
        ({"head_dim": 16}, r"config\.head_dim"),
        ({"time_width": 5}, r"config\.time_width"),
    ],
)
def test_sizes_that_cannot_be_are_named(sizes, message):
    with pytest.raises(InputError, match=message):
        SimWAMSizes(**sizes)


def test_an_observation_of_a_made_up_scene_fits():
    model = make_simwam()
    assert len(model.encode(example_observation(model, 3))) == 3
