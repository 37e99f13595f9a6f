"""`navsim-adapter score`: a result that is there already is never replaced by another."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from navsim_adapter.scoring import units
from tests.navsim_adapter.score_world import (
    run,
    score,
    write_table,
    write_world,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


def others(data: Path, tmp_path: Path) -> dict[str, tuple[list[Any], str]]:
    """Option changes of another run -> arguments, and what differs."""
    slow = np.zeros((24, 8, 3))
    other = write_table(tmp_path / "other.npz", poses=slow)
    assert run("cache", "--data", data, "--split", "mini", "--out", tmp_path / "cache", "--workers", 1) == 0
    cached = ["score", "--cache", tmp_path / "cache", "--trajectories", data / "t.npz"]
    plain = ["score", "--data", data, "--split", "mini", "--trajectories", data / "t.npz"]
    return {
        "table": ([*plain[:-1], other], "trajectories: this table was made with"),
        "metric": ([*plain, "--metric", "epdms"], "metric: this table was made with 'pdms-v1.1', now 'epdms-v2.2'"),
        "cache": (cached, "cache: this table was made with None"),
        "layout": ([*plain, "--format", "official"], "format: this table was made with 'rows', now 'official'"),
    }


def test_a_finished_table_is_not_replaced_by_another(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = others(data, tmp_path)
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "s.csv"
    same = write_table(tmp_path / "copy.npz")  # its content decides, not its name
    for table in (None, same):
        assert score(data, out, table=table) == 0
    before = {path.name: path.read_bytes() for path in out.parent.iterdir()}
    for arguments, told in changes.values():
        assert run(*arguments, "--out", out) == 2
        assert f"{told}" in capsys.readouterr().err
        assert {path.name: path.read_bytes() for path in out.parent.iterdir()} == before
    out.unlink()  # the remedy that was told
    assert run(*changes["metric"][0], "--out", out) == 0


def test_two_runs_do_not_write_one_table(data: Path, tmp_path: Path) -> None:
    with units.Parts(tmp_path / "t.csv", {"inputs": ""}).held(), ProcessPoolExecutor(1, get_context("spawn")) as pool:
        argv = ("--data", data, "--split", "mini", "--trajectories", data / "t.npz", "--out", tmp_path / "t.csv")
        assert pool.submit(run, "score", *argv).result() == 2
    assert not (tmp_path / "t.csv").exists()
    assert not (tmp_path / "t.csv.parts").exists()


@pytest.mark.parametrize("command", ["score", "baseline"])
def test_a_file_of_nobody_knows_what_is_not_replaced(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    out = tmp_path / "mine.csv"
    out.write_text("precious")
    if command == "score":
        line: list[Any] = ["score", "--data", data, "--split", "mini", "--trajectories", data / "t.npz", "--out", out]
    else:
        assert run("cache", "--data", data, "--split", "mini", "--out", tmp_path / "c", "--workers", 1) == 0
        line = ["baseline", "stopped", "--cache", tmp_path / "c", "--out", out]
    assert run(*line) == 2
    assert f"{out}: is there" in capsys.readouterr().err
    assert out.read_text() == "precious"
    out.unlink()
    for _ in range(2):
        assert run(*line) == 0


def test_a_run_killed_between_its_table_and_its_json_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("navsim_adapter.scoring.result.write_json", killed)
        assert score(data, tmp_path / "s.csv") == 130
    assert (tmp_path / "s.csv").exists()
    assert score(data, tmp_path / "s.csv", "--metric", "epdms") == 2
    assert score(data, tmp_path / "s.csv") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.csv", "s.csv.json"]
