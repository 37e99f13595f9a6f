"""`dipole-vla export`: what is written loads elsewhere and does the same; mistakes cost nothing."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from small_backbone import make_backbone, make_observation, spread_adapters
from tokenizers import Tokenizer

from dipole_vla.cli import main
from dipole_vla.export import distil
from dipole_vla.policy import AdapterPair, Guidance, GuidedPolicy, load_policy
from navsim_adapter.foundation.files import finish, is_complete
from tests.same_numbers import MAGNIFIED, assert_same_numbers


@pytest.fixture
def policy(tmp_path):
    make_backbone().save_pretrained(tmp_path / "base")
    pair = AdapterPair(make_backbone(), "head", rank=4)
    spread_adapters(pair, scale=0.1)
    folder = tmp_path / "policy"
    GuidedPolicy(pair.backbone, pair, guidance=Guidance(omega=1.5)).save_pretrained(folder, backbone=tmp_path / "base")
    finish(folder, {"command": "test"})
    return folder


def of_rule(folder, rule):
    """The policy folder as one trained by another weighting rule."""
    record = json.loads((folder / "policy.json").read_text())
    record["guidance"]["rule"] = rule
    (folder / "policy.json").write_text(json.dumps(record))
    finish(folder, {"command": "test"})


def run(*words):
    return main(["export", *map(str, words)])


def test_peft_folders_load_by_peft_alone(policy, tmp_path):
    assert run(policy, "--out", tmp_path / "peft", "--format", "peft") == 0
    assert is_complete(tmp_path / "peft")
    wanted = load_policy(policy, device="cpu")
    x_t, t = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(0)), torch.full((3,), 0.4)
    model = PeftModel.from_pretrained(make_backbone(), tmp_path / "peft" / "positive", adapter_name="positive")
    model.load_adapter(tmp_path / "peft" / "negative", adapter_name="negative")
    with torch.no_grad():
        context = wanted.encode(make_observation()).encoded(None)
        for role in ("positive", "negative"):
            model.set_adapter(role)
            found = model.base_model.model.denoise(context, x_t, t)
            assert torch.equal(found, wanted.pair.denoise(context, x_t, t, role))


@pytest.mark.parametrize(
    ("rule", "formula"),
    [
        ("dichotomous", "(1 + omega) * positive - omega * negative,"),
        ("indicator", "(1 + omega) * positive - omega * base,"),
        ("implicit", "(1 + 2 * omega) * positive - 2 * omega * base,"),
    ],
)
def test_the_peft_folder_states_the_rules_own_formula(policy, tmp_path, rule, formula):
    of_rule(policy, rule)
    assert run(policy, "--out", tmp_path / "peft") == 0
    text = (tmp_path / "peft" / "README.md").read_text()
    assert formula in text
    assert ("leave `negative/` out" in text) is (rule != "dichotomous")


LOAD = """
import json, sys, torch
folder = sys.argv[1]
about = json.load(open(folder + "/sampler.json"))
loop, tensors = torch.jit.load(folder + "/sampler.pt"), torch.load(folder + "/in.pt", weights_only=True)
assert not any(name.startswith("dipole_vla") for name in sys.modules)
with torch.no_grad():
    torch.save(loop(*[tensors[facts["name"]] for facts in about["inputs"]]), folder + "/out.pt")
"""


@pytest.mark.slow
def test_the_loop_runs_with_torch_alone_and_gives_the_policys_plans(policy, tmp_path):
    out = tmp_path / "loop"
    assert run(policy, "--out", out, "--format", "torchscript", "--candidates", 2, "--solver-steps", 3) == 0
    tensors = make_observation(1, seed=7) | {"noise": torch.randn(1, 2, 8, 4)}
    torch.save(tensors, out / "in.pt")
    subprocess.run([sys.executable, "-W", "ignore", "-c", LOAD, str(out)], check=True, cwd=out)
    found = torch.load(out / "out.pt", weights_only=True)
    observation = {name: tensors[name] for name in tensors if name != "noise"}
    wanted = load_policy(policy, device="cpu").sample(observation, 1.5, 2, tensors["noise"], steps=3)
    assert_same_numbers(found, wanted, MAGNIFIED)
    assert json.loads((out / "export.json").read_text())["omega"] == 1.5


def test_the_loop_says_how_its_inputs_are_made(policy, tmp_path):
    out = tmp_path / "loop"
    assert run(policy, "--out", out, "--format", "torchscript", "--solver-steps", 1, "--device", "cpu") == 0
    about = json.loads((out / "sampler.json").read_text())
    assert (about["device"], about["critic"]) == ("cpu", False)
    assert all(facts["meaning"] and facts["unit"] and facts["shape"][0] == 1 for facts in about["inputs"])
    meanings = {facts["name"]: facts["meaning"] for facts in about["inputs"]}
    assert meanings.keys() == {*make_observation(), "noise"}
    assert "last four frames" in meanings["proprio"]
    assert about["processor"]["cameras"] == ["CAM_L0", "CAM_F0", "CAM_R0"]
    assert "Navigation: left" in about["prompt"]["text"]
    ids = Tokenizer.from_file(str(out / "tokenizer" / "tokenizer.json")).decode(about["prompt"]["input_ids"])
    assert "Navigation: left" in ids


def test_a_moved_policy_is_exported_with_its_backbone_named(policy, tmp_path, capsys):
    elsewhere = tmp_path / "far" / "away" / "policy"
    elsewhere.parent.mkdir(parents=True)
    policy.rename(elsewhere)
    assert run(elsewhere, "--out", tmp_path / "x") == 2
    assert "--backbone" in capsys.readouterr().err
    assert run(elsewhere, "--out", tmp_path / "x", "--backbone", tmp_path / "base") == 0
    assert run(elsewhere, "--out", tmp_path / "y", "--backbone", tmp_path / "nowhere") == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["drive", "evaluate", "collect", "export"])
def test_every_command_that_loads_a_policy_takes_its_backbone(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "--backbone" in capsys.readouterr().out


def test_a_loop_that_would_differ_is_refused(policy, tmp_path, monkeypatch, capsys):
    """A family that reads a number off the data at trace time: the check on another scene finds it."""
    from dipole_vla.backbones.dp_vla.model import DPVLA

    encode = DPVLA.encode

    def by_data(self, observation):
        shift = float(observation["pixels"].float().mean()) * 0.01  # a constant to the tracer
        return encode(self, {**observation, "proprio": observation["proprio"] + shift})

    monkeypatch.setattr(DPVLA, "encode", by_data)
    assert run(policy, "--out", tmp_path / "x", "--format", "torchscript", "--solver-steps", 1) == 2
    assert "cannot be traced" in capsys.readouterr().err
    assert not is_complete(tmp_path / "x")


def test_mistakes_are_told_before_anything_is_written(policy, tmp_path, capsys):
    for words, message in (
        ((policy,), "--out: is required"),
        ((policy, "--out", tmp_path / "x", "--format", "distilled"), "--scenes: is required"),
        ((tmp_path / "nowhere", "--out", tmp_path / "x"), "no such folder"),
        ((policy, "--out", tmp_path / "x", "--format", "tflite"), "format"),
    ):
        assert run(*words) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.fixture
def world(loop, tmp_path):
    """A trained policy whose adapters are far enough apart for guidance to matter."""
    policy = load_policy(loop / "dipole", device="cpu")
    spread_adapters(policy.pair, scale=0.05)
    policy.save_pretrained(tmp_path / "policy", backbone=loop / "imitation")
    finish(tmp_path / "policy", {"command": "test"})
    return loop, tmp_path


def test_distillation_resumes_to_the_same_network_and_evaluates(world, capsys):
    loop, here = world
    words = ["--format", "distilled", "--scenes", loop / "scenes" / "train", "--steps", 4, "--batch-size", 2]
    assert run(here / "policy", "--out", here / "whole", *words, "--scorer.cache", loop / "cache" / "train") == 0
    report = json.loads((here / "whole" / "export.json").read_text())
    for row in report["fidelity"]:
        assert 0 < row["arithmetic_m"] < row["moved_m"]
        assert 0 < row["arithmetic_loss"] < row["positive_loss"]
    assert report["score"]["scenes"] == report["held_out_scenes"]
    assert report["score"]["difference"] == pytest.approx(report["score"]["distilled"] - report["score"]["guided"])

    stop, save = 2, distil._save

    class Killed(Exception):
        pass

    def killed(*arguments):
        save(*arguments)
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distil, "SAVE_EVERY", stop)
        patch.setattr(distil, "_save", killed)
        with pytest.raises(Killed):
            run(here / "policy", "--out", here / "parts", *words)
    assert (here / "parts" / distil.PROGRESS).is_file()
    assert run(here / "policy", "--out", here / "parts", *words) == 0
    whole, parts = (load_policy(here / name, device="cpu").distilled.state() for name in ("whole", "parts"))
    assert any(tensor.any() for name, tensor in whole.items() if name.endswith(".up"))
    for name, tensor in whole.items():
        assert torch.equal(parts[name], tensor), name
    assert not (here / "parts" / distil.PROGRESS).exists()

    cache = ["--scorer", "navsim_adapter.scoring.scorer.Scorer", "--scorer.cache", str(loop / "cache" / "test")]
    evaluate = ["evaluate", "--policy", str(here / "whole"), "--scenes", str(loop / "scenes" / "test"), *cache]
    assert main([*evaluate, "--out", str(here / "eval"), "--omega", "[0, 1]", "--candidates", "[1]"]) == 0


def test_a_mirrored_rule_is_distilled_at_the_coefficients_it_acts_with(world):
    """Its omega counts twice, so does the range; the merge is right to first order, hence near at any omega."""
    loop, here = world
    of_rule(here / "policy", "implicit")
    words = ["--scenes", loop / "scenes" / "train", "--steps", 1, "--batch-size", 2, "--highest", 3]
    assert run(here / "policy", "--out", here / "x", "--format", "distilled", *words) == 0
    assert load_policy(here / "x", device="cpu").distilled.highest == 6
    report = json.loads((here / "x" / "export.json").read_text())
    assert report["training"]["highest"] == 3
    for row in report["fidelity"]:
        assert row["arithmetic_loss"] < 0.2 * row["positive_loss"]  # a quarter where it is asked at omega itself
