"""The loop keeps to the world it drives in, and its verdicts to what geometry says."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

from navsim_adapter.cache.build import build_scene
from navsim_adapter.closed_loop import course as course_module
from navsim_adapter.closed_loop.course import START
from navsim_adapter.closed_loop.drive import Manner, Plan, path_to_follow, play
from navsim_adapter.closed_loop.drivers import BUILT_IN
from navsim_adapter.closed_loop.judge import judge, progress, share, windows
from navsim_adapter.metric import driven, engine
from navsim_adapter.metric.scene_index import build_index
from navsim_adapter.nuplan.boxes import box_corners, ego_corners
from navsim_adapter.nuplan.root import DataRoot
from navsim_adapter.nuplan.scenes import SceneFilter, find_scenes
from navsim_adapter.synthetic.cameras import PICTURED

MANNER = Manner()


def verdict_of(course, states, traffic="idm"):
    return judge(course, play(course, traffic, states), states)


def test_the_human_scores_as_the_log_says(courses, world):
    """The rules on the log's own scenes, as the scorer has them, against the rules on the drive that goes on."""
    root = DataRoot(world, world / "maps")
    scenes = {}
    for scene in find_scenes(root, "test", SceneFilter()):
        scenes.setdefault(scene.now.log_name, scene)
    for course in courses:
        logged = build_index(build_scene(scenes[course.name], course.city), "epdms").human
        found = BUILT_IN["human"].drive(course, Manner(steps=40), 0)
        verdict = verdict_of(course, found.states)
        assert verdict.at_fault_collision == (logged[engine.RAW + engine.NC] < 1)
        assert verdict.off_road == (logged[engine.RAW + engine.DAC] < 1)
        assert verdict.red_light == (logged[engine.RAW + engine.TLC] < 1)
        whole = progress(course, found.states[:, :3])
        assert whole == pytest.approx(logged[engine.PROGRESS_RAW], abs=2.0)
        assert share(whole, whole) == 1


def test_around_the_human_reacting_others_do_what_the_log_says(courses):
    for course in courses:
        states = BUILT_IN["human"].drive(course, MANNER, 0).states
        reacting, replayed = (play(course, traffic, states) for traffic in ("idm", "log-replay"))
        for ours, theirs in zip(reacting, replayed):
            for a, b in zip(ours.objects, theirs.objects, strict=True):
                assert (a.id, a.name) == (b.id, b.name)
                assert (a.x, a.y) == pytest.approx((b.x, b.y), abs=1e-6)


def test_others_react_to_a_car_that_stands_in_their_way(courses):
    apart = 0.0
    for course in courses:
        states = BUILT_IN["stand_still"].drive(course, MANNER, 0).states
        last = [{o.id: o for o in play(course, traffic, states)[-1].objects} for traffic in ("idm", "log-replay")]
        both = last[0].keys() & last[1].keys()
        apart = max([apart, *(np.hypot(last[0][i].x - last[1][i].x, last[0][i].y - last[1][i].y) for i in both)])
    assert apart > 3


@pytest.mark.parametrize("name", ["human_plan", "pdm_closed", "stand_still", "constant_velocity"])
def test_verdicts_agree_with_plain_geometry(courses, name):
    """Corners against the drivable ground, boxes against boxes: no rule of the metric is asked."""
    for course in courses:
        states = BUILT_IN[name].drive(course, MANNER, 0).states
        verdict = verdict_of(course, states)
        corners = ego_corners(states[:, :3])
        ground = shapely.buffer(course.log.recording.setting.site.drivable, 0.02)
        is_off = ~shapely.contains_xy(ground, corners[..., 0], corners[..., 1]).all(axis=1)
        assert is_off.any() or not verdict.off_road
        if not verdict.is_over:
            wide = shapely.buffer(ground, 0.1)
            assert shapely.contains_xy(wide, corners[..., 0], corners[..., 1]).all()
        if verdict.at_fault_collision:
            step = round(verdict.collision_time * 10)
            assert touches(course, states, step)


def touches(course, states, step):
    """The rules see the others every half second and straight between: allow for what that is off."""
    now = play(course, "idm", states[: step + 1])[-1]
    rows = np.array([(o.x, o.y, o.heading, *o.size[:2]) for o in now.objects])
    boxes = shapely.polygons(box_corners(rows[:, :2], rows[:, 2], rows[:, 3:] / 2))
    return shapely.distance(boxes, shapely.polygons(ego_corners(states[step, :3]))).min() < 0.3


def test_a_car_on_its_way_moves_as_its_speed_says(courses):
    for course in courses:
        states = BUILT_IN["pdm_closed"].drive(course, MANNER, 0).states
        moved = np.hypot(*np.diff(states[:, :2], axis=0).T)
        np.testing.assert_allclose(moved, np.abs(states[:-1, 3]) * 0.1, atol=1e-3)
        turned = np.diff(np.unwrap(states[:, 2]))
        np.testing.assert_allclose(turned, states[:-1, 9] * 0.1, atol=1e-6)


@pytest.mark.parametrize(("speed", "radius"), [(8.0, 30.0), (5.0, -15.0)])
def test_who_plans_the_same_bend_again_and_again_drives_it(speed, radius):
    """Plans of half-second poses that start where the car is: the wheels stay turned from one plan to the next."""
    state = np.array([*STATE[:3], speed, *np.zeros(7)])
    along = speed * 0.5 * np.arange(1, 9)
    turn = along / radius
    for _ in range(12):
        ahead, left = radius * np.sin(turn), radius * (1 - np.cos(turn))
        c, s = np.cos(state[2]), np.sin(state[2])
        poses = np.column_stack([state[0] + c * ahead - s * left, state[1] + s * ahead + c * left, state[2] + turn])
        path = path_to_follow(Plan(500_000 * np.arange(1, 9), poses), state, 0)
        state = driven.follow(state, path)[5]
    assert state[9] / state[3] == pytest.approx(1 / radius, rel=0.05)
    assert state[3] == pytest.approx(speed, rel=0.02)


def test_the_cameras_see_from_where_the_car_went(courses):
    course = courses[0]
    states = BUILT_IN["constant_velocity"].drive(course, MANNER, 0).states
    start, end = (play(course, "idm", states[:n])[-1] for n in (1, 81))
    human = course.human[START]
    assert course.pictures(start) == course.pictures(human)
    assert set(course.pictures(end)) == set(PICTURED)
    assert course.pictures(end) != course.pictures(course.human[START + 80])


def test_the_same_seed_gives_the_same_drive_and_another_seed_other_sensors(courses):
    runs = [BUILT_IN["constant_velocity"].drive(courses[0], MANNER, seed).states for seed in (3, 3, 4)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).any()


@pytest.mark.parametrize("name", ["human", "human_plan"])
def test_a_drive_ends_where_the_way_ends_and_not_before_the_rules_have_seen_four_seconds(courses, monkeypatch, name):
    for at, ended in ((60, 60), (10, 41)):
        left = len(courses[0].way.points) - 1 - courses[0].human[START + at].ego.s
        monkeypatch.setattr(course_module, "END_OF_WAY", left)
        steps = len(BUILT_IN[name].drive(courses[0], Manner(replan=1), 0).states) - 1
        assert steps == pytest.approx(ended, abs=3)
        assert steps >= 40


def test_windows_cover_a_drive_and_end_with_it():
    assert windows(40) == [0]
    assert windows(80) == [0, 20, 40]
    assert windows(93) == [0, 20, 40, 53]


STATE = np.array([10.0, 5.0, 3.0, 4.0, 0, 0, 0, 0, 0, 0, 0])


def test_a_plan_starts_where_the_car_is_and_ends_at_its_last_pose():
    plan = Plan(np.array([500_000, 1_000_000]), np.array([[12.0, 5.0, 3.1], [14.0, 6.0, -3.1]]))
    path = path_to_follow(plan, STATE, 0)
    assert path[0].tolist() == STATE[:3].tolist()
    np.testing.assert_allclose(path[[5, 10]], plan.poses, atol=1e-12)
    np.testing.assert_allclose(path[40], plan.poses[1], atol=1e-12)
    assert np.abs(path[:, 2]).max() <= np.pi


def test_a_plan_that_says_where_the_car_is_now_is_believed():
    plan = Plan(np.array([0, 500_000]), np.array([[9.0, 5.0, 3.0], [14.0, 5.0, 3.0]]))
    assert path_to_follow(plan, STATE, 0)[0].tolist() == [9.0, 5.0, 3.0]
    late = path_to_follow(plan, STATE, 100_000)  # of the first pose is nothing left, of the second 0.4 s
    assert late[0].tolist() == STATE[:3].tolist()
    np.testing.assert_allclose(late[4], [14.0, 5.0, 3.0])


@pytest.mark.parametrize("plan", [None, Plan(np.array([-100_000, 0]), np.ones((2, 3)))])
def test_without_a_pose_to_come_the_car_holds(plan):
    assert (path_to_follow(plan, STATE, 0) == STATE[:3]).all()
