"""PDM-Closed's reference: official trajectories, and closed forms for the rules they might not reach."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapely

from navsim_adapter.cache.build import build_scene
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.nuplan import route
from navsim_adapter.nuplan.boxes import box_corners
from navsim_adapter.nuplan.objects import FrameObjects
from navsim_adapter.pdm_closed import plan_references, rollout
from navsim_adapter.pdm_closed.choice import sample
from navsim_adapter.pdm_closed.forecast import forecast
from navsim_adapter.pdm_closed.gap import footprint_gap
from navsim_adapter.pdm_closed.path import Path
from navsim_adapter.scene_cache import EPDMS, ObjectType
from tests.navsim_adapter import built_scenes
from tests.navsim_adapter.built_scenes import built, listed
from tests.shared import SETS, SHARED, needs_shared

ULP = 2e-9  # two units in the last place of a UTM northing


def _objects(*rows: tuple[ObjectType, float, float, float, float]) -> FrameObjects:
    """Boxes of 4 x 2 m: type, x, y, vx, vy; heading along the road."""
    return FrameObjects(
        tokens=tuple(f"object {place}" for place in range(len(rows))),
        type=np.array([row[0] for row in rows], np.int8),
        size=np.tile([4.0, 2.0], (len(rows), 1)),
        pose=np.array([[row[1], row[2], 0.0] for row in rows]).reshape(-1, 3),
        velocity=np.array([row[3:] for row in rows]).reshape(-1, 2),
    )


def _ego(speed: float) -> np.ndarray:
    return np.array([10.0, 0.0, 0.0, speed, *np.zeros(7)])


def _road(length: float = 300.0) -> np.ndarray:
    x = np.arange(0.0, length + 0.5, 0.5)
    return np.column_stack([x, np.zeros_like(x), np.zeros_like(x)])


def _proposals(speed: float, objects: FrameObjects, lights: tuple = (), limit: float | None = 10.0) -> np.ndarray:
    ego = _ego(speed)
    return rollout.proposals(ego, _road(), limit, forecast(ego[:3], objects, lights))


@needs_shared
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("metric", "folder"), [("pdms", "v1"), ("epdms", "v2")])
def test_references_are_the_official_ones(name: str, metric: str, folder: str) -> None:
    assert SHARED
    root, errors = SHARED / name, {}
    for token in listed(root):
        with np.load(root / "caches" / folder / f"{token}.npz") as official:
            wanted = official["pdm_closed_at_10hz"][:, :3]
        error = getattr(built(root, token)[0], f"reference_{metric}") - wanted
        error[:, 2] = np.mod(error[:, 2] + np.pi, 2 * np.pi) - np.pi
        errors[token] = np.abs(error).max()
    assert len(errors) >= 33
    assert max(errors.values()) < ULP, max(errors, key=lambda token: errors[token])


@needs_shared
def test_equally_near_objects_are_taken_in_the_order_of_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """The references that change when the first object of the list is taken instead; the tree's are official."""
    assert SHARED
    monkeypatch.setattr(rollout, "_tree_rank", lambda corridors, polygons: np.arange(len(polygons)))
    changed = []
    for name in SETS:
        for token in listed(SHARED / name):
            official, town, _ = built(SHARED / name, token)
            insertion = build_scene(built_scenes.scene(SHARED / name, token), town)
            if not np.array_equal(insertion.reference_pdms, official.reference_pdms):
                changed.append(token)
    assert changed


def test_the_first_step_brakes_for_nothing() -> None:
    poses = _proposals(8.0, _objects())
    x = poses[:5, :4, 0] - 10.0
    np.testing.assert_allclose(x[:, 1], 0.8, atol=1e-12)  # step 1 moves with the measured speed
    np.testing.assert_allclose(x[:, 2] - x[:, 1], 0.1 * (8.0 - 0.3), atol=1e-12)  # and brakes with 3 m/s2


def test_a_free_road_is_driven_at_the_target_speed() -> None:
    poses = _proposals(9.0, _objects(), limit=None)
    speed = np.diff(poses[:5, :, 0], axis=1)[:, -1] / 0.1
    target = 15.0 * np.array([0.2, 0.4, 0.6, 0.8, 1.0])
    assert (np.diff(speed) > 0).all()
    assert (speed[2:] <= target[2:]).all()


def test_offset_paths_are_right_then_left() -> None:
    poses = _proposals(5.0, _objects())
    np.testing.assert_allclose(poses[[0, 5, 10], 20, 1], [0.0, -1.0, 1.0], atol=1e-12)


def test_a_standing_car_is_not_run_into() -> None:
    poses = _proposals(8.0, _objects((ObjectType.VEHICLE, 45.0, 0.0, 0.0, 0.0)))
    front = poses[:, :, 0] + 1.461 + 2.588
    assert (front.max(axis=1) < 43.0).all()


def test_a_car_beside_the_corridor_is_ignored() -> None:
    free = _proposals(8.0, _objects())
    beside = _proposals(8.0, _objects((ObjectType.VEHICLE, 45.0, 4.0, 0.0, 0.0)))
    np.testing.assert_array_equal(beside, free)


def test_a_red_light_stops_and_one_around_the_ego_does_not() -> None:
    ahead = [("1", shapely.box(40.0, -3.0, 60.0, 3.0))]
    around = [("2", shapely.box(0.0, -3.0, 60.0, 3.0))]
    assert (_proposals(8.0, _objects(), tuple(ahead))[:, -1, 0] + 4.049 < 40.0).all()
    np.testing.assert_array_equal(_proposals(8.0, _objects(), tuple(around)), _proposals(8.0, _objects()))


def test_objects_move_along_their_boxes() -> None:
    scene = forecast(
        np.zeros(3),
        _objects((ObjectType.VEHICLE, 50.0, 9.0, 3.0, 4.0), (ObjectType.VEHICLE, 60.0, 9.0, -3.0, 4.0)),
        (),
    )
    poses = scene.poses()
    np.testing.assert_allclose(poses[:, 50, 0], [75.0, 35.0])  # |v| = 5 forward and, moving backward, in reverse
    np.testing.assert_allclose(poses[:, :, 1], 9.0)
    np.testing.assert_array_equal(poses[:, 7], poses[:, 6])  # two steps share a map


def test_the_nearest_of_each_kind_are_kept_in_order_of_distance() -> None:
    rows = [(ObjectType.VEHICLE, 99.0 - k, 20.0, 0.0, 0.0) for k in range(60)]
    rows += [(ObjectType.PEDESTRIAN, 50.0 + k, 20.0, 0.0, 0.0) for k in range(30)]
    rows += [(ObjectType.BARRIER, 30.0, 20.0, 0.0, 0.0), (ObjectType.BARRIER, 120.0, 0.0, 0.0, 0.0)]
    scene = forecast(np.zeros(3), _objects(*rows), ())
    counts = np.bincount(scene.type, minlength=7)
    assert counts[ObjectType.VEHICLE] == 50
    assert counts[ObjectType.PEDESTRIAN] == 25
    assert counts[ObjectType.BARRIER] == 1
    assert scene.type[0] == ObjectType.BARRIER
    assert (np.diff(scene.pose[1:51, 0]) > 0).all()


def test_what_overlaps_the_ego_is_listed() -> None:
    objects = _objects((ObjectType.VEHICLE, 3.0, 0.0, 0.0, 0.0), (ObjectType.VEHICLE, 9.0, 0.0, 0.0, 0.0))
    scene = forecast(np.zeros(3), objects, ())
    assert scene.is_collided.tolist() == [True, False]


def test_a_velocity_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(InputError, match="object 0 has velocity NaN"):
        forecast(np.zeros(3), _objects((ObjectType.VEHICLE, 30.0, 0.0, np.nan, 0.0)), ())


def test_gaps_agree_with_geos() -> None:
    generator = np.random.default_rng(5)
    for _ in range(300):
        center = 6e5 + generator.uniform(-8, 8, (2, 2))
        heading, half = generator.uniform(-4, 4, 2), generator.uniform(0.3, 4, (2, 2))
        own, other = box_corners(center, heading, half)
        edges = np.hstack([other, np.roll(other, -1, axis=0)])
        wanted = shapely.distance(shapely.Polygon(own), shapely.Polygon(other))
        assert footprint_gap(own, edges, 0.0, 0.0) == pytest.approx(wanted, abs=1e-9)


def test_paths_project_as_geos() -> None:
    generator = np.random.default_rng(6)
    vertices = np.column_stack([np.cumsum(generator.uniform(-0.2, 1, (50, 2)), axis=0), np.zeros(50)])
    path, points = Path.through(vertices), generator.uniform(0, 25, (200, 2))
    np.testing.assert_allclose(
        path.project(points), shapely.line_locate_point(path.line, shapely.points(points)), atol=1e-9
    )


def test_sampling_asks_up_to_a_microsecond_earlier() -> None:
    poses = np.column_stack([np.arange(41.0), np.zeros(41), np.linspace(3.0, 3.4, 41)])
    sampled = sample(poses, 1_620_260_002_737_263)
    late = poses[:, 0] - sampled[:, 0]
    assert ((late >= 0) & (late < 1.1e-5)).all()
    assert (late > 0).any()
    assert (np.abs(sampled[:, 2]) <= np.pi).all()
    np.testing.assert_allclose(np.unwrap(sampled[:, 2]), poses[:, 2], atol=1e-6)


@needs_shared
def test_metrics_without_enough_future_have_no_reference() -> None:
    assert SHARED
    root = SHARED / "navsim_dev"
    scene, _, objects = built(root, next(iter(listed(root))))
    assert list(plan_references(replace(scene, versions=EPDMS), None, objects, ())) == ["epdms"]


@needs_shared
def test_a_speed_limit_of_zero_has_no_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    assert SHARED
    root = SHARED / "navsim_dev"
    scene = built_scenes.scene(root, next(iter(listed(root))))
    planned = route.plan_route

    def standing(*words):
        plan = planned(*words)
        return replace(plan, start=replace(plan.start, speed_limit=0.0))

    monkeypatch.setattr(route, "plan_route", standing)
    with pytest.raises(InputError, match="speed limit of 0"):
        build_scene(scene, built_scenes.city(root, scene.now.map_name))
