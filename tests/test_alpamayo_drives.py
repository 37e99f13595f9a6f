"""A unicycle's plans, 64 poses at 0.1 s, through every command: from random weights to the score of its poses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dipole_vla.cli import main
from dipole_vla.demo import shipped_recipes
from navsim_adapter.cli import main as adapter
from navsim_adapter.submission import read_submission
from navsim_adapter.trajectories import read_trajectories, write_trajectories

pytestmark = pytest.mark.slow

TEAM = ["--team-name", "T", "--authors", "A", "--email", "a@b.org", "--institution", "I", "--country", "C"]


def run(*words: Any) -> int:
    return main([str(word) for word in words])


def recipe(name: str) -> Path:
    return shipped_recipes() / f"{name}.yaml"


def scores(out: Path, cache: Path, table: Path) -> pd.DataFrame:
    line = ["score", "--cache", cache, "--trajectories", table, "--metric", "pdms", "--out", out]
    assert adapter([str(word) for word in line]) == 0
    return pd.read_csv(out).set_index("token").drop(columns="name")


@pytest.fixture(scope="module")
def driven(loop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """init, candidates, contexts, dipole and drive.npz of a tiny Alpamayo that sees one camera."""
    out = tmp_path_factory.mktemp("alpamayo")
    assert run("init", "--family", "alpamayo", "--out", out / "init", "--sizes.cameras", "[CAM_F0]") == 0
    scenes, short = loop / "scenes" / "train", ["--trainer.max_steps", 2, "--data.batch_size", 4]
    line = ["collect", "--config", recipe("collect"), "--policy", out / "init", "--scenes", scenes]
    line += ["--scorer.cache", loop / "cache" / "train", "--with_human", "false", "--candidates", 3, "--start_scale", 5]
    assert run(*line, "--out", out / "candidates") == 0
    line = ["fit", "--config", recipe("dipole"), "--out", out / "dipole", "--data.scenes", scenes, *short]
    line += ["--model.backbone", out / "init", "--model.critic", "null", "--model.pair", "lora", "--model.rank", 2]
    assert run(*line, "--data.candidates", out / "candidates", "--data.contexts", out / "contexts") == 0
    line = ["drive", "--policy", out / "dipole", "--scenes", loop / "scenes" / "test", "--out", out / "drive.npz"]
    assert run(*line, "--omega", 1) == 0
    return out


def test_its_score_is_that_of_its_poses_brought_to_the_metrics_times(driven: Path, loop: Path, tmp_path: Path) -> None:
    cache, plans = loop / "cache" / "test", read_trajectories(driven / "drive.npz")
    assert {(len(poses), interval) for poses, interval in zip(plans.poses, plans.interval)} == {(64, 0.1)}
    by_hand = {token: poses[:40] for token, poses in zip(plans.tokens, plans.poses)}
    write_trajectories(tmp_path / "hand.npz", "hand", by_hand, 0.1)
    official = scores(tmp_path / "s.csv", cache, driven / "drive.npz")
    pd.testing.assert_frame_equal(official, scores(tmp_path / "h.csv", cache, tmp_path / "hand.npz"))
    assert np.isfinite(official["score"]).all()


def test_a_submission_holds_the_part_that_is_simulated(driven: Path, loop: Path, tmp_path: Path) -> None:
    line = ["submission", tmp_path / "s.pkl", "--trajectories", driven / "drive.npz", *TEAM]
    assert adapter([str(word) for word in line]) == 0
    [plans] = read_submission(tmp_path / "s.pkl")["predictions"]
    assert {(len(plan.poses), plan.interval) for plan in plans.values()} == {(40, 0.1)}
    write_trajectories(tmp_path / "s.npz", "s", {token: plan.poses for token, plan in plans.items()}, 0.1)
    cache = loop / "cache" / "test"
    submitted = scores(tmp_path / "s.csv", cache, tmp_path / "s.npz")
    pd.testing.assert_frame_equal(submitted, scores(tmp_path / "d.csv", cache, driven / "drive.npz"))


def test_its_evaluation_scores_the_same_plans(driven: Path, loop: Path, tmp_path: Path) -> None:
    cache = loop / "cache" / "test"
    line = ["evaluate", "--config", recipe("evaluate"), "--policy", driven / "dipole", "--choose_on", "null"]
    line += ["--scenes", loop / "scenes" / "test", "--scorer.cache", cache, "--omega", "[1]", "--candidates", "[1]"]
    assert run(*line, "--start_scale", "[1]", "--out", tmp_path / "evaluation") == 0
    rows = pd.read_parquet(tmp_path / "evaluation" / "rows.parquet")
    rows = rows[rows.policy == "dipole"].set_index("token")
    plans = {token: np.stack(poses) for token, poses in rows.poses.items()}
    assert {len(poses) for poses in plans.values()} == {64}
    write_trajectories(tmp_path / "t.npz", "t", plans, 0.1)
    official = scores(tmp_path / "s.csv", cache, tmp_path / "t.npz").loc[rows.index]
    np.testing.assert_allclose(rows["score"].to_numpy(float), official["score"].to_numpy(float), atol=1e-9)
