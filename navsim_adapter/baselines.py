"""Planners that need no weights: constant velocity, the human log, PDM-Closed, standing still.

Each is a function SceneCache -> (8, 3) ego-frame poses at 0.5 s steps, an entry of `BASELINES`. `navsim-adapter
baseline NAME` writes one planner's trajectories for every scene of a cache, ready for `navsim-adapter score`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.scene_cache import EPDMS, PDMS, SceneCache

POSES, INTERVAL = 8, 0.5
_STEPS_PER_POSE = 5  # the reference is sampled at 10 Hz


def constant_velocity(scene: SceneCache) -> np.ndarray:
    """Straight on at the current speed |(vx, vy)|, in the official agent's precision (metric 9).

    Velocity is float32 and so is the sum of its squares; the root and the products are float64 under the numpy 1 that
    the devkit pins; poses are rounded to float32.
    """
    velocity = scene.ego_state[3:5].astype(np.float32)
    speed = float((velocity**2).sum()) ** 0.5
    poses = np.zeros((POSES, 3), np.float32)
    poses[:, 0] = np.arange(1, POSES + 1) * INTERVAL * speed
    return poses.astype(np.float64)


def stopped(_scene: SceneCache) -> np.ndarray:
    """Every pose is the current one; the tracker still has to brake, which takes a moving car off its place."""
    return np.zeros((POSES, 3))


def human(scene: SceneCache) -> np.ndarray:
    """What the driver did (metric 4.5); raises InputError for scenes without a recorded future (stage two)."""
    if scene.human_future is None:
        raise InputError(f"scene {scene.token}: has no recorded future; the human baseline needs original scenes")
    return np.array(scene.human_future)


def pdm_closed(scene: SceneCache, metric: int = PDMS) -> np.ndarray:
    """What progress is measured against (metric 4.4), every 0.5 s. metric: whose reference, PDMS or EPDMS."""
    reference = scene.reference_pdms if metric == PDMS else scene.reference_epdms
    if not scene.versions & metric or not np.isfinite(reference).all():
        name = "PDMS" if metric == PDMS else "EPDMS"
        raise InputError(f"scene {scene.token}: its cache holds no {name} reference; cache it for that metric")
    chosen = reference[_STEPS_PER_POSE::_STEPS_PER_POSE]
    x, y, heading = scene.ego_state[:3]
    cosine, sine = np.cos(heading), np.sin(heading)
    ahead = (chosen[:, :2] - (x, y)) @ np.array([[cosine, -sine], [sine, cosine]])
    turn = chosen[:, 2] - heading
    return np.column_stack([ahead, np.arctan2(np.sin(turn), np.cos(turn))])


BASELINES: dict[str, Callable[[SceneCache], np.ndarray]] = {
    "constant_velocity": constant_velocity,
    "human": human,
    "pdm_closed": pdm_closed,
    "pdm_closed_v2": lambda scene: pdm_closed(scene, EPDMS),
    "stopped": stopped,
}


def plan_all(
    name: str, cache: Mapping[str, SceneCache], progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, np.ndarray]:
    """Token -> poses, in the cache's order; stage-two scenes are left out for `human`, which has no plan there."""
    planner = BASELINES[name]
    plans = {}
    for done, token in enumerate(cache, 1):
        scene = cache[token]
        if name != "human" or scene.human_future is not None:
            plans[token] = planner(scene)
        progress(done, len(cache))
    return plans
