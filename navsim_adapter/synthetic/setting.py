"""A world before it moves: the human's route and start, the vehicles, walkers and things around him.

`events` puts the matter of a log into a setting, `scenery` the rest; `situations` decides which.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import shapely
from shapely.geometry import Polygon

from navsim_adapter.synthetic import agents
from navsim_adapter.synthetic.agents import Thing, Vehicle, Walker
from navsim_adapter.synthetic.driver import WIDTH
from navsim_adapter.synthetic.geometry import headings, offset
from navsim_adapter.synthetic.layers import junction_polygon
from navsim_adapter.synthetic.paths import STEP, Path, find_paths
from navsim_adapter.synthetic.roads import Network
from navsim_adapter.synthetic.traffic import Conflicts, Signals, find_conflicts

Array = np.ndarray
Rng = np.random.Generator


@dataclass(frozen=True)
class Site:
    """A network with what is costly to find in it; shared by all logs of a place, never changed."""

    net: Network
    paths: tuple[Path, ...]
    conflicts: Conflicts
    drivable: Any  # shapely, prepared: where no corner counts as off the road


def survey(net: Network) -> Site:
    paths = find_paths(net)
    surfaces = [Polygon(block.ring).buffer(0.02) for block in net.blocks.values()]
    surfaces += [junction_polygon(net, junction) for junction in net.junctions]
    drivable = shapely.union_all(surfaces + [Polygon(park.ring) for park in net.car_parks])
    shapely.prepare(drivable)
    return Site(net, tuple(paths), find_conflicts(paths), drivable)


@dataclass
class Setting:
    """One world before it moves. `route`: index of the human's path; `s`, `v`: where he is and how fast."""

    site: Site
    paths: list[Path]
    route: int
    s: float
    v: float
    event_time: float  # when he should reach the event, seconds
    duration: float
    situation: str
    origin: tuple[int, ...] = ()  # base path of every entry of `paths`, for the conflicts
    vehicles: list[Vehicle] = field(default_factory=list)
    walkers: list[Walker] = field(default_factory=list)
    things: list[Thing] = field(default_factory=list)
    signals: Signals | None = None

    @property
    def path(self) -> Path:
        return self.paths[self.route]

    def speed_at(self, path: int, s: float) -> float:
        speed = self.paths[path].speed
        return float(speed[min(max(int(s), 0), len(speed) - 1)])

    def event_s(self) -> float:
        """Where the human gets to until the event time at his usual pace."""
        s = self.s
        for _ in range(int(self.event_time * 10)):
            s += 0.093 * self.speed_at(self.route, s)
        return s

    def straight_from(self, at: float, length: float) -> float | None:
        """The first distance at or after `at` from which `length` metres are nearly straight, within 60 m."""
        for begin in np.arange(at, at + 60, 4.0):
            here = self.path.curvature[int(begin) : int(begin + length)]
            if len(here) and begin + length < self.path.length - 30 and np.abs(here).max() < 0.005:
                return float(begin)
        return None

    def conflicts(self) -> Conflicts:
        index = np.array(self.origin)
        return Conflicts(
            self.site.conflicts.meet[np.ix_(index, index)], self.site.conflicts.gives_way[np.ix_(index, index)]
        )

    def try_vehicle(self, rng: Rng, index: int, s: float, pace: float) -> None:
        """Add a vehicle unless it would begin on top of (or right before) somebody."""
        size = agents.vehicle_size(rng)
        if s < 4 or s > self.paths[index].length - 30:
            return
        position = np.array(self.paths[index].at(s)[:2])
        ego = np.array(self.path.at(self.s)[:2])
        taken = [(ego, 5.2)] + [(np.array(self.paths[v.path].at(v.s)[:2]), v.size[0]) for v in self.vehicles]
        taken += [(thing.position, thing.size[0]) for thing in self.things]
        taken += [(walker.position, 2.0) for walker in self.walkers]
        if any(np.hypot(*(position - point)) < (length + size[0]) / 2 + 7 for point, length in taken):
            return
        v = pace * self.speed_at(index, s)
        self.vehicles.append(Vehicle(index, s, v, pace, rng.uniform(1.1, 1.8), rng.uniform(1.2, 2.0), size))

    def swerve(self, begin: float, end: float, sideways: float) -> bool:
        """Everybody on the human's lane drives `sideways` metres further left between two distances.

        False, and nothing is changed, where the road has no room for that.
        """
        shift = sideways * bump(np.arange(len(self.path.points)) * STEP, begin - 16, end + 14, 15)
        edge = offset(self.path.points, shift + WIDTH / 2 + 0.25)[int(begin) - 16 : int(end) + 16]
        if not shapely.contains_xy(self.site.drivable, edge[:, 0], edge[:, 1]).all():
            return False
        for i, path in enumerate(self.paths):
            if path.edges[:1] == self.path.edges[:1] and i != self.route:
                shift_here = sideways * bump(np.arange(len(path.points)) * STEP, begin - 16, end + 14, 15)
                self.paths[i] = path.shifted(shift_here)
        self.paths[self.route] = self.path.shifted(shift)
        return True

    def half_lane(self) -> float:
        widths = {lane.id: lane.width for lane in self.site.net.lanes()}
        return widths[self.path.edges[0]] / 2

    def add_path(self, base: int, points: Array) -> int:
        """A way that is driven differently from the one it is based on; same sampling."""
        self.paths.append(replace(self.site.paths[base], points=points, heading=headings(points)))
        self.origin = (*self.origin, base)
        return len(self.paths) - 1


def bump(s: Array, begin: float, end: float, ramp: float) -> Array:
    """(N,) 0 outside [begin, end], 1 inside, smooth over `ramp` metres at either end."""
    x = np.clip(np.minimum(s - begin, end - s) / ramp, 0, 1)
    return x * x * (3 - 2 * x)
