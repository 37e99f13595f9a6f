"""Which of fifteen proposals PDM-Closed drives: all are simulated and scored on the forecast (metric 4.4 (c) to (e)).

The proposals are the same under both metrics; the score that picks one is the metric's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely

from navsim_adapter.metric import engine
from navsim_adapter.metric.map_index import build_map_index
from navsim_adapter.metric.packed import Packed
from navsim_adapter.metric.scene_index import NO_LIGHTS, SceneIndex, run
from navsim_adapter.metric.traffic_index import build_traffic_index
from navsim_adapter.nuplan.maps import flatten
from navsim_adapter.nuplan.objects import FrameObjects
from navsim_adapter.pdm_closed.forecast import Forecast, forecast
from navsim_adapter.pdm_closed.rollout import proposals
from navsim_adapter.scene_cache import EPDMS, PDMS, SceneCache
from navsim_adapter.vehicle import STATES

PROPOSAL_STEP_US = 100_000


def plan_references(
    scene: SceneCache,
    speed_limit: float | None,
    objects: FrameObjects,
    red_lights: Sequence[tuple[str, shapely.Geometry]],
    memory: set[str] | None = None,
) -> dict[str, np.ndarray]:
    """PDM-Closed's rear-axle poses (41, 3) as the scorer samples them, under "pdms" and "epdms".

    scene: areas, centerline, ego state and time are read, its references are not.  speed_limit: of the starting lane,
    None where the map has none.  objects: the raw objects of the current frame.  red_lights: (connector id, polygon)
    of the current frame's red connectors on the corrected route.  A metric that `scene.versions` lacks is left out.

    memory: None for a fresh planner; else the tokens that the devkit's own builder remembers from earlier scenes of the
    same worker, which grow by this scene's (metric 10.3).
    """
    predicted = forecast(scene.ego_state[:3], objects, red_lights, memory)
    candidates = proposals(scene.ego_state, scene.centerline, speed_limit, predicted)
    area = build_map_index(scene)
    wanted = [name for name, version in (("pdms", PDMS), ("epdms", EPDMS)) if scene.versions & version]
    return {
        name: sample(candidates[_best(scene, area, predicted, candidates, name == "epdms")], int(scene.time_us))
        for name in wanted
    }


def sample(poses: np.ndarray, time_us: int) -> np.ndarray:
    """(41, 3) poses at the times that the scorer asks for, up to 1 us before the planned ones (metric 5.1).

    poses: (41, 3) planned at `time_us` + k * 0.1 s.
    """
    planned = time_us + PROPOSAL_STEP_US * np.arange(STATES)
    asked = np.array([int((k * 0.1 + time_us * 1e-6) * 1e6) for k in range(STATES)]).clip(planned[0], planned[-1])
    after = np.searchsorted(planned, asked).clip(1, STATES - 1)
    unwrapped = np.column_stack([poses[:, :2], np.unwrap(poses[:, 2])])
    slope = (unwrapped[after] - unwrapped[after - 1]) / PROPOSAL_STEP_US
    sampled = slope * (asked - planned[after - 1])[:, None] + unwrapped[after - 1]
    sampled[:, 2] = np.mod(sampled[:, 2] + np.pi, 2 * np.pi) - np.pi
    return sampled


def _best(scene: SceneCache, area: Packed, predicted: Forecast, candidates: np.ndarray, is_epdms: bool) -> int:
    """Index of the first proposal of the highest score."""
    index = SceneIndex(
        token=scene.token,
        log_name=scene.log_name,
        time_us=int(scene.time_us),
        is_epdms=is_epdms,
        ego=np.array(scene.ego_state, dtype=np.float64),
        area=area,
        traffic=_traffic(scene, predicted, is_epdms),
        history=np.empty((0, 3)),  # the planner passes none, and history comfort is 1 then
        reference_progress=0.0,
        reference_best=0.0,
        human=np.full(engine.COLUMNS, np.nan),
    )
    table = run(index, candidates, is_planned=True)
    best = max(row[engine.PROGRESS_RAW] * engine.product_of(row, is_epdms) for row in table)
    engine.combine_rows(table, is_epdms, best, index.human, np.full(len(table), np.nan))
    return int(table[:, engine.SCORE].argmax())


def _traffic(scene: SceneCache, predicted: Forecast, is_epdms: bool) -> Packed:
    """The forecast as the scorer takes objects: v1.1 looks 5 s ahead and sees no lights, v2.2 4 s and lights."""
    return build_traffic_index(
        ego=np.asarray(scene.ego_state),
        size=predicted.size,
        pose=predicted.poses()[:, :STATES] if is_epdms else predicted.poses(),
        kind=predicted.type,
        velocity=predicted.velocity,
        ignored=predicted.is_collided[: len(predicted.tokens)],
        lights=flatten(predicted.lights) if is_epdms else NO_LIGHTS,
        light_red=np.ones((len(predicted.lights), STATES), bool) if is_epdms else np.empty((0, STATES), bool),
    )
