"""Scenes as an Arrow table (`datasets`), one row per scene: what a planner sees, and what the human did."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from navsim_adapter import __version__
from navsim_adapter.cache.build import HUMAN_POSES, human_future, relative_poses
from navsim_adapter.cache.folder import describe
from navsim_adapter.foundation.errors import InputError, did_you_mean
from navsim_adapter.foundation.files import MANIFEST, file_stamps, finish, making, read_json, write_json
from navsim_adapter.foundation.option_checks import check_range
from navsim_adapter.metric.history import HISTORY
from navsim_adapter.nuplan.root import DataRoot
from navsim_adapter.nuplan.scenes import Scene, SceneFilter, absent, find_logs, find_scenes
from navsim_adapter.nuplan.second_stage import PICTURES, SPLIT, read_second_stage, second_stage_files
from navsim_adapter.trajectories import DEFAULT_INTERVAL

if TYPE_CHECKING:
    from datasets import Features

CAMERAS = ("CAM_F0", "CAM_L0", "CAM_R0", "CAM_L1", "CAM_R1", "CAM_L2", "CAM_R2", "CAM_B0")


@dataclass(frozen=True)
class Contents:
    """How much of a scene a table holds: whose pictures' paths, and how many seconds of the human's drive.

    InputError for what NAVSIM does not have.
    """

    cameras: tuple[str, ...] = CAMERAS[:3]
    future: float = HUMAN_POSES * DEFAULT_INTERVAL

    def __post_init__(self) -> None:
        unknown = next((name for name in self.cameras if name not in CAMERAS), None)
        if unknown is not None:
            raise InputError(
                f"--cameras: {unknown!r} is none of NAVSIM's{did_you_mean(unknown, list(CAMERAS))}; they are "
                f"{', '.join(CAMERAS)}"
            )
        check_range("--future", self.future, DEFAULT_INTERVAL, 60)

    @property
    def poses(self) -> int:
        """Frames after now."""
        return math.ceil(self.future / DEFAULT_INTERVAL - 1e-6)

    def record(self) -> dict[str, Any]:
        """What differs from the default, in which folders of before were made."""
        other = Contents()
        found = {"cameras": list(self.cameras), "future": self.future}
        return {name: value for name, value in found.items() if getattr(self, name) != getattr(other, name)}


DEFAULT = Contents()


def convert(
    root: DataRoot,
    split: str,
    chosen: SceneFilter,
    out: str | Path,
    progress: Callable[[int], None] | None = None,
    contents: Contents = DEFAULT,
) -> dict[str, Any]:
    """Write the scenes of a split as a `datasets` folder; returns the content of its `scenes.json`.

    chosen: which scenes; `SceneFilter()` takes all that have history and future. Scenes whose log ends before the
        future that is asked for are none.
    progress: called with the number of scenes written.
    contents: which cameras, and how much of the human's drive.
    A finished folder of the same inputs is left alone. A scene in which a planner would see or learn NaN, or frames out
    of order, is left out and listed as skipped. Raises InputError for a folder of another split or filter, unreadable
    logs, an empty split, one without a scene that is left, and tokens that occur twice.
    """
    if contents.future > DEFAULT.future:
        chosen = replace(chosen, num_future_frames=max(chosen.num_future_frames, contents.poses))
    logs = find_logs(root, split, chosen)
    made_by = {
        "command": "navsim-adapter convert",
        "version": __version__,
        "split": split,
        "filter": describe(chosen),
        "data_root": str(root.path.resolve()),
        **contents.record(),
    }

    def about(tokens: set[str], names: set[str]) -> dict[str, Any]:
        return {
            "split": split,
            "data_root": made_by["data_root"],
            "sensors": str((root.sensors / split).resolve()),
            "filter": made_by["filter"],
            "absent": absent(chosen, {path.stem for path in logs} | names, tokens),
        }

    return _write(Path(out), made_by, logs, _logged(root, split, chosen), about, contents, progress)


def convert_second_stage(
    folder: str | Path,
    out: str | Path,
    progress: Callable[[int], None] | None = None,
    contents: Contents = DEFAULT,
) -> dict[str, Any]:
    """The same of every rendered scene of a two-stage folder; they have no human future, and pictures of their own."""
    files = second_stage_files(folder)
    place = str(Path(folder).resolve())
    made_by = {"command": "navsim-adapter convert --two-stage", "version": __version__, "two_stage": place}
    made_by |= contents.record()

    def about(tokens: set[str], names: set[str]) -> dict[str, Any]:
        return {
            "split": SPLIT,
            "data_root": place,
            "sensors": str((Path(folder) / PICTURES).resolve()),
            "filter": {},
            "absent": {},
        }

    scenes = ((f"file {path.name}", read_second_stage(path)) for path in files)
    return _write(Path(out), made_by, files, scenes, about, contents, progress)


def features(cameras: Sequence[str] = DEFAULT.cameras) -> Features:
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
            "cameras": dict.fromkeys(cameras, text),
            "future": List(List(exact)),
        }
    )


def scene_row(scene: Scene, contents: Contents = DEFAULT) -> dict[str, Any]:
    """One row: poses in the ego frame now (x, y, heading), velocities along the axes of their own frame."""
    now, past = scene.now, scene.past[-HISTORY:]
    if len(past) < HISTORY:
        raise InputError(f"scene {scene.token}: has {len(past)} history frames, not {HISTORY}; change the filter")
    future = human_future(scene, contents.poses)
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
        "cameras": {camera: now.cameras.get(camera) for camera in contents.cameras},
        "future": future,
    }


def _write(
    out: Path,
    made_by: Mapping[str, Any],
    files: Sequence[Path],
    scenes: Iterable[tuple[str, Scene]],
    about: Callable[[set[str], set[str]], dict[str, Any]],
    contents: Contents,
    progress: Callable[[int], None] | None,
) -> dict[str, Any]:
    """The table, unless it is there, made of the same `files`. about: tokens, log names -> content of `scenes.json`."""
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar

    found = {"inputs": file_stamps(files)}
    disable_progress_bar()
    with making(out, made_by, found) as is_open:
        if not is_open:
            return dict(read_json(out / "scenes.json"))
        skipped: list[dict[str, str]] = []
        rows = list(_rows(scenes, skipped, contents, progress))
        if skipped and not rows:
            raise InputError(f"none of {len(skipped)} scenes can be converted; first: {skipped[0]['reason']}")
        for path in (out / MANIFEST, *out.glob("*.arrow")):  # of a table made again
            path.unlink(missing_ok=True)
        Dataset.from_list(rows, features=features(contents.cameras)).save_to_disk(str(out))
        tokens = {row["token"] for row in rows} | {item["token"] for item in skipped}
        names = {row["log_name"] for row in rows} | {item["log_name"] for item in skipped}
        content = {**about(tokens, names), "count": len(rows), "skipped": skipped}
        write_json(out / "scenes.json", content)
        finish(out, {**made_by, **found})
    return content


def _logged(root: DataRoot, split: str, chosen: SceneFilter) -> Iterator[tuple[str, Scene]]:
    for scene in find_scenes(root, split, chosen):
        yield f"log {scene.now.log_name}", scene


def _rows(
    scenes: Iterable[tuple[str, Scene]],
    skipped: list[dict[str, str]],
    contents: Contents,
    progress: Callable[[int], None] | None,
) -> Iterator[dict[str, Any]]:
    """scenes: where each comes from, for messages, and the scene.  skipped: gets the scenes that have no row."""
    sources: dict[str, str] = {}
    for source, scene in scenes:
        if scene.token in sources:
            raise InputError(
                f"token {scene.token}: occurs twice, in {sources[scene.token]} and {source}; remove one of them"
            )
        sources[scene.token] = source
        if progress:
            progress(len(sources))
        problem = _problem(scene)
        if problem:
            reason = f"scene {scene.token} of {scene.now.log_name}: {problem}"
            skipped.append({"token": scene.token, "log_name": scene.now.log_name, "reason": reason})
        else:
            yield scene_row(scene, contents)


def _problem(scene: Scene) -> str | None:
    """Why a scene is nothing to plan or learn from."""
    blind = [frame.token for frame in scene.past[-HISTORY:] if not frame.has_motion]
    lost = f"frame {blind[0]}: the ego's speed or acceleration is NaN or infinite" if blind else None
    return scene.problem or lost
