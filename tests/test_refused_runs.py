"""A refused run leaves nothing that blocks its correction; paths that are none of this machine are told."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from dipole_vla.cli import main
from dipole_vla.demo import shipped_recipes
from navsim_adapter.cli import COMMANDS as ADAPTER_COMMANDS
from navsim_adapter.cli import main as adapter
from navsim_adapter.foundation.files import verify
from tests.refusals import evaluate, fit, line_of, refused


def words(line: list) -> list[str]:
    return [str(word) for word in line]


@pytest.fixture
def without_critic(loop: Path, tmp_path: Path) -> Path:
    """The loop's policy, which has nothing to choose by."""
    from dipole_vla.policy import load_policy
    from navsim_adapter.foundation.files import finish

    policy = load_policy(loop / "dipole", device="cpu")
    policy.critic = None
    policy.save_pretrained(tmp_path / "alone", loop / "imitation")
    finish(tmp_path / "alone", {"command": "test"})
    return tmp_path / "alone"


def test_an_evaluation_is_corrected_in_its_own_folder(loop, tmp_path, capsys, without_critic) -> None:
    out = tmp_path / "e"
    right = evaluate(loop, out, "test", "--start_scale", "[1]")
    refused([*right, "--scorer.cache", loop / "cache/train"], capsys, "not in the scoring cache")
    refused([*right, "--policy", without_critic, "--candidates", "[1, 2]"], capsys, "no critic")
    refused([*right, "--sensors", tmp_path], capsys, "cannot be read")  # after the folder was begun
    assert {path.name for path in out.iterdir()} == {"stage.json", ".lock"}
    assert main(words([*right, "--seed", 5])) == 0  # which the refused runs had otherwise
    verify(out)
    said = capsys.readouterr().out
    assert "omega 0, N 1" in said
    assert re.search("against the .*reference", said)


def test_a_collection_is_corrected_in_its_own_folder(loop, tmp_path, capsys) -> None:
    line = [*line_of("collect", loop), "--candidates", 2, "--out", tmp_path / "c"]
    refused([*line, "--scorer.cache", loop / "cache/test"], capsys, "not in the scoring cache", "12 of 12")
    refused([*line, "--sensors", tmp_path], capsys, "cannot be read")
    assert main(words([*line, "--seed", 1])) == 0
    verify(tmp_path / "c")


def test_a_drive_is_corrected_in_its_own_place(loop, tmp_path, capsys) -> None:
    line = ["drive", "--policy", loop / "dipole", "--scenes", loop / "scenes/test", "--out", tmp_path / "t.npz"]
    refused([*line, "--sensors", tmp_path], capsys, "cannot be read")
    assert main(words([*line, "--seed", 3])) == 0
    assert "6 scenes of test, a plan each" in capsys.readouterr().out
    assert not (tmp_path / "t.npz.parts").exists()


def test_contexts_are_corrected_in_their_own_folder(loop, tmp_path, capsys, monkeypatch) -> None:
    line = [*line_of("contexts", loop), "--out", tmp_path / "x"]
    refused([*line, "--sensors", tmp_path], capsys, "cannot be read")
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
        refused(line, capsys, "are free", "bfloat16")
    assert main(words([*line, "--dtype", "bfloat16"])) == 0
    verify(tmp_path / "x")


def test_a_training_is_corrected_in_its_own_folder(loop, tmp_path, capsys) -> None:
    """Its first step fails: recipe and log are there, no checkpoint."""
    line = fit(shipped_recipes() / "critic.yaml", loop, tmp_path / "out", "--data.batch_size", "4")
    refused([*line, "--model.lr", "1e38", "--trainer.max_steps", "4"], capsys, "lr")
    assert (tmp_path / "out" / "recipe.yaml").is_file()
    assert main(words(line)) == 0
    verify(tmp_path / "out")
    assert "1.0e+38" not in (tmp_path / "out" / "recipe.yaml").read_text()
    refused([*line, "--model.lr", "1e-5"], capsys, "model.lr: this folder was made with", "choose another --out")


def test_a_cache_is_corrected_in_its_own_folder(loop, tmp_path, capsys, monkeypatch) -> None:
    shutil.copytree(loop / "world/navsim_logs/test", tmp_path / "root/navsim_logs/test")
    line = words(["cache", "--data", tmp_path / "root", "--split", "test", "--out", tmp_path / "c", "--workers", 1])
    monkeypatch.setenv("NUPLAN_MAPS_ROOT", str(tmp_path / "nowhere"))
    assert adapter(line) == 2
    assert "map index not found" in capsys.readouterr().err
    (tmp_path / "bare").mkdir()
    shutil.copy(loop / "world/maps/nuplan-maps-v1.0.json", tmp_path / "bare")
    monkeypatch.setenv("NUPLAN_MAPS_ROOT", str(tmp_path / "bare"))
    assert adapter(line) == 2  # after the folder was begun
    assert "not found" in capsys.readouterr().err
    monkeypatch.setenv("NUPLAN_MAPS_ROOT", str(loop / "world/maps"))
    assert adapter(line) == 0
    verify(tmp_path / "c")


def test_another_format_is_named_first(loop, tmp_path, capsys) -> None:
    line = ["export", loop / "dipole", "--out", tmp_path / "x", "--format"]
    assert main(words([*line, "peft"])) == 0
    refused([*line, "torchscript"], capsys, "format: this folder was made with 'peft', now 'torchscript'")


NO_PATHS = [
    "s3://bucket/run",
    "gs://b/r",
    "hdfs:/r",
    "file:///tmp/r",
    "host:/r",
    "~/run",
    "$SCRATCH/r",
    "${oc.env:HOME}/r",
]


@pytest.mark.parametrize("out", NO_PATHS)
def test_an_output_that_is_no_path_here_is_refused(loop, tmp_path, capsys, monkeypatch, out) -> None:
    world = loop.resolve()
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "r.yaml"
    recipe.write_text((shipped_recipes() / "critic.yaml").read_text().replace("runs/demo/critic", out))
    lines = [line_of(command, world) for command in ("collect", "evaluate", "contexts", "export", "report")]
    lines += [["init", "--family", "dp_vla"], ["experiment", "omega"], ["data", "ogbench", "cube-single-play"]]
    lines += [["drive", "--policy", world / "dipole", "--scenes", world / "scenes/test"], ["demo"]]
    for line in [*lines, fit(shipped_recipes() / "critic.yaml", world, tmp_path)]:
        refused([*line, "--out", out], capsys, "--out", "path")
    named = fit(recipe, world, tmp_path)
    del named[3:5]  # the recipe's own `out`
    refused(named, capsys, "--out", "path")
    for line in (
        ["synth"],
        ["convert", "--data", world / "world", "--split", "test"],
        ["cache", "--data", world / "world", "--split", "test"],
        ["score", "--cache", world / "cache/test", "--trajectories", "t.npz"],
        ["baseline", "human", "--cache", world / "cache/test"],
        ["render", "--cache", world / "cache/test"],
    ):
        assert adapter(words([*line, "--out", out])) == 2
        assert "--out: " in capsys.readouterr().err
    assert adapter(["submission", out, "--trajectories", "t.npz"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


def test_every_path_of_the_adapters_commands_is_checked() -> None:
    """Whatever an option of a new command is called: what is no path has one of these words to say so."""
    import argparse

    from navsim_adapter.cli import _PATHS

    for name, command in ADAPTER_COMMANDS.items():
        parser = argparse.ArgumentParser()
        command.arguments(parser)
        for action in parser._actions:
            metavar = str(action.metavar or "")
            if metavar in ("DIR", "FOLDER", "FILE", "ROOT", "YAML", "TREE", "CSV", "OUT", "SHARD") or "." in metavar:
                assert action.dest in _PATHS, (name, action.dest)


@pytest.mark.parametrize(
    ("command", "recipe", "more", "said"),
    [
        ("evaluate", "evaluate", ("--omega", "1"), ("command line", "omega", "a list, as [0, 1]", "got 1")),
        ("evaluate", "evaluate", ("--omega", "0,1,2"), ("omega", "a list", "got 0,1,2")),
        ("evaluate", "evaluate", ("--scorer.metric", "pdm"), ("scorer.metric", "pdms, epdms", "did you mean 'pdms")),
        ("evaluate", "evaluate", ("--batch_size", "x"), ("batch_size", "a whole number", "got x")),
        ("fit", "evaluate", (), ("evaluate.yaml", "recipe of `dipole-vla evaluate`")),
        ("fit", "collect", (), ("collect.yaml", "recipe of `dipole-vla collect`")),
        ("evaluate", "dipole", (), ("dipole.yaml", "recipe of `dipole-vla fit`")),
        ("collect", "evaluate", (), ("evaluate.yaml", "recipe of `dipole-vla evaluate`")),
        ("plan", "evaluate", (), ("evaluate.yaml", "recipe of `dipole-vla evaluate`")),
        ("init", "imitation", (), ("imitation.yaml", "recipe of `dipole-vla fit`")),
    ],
)
def test_mistakes_are_told_in_a_users_words(loop, tmp_path, capsys, command, recipe, more, said) -> None:
    line = [command, "--config", shipped_recipes() / f"{recipe}.yaml", *more]
    if more:
        line += ["--scorer.cache", loop / "cache/test"]
    refused(line, capsys, *said) if command != "plan" else _refused_plan(line, capsys, *said)


def _refused_plan(line: list, capsys, *said: str) -> None:
    assert main(words(line)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert all(word in last for word in said)
