"""Worlds in motion: consistent, and the human's lapses come without warning."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapely

from navsim_adapter.synthetic.driver import Lapse, Window, draw_driver
from navsim_adapter.synthetic.geometry import wrap
from navsim_adapter.synthetic.layouts import build
from navsim_adapter.synthetic.record import _polygons, record
from navsim_adapter.synthetic.setting import survey
from navsim_adapter.synthetic.situations import SITUATIONS, stage
from navsim_adapter.synthetic.world import World

FRAMES, CURRENT = 17, range(3, 7)


@pytest.fixture(scope="module")
def sites():
    return {layout: survey(build(layout, np.random.default_rng(1), 0, np.zeros(2))) for layout in SITUATIONS}


@pytest.fixture(scope="module")
def recordings(sites):
    return {layout: record([3, 1], site, FRAMES, CURRENT, 1.5) for layout, site in sites.items()}


def test_ego_poses_agree_with_velocity_and_yaw_rate(recordings):
    for recording in recordings.values():
        for (a, *_), (b, *_) in zip(recording.frames, recording.frames[1:]):
            moved = np.hypot(b.x - a.x, b.y - a.y)
            assert moved == pytest.approx((a.velocity[0] + b.velocity[0]) / 4, abs=0.25)
            assert abs(wrap(b.heading - a.heading)) < 0.5
            assert abs(b.velocity[0] - a.velocity[0]) <= 0.5 * 7.0 + 1e-6


def test_vehicles_move_as_their_velocity_says(recordings):
    for recording in recordings.values():
        for (_, before, _), (_, after, _) in zip(recording.frames, recording.frames[1:]):
            later = {o.id: o for o in after}
            for o in before:
                if o.name == "vehicle" and o.id in later:
                    moved = np.array([later[o.id].x - o.x, later[o.id].y - o.y])
                    mean = (np.array(o.velocity) + np.array(later[o.id].velocity)) / 2
                    assert np.hypot(*(moved - 0.5 * mean)) < 0.6


def test_other_vehicles_touch_nobody_but_the_human(recordings):
    for recording in recordings.values():
        for _, objects, _ in recording.frames:
            boxes = _polygons(objects)
            moving = [np.hypot(*o.velocity) > 0.05 and o.name == "vehicle" for o in objects]
            for a, b in shapely.STRtree(boxes).query(boxes, predicate="intersects").T:
                assert a == b or not (moving[a] or moving[b])


def test_the_same_seed_gives_the_same_recording(sites):
    first, again = (record([8, 8], sites["merge"], FRAMES, CURRENT, 1.5) for _ in range(2))
    assert first.frames == again.frames


def test_a_world_begun_again_does_the_same_whoever_hands_the_human_his_own_way(sites):
    """The human's own states, put in from outside, leave everybody else where they were."""
    recording = record([8, 8], sites["crossing"], FRAMES, CURRENT, 1.5)
    native, handed = recording.again(), recording.again()
    for _ in range(60):
        native.step()
        handed.step(native.now().ego)
        ours, theirs = handed.now(), native.now()
        assert ours.objects == theirs.objects
        assert (ours.ego.x, ours.ego.y, ours.ego.heading) == (theirs.ego.x, theirs.ego.y, theirs.ego.heading)
    assert recording.again().run(FRAMES).frames == recording.frames


def test_a_lapse_leaves_no_trace_before_it_begins(sites):
    """What the policy sees cannot tell it that a lapse is coming: only luck differs."""
    window = Window(4.0, 6.0, 7.0, is_busy=True)
    runs = []
    for lapses in ((), (Lapse("drift", 5.0, 9.0, 1.5),)):
        setting = stage(np.random.default_rng(4), sites["straight"], 8.0)
        driver = replace(draw_driver(np.random.default_rng(5), window, 0.0), lapses=lapses)
        runs.append([now.ego for now in World(setting, driver).run(FRAMES).frames])
    begins = round((5.0 - 2.5) / 0.5)
    assert runs[0][: begins + 1] == runs[1][: begins + 1]
    apart = np.hypot(runs[0][12].x - runs[1][12].x, runs[0][12].y - runs[1][12].y)
    assert apart > 0.6


def test_a_driver_without_lapses_touches_nothing_and_stays_on_the_road(sites):
    for layout, site in sites.items():
        recording = record([5, 2], site, FRAMES, range(3, FRAMES), 0.0)
        assert not recording.driver.lapses
        worst = min(now.ego.acceleration[0] for now in recording.frames)
        assert worst > -5.5, layout


def test_lapses_are_as_frequent_as_asked_and_of_every_kind():
    window = Window(4.0, 6.0, 7.0, is_busy=True)
    drivers = [draw_driver(np.random.default_rng(i), window, 2.0) for i in range(300)]
    counts = [len(driver.lapses) for driver in drivers]
    assert np.mean(counts) == pytest.approx(2.0 * 6 / 10, abs=0.2)
    assert {lapse.kind for d in drivers for lapse in d.lapses} == {"drift", "distracted", "tailgate", "slow", "fast"}
