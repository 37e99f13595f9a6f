"""The command line: one line and status 2 for a mistake, the tables and folders otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from navsim_adapter.cli import COMMANDS, main
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.trajectories import read_trajectories
from tests.navsim_adapter.tiny import write_log, write_maps


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_maps(tmp_path)
    write_log(tmp_path)
    return tmp_path


def _run(*arguments: Any) -> int:
    return main([str(argument) for argument in arguments])


def test_cache_inspect_and_convert_say_where_they_wrote(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("cache", "--data", data, "--split", "mini", "--out", data / "c", "--workers", 1) == 0
    assert "2 scenes of mini in" in capsys.readouterr().out
    assert _run("inspect", data / "c", "--verify") == 0
    assert "all checksums right" in capsys.readouterr().out
    assert _run("inspect", data / "c", "--token", "0000000000000003") == 0
    assert "route: 4 lanes" in capsys.readouterr().out
    assert _run("convert", "--data", data, "--split", "mini", "--out", data / "s", "--max-scenes", 1) == 0
    assert "1 scene of mini in" in capsys.readouterr().out


def test_the_root_may_come_from_the_environment(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENSCENE_DATA_ROOT", str(data))
    assert _run("cache", "--split", "mini", "--out", data / "c", "--workers", 1) == 0


@pytest.mark.parametrize(
    ("prepare", "arguments", "message"),
    [
        ("nothing", ["--split", "minni"], "no such split (did you mean 'mini'?)"),
        ("nothing", ["--split", "mini", "--max-scenes", "0"], "--max-scenes: must be at least 1"),
        ("nothing", ["--split", "mini", "--workers", "0"], "--workers: must be at least 1, got 0"),
        ("nothing", ["--split", "mini", "--filter", "none.yaml"], "none.yaml: scene filter cannot be read"),
        ("no maps", ["--split", "mini"], "map index not found; put the nuPlan maps there or set NUPLAN_MAPS_ROOT"),
        ("cut log", ["--split", "mini"], "log-0.pkl: not a readable pickle"),
        ("no logs", ["--split", "mini"], "mini: no log files (*.pkl)"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    data: Path, capsys: pytest.CaptureFixture[str], prepare: str, arguments: list[str], message: str
) -> None:
    log = data / "navsim_logs" / "mini" / "log-0.pkl"
    if prepare == "no maps":
        (data / "maps" / "nuplan-maps-v1.0.json").unlink()
    elif prepare == "cut log":
        log.write_bytes(log.read_bytes()[:3000])
    elif prepare == "no logs":
        log.unlink()
    assert _run("cache", "--data", data, "--out", data / "c", "--workers", 1, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (data / "c" / "manifest.json").exists()
    assert not list((data / "c").rglob("*.cache")) if (data / "c").exists() else True


@pytest.mark.parametrize("out", ["afile", "afile/below"])
@pytest.mark.parametrize("command", ["cache", "convert", "synth"])
def test_what_the_system_refuses_is_one_line_with_its_path(
    data: Path, capsys: pytest.CaptureFixture[str], command: str, out: str
) -> None:
    (data / "afile").write_text("kept")
    source = [] if command == "synth" else ["--data", data, "--split", "mini"]
    assert _run(command, *source, "--out", data / out) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"navsim-adapter {command}: {data / 'afile'}")
    assert error.count("\n") == 1
    assert (data / "afile").read_text() == "kept"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--lapses", "nan", "--lapses: must be 0 to 100.0, got nan"),
        ("--lapses", "-3", "--lapses: must be 0 to 100.0, got -3.0"),
        ("--lapses", "inf", "--lapses: must be 0 to 100.0, got inf"),
        ("--seed", "-3", "--seed: must be at least 0, got -3"),
        ("--train", "-5", "--train: must be at least 0, got -5"),
        ("--workers", "0", "--workers: must be at least 1, got 0"),
        ("--train", "0", "--train, --validation, --test: all are 0; ask for one scene at least"),
    ],
)
def test_synth_checks_its_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, message: str
) -> None:
    assert _run("synth", "--out", tmp_path / "w", "--validation", 0, "--test", 0, option, value) == 2
    assert capsys.readouterr().err == f"navsim-adapter synth: {message}\n"
    assert not (tmp_path / "w").exists()


def test_a_reader_that_goes_away_ends_the_command_quietly(data: Path) -> None:
    assert _run("cache", "--data", data, "--split", "mini", "--out", data / "c", "--workers", 1) == 0
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "navsim_adapter.cli", "inspect", str(data / "c")]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_debug_shows_the_traceback(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("inspect", data, "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


def test_the_command_is_a_program_that_starts_without_heavy_imports() -> None:
    here = Path(__file__).resolve().parents[2]
    code = (
        "import sys; import navsim_adapter.cli\n"
        "print(sorted({'torch', 'datasets', 'pyogrio', 'numba', 'matplotlib', 'pandas'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(here)}
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert run.stdout.strip() == "[]"
    for command in ("convert", "cache", "score", "inspect"):
        assert COMMANDS[command].help.endswith(".")


# -- tables ------------------------------------------------------------------------------------------------------------


def _table(path: Path, **changes: Any) -> Path:
    content = {
        "token": np.array(["a", "b", "a", "b"]),
        "name": np.array(["x", "x", "y", "y"]),
        "poses": np.arange(4 * 8 * 3, dtype=np.float64).reshape(4, 8, 3),
    }
    np.savez(path, **{name: value for name, value in {**content, **changes}.items() if value is not None})
    return path


BAD_TABLES: list[tuple[dict[str, Any], str]] = [
    ({"poses": None}, "has no array poses"),
    ({"poses": np.zeros((4, 8, 2))}, r"poses have shape \(4, 8, 2\), expected \(4, T, 3\)"),
    ({"poses": np.zeros((3, 8, 3))}, r"poses have shape \(3, 8, 3\)"),
    ({"poses": np.zeros((4, 0, 3))}, "has 0 poses"),
    ({"poses": np.array([["a"]])}, "poses holds <U1, expected numbers"),
    ({"interval": np.array(["0.5", "0.5", "half", "0.5"])}, "interval holds <U4, expected numbers"),
    ({"size": np.array([8.0, np.nan, 8, 8]), "poses": np.zeros((32, 3))}, "size holds float64, expected whole numbers"),
    ({"name": np.array(["x"])}, r"name has shape \(1,\)"),
    ({"name": np.array(["x", "x", "x", "y"])}, "scene a has two trajectories named 'x'"),
    ({"token": np.array([], "U1")}, "token has shape"),
    ({"size": np.array([2, 2, 2, 2]), "poses": np.zeros((9, 3))}, r"must be \(sum of size = 8, 3\)"),
    ({"interval": np.array([0.5, 0.5, 0, 0.5])}, "at interval 0.0; give at least one, and seconds from 0.001 to 60"),
    ({"interval": np.array([0.5, 1e-6, 0.5, 0.5])}, "'x' of scene b: has 8 poses at interval 1e-06; "),
    ({"interval": np.array([0.5, 0.5, 500, 0.5])}, "'y' of scene a: has 8 poses at interval 500.0; "),
    ({"token": np.array(["a", None, "a", "b"], object)}, "token is saved as Python objects"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_TABLES)
def test_bad_tables_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_trajectories(_table(tmp_path / "t.npz", **changes))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_poses_that_are_no_numbers_are_named(tmp_path: Path, bad: float) -> None:
    poses = np.zeros((4, 8, 3))
    poses[2, 4, 1] = bad
    with pytest.raises(InputError, match="trajectory 'y' of scene a: poses contain NaN or infinity at step 4"):
        read_trajectories(_table(tmp_path / "t.npz", poses=poses))


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.npz").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"t\.npz: not a readable archive"):
        read_trajectories(tmp_path / "t.npz")
    with pytest.raises(InputError, match=r"none\.npz: "):
        read_trajectories(tmp_path / "none.npz")


def test_mixed_samplings_are_split(tmp_path: Path) -> None:
    poses = np.arange(8 * 3.0).reshape(8, 3)
    path = _table(tmp_path / "t.npz", poses=poses, size=np.array([1, 4, 1, 2]), interval=np.array([4, 1, 4, 0.5]))
    table = read_trajectories(path)
    assert [len(rows) for rows in table.poses] == [1, 4, 1, 2]
    np.testing.assert_array_equal(table.poses[3], poses[6:])
    assert table.interval.tolist() == [4, 1, 4, 0.5]


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["scor"], "score"),
        (["baseline", "humans", "--cache", "c", "--out", "b.npz"], "human"),
        (["cache", "--split", "mini", "--out", "c", "--wrokers", "2"], "--workers"),
    ],
)
def test_a_misspelt_word_is_one_line_with_the_word_that_was_meant(words, meant, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        _run(*words)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"did you mean '{meant}'?" in said


def test_a_table_that_is_not_there_is_no_damaged_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("score", "--trajectories", tmp_path / "t.npz", "--cache", tmp_path, "--out", tmp_path / "s.csv") == 2
    assert "t.npz: no such file" in capsys.readouterr().err
