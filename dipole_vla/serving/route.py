"""The driving command from a route of the contract, by NAVSIM's rule (metric 2.2)."""

from __future__ import annotations

import numpy as np

AHEAD = 20.0  # metres along the route
ASIDE = 2.0  # metres to a side that make it a turn
GAP = 5.0  # metres: a route that begins farther ahead is joined to the ego
SHORTEST = 0.1  # metres between points


def command(route: np.ndarray) -> str:
    """left, straight, right or unknown: where the route is 20 m on, seen from where it passes the ego.

    route: (n, 2) m in the ego frame now, in order. Rows with NaN are padding. One that begins ahead of the ego, as
    AlpaSim's challenge sends it from 40 m on, is joined to it by a curve that leaves along the ego's heading.
    """
    points = _spaced(route[np.isfinite(route).all(1)])
    if len(points) < 2:
        return "unknown"
    if points[0, 0] > GAP and _nearest(points) == 0:
        points = _spaced(np.concatenate([_joint(points), points]))
    along, here = _along(points), _nearest(points)
    tangents = np.gradient(points, along, axis=0, edge_order=2 if len(points) > 2 else 1)
    x, y = _at(points, along, here + AHEAD) - _at(points, along, here)
    forward = _at(tangents, along, here)
    left = (y * forward[0] - x * forward[1]) / np.hypot(*forward)
    return "left" if left >= ASIDE else "right" if left <= -ASIDE else "straight"


def _spaced(points: np.ndarray) -> np.ndarray:
    """Without points that repeat the one before."""
    if not len(points):
        return points
    return points[np.concatenate([[True], np.hypot(*np.diff(points, axis=0).T) > SHORTEST])]


def _along(points: np.ndarray) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])


def _at(values: np.ndarray, along: np.ndarray, where: float) -> np.ndarray:
    return np.array([np.interp(where, along, column) for column in values.T])


def _nearest(points: np.ndarray) -> float:
    """Metres along the route to its point nearest to the origin."""
    along, start, step = _along(points), points[:-1], np.diff(points, axis=0)
    share = np.clip(-(start * step).sum(1) / (step**2).sum(1), 0, 1)
    best = int(np.hypot(*(start + share[:, None] * step).T).argmin())
    return float(along[best] + share[best] * np.diff(along)[best])


def _joint(points: np.ndarray) -> np.ndarray:
    """(9, 2) from the origin, heading 0, to just before the first point, heading along the route (cubic Hermite)."""
    reach = np.hypot(*points[0])
    end = (points[1] - points[0]) / np.hypot(*(points[1] - points[0]))
    t = np.linspace(0, 1, 10)[:-1, None]
    leave = (t**3 - 2 * t**2 + t) * reach * np.array([1.0, 0.0])
    return leave + (3 * t**2 - 2 * t**3) * points[0] + (t**3 - t**2) * reach * end
