"""Official figures in reactive traffic and of two stages, and what the official code cannot score, by command line."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from navsim_adapter.cli import main
from tests.shared import LAST_BIT_SCENE, SHARED, has_avx512, needs_shared

pytestmark = needs_shared
FLAGS = (
    "no_at_fault_collisions",
    "drivable_area_compliance",
    "driving_direction_compliance",
    "traffic_light_compliance",
    "time_to_collision_within_bound",
    "lane_keeping",
    "history_comfort",
    "two_frame_extended_comfort",
)
V1_FLAGS = (*FLAGS[:2], "time_to_collision_within_bound", "comfort", "driving_direction_compliance")
CONTINUOUS = ("ego_progress", "score")
TOLERANCE = 1e-6
WEIGHT_TOLERANCE = 1e-12


def _root(name: str) -> Path:
    assert SHARED is not None
    return SHARED / name


def _rows(path: Path, *key: str) -> dict[tuple[str, ...], dict[str, str]]:
    with open(path, newline="") as file:
        return {tuple(row[name] for name in key): row for row in csv.DictReader(file)}


def _score(data: Path, out: Path, *more: object, code: int = 0) -> None:
    assert main([str(word) for word in ("score", "--data", data, "--split", "mini", "--out", out, *more)]) == code


def _differences(
    ours: Mapping[tuple[str, ...], Mapping[str, str]],
    official: Mapping[tuple[str, ...], Mapping[str, str]],
    tolerance: Mapping[str, float],
) -> list[tuple[Any, ...]]:
    """Cells that differ, (key, column, ours, official); empty is NaN."""
    wrong: list[tuple[Any, ...]] = []
    for key, row in official.items():
        for column, limit in tolerance.items():
            mine, theirs = (float(cells[column] or "nan") for cells in (ours[key], row))
            same = abs(mine - theirs) <= limit or (np.isnan(mine) and np.isnan(theirs))
            if not same:
                wrong.append((key, column, mine, theirs))
    return wrong


def _tolerance(flags: Sequence[str]) -> dict[str, float]:
    return dict.fromkeys(flags, 0.0) | dict.fromkeys(CONTINUOUS, TOLERANCE)


def test_reactive_traffic(tmp_path: Path) -> None:
    root = _root("navsim_quirks")
    official = _rows(root / "scores_v2_reactive.csv", "token", "name")
    with np.load(root / "trajectories.npz") as table:
        keys = list(zip(table["token"].tolist(), table["name"].tolist()))
        chosen = [row for row, key in enumerate(keys) if key in official]
        np.savez(tmp_path / "t.npz", **{name: table[name][chosen] for name in ("token", "name", "poses")})
    out = tmp_path / "s.csv"
    _score(root, out, "--trajectories", tmp_path / "t.npz", "--metric", "epdms", "--traffic", "idm")
    ours = _rows(out, "token", "name")
    assert len(ours) == len(official) == 568
    wrong = _differences(ours, official, _tolerance(FLAGS))
    assert [cell for cell in wrong if has_avx512() or cell[0][0] != LAST_BIT_SCENE] == []


def test_two_stages_in_shards(tmp_path: Path) -> None:
    """Each entry by itself, put together again, is the official table; planners of one stage only are left out."""
    root = _root("navsim_dev")
    folder = root / "two_stage"
    tables = ("--trajectories", root / "trajectories.npz", "--second-stage-trajectories", folder / "trajectories.npz")
    out = tmp_path / "scores.csv"
    for index in (1, 2):
        _score(root, out, *tables, "--two-stage", folder, "--shard", f"{index}/2")
    ours, official = _rows(out, "token", "name"), _rows(folder / "scores_two_stage.csv", "token", "name")
    assert ours.keys() == official.keys()
    assert all(ours[key]["frame_type"] == row["frame_type"] for key, row in official.items())
    assert _differences(ours, official, {**_tolerance(FLAGS), "weight": WEIGHT_TOLERANCE}) == []
    ours = _rows(tmp_path / "scores_summary.csv", "name", "stage")
    official = _rows(folder / "summary_two_stage.csv", "name", "stage")
    assert ours.keys() == official.keys()
    assert len(ours) == 15
    assert _differences(ours, official, dict.fromkeys((*FLAGS, *CONTINUOUS), TOLERANCE)) == []


@pytest.mark.parametrize(
    ("metric", "traffic", "table", "failures"),
    [
        ("pdms", "log-replay", "scores_v1.csv", "crashes_scores_v1.csv"),
        ("epdms", "log-replay", "scores_v2.csv", "crashes_scores_v2.csv"),
        ("epdms", "idm", None, "crashes_scores_v2_reactive.csv"),
    ],
)
def test_what_the_official_code_cannot_score_is_a_line_and_no_number(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    metric: str,
    traffic: str,
    table: str | None,
    failures: str,
) -> None:
    root = _root("navsim_quirks") / "crashes"
    monkeypatch.setenv("NUPLAN_MAPS_ROOT", str(root.parent / "maps"))
    out = tmp_path / "s.csv"
    rows, code = root / "trajectories.npz", 0 if table else 2  # without official rows there is nothing to score
    _score(root, out, "--trajectories", rows, "--metric", metric, "--traffic", traffic, code=code)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("not scored: ")]
    failed = _rows(root / failures, "token", "name")
    without_cache = {token for token, name in failed if not name}
    ours = _rows(out, "token", "name")
    for (token, name), row in ours.items():
        has_score = token not in without_cache and (token, name) not in failed
        assert (row["score"] != "") == has_score
        assert has_score or list(row.values())[2:] == [""] * (len(row) - 2)
    tokens = {token for token, _ in failed}
    assert len(errors) == len(tokens)
    assert all(any(f"scene {token}" in line for line in errors) for token in tokens)
    if table:
        official = _rows(root / table, "token", "name")
        assert len(official) == 46
        assert _differences(ours, official, _tolerance(V1_FLAGS if metric == "pdms" else FLAGS)) == []
