"""Second-stage scenes: nuPlan's pickled objects become boxes and lights without nuPlan."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from navsim_adapter.cache.build import build_scene
from navsim_adapter.cache.second_stage import build_second_stage
from navsim_adapter.cli import main
from navsim_adapter.dataset import convert_second_stage
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.nuplan.maps import load_map
from navsim_adapter.nuplan.second_stage import FOLDER, read_second_stage, second_stage_files
from navsim_adapter.scene_cache import EPDMS
from tests.navsim_adapter.tiny import CITY, ORIGIN, TRACKS, frame, write_maps
from tests.shared import SHARED, needs_shared

TOKEN = "s" * 16 + "3"


@pytest.fixture
def nuplan(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Classes of nuPlan's names, so that pickles of them can be written; gone again when they are read."""
    module = ModuleType("nuplan.fake")
    for name in ("Detections", "Tracked", "Agent", "Box", "Point", "Metadata", "Statuses", "Status", "Kind"):
        setattr(module, name, type(name, (), {"__module__": "nuplan.fake"}))
    module.Kind.__reduce__ = lambda self: (module.Kind, (self.value,))  # type: ignore[attr-defined]
    module.Kind.__init__ = lambda self, value: setattr(self, "value", value)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nuplan", ModuleType("nuplan"))
    monkeypatch.setitem(sys.modules, "nuplan.fake", module)
    return module


def _write(folder: Path, nuplan: Any, **changes: Any) -> Path:
    def new(kind: str, **attributes: Any) -> Any:
        made = getattr(nuplan, kind).__new__(getattr(nuplan, kind))
        made.__dict__.update(attributes)
        return made

    def agent(token: str, kind: int, x: float, velocity: float) -> Any:
        center = new("Point", x=x, y=ORIGIN[1], heading=0.1)
        return new(
            "Agent",
            _tracked_object_type=nuplan.Kind(kind),
            _box=new("Box", _center=center, _length=4.0, _width=2.0),
            _metadata=new("Metadata", track_token=token),
            _velocity=new("Point", _x=velocity, _y=0.0),
        )

    def light(state: int) -> Any:
        return new("Status", lane_connector_id=51, status=nuplan.Kind(state))

    steps = range(1, 9)
    detections = [[agent("cone", 3, ORIGIN[0], 9.0), agent(TRACKS[0], 0, ORIGIN[0] - 5 + 5.0 * i, 10.0)] for i in steps]
    content = {
        "scene_metadata": {"log_name": "log-0", "map_name": CITY, "num_history_frames": 4, "scene_token": "x"},
        "frames": [_frame(index) for index in range(4)],
        "extended_detections_tracks": [
            new("Detections", tracked_objects=new("Tracked", tracked_objects=found)) for found in detections
        ],
        "extended_traffic_light_data": [new("Statuses", traffic_lights=[light(2 if i < 3 else 0)]) for i in steps],
    }
    path = folder / FOLDER / "x.pkl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({**content, **changes}))
    for name in ("nuplan", "nuplan.fake"):
        sys.modules.pop(name)
    return path


def _frame(index: int) -> dict[str, Any]:
    logged = frame(index, roadblock_ids=["1", "5", "2"])
    boxes = logged["anns"]
    return {
        "token": "s" * 16 + str(index),
        "timestamp": logged["timestamp"],
        "roadblock_ids": logged["roadblock_ids"],
        "traffic_lights": [(51, False)],
        "annotations": {
            "boxes": boxes["gt_boxes"].astype(np.float32),
            "names": boxes["gt_names"],
            "velocity_3d": boxes["gt_velocity_3d"],
            "instance_tokens": boxes["instance_tokens"],
            "track_tokens": boxes["track_tokens"],
        },
        "ego_status": {
            "ego_pose": np.append(logged["ego2global_translation"][:2], 0.0),
            "ego_velocity": np.array([10, 0], np.float32),
            "ego_acceleration": np.zeros(2, np.float32),
            "driving_command": np.array([0, 1, 0, 0]),
            "in_global_frame": True,
        },
        "lidar_path": None,
        "camera_dict": {"cam_f0": {"data_path": Path("a/b.jpg")}, "cam_b0": {}},
    }


def test_a_second_stage_scene_becomes_a_cache(nuplan: ModuleType, tmp_path: Path) -> None:
    scene = read_second_stage(_write(tmp_path, nuplan))
    assert (scene.token, scene.is_synthetic, len(scene.after)) == (TOKEN, True, 8)
    assert scene.now.cameras == {"CAM_F0": "a/b.jpg"}
    cache = build_scene(scene, load_map(str(write_maps(tmp_path)), CITY))
    assert cache.is_synthetic
    assert cache.versions == EPDMS
    assert cache.human_future is None
    assert cache.object_tokens == (TRACKS[0], TRACKS[1], TRACKS[2], "cone")
    np.testing.assert_allclose(cache.object_pose[0, [0, 40], 0] - ORIGIN[0], [-5, 35], atol=1e-6)
    assert np.isnan(cache.object_pose[3, 4]).all()  # first seen at 0.5 s
    np.testing.assert_array_equal(cache.object_velocity[3], [0, 0])  # static objects carry none
    assert np.flatnonzero(cache.light_red[0]).tolist() == list(range(5, 15))


def test_las_vegas_has_the_name_of_its_map(nuplan: ModuleType, tmp_path: Path) -> None:
    metadata = {"log_name": "log-0", "map_name": "las_vegas", "num_history_frames": 4, "scene_token": "x"}
    assert read_second_stage(_write(tmp_path, nuplan, scene_metadata=metadata)).now.map_name == "us-nv-las-vegas-strip"


def test_tokens_choose_and_an_empty_folder_is_refused(nuplan: ModuleType, tmp_path: Path) -> None:
    _write(tmp_path, nuplan)
    maps = write_maps(tmp_path)
    assert list(build_second_stage(tmp_path, maps)[0]) == [TOKEN]
    assert build_second_stage(tmp_path, maps, frozenset({"other"})) == ({}, [])
    with pytest.raises(InputError, match=r"no second-stage scenes \(\*\.pkl\)"):
        build_second_stage(tmp_path / "empty", maps)


def test_two_files_of_one_rendered_scene_are_refused(nuplan: ModuleType, tmp_path: Path) -> None:
    path = _write(tmp_path, nuplan)
    (path.parent / "y.pkl").write_bytes(path.read_bytes())
    (path.parent / "._x.pkl").write_bytes(b"\x00\x05\x16\x07")
    with pytest.raises(InputError, match=f"two files hold the rendered scene {TOKEN}"):
        build_second_stage(tmp_path, write_maps(tmp_path))


def test_rendered_scenes_become_a_table_with_their_own_pictures_and_no_future(
    nuplan: ModuleType, tmp_path: Path
) -> None:
    from datasets import load_from_disk

    _write(tmp_path, nuplan)
    content = convert_second_stage(tmp_path, tmp_path / "scenes")
    assert content == json.loads((tmp_path / "scenes" / "scenes.json").read_text())
    assert (content["split"], content["count"]) == ("second-stage", 1)
    assert content["sensors"] == str(tmp_path / "sensor_blobs")
    [row] = load_from_disk(str(tmp_path / "scenes"))
    assert (row["token"], row["log_name"], row["map"]) == (TOKEN, "log-0", CITY)
    assert (row["command"], row["velocity"], row["future"]) == ("straight", [10, 0], None)
    assert row["cameras"] == {"CAM_F0": "a/b.jpg", "CAM_L0": None, "CAM_R0": None}
    np.testing.assert_allclose(row["history"], [[5.0 * (j - 3), 0, 0] for j in range(4)], atol=1e-6)


def test_a_table_of_rendered_scenes_is_whole_or_not_there(
    nuplan: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _write(tmp_path, nuplan)
    command = ["convert", "--two-stage", str(tmp_path), "--out", str(tmp_path / "scenes")]
    assert main([*command, "--split", "mini"]) == 2
    assert "leave --split, --filter and --max-scenes out" in capsys.readouterr().err
    assert not (tmp_path / "scenes").exists()
    (path.parent / "y.pkl").write_bytes(path.read_bytes())
    assert main(command) == 2
    assert f"token {TOKEN}: occurs twice, in file x.pkl and file y.pkl" in capsys.readouterr().err
    assert not (tmp_path / "scenes" / "manifest.json").exists()
    (path.parent / "y.pkl").unlink()
    assert main(command) == 0
    assert "1 rendered scenes in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": None}, "field frames is not a list"),
        ({"frames": []}, "has 0 frames, num_history_frames is 4"),
        ({"scene_metadata": {}}, "scene_metadata: field num_history_frames is missing|has 0 frames"),
        ({"extended_detections_tracks": [1]}, "extended objects or lights are not nuPlan's"),
    ],
)
def test_damaged_scenes_are_refused(nuplan: ModuleType, tmp_path: Path, changes: Any, message: str) -> None:
    if "scene_metadata" in changes:
        changes = {**changes, "frames": []}
    with pytest.raises(InputError, match=message):
        read_second_stage(_write(tmp_path, nuplan, **changes))


def test_without_extended_objects_there_is_nothing_to_score(nuplan: ModuleType, tmp_path: Path) -> None:
    path = _write(tmp_path, nuplan, extended_detections_tracks=None, extended_traffic_light_data=None)
    with pytest.raises(InputError, match="has 0 future frames, at least 8 are needed"):
        build_scene(read_second_stage(path), load_map(str(write_maps(tmp_path)), CITY))


@needs_shared
def test_every_scene_of_the_developer_set_can_be_cached() -> None:
    assert SHARED is not None
    folder = SHARED / "navsim_dev" / "two_stage"
    mapping = json.loads((folder / "mapping.json").read_text())
    wanted = {token for entry in mapping for pair in entry[2] for token in pair}
    scenes = [read_second_stage(path) for path in second_stage_files(folder)]
    assert {scene.token for scene in scenes} == wanted
    for scene in scenes:
        cache = build_scene(scene, load_map(str(SHARED / "navsim_dev" / "maps"), scene.now.map_name))
        assert len(cache.token) == 17
        assert not np.isnan(cache.object_pose[:, 40, 0]).all()
