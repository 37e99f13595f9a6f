"""Which frames make a scene: slicing logs, the devkit's scene filter, splits (metric 1.2 to 1.4).

A scene is a slice of a log: `num_history_frames` (the last of them is now) and `num_future_frames`. As officially,
nothing checks that neighbouring frames are half a second apart. Unlike officially, logs are read in sorted order, and a
file that holds several drives is cut into these first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml

from navsim_adapter.foundation.errors import InputError, did_you_mean
from navsim_adapter.foundation.foreign import data_files, plain_yaml, read_text
from navsim_adapter.foundation.words import counted
from navsim_adapter.nuplan.logs import Frame, read_log
from navsim_adapter.nuplan.objects import FrameObjects, frame_objects
from navsim_adapter.nuplan.root import DataRoot


@dataclass(frozen=True)
class SceneFilter:
    """The devkit's filter of original scenes: which frames of which logs are scenes. InputError for impossible counts.

    num_history_frames, num_future_frames: frames at 0.5 s that a scene must have, the present one in the history.
    frame_interval: frames from one scene's start to the next; None is a scene's length, so that none overlap.
    has_route: leave out scenes whose present frame has no route.
    max_scenes: keep the first so many; None keeps all.
    log_names, tokens: keep these alone; None keeps all.
    """

    num_history_frames: int = 4
    num_future_frames: int = 10
    frame_interval: int | None = 1
    has_route: bool = True
    max_scenes: int | None = None
    log_names: frozenset[str] | None = None
    tokens: frozenset[str] | None = None

    def __post_init__(self) -> None:
        if self.num_history_frames < 1 or self.num_future_frames < 0 or self.interval < 1:
            raise InputError(
                f"scene filter: num_history_frames {self.num_history_frames}, num_future_frames "
                f"{self.num_future_frames}, frame_interval {self.interval}: must be at least 1, 0 and 1"
            )

    @property
    def num_frames(self) -> int:
        return self.num_history_frames + self.num_future_frames

    @property
    def interval(self) -> int:
        return self.num_frames if self.frame_interval is None else self.frame_interval

    @staticmethod
    def from_yaml(path: str | Path) -> SceneFilter:
        """Read a scene filter file of the devkit; keys of second-stage scenes and Hydra are accepted and ignored."""
        try:
            content = plain_yaml(read_text(path))
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as problem:
            reason = " ".join(str(problem).split())[:120]
            raise InputError(f"{path}: scene filter cannot be read ({reason}); check the file") from problem
        if not isinstance(content, dict):
            raise InputError(f"{path}: scene filter must be a mapping of keys, found {type(content).__name__}")
        found = {key: _checked(path, key, value) for key, value in _own_keys(path, content).items()}
        return SceneFilter(**{"frame_interval": None, **found})  # the devkit's default: no overlap


_SECOND_STAGE_KEYS = {
    "include_synthetic_scenes",
    "synthetic_scene_tokens",
    "reactive_synthetic_initial_tokens",
    "non_reactive_synthetic_initial_tokens",
    "reactive_all_mapping",
    "train_test_split_name",
}
_TYPES: dict[str, type] = {
    "num_history_frames": int,
    "num_future_frames": int,
    "frame_interval": int,
    "max_scenes": int,
    "has_route": bool,
}

# Official names of splits: folder of the logs, and what differs from the default filter (metric 1.2). The published
# token lists belong to the devkit; give its YAML with --filter to take exactly those.
SPLITS: dict[str, tuple[str, SceneFilter]] = {
    "navmini": ("mini", SceneFilter(frame_interval=None)),
    "navtrain": ("trainval", SceneFilter()),
    "navtest": ("test", SceneFilter()),
}
LISTED = frozenset(SPLITS)
PRIVATE = ("private_test_hard",)  # folders of hidden scenes of five frames: cut by `scene_token`, without a future
_PRIVATE_FRAMES = 5


@dataclass(frozen=True)
class Moment:
    """What is around at one of the 0.5 s steps: objects in the global frame, lights as (lane connector id, is red)."""

    objects: FrameObjects
    lights: tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class Scene:
    """One scene: `frames[num_history - 1]` is now.

    Second-stage scenes (`is_synthetic`, metric 2.3) have no future frames but moments `after` the last frame.
    """

    token: str
    split: str
    frames: tuple[Frame, ...] = field(repr=False)
    num_history: int
    is_synthetic: bool = False
    after: tuple[Moment, ...] = field(default=(), repr=False)

    @property
    def now(self) -> Frame:
        return self.frames[self.num_history - 1]

    @property
    def past(self) -> tuple[Frame, ...]:
        """History, the current frame last."""
        return self.frames[: self.num_history]

    @property
    def future(self) -> tuple[Frame, ...]:
        return self.frames[self.num_history :]

    @property
    def recorded_ahead(self) -> int:
        """Steps of 0.5 s after now for which objects are recorded."""
        return len(self.future) + len(self.after)

    @property
    def problem(self) -> str | None:
        """Why the official code has no figures of it, whatever the map: frames out of order, a pose without numbers."""
        times = np.array([frame.time_us for frame in self.frames])
        back = np.flatnonzero(np.diff(times) < 0)
        if len(back):
            first, second = self.frames[back[0]].token, self.frames[back[0] + 1].token
            return f"frame {second} is earlier than frame {first} before it; bring the log's frames in order of time"
        lost = [frame.token for frame in self.frames if not frame.has_pose]
        if lost:
            return f"frame {lost[0]}: the ego's pose is NaN or infinite"
        if not self.now.has_motion:
            return f"frame {self.now.token}: the ego's speed or acceleration is NaN or infinite"
        return None

    def moments(self, count: int) -> list[Moment]:
        """The moments now, 0.5 s later, ...; `count` of them. Raises InputError where a frame has no annotations."""
        found = []
        for frame in (self.now, *self.future)[:count]:
            if frame.annotations is None:
                raise InputError(f"frame {frame.token} has no annotations; hidden test data cannot be scored")
            found.append(Moment(frame_objects(frame.annotations, frame.ego_pose), frame.lights))
        return (found + list(self.after))[:count]


def split_name(split: str) -> str:
    """A split's name as every record and guard has it: `test/` and `./test`, as a shell completes them, are `test`.

    Raises InputError for what is no folder right under `navsim_logs`.
    """
    name = str(PurePosixPath(split.strip()))
    if name in (".", "..") or "/" in name or "\\" in name:
        raise InputError(f"--split: {split!r} is no folder right under navsim_logs; give its name alone, as in mini")
    return name


def split_filter(split: str, filter_file: str | Path | None = None) -> tuple[str, SceneFilter]:
    """Folder and filter of a split name: an official name, or a folder under `navsim_logs`."""
    name = split_name(split)
    folder, chosen = SPLITS.get(name, (name, SceneFilter()))
    return folder, SceneFilter.from_yaml(filter_file) if filter_file else chosen


def find_logs(root: DataRoot, split: str, chosen: SceneFilter | None = None) -> list[Path]:
    """Sorted log files of a split folder; raises InputError saying what was looked for if there are none.

    A file of several logs is named like none of them: where no file is, and the first is such a one, all are taken.
    """
    folder = root.logs / split
    if not folder.is_dir():
        known = sorted(path.name for path in root.logs.iterdir() if path.is_dir())
        hint = did_you_mean(split, known) or (f" (there are: {', '.join(known)})" if known else "")
        raise InputError(f"{folder}: no such split{hint}; check --split and --data")
    names = chosen.log_names if chosen else None
    files = data_files(folder, "*.pkl")
    logs = [path for path in files if names is None or path.stem in names]
    if not logs and files and len({frame.log_name for frame in read_log(files[0])}) > 1:
        return files
    if not logs:
        among = f" among the {len(names)} names of the filter" if names is not None else ""
        raise InputError(f"{folder}: no log files (*.pkl){among}; check --split, --filter and --data")
    return logs


def find_scenes(root: DataRoot, split: str, chosen: SceneFilter) -> Iterator[Scene]:
    """Every scene of a split, log after log; raises InputError if the split turns out empty."""
    count = 0
    for path in find_logs(root, split, chosen):
        for scene in log_scenes(path, split, chosen):
            if chosen.max_scenes is not None and count >= chosen.max_scenes:
                return
            count += 1
            yield scene
    if not count:
        raise empty_split(root, split, chosen)


def log_scenes(path: Path, split: str, chosen: SceneFilter) -> list[Scene]:
    """The scenes of one log file (`max_scenes` is not applied); `log_names` chooses by file, or by what it holds."""
    frames, names = read_log(path), chosen.log_names
    if names is not None and path.stem not in names:
        frames = [frame for frame in frames if frame.log_name in names]
    return slice_frames(frames, split, chosen)


def slice_frames(frames: Sequence[Frame], split: str, chosen: SceneFilter) -> list[Scene]:
    """The scenes that lie within one drive, drive after drive in the order of the file."""
    if split in PRIVATE:
        chosen = replace(chosen, num_future_frames=0, frame_interval=1)
        drives = [drive for drive in _grouped(frames, "scene_token") if len(drive) == _PRIVATE_FRAMES]
        drives = [sorted(drive, key=lambda frame: frame.frame_idx) for drive in drives]
    else:
        drives = _grouped(frames, "log_name")
    return [scene for drive in drives for scene in _slices(drive, split, chosen)]


def _grouped(frames: Sequence[Frame], key: str) -> list[list[Frame]]:
    groups: dict[str, list[Frame]] = {}
    for frame in frames:
        groups.setdefault(getattr(frame, key), []).append(frame)
    return list(groups.values())


def _slices(frames: Sequence[Frame], split: str, chosen: SceneFilter) -> Iterator[Scene]:
    for start in range(0, len(frames) - chosen.num_frames + 1, chosen.interval):
        now = frames[start + chosen.num_history_frames - 1]
        if chosen.has_route and not now.roadblock_ids:
            continue
        if chosen.tokens is not None and now.token not in chosen.tokens:
            continue
        slice_ = tuple(frames[start : start + chosen.num_frames])
        yield Scene(now.token, split, slice_, chosen.num_history_frames)


def by_log(path: Path, scenes: Iterable[Scene]) -> dict[str, list[Scene]]:
    """A file's scenes by the log that a filter names for them: the file's own, unless it holds several."""
    logs: dict[str, list[Scene]] = {}
    for scene in scenes:
        logs.setdefault(scene.now.log_name, []).append(scene)
    return logs if len(logs) > 1 else {path.stem: [scene for own in logs.values() for scene in own]}


def absent(chosen: SceneFilter, logs: Iterable[str], tokens: Collection[str]) -> dict[str, list[str]]:
    """What a filter names and the data lack: `log_names` without a log, `tokens` that are no scene."""
    named = {"log_names": chosen.log_names, "tokens": chosen.tokens if chosen.max_scenes is None else None}
    there = {"log_names": frozenset(logs), "tokens": frozenset(tokens)}
    return {key: sorted((names or frozenset()) - there[key]) for key, names in named.items()}


def empty_split(root: DataRoot, split: str, chosen: SceneFilter) -> InputError:
    wanted = [f"{chosen.num_history_frames} history and {chosen.num_future_frames} future frames"]
    wanted += ["a route"] * chosen.has_route
    wanted += [f"one of {counted(len(chosen.tokens), 'token')}"] if chosen.tokens is not None else []
    where = root.logs / split
    return InputError(f"{where}: no scene with {', '.join(wanted)}; check --split, --filter and the logs")


def every_frame(tokens: Iterable[str], num_future_frames: int = 10) -> SceneFilter:
    """The filter that finds these tokens wherever they are: any frame with full history and that much future."""
    return replace(SceneFilter(), tokens=frozenset(tokens), num_future_frames=num_future_frames)


_HYDRA_KEYS = ("defaults", "data_split")
_NUPLAN_KEYS = (
    "scenario_types",
    "scenario_tokens",
    "map_names",
    "num_scenarios_per_type",
    "limit_total_scenarios",
    "timestamp_threshold_s",
    "ego_displacement_minimum_m",
    "ego_start_speed_threshold",
    "ego_stop_speed_threshold",
    "speed_noise_tolerance",
    "expand_scenarios",
    "remove_invalid_goals",
    "shuffle",
    "ego_route_radius",
    "token_set_path",
    "fraction_in_token_set_threshold",
)


def _own_keys(path: str | Path, content: dict[str, Any]) -> dict[str, Any]:
    known = [item.name for item in fields(SceneFilter)]
    _refuse_other_files(path, content)
    for key in content:
        if key not in known and key not in _SECOND_STAGE_KEYS and not str(key).startswith("_"):
            raise InputError(f"{path}: {key}: unknown key{did_you_mean(str(key), known)}; remove it")
    return {key: content[key] for key in known if key in content}


def _refuse_other_files(path: str | Path, content: Mapping[str, Any]) -> None:
    """Files that look like a scene filter and lie beside one: without their own keys they would choose every scene."""
    nuplan = next((key for key in _NUPLAN_KEYS if key in content), None)
    target = str(content.get("_target_", ""))
    if nuplan or target.startswith("nuplan."):
        raise InputError(
            f"{path}: {nuplan or '_target_'}: this is nuPlan's scenario filter; give one of NAVSIM's, "
            "scene_filter/NAME.yaml of the devkit"
        )
    for key in _HYDRA_KEYS:
        if key in content:
            names = _defaults(content)
            wanted = f"scene_filter/{names[0]}.yaml" if names else "the file in scene_filter/"
            what = "a split, which names its filter" if "data_split" in content else "put together by Hydra"
            raise InputError(
                f"{path}: {key}: this file is {what}; give {wanted} of the devkit with --filter, or a copy of it with "
                "your changes"
            )


def _defaults(content: Mapping[str, Any]) -> list[str]:
    """Names of the scene filters that Hydra's list of defaults brings in."""
    listed = content.get("defaults")
    names = []
    for item in listed if isinstance(listed, list) else ():
        name = item.get("scene_filter") if isinstance(item, dict) else item
        if isinstance(name, str) and not name.startswith("_"):
            names.append(name)
    return names


def check_texts(path: str | Path, key: str, values: Sequence[Any]) -> None:
    """Raise InputError showing the first that is no text: YAML takes a token of digits alone for a number."""
    for value in values:
        if not isinstance(value, str):
            raise InputError(
                f"{path}: {key}: {str(value)[:60]} is read as {type(value).__name__}, not as text; put quotes around it"
            )


def _checked(path: str | Path, key: str, value: Any) -> Any:
    if key in ("log_names", "tokens"):
        if value is None:
            return None
        if not isinstance(value, list):
            raise InputError(f"{path}: {key}: must be a list of text or null, found {str(value)[:60]!r}")
        check_texts(path, key, value)
        return frozenset(value)
    may_be_null = key in ("frame_interval", "max_scenes")
    wanted = _TYPES[key]
    if not (value is None and may_be_null) and type(value) is not wanted:
        raise InputError(f"{path}: {key}: must be {wanted.__name__}, found {value!r}")
    return value
