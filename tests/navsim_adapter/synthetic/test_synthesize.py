"""The whole data root, as a user of the data set finds it."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from navsim_adapter.cache.build import build_scene
from navsim_adapter.commands import synth as command
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import MANIFEST, verify
from navsim_adapter.nuplan.logs import read_log
from navsim_adapter.nuplan.maps import load_map
from navsim_adapter.nuplan.root import DataRoot
from navsim_adapter.nuplan.scenes import SceneFilter, find_scenes
from navsim_adapter.nuplan.unpickle import read_pickle
from navsim_adapter.synthetic.synthesize import synthesize

SPLITS = {"trainval": 12, "mini": 2, "test": 6}
PER_LOG = {"trainval": 2, "mini": 1, "test": 1}
FRAME_KEYS = {
    "token", "frame_idx", "timestamp", "log_name", "log_token", "scene_name", "scene_token", "map_location",
    "roadblock_ids", "vehicle_name", "can_bus", "lidar_path", "lidar2ego_translation", "lidar2ego_rotation",
    "lidar2ego", "lidar2global", "ego2global_translation", "ego2global_rotation", "ego2global", "ego_dynamic_state",
    "traffic_lights", "driving_command", "cams", "sample_prev", "sample_next", "anns",
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "data"
    assert synthesize(out, 0, SPLITS, PER_LOG)
    return out


def frames_of(root: Path, split: str) -> list[list[dict]]:
    return [read_pickle(path) for path in sorted((root / "navsim_logs" / split).glob("*.pkl"))]


def test_every_split_has_its_scenes_and_the_manifest_holds(root):
    verify(root)
    data = DataRoot(root, root / "maps")
    for split, count in SPLITS.items():
        assert len(list(find_scenes(data, split, SceneFilter()))) == count


def test_frames_have_every_field_with_its_type(root):
    for log in frames_of(root, "trainval"):
        tokens = [frame["token"] for frame in log]
        assert len(set(tokens)) == len(tokens)
        for i, frame in enumerate(log):
            assert set(frame) >= FRAME_KEYS
            assert len(frame["token"]) == 16
            assert frame["can_bus"].shape == (18,)
            assert frame["driving_command"].sum() == 1
            assert frame["sample_prev"] == (tokens[i - 1] if i else None)
            assert all(isinstance(block, str) for block in frame["roadblock_ids"])
            assert all(type(light[0]) is int and type(light[1]) is bool for light in frame["traffic_lights"])
            assert len(frame["cams"]) == 8
            anns = frame["anns"]
            assert anns["gt_boxes"].dtype == np.float64
            assert len(anns["gt_boxes"]) == len(anns["gt_names"]) == len(anns["track_tokens"])
            x, y = frame["ego2global_translation"][:2]
            assert np.allclose(frame["ego2global"][:2, 3], (x, y))


def test_timestamps_jitter_around_two_hertz(root):
    steps = np.concatenate([np.diff([frame["timestamp"] for frame in log]) for log in frames_of(root, "trainval")])
    assert np.abs(steps - 500_000).max() <= 600
    assert np.ptp(steps) > 0


def test_velocity_acceleration_and_poses_belong_together(root):
    for log in frames_of(root, "trainval"):
        place = np.array([frame["ego2global_translation"][:2] for frame in log])
        speed = np.array([frame["ego_dynamic_state"][0] for frame in log])
        moved = np.hypot(*np.diff(place, axis=0).T)
        assert np.abs(moved - 0.25 * (speed[1:] + speed[:-1])).max() < 0.3


def test_tracks_keep_their_tokens_and_their_size(root):
    for log in frames_of(root, "trainval"):
        sizes: dict[str, np.ndarray] = {}
        for frame in log:
            for token, box in zip(frame["anns"]["track_tokens"], frame["anns"]["gt_boxes"]):
                assert np.array_equal(sizes.setdefault(token, box[3:6]), box[3:6])


def test_every_current_frame_has_its_three_pictures(root):
    for split in SPLITS:
        for log in frames_of(root, split):
            for frame in log[3:-10]:
                for name in ("CAM_F0", "CAM_L0", "CAM_R0"):
                    with Image.open(root / "sensor_blobs" / split / frame["cams"][name]["data_path"]) as image:
                        assert image.size == (160, 90)


def test_all_scenes_can_be_cached_for_scoring(root):
    data = DataRoot(root, root / "maps")
    for split in SPLITS:
        for scene in find_scenes(data, split, SceneFilter()):
            cache = build_scene(scene, load_map(data.maps, scene.now.map_name))
            nearest = np.hypot(*(cache.centerline[:, :2] - cache.ego_state[:2]).T).min()
            assert nearest < 2.5
            assert cache.human_future is not None
            assert len(cache.object_tokens)


def test_commands_follow_the_route(root):
    commands = {command for split in SPLITS for log in frames_of(root, split) for frame in log for command in
                [tuple(frame["driving_command"])]}  # fmt: skip
    assert (0, 1, 0, 0) in commands
    assert commands & {(1, 0, 0, 0), (0, 0, 1, 0)}


def test_test_scenes_drive_on_roads_that_training_never_saw(root):
    routes = {
        split: {block for log in frames_of(root, split) for frame in log for block in frame["roadblock_ids"]}
        for split in SPLITS
    }
    assert not routes["test"] & routes["trainval"]
    assert not routes["test"] & routes["mini"]
    assert not routes["mini"] & routes["trainval"]
    cities = {split: {log[0]["map_location"] for log in frames_of(root, split)} for split in SPLITS}
    assert "sg-one-north" in cities["test"]
    assert "sg-one-north" not in cities["trainval"] | cities["mini"]


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_processes(tmp_path):
    splits, per_log = {"trainval": 2, "test": 1}, {"trainval": 1, "test": 1}
    synthesize(tmp_path / "a", 7, splits, per_log)
    synthesize(tmp_path / "b", 7, splits, per_log, workers=2)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    synthesize(tmp_path / "c", 8, splits, per_log)
    assert not set(files(tmp_path / "a")) & {name for name in files(tmp_path / "c") if name.endswith(".pkl")}


def test_a_complete_root_is_left_alone_and_an_interrupted_one_is_finished(root, tmp_path):
    assert not synthesize(root, 0, SPLITS, PER_LOG)
    torn = tmp_path / "torn"
    shutil.copytree(root, torn)
    victim = sorted((torn / "navsim_logs" / "trainval").glob("*.pkl"))[2]
    kept = sorted((torn / "navsim_logs" / "trainval").glob("*.pkl"))[0]
    before = kept.stat().st_mtime_ns
    victim.unlink()
    (torn / MANIFEST).unlink()
    (torn / "sensor_blobs" / "trainval" / f".{victim.stem}.part").mkdir()
    assert synthesize(torn, 0, SPLITS, PER_LOG)
    assert files(torn) == files(root)
    assert kept.stat().st_mtime_ns == before


def test_other_arguments_or_a_foreign_folder_are_refused(root, tmp_path):
    with pytest.raises(InputError, match="seed: this folder was made with 0, now 1"):
        synthesize(root, 1, SPLITS, PER_LOG)
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="something else"):
        synthesize(tmp_path, 0, SPLITS, PER_LOG)
    with pytest.raises(InputError, match="trainval"):
        synthesize(tmp_path / "new", 0, {"trainvall": 1})
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_the_command_writes_what_its_options_say(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    out = tmp_path / "data"
    options = ["--out", str(out), "--seed", "3", "--train", "6", "--validation", "0", "--test", "0"]
    assert command.run(parser.parse_args(options)) == 0
    assert len(list((out / "navsim_logs" / "trainval").glob("*.pkl"))) == 1
    assert not (out / "navsim_logs" / "mini").exists()
    assert "wrote" in capsys.readouterr().out
    log = next((out / "navsim_logs" / "trainval").glob("*.pkl"))
    assert len(read_log(log)) == 19
