"""`navsim-adapter closed-loop` from the command line: what it writes, that it resumes, what it refuses."""

from __future__ import annotations

import json
import shutil

import pyarrow.parquet as pq
import pytest
from PIL import Image

from navsim_adapter.cli import main
from navsim_adapter.closed_loop import drivers, film
from navsim_adapter.closed_loop.run import read_drive
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import verify

LOGS = 3


def command(world, out, driver="constant_velocity", *more):
    return main(["closed-loop", "--world", str(world), "--driver", driver, "--out", str(out), *more])


@pytest.fixture(scope="module", autouse=True)
def _short_films():
    """A picture a second: drawing five would be most of what these tests take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(film, "EVERY", 10)
        yield


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("driven") / "out"
    assert command(world, out, "constant_velocity", "--seed", "0", "1") == 0
    return out


def test_what_a_run_writes(finished, capsys):
    verify(finished)
    table = pq.read_table(finished / "drives.parquet").to_pylist()
    summary = json.loads((finished / "summary.json").read_text())
    assert [row["seed"] for row in table] == [0, 1] * LOGS
    assert len({row["log"] for row in table}) == summary["logs"] == LOGS
    assert summary["figures"]["score"]["mean"] == pytest.approx(sum(row["score"] for row in table) / len(table))
    for row in table:
        found, own = read_drive(finished / "drives" / f"{row['log']}_{row['seed']}.npz")
        assert own == row
        assert len(found.states) == 81
        assert len(found.paths) == 16
        is_over = row["at_fault_collision"] or row["off_road"]
        assert row["score"] == (0 if is_over else row["progress"])
        assert row["progress"] == pytest.approx(min(row["metres"] / row["metres_human"], 1))
    page = (finished / "index.html").read_text()
    films = sorted((finished / "films").iterdir())
    assert page.count("data:image/webp") == len(films) == LOGS
    assert Image.open(films[0]).n_frames == 9


def test_a_finished_folder_is_left_alone_and_another_run_is_refused(world, finished, capsys):
    before = (finished / "manifest.json").stat().st_mtime_ns
    assert command(world, finished, "constant_velocity", "--seed", "0", "1") == 0
    assert (finished / "manifest.json").stat().st_mtime_ns == before
    for more in (["--seed", "0"], ["--seed", "0", "1", "--traffic", "log-replay"]):
        assert command(world, finished, "constant_velocity", *more) == 2
    assert command(world, finished, "pdm_closed", "--seed", "0", "1") == 2
    assert "driver: this folder was made with 'constant_velocity'" in capsys.readouterr().err


def test_a_run_whose_driver_dies_keeps_its_drives_and_resumes_to_the_same_bytes(
    world, finished, tmp_path, monkeypatch, capsys
):
    healthy, plans = drivers.PLANNERS["constant_velocity"], []

    def dying(view):
        plans.append(view)
        if len(plans) > 40:  # in the first log's third drive, had it one; so in the second log's first
            raise InputError("--driver: gone")
        return healthy(view)

    monkeypatch.setitem(drivers.PLANNERS, "constant_velocity", dying)
    assert command(world, tmp_path / "out", "constant_velocity", "--seed", "0", "1") == 2
    assert capsys.readouterr().err.endswith("--driver: gone\n")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "drives").iterdir()}
    assert len(kept) == 2
    monkeypatch.setitem(drivers.PLANNERS, "constant_velocity", healthy)
    assert command(world, tmp_path / "out", "constant_velocity", "--seed", "0", "1") == 0
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    for name in ("drives.parquet", "summary.json", "index.html", "manifest.json"):
        assert (tmp_path / "out" / name).read_bytes() == (finished / name).read_bytes()


def test_beside_another_driver_differences_are_paired(world, finished, tmp_path, capsys):
    more = ("--seed", "0", "--beside", str(finished))
    assert command(world, tmp_path / "out", "stand_still", *more) == 0
    assert "score minus constant_velocity's" in capsys.readouterr().out
    other = json.loads((tmp_path / "out" / "summary.json").read_text())["other"]
    rows = [pq.read_table(out / "drives.parquet").to_pylist() for out in (tmp_path / "out", finished)]
    theirs = {row["log"]: row["score"] for row in rows[1] if row["seed"] == 0}
    gain = sum(row["score"] - theirs[row["log"]] for row in rows[0]) / LOGS
    assert other["gain"]["score"]["mean"] == pytest.approx(gain)
    both = Image.open(next((tmp_path / "out" / "films").iterdir()))
    assert both.height == 2 * Image.open(next((finished / "films").iterdir())).height


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--seed", "2"], "missing; --beside must hold every drive"),
        (["--traffic", "log-replay"], "traffic: it was driven with 'idm', this run with 'log-replay'"),
    ],
)
def test_what_cannot_be_paired_is_one_line(world, finished, tmp_path, capsys, more, said):
    assert command(world, tmp_path / "out", "stand_still", "--beside", str(finished), "--scenes", "1", *more) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_several_processes_drive_the_same(world, finished, tmp_path):
    assert command(world, tmp_path / "out", "constant_velocity", "--seed", "0", "1", "--workers", "2") == 0
    for path in (finished / "drives").iterdir():
        assert (tmp_path / "out" / "drives" / path.name).read_bytes() == path.read_bytes()
    assert (tmp_path / "out" / "summary.json").read_bytes() == (finished / "summary.json").read_bytes()


def test_the_human_makes_the_human_s_progress(world, tmp_path):
    assert command(world, tmp_path / "out", "human", "--scenes", "2") == 0
    rows = pq.read_table(tmp_path / "out" / "drives.parquet").to_pylist()
    assert len(rows) == 2
    assert all(row["progress"] == 1 and row["metres"] == row["metres_human"] for row in rows)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--seconds", "7"], "--seconds: must be 8.0 to 20.0"),
        (["--seconds", "nan"], "--seconds"),
        (["--replan", "0"], "--replan"),
        (["--seed", "-1"], "--seed"),
        (["--scenes", "0"], "--scenes"),
        (["--split", "tset"], "has no split 'tset' (did you mean 'test'?)"),
        (["--driver", "pdm_close"], "did you mean 'pdm_closed'?"),
        (["--driver", "127.0.0.1:1"], "no driver answers there"),
    ],
)
def test_a_wrong_option_is_one_line(world, tmp_path, capsys, more, said):
    assert command(world, tmp_path / "out", "human", *more) == 2
    problem = capsys.readouterr().err
    assert said in problem
    assert problem.count("\n") == 1
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*.npz"))


def without_record(record):
    record.unlink()


def of_another_version(record):
    record.write_text(record.read_text().replace('"version": 1', '"version": 0'))


def of_another_seed(record):
    record.write_text(record.read_text().replace('"seed": 7', '"seed": 8'))


def of_another_human(record):
    record.write_text(record.read_text().replace('"lapses": 2.4', '"lapses": 9.9'))


def damaged(record):
    record.write_text("{")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_record, "has no synthetic.json"),
        (of_another_version, "version: made by version 0"),
        (of_another_seed, "missing, though synthetic.json says"),
        (of_another_human, "is not the log that synthetic.json gives"),
        (damaged, "cannot be read as JSON"),
    ],
)
def test_a_world_that_cannot_be_rendered_is_one_line(world, tmp_path, capsys, change, said):
    copy = tmp_path / "world"
    shutil.copytree(world, copy)
    change(copy / "synthetic.json")
    assert command(copy, tmp_path / "out", "human") == 2
    problem = capsys.readouterr().err
    assert said in problem
    assert problem.count("\n") == 1


def test_a_folder_of_somebody_else_is_refused(world, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert command(world, tmp_path, "human") == 2
    assert "holds files of something else" in capsys.readouterr().err
