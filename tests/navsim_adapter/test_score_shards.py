"""`navsim-adapter score --shard`: shards share one OUT, and the last writes what one run would have written."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from navsim_adapter.scoring.units import LogUnit
from tests.navsim_adapter.score_world import TOKENS, run, score, write_table, write_world


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ("--metric", "pdms"),
        ("--metric", "epdms"),
        ("--metric", "epdms", "--traffic", "idm"),
        ("--metric", "epdms", "--format", "official"),
    ],
)
def test_the_last_shard_writes_the_whole_bit_for_bit(data: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    whole.mkdir()
    shared.mkdir()
    assert score(data, whole / "s.csv", *arguments) == 0
    for index in (2, 1):
        assert not names(shared) or names(shared) == ["s.csv.parts"]
        assert score(data, shared / "s.csv", *arguments, "--shard", f"{index}/2") == 0
    assert names(shared) == names(whole)
    for name in names(whole):
        assert (shared / name).read_bytes() == (whole / name).read_bytes()


def test_each_log_is_scored_once_whoever_comes_again(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[str] = []
    original = LogUnit.score

    def noted(unit: LogUnit) -> Any:
        scored.append(unit.name)
        return original(unit)

    monkeypatch.setattr(LogUnit, "score", noted)
    out = tmp_path / "s.csv"
    assert score(data, out, "--shard", "1/2") == 0
    assert "shard 1/2: done; 1 of 3 logs are still with the others" in capsys.readouterr().out
    assert score(data, out, "--shard", "1/2") == 0  # a job that was put into the queue again
    assert scored == ["log-0", "log-2"]  # whole logs, so that neighbouring frames stay together
    assert score(data, out) == 0  # a run without a shard makes what is left
    assert scored == ["log-0", "log-2", "log-1"]
    before = out.read_bytes()
    assert score(data, out, "--shard", "2/2") == 0
    assert f"shard 2/2: {out} is already complete" in capsys.readouterr().out
    assert scored == ["log-0", "log-2", "log-1"]
    assert out.read_bytes() == before
    assert names(tmp_path) == ["s.csv", "s.csv.json"]


def test_shards_that_end_at_once_leave_one_whole_result(data: Path, tmp_path: Path) -> None:
    line = ("score", "--data", data, "--split", "mini", "--trajectories", data / "t.npz", "--out", tmp_path / "s.csv")
    with ProcessPoolExecutor(3, get_context("spawn")) as pool:  # locks are a process's
        assert list(pool.map(run, *zip(*[(*line, "--shard", f"{i}/3") for i in (1, 2, 3)]))) == [0, 0, 0]
    assert names(tmp_path) == ["s.csv", "s.csv.json"]


def test_a_shard_of_another_run_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, poses = tmp_path / "s.csv", write_table(tmp_path / "other.npz", TOKENS[:3])
    assert score(data, out, "--shard", "1/2") == 0
    before = names(tmp_path / "s.csv.parts")
    assert score(data, out, "--shard", "2/2", "--metric", "epdms") == 2
    assert "s.csv.parts: metric: this folder was made with 'pdms-v1.1', now 'epdms-v2.2'" in capsys.readouterr().err
    assert score(data, out, "--shard", "2/2", table=poses) == 2
    assert "s.csv.parts: trajectories" in capsys.readouterr().err
    assert names(tmp_path / "s.csv.parts") == before
    assert not out.exists()


def test_an_input_is_never_the_output(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_table(tmp_path / "t.npz")
    before = table.read_bytes()
    assert score(data, f"{tmp_path}/../{tmp_path.name}/t.npz", table=table) == 2
    assert "is an input of this command and would be overwritten" in capsys.readouterr().err
    assert table.read_bytes() == before


def test_a_token_of_no_shard_is_found_by_the_last(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(tmp_path / "t.npz", [*TOKENS, "f" * 16])
    assert score(data, tmp_path / "s.csv", "--shard", "1/2", table=table) == 0
    assert score(data, tmp_path / "s.csv", "--shard", "2/2", table=table) == 2
    assert "1 of 7 tokens are no scene of split mini (first: ffffffffffffffff)" in capsys.readouterr().err


def test_the_command_of_before_names_the_way_of_today(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("merge", "s.csv", "a.csv", "b.csv") == 2
    assert "navsim-adapter merge: is no command any more" in capsys.readouterr().err
