"""Caches with the official builder's memory (metric 10.3), against official tables made with one builder a log."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from navsim_adapter.cli import main
from navsim_adapter.foundation.files import read_json
from tests.shared import SHARED, needs_shared

pytestmark = [needs_shared, pytest.mark.slow]

CARRIED = (SHARED or Path()) / "navsim_carried"
CACHE = ["cache", "--data", str(CARRIED), "--workers", "1"]
SUMMED = ["no_at_fault_collisions", "ego_progress", "two_frame_extended_comfort", "score"]


def run(*arguments: object) -> None:
    assert main([*map(str, arguments)]) == 0


def differing(ours: Path, official: Path, keys: list[str]) -> list[tuple]:
    """Cells of columns that both tables have and that are more than 1e-6 apart."""
    mine, theirs = pd.read_csv(ours).set_index(keys), pd.read_csv(official).set_index(keys)
    assert len(mine) == len(theirs)
    columns = [name for name in mine.columns if name in theirs.columns and name not in ("frame_type", "weight")]
    assert "score" in columns
    mine, theirs = mine[columns], theirs.loc[mine.index, columns]
    wrong = ((mine - theirs).abs() > 1e-6) | (mine.isna() != theirs.isna())
    return list(wrong.stack()[lambda cells: cells].index)


@pytest.mark.parametrize(("memory", "suffix"), [("none", ""), ("log", "_carried")])
def test_both_official_answers(tmp_path: Path, memory: str, suffix: str) -> None:
    cache = tmp_path / "cache"
    run(*CACHE, "--split", "mini", "--reference-memory", memory, "--out", cache)
    assert read_json(cache / "manifest.json")["made_by"].get("reference_memory", "none") == memory
    for metric, version in (("pdms", "v1"), ("epdms", "v2")):
        out = tmp_path / f"{metric}.csv"
        trajectories = CARRIED / "trajectories.npz"
        run("score", "--cache", cache, "--trajectories", trajectories, "--metric", metric, "--out", out)
        assert differing(out, CARRIED / f"scores_{version}{suffix}.csv", ["token", "name"]) == []


def test_both_official_answers_in_two_stages(tmp_path: Path) -> None:
    """One planner a log meets its mapped scenes in time, then the rendered ones by file name."""
    folder = CARRIED / "two_stage"
    entries = json.loads((folder / "mapping.json").read_text())
    tokens = [token for now, before, _ in entries for token in (now, before)]
    (tmp_path / "filter.yaml").write_text("\n".join(["frame_interval: 1", "tokens:", *(f"- '{t}'" for t in tokens)]))
    first, second = tmp_path / "first", tmp_path / "second"
    memory = ("--reference-memory", "log")
    run(*CACHE, "--split", "mini", "--filter", tmp_path / "filter.yaml", *memory, "--out", first)
    run(*CACHE, "--two-stage", folder, *memory, "--first-stage", first, "--out", second)
    plans = ("--trajectories", CARRIED / "trajectories.npz", "--second-stage-trajectories", folder / "trajectories.npz")
    out = tmp_path / "carried.csv"
    run("score", "--cache", first, "--second-stage-cache", second, "--two-stage", folder, *plans, "--out", out)
    assert differing(out, folder / "scores_two_stage_carried.csv", ["token", "name"]) == []
    summary = tmp_path / "carried_summary.csv"
    assert differing(summary, folder / "summary_two_stage_carried.csv", ["name", "stage"]) == []


def test_a_cache_without_memory_is_continued_by_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(*CACHE, "--split", "mini", "--out", tmp_path / "first")
    rendered = ["--two-stage", str(CARRIED / "two_stage"), "--out", str(tmp_path / "second")]
    log = ["--reference-memory", "log", "--first-stage", str(tmp_path / "first")]
    assert main([*CACHE, *rendered, *log]) == 2
    assert "--reference-memory log" in capsys.readouterr().err
    assert main([*CACHE, *rendered, *log[:2]]) == 2
    assert "--first-stage" in capsys.readouterr().err
