"""What is answered before torch is loaded: help, and mistakes in a recipe."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from dipole_vla.commands.signatures import deferred, signature
from dipole_vla.training import DipoleModule

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
    assert loaded_after(running(package, *([command, "--help"] for command in commands if command not in ("fit", "plan", "merge")))) == []


@pytest.mark.parametrize(
    "path",
    [
        "dipole_vla.commands.evaluate:evaluate",
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


def test_a_recipe_with_a_wrong_key_is_refused_without_torch(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("policy: a\nscenes: b\nout: c\nomegas: [1.0]\n")
    lines = [["collect", "--config", str(tmp_path / "r.yaml")], ["evaluate", "--config", "nowhere.yaml"]]
    assert loaded_after(running("dipole_vla", *lines)) == []
