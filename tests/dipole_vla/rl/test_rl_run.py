"""The command: stages, resume to the same bits, replay written once, the result table, mistakes in one line."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from line_world import Line, line_data

from dipole_vla.cli import main
from dipole_vla.commands import rl as command
from dipole_vla.commands.rl import OnlineConfig, Stage, plan, rl
from dipole_vla.rl.evaluation import COLUMNS, EvaluationConfig, append_rows, cells
from dipole_vla.rl.learner import LearnerConfig
from dipole_vla.rl.transitions import BatchStream
from navsim_adapter.foundation.errors import InputError

LEARNER = LearnerConfig(hidden=8, layers=1, heads=["bc", "positive", "negative"], lr_decay=0.5)
EVALUATION = EvaluationConfig(
    every=10,
    curve=["bc:0:1"],
    curve_episodes=2,
    methods=["bc", "positive_only", "dipole"],
    omega=[0.0, 1.0],
    candidates=[1, 2],
    episodes=3,
    fleet=6,
)
ONLINE = OnlineConfig(rounds=2, episodes=2, updates=6, policy="dipole:1:2")


@pytest.fixture
def line(monkeypatch):
    monkeypatch.setattr(command, "make_environment", lambda task: Line())
    monkeypatch.setattr(command, "data_identity", lambda task, folder: "line")
    monkeypatch.setattr(
        command, "load_data", lambda task, folder, learner: line_data(60, learner.n_step, learner.weigh_n_step)
    )


def go(out, **options):
    settings = {
        "learner": LEARNER,
        "evaluation": EVALUATION,
        "online": ONLINE,
        "seed": [0, 3],
        "updates": 20,
        **options,
    }
    rl("line", out, out, batch_size=8, checkpoint_every=4, **settings)


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_has_every_method_and_cell_for_every_seed_offline_and_after_the_rounds(line, tmp_path):
    go(tmp_path / "run")
    rows = rows_of(tmp_path / "run" / "results.csv")
    assert tuple(rows[0]) == COLUMNS
    full = {(r["method"], r["seed"], r["omega"], r["candidates"]) for r in rows if r["updates"] == "20"}
    wanted = {("bc", "0"), ("positive_only", "0"), ("dipole", "0"), ("dipole", "1")}
    assert full == {(m, s, o, n) for m, o in wanted for s in ("0", "3") for n in ("1", "2")}
    assert {r["updates"] for r in rows} == {"10", "20", "32"}
    assert {r["episodes"] for r in rows if r["updates"] != "10"} == {"3"}
    same = {(r["seed"], r["candidates"], r["updates"], r["return"]) for r in rows if r["method"] == "positive_only"}
    assert same == {
        (r["seed"], r["candidates"], r["updates"], r["return"])
        for r in rows
        if r["method"] == "dipole" and r["omega"] == "0"
    }


@pytest.mark.parametrize(
    ("killed_at", "weigh_n_step"),
    [("offline", None), ("evaluation", None), ("collecting", None), ("online", None), ("online", 2)],
)
def test_a_killed_run_ends_in_the_same_bits(line, tmp_path, monkeypatch, killed_at, weigh_n_step):
    learner = replace(LEARNER, weigh_n_step=weigh_n_step)
    go(tmp_path / "whole", learner=learner)
    with monkeypatch.context() as patch:
        if killed_at in ("offline", "online"):
            at, batch = (13 if killed_at == "offline" else 29), BatchStream.batch
            patch.setattr(BatchStream, "batch", lambda self, step: _die() if step == at else batch(self, step))
        elif killed_at == "evaluation":
            patch.setattr(command, "measure", lambda *a, **k: _die())
        else:
            save, calls = command.write_arrays, []
            patch.setattr(
                command, "write_arrays", lambda *a: (calls.append(a), _die() if len(calls) == 2 else save(*a))
            )
        with pytest.raises(RuntimeError, match="killed"):
            go(tmp_path / "killed", learner=learner)
    go(tmp_path / "killed", learner=learner)
    for name in ("model.safetensors", "results.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    replay = sorted(path.name for path in (tmp_path / "whole" / "replay").iterdir())
    assert replay == ["seed0-round00000.npz", "seed0-round00001.npz", "seed3-round00000.npz", "seed3-round00001.npz"]
    before = (tmp_path / "killed" / "model.safetensors").stat().st_mtime_ns
    go(tmp_path / "killed", learner=learner)  # finished: nothing is done again
    assert (tmp_path / "killed" / "model.safetensors").stat().st_mtime_ns == before


def _die():
    raise RuntimeError("killed")


def test_a_damaged_replay_file_is_named(line, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        batch = BatchStream.batch
        patch.setattr(BatchStream, "batch", lambda self, step: _die() if step == 28 else batch(self, step))
        with pytest.raises(RuntimeError, match="killed"):
            go(tmp_path / "run")
    path = tmp_path / "run" / "replay" / "seed3-round00000.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"seed3-round00000\.npz: cannot be read"):
        go(tmp_path / "run")


def test_stages_measure_on_the_marks_and_the_whole_table_at_both_ends():
    found = plan(25, EvaluationConfig(every=10), OnlineConfig(rounds=4, updates=5))
    assert found[:3] == [Stage(10, None, True, False), Stage(20, None, True, False), Stage(25, None, True, True)]
    assert [stage.online_round for stage in found[3:]] == [0, 1, 2, 3]
    assert [stage.is_measured for stage in found[3:]] == [False, True, False, True]
    assert [stage.is_full for stage in found[3:]] == [False, False, False, True]
    assert plan(25, EvaluationConfig(), OnlineConfig()) == [Stage(25, None, True, True)]


def test_batches_depend_on_seed_and_step_alone_and_mix_replay_in():
    offline = line_data(20)
    replay = line_data(5)
    both = BatchStream(offline, [1, 2], 16).batch(7)
    one = BatchStream(offline, [2], 16, first=100).batch(7)
    for name in one:
        assert torch.equal(both[name][1], one[name][0])
    assert not torch.equal(both["noise"][0], both["noise"][1])
    marked = type(replay)(**{**vars(replay), "reward": torch.full_like(replay.reward, 99.0)})
    mixed = BatchStream(offline, [1], 16, [marked], offline_share=0.25).batch(3)
    assert int((mixed["reward"] == 99).sum()) == 12
    proportional = BatchStream(offline, [1], 100, [marked]).batch(3)
    share = len(marked) / (len(offline) + len(marked))
    assert int((proportional["reward"] == 99).sum()) == pytest.approx(100 * share, abs=1)


def test_rows_replace_their_own_kind_and_leave_the_others(tmp_path):
    path = tmp_path / "table.csv"
    row = dict(zip(COLUMNS, ("line", "bc", 0, 0.0, 1, 50.0, 10, 100, "abc")))
    append_rows(path, [row, {**row, "seed": 1}])
    append_rows(path, [{**row, "return": 60.0, "commit": "def"}])
    assert [(r["seed"], r["return"], r["commit"]) for r in rows_of(path)] == [("0", "60", "def"), ("1", "50", "abc")]
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="columns are"):
        append_rows(path, [row])


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"learner": LearnerConfig(heads=["bc"])}, "dipole needs head 'positive'|positive_only needs head"),
        ({"evaluation": EvaluationConfig(methods=["bc"], curve=["bc:1"])}, "method:omega:candidates"),
        ({"online": OnlineConfig(rounds=1, policy="dipol:1:1")}, "did you mean 'dipole'"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(line, tmp_path, options, wanted):
    with pytest.raises(InputError, match=wanted):
        go(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_unknown_heads_and_missing_data_are_one_line_on_the_command_line(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    text = "task: pointmaze-medium-navigate-singletask-task1-v0\ndata: {}\nlearner: {}\nevaluation: {}\nonline: {}\n"
    recipe.write_text(text.replace("data: {}", f"data: {tmp_path / 'none'}"))
    assert main(["rl", "--config", str(recipe), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "dipole-vla data ogbench pointmaze-medium-navigate --out" in said
    assert said.count("\n") == 1
    assert (
        main(["rl", "--config", str(recipe), "--out", str(tmp_path / "out"), "--learner.heads", "[bc, positiv]"]) == 2
    )
    assert "did you mean 'positive'" in capsys.readouterr().err


def test_learning_beats_imitation_on_the_line(line, tmp_path):
    """Not only plumbing: with the critic's choice the policy reaches the end more often than the behaviour."""
    evaluation = EvaluationConfig(methods=["bc", "dipole"], omega=[1.0], candidates=[1, 8], episodes=40, fleet=40)
    go(
        tmp_path / "run",
        learner=LearnerConfig(hidden=32, layers=2, heads=["bc", "positive", "negative"], polyak=0.05, lr=2e-3),
        evaluation=evaluation,
        online=OnlineConfig(),
        seed=0,
        updates=400,
    )
    rows = rows_of(tmp_path / "run" / "results.csv")
    found = {(r["method"], r["candidates"]): float(r["return"]) for r in rows}
    assert found["dipole", "8"] > found["bc", "1"] + 10
    assert np.isfinite(list(found.values())).all()


@pytest.mark.parametrize(("found", "is_said"), [({"avx2": True}, True), ({"avx2": True, "amx_bf16": True}, False)])
def test_a_processor_without_bfloat16_products_is_named(line, tmp_path, monkeypatch, capsys, found, is_said):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    short = LearnerConfig(hidden=8, layers=1, heads=["bc", "positive", "negative"], precision="bfloat16")
    go(
        tmp_path,
        learner=short,
        updates=2,
        online=OnlineConfig(),
        evaluation=EvaluationConfig(methods=["bc"], episodes=1),
    )
    assert ("float32 is faster here" in " ".join(capsys.readouterr().out.split())) == is_said


RECIPES = sorted((Path(__file__).parents[3] / "recipes" / "rl").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_read_and_asks_for_its_data_by_the_command_that_makes_them(recipe, tmp_path, capsys):
    missing, content = tmp_path / "nothing", yaml.safe_load(recipe.read_text())
    assert main(["rl", "--config", str(recipe), "--data", str(missing), "--out", str(tmp_path / "run")]) != 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"run `dipole-vla data ogbench {content['task'].split('-singletask')[0]}" in said
    assert cells(EvaluationConfig(**content["evaluation"]), LearnerConfig(**content["learner"]).heads)
