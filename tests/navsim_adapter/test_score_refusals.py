"""`navsim-adapter score`: scenes without a score, and mistakes in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.navsim_adapter.score_world import (
    TOKENS,
    broken_world,
    facts_of,
    rows_of,
    run,
    score,
    write_table,
    write_world,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


def test_a_scene_without_cache_is_a_line_and_empty_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, tokens = broken_world(tmp_path), TOKENS[:4]
    table = write_table(tmp_path / "t.npz", tokens)
    assert score(root, tmp_path / "s.csv", "--metric", "epdms", table=table) == 0
    captured = capsys.readouterr()
    assert "8 of 16 trajectories scored" in captured.out
    lines = [line for line in captured.err.splitlines() if line.startswith("not scored: ")]
    assert [line.split()[3] for line in lines] == tokens[2:]
    for row in rows_of(tmp_path / "s.csv"):
        has_score = row["token"].startswith("0")
        assert (row["score"] != "") == has_score
        assert any(list(row.values())[2:]) == has_score
    facts = facts_of(tmp_path / "s.csv")
    assert facts["scored"] == 8
    assert [item["names"] for item in facts["not_scored"]] == [["slow", "steady", "swerve", "stop"]] * 2
    assert sorted(row for item in facts["not_scored"] for row in item["rows"]) == [2, 3, 6, 7, 10, 11, 14, 15]


def test_poses_without_numbers_are_refused_where_there_is_something_to_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, poses = broken_world(tmp_path), np.zeros((16, 8, 3))
    poses[2, 5, 1] = np.nan  # a scene without cache: nothing is scored anyway
    assert score(root, tmp_path / "s.csv", table=write_table(tmp_path / "t.npz", TOKENS[:4], poses=poses)) == 0
    poses[0, 5, 1] = np.inf
    capsys.readouterr()
    assert score(root, tmp_path / "u.csv", table=write_table(tmp_path / "u.npz", TOKENS[:4], poses=poses)) == 2
    error = capsys.readouterr().err
    assert f"trajectory 'slow' of scene {TOKENS[0]}: poses contain NaN or infinity at step 5" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "u.csv").exists()


def test_a_failing_traffic_costs_its_own_row(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from navsim_adapter.foundation.errors import InputError
    from navsim_adapter.scoring import rows as row_scores
    from navsim_adapter.traffic.idm import idm

    def stumbling(scene: Any, states: np.ndarray) -> Any:
        if scene.token == TOKENS[1] and np.hypot(*(states[-1, :2] - states[0, :2])) < 25:  # who brakes
            raise InputError(f"scene {scene.token}: an assertion")
        return idm(scene, states)

    monkeypatch.setitem(row_scores.POLICIES, "idm", stumbling)
    assert score(data, tmp_path / "s.csv", "--metric", "epdms", "--traffic", "idm") == 0
    assert f"not scored: scene {TOKENS[1]}: an assertion (slow, stop)" in capsys.readouterr().err
    empty = [(row["token"], row["name"]) for row in rows_of(tmp_path / "s.csv") if row["score"] == ""]
    assert empty == [(TOKENS[1], "slow"), (TOKENS[1], "stop")]

    monkeypatch.setitem(row_scores.POLICIES, "idm", lambda scene, states: _fail())
    assert score(data, tmp_path / "s.csv", "--metric", "epdms", "--traffic", "idm") == 2
    error = capsys.readouterr().err
    assert "with the human, whom the penalty filter needs" in error
    assert f"{tmp_path / 's.csv'}: written, but none of its 24 rows has a score" in error
    assert all(row["score"] == "" for row in rows_of(tmp_path / "s.csv"))


def test_an_import_of_one_version_says_so_where_the_other_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = Path(__file__).parents[1] / "data" / "official_cache" / "v2"
    token = next(tree.rglob("metric_cache.pkl")).parent.name
    table, out = write_table(tmp_path / "t.npz", [token]), tmp_path / "s.csv"
    assert run("import", tree, "--out", tmp_path / "c", "--workers", 1) == 0
    assert run("score", "--cache", tmp_path / "c", "--metric", "pdms", "--trajectories", table, "--out", out) == 2
    reason = f"scene {token}: its cache serves epdms-v2.2 alone; import the devkit's other version with --other"
    assert f"not scored: {reason}" in capsys.readouterr().err
    assert [row["score"] for row in rows_of(out)] == [""] * 4


def _fail() -> Any:
    from navsim_adapter.foundation.errors import InputError

    raise InputError("scene: an assertion")


TWO_STAGES = ["--two-stage", "f", "--second-stage-trajectories", "t"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--traffic", "log-replay", "--mapping", "m"], "--mapping: belongs to a two-stage run; add --two-stage"),
        (["--two-stage", "f"], "--two-stage: needs --second-stage-trajectories"),
        ([*TWO_STAGES, "--metric", "pdms"], "the two-stage score is EPDMS"),
        (TWO_STAGES, "f: no such file or folder"),
        (["--threads", "0"], "--threads: must be at least 1, got 0"),
        (["--workers", "0"], "--workers: must be at least 1, got 0"),
        (["--shard", "4/3"], "--shard: must be i/n with 1 <= i <= n"),
        (["--shard", "one"], "--shard: must be i/n"),
        (["--split", "minni"], "no such split (did you mean 'mini'?)"),
        (["--cache", "c"], "--split: the cache holds the scenes; leave --split or --cache out"),
        ([*TWO_STAGES, "--threads", "2"], "--threads: has no effect in two stages; use --workers"),
        (["--ray", "auto", "--workers", "2"], "--workers: the cluster decides how many there are"),
    ],
)
def test_mistakes_are_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert score(data, tmp_path / "s.csv", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nowhere: no such folder"),
        (["--data", "d"], "--data: everything is read from caches; leave --data or --cache out"),
        (["--data", "d", *TWO_STAGES, "--second-stage-cache", "s"], "--data: everything is read from caches"),
        (["--data", "d", *TWO_STAGES], "d: has no folder navsim_logs"),
    ],
)
def test_mistakes_beside_a_cache_are_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    source = ("--cache", "nowhere", "--trajectories", data / "t.npz")
    assert run("score", *source, "--out", tmp_path / "s.csv", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_token_that_is_nowhere_is_named(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_table(tmp_path / "t.npz", [*TOKENS, "f" * 16])
    assert score(data, tmp_path / "s.csv", table=table) == 2
    assert f"1 of 7 tokens are no scene of split mini (first: {'f' * 16})" in capsys.readouterr().err
    assert not (tmp_path / "s.csv").exists()
