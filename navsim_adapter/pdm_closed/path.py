"""A driving path parametrised by its progress, and the proposals' parallel paths (metric 3.5 (3), 4.4)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import shapely
from shapely.ops import substring

from navsim_adapter.metric.jit import entry, inner

MIN_PROGRESS = 1e-5  # PDM-Closed's interpolation never returns the very first vertex


@dataclass(frozen=True)
class Path:
    """vertices: (C, 3) x, y, heading, the heading unwrapped; progress: (C,) metres along the vertices."""

    vertices: np.ndarray
    progress: np.ndarray

    @classmethod
    def through(cls, vertices: np.ndarray) -> Path:
        """The path along `vertices` (C, 3) x, y, heading in any branch."""
        steps = np.diff(vertices[:, :2], axis=0)
        progress = np.append(0.0, np.cumsum(np.hypot(steps[:, 0], steps[:, 1])))
        return cls(np.column_stack([vertices[:, :2], np.unwrap(vertices[:, 2])]), progress)

    @property
    def length(self) -> float:
        return float(self.progress[-1])

    @cached_property
    def line(self) -> shapely.LineString:
        return shapely.LineString(self.vertices[:, :2])

    def project(self, points: np.ndarray) -> np.ndarray:
        """(n,) progress of the first nearest point of the path to each of `points` (n, 2), as GEOS locates it."""
        points = np.ascontiguousarray(points, np.float64)
        located = np.empty(len(points))
        project(np.ascontiguousarray(self.progress), np.ascontiguousarray(self.vertices), points, located)
        return located

    def parallel(self, offset: float) -> Path:
        """The path whose every vertex is moved by `offset` to the left; it has a progress of its own."""
        normal = self.vertices[:, 2] + np.pi / 2
        shift = offset * np.column_stack([np.cos(normal), np.sin(normal), np.zeros(len(normal))])
        return Path.through(self.vertices + shift)

    def section(self, start: float, end: float) -> shapely.Geometry:
        """The vertices from `start` to `end`, or the exact stretch if these are fewer than two."""
        inside = (self.progress >= start) & (self.progress <= end)
        if inside.sum() > 1:
            return shapely.LineString(self.vertices[inside, :2])
        return substring(self.line, start, end)


@inner
def interpolate(progress: np.ndarray, vertices: np.ndarray, at: float, lowest: float, pose: np.ndarray) -> None:
    """Pose (3,) out at the progress `at`, clipped to `lowest` and the path's end, heading in [-pi, pi].

    0 where the path has no extent.
    """
    s = min(max(at, lowest), progress[len(progress) - 1])
    first, end = 0, len(progress)  # the first vertex not before s is among these
    while first < end:
        middle = (first + end) // 2
        if progress[middle] < s:
            first = middle + 1
        else:
            end = middle
    high = min(max(first, 1), len(progress) - 1)
    low = high - 1
    width = progress[high] - progress[low]
    pose[0] = pose[1] = pose[2] = 0.0
    if width > 0.0:
        for j in range(3):
            slope = (vertices[high, j] - vertices[low, j]) / width
            pose[j] = slope * (s - progress[low]) + vertices[low, j]
        pose[2] = np.arctan2(np.sin(pose[2]), np.cos(pose[2]))


@entry("void(f8[::1], f8[:,::1], f8[:,::1], f8[::1])")
def project(progress, vertices, points, located):
    """Fill `located` (n,) with the progress of the points of a path nearest to `points` (n, 2); the first of equally
    near ones."""
    for i in range(len(points)):
        least = np.inf
        for j in range(len(progress) - 1):
            ux, uy = vertices[j + 1, 0] - vertices[j, 0], vertices[j + 1, 1] - vertices[j, 1]
            wx, wy = points[i, 0] - vertices[j, 0], points[i, 1] - vertices[j, 1]
            length = ux * ux + uy * uy
            fraction = 0.0 if length == 0.0 else min(max((ux * wx + uy * wy) / length, 0.0), 1.0)
            distance = (wx - fraction * ux) ** 2 + (wy - fraction * uy) ** 2
            if distance < least:
                least = distance
                located[i] = progress[j] + fraction * np.sqrt(length)
