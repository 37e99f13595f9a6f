"""Log pickles as typed frames (metric 2.1). Slicing them into scenes is in `scenes`, their objects in `objects`.

Values keep the precision of the file; only ego velocity and acceleration are cast to float32, as the devkit does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.nuplan.unpickle import read_pickle

COMMANDS = ("left", "straight", "right", "unknown")
_MAP_NAMES = {"las_vegas": "us-nv-las-vegas-strip"}


@dataclass(frozen=True)
class Annotations:
    """The n boxes of one frame, relative to the ego rear axle.

    boxes: (n, 7) x, y, z, length, width, height, yaw minus ego yaw (not wrapped), in the file's precision.
    velocity: (n, 2) along the ego's axes.  names: nuPlan class names.  tracks: what identifies an object over time.
    """

    boxes: np.ndarray
    names: tuple[str, ...]
    velocity: np.ndarray
    tracks: tuple[str, ...]


@dataclass(frozen=True)
class Frame:
    """One frame of a log at 2 Hz; pose of the rear axle in the map's projected frame."""

    token: str
    time_us: int
    log_name: str
    map_name: str
    roadblock_ids: tuple[str, ...]
    ego_pose: np.ndarray  # (3,) x, y, heading
    velocity: np.ndarray  # (2,) float32, ego axes
    acceleration: np.ndarray  # (2,) float32, ego axes
    command: str
    lights: tuple[tuple[str, bool], ...]  # lane connector id, is red
    annotations: Annotations | None  # None in hidden test data
    cameras: Mapping[str, str]  # CAM_F0 ... -> path relative to the split's sensor folder
    scene_token: str = ""  # of nuPlan's scene, twenty seconds of a log
    frame_idx: int = -1  # within it

    @property
    def has_pose(self) -> bool:
        return bool(np.isfinite(self.ego_pose).all())

    @property
    def has_motion(self) -> bool:
        return bool(np.isfinite(self.velocity).all() and np.isfinite(self.acceleration).all())


def read_log(path: str | Path) -> list[Frame]:
    """The frames of a log pickle; raises InputError naming file, frame and field where one is missing or misshapen.

    Pose and motion may be NaN: the scenes that need them have no score (`scenes.Scene.problem`), others have.
    """
    frames = read_pickle(path)
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise InputError(f"{path}: is not a list of frames; a NAVSIM log pickle is expected here")
    return [_frame(frame, Fields(frame, f"{path}: frame {index}")) for index, frame in enumerate(frames)]


class Fields:
    """Checked access to the fields of one frame; `where` begins every message."""

    def __init__(self, content: Mapping[str, Any], where: str):
        self.content = content
        self.where = where

    def get(self, name: str) -> Any:
        if name not in self.content:
            raise InputError(f"{self.where}: field {name} is missing; the log must hold every NAVSIM field")
        return self.content[name]

    def array(self, name: str, shape: tuple[int, ...], dtype: Any = None) -> np.ndarray:
        """The field as finite numbers of `shape` (-1: any size)."""
        value = self.numbers(name, shape)
        if not np.isfinite(value).all():
            raise InputError(f"{self.where}: field {name} holds NaN or infinity; leave the log out or repair it")
        return value if dtype is None else value.astype(dtype)

    def numbers(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        content = self.get(name)
        try:
            value = np.asarray(content)
        except ValueError:
            value = np.asarray(None)
        if value.dtype.kind not in "biuf":
            raise InputError(f"{self.where}: field {name} is not an array of numbers; leave the log out or repair it")
        if len(shape) == 2 and value.size == 0:
            value = value.reshape(0, max(shape[1], 0))
        fits = value.ndim == len(shape) and all(want in (-1, has) for want, has in zip(shape, value.shape))
        if not fits:
            raise InputError(f"{self.where}: field {name} has shape {value.shape}, expected {shape}; repair the log")
        return value

    def text(self, name: str) -> str:
        value = self.get(name)
        if not isinstance(value, str):
            raise InputError(f"{self.where}: field {name} is {type(value).__name__}, expected text; repair the log")
        return str(value)

    def whole(self, name: str) -> int:
        value = self.get(name)
        if not isinstance(value, int | np.integer):
            raise InputError(f"{self.where}: field {name} is {type(value).__name__}, expected an integer")
        return int(value)

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.get(name)
        if not isinstance(value, list | tuple | np.ndarray):
            raise InputError(f"{self.where}: field {name} is {type(value).__name__}, expected a list of text")
        return tuple(str(item) for item in value)

    def lights(self, name: str) -> tuple[tuple[str, bool], ...]:
        value = self.get(name)
        if not isinstance(value, list | tuple) or not all(isinstance(v, list | tuple) and len(v) == 2 for v in value):
            raise InputError(f"{self.where}: field {name} is not a list of (lane connector, is red); repair the log")
        return tuple((str(connector), bool(is_red)) for connector, is_red in value)


def quaternion_yaw(rotation: np.ndarray) -> float:
    """Yaw of a quaternion (w, x, y, z), to the last bit as the devkit has it.

    Normalised only when it is off by 1e-14 or more; the minus sign is pyquaternion's, and the arctangent must be
    numpy's: the C library's differs in the last bit for a quarter of the poses (metric 2.1, 5.1).
    """
    if not np.isfinite(rotation).all():
        return float("nan")
    squares = np.dot(rotation, rotation)
    if abs(1.0 - squares) >= 1e-14 and squares > 0:
        rotation = rotation / np.sqrt(squares)
    w, x, y, z = rotation
    return float(np.arctan2(2 * (w * z - x * y), 1 - 2 * (y**2 + z**2)))


def read_annotations(fields: Fields, boxes: str, names: str, velocity: str) -> Annotations:
    """Check that the arrays of one frame's objects belong together; values may be NaN (see `cache.build`)."""
    found = Annotations(
        boxes=fields.numbers(boxes, (-1, 7)),
        names=fields.texts(names),
        velocity=fields.numbers(velocity, (-1, 3))[:, :2],
        tracks=fields.texts("track_tokens"),
    )
    sizes = {len(found.boxes), len(found.names), len(found.velocity), len(found.tracks)}
    if len(sizes) > 1:
        raise InputError(f"{fields.where}: fields of the objects differ in length ({sorted(sizes)}); repair the log")
    return found


def command_name(one_hot: np.ndarray) -> str:
    return COMMANDS[int(np.argmax(one_hot))] if one_hot.any() else "unknown"


def map_of(location: str) -> str:
    """The map's name of a location; logs call one city by another (metric 2.1)."""
    return _MAP_NAMES.get(location, location)


def _frame(content: Mapping[str, Any], fields: Fields) -> Frame:
    translation = fields.numbers("ego2global_translation", (3,)).astype(np.float64)
    yaw = quaternion_yaw(fields.numbers("ego2global_rotation", (4,)).astype(np.float64))
    dynamics = fields.numbers("ego_dynamic_state", (4,)).astype(np.float64).astype(np.float32)
    location = fields.text("map_location")
    objects = None
    if content.get("anns") is not None:
        inner = Fields(fields.get("anns"), f"{fields.where}: anns")
        objects = read_annotations(inner, "gt_boxes", "gt_names", "gt_velocity_3d")
    return Frame(
        token=fields.text("token"),
        time_us=fields.whole("timestamp"),
        log_name=fields.text("log_name"),
        map_name=map_of(location),
        roadblock_ids=fields.texts("roadblock_ids"),
        ego_pose=np.array([translation[0], translation[1], yaw]),
        velocity=dynamics[:2],
        acceleration=dynamics[2:],
        command=command_name(fields.array("driving_command", (4,))),
        lights=fields.lights("traffic_lights"),
        annotations=objects,
        cameras=_cameras(fields),
        scene_token=str(content.get("scene_token") or ""),
        frame_idx=fields.whole("frame_idx") if "frame_idx" in content else -1,
    )


def _cameras(fields: Fields) -> dict[str, str]:
    cameras = fields.get("cams")
    if not isinstance(cameras, dict):
        raise InputError(f"{fields.where}: field cams is {type(cameras).__name__}, expected a dict of cameras")
    return {
        str(name): str(camera["data_path"])
        for name, camera in cameras.items()
        if isinstance(camera, dict) and camera.get("data_path")
    }
