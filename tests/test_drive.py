"""From a policy to an official number: `drive` writes what `score` and `submission` of navsim-adapter take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

import dipole_vla.commands.drive as driving
from dipole_vla.cli import main
from dipole_vla.commands import parts
from dipole_vla.demo import shipped_recipes
from dipole_vla.policy import load_policy
from navsim_adapter.cli import main as adapter
from navsim_adapter.foundation.files import finish
from navsim_adapter.submission import read_submission
from navsim_adapter.trajectories import read_about, read_trajectories
from tests.dipole_vla.small_backbone import spread_adapters
from tests.same_numbers import MAGNIFIED, assert_same_numbers
from tests.shared import SHARED, needs_shared

TEAM = ["--team-name", "T", "--authors", "A", "--email", "a@b.org", "--institution", "I", "--country", "C"]


def drive(loop: Path, out: Path, *more: Any, policy: str | Path = "dipole", scenes: str | Path = "test") -> int:
    line = ["drive", "--policy", loop / policy, "--scenes", loop / "scenes" / scenes, "--out", out, *more]
    return main([str(word) for word in line])


def score(out: Path, *more: Any) -> pd.DataFrame:
    assert adapter([str(word) for word in ("score", "--out", out, *more)]) == 0
    return pd.read_csv(out)


@pytest.fixture(scope="module")
def spread(loop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """policy/: the loop's with random adapters, since the few steps of its own move no plan; evaluation/: of it."""
    folder = tmp_path_factory.mktemp("spread")
    policy = load_policy(loop / "dipole", device="cpu")
    spread_adapters(policy.pair, scale=0.3)
    policy.save_pretrained(folder / "policy", loop / "imitation")
    finish(folder / "policy", {"command": "test"})
    line = ["evaluate", "--config", shipped_recipes() / "evaluate.yaml", "--policy", folder / "policy", "--scenes"]
    line += [loop / "scenes" / "test", "--scorer.cache", loop / "cache" / "test", "--out", folder / "evaluation"]
    line += ["--choose_on", "null", "--omega", "[-1, 0, 1]", "--candidates", "[1, 2]"]
    line += ["--start_scale", "[1]", "--samples", "2"]
    assert main([str(word) for word in line]) == 0
    return folder


def rows_of(evaluation: Path, omega: float | None, candidates: int) -> pd.DataFrame:
    rows = pd.read_parquet(evaluation / "rows.parquet")
    own = rows.policy == "reference" if omega is None else (rows.policy == "dipole") & (rows.omega == omega)
    return rows[own & (rows.candidates == candidates)].set_index("token")


def poses_of(rows: pd.DataFrame) -> np.ndarray:
    return np.array([np.stack(poses) for poses in rows["poses"]])


SETTINGS = [(omega, candidates) for omega in (-1.0, 0.0, 1.0, None) for candidates in (1, 2)]


@pytest.mark.parametrize(("omega", "candidates"), SETTINGS)
def test_its_scores_are_the_rows_of_evaluate(
    loop: Path, spread: Path, tmp_path: Path, omega: float | None, candidates: int
) -> None:
    table = tmp_path / "t.npz"
    options = ["--omega", "null" if omega is None else omega, "--candidates", candidates]
    assert drive(loop, table, *options, policy=spread / "policy") == 0
    scores = score(tmp_path / "s.csv", "--cache", loop / "cache" / "test", "--trajectories", table).set_index("token")
    rows = rows_of(spread / "evaluation", omega, candidates)
    assert sorted(scores.index) == sorted(rows.index)
    columns = [name for name in scores if name != "name"]
    assert columns[-1] == "score"
    wanted = rows.loc[scores.index, columns].to_numpy(float)
    assert_same_numbers(scores[columns].to_numpy(float), wanted, MAGNIFIED)
    poses = read_trajectories(table).poses
    assert_same_numbers(poses, poses_of(rows.loc[scores.index]), MAGNIFIED)


def test_variants_are_driven_as_they_are_evaluated(loop: Path, spread: Path, tmp_path: Path, capsys) -> None:
    line = ["evaluate", "--config", shipped_recipes() / "evaluate.yaml", "--policy", spread / "policy", "--scenes"]
    line += [loop / "scenes" / "test", "--scorer.cache", loop / "cache" / "test", "--out", tmp_path / "e"]
    line += ["--omega", "[1]", "--candidates", "[1, 2]", "--start_scale", "[1]", "--samples", "2", "--variants", "3"]
    assert main([str(word) for word in [*line, "--choose_on", "null"]]) == 0
    assert "3 variants" in capsys.readouterr().out
    assert drive(loop, tmp_path / "t.npz", "--candidates", 2, "--variants", 3, policy=spread / "policy") == 0
    rows, plain = (rows_of(folder, 1.0, 2) for folder in (tmp_path / "e", spread / "evaluation"))
    table = read_trajectories(tmp_path / "t.npz")
    assert_same_numbers(table.poses, poses_of(rows.loc[list(table.tokens)]), MAGNIFIED)
    assert (rows.q >= plain.loc[rows.index].q - 1e-6).all()
    assert (rows.q > plain.loc[rows.index].q + 1e-6).any()
    assert drive(loop, tmp_path / "n.npz", "--variants", 2, policy="imitation") == 2
    assert "variants: 2 of each plan to choose from, but" in capsys.readouterr().err


def test_the_settings_above_drive_apart(spread: Path) -> None:
    """Else the comparison would hold whatever omega and N did."""
    driven = [poses_of(rows_of(spread / "evaluation", omega, n).sort_index()) for omega, n in SETTINGS]
    for place, one in enumerate(driven):
        for other in driven[:place]:
            assert np.abs(one - other).max() > 0.05


def test_a_backbone_drives_as_the_reference(loop: Path, tmp_path: Path) -> None:
    assert drive(loop, tmp_path / "backbone.npz", policy="imitation") == 0
    assert drive(loop, tmp_path / "policy.npz", "--omega", "null") == 0
    backbone, policy = (read_trajectories(tmp_path / f"{name}.npz") for name in ("backbone", "policy"))
    assert set(backbone.names) == {"imitation-reference-n1"}
    assert set(policy.names) == {"dipole-reference-n1"}
    assert backbone.tokens == policy.tokens
    np.testing.assert_array_equal(backbone.poses, policy.poses)


def test_the_table_says_what_made_it_and_so_do_its_scores(loop: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.npz"
    assert drive(loop, table) == 0
    about, policy = read_about(table), load_policy(loop / "dipole", device="cpu")
    guidance = policy.guidance
    assert (about["omega"], about["candidates"]) == (guidance.omega, guidance.candidates)  # nothing else was said
    assert about["name"] == f"dipole-omega{guidance.omega:g}-n{guidance.candidates}"
    assert about["policy_fingerprint"] == policy.fingerprint
    assert (about["split"], about["rl_split"], about["rl_on_eval_split"]) == ("test", "trainval", False)
    score(tmp_path / "s.csv", "--cache", loop / "cache" / "test", "--trajectories", table)
    assert json.loads((tmp_path / "s.csv.json").read_text())["trajectories_about"] == about


def test_shards_and_interruptions_leave_the_same_table(loop: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(parts, "PART", 2)
    out, whole, unfinished = tmp_path / "t.npz", tmp_path / "whole.npz", tmp_path / "t.npz.parts"
    assert drive(loop, whole) == 0
    assert drive(loop, out, "--shard", "2/3") == 0
    assert unfinished.is_dir()
    assert drive(loop, out, "--omega", 0) == 2  # what the shard has done is not thrown away
    assert "made with 'dipole-omega1-n1', now 'dipole-omega0-n1'" in capsys.readouterr().err
    assert not out.exists()
    assert drive(loop, out) == 0
    assert not unfinished.exists()
    assert out.read_bytes() == whole.read_bytes()

    monkeypatch.setattr(driving, "run_parts", None)
    before = out.stat().st_mtime_ns
    assert drive(loop, out) == 0
    assert out.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("policy", "scenes", "options", "message"),
    [
        ("imitation", "test", ["--omega", "1"], "imitation is a backbone without adapters; leave omega out"),
        ("imitation", "test", ["--candidates", "2"], "candidates: 2 to choose from"),
        ("dipole", "test", ["--candidates", "0"], "--candidates: must be at least 1, got 0"),
        ("dipole", "train", [], "12 of 12 scenes"),
        ("nowhere", "test", [], "nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    loop: Path, tmp_path: Path, capsys, policy: str, scenes: str, options: list[str], message: str
) -> None:
    assert drive(loop, tmp_path / "t.npz", *options, policy=policy, scenes=scenes) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not list(tmp_path.iterdir())


def test_a_table_of_other_inputs_is_never_overwritten(loop: Path, tmp_path: Path, capsys) -> None:
    table, foreign = tmp_path / "t.npz", tmp_path / "thesis.txt"
    assert drive(loop, table, "--omega", 1) == 0
    foreign.write_text("x")
    before = table.read_bytes()
    assert drive(loop, table, "--omega", 0) == 2
    assert "omega: this table was made with 1.0, now 0.0; remove it or choose another --out" in capsys.readouterr().err
    assert drive(loop, tmp_path / "narrow.npz", "--start_scale", 0.5) == 0
    assert drive(loop, tmp_path / "narrow.npz") == 2  # what is no longer asked for is another table, too
    assert "start_scale: this table was made with 0.5" in capsys.readouterr().err
    assert drive(loop, foreign) == 2
    assert "was not made by drive" in capsys.readouterr().err
    assert (table.read_bytes(), foreign.read_text()) == (before, "x")


@needs_shared
def test_a_policy_reaches_the_two_stage_score_and_a_submission(loop: Path, tmp_path: Path) -> None:
    """The sample scenes have pictures in both stages; the policy is the small loop's, whose figures mean nothing."""
    assert SHARED is not None
    data, folder = SHARED / "navsim_dev", SHARED / "navsim_dev" / "two_stage"
    mapping = json.loads((folder / "mapping.json").read_text())
    split = tmp_path / "split.yaml"  # as the devkit's navhard_two_stage.yaml lists its scenes
    first = [token for now, previous, _ in mapping for token in (now, previous)]
    split.write_text(yaml.safe_dump({"num_future_frames": 8, "frame_interval": 1, "tokens": first}))

    scenes = {"first": ["--data", data, "--split", "mini", "--filter", split], "second": ["--two-stage", folder]}
    for stage, options in scenes.items():
        assert adapter([str(word) for word in ("convert", *options, "--out", tmp_path / stage)]) == 0
        table = tmp_path / f"{stage}.npz"
        assert drive(loop, table, "--omega", 1, "--candidates", 2, scenes=tmp_path / stage) == 0
    tables = ["--trajectories", tmp_path / "first.npz", "--second-stage-trajectories", tmp_path / "second.npz"]

    options = ["--data", data, "--split", "mini", "--metric", "epdms", "--two-stage", folder, *tables]
    scores = score(tmp_path / "s.csv", *options)
    assert set(scores["name"]) == {"dipole-omega1-n2"}
    assert scores["frame_type"].value_counts().to_dict() == {"original": 8, "synthetic": 24}
    assert scores["score"].between(0, 1).all()
    summary = pd.read_csv(tmp_path / "s_summary.csv")
    assert list(summary["stage"]) == ["stage_one", "stage_two", "combined"]
    assert summary["score"].between(0, 1).all()
    about = json.loads((tmp_path / "s.csv.json").read_text())
    assert about["second_stage_trajectories_about"]["split"] == "second-stage"

    submit = ["submission", tmp_path / "s.pkl", *tables, "--expect", folder / "mapping.json", *TEAM]
    assert adapter([str(word) for word in submit]) == 0
    content = read_submission(tmp_path / "s.pkl")
    assert set(content["first_stage_predictions"][0]) == set(first)
    driven = read_trajectories(tmp_path / "second.npz")
    for token, poses in zip(driven.tokens, driven.poses):
        np.testing.assert_array_equal(content["second_stage_predictions"][0][token].poses, poses)
    alone = ["submission", tmp_path / "one.pkl", "--trajectories", tmp_path / "first.npz", *TEAM]
    assert adapter([str(word) for word in alone]) == 0


@needs_shared
def test_rendered_scenes_are_neither_collected_nor_evaluated(loop: Path, tmp_path: Path, capsys) -> None:
    assert SHARED is not None
    scenes = tmp_path / "scenes"
    assert adapter(["convert", "--two-stage", str(SHARED / "navsim_dev" / "two_stage"), "--out", str(scenes)]) == 0
    line = ["--policy", loop / "dipole", "--scenes", scenes, "--scorer", "navsim_adapter.scoring.scorer.Scorer"]
    line += ["--scorer.cache", loop / "cache" / "test", "--out", tmp_path / "out"]
    for command, message in (("collect", "this is an evaluation split"), ("evaluate", "has no human future")):
        assert main([str(word) for word in (command, *line)]) == 2
        [complaint] = capsys.readouterr().err.strip().splitlines()
        assert message in complaint
