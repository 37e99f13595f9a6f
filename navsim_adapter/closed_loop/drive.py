"""The loop: see, plan, follow the plan for a while with the metric's tracker and bicycle model, see again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from navsim_adapter.closed_loop.course import HORIZON, START, TRAFFIC, Course
from navsim_adapter.metric import driven
from navsim_adapter.synthetic.world import EgoState, Instant
from navsim_adapter.vehicle import WHEELBASE

Array = np.ndarray
SPEED_NOISE, ACCELERATION_NOISE = 0.015, 0.04  # of the sensors, as in the logs; m/s, m/s^2
_STEPS = 0.1 * np.arange(HORIZON + 1)  # s
_STANDING = 0.05  # m/s below which the sensors have no noise, as in the logs


@dataclass(frozen=True)
class Plan:
    """Poses (T, 3) of the rear axle in the map's frame at times (T,), microseconds on the log's clock, rising."""

    times_us: Array
    poses: Array

    def leads_on(self, time_us: int) -> bool:
        """Whether any of its poses is still to come."""
        return bool((self.times_us > time_us).any())


@dataclass(frozen=True)
class View:
    """What a driver knows at one instant.

    past: ten instants a second since the log's first frame, the current one last.  ego: the car as its sensors have it.
    """

    course: Course
    past: Sequence[Instant]
    ego: EgoState

    @property
    def step(self) -> int:
        return len(self.past) - 1

    @property
    def time_us(self) -> int:
        return self.course.time_us(self.step)


Planner = Callable[[View], Plan | None]  # None: no plan, the car brakes and holds


@dataclass(frozen=True)
class Manner:
    """How a drive goes: among whom (TRAFFIC), for how many steps of 0.1 s, and how many of them lie between plans."""

    traffic: str = "idm"
    steps: int = 80
    replan: int = 5


@dataclass(frozen=True)
class Drive:
    """states: (n + 1, 11) of the car, columns as in metric 5.2, from the log's first current frame on.

    paths: (m, 41, 3) what the car was made to follow, plan after plan.  held: how often there was no plan.
    """

    states: Array
    paths: Array
    held: int


def drive(course: Course, planner: Planner, manner: Manner, seed: int) -> Drive:
    """Drive until the time is over or the way ends.

    seed: of the sensors' noise.  The car starts as the human has it in the log's first current frame.
    """
    rng, others, steps = np.random.default_rng([seed, START]), TRAFFIC[manner.traffic](course), manner.steps
    past, state = list(course.human[: START + 1]), state_of(course.human[START].ego)
    states, paths, held = [state], [], 0
    while len(states) <= steps and not _has_arrived(course, past):
        plan = planner(View(course, past, _measured(past[-1].ego, rng)))
        held += plan is None or not plan.leads_on(course.time_us(len(past) - 1))
        paths.append(path_to_follow(plan, state, course.time_us(len(past) - 1)))
        ahead = driven.follow(state, paths[-1])
        for state in ahead[1 : 1 + min(manner.replan, steps + 1 - len(states))]:
            past.append(others.step(ego_of(state, course, past[-1].ego.s)))
            states.append(state)
    return Drive(np.array(states), np.array(paths), held)


def play(course: Course, traffic: str, states: Array) -> list[Instant]:
    """The instants of a drive, from the log's first frame on: the same world gives the same answer to the same car."""
    others, past = TRAFFIC[traffic](course), list(course.human[: START + 1])
    for state in states[1:]:
        past.append(others.step(ego_of(state, course, past[-1].ego.s)))
    return past


def human_drive(course: Course, manner: Manner) -> Drive:
    """The log itself and on, as it was driven: no plan, no tracker."""
    end = START
    while end < START + manner.steps and not _has_arrived(course, course.human[: end + 1]):
        end += 1
    return Drive(np.array([state_of(now.ego) for now in course.human[START : end + 1]]), np.empty((0, 41, 3)), 0)


def state_of(ego: EgoState) -> Array:
    """(11,) columns of metric 5.2, the wheels turned as the yaw rate asks."""
    speed = ego.velocity[0]
    steering = np.arctan(WHEELBASE * ego.yaw_rate / speed) if speed > _STANDING else 0.0
    return np.array([ego.x, ego.y, ego.heading, speed, 0.0, ego.acceleration[0], 0.0, steering, 0.0, ego.yaw_rate, 0.0])


def ego_of(state: Array, course: Course, s: float) -> EgoState:
    """s: how far along the way the car was just before."""
    x, y, heading, speed, acceleration, yaw_rate = (float(state[i]) for i in (0, 1, 2, 3, 5, 9))
    return EgoState(x, y, heading, (speed, 0.0), (acceleration, speed * yaw_rate), yaw_rate, course.way.along(x, y, s))


def path_to_follow(plan: Plan | None, state: Array, time_us: int) -> Array:
    """(41, 3) the plan from now on, every 0.1 s: straight between its poses, its last pose beyond them (metric 5.1).

    A plan that does not say where the car is now starts where it is. Without a pose to come every pose is the current
    one, so that the car brakes.
    """
    if plan is None or not plan.leads_on(time_us):
        return np.repeat(state[None, :3], HORIZON + 1, axis=0)
    here = plan.times_us >= time_us
    times, knots = (plan.times_us[here] - time_us) * 1e-6, plan.poses[here]
    if times[0] > 0:
        times, knots = np.append(0.0, times), np.vstack([state[:3], knots])
    x, y, heading = knots[:, 0], knots[:, 1], np.unwrap(knots[:, 2])
    path = np.column_stack([np.interp(_STEPS, times, values) for values in (x, y, heading)])
    path[:, 2] = np.mod(path[:, 2] + np.pi, 2 * np.pi) - np.pi
    return path


def _has_arrived(course: Course, past: Sequence[Instant]) -> bool:
    """At the end of the way, after a plan's horizon at least: the rules look at so much."""
    return len(past) > START + HORIZON and past[-1].ego.s >= course.way.end


def _measured(ego: EgoState, rng: np.random.Generator) -> EgoState:
    """The car as its sensors have it; the draws are the same in number whatever it does."""
    noise = rng.normal(size=4) * ([SPEED_NOISE] * 2 + [ACCELERATION_NOISE] * 2)
    if ego.velocity[0] <= _STANDING:
        return ego
    (vx, vy), (ax, ay) = ego.velocity, ego.acceleration
    return EgoState(
        ego.x, ego.y, ego.heading,
        (vx + float(noise[0]), vy + float(noise[1])), (ax + float(noise[2]), ay + float(noise[3])),
        ego.yaw_rate, ego.s,
    )  # fmt: skip
