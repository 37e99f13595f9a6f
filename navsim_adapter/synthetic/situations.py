"""Which situation a log shows: choice of route, start, lights, event and scenery."""

from __future__ import annotations

import numpy as np

from navsim_adapter.synthetic.events import EVENTS, WARM
from navsim_adapter.synthetic.paths import Path
from navsim_adapter.synthetic.scenery import add_scenery, add_traffic
from navsim_adapter.synthetic.setting import Setting, Site
from navsim_adapter.synthetic.traffic import Signals

Rng = np.random.Generator
AHEAD = 75.0  # metres of road that must be left at the end of the log
QUIET = ("free", "oncoming")  # situations in which nobody is in the way

# layout -> situation -> weight
SITUATIONS: dict[str, dict[str, float]] = {
    "straight": {"slow": 2, "brake": 3, "cut_in": 3, "walker": 2, "parked": 2, "cones": 2, "oncoming": 1.5, "free": 1},
    "curve": {"slow": 2, "brake": 2, "cut_in": 1, "walker": 1.5, "parked": 1.5, "cones": 1, "oncoming": 2, "free": 3},
    "crossing": {"red": 3, "cross": 3, "walker": 2, "slow": 1.5, "brake": 1.5, "free": 2},
    "t_junction": {"cross": 4, "walker": 1.5, "slow": 1.5, "brake": 1.5, "free": 2},
    "merge": {"cross": 4, "brake": 2, "slow": 2, "cut_in": 1, "cones": 1, "free": 1},
    "roundabout": {"cross": 4, "slow": 2, "brake": 1.5, "walker": 1.5, "free": 2},
}


def stage(rng: Rng, site: Site, duration: float) -> Setting:
    """A random setting on a site, for a log of `duration` seconds."""
    kinds = SITUATIONS[site.net.layout]
    weights = np.array(list(kinds.values()))
    situation = list(kinds)[int(rng.choice(len(kinds), p=weights / weights.sum()))]
    setting = _start(rng, site, duration, situation)
    if any(junction.has_signals for junction in site.net.junctions):
        setting.signals = _signals(rng, setting)
    EVENTS[situation](rng, setting)
    add_traffic(rng, setting, int(rng.integers(3, 12)))
    add_scenery(rng, setting)
    return setting


def _start(rng: Rng, site: Site, duration: float, situation: str) -> Setting:
    turns = list(dict.fromkeys(_main_turn(path) for path in site.paths))
    turn = turns[int(rng.integers(len(turns)))]
    choice = [i for i, path in enumerate(site.paths) if _main_turn(path) == turn]
    if situation in ("parked", "cones"):  # they stand at the edge of the road
        rightmost = {block.lanes[-1].id for block in site.net.blocks.values()}
        choice = [i for i in choice if site.paths[i].edges[0] in rightmost] or choice
    route = choice[int(rng.integers(len(choice)))]
    path = site.paths[route]
    event_time = rng.uniform(WARM + 1.0, WARM + 0.75 * duration)
    event_s = path.junction_s
    if site.net.layout in ("straight", "curve"):
        bent = np.abs(path.curvature) > 0.006
        bent[:90] = bent[-140:] = False
        if situation in ("parked", "cones"):  # things beside a bend look as if they stood in the way
            bent = ~bent
            bent[:90] = bent[-140:] = False
        event_s = float(rng.choice(np.flatnonzero(bent))) if bent.any() else rng.uniform(90, path.length - 140)
    s = event_s
    for _ in range(int(event_time * 10)):  # drive backwards from the event at the comfortable speed
        s -= 0.09 * path.speed[min(max(int(s), 0), len(path.speed) - 1)]
    s = max(s, 8.0)
    total = WARM + duration
    while s > 8.0 and s + path.speed[int(s) :].max() * total > path.length - AHEAD:
        s -= 5.0
    setting = Setting(site, list(site.paths), route, max(s, 8.0), 0.0, event_time, duration, situation)
    setting.origin = tuple(range(len(site.paths)))
    setting.v = setting.speed_at(route, setting.s) * rng.uniform(0.75, 1.0)
    return setting


def _main_turn(path: Path) -> str:
    return next((turn for turn in path.turns if turn != "straight"), "straight")


def _signals(rng: Rng, setting: Setting) -> Signals:
    """A cycle in which the human's light does what the situation says when he gets there."""
    signals = Signals(green=rng.uniform(9, 13), shift=0.0)
    group = setting.path.signal or 0
    arrival = setting.event_time
    if setting.situation == "red":
        wanted = rng.uniform(signals.green, signals.half + signals.green * 0.8)
    else:
        wanted = rng.uniform(0.5, signals.green)
    return Signals(signals.green, wanted - arrival - group * signals.half)
