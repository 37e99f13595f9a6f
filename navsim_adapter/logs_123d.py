"""Logs in the 123D layout, one a folder: an Arrow file a modality, and `sync.arrow`, whose rows are the log's frames.

Read by py123d (extra `123d`), whichever data set the log comes from: nuPlan, nuScenes, AV2, Waymo, PhysicalAI-AV, ...
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from navsim_adapter.foundation.errors import InputError, did_you_mean
from navsim_adapter.foundation.words import counted

SAME_INSTANT = 10_000  # us
LONGEST_GAP = 750_000  # us between two frames: a pose between frames further apart is nobody's
EGO, ROUTE, SCENARIO = "ego_state_se3", "route_position", "custom.scenario"
AHEAD, ASIDE = 20.0, 2.0  # m, of the driving command (metric 2.2)


def find_logs(root: Path, split: str, names: Collection[str] | None = None) -> list[Path]:
    """Folders of a split's logs, sorted; of these names, if given. InputError says what was looked for."""
    place = root / "logs" / split
    if not place.is_dir():
        known = sorted(path.name for path in (root / "logs").glob("*") if path.is_dir())
        hint = did_you_mean(split, known) or (f" (there are: {', '.join(known)})" if known else "")
        raise InputError(f"{place}: no such split{hint}; check --split and --data, a folder that py123d has written")
    logs = sorted(path.parent for path in place.rglob("sync.arrow"))
    logs = [log for log in logs if names is None or log.name in names]
    if not logs:
        raise InputError(f"{place}: no 123D logs (sync.arrow); check --split, --filter and --data")
    return logs


@dataclass(frozen=True)
class Log:
    """The frames of one log that have an ego state.

    folder, name: where it is, and its name. place: its location. dataset: where it comes from.
    tokens: of the frames. time_us: (N,). poses: (N, 3) of the rear axle in the map's frame. motion: (N, 4) velocity and
    acceleration of the rear axle along its axes.
    pictures: camera -> frame -> its picture's path, or the file itself; None where there is none.
    route: (K, 2) places and (K,) metres along it, and (N,) metres at each frame; None where there is none.
    """

    folder: Path
    name: str
    place: str
    dataset: str
    tokens: list[str]
    time_us: np.ndarray
    poses: np.ndarray
    motion: np.ndarray
    pictures: Mapping[str, Callable[[int], str | bytes | None]]
    route: tuple[np.ndarray, np.ndarray, np.ndarray] | None

    @cached_property
    def position(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}

    def at(self, times_us: np.ndarray) -> tuple[np.ndarray, np.ndarray, str | None]:
        """Poses (n, 3) and motion (n, 4) at these instants, within the log; or what keeps them from being known."""
        after = np.clip(np.searchsorted(self.time_us, times_us), 1, len(self.time_us) - 1)
        start, end = self.time_us[after - 1], self.time_us[after]
        part = np.clip((times_us - start) / np.maximum(end - start, 1), 0, 1)
        part = np.where(np.abs(times_us - start) <= SAME_INSTANT, 0, part)
        part = np.where(np.abs(end - times_us) <= SAME_INSTANT, 1, part)
        is_lost = (end - start > LONGEST_GAP) & (part > 0) & (part < 1)
        if is_lost.any():
            gap = (end - start)[is_lost].max() / 1e6
            return self.poses[:0], self.motion[:0], f"no frames for {gap:.2g} s around it"
        turned = self.poses[after] - self.poses[after - 1]
        turned[:, 2] = np.mod(turned[:, 2] + np.pi, 2 * np.pi) - np.pi
        moved = self.motion[after] - self.motion[after - 1]
        is_end = (part == 1)[:, None]
        poses = np.where(is_end, self.poses[after], self.poses[after - 1] + part[:, None] * turned)
        motion = np.where(is_end, self.motion[after], self.motion[after - 1] + part[:, None] * moved)
        return poses, motion, None

    def command(self, frame: int) -> str:
        """The driving command by NAVSIM's rule: where the route is 20 m on, seen from where it is now (metric 2.2)."""
        if self.route is None or not np.isfinite(self.route[2][frame]):
            return "unknown"
        places, along, progress = self.route
        now, soon, ahead = (
            np.array([np.interp(progress[frame] + metres, along, column) for column in places.T])
            for metres in (0.0, 1.0, AHEAD)
        )
        direction = soon - now
        if not np.hypot(*direction):  # the route ends here
            direction = np.array([np.cos(self.poses[frame, 2]), np.sin(self.poses[frame, 2])])
        direction /= np.hypot(*direction)
        left = float((ahead - now) @ [-direction[1], direction[0]])
        return "left" if left >= ASIDE else "right" if left <= -ASIDE else "straight"


def read_log(folder: Path, cameras: Sequence[str] = ()) -> Log:
    """A log as py123d wrote it. Raises InputError naming the log and the modality that is missing or unreadable."""
    try:
        from py123d.api.scene.arrow.modalities.sync_utils import get_sync_table
        from py123d.api.utils.arrow_metadata_utils import parse_log_directory_metadata
    except ImportError as problem:
        raise InputError(
            f"--format 123d: needs the package py123d ({problem}); install dipole-vla with the extra 123d"
        ) from problem
    try:
        sync, about = get_sync_table(folder), parse_log_directory_metadata(folder)
        return _read(folder, sync, about, cameras)
    except InputError:
        raise
    except Exception as problem:  # py123d and Arrow raise what they like on damaged files
        reason = " ".join(str(problem).split())[:120] or type(problem).__name__
        raise InputError(f"{folder}: cannot be read as a 123D log ({reason}); write it again with py123d") from problem


def _read(folder: Path, sync: Any, about: Any, cameras: Sequence[str]) -> Log:
    keys = set(sync.column_names) & about.modality_metadatas.keys()
    if EGO not in keys:
        raise InputError(
            f"{folder}: has no modality {EGO}, without which there is no drive (there are: {_listed(keys)})"
        )
    rows, is_there = _rows(sync, EGO)
    ego = _table(folder, EGO)
    poses, motion = _rear_axle(folder, ego, about.get(EGO))
    frames = np.flatnonzero(is_there)
    if len(frames) < 2:
        raise InputError(
            f"{folder}: has {counted(len(frames), 'frame')} with an ego state; a scene needs its past and future"
        )
    time_us = sync["sync.timestamp_us"].to_numpy()[frames]
    if (np.diff(time_us) <= 0).any():
        raise InputError(f"{folder}: sync.timestamp_us does not increase from frame to frame; write the log again")
    found = {camera: _camera_key(folder, camera, keys) for camera in cameras}
    pictures = {camera: _pictures(folder, sync, key, frames) for camera, key in found.items()}
    return Log(
        folder,
        about.log_metadata.log_name,
        about.log_metadata.location or about.log_metadata.dataset,
        about.log_metadata.dataset,
        _tokens(folder, sync, keys, frames),
        time_us,
        poses[rows[frames]],
        motion[rows[frames]],
        pictures,
        _route(folder, sync, about, keys, frames),
    )


def _table(folder: Path, key: str) -> Any:
    from py123d.api.scene.arrow.modalities.sync_utils import get_modality_table

    table = get_modality_table(folder, key)
    if table is None:
        raise InputError(f"{folder}: {key}.arrow is missing, which sync.arrow names; write the log again")
    return table


def _rows(sync: Any, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Row of a modality at each frame, and whether there is one."""
    column = sync[key]
    return column.fill_null(0).to_numpy().astype(np.int64), ~column.is_null().to_numpy()


def _numbers(table: Any, name: str, width: int) -> np.ndarray:
    """(rows, width) of a column of lists; NaN where a list is null."""
    return np.array([row if row is not None else [np.nan] * width for row in table[name].to_pylist()], np.float64)


def _rear_axle(folder: Path, table: Any, about: Any) -> tuple[np.ndarray, np.ndarray]:
    """Poses (rows, 3) of the rear axle and its motion (rows, 4); the file has those of the measuring unit."""
    unit = _numbers(table, f"{EGO}.imu_se3", 7)
    state = _numbers(table, f"{EGO}.dynamic_state_se3", 9)
    if not (np.isfinite(unit).all() and np.isfinite(state).all()):
        what = "pose" if not np.isfinite(unit).all() else "velocity or acceleration"
        raise InputError(
            f"{folder}: {EGO} lacks a {what} in some frame; write the log with infer_ego_dynamics, or leave it out"
        )
    offset, own = about.rear_axle_to_imu_se3.array[:3], about.rear_axle_to_imu_se3.array[3:]
    axle = unit[:, :3] + _turned(unit[:, 3:], offset)
    velocity, acceleration, spin = state[:, :3], state[:, 3:6], state[:, 6:]
    moved = velocity + np.cross(spin, offset), acceleration + np.cross(spin, np.cross(spin, offset))
    back = own * [1, -1, -1, -1]
    return (
        np.column_stack([axle[:, :2], _yaw(_product(unit[:, 3:], own))]),
        np.column_stack([_turned(back, vector)[:, :2] for vector in moved]),
    )


def _product(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of quaternions (..., 4) w, x, y, z."""
    (a, b, c, d), (w, x, y, z) = np.moveaxis(first, -1, 0), np.moveaxis(second, -1, 0)
    return np.stack(
        [
            a * w - b * x - c * y - d * z,
            a * x + b * w + c * z - d * y,
            a * y - b * z + c * w + d * x,
            a * z + b * y - c * x + d * w,
        ],
        axis=-1,
    )


def _turned(quaternion: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Vectors (..., 3) turned by quaternions (..., 4)."""
    pure = np.concatenate([np.zeros_like(vector[..., :1]), vector], axis=-1)
    return _product(_product(quaternion, pure), quaternion * [1, -1, -1, -1])[..., 1:]


def _yaw(quaternion: np.ndarray) -> np.ndarray:
    """As NAVSIM and py123d read it: with pyquaternion's minus sign (metric 2.1)."""
    w, x, y, z = np.moveaxis(quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True), -1, 0)
    return np.arctan2(2 * (w * z - x * y), 1 - 2 * (y * y + z * z))


def _tokens(folder: Path, sync: Any, keys: set[str], frames: np.ndarray) -> list[str]:
    """Tokens of the frames: the data set's own where each frame has one, else 123D's."""
    from py123d.common.utils.msgpack_utils import msgpack_decode_with_numpy
    from py123d.common.utils.uuid_utils import convert_to_str_uuid

    if SCENARIO in keys:
        rows, is_there = _rows(sync, SCENARIO)
        data = _table(folder, SCENARIO)[f"{SCENARIO}.data"].to_pylist()
        own = [msgpack_decode_with_numpy(data[rows[i]]).get("lidar_token") if is_there[i] else None for i in frames]
        texts = [token for token in own if isinstance(token, str)]
        if len(set(texts)) == len(frames):
            return texts
    return [convert_to_str_uuid(sync["sync.uuid"][int(i)].as_py()) for i in frames]


def _camera_key(folder: Path, camera: str, keys: set[str]) -> str:
    """The modality of a camera."""
    name = camera.lower()
    short = name.removeprefix("cam_")
    own = [f"camera.{name}"] if short == name else [f"camera.pcam_{short}", f"camera.ftcam_{short}"]
    for key in own:
        if key in keys:
            return key
    there = [key.removeprefix("camera.").upper() for key in keys if key.startswith("camera.")]
    raise InputError(
        f"{folder}: has no camera {camera} (there are: {_listed(there)}); name others with --cameras, or none"
    )


def _pictures(folder: Path, sync: Any, key: str, frames: np.ndarray) -> Callable[[int], str | bytes | None]:
    """Read when they are asked for: a log may hold gigabytes of them."""
    rows, is_there = _rows(sync, key)
    data = _table(folder, key)[f"{key}.data"]
    if str(data.type) not in ("string", "binary"):
        raise InputError(
            f"{folder}: {key} is stored as a film (mp4); write the log with camera_store_option path or jpeg_binary"
        )
    return lambda frame: data[int(rows[frames[frame]])].as_py() if is_there[frames[frame]] else None


def _route(
    folder: Path, sync: Any, about: Any, keys: set[str], frames: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    if ROUTE not in keys:
        return None
    rows, is_there = _rows(sync, ROUTE)
    progress = _table(folder, ROUTE)[f"{ROUTE}.progress_m"].to_numpy()
    route = about.get(ROUTE)
    at_frames = (
        np.where(is_there[frames], progress[rows[frames]], np.nan) if len(progress) else np.full(len(frames), np.nan)
    )
    return route.polyline_xyz[:, :2], route.polyline_arc_m, at_frames


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
