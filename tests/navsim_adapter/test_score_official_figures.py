"""Official scores, from logs and maps alone, through the command line: flags equal, EP and score within 1e-6."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from navsim_adapter.cli import main
from tests.shared import SHARED

COMMITTED = Path(__file__).resolve().parents[1] / "data" / "navsim"
V1 = (
    "no_at_fault_collisions",
    "drivable_area_compliance",
    "ego_progress",
    "time_to_collision_within_bound",
    "comfort",
    "driving_direction_compliance",
    "score",
)
V2 = (
    "no_at_fault_collisions",
    "drivable_area_compliance",
    "driving_direction_compliance",
    "traffic_light_compliance",
    "ego_progress",
    "time_to_collision_within_bound",
    "lane_keeping",
    "history_comfort",
    "two_frame_extended_comfort",
    "score",
)
CONTINUOUS = ("ego_progress", "score")
TOLERANCE = 1e-6

SETS = [pytest.param(COMMITTED, id="committed")]
if SHARED is not None:
    SETS.append(pytest.param(SHARED / "navsim_quirks", id="quirks", marks=pytest.mark.slow))


def compare(root: Path, version: str, table: str, trajectories: str, out: Path, metric: str, columns) -> None:
    arguments = ["score", "--data", str(root), "--split", "mini", "--trajectories", str(root / trajectories)]
    assert main([*arguments, "--metric", metric, "--out", str(out)]) == 0
    ours = pd.read_csv(out).set_index(["token", "name"])
    official = pd.read_csv(root / table).set_index(["token", "name"])
    assert len(ours) == len(official)
    official = official.loc[ours.index]
    fragile = pd.read_csv(root / "fragile.csv")
    fragile = fragile[fragile.version == version]
    skipped = {(row.token, row.name_, row.column) for row in fragile.rename(columns={"name": "name_"}).itertuples()}
    wrong = []
    for column in columns:
        mine, theirs = ours[column].to_numpy(), official[column].to_numpy()
        limit = TOLERANCE if column in CONTINUOUS else 0.0
        equal = (np.abs(mine - theirs) <= limit) | (np.isnan(mine) & np.isnan(theirs))
        for token, name in ours.index[~equal]:
            if (token, name, column) not in skipped:
                wrong.append((token, name, column))
    assert not wrong, f"{len(wrong)} cells differ, first {wrong[:5]}"


@pytest.mark.parametrize("root", SETS)
def test_pdms(root: Path, tmp_path: Path) -> None:
    compare(root, "v1", "scores_v1.csv", "trajectories.npz", tmp_path / "scores.csv", "pdms", V1)


@pytest.mark.parametrize("root", SETS)
def test_epdms(root: Path, tmp_path: Path) -> None:
    compare(root, "v2", "scores_v2.csv", "trajectories.npz", tmp_path / "scores.csv", "epdms", V2)


@pytest.mark.skipif(SHARED is None, reason="the table of official code before the fix is not beside this clone")
def test_epdms_before_the_fix(tmp_path: Path) -> None:
    assert SHARED is not None
    root, basis = SHARED / "navsim_dev", "epdms-v2.2-before-2025-09-29"
    compare(root, "v2", "scores_v2_before_fix.csv", "trajectories.npz", tmp_path / "scores.csv", basis, V2)


@pytest.mark.slow
@pytest.mark.skipif(SHARED is None, reason="the set with other samplings is not beside this clone")
@pytest.mark.parametrize(("metric", "version", "columns"), [("pdms", "v1", V1), ("epdms", "v2", V2)])
def test_other_samplings(metric: str, version: str, columns, tmp_path: Path) -> None:
    assert SHARED is not None
    table = f"scores_{version}_sampled.csv"
    root = SHARED / "navsim_quirks"
    compare(root, version, table, "trajectories_sampled.npz", tmp_path / "scores.csv", metric, columns)
