"""Logs that py123d itself has written, as scene tables: against NAVSIM's own logs of the same drive, and by formula."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import load_from_disk
from PIL import Image

from navsim_adapter.cli import main
from navsim_adapter.dataset import Contents, convert
from navsim_adapter.dataset_123d import convert_123d
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.nuplan.logs import read_log
from navsim_adapter.nuplan.root import DataRoot
from navsim_adapter.nuplan.scenes import SceneFilter
from tests.navsim_adapter.tiny import frame, write_frames

pytest.importorskip("py123d", reason="extra 123d")

from py123d.api.scene.arrow.arrow_log_writer import ArrowLogWriter
from py123d.api.scene.arrow.arrow_scene_api import ArrowSceneAPI
from py123d.api.scene.arrow.utils.log_writer_config import LogWriterConfig
from py123d.datatypes import (
    CameraID,
    DynamicStateSE3,
    EgoStateSE3,
    LogMetadata,
    PinholeCameraMetadata,
    PinholeIntrinsics,
    Timestamp,
)
from py123d.datatypes.custom.custom_modality import CustomModality, CustomModalityMetadata
from py123d.datatypes.vehicle_state.ego_state_metadata import EgoStateSE3Metadata
from py123d.geometry import EulerAngles, PoseSE3, Vector3D
from py123d.parser.base_dataset_parser import ModalitiesSync, ParsedCamera

SPLIT, START = "toy_val", 1_600_000_000_000_000
CAMERAS = (CameraID.PCAM_F0, CameraID.PCAM_L0, CameraID.PCAM_R0)
NOWHERE = PoseSE3.identity()


def se3(x: float, y: float, yaw: float, z: float = 0.0, roll: float = 0.0, pitch: float = 0.0) -> PoseSE3:
    turn = EulerAngles(roll=roll, pitch=pitch, yaw=yaw).quaternion
    return PoseSE3(x, y, z, *turn.array)


def vehicle(axle: PoseSE3 = NOWHERE) -> EgoStateSE3Metadata:
    return EgoStateSE3Metadata("toy", 2.297, 5.176, 1.777, 3.089, se3(1.461, 0, 0), axle)


def jpeg(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(stream, "JPEG")
    return stream.getvalue()


def write_log(
    root: Path,
    states: Iterable[EgoStateSE3],
    name: str = "drive",
    cameras: Iterable[CameraID] = CAMERAS,
    tokens: list[str] | None = None,
    **config: Any,
) -> Path:
    """A log in `root/logs/toy_val`; the pictures are paths, or with `camera_store_option` in the log."""
    writer = ArrowLogWriter(LogWriterConfig(**config), root / "logs", root / "sensors")
    assert writer.reset(LogMetadata("toy", SPLIT, name, "atlantis"))
    lens = PinholeIntrinsics(10, 10, 4, 4)
    scenario = CustomModalityMetadata("scenario")
    for index, state in enumerate(states):
        rows: list[Any] = [state]
        for camera in cameras:
            about = PinholeCameraMetadata(camera.name.lower(), camera, lens, None, 8, 8, NOWHERE)
            relative = f"{name}/{camera.name.lower()}/{index}.jpg"
            place = root / "sensors" / relative
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(jpeg(index))
            rows.append(
                ParsedCamera(
                    about, state.timestamp, state.imu_se3, dataset_root=root / "sensors", relative_path=relative
                )
            )
        if tokens:
            rows.append(CustomModality({"lidar_token": tokens[index]}, scenario, state.timestamp))
        writer.write_sync(ModalitiesSync(state.timestamp, rows))
    writer.close()
    return root / "logs" / SPLIT / name


def circle(seconds: float, about: EgoStateSE3Metadata, speed: float = 8.0, radius: float = 40.0) -> EgoStateSE3:
    """The rear axle on a circle to the left through the origin; the motion is that of the measuring unit."""
    angle = speed * seconds / radius
    pose = se3(radius * np.sin(angle), radius * (1 - np.cos(angle)), angle, z=3.0, roll=0.02, pitch=-0.01)
    axle, spin = about.rear_axle_to_imu_se3, np.array([0, 0, speed / radius])
    offset, turn = axle.array[:3], axle.rotation_matrix
    velocity = turn @ [speed, 0, 0] - np.cross(spin, offset)
    acceleration = turn @ [0, speed**2 / radius, 0] - np.cross(spin, np.cross(spin, offset))
    motion = DynamicStateSE3(*(Vector3D(*vector) for vector in (velocity, acceleration, spin)))
    return EgoStateSE3.from_rear_axle(pose, about, Timestamp.from_us(START + round(seconds * 1e6)), motion)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return load_from_disk(str(folder)).to_list()


def test_a_drive_gives_the_same_table_in_both_layouts(tmp_path: Path) -> None:
    frames = [frame(index) for index in range(24)]
    write_frames(tmp_path / "navsim", frames)
    logged = read_log(next((tmp_path / "navsim").rglob("*.pkl")))
    states = [
        EgoStateSE3.from_imu(
            se3(*one.ego_pose),
            vehicle(),
            Timestamp.from_us(one.time_us),
            DynamicStateSE3(Vector3D(*one.velocity, 0), Vector3D(*one.acceleration, 0), Vector3D(0, 0, 0)),
        )
        for one in logged
    ]
    write_log(tmp_path / "123d", states, logged[0].log_name, tokens=[one.token for one in logged])
    convert(DataRoot(tmp_path / "navsim", tmp_path), "mini", SceneFilter(), tmp_path / "a")
    content = convert_123d(tmp_path / "123d", SPLIT, SceneFilter(), tmp_path / "b", sensors=tmp_path / "123d/sensors")
    ours, theirs = rows_of(tmp_path / "a"), rows_of(tmp_path / "b")
    assert len(ours) == len(theirs) == content["count"] > 5
    for one, other in zip(ours, theirs):
        assert (one["token"], one["timestamp_us"], one["log_name"]) == (
            other["token"],
            other["timestamp_us"],
            other["log_name"],
        )
        for name in ("history", "future", "history_velocity", "history_acceleration", "velocity", "acceleration"):
            np.testing.assert_allclose(other[name], one[name], atol=1e-6)
        assert set(one["cameras"]) == set(other["cameras"])


@pytest.mark.parametrize("axle", [NOWHERE, se3(-1.2, 0.3, 0.1, z=-0.5)])
def test_a_log_of_ten_hertz_keeps_its_own_poses(tmp_path: Path, axle: PoseSE3) -> None:
    about = vehicle(axle)
    log = write_log(tmp_path, (circle(0.1 * index, about) for index in range(120)))
    contents = Contents(cameras=("CAM_F0",), future=6.4, interval=0.1)
    content = convert_123d(tmp_path, SPLIT, SceneFilter(), tmp_path / "out", None, contents, tmp_path / "sensors")
    rows, api = rows_of(tmp_path / "out"), ArrowSceneAPI(log)
    assert content["interval"] == 0.1
    assert [row["timestamp_us"] - START for row in rows] == list(range(1_500_000, 5_500_001, 500_000))
    for row in rows:
        now = (row["timestamp_us"] - START) // 100_000
        origin = api.get_ego_state_se3_at_iteration(now).rear_axle_se2
        for step, pose in enumerate(row["future"], 1):
            at = api.get_ego_state_se3_at_iteration(now + step).rear_axle_se2
            c, s = np.cos(origin.yaw), np.sin(origin.yaw)
            dx, dy = at.x - origin.x, at.y - origin.y
            np.testing.assert_allclose(pose, [c * dx + s * dy, c * dy - s * dx, at.yaw - origin.yaw], atol=1e-6)
        np.testing.assert_allclose(row["history"][0], [-40 * np.sin(0.3), 40 * (1 - np.cos(0.3)), -0.3], atol=2e-2)
        assert row["cameras"] == {"CAM_F0": f"drive/pcam_f0/{now}.jpg"}
        assert row["command"] == "left"
    np.testing.assert_allclose(rows[0]["velocity"], [8, 0], atol=1e-6)
    np.testing.assert_allclose(rows[0]["acceleration"], [0, 1.6], atol=1e-6)


def test_instants_between_frames_lie_on_the_line_between_them(tmp_path: Path) -> None:
    about = vehicle()
    write_log(tmp_path, (circle(index / 12, about) for index in range(120)), cameras=())
    contents = Contents(cameras=())
    convert_123d(tmp_path, SPLIT, SceneFilter(), tmp_path / "out", None, contents)
    for row in rows_of(tmp_path / "out")[:3]:
        seconds = (row["timestamp_us"] - START) / 1e6
        angles = 8.0 * 0.5 * np.arange(1, 9) / 40
        wanted = np.stack([40 * np.sin(angles), 40 * (1 - np.cos(angles)), angles], axis=1)
        assert seconds * 12 == pytest.approx(round(seconds * 12), abs=1e-4)  # now is a frame
        np.testing.assert_allclose(row["future"], wanted, atol=1e-2)
        assert row["cameras"] == {"CAM_F0": None, "CAM_L0": None, "CAM_R0": None}


def test_frames_that_123d_left_out_are_named_and_no_neighbour_takes_their_place(tmp_path: Path) -> None:
    """Of nuPlan's sweeps, 0.05 s apart, every second one becomes a frame: the other tokens are not there."""
    about = vehicle()
    sweeps = [f"{index:016x}" for index in range(240)]
    kept = sweeps[1::2]
    write_log(tmp_path, (circle(0.05 + 0.1 * i, about) for i in range(120)), tokens=kept, cameras=())
    chosen = SceneFilter(tokens=frozenset({sweeps[61], sweeps[80], sweeps[91]}), num_future_frames=8)
    content = convert_123d(tmp_path, SPLIT, chosen, tmp_path / "out", None, Contents(cameras=()))
    assert [row["token"] for row in rows_of(tmp_path / "out")] == [sweeps[61], sweeps[91]]
    assert content["absent"]["tokens"] == [sweeps[80]]


def test_a_gap_costs_the_scenes_that_see_it(tmp_path: Path) -> None:
    about = vehicle()
    seconds = [0.1 * index for index in range(200) if not 80 < index < 92]
    write_log(tmp_path, (circle(second, about) for second in seconds), cameras=())
    content = convert_123d(tmp_path, SPLIT, SceneFilter(), tmp_path / "out", None, Contents(cameras=()))
    assert content["skipped"]
    assert "no frames for 1.2 s" in content["skipped"][0]["reason"]


def test_pictures_inside_the_log_become_files(tmp_path: Path) -> None:
    about = vehicle()
    states = [circle(0.5 * index, about) for index in range(20)]
    write_log(tmp_path, states, camera_store_option="jpeg_binary")
    content = convert_123d(tmp_path, SPLIT, SceneFilter(), tmp_path / "out")
    row = rows_of(tmp_path / "out")[0]
    assert (Path(content["sensors"]) / row["cameras"]["CAM_L0"]).read_bytes() == jpeg(3)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert not any(name.startswith("pictures") for name in manifest["files"])


def test_the_command_says_what_the_scorer_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about = vehicle()
    write_log(tmp_path, (circle(0.5 * index, about) for index in range(20)))
    line = ["convert", "--format", "123d", "--data", tmp_path, "--split", SPLIT, "--out", tmp_path / "out"]
    assert main([*map(str, line), "--sensors", str(tmp_path / "sensors")]) == 0
    assert "for NAVSIM's scorer: NAVSIM's map layers, box_detections_se3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("ego_state_se3.arrow", "has no modality ego_state_se3"),
        ("camera.pcam_l0.arrow", "has no camera CAM_L0 .there are: PCAM_F0, PCAM_R0"),
        ("sync.arrow", "no 123D logs"),
    ],
)
def test_a_missing_modality_is_one_line(tmp_path: Path, missing: str, words: str) -> None:
    about = vehicle()
    log = write_log(tmp_path, (circle(0.5 * index, about) for index in range(20)))
    (log / missing).unlink()
    with pytest.raises(InputError, match=words):
        convert_123d(tmp_path, SPLIT, SceneFilter(), tmp_path / "out")


def test_damage_and_strangers_are_one_line(tmp_path: Path) -> None:
    about = vehicle()
    log = write_log(tmp_path, (circle(0.5 * index, about) for index in range(20)))
    with pytest.raises(InputError, match="--sensors: logs of toy name pictures by path"):
        convert_123d(tmp_path, SPLIT, SceneFilter(), tmp_path / "a")
    with pytest.raises(InputError, match="did you mean 'toy_val'"):
        convert_123d(tmp_path, "toy_va", SceneFilter(), tmp_path / "b")
    other = write_log(tmp_path, (circle(0.5 * index, about) for index in range(20)), "other")
    (other / "sync.arrow").write_bytes((log / "sync.arrow").read_bytes()[:200])
    with pytest.raises(InputError, match="other: cannot be read as a 123D log"):
        convert_123d(tmp_path, SPLIT, SceneFilter(log_names=frozenset({"other"})), tmp_path / "c")
