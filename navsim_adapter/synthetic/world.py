"""One world in motion: the human, the traffic around him, the lights; recorded as frames.

Ten steps a second. Other vehicles follow their paths with IDM and react to the human, so that the log is consistent;
the human is a kinematic bicycle steered by `driver`. `record` decides which worlds are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from navsim_adapter.synthetic.agents import Walker
from navsim_adapter.synthetic.driver import AXLE_TO_CENTER, LENGTH, WHEELBASE, WIDTH, Driver
from navsim_adapter.synthetic.events import WARM
from navsim_adapter.synthetic.geometry import wrap
from navsim_adapter.synthetic.setting import Setting
from navsim_adapter.synthetic.traffic import FAR, Bodies, PathTable, idm, leaders, light_gap, yield_gap

Array = np.ndarray
DT = 0.1


@dataclass(frozen=True)
class Object:
    """Somebody or something in a frame. Global coordinates; `braking`: brake lights are on."""

    id: int
    name: str
    x: float
    y: float
    heading: float
    size: tuple[float, float, float]
    velocity: tuple[float, float]
    braking: bool = False


@dataclass(frozen=True)
class EgoState:
    """Rear axle pose (global), velocity and acceleration in the body frame."""

    x: float
    y: float
    heading: float
    velocity: tuple[float, float]
    acceleration: tuple[float, float]
    yaw_rate: float
    s: float  # along the undisturbed route


class Instant(NamedTuple):
    """All there is at one time. `lights`: the signal states of groups 0 and 1, None without lights."""

    ego: EgoState
    objects: list[Object]
    lights: tuple[str, str] | None


@dataclass(frozen=True)
class Recording:
    """Frames half a second apart."""

    setting: Setting
    driver: Driver
    frames: list[Instant]

    def again(self) -> World:
        """The same world before its first step."""
        return World(self.setting, replace(self.driver, steering=0.0, acceleration=0.0))


class World:
    """State of a running world: the first vehicle is the human."""

    def __init__(self, setting: Setting, driver: Driver):
        self.setting, self.driver, self.time = setting, driver, 0.0
        self.table = PathTable(setting.paths, setting.conflicts())
        vehicles = setting.vehicles
        self.path = np.array([setting.route, *[v.path for v in vehicles]])
        self.s = np.array([setting.s, *[v.s for v in vehicles]])
        self.v = np.array([setting.v, *[v.v for v in vehicles]])
        self.a = np.zeros(len(self.v))
        self.size = np.array([(LENGTH, WIDTH, 1.77), *[v.size for v in vehicles]])
        self.pace = np.array([1.0, *[v.pace for v in vehicles]])
        self.headway = np.array([1.3, *[v.headway for v in vehicles]])
        self.accel = np.array([1.5, *[v.accel for v in vehicles]])
        self.present = np.ones(len(self.v), bool)
        self.walked = np.zeros(len(setting.walkers))  # seconds each walker has been under way
        self.walkers = _stacked(setting.walkers, "position", "velocity", ("start", "end"))
        self.things = (*_stacked(setting.things, "position", "heading"), np.zeros((len(setting.things), 2)))
        point, heading = self.table.pose(self.path[:1], self.s[:1] - AXLE_TO_CENTER)
        self.ego = np.array([*point[0], heading[0]])
        self.yaw_rate = self.lateral = 0.0
        self.s_rear = setting.s - AXLE_TO_CENTER

    def run(self, frames: int) -> Recording:
        found = []
        first = round(WARM / DT)
        for step in range(first + 5 * (frames - 1) + 1):
            if step >= first and (step - first) % 5 == 0:
                found.append(self.now())
            self.step()
        return Recording(self.setting, self.driver, found)

    def now(self) -> Instant:
        return Instant(self._ego_state(), self._objects(), self._lights())

    def _lights(self) -> tuple[str, str] | None:
        signals = self.setting.signals
        return None if signals is None else (signals.state(0, self.time), signals.state(1, self.time))

    def step(self, ego: EgoState | None = None) -> None:
        """Move on by a tenth of a second. ego: where another driver has the car by then; None: the human drives it."""
        bodies = self._bodies()
        half = self.size[:, 1] / 2
        front = self.s + self.size[:, 0] / 2
        lateral = np.zeros(len(self.s))
        lateral[0] = self.lateral
        ahead = leaders(self.table, self.path, self.s, self.size[:, 0], half, lateral, bodies)
        light = light_gap(self.table, self.path, front, self.v, self.setting.signals, self.time)
        waits = (light < 40) | ~self.present
        give_way = yield_gap(self.table, self.path, front, self.size[:, 0], self.v, waits)
        comfortable = self.table.speed[self.path, np.minimum(self.s.astype(int), self.table.speed.shape[1] - 1)]
        none = np.zeros(len(self.s))
        wanted = idm(self.v, comfortable * self.pace, ahead.gap, ahead.speed, self.headway, self.accel)
        stop = np.minimum(light, give_way) + 1.2  # stand nearer to a line than to a bumper
        wanted = np.minimum(wanted, idm(self.v, comfortable * self.pace, stop, none, 0.5 * self.headway, self.accel))
        if ego is not None:
            self._put_ego(ego)
        else:
            self._move_ego(
                comfortable[0],
                {
                    "body": (float(ahead.gap[0]), float(ahead.speed[0])),
                    "light": (float(light[0]) + 0.8 if light[0] < FAR else FAR, 0.0),
                    "stream": (float(give_way[0]) + 0.8 if give_way[0] < FAR else FAR, 0.0),
                },
            )
        self._move_vehicles(wanted)
        self._move_walkers()
        self.time += DT

    def _move_vehicles(self, wanted: Array) -> None:
        for i, vehicle in enumerate(self.setting.vehicles, start=1):
            for brake in vehicle.brakes:
                if brake.start <= self.time < brake.end:
                    wanted[i] = min(wanted[i], -brake.rate if self.v[i] > brake.to else 0.0)
        others = slice(1, None)
        change = np.clip(wanted - self.a, -12 * DT, 5 * DT)[others]
        self.a[others] = np.maximum(self.a[others] + change, -self.v[others] / DT)
        self.v[others] = np.maximum(self.v[others] + self.a[others] * DT, 0.0)
        self.s[others] += self.v[others] * DT
        self.present &= self.s < self.table.length[self.path] - 1.0

    def _move_walkers(self) -> None:
        for i, walker in enumerate(self.setting.walkers):
            if self.time < walker.start or self.time >= walker.end:
                continue
            if walker.is_crossing and self.walked[i] * np.hypot(*walker.velocity) < 2.2 and self._car_near(walker, i):
                continue  # still on the kerb: let the car pass
            self.walked[i] += DT

    def _car_near(self, walker: Walker, i: int) -> bool:
        """Whether the human would reach the walker's line within 1.6 s."""
        place = walker.position + walker.velocity * (self.walked[i] + 2.0)
        delta = place - self.ego[:2]
        along = delta @ np.array([np.cos(self.ego[2]), np.sin(self.ego[2])])
        return bool(-2 < along < 5.0 + 1.9 * self.v[0] and self.v[0] > 1.0)

    def _move_ego(self, comfortable: float, gaps: dict[str, tuple[float, float]]) -> None:
        v, driver = float(self.v[0]), self.driver
        path, index = self.setting.route, min(int(self.s[0]), self.table.curvature.shape[1] - 1)
        look = max(4.0, 0.75 * v)
        aim = driver.lateral_target(self.time, v, float(self.table.curvature[path, index]))
        point, heading = self.table.pose(self.path[:1], np.array([self.s_rear + look]))
        target = point[0] + aim * np.array([-np.sin(heading[0]), np.cos(heading[0])])
        steering = driver.steer(self.ego, target, DT)
        wanted = driver.accelerate(self.time, v, comfortable, gaps)
        self.a[0] = driver.pedal(wanted, v, DT)
        new_v = max(v + self.a[0] * DT, 0.0)
        mean_v = (v + new_v) / 2
        self.yaw_rate = mean_v * np.tan(steering) / WHEELBASE
        middle = self.ego[2] + self.yaw_rate * DT / 2
        self.ego = self.ego + DT * np.array([mean_v * np.cos(middle), mean_v * np.sin(middle), self.yaw_rate])
        self.v[0] = new_v
        self._follow_ego()

    def _put_ego(self, ego: EgoState) -> None:
        self.ego = np.array([ego.x, ego.y, ego.heading])
        self.v[0], self.a[0] = ego.velocity[0], ego.acceleration[0]
        self.yaw_rate = ego.yaw_rate
        self._follow_ego()

    def _follow_ego(self) -> None:
        self.s_rear, self.lateral = self._project()
        self.s[0] = self.s_rear + AXLE_TO_CENTER

    def _project(self) -> tuple[float, float]:
        """Distance along the route and offset to the left of the rear axle."""
        path, guess = self.setting.route, int(max(self.s_rear, 0))
        window = slice(max(guess - 4, 0), guess + 6)
        delta = self.ego[:2] - self.table.points[path, window]
        nearest = int((delta**2).sum(axis=1).argmin())
        heading = self.table.heading[path, window][nearest]
        along = delta[nearest] @ np.array([np.cos(heading), np.sin(heading)])
        across = delta[nearest] @ np.array([-np.sin(heading), np.cos(heading)])
        return float(window.start + nearest + along), float(across)

    def _bodies(self) -> Bodies:
        """Vehicles first, then standing things, then walkers where they are and will be in one and two seconds."""
        points, heading = self.table.pose(self.path, self.s)
        points[~self.present] = FAR
        ego_direction = np.array([np.cos(self.ego[2]), np.sin(self.ego[2])])
        points[0], heading[0] = self.ego[:2] + AXLE_TO_CENTER * ego_direction, self.ego[2]
        velocity = self.v[:, None] * np.stack([np.cos(heading), np.sin(heading)], axis=1)
        rows: list[tuple[Array, ...]] = [(points, heading, self.size[:, :2], velocity)]
        if self.setting.things:
            rows.append(self.things)
        if self.setting.walkers:
            position, velocity, times, sizes = self.walkers
            moving = velocity * ((times[:, 0] <= self.time) & (self.time < times[:, 1]))[:, None]
            now = position + velocity * self.walked[:, None]
            direction = np.arctan2(velocity[:, 1], velocity[:, 0])
            rows += [(now + later * moving, direction, sizes, moving) for later in (0.0, 1.0, 2.0)]
        center, direction, sizes, speeds = (np.concatenate(parts) for parts in zip(*rows))
        return Bodies(center, direction, sizes[:, 0], sizes[:, 1], speeds)

    def _ego_state(self) -> EgoState:
        v = float(self.v[0])
        return EgoState(
            x=float(self.ego[0]),
            y=float(self.ego[1]),
            heading=float(wrap(self.ego[2])),
            velocity=(v, 0.0),
            acceleration=(float(self.a[0]), float(v * self.yaw_rate)),
            yaw_rate=float(self.yaw_rate),
            s=self.s_rear,
        )

    def _objects(self) -> list[Object]:
        points, heading = self.table.pose(self.path, self.s)
        found = []
        for i in np.flatnonzero(self.present)[1:]:
            velocity = self.v[i] * np.array([np.cos(heading[i]), np.sin(heading[i])])
            found.append(
                _object(
                    i, "vehicle", points[i], heading[i], self.size[i], velocity, self.a[i] < -0.6 or self.v[i] < 0.2
                )
            )
        number = len(self.s)
        for thing in self.setting.things:
            found.append(_object(number, thing.name, thing.position, thing.heading, thing.size, np.zeros(2)))
            number += 1
        for i, walker in enumerate(self.setting.walkers):
            moving = walker.start <= self.time < walker.end
            place = walker.position + walker.velocity * self.walked[i]
            direction = np.arctan2(walker.velocity[1], walker.velocity[0])
            velocity = walker.velocity if moving else np.zeros(2)
            found.append(_object(number, walker.name, place, direction, walker.size, velocity))
            number += 1
        return found


def _stacked(items: list[Any], *names: str | tuple[str, ...]) -> tuple[Array, ...]:
    """The named fields of all items, one array each, then length and width."""
    columns = [[getattr(x, n) if isinstance(n, str) else [getattr(x, m) for m in n] for x in items] for n in names]
    return (*map(np.array, columns), np.array([x.size[:2] for x in items]))


def _object(
    number: int, name: str, point: Array, heading: float, size: Any, velocity: Array, braking: bool = False
) -> Object:
    return Object(
        int(number),
        name,
        float(point[0]),
        float(point[1]),
        float(wrap(heading)),
        (float(size[0]), float(size[1]), float(size[2])),
        (float(velocity[0]), float(velocity[1])),
        bool(braking),
    )
