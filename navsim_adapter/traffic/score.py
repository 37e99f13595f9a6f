"""Trajectories scored in traffic that depends on them: EPDMS with a policy other than log replay (metric 8.1).

The batch of the official code is [PDM-Closed, trajectory] in the traffic of the trajectory, so the reference is scored
anew for each; the human of the penalty filter drives in a traffic of its own.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from navsim_adapter.metric import engine
from navsim_adapter.metric.scene_index import SceneIndex, build_index, run
from navsim_adapter.metric.traffic_index import build_traffic_index
from navsim_adapter.scene_cache import SceneCache
from navsim_adapter.traffic.objects import TrafficObjects, TrafficPolicy
from navsim_adapter.vehicle import STATES

HUMAN_INTERVAL = 0.5
_NO_HISTORY = np.empty((0, 3))


def score_in_traffic(
    scene: SceneCache, poses: np.ndarray, interval: float, policy: TrafficPolicy
) -> tuple[np.ndarray, np.ndarray]:
    """The engine's table (N, engine.COLUMNS), two-frame comfort left out, and the simulated states (N, 41, 11).

    poses: (N, T, 3) ego frame, `interval` seconds apart.  Raises InputError where the policy has no traffic for a
    trajectory or for the human.
    """
    base = build_index(scene, "epdms")
    states = simulated(base, poses, interval)
    table = np.empty((len(poses), engine.COLUMNS))
    human = base.human
    if scene.human_future is not None and not scene.is_synthetic:
        plan = np.array(scene.human_future, np.float64)[None]
        traffic = policy(scene, simulated(base, plan, HUMAN_INTERVAL)[0])
        human = run(_among(base, scene, traffic, human * np.nan, _NO_HISTORY), plan, HUMAN_INTERVAL)[0]
    for row in range(len(poses)):
        index = _among(base, scene, policy(scene, states[row]), human, base.history)
        table[row] = run(_with_reference(index, scene), poses[row : row + 1], interval)[0]
    return table, states


def simulated(index: SceneIndex, poses: np.ndarray, interval: float) -> np.ndarray:
    """(N, 41, 11) what the ego does with the trajectories; the same in any traffic."""
    states = np.empty((len(poses), STATES, 11))
    run(index, poses, interval, states=states)
    return states


def _among(
    index: SceneIndex, scene: SceneCache, objects: TrafficObjects, human: np.ndarray, history: np.ndarray
) -> SceneIndex:
    """The scene with other objects; its lights stay."""
    traffic = build_traffic_index(
        ego=np.asarray(scene.ego_state),
        size=objects.size,
        pose=objects.pose,
        kind=objects.type,
        velocity=objects.velocity,
        ignored=np.zeros(len(objects.tokens), bool),
        lights=scene.lights,
        light_red=np.asarray(scene.light_red),
    )
    return replace(index, traffic=traffic, human=human, history=history, reference_progress=0.0, reference_best=0.0)


def _with_reference(index: SceneIndex, scene: SceneCache) -> SceneIndex:
    """The same, with PDM-Closed's progress in this traffic to measure against."""
    poses = np.array(scene.reference_epdms, np.float64)[None]
    row = run(replace(index, human=index.human * np.nan, history=_NO_HISTORY), poses, is_planned=True)[0]
    progress = float(row[engine.PROGRESS_RAW])
    best = float(progress * engine.product_of(row, True))
    return replace(index, reference_progress=progress, reference_best=best)
