"""The recipes for NAVSIM: every one is parsed by the parser of its command, and commented key by key."""

from __future__ import annotations

import functools
import re
from contextlib import ExitStack
from pathlib import Path

import jsonargparse
import pytest
import yaml

from dipole_vla.backbones.published import PUBLISHED
from dipole_vla.commands import fit as fitting
from dipole_vla.commands.collect import collect
from dipole_vla.commands.evaluate import evaluate
from dipole_vla.commands.recipe import call
from navsim_adapter.foundation.errors import InputError

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
MAIN = sorted(RECIPES.glob("navsim_*.yaml"))
FITS = [*MAIN, *sorted(RECIPES.glob("navsim_*/imitation.yaml")), *sorted(RECIPES.glob("navsim_*/critic.yaml"))]
COMMANDS = {"collect": collect, "validate": evaluate, "evaluate": evaluate}


def named(path):
    return str(path.relative_to(RECIPES))


@pytest.fixture
def parsed_only(monkeypatch):
    """Parsers stop before they build anything: the folders that the recipes name are not here."""
    fitting.quiet_lightning()
    monkeypatch.setattr(fitting.FitCLI, "before_instantiate_classes", lambda self: None)
    monkeypatch.setattr(fitting.FitCLI, "instantiate_classes", lambda self: None)
    monkeypatch.setattr(jsonargparse.ArgumentParser, "instantiate_classes", lambda self, namespace: namespace)


def parse_fit(path):
    with ExitStack() as held:
        return fitting._parse(["--config", str(path)], str(path), held).config


@pytest.mark.parametrize("path", FITS, ids=named)
def test_a_training_recipe_is_taken_by_its_parser(parsed_only, path):
    config = parse_fit(path)
    assert config.trainer.max_steps > 0
    raw = yaml.safe_load(path.read_text())
    given = {key for key, value in raw["model"]["init_args"].items()}
    assert given <= set(vars(config.model.init_args))


def test_an_unknown_key_would_be_seen(parsed_only, tmp_path):
    (tmp_path / "recipe.yaml").write_text(MAIN[0].read_text().replace("    beta:", "    betta:"))
    with pytest.raises(InputError, match="betta"):
        parse_fit(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("folder", [path.with_suffix("") for path in MAIN], ids=named)
def test_a_command_recipe_is_taken_by_its_parser(parsed_only, command, folder):
    taken = {}

    @functools.wraps(COMMANDS[command])
    def parsed(run, **arguments):
        taken.update(arguments, **vars(run))

    call(parsed, ["--config", str(folder / f"{command}.yaml")], command)
    raw = yaml.safe_load((folder / f"{command}.yaml").read_text())
    assert set(raw) <= set(taken)


def test_the_stages_fit_together():
    """Each stage's input is another's output, and the reference policy bears its architecture's name."""
    assert len(MAIN) == len(PUBLISHED)
    for path in MAIN:
        read = {name: yaml.safe_load((path.with_suffix("") / f"{name}.yaml").read_text())
                for name in ("imitation", "collect", "critic", "validate", "evaluate")}  # fmt: skip
        dipole = yaml.safe_load(path.read_text())
        backbone = dipole["model"]["init_args"]["backbone"]
        assert Path(backbone).name in PUBLISHED
        assert read["imitation"]["out"] == read["collect"]["policy"] == backbone
        assert read["critic"]["model"]["init_args"]["backbone"] == backbone
        assert dipole["model"]["init_args"]["critic"] == read["critic"]["out"]
        candidates = [stage["data"]["init_args"]["candidates"] for stage in (dipole, read["critic"])]
        assert candidates == [read["collect"]["out"]] * 2
        assert read["validate"]["policy"] == read["evaluate"]["policy"] == dipole["out"]
        assert len({read[name]["scenes"] for name in ("collect", "validate", "evaluate")}) == 3
        assert read["evaluate"]["choose_on"] == read["validate"]["out"]
        sweeps = [(read[name]["omega"], read[name]["candidates"]) for name in ("validate", "evaluate")]
        assert sweeps[0] == sweeps[1]


@pytest.mark.parametrize("path", MAIN, ids=named)
def test_the_heads_make_every_folder_that_the_stages_read(path):
    stages = [path, *path.with_suffix("").glob("*.yaml")]
    heads = "\n".join(line for stage in stages for line in stage.read_text().splitlines() if line.startswith("#"))
    read = set(re.findall(r"(?:scenes|cache): (runs/navsim/\S+)", "\n".join(stage.read_text() for stage in stages)))
    assert len(read) == 6
    assert read == set(re.findall(r"navsim-adapter .* --filter \w+\.yaml --out (\S+)", heads))


@pytest.mark.parametrize("path", [*MAIN, *sorted(RECIPES.glob("navsim_*/*.yaml"))], ids=named)
def test_every_key_says_what_it_means(path):
    """A comment on the line, but for what only names a class, a place or a step count."""
    plain = re.compile(r"\s*(class_path|init_args|model|data|trainer|scorer|scenes|out|policy|cache|candidates|critic|"
                       r"backbone|max_steps|accumulate_grad_batches|log_every_n_steps)\b")  # fmt: skip
    for line in path.read_text().splitlines():
        if line.strip() and not line.lstrip().startswith("#") and not plain.match(line):
            assert " # " in line, line
