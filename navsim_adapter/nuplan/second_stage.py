"""Second-stage scenes of the pseudo closed-loop test: one pickle each, four frames and what happens after (metric 2.3).

Past, current frame and annotations are as in logs, but poses are global (x, y, yaw) already. The future is two lists
of nuPlan objects, one entry per 0.5 s, whose boxes are global and used as they are. There is no human future.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.foreign import data_files
from navsim_adapter.nuplan.logs import Fields, Frame, command_name, map_of, read_annotations
from navsim_adapter.nuplan.objects import recorded_objects
from navsim_adapter.nuplan.scenes import Moment, Scene
from navsim_adapter.nuplan.unpickle import Record, read_pickle

FOLDER = "synthetic_scene_pickles"
PICTURES = "sensor_blobs"
SPLIT = "second-stage"
_RED = 2  # nuPlan's TrafficLightStatusType.RED


def second_stage_files(folder: str | Path) -> list[Path]:
    """The pickles of a two-stage folder, sorted; raises InputError if there are none."""
    files = data_files(Path(folder) / FOLDER, "*.pkl")
    if not files:
        raise InputError(f"{Path(folder) / FOLDER}: no second-stage scenes (*.pkl); check the two-stage folder")
    return files


def read_second_stage(path: str | Path) -> Scene:
    """One scene; its token is that of its current frame. Raises InputError naming file, frame and field."""
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: is no second-stage scene; a dict with frames and scene_metadata is expected")
    fields = Fields(content, str(path))
    metadata = Fields(_mapping(fields, "scene_metadata"), f"{path}: scene_metadata")
    listed = fields.get("frames")
    if not isinstance(listed, list) or not all(isinstance(frame, dict) for frame in listed):
        raise InputError(f"{path}: field frames is not a list of frames; replace the file")
    frames = tuple(_frame(Fields(frame, f"{path}: frame {i}"), metadata) for i, frame in enumerate(listed))
    history = metadata.whole("num_history_frames")
    if not 0 < history <= len(frames):
        raise InputError(f"{path}: has {len(frames)} frames, num_history_frames is {history}; replace the file")
    try:
        after = _moments(fields.get("extended_detections_tracks"), fields.get("extended_traffic_light_data"))
    except (AttributeError, TypeError, IndexError, ValueError) as problem:
        raise InputError(
            f"{path}: extended objects or lights are not nuPlan's ({problem}); replace the file"
        ) from problem
    token = frames[history - 1].token
    return Scene(token, SPLIT, frames, history, is_synthetic=True, after=after)


def _frame(fields: Fields, metadata: Fields) -> Frame:
    ego = Fields(_mapping(fields, "ego_status"), f"{fields.where}: ego_status")
    boxes = Fields(_mapping(fields, "annotations"), f"{fields.where}: annotations")
    return Frame(
        token=fields.text("token"),
        time_us=fields.whole("timestamp"),
        log_name=metadata.text("log_name"),
        map_name=map_of(metadata.text("map_name")),
        roadblock_ids=fields.texts("roadblock_ids"),
        ego_pose=ego.numbers("ego_pose", (3,)).astype(np.float64),
        velocity=ego.numbers("ego_velocity", (2,)).astype(np.float32),
        acceleration=ego.numbers("ego_acceleration", (2,)).astype(np.float32),
        command=command_name(ego.array("driving_command", (4,))),
        lights=fields.lights("traffic_lights"),
        annotations=read_annotations(boxes, "boxes", "names", "velocity_3d"),
        cameras={
            str(name).upper(): str(camera["data_path"])
            for name, camera in _mapping(fields, "camera_dict").items()
            if isinstance(camera, dict) and camera.get("data_path")
        },
    )


def _mapping(fields: Fields, name: str) -> Mapping[str, Any]:
    value = fields.get(name)
    if not isinstance(value, dict):
        raise InputError(f"{fields.where}: field {name} is {type(value).__name__}, expected a dict; replace the file")
    return value


def _moments(detections: Sequence[Record] | None, lights: Sequence[Record] | None) -> tuple[Moment, ...]:
    """One per recorded detection; where the lights end earlier there are none, as officially."""
    moments = []
    for index, entry in enumerate(detections or ()):
        entries = lights[index].traffic_lights if lights and index < len(lights) else ()
        states = tuple((str(light.lane_connector_id), light.status.args[0] == _RED) for light in entries)
        moments.append(Moment(recorded_objects(entry.tracked_objects.tracked_objects), states))
    return tuple(moments)
