"""The engine against the plain scorer and against symmetry, on random worlds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from navsim_adapter.scene_cache import Polygons, SceneCache
from navsim_adapter.scoring.scorer import Scorer
from tests.navsim_adapter.scoring import plain
from tests.navsim_adapter.scoring.random_scenes import random_plans, random_scene

NAMES = {
    "pdms": {
        "no_at_fault_collisions": "nc",
        "drivable_area_compliance": "dac",
        "ego_progress": "progress",
        "time_to_collision_within_bound": "ttc",
        "comfort": "comfort",
        "driving_direction_compliance": "direction",
        "score": "score",
        "progress_raw": "raw",
    },
    "epdms": {
        "no_at_fault_collisions": "nc",
        "drivable_area_compliance": "dac",
        "driving_direction_compliance": "ddc",
        "traffic_light_compliance": "tlc",
        "ego_progress": "progress",
        "time_to_collision_within_bound": "ttc",
        "lane_keeping": "lk",
        "history_comfort": "comfort",
        "score": "score",
        "progress_raw": "raw",
    },
}


def check(seed: int, metric: str, count: int) -> None:
    scene, plans = random_scene(seed), random_plans(seed, count)
    scores = Scorer({scene.token: scene}, metric).score([scene.token], plans[None])
    for i, plan in enumerate(plans):
        expected = plain.score(scene, plan, metric)
        own = {short: float(scores[name][0, i]) for name, short in NAMES[metric].items()}
        assert own == pytest.approx({name: expected[name] for name in own}, abs=1e-6), (seed, i)


@pytest.mark.parametrize("metric", ["pdms", "epdms"])
@pytest.mark.parametrize("seed", range(8))
def test_random_plans_in_random_worlds_score_as_the_plain_scorer_says(seed: int, metric: str) -> None:
    check(seed, metric, 3)


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["pdms", "epdms"])
@pytest.mark.parametrize("seed", range(100, 500))
def test_many_random_worlds(seed: int, metric: str) -> None:
    check(seed, metric, 4)


@pytest.mark.parametrize("metric", ["pdms", "epdms"])
@pytest.mark.parametrize("seed", range(30))
def test_moving_and_turning_the_whole_scene_changes_nothing(seed: int, metric: str) -> None:
    scene, plans = random_scene(seed), random_plans(seed, 20)
    moved = _moved(scene, np.array([-3210.0, 1234.0]), 2.0)
    one = Scorer({scene.token: scene}, metric).score([scene.token], plans[None]).table
    other = Scorer({scene.token: moved}, metric).score([scene.token], plans[None]).table
    np.testing.assert_allclose(other, one, atol=1e-6)


def _moved(scene: SceneCache, shift: np.ndarray, turn: float) -> SceneCache:
    about = scene.ego_state[:2]
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])

    def points(values: np.ndarray) -> np.ndarray:
        return (values - about) @ rotation + about + shift

    def poses(values: np.ndarray) -> np.ndarray:
        out = values.copy()
        out[..., :2], out[..., 2] = points(values[..., :2]), np.mod(values[..., 2] + turn + np.pi, 2 * np.pi) - np.pi
        return out

    def polygons(values: Polygons) -> Polygons:
        return replace(values, vertices=points(values.vertices))

    return replace(
        scene,
        ego_state=poses(scene.ego_state),
        centerline=poses(scene.centerline),
        areas=polygons(scene.areas),
        lights=polygons(scene.lights),
        object_pose=poses(scene.object_pose),
        past_states=poses(scene.past_states),
        reference_pdms=poses(scene.reference_pdms),
        reference_epdms=poses(scene.reference_epdms),
    )
