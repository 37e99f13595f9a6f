"""Two stages: official per-scene figures in, official summaries out; and, slowly, from pickles to summaries."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.scoring import two_stage
from navsim_adapter.scoring.two_stage import COLUMNS, STAGES, SUB_SCORES, SceneResult
from tests.shared import SHARED, needs_shared


@cache
def _table(name: str) -> list[dict[str, str]]:
    assert SHARED
    with open(SHARED / "navsim_dev" / "two_stage" / f"{name}.csv") as file:
        return list(csv.DictReader(file))


@cache
def _mapping() -> list[two_stage.Entry]:
    assert SHARED
    return two_stage.read_mapping(SHARED / "navsim_dev" / "two_stage" / "mapping.json")


def _official(name: str) -> Mapping[str, SceneResult]:
    """Results of one trajectory name; `states` carries the official two-frame comfort instead of states."""
    return {
        row["token"]: SceneResult(
            time_us=round(float(row["start_time"]) * 1e6),
            sub_scores=np.array([float(row[column]) for column in SUB_SCORES]),
            start=np.array([float(row["start_point_x"]), float(row["start_point_y"])]),
            end=np.array([float(row["endpoint_x"]), float(row["endpoint_y"])]),
            states=np.array(float(row["two_frame_extended_comfort"])),
        )
        for row in _table("scores_two_stage")
        if row["name"] == name
    }


def _combined(name: str) -> two_stage.TwoStageScores:
    return two_stage.combine(_mapping(), _official(name), lambda now, before: float(now.states))


@needs_shared
@pytest.mark.parametrize("name", ["human", "constant_velocity", "route_centre", "left_0.7", "stopped"])
def test_weights_scores_and_summaries_are_official(name: str) -> None:
    scores = _combined(name)
    official = {row["token"]: row for row in _table("scores_two_stage") if row["name"] == name}
    assert set(scores.tokens) == set(official)
    for place, token in enumerate(scores.tokens):
        wanted = [float(official[token][column]) for column in COLUMNS]
        np.testing.assert_allclose(scores.table[place], wanted, atol=1e-14)
        assert scores.weight[place] == pytest.approx(float(official[token]["weight"]), abs=1e-14)
        assert scores.is_rendered[place] == (official[token]["frame_type"] == "synthetic")
    summaries = {row["stage"]: row for row in _table("summary_two_stage") if row["name"] == name}
    for stage in STAGES:
        wanted = [float(summaries[stage][column]) for column in COLUMNS]
        np.testing.assert_allclose(scores.summary[stage], wanted, atol=1e-14)


@needs_shared
def test_a_missing_scene_is_named_and_an_absent_entry_left_out() -> None:
    results = dict(_official("human"))
    entry = _mapping()[0]
    missing = entry.second[0].now
    del results[missing]
    with pytest.raises(InputError, match=missing):
        two_stage.combine(_mapping(), results, lambda now, before: 1.0)
    del results[entry.first.now], results[entry.first.previous]
    rest = two_stage.combine(_mapping(), results, lambda now, before: 1.0)
    assert not set(entry.tokens) & set(rest.tokens)
    with pytest.raises(InputError, match="none of its recorded scenes"):
        two_stage.combine(_mapping(), {}, lambda now, before: 1.0)


@needs_shared
def test_scenes_that_are_no_pair_are_refused() -> None:
    results = dict(_official("human"))
    now = _mapping()[0].first.now
    results[now] = replace(results[now], time_us=results[now].time_us + 300_000)
    with pytest.raises(InputError, match=r"0\.800 s apart"):
        two_stage.combine(_mapping(), results)


def test_far_scenes_count_equally_and_near_ones_by_the_kernel() -> None:
    end = np.array([6e5, 4e6])
    near = two_stage.kernel_weights(end, end + np.array([[0.0, 0.0], [0.3, 0.4]]))
    np.testing.assert_allclose(near[1] / near[0], np.exp(-0.25 / 0.2))
    assert near.sum() == pytest.approx(1.0)
    np.testing.assert_array_equal(two_stage.kernel_weights(end, end + np.array([[50.0, 0], [0, 3], [9, 9]])), 1 / 3)


def test_mappings_come_from_json_or_the_split_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[["n", "p", [["n2", "p2"]]]]')
    (tmp_path / "b.yaml").write_text("_target_: x\nreactive_all_mapping:\n- [n, p, [[n2, p2]]]\n")
    assert two_stage.read_mapping(tmp_path / "a.json") == two_stage.read_mapping(tmp_path / "b.yaml")


@pytest.mark.parametrize(
    "content", [b'[["n", "p"]]', b'[[["n"], "p", []]]', b'[["n", 7, []]]', b"\x93NUMPY\x01\xff", b"[" * 9999]
)
def test_what_is_no_mapping_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(InputError, match=r"c\.json: no list of .* pass a two-stage mapping"):
        two_stage.read_mapping(tmp_path / "c.json")


@needs_shared
@pytest.mark.slow
def test_from_pickles_to_summaries() -> None:
    from navsim_adapter.cache.build import build_scene
    from navsim_adapter.metric import engine
    from navsim_adapter.nuplan.second_stage import read_second_stage, second_stage_files
    from navsim_adapter.traffic.idm import idm
    from navsim_adapter.traffic.scene import traffic_scene
    from navsim_adapter.traffic.score import score_in_traffic
    from tests.navsim_adapter import built_scenes

    assert SHARED
    root = SHARED / "navsim_dev"
    second = {scene.token: scene for scene in map(read_second_stage, second_stage_files(root / "two_stage"))}
    plans = {}
    for folder in (root, root / "two_stage"):
        with np.load(folder / "trajectories.npz") as content:
            rows = zip(content["token"], content["name"], content["poses"])
            plans |= {(str(token), str(name)): poses for token, name, poses in rows}
    names = {row["name"] for row in _table("summary_two_stage")}
    results: dict[str, dict[str, SceneResult]] = {name: {} for name in names}
    for token in {token for entry in _mapping() for token in entry.tokens}:
        scene = second.get(token) or built_scenes.scene(root, token)
        town = built_scenes.city(root, scene.now.map_name)
        cache = build_scene(scene, town)
        extras = traffic_scene(town, scene.now.ego_pose, scene.moments(1)[0].objects).arrays()
        cache = replace(cache, extras={**cache.extras, **extras})
        poses = np.array([plans[token, name] for name in results])
        table, states = score_in_traffic(cache, poses, 0.5, idm)
        for name, row, state, plan in zip(results, table, states, poses):
            axle, yaw = cache.ego_state[:2], cache.ego_state[2]
            turn = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
            end = axle + turn @ plan[-1, :2]
            results[name][token] = SceneResult(cache.time_us, row[: engine.TWO_FRAME], axle, end, state)
    for name, scenes in results.items():
        scores = two_stage.combine(_mapping(), scenes)
        for row in _table("summary_two_stage"):
            if row["name"] == name:
                wanted = [float(row[column]) for column in COLUMNS]
                np.testing.assert_allclose(scores.summary[row["stage"]], wanted, atol=1e-9)
