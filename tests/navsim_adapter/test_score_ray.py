"""`navsim-adapter score --ray`: a cluster, stood in for by the five calls of Ray that are used."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.navsim_adapter.score_world import (
    score,
    write_table,
    write_world,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


def test_a_missing_ray_names_the_extra(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert score(data, tmp_path / "s.csv", "--ray", "auto") == 2
    assert "--ray: ray is not installed; pip install 'dipole-vla[ray]'" in capsys.readouterr().err


class _TaskError(Exception):
    def __init__(self, cause: Exception):
        self.cause = cause


class _Ray(SimpleNamespace):
    """The five calls of Ray that are used, done at once."""

    exceptions = SimpleNamespace(RayTaskError=_TaskError)
    is_up = False

    def is_initialized(self) -> bool:
        return self.is_up

    def init(self, address: str, **_more: Any) -> None:
        if address == "10.0.0.1:6379":
            raise ConnectionError("Could not find any running Ray instance")
        self.is_up = True

    def shutdown(self) -> None:
        self.is_up = False

    def remote(self, function: Callable[..., Any]) -> Any:
        return SimpleNamespace(remote=lambda unit: _Task(function, unit))

    def wait(self, tasks: list[Any]) -> tuple[list[Any], list[Any]]:
        return tasks[-1:], tasks[:-1]  # last come, first served

    def get(self, task: _Task) -> Any:
        try:
            return task.function(task.unit)
        except Exception as problem:
            raise _TaskError(problem) from problem


class _Task:
    def __init__(self, function: Callable[..., Any], unit: Any):
        self.function, self.unit = function, unit


def test_a_cluster_gives_the_same_table(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ray = _Ray()
    monkeypatch.setitem(sys.modules, "ray", ray)
    here, there = tmp_path / "here.csv", tmp_path / "there.csv"
    assert score(data, here) == 0
    assert score(data, there, "--ray", "auto") == 0
    assert here.read_bytes() == there.read_bytes()
    assert not ray.is_up
    capsys.readouterr()
    assert score(data, there, "--ray", "10.0.0.1:6379") == 2
    assert "--ray 10.0.0.1:6379: no cluster there" in capsys.readouterr().err
    poses = np.full((24, 8, 3), np.nan)
    assert score(data, tmp_path / "nan.csv", "--ray", "auto", table=write_table(tmp_path / "t.npz", poses=poses)) == 2
    assert "poses contain NaN or infinity at step 0" in capsys.readouterr().err
