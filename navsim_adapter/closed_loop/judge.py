"""What a drive is worth, by the scorer's own rules (metric 6).

The rules look at four seconds, so a drive is judged in windows of four seconds that begin every two: whatever a rule
sums up (a second, for the direction) lies within one of them. A window is the scene of its first moment, as the cache
of a log has it; in place of a simulated plan stands what was driven. The first window with an at-fault collision or a
corner off the road is the last one: what comes after it has no meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from navsim_adapter.cache.build import build_scene
from navsim_adapter.closed_loop.course import HORIZON, START, Course
from navsim_adapter.closed_loop.frames import scene_at
from navsim_adapter.metric import driven
from navsim_adapter.metric.aggregate import epdms_progress
from navsim_adapter.metric.history import comfort_history
from navsim_adapter.metric.map_index import build_map_index
from navsim_adapter.metric.scene_index import scene_traffic
from navsim_adapter.nuplan.boxes import ego_center, overlaps_ego
from navsim_adapter.pdm_closed.path import Path
from navsim_adapter.scene_cache import SceneCache
from navsim_adapter.synthetic.log_writer import track_token
from navsim_adapter.synthetic.world import Instant

Array = np.ndarray
STRIDE = 20  # steps between windows
FULL = 1.0


@dataclass(frozen=True)
class Verdict:
    """Of one drive.

    collision_time: s of the first at-fault contact, None without.  wrong_way: 2 m or more off the route's lanes within
    a second (metric 6.4).  red_light: touched a red connector (metric 6.5).  comfort: share of the windows judged that
    were comfortable (metric 6.10).
    """

    at_fault_collision: bool
    collision_time: float | None
    off_road: bool
    wrong_way: bool
    red_light: bool
    comfort: float

    @property
    def is_over(self) -> bool:
        return self.at_fault_collision or self.off_road


def judge(course: Course, instants: Sequence[Instant], states: Array) -> Verdict:
    """instants: from the log's first frame on.  states: (n + 1, 11) from its first current frame on, n at least 40."""
    rows, touched = [], set[str]()
    starts = windows(len(states) - 1)
    for place, start in enumerate(starts):
        rows.append(_window(course, instants, states, start, touched))
        if min(rows[-1][:2]) < FULL:
            break
        until = starts[min(place + 1, len(starts) - 1)]
        for now in instants[START + start : START + until]:
            touched |= _touched(course, now)
    found = np.array(rows)
    worst = found.min(axis=0)
    return Verdict(
        at_fault_collision=bool(worst[0] < FULL),
        collision_time=float(worst[5]) if np.isfinite(worst[5]) else None,
        off_road=bool(worst[1] < FULL),
        wrong_way=bool(worst[2] < FULL),
        red_light=bool(worst[3] < FULL),
        comfort=float(found[:, 4].mean()),
    )


def windows(steps: int) -> list[int]:
    """Steps at which windows begin; the last one ends where the drive ends."""
    return sorted({*range(0, steps - HORIZON, STRIDE), steps - HORIZON})


def progress(course: Course, positions: Array) -> float:
    """Metres along the route's lanes between the first and the last of the rear-axle poses (n, 3), at least 0
    (metric 6.6)."""
    cache = first_scene(course)
    start, end = Path.through(cache.centerline).project(ego_center(positions[[0, -1]]))
    return max(float(end - start), 0.0)


def share(own: float, others: float) -> float:
    """Progress relative to somebody else's, capped; 1 where those went no more than 5 m (metric 6.6)."""
    return epdms_progress(own, others)


def first_scene(course: Course) -> SceneCache:
    """The log's own scene, as the human drove on."""
    return build_scene(scene_at(course, course.human, START), course.city)


def _window(course: Course, instants: Sequence[Instant], states: Array, start: int, touched: set[str]) -> Array:
    """(6,) `driven.VERDICT` of the four seconds from `start`, the time on the drive's own clock."""
    cache = without(build_scene(scene_at(course, instants, START + start), course.city), touched)
    history = comfort_history(cache.past_states, cache.past_time_us)
    area, traffic = build_map_index(cache), scene_traffic(cache, "epdms")
    own = np.ascontiguousarray(states[start : start + HORIZON + 1])
    verdict = driven.judge(area, traffic, history, own)
    verdict[5] = round(verdict[5] + 0.1 * start, 1)
    return verdict


def without(cache: SceneCache, tokens: set[str]) -> SceneCache:
    """The scene without some of its objects, which the rules have done with."""
    gone = np.array([token in tokens for token in cache.object_tokens], bool)
    return replace(cache, object_versions=np.where(gone, 0, cache.object_versions))


def _touched(course: Course, now: Instant) -> set[str]:
    """Objects in contact with the car: the rule judges an object's first contact and no later one (metric 6.2)."""
    ego = np.array([now.ego.x, now.ego.y, now.ego.heading])
    boxes = np.array([(o.x, o.y, o.heading, *o.size[:2]) for o in now.objects]).reshape(-1, 5)
    on = np.flatnonzero(overlaps_ego(ego, boxes[:, 3:], boxes[:, :3]))
    return {track_token(course.name, now.objects[row].id) for row in on}
