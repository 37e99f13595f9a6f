"""Scenes as an Arrow table (`datasets`), one row per scene: what a planner sees, and what the human did."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
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
from navsim_adapter.foundation.words import counted
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
    """How much of a scene a table holds: whose pictures' paths, and how much of the human's drive.

    cameras: by name. future: seconds of the drive. interval: seconds between its poses, 0.5 in NAVSIM's logs.
    """

    cameras: tuple[str, ...] = CAMERAS[:3]
    future: float = HUMAN_POSES * DEFAULT_INTERVAL
    interval: float = DEFAULT_INTERVAL

    def __post_init__(self) -> None:
        check_range("--future", self.future, self.interval, 60)
        check_range("--interval", self.interval, 0.01, 2)

    @property
    def poses(self) -> int:
        """Of the human's drive: as few as last so long."""
        return math.ceil(self.future / self.interval - 1e-6)

    @property
    def columns(self) -> tuple[str, ...]:
        """Cameras that a row names; where none is wanted they are null."""
        return self.cameras or CAMERAS[:3]

    def record(self) -> dict[str, Any]:
        """What differs from the default, with which folders of before were made."""
        found = {"cameras": list(self.cameras), "future": self.future, "interval": self.interval}
        return {name: value for name, value in found.items() if getattr(self, name) != getattr(DEFAULT, name)}


DEFAULT = Contents()


@dataclass(frozen=True)
class Found:
    """A scene on its way into a table. source: where it comes from, for messages. problem: why it has no row."""

    source: str
    token: str
    log_name: str
    problem: str | None
    row: Callable[[], dict[str, Any]]


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
    _refuse_unknown(contents)
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

    return write_table(Path(out), made_by, logs, _logged(root, split, chosen, contents), about, contents, progress)


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
    _refuse_unknown(contents)
    made_by |= contents.record()

    def about(tokens: set[str], names: set[str]) -> dict[str, Any]:
        return {
            "split": SPLIT,
            "data_root": place,
            "sensors": str((Path(folder) / PICTURES).resolve()),
            "filter": {},
            "absent": {},
        }

    found = (_found(f"file {path.name}", read_second_stage(path), contents) for path in files)
    return write_table(Path(out), made_by, files, found, about, contents, progress)


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
        "cameras": {camera: now.cameras.get(camera) for camera in contents.columns},
        "future": future,
    }


def write_table(
    out: Path,
    made_by: Mapping[str, Any],
    files: Sequence[Path],
    scenes: Iterable[Found],
    about: Callable[[set[str], set[str]], dict[str, Any]],
    contents: Contents,
    progress: Callable[[int], None] | None,
    beside: Collection[str] = (),
) -> dict[str, Any]:
    """The table, unless it is there, made of the same `files`; returns the content of `scenes.json`.

    about: tokens, log names -> that content, asked for after the last scene. beside: folders in `out` that are not of
    the table, such as pictures.
    """
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar

    found = {"inputs": file_stamps(files)}
    disable_progress_bar()
    with making(out, made_by, found) as is_open:
        if not is_open:
            return dict(read_json(out / "scenes.json"))
        skipped: list[dict[str, str]] = []
        rows = list(_rows(scenes, skipped, progress))
        if skipped and not rows:
            raise InputError(
                f"none of {counted(len(skipped), 'scene')} can be converted; first: {skipped[0]['reason']}"
            )
        for path in (out / MANIFEST, *out.glob("*.arrow")):  # of a table made again
            path.unlink(missing_ok=True)
        Dataset.from_list(rows, features=features(contents.columns)).save_to_disk(str(out))
        tokens = {row["token"] for row in rows} | {item["token"] for item in skipped}
        names = {row["log_name"] for row in rows} | {item["log_name"] for item in skipped}
        content = {**about(tokens, names), "count": len(rows), "skipped": skipped}
        write_json(out / "scenes.json", content)
        finish(out, {**made_by, **found}, exclude=beside)
    return content


def _rows(
    scenes: Iterable[Found], skipped: list[dict[str, str]], progress: Callable[[int], None] | None
) -> Iterator[dict[str, Any]]:
    """skipped: gets the scenes that have no row."""
    sources: dict[str, str] = {}
    for scene in scenes:
        if scene.token in sources:
            raise InputError(
                f"token {scene.token}: occurs twice, in {sources[scene.token]} and {scene.source}; remove one of them"
            )
        sources[scene.token] = scene.source
        if progress:
            progress(len(sources))
        if scene.problem:
            reason = f"scene {scene.token} of {scene.log_name}: {scene.problem}"
            skipped.append({"token": scene.token, "log_name": scene.log_name, "reason": reason})
        else:
            yield scene.row()


def _logged(root: DataRoot, split: str, chosen: SceneFilter, contents: Contents) -> Iterator[Found]:
    for scene in find_scenes(root, split, chosen):
        yield _found(f"log {scene.now.log_name}", scene, contents)


def _found(source: str, scene: Scene, contents: Contents) -> Found:
    return Found(source, scene.token, scene.now.log_name, _problem(scene), lambda: scene_row(scene, contents))


def _refuse_unknown(contents: Contents) -> None:
    """InputError for what NAVSIM's logs do not have."""
    unknown = next((name for name in contents.cameras if name not in CAMERAS), None)
    if unknown is not None:
        raise InputError(
            f"--cameras: {unknown!r} is none of NAVSIM's{did_you_mean(unknown, list(CAMERAS))}; they are "
            f"{', '.join(CAMERAS)}"
        )
    if contents.interval != DEFAULT_INTERVAL:
        raise InputError(
            f"--interval: NAVSIM's logs have a frame every {DEFAULT_INTERVAL} s; leave it to --format 123d"
        )


def _problem(scene: Scene) -> str | None:
    """Why a scene is nothing to plan or learn from."""
    blind = [frame.token for frame in scene.past[-HISTORY:] if not frame.has_motion]
    lost = f"frame {blind[0]}: the ego's speed or acceleration is NaN or infinite" if blind else None
    return scene.problem or lost
