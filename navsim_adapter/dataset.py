"""Scenes as an Arrow table (`datasets`), one row per scene: what a planner sees, and what the human did."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from navsim_adapter import __version__
from navsim_adapter.cache.build import HUMAN_POSES, human_future, relative_poses
from navsim_adapter.cache.folder import describe
from navsim_adapter.errors import InputError
from navsim_adapter.files import MANIFEST, begin, file_stamps, finish, only_writer, read_json, write_json
from navsim_adapter.root import DataRoot
from navsim_adapter.scenes import Scene, SceneFilter, absent, find_logs, find_scenes

if TYPE_CHECKING:
    from datasets import Features

CAMERAS = ("CAM_F0", "CAM_L0", "CAM_R0")
HISTORY = 4


def convert(
    root: DataRoot,
    split: str,
    chosen: SceneFilter,
    out: str | Path,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Write the scenes of a split as a `datasets` folder; returns the content of its `scenes.json`.

    A finished folder of the same inputs is left alone. Raises InputError for a folder of another split or filter,
    unreadable logs, an empty split and tokens that occur twice.
    """
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar

    out = Path(out)
    made_by = {
        "command": "navsim-adapter convert",
        "version": __version__,
        "split": split,
        "filter": describe(chosen),
        "data_root": str(root.path.resolve()),
    }
    logs = find_logs(root, split, chosen)
    found = {"inputs": file_stamps(logs)}
    if not begin(out, made_by, found):
        return dict(read_json(out / "scenes.json"))
    disable_progress_bar()
    with only_writer(out):
        rows = list(_rows(root, split, chosen, progress))
        for path in (out / MANIFEST, *out.glob("*.arrow")):  # of a table made anew
            path.unlink(missing_ok=True)
        Dataset.from_list(rows, features=features()).save_to_disk(str(out))
        content = {
            "split": split,
            "data_root": made_by["data_root"],
            "sensors": str((root.sensors / split).resolve()),
            "filter": made_by["filter"],
            "count": len(rows),
            "absent": absent(chosen, (path.stem for path in logs), {row["token"] for row in rows}),
        }
        write_json(out / "scenes.json", content)
        finish(out, {**made_by, **found})
    return content


def features() -> Features:
    """Column types of the table."""
    from datasets import Features, List, Value

    text, exact, single = Value("string"), Value("float64"), Value("float32")
    return Features(
        {
            "token": text,
            "log_name": text,
            "map": text,
            "split": text,
            "timestamp_us": Value("int64"),
            "command": text,
            "velocity": List(single, length=2),
            "acceleration": List(single, length=2),
            "history": List(List(exact, length=3), length=HISTORY),
            "history_velocity": List(List(single, length=2), length=HISTORY),
            "history_acceleration": List(List(single, length=2), length=HISTORY),
            "cameras": dict.fromkeys(CAMERAS, text),
            "future": List(List(exact)),
        }
    )


def scene_row(scene: Scene) -> dict[str, Any]:
    """One row: poses in the ego frame now (x, y, heading), velocities along the axes of their own frame."""
    now, past = scene.now, scene.past[-HISTORY:]
    if len(past) < HISTORY:
        raise InputError(f"scene {scene.token}: has {len(past)} history frames, not {HISTORY}; change the filter")
    future = human_future(scene)
    history = relative_poses(now.ego_pose, np.array([frame.ego_pose for frame in past]))
    history[-1] = 0.0  # the current pose in its own frame, free of rounding
    return {
        "token": scene.token,
        "log_name": now.log_name,
        "map": now.map_name,
        "split": scene.split,
        "timestamp_us": now.time_us,
        "command": now.command,
        "velocity": now.velocity,
        "acceleration": now.acceleration,
        "history": history,
        "history_velocity": np.array([frame.velocity for frame in past]),
        "history_acceleration": np.array([frame.acceleration for frame in past]),
        "cameras": {camera: now.cameras.get(camera) for camera in CAMERAS},
        "future": None if future is None else future[:HUMAN_POSES],
    }


def _rows(
    root: DataRoot, split: str, chosen: SceneFilter, progress: Callable[[int], None] | None
) -> Iterator[dict[str, Any]]:
    logs: dict[str, str] = {}
    for scene in find_scenes(root, split, chosen):
        if scene.token in logs:
            where = f"logs {logs[scene.token]} and {scene.now.log_name}"
            raise InputError(f"token {scene.token}: occurs twice, in {where}; remove one of them")
        logs[scene.token] = scene.now.log_name
        if progress:
            progress(len(logs))
        yield scene_row(scene)
