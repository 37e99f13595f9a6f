"""Drivers that need no server: the human, PDM-Closed, and two that look at nothing. `served` asks over a port."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from navsim_adapter.cache.build import build_scene
from navsim_adapter.closed_loop.course import HORIZON, STEP_US, Course
from navsim_adapter.closed_loop.drive import Drive, Manner, Plan, Planner, View, drive, human_drive
from navsim_adapter.closed_loop.frames import scene_now
from navsim_adapter.foundation.errors import InputError


class Driver(Protocol):
    """name: what the tables call it, and what tells one driver from another."""

    @property
    def name(self) -> str: ...

    def drive(self, course: Course, manner: Manner, seed: int) -> Drive: ...


def human_plan(view: View) -> Plan:
    """What the human did from here on in the log: the best imitator, behind the tracker."""
    ahead = view.course.human[view.step : view.step + 1 + HORIZON]
    return _plan(view, np.array([(now.ego.x, now.ego.y, now.ego.heading) for now in ahead]), first=0)


def pdm_closed(view: View) -> Plan | None:
    """PDM-Closed on the present scene, as EPDMS has it; no plan where it has none, far off the road."""
    try:
        cache = build_scene(scene_now(view.course, view.past, view.ego), view.course.city)
    except InputError:
        return None
    return _plan(view, cache.reference_epdms[1:])


def stand_still(view: View) -> None:
    """No plan at all: the car brakes and stands."""


def constant_velocity(view: View) -> Plan:
    """Straight on at the present speed."""
    ego, ahead = view.ego, 0.1 * np.arange(1, HORIZON + 1)
    way = float(np.hypot(*ego.velocity)) * ahead
    poses = np.column_stack(
        [ego.x + way * np.cos(ego.heading), ego.y + way * np.sin(ego.heading), np.full(HORIZON, ego.heading)]
    )
    return _plan(view, poses)


def _plan(view: View, poses: np.ndarray, first: int = 1) -> Plan:
    """poses: (n, 3) a tenth of a second apart, the first of them `first` steps from now."""
    return Plan(view.time_us + STEP_US * np.arange(first, first + len(poses)), poses)


PLANNERS: dict[str, Planner] = {
    planner.__name__: planner for planner in (human_plan, pdm_closed, stand_still, constant_velocity)
}


@dataclass(frozen=True)
class Planned:
    name: str

    def drive(self, course: Course, manner: Manner, seed: int) -> Drive:
        return drive(course, PLANNERS[self.name], manner, seed)


@dataclass(frozen=True)
class Human:
    """The log as it was driven; what the others' progress is measured against."""

    name: str = "human"

    def drive(self, course: Course, manner: Manner, seed: int) -> Drive:
        return human_drive(course, manner)


BUILT_IN: dict[str, Driver] = {"human": Human(), **{name: Planned(name) for name in PLANNERS}}
