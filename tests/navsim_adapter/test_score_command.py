"""`navsim-adapter score` on a tiny world: what a result says, whatever the traffic, and the devkit's layout."""

from __future__ import annotations

import csv
from pathlib import Path

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
from tests.navsim_adapter.tiny import write_log, write_maps


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("traffic", ["log-replay", "constant-velocity", "idm"])
def test_every_traffic_scores_every_row_and_says_so(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], traffic: str
) -> None:
    out = tmp_path / "s.csv"
    assert score(data, out, "--metric", "epdms", "--traffic", traffic) == 0
    assert f"24 of 24 trajectories scored with epdms in {out} (epdms-v2.2, {traffic})" in capsys.readouterr().out
    rows = rows_of(out)
    with np.load(data / "t.npz") as table:
        wanted = list(zip(table["token"].tolist(), table["name"].tolist()))
    assert [(row["token"], row["name"]) for row in rows] == wanted
    for row in rows:  # the second scene of a log has the first before it
        assert (row["two_frame_extended_comfort"] == "") == row["token"].endswith("3")
        assert 0 <= float(row["score"]) <= 1
    swerves = [row["two_frame_extended_comfort"] for row in rows if row["name"] == "swerve"]
    assert swerves == ["", "0.0"] * 3
    facts = facts_of(out)
    assert (facts["metric"], facts["traffic"], facts["human_filter"]) == ("epdms-v2.2", traffic, True)
    assert (facts["split"], facts["data_root"]) == ("mini", str(data.resolve()))
    assert (facts["scenes"], facts["rows"], facts["scored"], facts["not_scored"]) == (6, 24, 24, [])


def test_the_means_are_those_of_the_rows(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "s.csv"
    assert score(data, out, "--metric", "epdms") == 0
    shown = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if " scenes " in line}
    assert list(shown) == ["slow", "steady", "swerve", "stop"]
    for name, (_, count, _, mean, *_, comfort) in shown.items():
        rows = [row for row in rows_of(out) if row["name"] == name]
        assert (int(count), float(mean)) == (6, round(100 * np.mean([float(row["score"]) for row in rows]), 1))
        paired = [float(row["two_frame_extended_comfort"]) for row in rows if row["two_frame_extended_comfort"]]
        assert float(comfort) == round(100 * np.mean(paired), 1)


def test_plans_that_end_too_early_are_remarked_on(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(tmp_path / "t.npz", poses=np.ones((24, 3, 3)))
    assert score(data, tmp_path / "s.csv", table=table) == 0
    assert "24 of 24 trajectories" in (said := capsys.readouterr().err)
    assert "1.5 s" in said


def test_pdms_knows_one_traffic(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score(data, tmp_path / "s.csv", "--traffic", "idm") == 2
    assert "--traffic idm: PDMS v1.1 knows log-replay only" in capsys.readouterr().err
    assert score(data, tmp_path / "s.csv", "--traffic", "log-replay") == 0
    assert facts_of(tmp_path / "s.csv")["human_filter"] is False


def test_caches_workers_and_threads_change_nothing(data: Path, tmp_path: Path) -> None:
    assert run("cache", "--data", data, "--split", "mini", "--out", tmp_path / "cache", "--workers", 1) == 0
    plain, cached, many = (tmp_path / f"{name}.csv" for name in ("plain", "cached", "many"))
    arguments = ("--metric", "epdms", "--traffic", "idm")
    assert score(data, plain, *arguments) == 0
    trajectories = ("--trajectories", data / "t.npz", *arguments)
    assert run("score", "--cache", tmp_path / "cache", *trajectories, "--out", cached) == 0
    assert run("score", "--cache", tmp_path / "cache", *trajectories, "--out", many, "--threads", 3) == 0
    assert plain.read_bytes() == cached.read_bytes() == many.read_bytes()


def test_epdms_needs_eight_frames_after_and_pdms_ten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place, frames in (("long", 14), ("short", 12)):
        write_maps(tmp_path / place)
        write_log(tmp_path / place, "log-0", frames=frames)
    table = write_table(tmp_path / "t.npz", [f"0{3:015d}"])
    for place in ("long", "short"):
        assert score(tmp_path / place, tmp_path / f"{place}.csv", "--metric", "epdms", table=table) == 0
    assert rows_of(tmp_path / "short.csv") == rows_of(tmp_path / "long.csv")
    assert score(tmp_path / "short", tmp_path / "p.csv", table=table) == 2
    assert "needs 3 frames before, 10 after (8 for EPDMS)" in capsys.readouterr().err


def test_official_layout_of_one_planner_is_one_file(tmp_path: Path) -> None:
    root, out = broken_world(tmp_path), tmp_path / "s.csv"
    names = np.full(16, "planner")
    tokens = np.array(TOKENS[:4])
    table = write_table(tmp_path / "t.npz", TOKENS[:4], token=tokens, name=names[:4], poses=_steady(4))
    assert score(root, out, "--format", "official", table=table) == 0
    header, *lines = csv.reader(out.open())
    assert header == [
        "", "token", "valid", "no_at_fault_collisions", "drivable_area_compliance", "ego_progress",
        "time_to_collision_within_bound", "comfort", "driving_direction_compliance", "score",
    ]  # fmt: skip
    assert [line[:3] for line in lines] == [
        *([str(place), token, str(place < 2)] for place, token in enumerate(TOKENS[:4])),
        ["4", "average", "False"],
    ]
    assert all(cell == "" for line in lines[2:4] for cell in line[3:])
    figures = np.array([[float(cell) for cell in line[3:]] for line in (lines[0], lines[1], lines[4])])
    np.testing.assert_allclose(figures[2], figures[:2].mean(axis=0), rtol=1e-15)


def test_official_layout_of_several_planners_is_a_file_each(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.csv"
    assert score(data, out, "--metric", "epdms", "--format", "official") == 0
    names = [f"s_{name}.csv" for name in ("slow", "steady", "swerve", "stop")]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "s.csv.json"])
    header, *lines = csv.reader((tmp_path / "s_slow.csv").open())
    assert header[3:6] == ["no_at_fault_collisions", "drivable_area_compliance", "driving_direction_compliance"]
    assert header[-2:] == ["two_frame_extended_comfort", "score"]
    assert lines[-1][1:3] == ["average_all_frames", "True"]
    comfort = [float(line[-2]) for line in lines[:-1] if line[-2]]
    assert len(comfort) == 3
    assert float(lines[-1][-2]) == pytest.approx(np.mean(comfort))
    assert set(facts_of(out)["files"]) == set(names)


def _steady(count: int) -> np.ndarray:
    poses = np.zeros((count, 8, 3))
    poses[:, :, 0] = 5.0 * np.arange(1, 9)
    return poses
