"""Distance between the ego's footprint and another polygon, compiled for the roll-outs.

Agrees with GEOS to rounding: 0 when they meet or one holds the other, else the least vertex-to-edge distance.
"""

from __future__ import annotations

import numpy as np

from navsim_adapter.metric.jit import inner


@inner
def footprint_gap(corners: np.ndarray, edges: np.ndarray, dx: float, dy: float) -> float:
    """corners: (4, 2) of a convex box.  edges: (E, 4) x0, y0, x1, y1 of all rings of a polygon, moved by dx, dy."""
    least = np.inf
    first_corner_inside = False
    for e in range(len(edges)):
        ax, ay, bx, by = edges[e, 0] + dx, edges[e, 1] + dy, edges[e, 2] + dx, edges[e, 3] + dy
        if _crosses_ray(corners[0, 0], corners[0, 1], ax, ay, bx, by):
            first_corner_inside = not first_corner_inside
        inside = True
        for i in range(4):
            j = (i + 1) & 3
            cx, cy, nx, ny = corners[i, 0], corners[i, 1], corners[j, 0], corners[j, 1]
            if _segments_meet(ax, ay, bx, by, cx, cy, nx, ny):
                return 0.0
            inside &= (nx - cx) * (ay - cy) - (ny - cy) * (ax - cx) > 0.0
            least = min(least, _squared(cx, cy, ax, ay, bx, by), _squared(ax, ay, cx, cy, nx, ny))
        if inside:
            return 0.0
    return 0.0 if first_corner_inside else np.sqrt(least)


@inner
def _squared(px: float, py: float, ax: float, ay: float, bx: float, by: float) -> float:
    """Squared distance of a point from a segment."""
    ux, uy, wx, wy = bx - ax, by - ay, px - ax, py - ay
    length = ux * ux + uy * uy
    along = ux * wx + uy * wy
    if along <= 0.0 or length == 0.0:
        return wx * wx + wy * wy
    if along >= length:
        return (px - bx) ** 2 + (py - by) ** 2
    across = ux * wy - uy * wx
    return across * across / length


@inner
def _segments_meet(ax: float, ay: float, bx: float, by: float, cx: float, cy: float, dx: float, dy: float) -> bool:
    a = (dx - cx) * (ay - cy) - (dy - cy) * (ax - cx)
    b = (dx - cx) * (by - cy) - (dy - cy) * (bx - cx)
    if (a > 0.0) == (b > 0.0):
        return False
    c = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    d = (bx - ax) * (dy - ay) - (by - ay) * (dx - ax)
    return (c > 0.0) != (d > 0.0)


@inner
def _crosses_ray(px: float, py: float, ax: float, ay: float, bx: float, by: float) -> bool:
    """The edge crosses the ray from the point to +x."""
    if (ay > py) == (by > py):
        return False
    return px < ax + (py - ay) * (bx - ax) / (by - ay)
