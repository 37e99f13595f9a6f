"""Frames are typed, exact to the last bit, and complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.nuplan.logs import quaternion_yaw, read_log
from tests.navsim_adapter.tiny import CITY, frame, write_frames


def test_a_frame_carries_what_the_log_says(tmp_path: Path) -> None:
    turned = frame(0, ego2global_rotation=np.array([np.cos(0.3), 0, 0, np.sin(0.3)]), map_location="las_vegas")
    first, second = read_log(write_frames(tmp_path, [turned, frame(1)]))
    assert first.ego_pose[2] == pytest.approx(0.6, abs=1e-15)
    assert (first.map_name, second.map_name) == ("us-nv-las-vegas-strip", CITY)
    assert second.time_us - first.time_us == 500_000
    assert second.roadblock_ids == ("1", "2")
    assert second.command == "straight"
    assert second.lights == (("51", True), ("77", True))
    assert second.cameras == {"CAM_F0": "log-0/CAM_F0/1.jpg"}
    assert second.velocity.dtype == second.acceleration.dtype == np.float32
    assert second.velocity[1] == np.float32(0.1)
    assert second.annotations is not None
    assert second.annotations.names == ("vehicle", "vehicle", "traffic_cone")


@pytest.mark.parametrize(
    ("one_hot", "name"), [(0, "left"), (1, "straight"), (2, "right"), (3, "unknown"), (None, "unknown")]
)
def test_commands_have_names(tmp_path: Path, one_hot: int | None, name: str) -> None:
    command = np.zeros(4, np.int64)
    if one_hot is not None:
        command[one_hot] = 1
    assert read_log(write_frames(tmp_path, [frame(0, driving_command=command)]))[0].command == name


def test_hidden_logs_without_annotations_are_read(tmp_path: Path) -> None:
    hidden = frame(0)
    del hidden["anns"]
    assert read_log(write_frames(tmp_path, [hidden]))[0].annotations is None


def test_yaw_has_the_minus_sign_of_pyquaternion() -> None:
    # With roll and pitch the common formula 2 (wz + xy) gives another angle; worked out by hand for this quaternion.
    rotation = np.array([0.8, 0.2, 0.4, 0.4])
    assert quaternion_yaw(rotation) == pytest.approx(np.arctan2(2 * (0.32 - 0.08), 1 - 2 * 0.32), abs=1e-15)


def test_yaw_normalises_only_quaternions_off_by_1e_14() -> None:
    rotation = np.array([np.cos(0.3), 0.0, 0.0, np.sin(0.3)])
    assert quaternion_yaw(2 * rotation) == pytest.approx(0.6, abs=1e-15)
    off = rotation * (1 + 4e-15)  # squares differ from 1 by 8e-15: used as it is
    w, _, _, z = off
    assert quaternion_yaw(off) == float(np.arctan2(2 * (w * z), 1 - 2 * z**2))


REQUIRED = [name for name in frame(0) if name != "anns"]


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_field_is_named_with_file_and_frame(tmp_path: Path, name: str) -> None:
    broken = frame(1)
    del broken[name]
    with pytest.raises(InputError, match=rf"log-0\.pkl: frame 1: field {name} is missing"):
        read_log(write_frames(tmp_path, [frame(0), broken]))


BAD: list[tuple[str, Any]] = [
    ("ego2global_translation", np.array([1.0, 2.0])),
    ("ego2global_rotation", "east"),
    ("ego_dynamic_state", [1.0, [2.0], 3.0, 4.0]),
    ("token", 5),
    ("timestamp", 1.5),
    ("roadblock_ids", "12"),
    ("traffic_lights", [(1, True, 3)]),
    ("driving_command", np.array([1, 0])),
    ("cams", ["CAM_F0"]),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_named_with_file_and_frame(tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"log-0\.pkl: frame 0: field {name} "):
        read_log(write_frames(tmp_path, [frame(0, **{name: value})]))


@pytest.mark.parametrize("name", ["gt_boxes", "gt_names", "gt_velocity_3d", "track_tokens"])
def test_objects_that_do_not_belong_together_are_refused(tmp_path: Path, name: str) -> None:
    broken = frame(0)
    broken["anns"][name] = broken["anns"][name][:2]
    with pytest.raises(InputError, match="frame 0: anns: fields of the objects differ in length"):
        read_log(write_frames(tmp_path, [broken]))


def test_something_else_than_a_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a list of frames"):
        read_log(write_frames(tmp_path, {"a": 1}))  # type: ignore[arg-type]


def test_a_frame_without_numbers_is_read_and_says_so(tmp_path: Path) -> None:
    changes = [
        {"ego2global_translation": np.array([1.0, np.nan, 0])},
        {"ego2global_rotation": np.array([np.inf, 0, 0, 0])},
        {"ego_dynamic_state": [1.0, 2.0, float("nan"), 0.0]},
        {},
    ]
    frames = read_log(write_frames(tmp_path, [frame(index, **changed) for index, changed in enumerate(changes)]))
    assert [one.has_pose for one in frames] == [False, False, True, True]
    assert [one.has_motion for one in frames] == [True, True, False, True]
