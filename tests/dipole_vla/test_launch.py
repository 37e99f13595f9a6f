"""The Slurm script: what it says, what it submits, what it refuses; and doctor, which runs first in it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from dipole_vla.cli import main
from dipole_vla.commands.recipe import overridden
from dipole_vla.demo import shipped_recipes


def written(arguments: list[str], tmp_path: Path) -> str:
    script = tmp_path / "job.sbatch"
    assert main(["launch", "--out", str(script), "--dry_run", *arguments]) == 0
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    return script.read_text()


def directives(text: str) -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?", text, re.M))


def commands(text: str) -> list[list[str]]:
    """The lines that start dipole-vla as words, continuation lines joined."""
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if "dipole-vla " in line and not line.startswith("#")]


def test_training_is_one_job_on_all_gpus(tmp_path: Path) -> None:
    recipe = str(shipped_recipes() / "dipole.yaml")
    text = written(
        ["--config", recipe, "--nodes", "4", "--gpus", "8", "--time", "4:00:00", "--", "--model.beta", "2"], tmp_path
    )
    asked = directives(text)
    assert (asked["nodes"], asked["ntasks-per-node"], asked["gpus-per-node"]) == ("4", "8", "8")
    assert (asked["time"], asked["signal"], asked["dependency"]) == ("4:00:00", "USR1@300", "singleton")
    assert "requeue" in asked
    assert asked["open-mode"] == "append"
    doctor, fit = commands(text)
    assert doctor[doctor.index("doctor") :] == ["doctor", "--config", recipe, "--", "--model.beta", "2", "||", "exit"]
    assert fit[fit.index("--trainer.num_nodes") + 1] == "4"
    assert fit[fit.index("--trainer.devices") + 1] == "8"
    assert fit[-2:] == ["--model.beta", "2"]


@pytest.mark.parametrize("name", ["collect", "evaluate"])
def test_collection_and_evaluation_are_job_arrays_of_shards(name: str, tmp_path: Path) -> None:
    text = written(["--config", str(shipped_recipes() / f"{name}.yaml"), "--array", "16"], tmp_path)
    asked = directives(text)
    assert (asked["array"], asked["gpus-per-node"], asked["signal"]) == ("0-15", "1", "B:USR1@300")
    assert "dependency" not in asked
    assert f"dipole-vla {name} " in text
    assert '--shard "$((SLURM_ARRAY_TASK_ID + 1))/16"' in text


PROGRAMS = {
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done\necho "$@" >> calls\n"$@"',
    "scontrol": 'echo scontrol "$@" >> calls',
    "dipole-vla": 'if [ "$1" = "$SIGNALLED" ]; then kill -USR1 $$; fi\nexit "${CODE:-0}"',
}


@pytest.mark.parametrize(
    ("environment", "code", "started", "requeued"),
    [
        ({}, 0, ["doctor", "fit"], False),
        ({"CODE": "1"}, 1, ["doctor"], False),  # doctor found something
        ({"SIGNALLED": "doctor"}, 138, ["doctor"], True),
        ({"SIGNALLED": "fit"}, 138, ["doctor", "fit"], True),  # before it could listen
    ],
)
def test_a_signal_that_nobody_heeds_requeues_the_job(
    environment: dict[str, str], code: int, started: list[str], requeued: bool, tmp_path: Path
) -> None:
    """The script as bash runs it; srun gives back 128 + the signal that killed a task, as a shell does."""
    written(["--config", str(shipped_recipes() / "dipole.yaml"), "--nodes", "2", "--gpus", "0"], tmp_path)
    for name, body in PROGRAMS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    variables = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", **environment}
    done = subprocess.run(["bash", "job.sbatch"], cwd=tmp_path, env=variables, capture_output=True, check=False)
    assert done.returncode == code
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split()[1] for call in calls if call.startswith("dipole-vla")] == started
    assert ("scontrol requeue 7" in calls) is requeued


@pytest.mark.parametrize("name", ["plain", "my runs", "it's", 'say "hi"', "a#1"])
def test_the_log_is_named_as_sbatch_reads_it(name: str, tmp_path: Path) -> None:
    """sbatch groups by quotes, takes what follows a backslash as it is, and ends a line at a # outside quotes."""
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump({"out": str(tmp_path / name / "dipole"), "trainer": {}, "model": {}, "data": {}}))
    text = written(["--config", str(recipe)], tmp_path)
    line = next(line for line in text.splitlines() if line.startswith("#SBATCH --output"))
    assert shlex.split(line.removeprefix("#SBATCH"), comments=True) == [f"--output={tmp_path / name / 'dipole-%j.log'}"]


def test_the_script_is_submitted_as_it_is_written(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "sbatch").write_text('#!/bin/sh\ncp "$1" submitted\necho Submitted batch job 7\n')
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "r.yaml"
    recipe.write_text("out: runs/mine\ntrainer: {}\nmodel: {}\ndata: {}\n")
    assert main(["launch", "--config", str(recipe)]) == 0
    assert (tmp_path / "submitted").read_text() == (tmp_path / "runs" / "mine.sbatch").read_text()
    assert "Submitted batch job 7" in capsys.readouterr().out


def test_the_folder_of_the_log_is_there_wherever_the_script_is(tmp_path: Path, monkeypatch) -> None:
    """Slurm opens --output before the job runs, and makes no folder."""
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text("out: runs/mine\ntrainer: {}\nmodel: {}\ndata: {}\n")
    for passed_on, folder in (([], "runs"), (["--", "--out", "other/mine"], "other")):
        text = written(["--config", "r.yaml", *passed_on], tmp_path / "scripts")
        assert directives(text)["output"] == f"{folder}/mine-%j.log"
        assert Path(folder).is_dir()


def test_another_program_starts_every_step(tmp_path: Path) -> None:
    recipe, program = str(shipped_recipes() / "dipole.yaml"), "apptainer run --nv x.sif"
    text = written(["--config", recipe, "--program", program], tmp_path)
    assert f" {program} doctor --config" in text
    assert f" {program} fit --config" in text
    text = written(["--config", str(shipped_recipes() / "collect.yaml"), "--program", program], tmp_path)
    assert f"\n{program} doctor --config" in text
    assert f"\nsrun {program} collect --config" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--program", " "], ("--program", "empty")),
        (["--time", "soon"], ("--time", "'soon'")),
        (["--nodes", "0"], ("--nodes", "at least 1", "0")),
        (["--gpuss", "3"], ("gpuss", "did you mean 'gpus'")),
        (["--", "--model.betta", "2"], ("command line", "betta", "did you mean 'beta'")),
        (["--", "--trainer.max_step", "2"], ("max_step", "did you mean 'max_steps'")),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], words: tuple[str, ...], tmp_path: Path, capsys) -> None:
    recipe = str(shipped_recipes() / "dipole.yaml")
    assert main(["launch", "--config", recipe, "--dry_run", "--out", str(tmp_path / "x"), *arguments]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    for word in words:
        assert word in told[0]
    assert not (tmp_path / "x").exists()


def test_the_kept_example_is_what_launch_writes(tmp_path: Path) -> None:
    """recipes/slurm/fit.sbatch names the command that made it in a comment."""
    example = (shipped_recipes().parent / "slurm" / "fit.sbatch").read_text().splitlines()
    made_by = next(line for line in example if line.startswith("# Written by: dipole-vla launch "))
    words = shlex.split(made_by.removeprefix("# Written by: dipole-vla launch "))
    at = words.index("--out")
    assert words[at + 1] == "recipes/slurm/fit.sbatch"
    again = written([*words[:at], *words[at + 2 :]], tmp_path).splitlines()
    assert [line for line in again if "Written by" not in line] == [line for line in example if line != made_by]


# -- doctor ------------------------------------------------------------------------------------------------------------


def recipe_on(loop: Path, tmp_path: Path, **changes) -> str:
    recipe = yaml.safe_load((shipped_recipes() / "dipole.yaml").read_text())
    recipe["out"] = str(tmp_path / "out")
    recipe["model"]["init_args"].update(backbone=str(loop / "imitation"), critic=str(loop / "critic"))
    recipe["data"]["init_args"].update(scenes=str(loop / "scenes/train"), candidates=str(loop / "candidates"))
    recipe["data"]["init_args"].update(changes)
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return str(path)


def test_doctor_finds_a_finished_loop_well(loop: Path, tmp_path: Path, capsys) -> None:
    assert main(["doctor", "--config", recipe_on(loop, tmp_path)]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert {line[:5].strip() for line in lines} <= {"ok", "note"}
    for about in ("software", "GPUs", "ranks", "DeepSpeed", "variables", "storage", "data", "pictures", "disk"):
        assert any(line[5:].startswith(about) for line in lines), about
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scenes": "nowhere"}, ("scenes", "nowhere", "no such folder")),
        ({"sensors": "/nonexistent"}, ("pictures", "/nonexistent")),
    ],
)
def test_doctor_names_what_is_missing_and_fails(loop: Path, tmp_path: Path, capsys, changes, words) -> None:
    assert main(["doctor", "--config", recipe_on(loop, tmp_path, **changes)]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert len(failed) == 1
    for word in words:
        assert word in failed[0]


def test_doctor_names_a_key_that_fit_would_refuse(tmp_path: Path, capsys) -> None:
    recipe = str(shipped_recipes() / "dipole.yaml")
    assert main(["doctor", "--config", recipe, "--out", str(tmp_path), "--", "--model.rannk", "4"]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL") and "recipe" in line]
    assert len(failed) == 1
    assert "did you mean 'rank'" in failed[0]


def test_doctor_looks_where_the_commands_own_options_point(loop: Path, tmp_path: Path, capsys) -> None:
    recipe = recipe_on(loop, tmp_path, scenes="nowhere")
    assert main(["doctor", "--config", recipe, "--", "--data.scenes", str(loop / "scenes/train")]) == 0
    assert main(["doctor", "--config", recipe, "--", f"--data.init_args.scenes={loop / 'scenes/train'}"]) == 0
    assert main(["doctor", "--config", recipe, "--", "--model.rank", "4"]) == 1
    assert "scenes: nowhere" in capsys.readouterr().out


def test_options_are_put_where_the_recipe_has_them() -> None:
    recipe = {"data": {"class_path": "A", "init_args": {"scenes": "s"}}, "trainer": {"logger": None}, "omega": 1}
    words = [
        "--data.scenes",
        "t",
        "--trainer.devices=8",
        "--trainer.logger.name",
        "n",
        "--allow-eval-split",
        "--omega",
        "null",
    ]
    assert overridden(recipe, words) == {
        "data": {"class_path": "A", "init_args": {"scenes": "t"}},
        "trainer": {"logger": {"name": "n"}, "devices": 8},
        "omega": None,
        "allow_eval_split": True,
    }
    assert recipe["omega"] == 1


def test_doctor_names_a_variable_that_points_nowhere(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("NUPLAN_MAPS_ROOT", "/nonexistent/maps")
    assert main(["doctor", "--out", str(tmp_path)]) == 1
    assert "NUPLAN_MAPS_ROOT=/nonexistent/maps: no such folder" in capsys.readouterr().out
