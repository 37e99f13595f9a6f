"""What the drivers of a world know and do each tenth of a second: who is ahead, which light, who goes first, IDM.

Everything is computed for all vehicles at once. Vehicles follow paths (a distance along it and a speed); walkers
and standing things only occupy ground.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from navsim_adapter.synthetic.geometry import box_corners
from navsim_adapter.synthetic.paths import STEP, Path, conflict

Array = np.ndarray
SIGHT = 70  # metres of its path a driver watches
FAR = 1e6
MARGIN = 0.2  # metres beside the body that must be free
YIELD_TIME = 2.8  # a stream with priority must be further away than this, in seconds
YELLOW, ALL_RED = 2.5, 1.0


@dataclass(frozen=True)
class Signals:
    """Two groups of lights in turn: green, yellow, all red. `shift`: where in the cycle the world begins."""

    green: float
    shift: float

    @property
    def half(self) -> float:
        return self.green + YELLOW + ALL_RED

    def state(self, group: int, time: float) -> str:
        at = (time + self.shift + group * self.half) % (2 * self.half)
        return "green" if at < self.green else "yellow" if at < self.green + YELLOW else "red"


class PathTable:
    """The paths of a world in padded arrays, with the conflicts between them.

    points (P, L, 2), heading (P, L), speed (P, L), length (P,); meet (P, P): distance along p where p and q first
    come together (FAR if never); gives_way (P, P) bool: p waits for q there.
    """

    def __init__(self, paths: list[Path], conflicts: Conflicts):
        longest = max(len(path.points) for path in paths) + SIGHT + 2
        self.paths = paths
        self.points = np.stack([_extended(path, longest) for path in paths])
        self.heading = np.stack([np.pad(p.heading, (0, longest - len(p.heading)), mode="edge") for p in paths])
        self.speed = np.stack([np.pad(p.speed, (0, longest - len(p.speed)), mode="edge") for p in paths])
        self.curvature = np.stack([np.pad(p.curvature, (0, longest - len(p.curvature))) for p in paths])
        self.length = np.array([path.length for path in paths])
        self.stop_s = np.array([path.stop_s for path in paths])
        self.signal = np.array([-1 if path.signal is None else path.signal for path in paths])
        self.meet, self.gives_way = conflicts

    def pose(self, path: Array, s: Array) -> tuple[Array, Array]:
        """(N, 2) points and (N,) headings at distances s of paths."""
        s = np.maximum(s, 0.0) / STEP
        index = np.minimum(s.astype(int), self.points.shape[1] - 2)
        part = (s - index)[:, None]
        points = self.points[path, index] * (1 - part) + self.points[path, index + 1] * part
        heading = self.heading[path, index] * (1 - part[:, 0]) + self.heading[path, index + 1] * part[:, 0]
        return points, heading


class Conflicts(NamedTuple):
    meet: Array
    gives_way: Array


def find_conflicts(paths: list[Path]) -> Conflicts:
    """`meet` and `gives_way` of PathTable; the costly part, the same for all worlds of a place."""
    count = len(paths)
    meet, gives_way = np.full((count, count), FAR), np.zeros((count, count), bool)
    for p in range(count):
        for q in range(p):
            if found := conflict(paths[p], paths[q]):
                meet[p, q], meet[q, p], who = found
                gives_way[p, q], gives_way[q, p] = who == 1, who == 2
    return Conflicts(meet, gives_way)


@dataclass
class Bodies:
    """Everything that occupies ground: centre (M, 2), heading, length, width (M,), velocity (M, 2)."""

    center: Array
    heading: Array
    length: Array
    width: Array
    velocity: Array


class Ahead(NamedTuple):
    gap: Array  # (N,) metres from bumper to body, FAR if free
    speed: Array  # (N,) of that body along the path


def leaders(
    table: PathTable, path: Array, s: Array, length: Array, half: Array, lateral: Array, bodies: Bodies
) -> Ahead:
    """The first body within each vehicle's corridor; the vehicles are the first N bodies.

    lateral: (N,) how far to the left of its path a vehicle drives.  half: (N,) half widths.
    """
    count = len(path)
    index = np.maximum(s, 0).astype(int)[:, None] + np.arange(0, SIGHT, 2)
    index = np.minimum(index, table.points.shape[1] - 1)
    points = table.points[path[:, None], index]
    apart = (points[:, :, None, 0] - bodies.center[:, 0]) ** 2  # (N, W, M)
    apart += (points[:, :, None, 1] - bodies.center[:, 1]) ** 2
    nearest = apart.argmin(axis=1)  # (N, M)
    rows = np.arange(count)[:, None]
    vertex, heading = points[rows, nearest], table.heading[path[:, None], index[rows, nearest]]
    cos, sin = np.cos(heading)[..., None], np.sin(heading)[..., None]
    corners = box_corners(bodies.center, bodies.heading, bodies.length, bodies.width)
    delta = corners[None] - vertex[:, :, None]  # (N, M, 4, 2)
    along = delta[..., 0] * cos + delta[..., 1] * sin
    across = delta[..., 1] * cos - delta[..., 0] * sin - lateral[:, None, None]
    reach = half[:, None] + MARGIN
    blocks = (across.min(-1) < reach) & (across.max(-1) > -reach)
    center_s = index[rows, nearest] + along.mean(-1)
    blocks &= (center_s > s[:, None] + 0.3) & (np.take_along_axis(apart, nearest[:, None], 1)[:, 0] < 64)
    blocks[np.arange(count), np.arange(count)] = False
    gap = index[rows, nearest] + along.min(-1) - (s + length / 2)[:, None]
    gap = np.where(blocks, gap, FAR)
    first = gap.argmin(axis=1)
    direction = np.stack([cos[..., 0], sin[..., 0]], axis=-1)[np.arange(count), first]
    speed = (bodies.velocity[first] * direction).sum(-1)
    return Ahead(gap[np.arange(count), first], np.maximum(speed, 0.0))


def light_gap(table: PathTable, path: Array, front: Array, v: Array, signals: Signals | None, time: float) -> Array:
    """(N,) metres to a stop line that must be kept to; FAR if none. Yellow is kept to where 3 m/s^2 suffice."""
    gap = np.full(len(path), FAR)
    if signals is None:
        return gap
    for group in (0, 1):
        state = signals.state(group, time)
        to_line = table.stop_s[path] - front
        bound = (table.signal[path] == group) & (to_line > -1.5)
        if state == "yellow":
            bound &= v**2 / 6.0 < np.maximum(to_line, 0.1)
        if state != "green":
            gap = np.where(bound, to_line, gap)
    return gap


def yield_gap(table: PathTable, path: Array, front: Array, length: Array, v: Array, waits: Array) -> Array:
    """(N,) metres to where a vehicle must wait for a stream with priority; FAR if it may go.

    waits: (N,) bool, held by a red light and hence no reason for others to wait.
    """
    meet = table.meet[path[:, None], path[None]]  # along mine, per other
    theirs = meet.T
    to_go, to_come = meet - front[:, None], theirs - front[None]
    arrive = np.maximum(to_go, 0) / np.maximum(v, 3.0)[:, None]
    other = np.maximum(to_come, 0) / np.maximum(v, 2.5)[None]
    pending = (to_go > 0.5) & (to_go < 45)
    coming = (to_come > -(length[None] + 2.0)) & (to_come < 60) & ~waits[None]
    must = table.gives_way[path[:, None], path[None]] & pending & coming & (other < arrive + YIELD_TIME)
    must &= v[:, None] ** 2 / 10.0 < np.maximum(to_go - 2.0, 0.1)  # too late to stop: go
    return np.where(must, to_go - 4.0, FAR).min(axis=1)


def idm(v: Array, target: Array, gap: Array, lead: Array, headway: Array, accel: Array, brake: float = 2.5) -> Array:
    """(N,) acceleration of the intelligent driver model; standing distance 2 m, hardest braking 8 m/s^2."""
    wish = 2.0 + np.maximum(0.0, v * headway + v * (v - lead) / (2 * np.sqrt(accel * brake)))
    free = np.maximum(1 - (v / np.maximum(target, 0.3)) ** 4, -1.6)
    return np.clip(accel * (free - (wish / np.maximum(gap, 0.3)) ** 2), -8.0, accel)


def _extended(path: Path, count: int) -> Array:
    """Points of a path, going straight on beyond its end to `count` of them."""
    more = np.arange(1, count - len(path.points) + 1)[:, None] * STEP
    beyond = path.points[-1] + more * [np.cos(path.heading[-1]), np.sin(path.heading[-1])]
    return np.concatenate([path.points, beyond])
