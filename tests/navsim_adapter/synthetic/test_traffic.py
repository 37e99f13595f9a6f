"""What drivers know: leaders, lights, right of way; and what they do with it."""

from __future__ import annotations

import numpy as np
import pytest

from navsim_adapter.synthetic.layouts import build
from navsim_adapter.synthetic.setting import survey
from navsim_adapter.synthetic.traffic import FAR, Bodies, PathTable, Signals, idm, leaders, light_gap, yield_gap


def site_of(layout: str, seed: int = 0):
    return survey(build(layout, np.random.default_rng(seed), 0, np.zeros(2)))


def bodies_on(table: PathTable, path: list[int], s: list[float], sideways: list[float]) -> Bodies:
    points, heading = table.pose(np.array(path), np.array(s))
    points = points + np.array(sideways)[:, None] * np.stack([-np.sin(heading), np.cos(heading)], axis=1)
    count = len(path)
    return Bodies(points, heading, np.full(count, 4.5), np.full(count, 1.8), np.zeros((count, 2)))


@pytest.mark.parametrize(("sideways", "is_seen"), [(0.0, True), (1.5, True), (2.6, False), (-2.6, False)])
def test_a_car_is_a_leader_if_it_reaches_into_the_corridor(sideways, is_seen):
    site = site_of("curve")
    table = PathTable(list(site.paths), site.conflicts)
    bodies = bodies_on(table, [0, 0], [60.0, 90.0], [0.0, sideways])
    one = np.ones(2)
    ahead = leaders(table, np.array([0, 0]), np.array([60.0, 90.0]), 4.5 * one, 0.9 * one, 0 * one, bodies)
    if is_seen:
        assert ahead.gap[0] == pytest.approx(25.5, abs=1.0)
    else:
        assert ahead.gap[0] == FAR
    assert ahead.gap[1] == FAR  # what is behind is no leader


def test_idm_stops_behind_a_standing_car_without_touching_it():
    v, gap, hardest = 10.0, 60.0, 0.0
    for _ in range(400):
        a = float(idm(*(np.array([x]) for x in (v, 12.0, gap, 0.0, 1.4, 1.5)))[0])
        hardest = min(hardest, a)
        gap -= 0.1 * v
        v = max(0.0, v + 0.1 * a)
    assert v < 0.05
    assert 1.0 < gap < 4.0
    assert hardest > -4.0


def test_idm_settles_at_the_comfortable_speed_on_a_free_road():
    v = 2.0
    for _ in range(600):
        v += 0.1 * float(idm(*(np.array([x]) for x in (v, 9.0, FAR, 0.0, 1.4, 1.5)))[0])
    assert v == pytest.approx(9.0, abs=0.1)


def test_the_two_groups_of_lights_are_never_open_together():
    signals = Signals(green=10.0, shift=3.0)
    states = [(signals.state(0, t), signals.state(1, t)) for t in np.arange(0, 60, 0.1)]
    assert all("red" in pair for pair in states)
    assert {pair[0] for pair in states} == {"green", "yellow", "red"}


def test_a_red_light_holds_its_own_group_only():
    site = site_of("crossing")
    table = PathTable(list(site.paths), site.conflicts)
    signals = Signals(green=10.0, shift=0.0)  # group 0 is green now
    path = np.arange(len(site.paths))
    front = table.stop_s[path] - 20.0
    gap = light_gap(table, path, front, np.full(len(path), 8.0), signals, 0.0)
    assert np.allclose(gap[table.signal == 1], 20.0)
    assert (gap[table.signal == 0] == FAR).all()


def test_who_enters_a_roundabout_waits_for_who_is_in_it():
    site = site_of("roundabout")
    table = PathTable(list(site.paths), site.conflicts)
    p, q = next((p, q) for p, q in zip(*np.nonzero(table.gives_way)) if table.meet[p, q] < FAR)
    path, length, v = np.array([p, q]), np.full(2, 4.5), np.full(2, 6.0)
    front = np.array([table.meet[p, q] - 20.0, table.meet[q, p] - 22.0])
    gap = yield_gap(table, path, front, length, v, np.zeros(2, bool))
    assert gap[0] < 20.0
    assert gap[1] == FAR
    gone = yield_gap(table, path, np.array([front[0], front[1] + 60.0]), length, v, np.zeros(2, bool))
    assert gone[0] == FAR
