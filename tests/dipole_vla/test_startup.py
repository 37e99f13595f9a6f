"""What is answered before torch is loaded: help, and mistakes in a recipe."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from dipole_vla.cli import main
from dipole_vla.commands.early import CLASSES, TRAINER, check
from dipole_vla.commands.recipe import recipe_of
from dipole_vla.commands.signatures import deferred, parameters, signature
from dipole_vla.demo import shipped_recipes
from dipole_vla.training import DipoleModule
from navsim_adapter.foundation.errors import InputError

HEAVY = ("torch", "lightning", "transformers", "peft", "numba", "pandas", "datasets")


def loaded_after(program: str) -> list[str]:
    """Heavy packages that a fresh process has loaded once it ran `program`."""
    report = f"import sys, json; print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", f"{program}\n{report}"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def running(package: str, *lines: list[str]) -> str:
    """A program that runs command lines, of which each may end in SystemExit."""
    return (
        f"from {package}.cli import main\nfor line in {lines!r}:\n    try:\n        main(line)\n"
        "    except SystemExit:\n        pass"
    )


@pytest.mark.parametrize("package", ["dipole_vla", "navsim_adapter"])
def test_every_help_is_answered_without_the_heavy_packages(package: str) -> None:
    commands = import_module(f"{package}.cli").COMMANDS
    assert loaded_after(running(package, *([command, "--help"] for command in commands))) == []


@pytest.mark.parametrize(
    "path",
    [
        "dipole_vla.commands.collect:collect",
        "dipole_vla.commands.evaluate:evaluate",
        "dipole_vla.commands.drive:drive",
        "dipole_vla.commands.contexts:contexts",
        "dipole_vla.commands.rl:rl",
        "dipole_vla.commands.data:data",
    ],
)
def test_a_signature_read_from_the_source_is_the_function_s(path: str) -> None:
    module, name = path.split(":")
    found, true = deferred(path), getattr(import_module(module), name)
    assert inspect.getdoc(found) == inspect.getdoc(true)
    assert inspect.signature(found) == inspect.signature(true, eval_str=True)


def test_a_class_is_read_by_its_constructor_wherever_it_is_named() -> None:
    found = signature("dipole_vla.training", "DipoleModule")
    true = inspect.signature(DipoleModule, eval_str=True)
    assert inspect.signature(found).parameters == true.parameters


def test_a_name_that_a_module_lacks_is_told_as_such() -> None:
    with pytest.raises(KeyError, match="DipolModule"):
        signature("dipole_vla.training", "DipolModule")


@pytest.mark.parametrize("command", ["drive", "contexts", "advantage", "fit", "init"])
def test_another_command_s_recipe_is_refused_by_that_command_s_name(command: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("policy: a\nscenes: b\nscorer: c\nout: d\ncandidates: [1, 8]\n")
    with pytest.raises(InputError, match=f"recipe of `dipole-vla evaluate`, not of {command}"):
        recipe_of(["--config", str(tmp_path / "r.yaml")], command)


def test_mistakes_in_a_recipe_are_refused_without_torch(tmp_path: Path) -> None:
    (tmp_path / "collect.yaml").write_text("policy: a\nscenes: b\nout: c\nomegas: [1.0]\n")
    lines = [["collect", "--config", str(tmp_path / "collect.yaml")], ["evaluate", "--config", "nowhere.yaml"]]
    fit = str(shipped_recipes() / "dipole.yaml")
    for word in ("--model.betta", "--data.batch_size", "--trainer.max_stepz", "--trainr", "--model.beta"):
        lines += [["fit", "--config", fit, word, "many"], ["plan", "--config", fit, word, "many"]]
    assert loaded_after(running("dipole_vla", *lines)) == []


def checked(*words: str) -> None:
    check(["--config", str(shipped_recipes() / "dipole.yaml"), *words])


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--model.lr", "1e-3", "--model.critic=null", "--seed_everything", "false", "--out", "x"],
        ["--trainer.callbacks+=lightning.pytorch.callbacks.ModelSummary", "--trainer.callbacks.max_depth", "2"],
        ["--model", "my.Module", "--model.anything", "1"],
        ["--model.class_path", "dipole_vla.training.CriticModule", "--model.hidden", "8"],
        ["--print_config", "--model.betta", "1"],
    ],
)
def test_what_the_parser_may_accept_is_not_refused_early(words: list[str]) -> None:
    checked(*words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model.betta", "1"], "command line: model: .*betta.* 'beta'"),
        (["--model.init_args.rank=x"], "model.rank: .*whole number"),
        (["--model.routing", "bernouli"], "model.routing: .*bernoulli"),
        (["--trainer.max_step", "1"], "trainer: .*'max_step'.*'max_steps'"),
        (["--trainr", "1"], "'trainr'.*'trainer'"),
        (["--ckpt_path", "x"], "command line: ckpt_path: .*newest checkpoint"),
        (["--checkpoint_every", "often"], "checkpoint_every: .*whole number"),
    ],
)
def test_a_mistake_in_a_training_recipe_names_the_key(words: list[str], told: str) -> None:
    with pytest.raises(InputError, match=told):
        checked(*words)


def test_the_classes_that_fit_tells_of_are_those_that_it_knows() -> None:
    for paths in CLASSES.values():
        for path in paths:
            module, _, name = path.rpartition(".")
            assert list(inspect.signature(getattr(import_module(module), name)).parameters) == parameters(module, name)
    assert list(inspect.signature(Trainer).parameters) == parameters(*TRAINER)


def test_the_help_of_fit_shows_our_keys_and_where_the_trainer_s_are(capsys) -> None:
    assert main(["fit", "--help"]) == 0
    told = capsys.readouterr().out
    assert "inverse temperature" in told
    assert "fit --help trainer" in told
