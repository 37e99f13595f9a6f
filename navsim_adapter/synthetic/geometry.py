"""Polylines in the plane: arcs, offsets, smooth connections, even resampling. Arrays are (N, 2), metres."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Array = np.ndarray


def sections(start: tuple[float, float, float], parts: Sequence[tuple[float, float]], step: float = 1.0) -> Array:
    """A line of straight and circular parts, one vertex about every `step` metres.

    start: x, y, heading.  parts: (length, curvature) one after the other; positive curvature bends left.
    """
    x, y, heading = start
    points = [(x, y)]
    for length, curvature in parts:
        count = max(1, round(length / step))
        ds = length / count
        for _ in range(count):
            middle = heading + curvature * ds / 2
            chord = ds if abs(curvature) < 1e-9 else 2 / curvature * np.sin(curvature * ds / 2)
            x, y, heading = x + chord * np.cos(middle), y + chord * np.sin(middle), heading + curvature * ds
            points.append((x, y))
    return np.array(points)


def tangents(line: Array) -> Array:
    """(N, 2) unit directions, central differences."""
    delta = np.gradient(line, axis=0)
    return delta / np.maximum(np.hypot(delta[:, 0], delta[:, 1])[:, None], 1e-9)


def headings(line: Array) -> Array:
    """(N,) directions, unwrapped along the line."""
    direction = tangents(line)
    return np.unwrap(np.arctan2(direction[:, 1], direction[:, 0]))


def offset(line: Array, distance: float | Array) -> Array:
    """The line moved sideways by `distance` (a number or (N,)), positive to the left."""
    direction = tangents(line)
    normal = np.stack([-direction[:, 1], direction[:, 0]], axis=1)
    return line + normal * np.asarray(distance)[..., None]


def arc_length(line: Array) -> Array:
    """(N,) distance travelled along the line at each vertex."""
    return np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(line, axis=0).T))])


def resample(line: Array, step: float) -> Array:
    """The same line with vertices an even distance apart, as near to `step` as fits; both ends kept."""
    s = arc_length(line)
    at = np.linspace(0.0, s[-1], max(2, round(s[-1] / step) + 1))
    return np.stack([np.interp(at, s, line[:, 0]), np.interp(at, s, line[:, 1])], axis=1)


def end_pose(line: Array, at_end: bool) -> tuple[Array, float]:
    """The point and direction of travel at an end of the line."""
    a, b = (line[-2], line[-1]) if at_end else (line[0], line[1])
    return (b if at_end else a), float(np.arctan2(b[1] - a[1], b[0] - a[0]))


def connect(start: Array, start_heading: float, end: Array, end_heading: float, step: float = 1.0) -> Array:
    """A smooth curve from one pose to another (cubic Bézier; a circular arc to within a percent where one fits)."""
    chord = float(np.hypot(*(end - start)))
    turn = abs((end_heading - start_heading + np.pi) % (2 * np.pi) - np.pi)
    handle = chord / 3 if turn < 1e-3 else chord * 2 / 3 * np.tan(turn / 4) / np.sin(turn / 2)
    handle = min(handle, 0.6 * chord)
    p1 = start + handle * np.array([np.cos(start_heading), np.sin(start_heading)])
    p2 = end - handle * np.array([np.cos(end_heading), np.sin(end_heading)])
    t = np.linspace(0.0, 1.0, 60)[:, None]
    curve = (1 - t) ** 3 * start + 3 * (1 - t) ** 2 * t * p1 + 3 * (1 - t) * t**2 * p2 + t**3 * end
    return resample(curve, step)


def wrap(angle: Array | float) -> Array:
    """Into [-pi, pi)."""
    return (np.asarray(angle) + np.pi) % (2 * np.pi) - np.pi


def box_corners(center: Array, heading: Array, length: Array, width: Array) -> Array:
    """(..., 4, 2) corners front left, rear left, rear right, front right."""
    c, s = np.cos(heading), np.sin(heading)
    along = np.stack([c, s], axis=-1) * (np.asarray(length) / 2)[..., None]
    across = np.stack([-s, c], axis=-1) * (np.asarray(width) / 2)[..., None]
    return np.stack(
        [center + along + across, center - along + across, center - along - across, center + along - across], axis=-2
    )
