"""Sixty seeded SIGKILLs at some moment of a command: after a restart the files are those of an undisturbed run."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.faults.processes import survives_kills
from tests.navsim_adapter.score_world import run, write_world
from tests.small_loop import small_steps

pytestmark = pytest.mark.faults

KILLS = 10  # a command; six commands


def line_of(loop: Path, *words: str) -> list[str]:
    return next(line for line in small_steps(loop) if line[: len(words)] == list(words))


def remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def test_training_and_checkpointing(loop: Path, tmp_path: Path) -> None:
    out = tmp_path / "dipole"
    line = next(line for line in small_steps(loop) if line[1] == "fit" and line[5] == str(loop / "dipole"))
    line = [
        *line,
        "--out",
        out,
        "--trainer.max_steps",
        "12",
        "--checkpoint_every",
        "1",
        "--trainer.log_every_n_steps",
        "1",
    ]
    assert survives_kills(line, out, KILLS, 0, lambda: remove(out)) >= KILLS // 2


def test_training_with_loader_workers(loop: Path, tmp_path: Path) -> None:
    out = tmp_path / "imitation"
    line = next(line for line in small_steps(loop) if line[1] == "fit" and line[5] == str(loop / "imitation"))
    line = [*line, "--out", out, "--checkpoint_every", "1", "--data.workers", "1"]
    assert survives_kills(line, out, KILLS, 1, lambda: remove(out)) >= KILLS // 2


def test_collection(loop: Path, tmp_path: Path) -> None:
    from dipole_vla.commands import parts

    out = tmp_path / "candidates"
    line = [*line_of(loop, "dipole-vla", "collect"), "--out", out]
    whole, parts.PART = parts.PART, 2  # many parts on twelve scenes
    try:
        assert survives_kills(line, out, KILLS, 2, lambda: remove(out)) >= KILLS // 2
    finally:
        parts.PART = whole


def test_cache_building(loop: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    line = [*line_of(loop, "navsim-adapter", "cache"), "--out", out]
    assert survives_kills(line, out, KILLS, 3, lambda: remove(out)) >= KILLS // 2


def test_scoring(loop: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    table, out = tmp_path / "human.npz", tmp_path / "scores.csv"
    baseline = ["baseline", "human", "--cache", str(loop / "cache/train"), "--out", str(table)]
    subprocess.run([sys.executable, "-m", "navsim_adapter.cli", *baseline], check=True, capture_output=True)
    line = ["navsim-adapter", "score", "--cache", loop / "cache/train", "--trajectories", table, "--out", out]

    def clear() -> None:
        for path in tmp_path.glob("scores*"):
            remove(path) if path.is_dir() else path.unlink()

    assert survives_kills(line, out, KILLS, 4, clear) >= KILLS // 2
    assert not (tmp_path / "scores.csv.parts").exists()


def test_scoring_a_vocabulary(tmp_path: Path) -> None:
    root, out = write_world(tmp_path / "world"), tmp_path / "table"
    assert run("cache", "--data", root, "--split", "mini", "--workers", 1, "--out", root / "cache") == 0
    along = np.linspace(0.0, 14.0, 4000)[:, None] * 0.5 * np.arange(1, 9)
    np.save(root / "v.npy", np.stack([along, 0.0 * along, 0.0 * along], axis=2))
    line = ["navsim-adapter", "vocabulary", "--cache", root / "cache", "--vocabulary", root / "v.npy", "--out", out]
    assert survives_kills(line, out, KILLS, 5, lambda: remove(out)) >= KILLS // 2
