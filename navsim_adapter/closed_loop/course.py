"""One log to be driven: where it starts, what the human did, where the way goes, and the others along it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from navsim_adapter.closed_loop.worlds import RemadeLog
from navsim_adapter.nuplan.maps import Map
from navsim_adapter.synthetic.events import WARM
from navsim_adapter.synthetic.log_writer import HISTORY, pictures_of
from navsim_adapter.synthetic.world import DT, EgoState, Instant, World

Array = np.ndarray
STEP_US = 100_000
PER_FRAME = 5  # steps between frames of a log
START = PER_FRAME * (HISTORY - 1)  # step of the log's first current frame; step 0 is its first frame
HORIZON = 40  # steps of a plan
END_OF_WAY = 60.0  # m of road that are left where a drive ends: a plan of four seconds needs them
_BEHIND, _AHEAD = 5, 30  # m of the way among which the car is looked for


@dataclass(frozen=True)
class Way:
    """The log's route as one line, a point a metre: (N, 2) and headings (N,)."""

    points: Array
    heading: Array

    def along(self, x: float, y: float, guess: float) -> float:
        """How far along the way a point is, m; looked for around `guess`."""
        first = max(int(guess) - _BEHIND, 0)
        near = self.points[first : first + _BEHIND + _AHEAD]
        if not len(near):
            return float(len(self.points) - 1)
        nearest = first + int(((near - (x, y)) ** 2).sum(axis=1).argmin())
        dx, dy = np.array([x, y]) - self.points[nearest]
        step = dx * np.cos(self.heading[nearest]) + dy * np.sin(self.heading[nearest])
        return float(nearest + np.clip(step, -0.5, 0.5))

    def ahead(self, s: float, distance: float) -> Array:
        """(n, 2) points from `s` on, 1 m apart, as far as there is road."""
        return self.points[int(s) : int(s + distance) + 1]

    @property
    def end(self) -> float:
        return len(self.points) - 1 - END_OF_WAY


@dataclass(frozen=True)
class Course:
    """A log's world with what the human does in it, on the map of its city.

    human: ten instants a second from the log's first frame on, as long as anybody drives and a plan further.
    """

    log: RemadeLog
    city: Map
    human: list[Instant]

    @cached_property
    def way(self) -> Way:
        path = self.log.recording.setting.site.paths[self.log.recording.setting.route]
        return Way(path.points, path.heading)

    @property
    def name(self) -> str:
        return self.log.info.name

    def time_us(self, step: int) -> int:
        return self.log.info.start_us + step * STEP_US

    def pictures(self, now: Instant) -> dict[str, bytes]:
        """Camera -> JPEG of what the car's cameras see."""
        return pictures_of(now, self.log.recording.setting.site.net, self.log.ground, self.log.look)


def set_course(log: RemadeLog, city: Map, steps: int) -> Course:
    """Let the human drive `steps` from the log's first current frame, and a plan's horizon further."""
    world = begun(log)
    human = [world.now()]
    for _ in range(START + steps + HORIZON):
        world.step()
        human.append(world.now())
    return Course(log, city, human)


def begun(log: RemadeLog) -> World:
    """The log's world at its first frame."""
    world = log.recording.again()
    for _ in range(round(WARM / DT)):
        world.step()
    return world


class Replayed:
    """The others do what they did around the human."""

    def __init__(self, course: Course):
        self.human, self.step_now = course.human, START

    def step(self, ego: EgoState) -> Instant:
        self.step_now += 1
        return self.human[self.step_now]._replace(ego=ego)


class Reacting:
    """The others see the car where it is: vehicles follow, yield and brake for it, walkers wait for it."""

    def __init__(self, course: Course):
        self.world = begun(course.log)
        for _ in range(START):
            self.world.step()

    def step(self, ego: EgoState) -> Instant:
        self.world.step(ego)
        return self.world.now()._replace(ego=ego)


TRAFFIC: dict[str, type[Replayed] | type[Reacting]] = {"log-replay": Replayed, "idm": Reacting}
