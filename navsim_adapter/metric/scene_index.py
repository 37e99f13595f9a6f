"""Everything the engine reads of one scene under one metric, built once from its cache.

Besides the map and the traffic this holds what does not depend on the candidate: PDM-Closed's progress, the human's
own sub-scores (the penalty filter), the history before the comfort window.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.metric import engine
from navsim_adapter.metric.history import comfort_history, history_problem
from navsim_adapter.metric.map_index import CATEGORIES, build_map_index
from navsim_adapter.metric.packed import Packed, pack
from navsim_adapter.metric.simulate import PLANES, literal_headings
from navsim_adapter.metric.traffic_index import build_traffic_index
from navsim_adapter.nuplan.boxes import overlaps_ego
from navsim_adapter.scene_cache import EPDMS, PDMS, Polygons, SceneCache
from navsim_adapter.vehicle import STATES

Metric = Literal["pdms", "epdms"]

NO_LIGHTS = Polygons(np.empty((0, 2)), np.zeros(1, np.int64), np.zeros(1, np.int64))
_HUMAN_INTERVAL = 0.5


@dataclass(frozen=True)
class SceneIndex:
    token: str
    log_name: str
    time_us: int
    is_epdms: bool
    ego: np.ndarray  # (11,)
    area: Packed
    traffic: Packed
    history: np.ndarray  # (H, 3) a_x, a_y, heading at 0.1 s; H = 0 in PDMS
    reference_progress: float  # PDM-Closed's raw progress, m
    reference_best: float  # the same times its product
    human: np.ndarray  # (engine.COLUMNS,) the human's row; NaN where there is no filter
    is_synthetic: bool = False  # a second-stage scene: no human filter, no earlier frame

    @cached_property
    def block(self) -> Packed:
        """What the engine reads of it, under one address."""
        facts = np.array([self.time_us, self.is_epdms, self.area.address, self.traffic.address], np.int64)
        return pack([facts, np.array([self.reference_best]), self.ego, self.human, self.history])


def build_index(scene: SceneCache, metric: Metric) -> SceneIndex:
    """Index a scene; raises InputError if its log does not reach as far as the metric looks, ahead or back."""
    is_epdms = metric == "epdms"
    if not scene.versions & (EPDMS if is_epdms else PDMS):
        seconds = 4 if is_epdms else 5
        raise InputError(f"scene {scene.token}: its log ends before the {seconds} s that {metric} needs; leave it out")
    problem = history_problem(scene.past_states, scene.past_time_us) if is_epdms else None
    if problem:
        raise InputError(f"scene {scene.token}: {problem}")
    ego = np.array(scene.ego_state, np.float64)
    bare = SceneIndex(
        token=scene.token,
        log_name=scene.log_name,
        time_us=int(scene.time_us),
        is_epdms=is_epdms,
        ego=ego,
        area=build_map_index(scene),
        traffic=scene_traffic(scene, metric),
        history=np.empty((0, 3)),
        reference_progress=0.0,
        reference_best=0.0,
        human=np.full(engine.COLUMNS, np.nan),
        is_synthetic=scene.is_synthetic,
    )
    reference = scene.reference_epdms if is_epdms else scene.reference_pdms
    row = run(bare, np.array(reference, np.float64)[None], is_planned=True)[0]
    index = replace(
        bare,
        reference_progress=float(row[engine.PROGRESS_RAW]),
        reference_best=float(row[engine.PROGRESS_RAW] * engine.product_of(row, is_epdms)),
    )
    if not is_epdms:
        return index
    if scene.human_future is not None and not scene.is_synthetic:
        human = np.array(scene.human_future, np.float64)[None]
        index = replace(index, human=run(bare, human, _HUMAN_INTERVAL)[0])
    return replace(index, history=comfort_history(scene.past_states, scene.past_time_us))


def scene_traffic(scene: SceneCache, metric: Metric) -> Packed:
    """The scene's objects under a metric: 51 steps and no lights in v1.1; 41 steps and lights in v2.2, which drops
    what overlaps the ego at the start (metric 8.2)."""
    is_epdms = metric == "epdms"
    mine = np.flatnonzero(np.asarray(scene.object_versions) & (EPDMS if is_epdms else PDMS))
    size, pose = np.asarray(scene.object_size)[mine], np.asarray(scene.object_pose)[mine]
    if is_epdms:
        pose = pose[:, :STATES]
        apart = ~overlaps_ego(scene.ego_state[:3], size, pose[:, 0])
        mine, size, pose = mine[apart], size[apart], pose[apart]
    return build_traffic_index(
        ego=np.asarray(scene.ego_state),
        size=size,
        pose=pose,
        kind=np.asarray(scene.object_type)[mine],
        velocity=np.asarray(scene.object_velocity)[mine],
        ignored=np.zeros(len(mine), bool),
        lights=scene.lights if is_epdms else NO_LIGHTS,
        light_red=np.asarray(scene.light_red) if is_epdms else np.empty((0, STATES), bool),
    )


def run(
    index: SceneIndex,
    poses: np.ndarray,
    interval: float = 0.5,
    *,
    is_planned: bool = False,
    is_thorough: bool = False,
    states: np.ndarray | None = None,
    table: np.ndarray | None = None,
) -> np.ndarray:
    """The engine's table (N, engine.COLUMNS) for poses (N, T, 3) of this scene; see `engine.score_trajectories`."""
    poses = np.ascontiguousarray(poses, np.float64)
    if states is None:
        states = np.empty((len(poses), STATES, 11)) if is_thorough else _NO_STATES
    if table is None:
        table = np.empty((len(poses), engine.COLUMNS))
    if _score(index, poses, interval, is_planned, _NO_HEADINGS, table, states) == engine.TIED:
        tied = np.flatnonzero(np.isinf(table[:, engine.SEVERAL_LANES]))
        headings = np.full(poses.shape[:2], np.nan)
        headings[tied] = literal_headings(index.ego, poses[tied])
        _score(index, poses, interval, is_planned, headings, table, states)
    if is_thorough:
        lanes = np.empty((5, index.area.size(CATEGORIES)), np.int64)
        engine.count_areas(index.area.address, states, np.empty((PLANES, STATES, 1)), np.empty((4, 2)), lanes, table)
    return table


_NO_HEADINGS, _NO_STATES = np.empty((0, 0)), np.empty((0, STATES, 11))


class _Scratch(threading.local):
    """Memory that the kernels work in, kept from call to call."""

    memory = np.empty(0)


_scratch = _Scratch()


def _score(index: SceneIndex, poses: np.ndarray, *rest: Any) -> int:
    found = engine.score_trajectories(index.block.address, poses, *rest, _scratch.memory)
    if found in (engine.DONE, engine.TIED):
        return found
    _scratch.memory = np.empty(found)
    return _score(index, poses, *rest)
