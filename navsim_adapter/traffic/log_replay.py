"""Non-reactive traffic: the log as it was, without what stands on the ego at the start (metric 8.2)."""

from __future__ import annotations

import numpy as np
import shapely

from navsim_adapter.nuplan.boxes import box_corners, ego_corners
from navsim_adapter.scene_cache import SceneCache
from navsim_adapter.traffic.objects import TrafficObjects, recorded


def log_replay(cache: SceneCache, states: np.ndarray | None = None) -> TrafficObjects:
    """The recorded objects; one whose box at step 0 meets the ego's footprint is left out of all steps.

    states: not read; replayed traffic does what it did.
    """
    objects = recorded(cache)
    return objects.rows(np.flatnonzero(~overlaps_ego(cache.ego_state[:3], objects)))


def overlaps_ego(ego_pose: np.ndarray, objects: TrafficObjects) -> np.ndarray:
    """(M,) whether the object is present at step 0 and its box meets the ego body; touching counts."""
    is_present = ~np.isnan(objects.pose[:, 0, 0])
    pose = objects.pose[is_present, 0]
    boxes = shapely.polygons(box_corners(pose[:, :2], pose[:, 2], objects.size[is_present] / 2))
    overlaps = np.zeros(len(is_present), dtype=bool)
    overlaps[is_present] = shapely.intersects(boxes, shapely.polygons(ego_corners(ego_pose)))
    return overlaps
