"""A tiny world to score: three logs, four planners, and the command line on them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from navsim_adapter.cli import main
from tests.navsim_adapter.tiny import frame, write_frames, write_log, write_maps

LOGS = ("log-0", "log-1", "log-2")
TOKENS = [f"{log}{index:015d}" for log in (0, 1, 2) for index in (3, 4)]


def write_world(root: Path) -> Path:
    """Three logs of two scenes half a second apart, and 24 trajectories of four planners."""
    write_maps(root)
    for log in LOGS:
        write_log(root, log)
    write_table(root / "t.npz")
    return root


def broken_world(root: Path) -> Path:
    """A log whose route the map lacks, beside a good one."""
    write_maps(root)
    write_log(root, "log-0")
    write_frames(root, [frame(index, "log-1", roadblock_ids=["77"]) for index in range(15)], "log-1")
    return root


def write_table(path: Path, tokens: list[str] = TOKENS, **changes: Any) -> Path:
    speeds = {"slow": 3.0, "steady": 10.0, "swerve": 9.0, "stop": 0.0}
    rows = [(token, name) for name in speeds for token in tokens]
    poses = np.zeros((len(rows), 8, 3))
    for row, (token, name) in enumerate(rows):
        poses[row, :, 0] = 0.5 * np.arange(1, 9) * speeds[name]
        if name == "swerve":
            poses[row, :, 1] = 0.4 * np.arange(1, 9) * (1 if token.endswith("3") else -1)
    content = {"token": np.array([token for token, _ in rows]), "name": np.array([name for _, name in rows])}
    np.savez(path, **{**content, "poses": poses, **changes})
    return path


def run(*arguments: Any) -> int:
    return main([str(argument) for argument in arguments])


def score(data: Path, out: Path | str, *more: Any, table: Path | None = None) -> int:
    table = table or data / "t.npz"
    return run("score", "--data", data, "--split", "mini", "--trajectories", table, "--out", out, *more)


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def facts_of(path: Path) -> dict[str, Any]:
    return json.loads(Path(f"{path}.json").read_text())
