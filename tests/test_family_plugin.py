"""A family that comes in a package of its own: installed, it works in every command, and no file of ours names it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from dipole_vla import backbones, objective
from dipole_vla.backbones import FAMILIES, backbone_class, register_backbone
from dipole_vla.backbones.timm.model import TimmDriver
from dipole_vla.demo import shipped_recipes
from navsim_adapter.foundation.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tests" / "plugins" / "my_vla_plugin"
RUN = "import json, sys; from dipole_vla.demo import run_step\nfor line in json.load(sys.stdin): run_step(line)"
LOOK = (
    "import sys; from dipole_vla.policy import load_policy; print(type(load_policy(sys.argv[1]).backbone).__module__)"
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of processes that have the package installed."""
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(PACKAGE, folder / "source")  # building writes beside the source
    offline = ["--no-deps", "--no-index", "--no-build-isolation", "--quiet", "--target", folder / "site"]
    line = [sys.executable, "-m", "pip", "install", *offline, source]
    done = subprocess.run([str(word) for word in line], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {**os.environ, "PYTHONPATH": f"{folder / 'site'}{os.pathsep}{ROOT}"}


def test_every_command_takes_the_family_of_a_package(loop: Path, tmp_path: Path, installed: dict[str, str]) -> None:
    recipes, scenes, cache = (ROOT / shipped_recipes()).resolve(), loop / "scenes", loop / "cache"
    base, candidates, policy = tmp_path / "base", tmp_path / "candidates", tmp_path / "policy"
    test = ["--scenes", scenes / "test"]
    few = ["--data.scenes", scenes / "train", "--trainer.max_steps", 3, "--data.batch_size", 4]
    driven = ["--scenes", scenes / "train", "--scorer.cache", cache / "train", "--candidates", 3]
    scored = [
        *test,
        "--scorer.cache",
        cache / "test",
        "--choose_on",
        "null",
        "--candidates",
        "[1]",
        "--omega",
        "[0, 1]",
    ]
    pair = ["--model.backbone", base, "--model.critic", "null", "--model.rank", 4, "--data.candidates", candidates]
    pair += ["--model.rule", "ramp", "--model.pair", "lora"]
    lines = [
        ["init", "--family", "my_vla", "--out", tmp_path / "init", "--sizes.width", 16],
        ["fit", "--config", recipes / "imitation.yaml", "--model.backbone", tmp_path / "init", "--out", base, *few],
        ["collect", "--config", recipes / "collect.yaml", "--policy", base, "--out", candidates, *driven],
        ["fit", "--config", recipes / "dipole.yaml", "--out", policy, *pair, *few],
        ["evaluate", "--config", recipes / "evaluate.yaml", "--policy", policy, "--out", tmp_path / "rows", *scored],
        ["drive", "--policy", policy, "--out", tmp_path / "plans.npz", *test],
        ["export", policy, "--out", tmp_path / "peft"],
    ]
    words = json.dumps([["dipole-vla", *map(str, line)] for line in lines])
    said = subprocess.run([sys.executable, "-c", RUN], input=words, env=installed, capture_output=True, text=True)
    assert said.returncode == 0, said.stdout + said.stderr
    look = [sys.executable, "-c", LOOK, str(policy)]
    assert subprocess.run(look, env=installed, capture_output=True, text=True).stdout.strip() == "my_vla_plugin"
    assert (tmp_path / "plans.npz").is_file()
    assert (tmp_path / "peft" / "positive" / "adapter_model.safetensors").is_file()
    with pytest.raises(InputError, match="my_vla"):  # here the package is not installed
        backbones.load_backbone(base)


def test_no_file_of_ours_names_it() -> None:
    files = [*(ROOT / "dipole_vla").rglob("*.py"), *(ROOT / "recipes").rglob("*.yaml"), ROOT / "pyproject.toml"]
    assert [file for file in files if "my_vla" in file.read_text()] == []


def test_the_package_holds_the_class_of_the_page() -> None:
    page = (ROOT / "docs" / "add-a-backbone.md").read_text()
    block = re.search(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[1]
    assert block in (PACKAGE / "my_vla_plugin.py").read_text()


def offer(monkeypatch: pytest.MonkeyPatch, *targets: str) -> None:
    points = [EntryPoint("their_vla", target, backbones.GROUP) for target in targets]
    monkeypatch.setattr(backbones, "_offered", lambda: points)


@pytest.mark.parametrize(
    ("targets", "match"),
    [
        ([], "'their_vla' is not known"),
        (["nowhere.at_all:VLA"], "nowhere.at_all:VLA cannot be imported"),
        (["json:VLA"], "cannot be imported"),
        (["json:loads"], "derived from"),
        (["dipole_vla.backbones.base:Backbone"], "`family`"),
        (["dipole_vla.backbones.timm.model:TimmDriver"], "`family` is 'timm'"),
        (["json:VLA", "math:VLA"], "several packages"),
    ],
)
def test_an_offer_that_cannot_be_used_is_refused_in_one_line(
    targets: list[str], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, *targets)
    with pytest.raises(InputError, match=match) as refusal:
        backbone_class("their_vla")
    assert "\n" not in str(refusal.value)


def test_the_known_families_include_what_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "json:VLA")
    with pytest.raises(InputError, match=r"did you mean 'their_vla'.*timm"):
        backbone_class("their_vl")


@pytest.mark.parametrize(
    ("target", "match"), [("nowhere:RULE", "nowhere:RULE cannot be imported"), ("json:loads", "must be a dipole_vla")]
)
def test_a_rule_that_cannot_be_used_is_refused_in_one_line(
    target: str, match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = EntryPoints([EntryPoint("theirs", target, objective.GROUP)])
    monkeypatch.setattr(objective, "entry_points", lambda group: points)
    with pytest.raises(InputError, match=match) as refusal:
        objective.rule_named("theirs")
    assert "\n" not in str(refusal.value)
    with pytest.raises(InputError, match="did you mean 'theirs'"):
        objective.rule_named("their")


def test_our_own_families_ask_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "_offered", lambda: pytest.fail("entry points were read"))
    assert backbone_class("timm") is TimmDriver


def test_a_program_may_register_a_class_or_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "_registered", {})
    other = type("Other", (TimmDriver,), {"family": "other"})
    register_backbone("other", other)
    register_backbone("other", other)  # a script that is run again
    assert backbone_class("other") is other
    register_backbone("later", "nowhere:VLA")
    with pytest.raises(InputError, match="nowhere:VLA cannot be imported"):
        backbone_class("later")
    for name, target in (("timm", other), ("other", TimmDriver), ("new", other), ("new", "no colon"), ("new", int)):
        with pytest.raises(InputError, match="family"):
            register_backbone(name, target)
    assert "other" not in FAMILIES
