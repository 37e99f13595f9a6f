"""Wrong input through the real command line: one line with file, field and remedy, exit 2, nothing half-written."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml

from dipole_vla.cli import COMMANDS, main
from dipole_vla.demo import shipped_recipes
from dipole_vla.policy import load_policy
from navsim_adapter.foundation.files import finish
from tests.refusals import evaluate, fit, line_of, refused
from tests.small_loop import small_steps


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, change: Callable[[dict], None]) -> Path:
        content = yaml.safe_load((shipped_recipes() / name).read_text())
        change(content)
        path = tmp_path / name
        path.write_text(yaml.safe_dump(content))
        return path

    return write


def test_an_unknown_command_is_answered_with_the_nearest(capsys) -> None:
    refused(["evalute"], capsys, "did you mean 'evaluate'?")


def test_a_missing_recipe_names_the_file(capsys) -> None:
    refused(["fit", "--config", "nowhere.yaml"], capsys, "nowhere.yaml", "no such recipe")


def test_broken_yaml(tmp_path, capsys) -> None:
    (tmp_path / "r.yaml").write_text("model: [unclosed")
    refused(["fit", "--config", tmp_path / "r.yaml"], capsys, "r.yaml")


def test_a_recipe_cannot_run_python(tmp_path, capsys) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "r.yaml").write_text(f"model: !!python/object/apply:os.system ['touch {canary}']\nout: x\n")
    refused(["fit", "--config", tmp_path / "r.yaml"], capsys, "r.yaml")
    assert not canary.exists()


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("model", "betta", 1.0, ("betta", "did you mean", "beta")),
        ("model", "beta", "high", ("beta", "float", "high")),
        ("model", "beta", -1.0, ("model.beta", "must be > 0", "-1.0")),
        ("model", "routing", "bernouli", ("routing", "bernouli")),
        ("data", "batch_size", "many", ("batch_size", "many")),
        ("data", "scenes", "nowhere", ("nowhere", "no such folder")),
    ],
)
def test_recipe_mistakes_name_the_key(loop, recipe, tmp_path, capsys, section, key, value, words) -> None:
    path = recipe("dipole.yaml", lambda r: r[section]["init_args"].update({key: value}))
    out = tmp_path / "out"
    arguments = fit(path, loop, out, "--model.critic", loop / "critic")
    if key == "scenes":
        del arguments[arguments.index("--data.scenes") : arguments.index("--data.scenes") + 2]
    refused(arguments, capsys, *words)
    assert not (out / "manifest.json").exists()


@pytest.mark.parametrize(
    ("recipe_name", "option", "value", "key"),
    [
        ("dipole.yaml", "--data.advantage", "mean", "data.advantage: "),
        ("dipole.yaml", "--data.advantage", "[1]", "data.advantage: "),
        ("dipole.yaml", "--data.advantage", "{reward: some}", "data.advantage.reward: "),
        ("dipole.yaml", "--data.advantage", "{reward: [1]}", "data.advantage.reward: "),
        ("critic.yaml", "--model.members", "[pooled]", "model.members: "),
    ],
)
def test_what_should_be_keys_and_values_says_so(tmp_path, capsys, recipe_name, option, value, key) -> None:
    line = ["fit", "--config", shipped_recipes() / recipe_name, "--out", tmp_path / "out", option, value]
    refused(line, capsys, f" {key}", "mapping" if "[1]" in value else "keys and values, as {key: value}, got ")


def test_a_class_outside_the_known_packages_is_not_even_imported(loop, recipe, tmp_path, capsys) -> None:
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\nclass Model: ...\n")
    path = recipe("dipole.yaml", lambda r: r["model"].update(class_path="evil_module.Model"))
    sys.path.insert(0, str(tmp_path))
    try:
        refused(fit(path, loop, tmp_path / "out"), capsys, "evil_module.Model", "not allowed")
    finally:
        sys.path.remove(str(tmp_path))
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_its_own_command(command: str, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["cli.py", command, "--help"])
    with suppress(SystemExit):
        main([command, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: dipole-vla {command} ")


def test_collecting_on_an_evaluation_split_is_refused(loop, tmp_path, capsys) -> None:
    arguments = ["collect", "--config", shipped_recipes() / "collect.yaml", "--policy", loop / "imitation"]
    arguments += ["--scenes", loop / "scenes/test", "--scorer.cache", loop / "cache/test", "--out", tmp_path / "c"]
    refused(arguments, capsys, "split 'test'", "--allow-eval-split")
    assert not (tmp_path / "c").exists()


def test_a_plan_that_would_be_compared_with_nothing_is_not_collected(loop, tmp_path, capsys) -> None:
    line = [*line_of("collect", loop), "--out", tmp_path / "c", "--candidates", "1", "--with_human", "false"]
    refused(line, capsys, "--candidates: 1", "--with_human")
    assert not (tmp_path / "c").exists()


def test_evaluating_on_the_scenes_of_rl_is_refused_or_said_in_red(loop, tmp_path, capsys) -> None:
    refused(
        evaluate(loop, tmp_path / "e", "train"),
        capsys,
        "12 of 12 scenes, 2 of their 2 logs, were used for RL",
        "--allow-eval-split",
    )
    assert not (tmp_path / "e").exists()
    assert main([str(a) for a in evaluate(loop, tmp_path / "e", "train", "--allow-eval-split")]) == 0
    assert main(["report", str(tmp_path / "e"), "--out", str(tmp_path / "r")]) == 0
    page = (tmp_path / "r" / "index.html").read_text()
    assert "not a held-out result" in page or "RL ran on" in page


@pytest.mark.parametrize(
    ("command", "more", "words"),
    [
        ("collect", ("--candidates", "0"), ("--candidates", "at least 1", "0")),
        ("collect", ("--variants", "-1"), ("--variants", "at least 0", "-1")),
        ("evaluate", ("--variants", "-1"), ("--variants", "at least 0", "-1")),
        ("collect", ("--batch_size", "0"), ("--batch_size", "at least 1", "0")),
        ("collect", ("--omega", ".nan"), ("--omega", "finite", "nan")),
        ("collect", ("--start_scale", "-1"), ("--start_scale", "at least 0", "-1")),
        ("evaluate", ("--batch_size", "-1"), ("--batch_size", "at least 1", "-1")),
        ("evaluate", ("--omega", "[0, .inf]"), ("--omega", "finite", "inf")),
        ("contexts", ("--batch_size", "0"), ("--batch_size", "at least 1", "0")),
        ("export", ("--omega", ".inf"), ("--omega", "finite", "inf")),
        ("export", ("--candidates", "0"), ("--candidates", "at least 1", "0")),
        ("export", ("--rank", "0"), ("--rank", "at least 1", "0")),
        ("export", ("--highest", "-1"), ("--highest", "> 0", "-1")),
        ("report", ("--scenes", "-3"), ("--scenes", "at least 0", "-3")),
        ("advantage", ("--batch_size", "0"), ("--batch_size", "at least 1", "0")),
        ("advantage", (), ("scenes/test", "split 'test' lacks 12 of the 12 scenes", "collected on")),
        ("consolidate", (), ("adapter_model.safetensors", "step=N.ckpt", "checkpoints")),
    ],
)
def test_options_that_cannot_be_are_told_before_anything_is_written(
    loop, tmp_path, capsys, command, more, words
) -> None:
    refused([*line_of(command, loop), "--out", tmp_path / "out", *more], capsys, *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["collect", "evaluate", "contexts", "export", "advantage"])
@pytest.mark.parametrize("device", ["foo", "cuda:99"])
def test_a_device_that_is_not_there_is_not_blamed_on_a_file(loop, tmp_path, capsys, command, device) -> None:
    line = [*line_of(command, loop), "--out", tmp_path / "out", "--device", device]
    refused(line, capsys, f"--device: '{device}' cannot be used here", "auto or cpu")
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("family", ["alpamayo", "dp_vla", "pi0", "pi05", "recogdrive", "simwam", "smolvla", "xvla"])
def test_a_file_of_something_else_is_not_imported(tmp_path, capsys, family) -> None:
    (tmp_path / "notes.txt").write_text("synth log 0 trainval\n")
    refused(["import", tmp_path / "notes.txt", "--family", family, "--out", tmp_path / "out"], capsys, "notes.txt")
    assert not (tmp_path / "out").exists()


def test_folders_are_reported_by_the_name_they_have(tmp_path, capsys) -> None:
    out = tmp_path / "mit Leer ä[b]:smile:"
    line = [*next(line for line in small_steps(tmp_path) if line[1] == "init")[1:], "--out", str(out)]
    for said in ("init", "already complete in"):
        assert main(line) == 0
        assert re.search(rf"{said}:? {re.escape(str(out))}$", capsys.readouterr().out, re.M)


@pytest.mark.parametrize(
    ("scenes", "choose_on", "more", "words"),
    [
        ("test", "evaluation", (), ("holds 6 of these 6 scenes",)),
        ("validation", "evaluation", (), ("reports what another evaluation chose",)),
        ("test", "candidates", (), ("no evaluation", "dipole-vla evaluate")),
        ("test", "nowhere", (), ("no such folder",)),
        ("test", "validation", ("--scorer.metric", "epdms"), ("metric pdms", "epdms")),
        ("test", "validation", ("--omega", "[7]"), ("not in this sweep", "add it to omega")),
        (
            "test",
            "validation",
            ("--candidates", "[7]", "--start_scale", "[1]"),
            ("not in this sweep", "and candidates"),
        ),
    ],
)
def test_omega_is_not_chosen_by_what_may_not_choose_it(
    loop, tmp_path, capsys, monkeypatch, scenes, choose_on, more, words
) -> None:
    def never(*_):
        raise AssertionError("scored before the choice was checked")

    monkeypatch.setattr("dipole_vla.commands.evaluate._evaluate_part", never)
    arguments = evaluate(loop, tmp_path / "e", scenes, "--omega", "[-1, 0, 1]", "--candidates", "[1, 2]", *more)
    arguments[arguments.index("--choose_on") + 1] = loop / choose_on
    refused(arguments, capsys, choose_on, *words)
    assert not (tmp_path / "e").exists()


def test_omega_chosen_for_another_policy_is_refused(loop, tmp_path, capsys) -> None:
    policy = load_policy(loop / "dipole", device="cpu")
    with torch.no_grad():
        next(iter(policy.pair.parameters())).add_(1)
    policy.save_pretrained(tmp_path / "other", loop / "imitation")
    finish(tmp_path / "other", {"command": "test"})
    arguments = evaluate(loop, tmp_path / "e", "test", "--omega", "[-1, 0, 1]", "--candidates", "[1, 2]")
    arguments[arguments.index("--policy") + 1] = tmp_path / "other"
    arguments[arguments.index("--choose_on") + 1] = loop / "validation"
    refused(arguments, capsys, "choose_on", "is of policy", "evaluate this one there")
    assert not (tmp_path / "e").exists()


def test_a_backbone_is_not_a_policy(loop, tmp_path, capsys) -> None:
    arguments = evaluate(loop, tmp_path / "e", "test")
    arguments[arguments.index("--policy") + 1] = loop / "imitation"
    refused(arguments, capsys, "without adapters", "dipole-vla fit")


def test_adapters_of_another_base_are_refused(loop, tmp_path, capsys) -> None:
    policy = tmp_path / "x" / "dipole"
    shutil.copytree(loop / "dipole", policy)
    shutil.copytree(loop / "init", tmp_path / "x" / "imitation")
    arguments = evaluate(loop, tmp_path / "e", "test")
    arguments[arguments.index("--policy") + 1] = policy
    refused(arguments, capsys, "base", "matching checkpoint")


def test_swapped_signs_are_refused(loop, tmp_path, capsys) -> None:
    policy = tmp_path / "dipole"
    shutil.copytree(loop / "dipole", policy)
    shutil.copytree(loop / "imitation", tmp_path / "imitation")
    (policy / "positive").rename(policy / "aside")
    (policy / "negative").rename(policy / "positive")
    (policy / "aside").rename(policy / "negative")
    arguments = evaluate(loop, tmp_path / "e", "test")
    arguments[arguments.index("--policy") + 1] = policy
    refused(arguments, capsys, "positive", "negative")


def test_a_corrupt_picture_is_named(loop, tmp_path, capsys) -> None:
    shutil.copytree(loop / "world" / "sensor_blobs" / "test", tmp_path / "blobs")
    for picture in (tmp_path / "blobs").rglob("*.jpg"):
        picture.write_bytes(picture.read_bytes()[:100])
    refused(
        evaluate(loop, tmp_path / "e", "test", "--sensors", str(tmp_path / "blobs")), capsys, ".jpg", "cannot be read"
    )


def test_an_unfinished_input_is_refused(loop, tmp_path, capsys) -> None:
    shutil.copytree(loop / "candidates", tmp_path / "candidates")
    (tmp_path / "candidates" / "manifest.json").unlink()
    arguments = fit(shipped_recipes() / "critic.yaml", loop, tmp_path / "out")
    arguments[arguments.index("--data.candidates") + 1] = tmp_path / "candidates"
    refused(arguments, capsys, "candidates", "not finished")


def test_a_size_of_another_type_is_refused_before_the_folder_is_begun(tmp_path, capsys) -> None:
    line = ["init", "--family", "dp_vla", "--out", tmp_path / "out", "--sizes"]
    refused([*line, "{depth: two}"], capsys, "sizes.depth", "must be int", "'two'")
    assert not (tmp_path / "out").exists()


def test_an_output_folder_of_another_recipe_is_refused(loop, capsys) -> None:
    arguments = fit(shipped_recipes() / "critic.yaml", loop, loop / "critic", "--model.hidden", "32")
    refused(arguments, capsys, "critic", "made with", "choose another --out")


def test_an_output_below_a_file_is_refused(tmp_path, capsys) -> None:
    (tmp_path / "afile").touch()
    out = tmp_path / "afile" / "out"
    refused(["init", "--family", "dp_vla", "--size", "tiny", "--out", out], capsys, "afile", "not a directory")


def test_a_training_without_steps_is_refused(loop, tmp_path, capsys) -> None:
    arguments = fit(shipped_recipes() / "critic.yaml", loop, tmp_path / "out", "--trainer.max_steps", "-1")
    refused(arguments, capsys, "trainer.max_steps", "at least 1")


def test_the_installed_program_prints_one_line_and_exits_with_2() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dipole_vla.cli", "demo", "--sed", "3"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "did you mean 'seed'?" in done.stderr
