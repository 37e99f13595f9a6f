"""`navsim-adapter score`, killed and run again: parts of the same inputs are taken up."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from navsim_adapter.scoring import units
from navsim_adapter.scoring.units import LogUnit
from tests.navsim_adapter.score_world import (
    LOGS,
    TOKENS,
    rows_of,
    score,
    write_table,
    write_world,
)
from tests.navsim_adapter.tiny import write_log, write_maps


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def scored_logs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the logs that are scored while a test runs."""
    names: list[str] = []
    original: Callable[[LogUnit], Any] = LogUnit.score

    def noted(unit: LogUnit) -> Any:
        names.append(unit.name)
        return original(unit)

    monkeypatch.setattr(LogUnit, "score", noted)
    return names


def test_a_killed_run_goes_on_where_it_was(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scored_logs: list[str]
) -> None:
    (tmp_path / "whole").mkdir()
    assert score(data, tmp_path / "whole" / "s.csv") == 0
    keep = units.Parts.keep

    def killed(self: Any, unit: Any, part: Any) -> None:
        keep(self, unit, part)
        if unit.name == "log-1":
            raise KeyboardInterrupt

    monkeypatch.setattr(units.Parts, "keep", killed)
    out = tmp_path / "s.csv"
    assert score(data, out) == 130
    assert not out.exists()
    monkeypatch.setattr(units.Parts, "keep", keep)
    (tmp_path / "s.csv.parts" / "log-0.npz").write_bytes(b"torn")
    scored_logs.clear()
    assert score(data, out) == 0
    assert scored_logs == ["log-0", "log-2"]
    assert out.read_bytes() == (tmp_path / "whole" / "s.csv").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.csv", "s.csv.json", "whole"]


def test_parts_of_other_inputs_are_not_taken_up(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scored_logs: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(units.Parts, "clear", lambda self: None)
    out = tmp_path / "s.csv"
    assert score(data, out) == 0
    assert score(data, out) == 0
    assert scored_logs == list(LOGS)
    out.unlink()
    assert score(data, out, "--metric", "epdms") == 2
    assert scored_logs == list(LOGS)
    assert "s.csv.parts: metric: this folder was made with 'pdms-v1.1'" in capsys.readouterr().err


def test_parts_of_changed_logs_or_maps_are_not_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scored_logs: list[str]
) -> None:
    monkeypatch.setattr(units.Parts, "clear", lambda self: None)
    write_maps(tmp_path)
    for log in LOGS[:2]:
        write_log(tmp_path, log)
    table = write_table(tmp_path / "t.npz", TOKENS[:4])
    assert score(tmp_path, tmp_path / "s.csv", table=table) == 0
    log = tmp_path / "navsim_logs" / "mini" / "log-1.pkl"
    os.utime(log, ns=(0, 0))
    assert score(tmp_path, tmp_path / "s.csv", table=table) == 0
    assert scored_logs == ["log-0", "log-1", "log-1"]
    os.utime(next((tmp_path / "maps").glob("*/*/map.gpkg")), ns=(0, 0))
    assert score(tmp_path, tmp_path / "s.csv", table=table) == 0
    assert scored_logs[3:] == ["log-0", "log-1"]


def test_two_writers_leave_one_whole_result(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.csv"
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: score(data, out), range(2))) == [0, 0]
    assert len(rows_of(out)) == 24
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.csv", "s.csv.json"]
