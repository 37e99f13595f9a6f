"""Times, objects and distances behind the sentences, against closed forms on a straight street.

The ego is 5.176 m long; its front is 4.049 m and its rear 1.127 m from the rear axle, its half width 1.1485 m.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from report_evaluation import FULL, SUB_SCORES, straight, street, to_global

from dipole_vla.report import encounters
from dipole_vla.report.scenes import explain
from navsim_adapter.scene_cache import ObjectType, Polygons

FRONT, REAR, HALF_WIDTH = 4.049, 1.127, 1.1485
CAR_REAR = 30.0 - 2.5


def _scores(**changed: float) -> pd.Series:
    return pd.Series({**FULL, **changed})


def test_densified_path_passes_through_its_poses_and_turns_the_short_way() -> None:
    poses = straight(10.0)
    poses[:, 2] = np.where(np.arange(8) % 2, np.pi - 0.01, -np.pi + 0.01)
    path = encounters.densify(poses)
    assert path.shape == (41, 3)
    np.testing.assert_allclose(path[::5, :2][1:], poses[:, :2])
    np.testing.assert_allclose(path[1, 0], 1.0)
    assert np.abs(np.diff(path[5:, 2])).max() < 0.01


def test_collision_is_at_the_first_touch() -> None:
    found = encounters.collision(street(), straight(10.0))
    assert found is not None
    assert found.object_index == 0
    assert found.seconds == pytest.approx(np.ceil((CAR_REAR - FRONT) / 10.0 * 10) / 10)
    assert encounters.collision(street(), straight(5.0)) is None


def test_being_hit_from_behind_is_not_blamed_on_the_ego() -> None:
    chaser = street(car_ahead=-12.0, car_speed=15.0)
    assert encounters.collision(chaser, straight(5.0)) is None


def test_standing_ego_is_not_blamed() -> None:
    crossing = street(car_ahead=20.0, car_speed=-8.0)
    standing = replace(crossing, ego_state=np.array([*crossing.ego_state[:3], *np.zeros(8)]))
    assert encounters.collision(standing, straight(0.0)) is None


def test_clearance_is_the_gap_between_bodies() -> None:
    assert encounters.clearance(street(), straight(5.0), 0) == pytest.approx(CAR_REAR - 20.0 - FRONT)
    absent = replace(street(), object_pose=np.full((1, 51, 3), np.nan))
    assert encounters.clearance(absent, straight(5.0), 0) == np.inf


def test_time_to_collision_looks_nine_tenths_ahead() -> None:
    touch = (CAR_REAR - FRONT) / 10.0
    found = encounters.short_time_to_collision(street(), straight(10.0))
    assert found is not None
    assert touch - 0.9 <= found.seconds <= touch - 0.9 + 0.1
    assert encounters.short_time_to_collision(street(), straight(2.0)) is None


def test_road_departure_is_when_a_corner_crosses_the_edge() -> None:
    drift = 1.0
    found = encounters.road_departure(street(), straight(5.0, drift=-drift))
    assert found is not None
    assert found.seconds == pytest.approx(np.ceil((2.0 - HALF_WIDTH) / drift * 10) / 10)
    assert encounters.road_departure(street(), straight(5.0)) is None


def test_hole_in_the_road_is_off_the_road() -> None:
    scene = street()
    hole = to_global(np.array([(9, -1.9), (9, 1.9), (13, 1.9), (13, -1.9), (9, -1.9)], dtype=float))
    outer = scene.areas.vertices[:5]
    areas = Polygons(np.concatenate([outer, hole]), np.array([0, 5, 10]), np.array([0, 2]))
    holed = replace(scene, areas=areas, area_type=scene.area_type[:1], area_on_route=scene.area_on_route[:1])
    found = encounters.road_departure(holed, straight(10.0))
    assert found is not None
    assert found.seconds == pytest.approx(np.ceil(10 * (9 - FRONT) / 10.0) / 10)


def test_red_light_counts_only_while_red() -> None:
    zone = to_global(np.array([(20, -2), (20, 2), (30, 2), (30, -2), (20, -2)], dtype=float))
    red = np.ones((1, 41), bool)
    red[0, :20] = False
    lights = Polygons(zone, np.array([0, 5]), np.array([0, 1]))
    scene = replace(street(), lights=lights, light_red=red, light_ids=("7",))
    found = encounters.red_light(scene, straight(10.0))  # the front is there from 1.6 s, red from 2.0 s
    assert found is not None
    assert found.seconds == pytest.approx(2.0)
    assert encounters.red_light(replace(scene, light_red=~red), straight(10.0)).seconds == pytest.approx(1.6)  # type: ignore[union-attr]


def test_peak_accelerations_of_constant_braking() -> None:
    seconds = 0.5 * np.arange(1, 9)
    poses = np.stack([10 * seconds - seconds**2, np.zeros(8), np.zeros(8)], axis=1)  # 2 m/s² from 10 m/s
    peaks = encounters.peak_accelerations(poses, 10.0)
    assert peaks["braking"] == pytest.approx(2.0)
    assert peaks["acceleration"] == 0.0
    assert peaks["lateral acceleration"] == 0.0


def test_sentence_of_a_fixed_collision() -> None:
    before = _scores(no_at_fault_collisions=0.0, ego_progress=0.0)
    sentence, moments = explain(street(), before, _scores(), straight(10.0), straight(5.0), list(SUB_SCORES))
    assert sentence == "The reference hits a vehicle at 2.4 s; the chosen plan keeps 3.5 m clear of it."
    assert (moments[0].step, moments[0].object_index) == (24, 0)


def test_sentence_names_the_chosen_plan_when_it_is_to_blame() -> None:
    after = _scores(no_at_fault_collisions=0.5)
    scene = replace(street(), object_type=np.array([ObjectType.TRAFFIC_CONE], np.int8))
    sentence, _ = explain(scene, _scores(), after, straight(5.0), straight(10.0), list(SUB_SCORES))
    assert sentence == "The chosen plan hits a traffic cone at 2.4 s; the reference keeps 3.5 m clear of it."


def test_sentence_without_an_event_says_only_the_verdict() -> None:
    before = _scores(no_at_fault_collisions=0.0)
    for cache in (street(), None):
        sentence, moments = explain(cache, before, _scores(), straight(5.0), straight(5.0), list(SUB_SCORES))
        assert sentence == "The reference causes a collision; the chosen plan does not."
        assert moments == []


def test_sentence_of_progress_and_comfort() -> None:
    before, after = _scores(ego_progress=0.5), _scores(ego_progress=0.75, comfort=0.0)
    sentence, _ = explain(street(), before, after, straight(4.0), straight(6.0), list(SUB_SCORES))
    assert sentence.startswith("The chosen plan drives 8 m farther in 4 s (progress 50 → 75).")
    assert "The chosen plan exceeds the comfort limits (peak braking about" in sentence
