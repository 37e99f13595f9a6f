"""Caches hold what the official builder holds, array for array."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from navsim_adapter.cache.build import build_scene, relative_poses
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.metric.history import history_problem
from navsim_adapter.metric.scene_index import build_index
from navsim_adapter.nuplan.maps import Map, load_map
from navsim_adapter.nuplan.root import DataRoot
from navsim_adapter.nuplan.scenes import Scene, SceneFilter, every_frame, find_scenes
from navsim_adapter.scene_cache import EPDMS, PDMS, AreaType, ObjectType, SceneCache
from navsim_adapter.scoring.rows import score_rows
from navsim_adapter.trajectories import Trajectories
from tests.navsim_adapter.tiny import CITY, ORIGIN, TRACKS, frame, write_frames, write_log, write_maps
from tests.shared import SETS, SHARED, needs_shared

# -- a hand-made scene -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Map:
    return load_map(str(write_maps(tmp_path_factory.mktemp("world"))), CITY)


def _scene(folder: Path, chosen: SceneFilter | None = None, **changes: Any) -> Scene:
    write_log(folder, **changes)
    return next(find_scenes(DataRoot(folder, folder / "maps"), "mini", chosen or SceneFilter()))


def test_a_scene_holds_map_route_objects_and_human(city: Map, tmp_path: Path) -> None:
    cache = build_scene(_scene(tmp_path, roadblock_ids=["1", "5", "2"]), city)
    assert cache.area_ids == ("1", "2", "11", "12", "13", "51", "90", "95")
    assert cache.area_on_route.tolist() == [False, False, True, True, True, True, False, False]
    assert cache.route_lane_ids == ("11", "12", "51", "13")
    assert len(cache.centerline) == 33
    np.testing.assert_allclose(cache.centerline[[0, -1], :2] - ORIGIN, [[-50, 0], [400, 0]], atol=1e-6)
    assert cache.object_tokens == TRACKS
    assert cache.object_versions.tolist() == [PDMS | EPDMS] * 3
    np.testing.assert_array_equal(cache.object_velocity, [[10, 0], [0, 0], [0, 0]])
    np.testing.assert_allclose(cache.object_pose[0, [0, 50], 0] - ORIGIN[0], [-5, 45], atol=1e-9)
    np.testing.assert_allclose(cache.human_future, [[5.0 * i, 0, 0] for i in range(1, 9)], atol=1e-8)
    np.testing.assert_allclose(cache.past_states[:, 0] - ORIGIN[0], [-40, -35, -30, -25])
    assert cache.ego_state[4] == np.float32(0.1)
    assert cache.light_ids == ("51",)
    assert np.flatnonzero(cache.light_red[0]).tolist() == list(range(15))


def test_lights_count_on_the_logged_route_only(city: Map, tmp_path: Path) -> None:
    cache = build_scene(_scene(tmp_path, roadblock_ids=["1", "2"]), city)
    assert "51" in cache.route_lane_ids  # Fix 2 inserted the connector
    assert cache.light_ids == ()


def test_eight_future_frames_suffice_for_epdms_only(city: Map, tmp_path: Path) -> None:
    cache = build_scene(_scene(tmp_path, SceneFilter(num_future_frames=8)), city)
    assert cache.versions == EPDMS
    assert cache.object_versions.tolist() == [EPDMS] * 3
    assert np.isfinite(cache.reference_epdms).all()
    assert np.isnan(cache.reference_pdms).all()
    with pytest.raises(InputError, match="has 5 future frames, at least 8 are needed"):
        build_scene(_scene(tmp_path, SceneFilter(num_future_frames=5)), city)


def _broken(kind: str) -> list[dict[str, Any]]:
    frames = [frame(index) for index in range(15)]
    if kind == "velocity":
        frames[3]["anns"]["gt_velocity_3d"][0, 1] = np.nan
    elif kind == "later velocity":
        frames[5]["anns"]["gt_velocity_3d"][0, 1] = np.nan
    elif kind == "static velocity":
        frames[3]["anns"]["gt_velocity_3d"][2, 1] = np.nan
    elif kind == "box":
        frames[9]["anns"]["gt_boxes"][1, 6] = np.nan
    elif kind == "hidden":
        del frames[9]["anns"]
    elif kind == "route":
        frames[3]["roadblock_ids"] = ["1", "404"]
    elif kind == "off every road":
        for one in frames:
            one["ego2global_translation"] = one["ego2global_translation"] + [0, 250, 0]
    elif kind == "local pose":
        for one in frames:
            one["ego2global_translation"] = one["ego2global_translation"] - [*ORIGIN, 0]
    elif kind == "speed":
        frames[3]["ego_dynamic_state"] = [np.nan, 0, 0, 0]
    elif kind == "pose":
        frames[5]["ego2global_translation"] = np.array([np.inf, 0, 0])
    elif kind == "token":
        frames[3]["anns"]["track_tokens"] = [TRACKS[0], TRACKS[0], TRACKS[2]]
    elif kind == "later token":
        for one in frames[3:5]:
            one["anns"]["track_tokens"] = ["x", "y", TRACKS[2]]
        frames[5]["anns"]["track_tokens"] = [TRACKS[0], TRACKS[0], TRACKS[2]]
    return frames


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("velocity", f"object {TRACKS[0]} has a velocity with NaN"),
        ("box", f"object {TRACKS[1]} has a box with NaN"),
        ("hidden", "has no annotations"),
        ("route", "has no roadblock 404"),
        ("off every road", "has nothing within 100 m of the ego"),
        ("local pose", "has nothing within 100 m of the ego"),
        ("speed", "frame 0000000000000003: the ego's speed or acceleration is NaN"),
        ("pose", "frame 0000000000000005: the ego's pose is NaN"),
        ("token", f"2 objects of the current frame share the track token {TRACKS[0]}"),
        ("later token", f"2 objects 1 s after now share the track token {TRACKS[0]}"),
    ],
)
def test_what_has_no_official_cache_has_none_here(city: Map, tmp_path: Path, kind: str, message: str) -> None:
    write_frames(tmp_path, _broken(kind))
    scene = next(find_scenes(DataRoot(tmp_path, tmp_path), "mini", SceneFilter()))
    with pytest.raises(InputError, match=rf"scene 0000000000000003 of log-0: .*{message}"):
        build_scene(scene, city)


@pytest.mark.parametrize("kind", ["later velocity", "static velocity"])
def test_unused_velocities_may_be_missing(city: Map, tmp_path: Path, kind: str) -> None:
    write_frames(tmp_path, _broken(kind))
    cache = build_scene(next(find_scenes(DataRoot(tmp_path, tmp_path), "mini", SceneFilter())), city)
    assert np.isfinite(cache.object_velocity).all()


def test_history_comfort_reads_four_frames_however_many_a_filter_names(city: Map, tmp_path: Path) -> None:
    write_log(tmp_path)

    def past(count: int) -> SceneCache:
        filtered = SceneFilter(num_history_frames=count, num_future_frames=8)
        scenes = find_scenes(DataRoot(tmp_path, tmp_path), "mini", filtered)
        return build_scene(next(scene for scene in scenes if scene.token.endswith("5")), city)

    four, six = past(4), past(6)
    assert six.past_states.shape == (4, 11)
    np.testing.assert_array_equal(six.past_states, four.past_states)
    np.testing.assert_array_equal(six.past_time_us, four.past_time_us)


@pytest.mark.parametrize("kind", ["two frames", "milliseconds", "seconds", "nanoseconds", "zero", "repeated"])
def test_a_history_that_is_none_leaves_pdms_alone(city: Map, tmp_path: Path, kind: str) -> None:
    frames = [frame(index) for index in range(15)]
    of = {"milliseconds": lambda t: t // 1000, "seconds": lambda t: t // 10**6, "nanoseconds": lambda t: t * 1000}
    for one in frames:
        one["timestamp"] = 0 if kind == "zero" else of.get(kind, int)(one["timestamp"])
    if kind == "repeated":
        frames[1]["timestamp"] = frames[0]["timestamp"]
    write_frames(tmp_path, frames)
    history = 2 if kind == "two frames" else 4
    scene = next(find_scenes(DataRoot(tmp_path, tmp_path), "mini", SceneFilter(num_history_frames=history)))
    cache = build_scene(scene, city)
    assert cache.versions == PDMS
    assert np.isfinite(cache.reference_pdms).all()
    problem = history_problem(cache.past_states, cache.past_time_us)
    assert problem
    for scored, expected in ((cache, problem), (replace(cache, versions=PDMS | EPDMS), problem)):  # as older caches say
        rows = Trajectories((scene.token,), ("p",), [np.zeros((8, 3))], np.full(1, 0.5))
        assert score_rows({scene.token: scored}, rows, "epdms").failures == {0: f"scene {scene.token}: {expected}"}
    with pytest.raises(InputError, match=r"history"):
        build_index(replace(cache, versions=PDMS | EPDMS), "epdms")


def test_relative_poses_undo_a_rigid_motion() -> None:
    rng = np.random.default_rng(0)
    poses = rng.uniform(-1, 1, (20, 3)) * [50, 50, 3]
    origin = np.array([100.0, -50.0, 2.0])
    turned = poses[:, :2] @ np.array([[np.cos(2), np.sin(2)], [-np.sin(2), np.cos(2)]]) + origin[:2]
    moved = relative_poses(origin, np.column_stack([turned, poses[:, 2] + 2]))
    np.testing.assert_allclose(moved, poses, atol=1e-12)


# -- official figures --------------------------------------------------------------------------------------------------


def _official() -> Iterator[Any]:
    for name in SETS if SHARED else ():
        for entry in json.loads((SHARED / name / "scenes.json").read_text()):
            yield pytest.param(name, entry["token"], id=f"{name}-{entry['situation']}-{entry['token'][:4]}")


@pytest.fixture(scope="module")
def built() -> dict[str, SceneCache]:
    caches = {}
    for name in SETS:
        assert SHARED is not None
        tokens = [entry["token"] for entry in json.loads((SHARED / name / "scenes.json").read_text())]
        root = DataRoot(SHARED / name, SHARED / name / "maps")
        for scene in find_scenes(root, "mini", every_frame(tokens)):
            caches[scene.token] = build_scene(scene, load_map(str(root.maps), scene.now.map_name))
    return caches


def _load(name: str, version: str, token: str) -> dict[str, np.ndarray]:
    assert SHARED is not None
    with np.load(SHARED / name / "caches" / version / f"{token}.npz") as content:
        return dict(content)


@needs_shared
@pytest.mark.parametrize(("name", "token"), list(_official()))
def test_every_array_is_the_official_one(built: dict[str, SceneCache], name: str, token: str) -> None:
    cache, v1, v2 = built[token], _load(name, "v1", token), _load(name, "v2", token)
    # Headings: the figures were made where numpy's arctangent differs from the C library's in the last bit.
    np.testing.assert_allclose(cache.ego_state, v1["ego_state"], rtol=0, atol=5e-16)
    assert cache.time_us == v1["ego_time_us"]
    np.testing.assert_allclose(cache.centerline, v1["centerline"], rtol=0, atol=2e-15)
    assert cache.route_lane_ids == tuple(v1["route_lane_ids"])
    _check_areas(cache, v1)
    _check_objects(cache, PDMS, 51, v1, v1)
    _check_objects(cache, EPDMS, 41, v2, v2 if "box_step" in v2 else v1)
    _check_lights(cache, v2)
    np.testing.assert_allclose(cache.human_future, v2["human_trajectory"], rtol=0, atol=2e-9)
    np.testing.assert_allclose(cache.past_states, v2["past_human_states"], rtol=0, atol=5e-16)
    np.testing.assert_array_equal(cache.past_time_us, v2["past_human_time_us"])
    for poses, official in ((cache.reference_pdms, v1), (cache.reference_epdms, v2)):
        np.testing.assert_allclose(poses, official["pdm_closed_at_10hz"][:, :3], rtol=0, atol=2e-9)


def _check_areas(cache: SceneCache, official: dict[str, np.ndarray]) -> None:
    assert cache.area_ids == tuple(official["drivable_tokens"])
    assert [AreaType(kind).name for kind in cache.area_type] == official["drivable_types"].tolist()
    if "drivable_coords" in official:
        np.testing.assert_array_equal(cache.areas.vertices, official["drivable_coords"])
        sizes = np.diff(cache.areas.ring_start[cache.areas.polygon_start])
        np.testing.assert_array_equal(sizes, official["drivable_sizes"])
    if "drivable_rings" in official:
        np.testing.assert_array_equal(np.diff(cache.areas.ring_start), official["drivable_rings"][:, 3])


def _check_objects(
    cache: SceneCache, bit: int, steps: int, official: dict[str, np.ndarray], boxes: dict[str, np.ndarray]
) -> None:
    rows = np.flatnonzero(cache.object_versions & bit)
    kept = boxes["box_step"] < steps
    step, token, coords = (boxes[name][kept] for name in ("box_step", "box_token", "box_coords"))
    present = ~np.isnan(cache.object_pose[..., 0])
    mine = [(k, row) for k in np.unique(step) for row in rows if present[row, k]]  # crowds keep a few steps only
    assert [cache.object_tokens[row] for _, row in mine] == token.tolist()
    assert [k for k, _ in mine] == step.tolist()
    corners = np.array([_corners(cache.object_pose[row, k], cache.object_size[row]) for k, row in mine])
    np.testing.assert_allclose(corners.reshape(-1, 5, 2), coords, rtol=0, atol=1e-9)
    first = {row: int(np.argmax(present[row])) for row in rows}
    order = sorted(rows, key=lambda row: first[row])
    assert [cache.object_tokens[row] for row in order] == official["object_token"].tolist()
    assert [ObjectType(cache.object_type[row]).name for row in order] == official["object_type"].tolist()
    velocity = official["object_velocity"].reshape(-1, 2)
    np.testing.assert_allclose(cache.object_velocity[order].reshape(-1, 2), velocity, rtol=0, atol=1e-14)
    heading = np.array([cache.object_pose[row, first[row], 2] for row in order])
    np.testing.assert_allclose(heading, official["object_heading"], rtol=0, atol=2e-15)


def _corners(pose: np.ndarray, size: np.ndarray) -> np.ndarray:
    x, y = (np.array([[1, 1], [-1, 1], [-1, -1], [1, -1], [1, 1]]) * size / 2).T
    cosine, sine = np.cos(pose[2]), np.sin(pose[2])
    return np.column_stack([pose[0] + x * cosine - y * sine, pose[1] + x * sine + y * cosine])


def _check_lights(cache: SceneCache, official: dict[str, np.ndarray]) -> None:
    mine = [(k, row) for k in range(41) for row in range(len(cache.light_ids)) if cache.light_red[row, k]]
    assert [k for k, _ in mine] == official["red_light_step"].tolist()
    if mine:
        assert [f"red_light_{cache.light_ids[row]}" for _, row in mine] == official["red_light_token"].tolist()
        rows = np.array([row for _, row in mine])
        np.testing.assert_array_equal(cache.lights.take(rows).vertices, official["red_light_coords"])
