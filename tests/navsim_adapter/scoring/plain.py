"""A second scorer, slow and plain: numpy, scipy and shapely, one trajectory at a time, straight from the specification.

Nothing of the engine is used. Where the engine has a trick (first contacts, grids, banded solvers, closed forms), this
says the rule as the specification does.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import atan2, cos, hypot, pi, sin, tan

import numpy as np
import shapely
import shapely.affinity
from scipy.signal import savgol_filter
from shapely.geometry import LineString, Point, Polygon

from navsim_adapter.scene_cache import EPDMS, PDMS, AreaType, Polygons, SceneCache

H, L, D = 0.1, 3.089, 1.461
LANES = (AreaType.LANE, AreaType.LANE_CONNECTOR)
ROAD = (AreaType.ROADBLOCK, AreaType.INTERSECTION, AreaType.CARPARK_AREA)


def wrap(angle: float) -> float:
    return atan2(sin(angle), cos(angle))


# -- metric 5 ----------------------------------------------------------------------------------------------------------


def sample(scene: SceneCache, poses: np.ndarray, interval: float) -> np.ndarray:
    """Metric 5.1: (41, 3) reference poses."""
    x0, y0, h0 = scene.ego_state[:3]
    start = scene.time_us * 1e-6
    knots = [(scene.time_us, x0, y0, h0)]
    for j, (x, y, h) in enumerate(poses):
        at = int((j * interval + interval + start) * 1e6)
        knots.append((at, x0 + x * cos(h0) - y * sin(h0), y0 + x * sin(h0) + y * cos(h0), wrap(h0 + h)))
    times, xs, ys, hs = (np.array(column, float) for column in zip(*knots))
    asked = np.clip([int((k * 0.1 + start) * 1e6) for k in range(41)], times[0], times[-1])
    headings = np.interp(asked, times, np.unwrap(hs))
    return np.column_stack([np.interp(asked, times, xs), np.interp(asked, times, ys), [wrap(h) for h in headings]])


def profiles(reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Metric 5.3: speeds and curvatures at the first 40 poses."""
    steps = np.diff(reference, axis=0)
    turns = np.array([wrap(turn) for turn in steps[:, 2]])
    ramp = np.hstack([np.ones((40, 1)), H * np.tri(40, 39, -1)])  # from (first value, 39 slopes) to 40 values
    along = np.vstack([np.cos(reference[:40, 2])[:, None] * ramp, np.sin(reference[:40, 2])[:, None] * ramp]) * H
    penalty = np.zeros((38, 40))
    penalty[np.arange(37), np.arange(1, 38)] = 1.0  # a_0..a_36 themselves
    penalty[37, 38:] = -1.0, 1.0  # and a_38 - a_37
    measured = np.concatenate([steps[:, 0], steps[:, 1]])
    speed = ramp @ np.linalg.pinv(along.T @ along + 1e-4 * penalty.T @ penalty) @ along.T @ measured
    bent = H * speed[:, None] * ramp
    weights = np.diag([1e-10, *[1e-2] * 39])
    return speed, ramp @ np.linalg.pinv(bent.T @ bent + weights) @ bent.T @ turns


def simulate(scene: SceneCache, reference: np.ndarray) -> np.ndarray:
    """Metric 5.4, 5.5: (41, 11) states."""
    speeds, curvatures = profiles(reference)
    states = np.zeros((41, 11))
    states[0, :7] = scene.ego_state[:7]
    dt = 100000 * 1e-6
    for k in range(40):
        x, y, h, v, _, a, _, steer, _, yaw_rate, _ = states[k]
        push, turn = command(states[k], reference[k], speeds, curvatures, k)
        a = a + dt / (dt + 0.2) * (push - a)
        rate = (dt / (dt + 0.05)) * turn
        heading = (h + dt * v * tan(steer) / L + pi) % (2 * pi) - pi
        v1, steer1 = v + dt * a, min(max(steer + dt * rate, -pi / 3), pi / 3)
        yaw_rate1 = v1 * tan(steer1) / L
        states[k + 1] = [x + dt * v * cos(h), y + dt * v * sin(h), heading, v1, 0.0, a, 0.0, steer1, rate, yaw_rate1,
                         (yaw_rate1 - yaw_rate) / dt]  # fmt: skip
    return states


def command(
    state: np.ndarray, target: np.ndarray, speeds: np.ndarray, curvatures: np.ndarray, k: int
) -> tuple[float, float]:
    """Metric 5.4: acceleration and steering rate."""
    x, y, h, v, steer = *state[:4], state[7]
    ahead = min(k + 10, 39)
    if speeds[ahead] <= 0.2 and v <= 0.2:
        return -0.5 * (v - speeds[ahead]), 0.0
    push = 10.0 / 11.0 * (speeds[ahead] - v)
    window = np.array([curvatures[min(k + m, ahead)] for m in range(10)])
    error = np.array([-(x - target[0]) * sin(target[2]) + (y - target[1]) * cos(target[2]), wrap(h - target[2]), steer])
    through, effect, drift = np.eye(3), np.zeros(3), np.zeros(3)
    for m in range(10):
        w = v + push * H * m
        step = np.array([[1, H * w, 0], [0, 1, H * w / L], [0, 0, 1]])
        through, effect = step @ through, step @ effect + [0, 0, H]
        drift = step @ drift + [0, -H * w * window[m], 0]
    end = through @ error + drift
    end[1], end[2] = wrap(end[1]), wrap(end[2])
    q = np.diag([1.0, 10.0, 0.0])
    return push, float(-(effect @ q @ end) / (effect @ q @ effect + 1.0))


# -- metric 6, 7 -------------------------------------------------------------------------------------------------------


def to_shapely(polygons: Polygons) -> list[shapely.Geometry]:
    """Polygons of rings by the even-odd rule."""
    out = []
    for first, last in zip(polygons.polygon_start[:-1], polygons.polygon_start[1:]):
        shape: shapely.Geometry = Polygon()
        for ring in range(first, last):
            line = polygons.vertices[polygons.ring_start[ring] : polygons.ring_start[ring + 1]]
            shape = shape.symmetric_difference(Polygon(line))
        out.append(shape)
    return out


def box(x: float, y: float, h: float, half_length: float, half_width: float) -> Polygon:
    corners = [
        (half_length, half_width),
        (-half_length, half_width),
        (-half_length, -half_width),
        (half_length, -half_width),
    ]
    return Polygon([(x + a * cos(h) - b * sin(h), y + a * sin(h) + b * cos(h)) for a, b in corners])


def footprint(state: np.ndarray) -> Polygon:
    x, y, h = state[:3]
    return box(x + D * cos(h), y + D * sin(h), h, 2.588, 1.1485)


def center(state: np.ndarray) -> Point:
    return Point(state[0] + D * cos(state[2]), state[1] + D * sin(state[2]))


class World:
    """A scene under one metric, as shapely objects."""

    def __init__(self, scene: SceneCache, metric: str):
        self.scene, self.is_epdms = scene, metric == "epdms"
        self.areas = list(zip(to_shapely(scene.areas), scene.area_type, scene.area_on_route))
        self.line = LineString(scene.centerline[:, :2])
        self.lights = to_shapely(scene.lights) if self.is_epdms else []
        steps = 41 if self.is_epdms else 51
        mine = np.flatnonzero(scene.object_versions & (EPDMS if self.is_epdms else PDMS))
        self.boxes: dict[int, list[Polygon | None]] = {}
        for m in mine:
            length, width = scene.object_size[m]
            poses = scene.object_pose[m, :steps]
            self.boxes[m] = [None if np.isnan(x) else box(x, y, h, length / 2, width / 2) for x, y, h in poses]
        if self.is_epdms:
            own = footprint(scene.ego_state)
            self.boxes = {m: b for m, b in self.boxes.items() if b[0] is None or not b[0].intersects(own)}

    def inside(self, point: Point, kinds: tuple[AreaType, ...]) -> list[int]:
        return [i for i, (shape, kind, _) in enumerate(self.areas) if kind in kinds and shape.contains(point)]

    def flags(self, state: np.ndarray) -> tuple[bool, bool, bool, bool]:
        """Metric 6.1: over several lanes, off the road, oncoming; and whether the center is in an intersection."""
        corners = [Point(corner) for corner in footprint(state).exterior.coords[:4]]
        held = [set(self.inside(corner, LANES)) for corner in corners]
        several = len(set.union(*held)) > 1 and not set.intersection(*held)
        off_road = any(not self.inside(corner, ROAD) for corner in corners)
        oncoming = not any(self.areas[i][2] for i in self.inside(center(state), LANES))
        return several, off_road, oncoming, bool(self.inside(center(state), (AreaType.INTERSECTION,)))

    def is_stopped(self, m: int) -> bool:
        return self.scene.object_type[m] > 2 or hypot(*self.scene.object_velocity[m]) <= 0.05


def angle_to(state: np.ndarray, shape: Polygon) -> float:
    direction = np.array([shape.centroid.x - state[0], shape.centroid.y - state[1]])
    along = np.dot([cos(state[2]), sin(state[2])], direction / np.linalg.norm(direction))
    with np.errstate(invalid="ignore"):
        return float(np.degrees(np.arccos(along)))


def no_collisions(world: World, states: np.ndarray, flags: list[tuple[bool, bool, bool, bool]]) -> float:
    score, ignored = 1.0, set()
    for k, state in enumerate(states):
        own = footprint(state)
        for m, boxes in world.boxes.items():
            shape = boxes[k]
            if m in ignored or shape is None or not own.intersects(shape):
                continue
            front = LineString([own.exterior.coords[0], own.exterior.coords[3]])
            if hypot(state[3], state[4]) <= 0.05:
                at_fault = False
            elif world.is_stopped(m):
                at_fault = True
            elif angle_to(state, shape) > 150:
                at_fault = False
            else:
                at_fault = front.intersects(shape) or flags[k][0] or flags[k][1]
            if at_fault:
                score = min(score, 0.0 if world.scene.object_type[m] <= 2 else 0.5)
            else:
                ignored.add(m)
    return score


def time_to_collision(world: World, states: np.ndarray, flags: list[tuple[bool, bool, bool, bool]]) -> float:
    ignored = set()
    for k in range(32 if world.is_epdms else 41):
        state, speed = states[k], hypot(states[k, 3], states[k, 4])
        in_junction = bool(world.inside(Point(state[:2]), (AreaType.INTERSECTION,)))
        for later in (0, 3, 6, 9):
            reach = speed * later * H
            own = shapely.affinity.translate(footprint(state), cos(state[2]) * reach, sin(state[2]) * reach)
            for m, boxes in world.boxes.items():
                shape = boxes[k + later]
                if m in ignored or shape is None or speed < 0.005 or not own.intersects(shape):
                    continue
                angle = angle_to(state, shape)
                if angle < 30 or ((flags[k][0] or flags[k][1] or in_junction) and not angle > 150):
                    return 0.0
                ignored.add(m)
    return 1.0


def driving_direction(world: World, states: np.ndarray, flags: list[tuple[bool, bool, bool, bool]]) -> float:
    moved = [0.0] * 41
    for k in range(1, 41):
        if flags[k][2] and not (world.is_epdms and flags[k][3]):
            moved[k] = center(states[k]).distance(center(states[k - 1]))
    longest = max(sum(moved[max(0, k - 10) : k + 1]) for k in range(41))
    return 1.0 if longest < 2 else 0.5 if longest < 6 else 0.0


def lane_keeping(world: World, states: np.ndarray, flags: list[tuple[bool, bool, bool, bool]]) -> float:
    away = 0
    for state, flag in zip(states, flags):
        if not flag[3]:
            away = away + 1 if world.line.distance(center(state)) > 0.5 else 0
            if away >= 20:
                return 0.0
    return 1.0


def smoothed(series: np.ndarray, window: int, order: int, derivative: int = 0) -> np.ndarray:
    return np.round(savgol_filter(series, window, order, deriv=derivative, delta=H), 8)


def is_comfortable(world: World, states: np.ndarray) -> bool:
    ax, ay, heading = states[:, 5].copy(), states[:, 6].copy(), states[:, 2]
    magnitude = np.hypot(ax, ay)
    fit, slope = (8, 15) if world.is_epdms else (41, 41)
    if world.is_epdms:
        history = past(world.scene)
        ax += D * (states[:, 9] ** 2 + states[:, 10])
        ax, ay, heading = (np.concatenate(pair) for pair in zip(history.T, (ax, ay, heading)))
        magnitude = np.concatenate([np.hypot(*history[:, :2].T), magnitude])
    heading = heading - 2 * pi * np.concatenate([[0], np.cumsum(np.round(np.diff(heading) / (2 * pi)))])
    long = smoothed(ax, fit, 2)
    return bool(
        (long > -4.05).all()
        and (long < 2.40).all()
        and (abs(smoothed(ay, fit, 2)) < 4.89).all()
        and (abs(smoothed(smoothed(magnitude, 8, 2), slope, 2, 1)) < 8.37).all()
        and (abs(smoothed(smoothed(ax, 8, 2), slope, 2, 1)) < 4.13).all()
        and (abs(smoothed(heading, 5, 2, 1)) < 0.95).all()
        and (abs(smoothed(heading, 5, 3, 2)) < 1.93).all()
    )


def past(scene: SceneCache) -> np.ndarray:
    """Metric 6.10: a_x, a_y, heading every 0.1 s before now."""
    times = scene.past_time_us.astype(float)
    asked = np.arange(scene.past_time_us[0], scene.past_time_us[-1], 100_000)[:-1].astype(float)
    columns = [scene.past_states[:, 5], scene.past_states[:, 6], np.unwrap(scene.past_states[:, 2])]
    a_x, a_y, heading = (np.interp(asked, times, column) for column in columns)
    return np.column_stack([a_x, a_y, (heading + pi) % (2 * pi) - pi])


@dataclass
class Result:
    """Sub-scores before normalising and filtering."""

    flags: dict[str, float]
    progress: float  # m

    @property
    def product(self) -> float:
        return float(np.prod([self.flags[name] for name in ("nc", "dac", "tlc", "ddc") if name in self.flags]))


def judge(world: World, states: np.ndarray, with_comfort: bool = True) -> Result:
    flags = [world.flags(state) for state in states]
    progress = world.line.project(center(states[40])) - world.line.project(center(states[0]))
    out = {
        "nc": no_collisions(world, states, flags),
        "dac": float(not any(flag[1] for flag in flags)),
        "ttc": time_to_collision(world, states, flags),
        "comfort": float(is_comfortable(world, states)) if with_comfort else 1.0,
        "direction": driving_direction(world, states, flags),
    }
    if world.is_epdms:
        out["ddc"] = out["direction"]
        out["lk"] = lane_keeping(world, states, flags)
        red = world.scene.light_red
        out["tlc"] = float(
            not any(
                red[i, k] and light.intersects(footprint(state))
                for i, light in enumerate(world.lights)
                for k, state in enumerate(states)
            )
        )
    return Result(out, max(progress, 0.0))


def score(scene: SceneCache, poses: np.ndarray, metric: str, interval: float = 0.5) -> dict[str, float]:
    """All sub-scores and the score of one trajectory, two-frame comfort left out."""
    world = World(scene, metric)
    reference = scene.reference_epdms if world.is_epdms else scene.reference_pdms
    best = judge(world, simulate(scene, reference), with_comfort=False)
    own = judge(world, simulate(scene, sample(scene, poses, interval)))
    most = max(best.progress * best.product, own.progress * own.product)
    f = dict(own.flags)
    if not world.is_epdms:
        progress = own.progress * own.product / most if most > 5 else float(own.product > 0)
        total = f["nc"] * f["dac"] * (5 * progress + 5 * f["ttc"] + 2 * f["comfort"]) / 12
        return {**f, "progress": progress, "score": total, "raw": own.progress}
    progress = min(max(own.progress / most, 0.0), 1.0) if most > 5 else 1.0
    if scene.human_future is not None and not scene.is_synthetic:
        human = judge(world, simulate(scene, sample(scene, scene.human_future, 0.5)), with_comfort=False)
        f.update({name: 1.0 for name in ("nc", "dac", "ddc", "tlc", "ttc", "lk") if human.flags[name] == 0.0})
    total = (
        f["nc"] * f["dac"] * f["ddc"] * f["tlc"] * (5 * progress + 5 * f["ttc"] + 2 * f["lk"] + 2 * f["comfort"]) / 14
    )
    return {**f, "progress": progress, "score": total, "raw": own.progress}
