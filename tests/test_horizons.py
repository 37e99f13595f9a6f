"""Plans of other lengths and intervals than the benchmark's, through every command, and cameras by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dipole_vla.cli import main
from dipole_vla.data.tables import CandidateTable, SceneTable
from dipole_vla.demo import shipped_recipes
from navsim_adapter.cli import main as adapter
from navsim_adapter.foundation.files import finish
from navsim_adapter.sampling import Sampling
from navsim_adapter.submission import read_submission
from navsim_adapter.trajectories import read_trajectories, write_trajectories

LONG = Sampling(64, 0.1)
TEAM = ["--team-name", "T", "--authors", "A", "--email", "a@b.org", "--institution", "I", "--country", "C"]
SIZES = ["--sizes.width", 32, "--sizes.depth", 1, "--sizes.image_size", 32]
SHORT_TRAINING = ["--trainer.max_steps", 2, "--data.batch_size", 4, "--data.contexts", "null"]


def run(*words: Any) -> int:
    return main([str(word) for word in words])


def recipe(name: str) -> Path:
    return shipped_recipes() / f"{name}.yaml"


def train(out: Path, name: str, scenes: Path, *more: Any) -> int:
    line = ["fit", "--config", recipe(name), "--out", out / name, "--data.scenes", scenes, *SHORT_TRAINING]
    return run(*line, *more)


def scores(out: Path, cache: Path, table: Path, metric: str = "pdms") -> pd.DataFrame:
    line = ["score", "--cache", cache, "--trajectories", table, "--metric", metric, "--out", out]
    assert adapter([str(word) for word in line]) == 0
    return pd.read_csv(out).set_index("token").drop(columns="name")


@pytest.fixture(scope="module")
def long(loop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chain of commands for plans of 6.4 s at 10 Hz that see one camera: train, test (scenes), init, imitation,
    candidates, critic, dipole, evaluation (of scenes whose record ends at 4 s), drive.npz."""
    out = tmp_path_factory.mktemp("long")
    line = ["convert", "--data", loop / "world", "--split", "trainval", "--out", out / "train"]
    assert adapter([str(word) for word in [*line, "--future", 6.4, "--cameras", "CAM_F0"]]) == 0
    sizes = [*SIZES, "--sizes.horizon", LONG.horizon, "--sizes.cameras", "[CAM_F0]", "--interval", LONG.interval]
    assert run("init", "--family", "dp_vla", "--out", out / "init", *sizes) == 0
    assert train(out, "imitation", out / "train", "--model.backbone", out / "init") == 0
    line = ["collect", "--config", recipe("collect"), "--policy", out / "imitation", "--scenes", out / "train"]
    assert run(*line, "--scorer.cache", loop / "cache" / "train", "--out", out / "candidates", "--candidates", 3) == 0
    learned = ["--model.backbone", out / "imitation", "--data.candidates", out / "candidates"]
    assert train(out, "critic", out / "train", *learned) == 0
    pair = ["--model.critic", out / "critic", "--model.pair", "lora", "--model.rank", 4]
    assert train(out, "dipole", out / "train", *learned, *pair) == 0
    line = ["evaluate", "--config", recipe("evaluate"), "--policy", out / "dipole", "--choose_on", "null"]
    line += ["--scenes", loop / "scenes" / "test", "--scorer.cache", loop / "cache" / "test"]
    line += ["--omega", "[1]", "--candidates", "[1, 2]", "--start_scale", "[1]", "--samples", 2]
    assert run(*line, "--out", out / "evaluation") == 0
    line = ["drive", "--policy", out / "dipole", "--scenes", loop / "scenes" / "test", "--out", out / "drive.npz"]
    assert run(*line, "--omega", 1, "--candidates", 2) == 0
    return out


def test_every_table_says_when_its_plans_have_poses(long: Path) -> None:
    candidates = CandidateTable(long / "candidates")
    assert candidates.sampling == LONG
    human = SceneTable(long / "train").futures_at(LONG)
    np.testing.assert_allclose(candidates.poses[:, 0], human, atol=1e-5)
    plans = read_trajectories(long / "drive.npz")
    assert {(len(poses), interval) for poses, interval in zip(plans.poses, plans.interval)} == {(64, 0.1)}
    assert json.loads((long / "evaluation" / "summary.json").read_text())["interval"] == 0.1
    assert json.loads((long / "critic" / "config.json").read_text())["config"]["interval"] == 0.1


def test_evaluation_drive_score_and_hand_agree(long: Path, loop: Path, tmp_path: Path) -> None:
    cache, driven = loop / "cache" / "test", read_trajectories(long / "drive.npz")
    official = scores(tmp_path / "s.csv", cache, long / "drive.npz")
    rows = pd.read_parquet(long / "evaluation" / "rows.parquet")
    rows = rows[(rows.policy == "dipole") & (rows.candidates == 2)].set_index("token").loc[official.index]
    np.testing.assert_allclose(rows[official.columns].to_numpy(float), official.to_numpy(float), atol=1e-4)
    by_hand = {token: poses[:40] for token, poses in zip(driven.tokens, driven.poses)}  # its first 4 s
    write_trajectories(tmp_path / "hand.npz", "hand", by_hand, 0.1)
    pd.testing.assert_frame_equal(official, scores(tmp_path / "h.csv", cache, tmp_path / "hand.npz"))


def test_plans_of_one_planner_are_compared_across_frames(long: Path, loop: Path, tmp_path: Path) -> None:
    cache = loop / "cache" / "test"
    line = ["evaluate", "--config", recipe("evaluate"), "--policy", long / "dipole", "--choose_on", "null"]
    line += ["--scenes", loop / "scenes" / "test", "--scorer.cache", cache, "--scorer.metric", "epdms"]
    line += ["--omega", "[1]", "--candidates", "[1]", "--start_scale", "[1]", "--out", tmp_path / "evaluation"]
    assert run(*line) == 0
    rows = pd.read_parquet(tmp_path / "evaluation" / "rows.parquet")
    rows = rows[rows.policy == "dipole"].set_index("token")
    plans = {token: np.stack(poses) for token, poses in rows.poses.items()}
    write_trajectories(tmp_path / "t.npz", "t", plans, 0.1)
    official = scores(tmp_path / "s.csv", cache, tmp_path / "t.npz", "epdms").loc[rows.index]
    names = ["two_frame_extended_comfort", "score"]
    np.testing.assert_allclose(rows[names].to_numpy(float), official[names].to_numpy(float), atol=1e-9)


def test_the_human_scores_what_its_eight_logged_poses_score(long: Path, loop: Path) -> None:
    found, wanted = (pd.read_parquet(folder / "evaluation" / "rows.parquet") for folder in (long, loop))
    found, wanted = (rows[rows.policy == "human"].set_index("token").score for rows in (found, wanted))
    np.testing.assert_allclose(found, wanted.loc[found.index], atol=1e-6)


def test_a_submission_holds_the_part_that_is_simulated(long: Path, loop: Path, tmp_path: Path) -> None:
    line = ["submission", tmp_path / "s.pkl", "--trajectories", long / "drive.npz", *TEAM]
    assert adapter([str(word) for word in line]) == 0
    [plans] = read_submission(tmp_path / "s.pkl")["predictions"]
    assert {(len(plan.poses), plan.interval) for plan in plans.values()} == {(40, 0.1)}
    write_trajectories(tmp_path / "s.npz", "s", {token: plan.poses for token, plan in plans.items()}, 0.1)
    cache = loop / "cache" / "test"
    submitted = scores(tmp_path / "s.csv", cache, tmp_path / "s.npz")
    pd.testing.assert_frame_equal(submitted, scores(tmp_path / "d.csv", cache, long / "drive.npz"))


def test_a_report_is_drawn_of_it(long: Path, tmp_path: Path) -> None:
    assert run("report", long / "evaluation", "--out", tmp_path / "report") == 0


@pytest.mark.parametrize(
    ("horizon", "interval", "words"),
    [
        (6, 0.5, "6 poses every 0.5 s end 3 s from now, the scorer looks 4 s ahead"),
        (20, 0.25, "human futures have 8 poses every 0.5 s, the backbone's plans have 20 poses every 0.25 s"),
    ],
)
def test_what_would_be_extrapolated_is_refused(
    loop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], horizon: int, interval: float, words: str
) -> None:
    sizes = [*SIZES, "--sizes.horizon", horizon, "--interval", interval]
    assert run("init", "--family", "dp_vla", "--out", tmp_path / "init", *sizes) == 0
    line = ["collect", "--config", recipe("collect"), "--policy", tmp_path / "init", "--scenes", loop / "scenes/train"]
    assert run(*line, "--scorer.cache", loop / "cache" / "train", "--out", tmp_path / "candidates") == 2
    assert words in capsys.readouterr().err
    table = tmp_path / "short.npz"
    write_trajectories(table, "short", {"a" * 16: np.ones((6, 3))})
    assert adapter([str(word) for word in ["submission", tmp_path / "s.pkl", "--trajectories", table, *TEAM]]) == 2
    assert "6 poses every 0.5 s end 3 s from now" in capsys.readouterr().err


def test_a_pair_of_full_copies_of_six_poses(loop: Path, tmp_path: Path) -> None:
    sampling = Sampling(6, 0.7)  # 4.2 s, the log's frames lie beside its poses
    line = ["convert", "--data", loop / "world", "--split", "trainval", "--out", tmp_path / "train", "--future", 4.2]
    assert adapter([str(word) for word in line]) == 0
    sizes = [*SIZES, "--sizes.horizon", sampling.horizon, "--interval", sampling.interval]
    assert run("init", "--family", "dp_vla", "--out", tmp_path / "init", *sizes) == 0
    assert train(tmp_path, "imitation", tmp_path / "train", "--model.backbone", tmp_path / "init") == 0
    reference = ["--policy", tmp_path / "imitation", "--scenes", tmp_path / "train"]
    scored = ["--scorer.cache", loop / "cache" / "train", "--out", tmp_path / "candidates", "--candidates", 3]
    assert run("collect", "--config", recipe("collect"), *reference, *scored) == 0
    assert CandidateTable(tmp_path / "candidates").sampling == sampling
    learned = ["--model.backbone", tmp_path / "imitation", "--data.candidates", tmp_path / "candidates"]
    alone = ["--model.critic", "null", "--model.pair", "separate"]
    assert train(tmp_path, "dipole", tmp_path / "train", *learned, *alone) == 0
    line = ["evaluate", "--config", recipe("evaluate"), "--policy", tmp_path / "dipole", "--choose_on", "null"]
    line += ["--scenes", loop / "scenes" / "test", "--scorer.cache", loop / "cache" / "test"]
    line += ["--omega", "[1]", "--candidates", "[1]", "--start_scale", "[1]", "--out", tmp_path / "evaluation"]
    assert run(*line) == 2  # 4 s of the human end before six steps of 0.7 s do
    line[line.index(loop / "scenes" / "test")] = tmp_path / "test"
    convert = ["convert", "--data", loop / "world", "--split", "test", "--out", tmp_path / "test", "--future", 4.2]
    assert adapter([str(word) for word in convert]) == 0
    assert run(*line) == 0


def reordered(folder: Path, out: Path, cameras: list[str]) -> Path:
    """A finished backbone of the same weights whose config.json names its cameras in another order."""
    shutil.copytree(folder, out)
    content = json.loads((out / "config.json").read_text())
    content["config"]["cameras"] = cameras
    (out / "config.json").write_text(json.dumps(content))
    finish(out, {"command": "test"})
    return out


def test_cameras_in_another_order_are_not_the_same_policy(
    loop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    sizes = [*SIZES, "--sizes.cameras", "[CAM_F0, CAM_L0, CAM_R0]"]
    same = [*SIZES, "--sizes.cameras", "[CAM_L0, CAM_F0, CAM_R0]"]
    assert run("init", "--family", "dp_vla", "--out", tmp_path / "same", *same) == 0
    assert run("init", "--family", "dp_vla", "--out", other, *sizes) == 0  # the same weights
    contexts = ["contexts", "--scenes", loop / "scenes" / "test", "--out", tmp_path / "contexts", "--backbone"]
    assert run(*contexts, tmp_path / "same") == 0
    assert run(*contexts, other) == 2
    assert "cameras: this folder was made with ['CAM_L0', 'CAM_F0', 'CAM_R0']" in capsys.readouterr().err


def test_a_policy_knows_the_cameras_it_was_trained_with(
    loop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = reordered(loop / "imitation", tmp_path / "other", ["CAM_R0", "CAM_F0", "CAM_L0"])
    line = ["drive", "--policy", loop / "dipole", "--scenes", loop / "scenes" / "test", "--out", tmp_path / "t.npz"]
    assert run(*line, "--backbone", other) == 2
    assert "cameras: was made with CAM_L0, CAM_F0, CAM_R0, the backbone is shown CAM_R0" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["critic", "dipole"])
def test_candidates_of_other_cameras_are_refused(
    loop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    other = reordered(loop / "imitation", tmp_path / "other", ["CAM_R0", "CAM_F0", "CAM_L0"])
    learned = ["--model.backbone", other, "--data.candidates", loop / "candidates"]
    alone = ["--model.critic", "null"] if stage == "dipole" else []
    assert train(tmp_path, stage, loop / "scenes" / "train", *learned, *alone) == 2
    assert "candidates: cameras: was made with CAM_L0" in capsys.readouterr().err


def test_a_camera_that_is_not_there_is_one_line(loop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["convert", "--data", loop / "world", "--split", "test", "--out", tmp_path / "scenes", "--cameras"]
    assert adapter([str(word) for word in [*line, "CAM_X0"]]) == 2
    assert "--cameras: 'CAM_X0' is none of NAVSIM's" in capsys.readouterr().err
    sizes = [*SIZES, "--sizes.cameras", "[CAM_B0]"]
    assert run("init", "--family", "dp_vla", "--out", tmp_path / "init", *sizes) == 0
    drive = ["drive", "--policy", tmp_path / "init", "--out", tmp_path / "t.npz", "--scenes"]
    assert run(*drive, loop / "scenes" / "test") == 2
    assert "names no picture of camera CAM_B0" in capsys.readouterr().err
    assert adapter([str(word) for word in [*line, "CAM_B0"]]) == 0
    assert run(*drive, tmp_path / "scenes") == 2  # the world writes no such pictures, though its logs name them
    assert "cannot be read" in capsys.readouterr().err
