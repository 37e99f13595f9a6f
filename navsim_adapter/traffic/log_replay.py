"""Non-reactive traffic: the log as it was, without what stands on the ego at the start (metric 8.2)."""

from __future__ import annotations

import numpy as np

from navsim_adapter.nuplan.boxes import overlaps_ego
from navsim_adapter.scene_cache import SceneCache
from navsim_adapter.traffic.objects import TrafficObjects, recorded


def log_replay(cache: SceneCache, states: np.ndarray | None = None) -> TrafficObjects:
    """The recorded objects; one whose box at step 0 meets the ego's footprint is left out of all steps.

    states: not read; replayed traffic does what it did.
    """
    objects = recorded(cache)
    return objects.rows(np.flatnonzero(~overlaps_ego(cache.ego_state[:3], objects.size, objects.pose[:, 0])))
