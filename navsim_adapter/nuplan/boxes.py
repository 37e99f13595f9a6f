"""Corners of rectangular bodies, in the devkit's order and arithmetic (metric 2.5, 5.6)."""

from __future__ import annotations

import numpy as np
import shapely

from navsim_adapter.vehicle import AXLE_TO_CENTER, HALF_LENGTH, HALF_WIDTH


def ego_center(pose: np.ndarray) -> np.ndarray:
    """(..., 2) geometric center of the ego body whose rear axle is at `pose` (..., 3)."""
    return pose[..., :2] + AXLE_TO_CENTER * np.stack([np.cos(pose[..., 2]), np.sin(pose[..., 2])], axis=-1)


def ego_corners(pose: np.ndarray) -> np.ndarray:
    """(..., 4, 2) corners of the ego body with its rear axle at `pose` (..., 3)."""
    return box_corners(ego_center(pose), pose[..., 2], np.array([HALF_LENGTH, HALF_WIDTH]))


def overlaps_ego(ego_pose: np.ndarray, size: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """(M,) which boxes, size (M, 2) and pose (M, 3), touch the ego body; an absent one (NaN) does not."""
    overlaps = np.hypot(*(pose[:, :2] - ego_pose[:2]).T) < 5.0 + np.hypot(*size.T)  # near enough, to begin with
    boxes = shapely.polygons(box_corners(pose[overlaps, :2], pose[overlaps, 2], size[overlaps] / 2))
    overlaps[overlaps] = shapely.intersects(boxes, shapely.polygons(ego_corners(ego_pose)))
    return overlaps


def box_corners(center: np.ndarray, heading: np.ndarray, half_size: np.ndarray) -> np.ndarray:
    """(..., 4, 2) front-left, rear-left, rear-right, front-right.

    center: (..., 2); heading: (...); half_size: (..., 2) half length, half width.
    """
    forward = np.stack([np.cos(heading), np.sin(heading)], axis=-1)[..., None, :]
    left = np.stack([np.cos(heading + np.pi / 2), np.sin(heading + np.pi / 2)], axis=-1)[..., None, :]
    along = half_size[..., 0, None, None] * np.array([1.0, -1.0, -1.0, 1.0])[:, None]
    across = half_size[..., 1, None, None] * np.array([1.0, 1.0, -1.0, -1.0])[:, None]
    return center[..., None, :] + (across * left + along * forward)
