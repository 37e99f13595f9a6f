"""What a log is about: each event adds to a setting who or what gets in the human's way.

Events are timed so that the human meets them while the log is recorded, if he drives normally.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from navsim_adapter.synthetic import agents
from navsim_adapter.synthetic.agents import Brake, Thing, Vehicle, Walker
from navsim_adapter.synthetic.driver import WIDTH
from navsim_adapter.synthetic.geometry import offset
from navsim_adapter.synthetic.paths import STEP, Path
from navsim_adapter.synthetic.setting import Setting, bump
from navsim_adapter.synthetic.traffic import FAR

Array = np.ndarray
Rng = np.random.Generator
WARM = 2.5  # seconds driven before the first frame


def _free(rng: Rng, setting: Setting) -> None:
    pass


def _slow(rng: Rng, setting: Setting) -> None:
    _leader(rng, setting, rng.uniform(16, 36), pace=rng.uniform(0.45, 0.75))


def _brake(rng: Rng, setting: Setting) -> None:
    leader = _leader(rng, setting, rng.uniform(14, 30), pace=rng.uniform(0.85, 1.0))
    start = rng.uniform(WARM + 0.5, WARM + setting.duration - 2)
    leader.brakes = [Brake(start, start + rng.uniform(2.5, 5.5), rng.uniform(1.6, 3.6), rng.choice([0.0, 0.0, 2.0]))]


def _red(rng: Rng, setting: Setting) -> None:
    stop = setting.path.stop_s - 3.5
    for _ in range(int(rng.integers(0, 3))):
        if stop > setting.s + 18:
            setting.vehicles.append(Vehicle(setting.route, stop, 0.0, size=agents.vehicle_size(rng)))
        stop -= rng.uniform(7.0, 9.0)


def _cut_in(rng: Rng, setting: Setting) -> None:
    """A car on the neighbouring lane of the same direction moves over; without such a lane, a leader brakes."""
    mine = setting.path
    here = [
        i
        for i, path in enumerate(setting.site.paths)
        if path.blocks == mine.blocks and path.edges != mine.edges and abs(_sideways(mine, path, setting.s)) < 5.0
    ]
    if not here:
        return _brake(rng, setting)
    other = int(rng.choice(here))
    source = setting.site.paths[other]
    count = len(source.points)
    begin = min(setting.event_s() + rng.uniform(-15, 10), mine.length - 60)
    length = rng.uniform(20, 36)
    ramp = np.clip((np.arange(count) * STEP - begin) / length, 0, 1)
    ramp = ramp * ramp * (3 - 2 * ramp)
    target = np.array([_nearest(mine, point) for point in source.points])
    moved = source.points * (1 - ramp[:, None]) + target * ramp[:, None]
    index = setting.add_path(other, moved)
    v = setting.v * rng.uniform(0.7, 0.95)
    ahead = rng.uniform(7, 16) + max(0.0, (setting.v - v) * setting.event_time)
    setting.vehicles.append(Vehicle(index, setting.s + ahead, v, rng.uniform(0.7, 0.95), size=agents.vehicle_size(rng)))
    return None


def _walker(rng: Rng, setting: Setting) -> None:
    """Someone crosses the road: at a crosswalk the human's path passes over, else anywhere."""
    path, at = setting.path, setting.event_s() + rng.uniform(-4, 8)
    on_path = []
    for crosswalk in setting.site.net.crosswalks:
        middle = crosswalk.corners.mean(axis=0)
        apart = np.hypot(*(path.points - middle).T)
        if apart.min() < 9:
            on_path.append(float(apart.argmin()))
    on_path = [s for s in on_path if setting.s + 25 < s < setting.s + 90]
    if on_path and rng.random() < 0.85:
        at = on_path[0]
    at = min(max(at, setting.s + 22), path.length - 30)
    for _ in range(int(rng.integers(1, 4))):
        name = "bicycle" if rng.random() < 0.2 else "pedestrian"
        side, speed = rng.choice([-1, 1]), rng.uniform(2.0, 3.5) if name == "bicycle" else rng.uniform(1.1, 1.7)
        x, y, heading = path.at(at + rng.uniform(-1.2, 1.2))
        across = np.array([-np.sin(heading), np.cos(heading)]) * side
        start_off = rng.uniform(4.5, 8.0)
        reach = (at - setting.s) / max(setting.v, 3.0)
        start = reach - start_off / speed + rng.uniform(-2.5, 0.8)
        position = np.array([x, y]) + across * start_off
        setting.walkers.append(
            Walker(name, position, -across * speed, start, start + 18 / speed, agents.walker_size(rng, name), True)
        )


def _parked(rng: Rng, setting: Setting) -> None:
    """One to three parked vehicles that stand partly on the human's lane."""
    half, stick_out = setting.half_lane(), rng.uniform(0.3, 0.85)
    sizes = [agents.vehicle_size(rng) for _ in range(int(rng.integers(1, 4)))]
    gaps = rng.uniform(1.5, 8, len(sizes))
    length = sum(size[0] for size in sizes) + float(gaps[:-1].sum())
    begin = setting.straight_from(setting.event_s() + rng.uniform(0, 12), length)
    sideways = max(0.0, WIDTH / 2 + 0.8 + stick_out - half)
    if begin is None or not setting.swerve(begin, begin + length, sideways):
        return _slow(rng, setting)
    at = begin
    for size, gap in zip(sizes, gaps):
        point, heading = _beside(setting, at + size[0] / 2, half + size[1] / 2 - stick_out)
        setting.things.append(Thing("vehicle", point, heading + rng.normal() * 0.02, size))
        at += size[0] + gap
    return None


def _cones(rng: Rng, setting: Setting) -> None:
    """A work site closes the right edge of the human's lane: cones, barriers behind them, a sign before them."""
    half, depth = setting.half_lane(), rng.uniform(0.35, 0.8)
    taper, body = rng.uniform(8, 14), rng.uniform(8, 25)
    begin = setting.straight_from(setting.event_s() + rng.uniform(0, 10), taper + body)
    sideways = max(0.0, WIDTH / 2 + 0.9 + depth - half)
    if begin is None or not setting.swerve(begin + 0.2 * taper, begin + taper + body, sideways):
        return _slow(rng, setting)
    for s in np.arange(0, taper + body, rng.uniform(2.2, 3.2)):
        point, _ = _beside(setting, begin + s, half - depth * min(1.0, s / taper))
        setting.things.append(agents.cone(point))
    for s in np.arange(taper + 1, taper + body - 2, rng.uniform(3, 6)):
        setting.things.append(agents.barrier(*_beside(setting, begin + s, half - depth + 0.9)))
    setting.things.append(Thing("czone_sign", *_beside(setting, begin - 6, half + 0.8), (0.4, 0.9, 1.6)))
    return None


def _beside(setting: Setting, s: float, right: float) -> tuple[Array, float]:
    """The point `right` metres to the right of the human's undisturbed path at s, and the direction of the road."""
    x, y, heading = setting.site.paths[setting.route].at(s)
    return np.array([x, y]) + right * np.array([np.sin(heading), -np.cos(heading)]), float(heading)


def _oncoming(rng: Rng, setting: Setting) -> None:
    """Dense oncoming traffic, one of them too near the middle (or over it)."""
    against = [i for i, path in enumerate(setting.site.paths) if not set(path.blocks) & set(setting.path.blocks)]
    if not against:
        return _slow(rng, setting)
    for k in range(int(rng.integers(2, 5))):
        index = int(rng.choice(against))
        path = setting.site.paths[index]
        x, y, _ = setting.path.at(setting.event_s() + k * rng.uniform(12, 25))
        meeting = float(np.hypot(*(path.points - [x, y]).T).argmin())
        if k == 0:
            begin = meeting - rng.uniform(25, 45)
            lean = rng.uniform(0.4, 1.5) * bump(
                np.arange(len(path.points)) * STEP, begin, begin + rng.uniform(45, 70), 15
            )
            index = setting.add_path(index, offset(path.points, lean))
        pace = rng.uniform(0.85, 1.05)
        v = pace * setting.speed_at(index, meeting)
        setting.try_vehicle(rng, index, meeting - v * setting.event_time, pace)
    return None


def _cross(rng: Rng, setting: Setting) -> None:
    """Other streams reach the place of conflict about when the human does."""
    meet = setting.site.conflicts.meet
    others = [q for q in range(len(setting.site.paths)) if meet[setting.route, q] < FAR]
    rng.shuffle(others)
    for q in others[: int(rng.integers(1, 4))]:
        where = meet[q, setting.route]
        when = setting.event_time + (meet[setting.route, q] - setting.event_s()) / max(setting.v, 4.0)
        pace = rng.uniform(0.8, 1.05)
        s = where
        for _ in range(int(max(when + rng.uniform(-1.5, 2.0), 1.0) * 10)):
            s -= 0.1 * pace * setting.speed_at(q, s)
        setting.try_vehicle(rng, q, s, pace)
    if rng.random() < 0.3:
        _leader(rng, setting, rng.uniform(14, 26), rng.uniform(0.8, 1.0))


EVENTS: dict[str, Callable[[Rng, Setting], None]] = {
    "free": _free,
    "slow": _slow,
    "brake": _brake,
    "red": _red,
    "cut_in": _cut_in,
    "walker": _walker,
    "parked": _parked,
    "cones": _cones,
    "oncoming": _oncoming,
    "cross": _cross,
}


def _leader(rng: Rng, setting: Setting, ahead: float, pace: float) -> Vehicle:
    s = setting.s + ahead
    v = pace * setting.speed_at(setting.route, s)
    vehicle = Vehicle(setting.route, s, v, pace, rng.uniform(1.1, 1.8), size=agents.vehicle_size(rng))
    setting.vehicles.append(vehicle)
    return vehicle


def _sideways(mine: Path, other: Path, s: float) -> float:
    return float(np.hypot(*(np.array(mine.at(s)[:2]) - np.array(other.at(s)[:2]))))


def _nearest(path: Path, point: Array) -> Array:
    return path.points[int(np.hypot(*(path.points - point).T).argmin())]
