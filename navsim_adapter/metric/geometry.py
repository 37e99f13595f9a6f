"""Exact predicates on points, segments and polygons, and the boxes of cars (metric 2.5, 5.6, 10.1).

The official code decides with GEOS, whose predicates are exact for the given coordinates. Here a sign is read off
rounded products (rounding is monotone, so different products give the true sign) and, when they are equal, off
their rounding errors. Coordinate differences are exact for map coordinates that lie near each other (Sterbenz).
"""

from __future__ import annotations

from math import sqrt

import numpy as np

from navsim_adapter.metric.jit import inner
from navsim_adapter.vehicle import HALF_LENGTH, HALF_WIDTH

_SPLITTER = 134217729.0  # 2^27 + 1


@inner
def side(ax: float, ay: float, bx: float, by: float, px: float, py: float) -> int:
    """1 if p lies left of the line a -> b, -1 right, 0 on it."""
    u, v = bx - ax, py - ay
    s, t = by - ay, px - ax
    left, right = u * v, s * t
    if left == right:
        left, right = _product_error(u, v, left), _product_error(s, t, right)
    return 1 if left > right else (-1 if left < right else 0)


@inner
def _product_error(a: float, b: float, product: float) -> float:
    """a * b - product, exactly (Dekker)."""
    t = _SPLITTER * a
    a_high = t - (t - a)
    a_low = a - a_high
    t = _SPLITTER * b
    b_high = t - (t - b)
    b_low = b - b_high
    return ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


@inner
def fused(a: float, b: float, c: float) -> float:
    """a * b + c rounded once, as processors with a fused multiply-add do it; to within a rare last bit."""
    product = a * b
    total = product + c
    rest = total - product
    return total + (((product - (total - rest)) + (c - rest)) + _product_error(a, b, product))


@inner
def segments_meet(ax, ay, bx, by, cx, cy, dx, dy) -> bool:
    """Whether the closed segments a-b and c-d share a point."""
    if max(ax, bx) < min(cx, dx) or max(cx, dx) < min(ax, bx):
        return False
    if max(ay, by) < min(cy, dy) or max(cy, dy) < min(ay, by):
        return False
    if side(ax, ay, bx, by, cx, cy) * side(ax, ay, bx, by, dx, dy) > 0:
        return False
    return side(cx, cy, dx, dy, ax, ay) * side(cx, cy, dx, dy, bx, by) <= 0


@inner
def crosses_right(ax, ay, bx, by, px, py) -> int:
    """What edge a-b does to the ray from p towards +x: 1 it crosses, 0 it does not, -1 p lies on the edge."""
    if (ay > py) == (by > py):
        if ay == py and by == py and min(ax, bx) <= px <= max(ax, bx):
            return -1
        if (ax == px and ay == py) or (bx == px and by == py):
            return -1
        return 0
    where = side(ax, ay, bx, by, px, py)
    if where == 0:
        return -1
    return 1 if (where > 0) == (by > ay) else 0


@inner
def box_corners(x, y, cosine, sine, half_length, half_width, corners) -> None:
    """Corners front left, rear left, rear right, front right: (4, 2) out."""
    for i in range(4):
        along = half_length if i == 0 or i == 3 else -half_length
        across = half_width if i < 2 else -half_width
        corners[i, 0] = x + (across * -sine + along * cosine)
        corners[i, 1] = y + (across * cosine + along * sine)


@inner
def quad_contains(corners, px, py) -> bool:
    """Whether p is in the closed convex quadrilateral (counter-clockwise corners)."""
    for i in range(4):
        j = (i + 1) & 3
        if side(corners[i, 0], corners[i, 1], corners[j, 0], corners[j, 1], px, py) < 0:
            return False
    return True


@inner
def segment_meets_quad(ax, ay, bx, by, corners) -> bool:
    """Whether a closed segment shares a point with a closed convex quadrilateral."""
    if quad_contains(corners, ax, ay):
        return True
    for i in range(4):
        j = (i + 1) & 3
        if segments_meet(ax, ay, bx, by, corners[i, 0], corners[i, 1], corners[j, 0], corners[j, 1]):
            return True
    return False


@inner
def quads_meet(first, second) -> bool:
    """Whether two closed convex quadrilaterals share a point, exactly."""
    if quad_contains(first, second[0, 0], second[0, 1]):
        return True
    for i in range(4):
        j = (i + 1) & 3
        if segment_meets_quad(first[i, 0], first[i, 1], first[j, 0], first[j, 1], second):
            return True
    return False


@inner
def ego_gap(dx, dy, cosine, sine, other_cosine, other_sine, half_length, half_width, enough) -> float:
    """Separation of the ego footprint and another box: the largest over their four axes (the ego's two if `enough`).

    dx, dy: from the ego's center to the other's.  Negative where the boxes overlap. Accurate to about 1e-9 m for
    boxes in map coordinates, so a caller decides with exact corners where the gap is that small.
    """
    turn_cosine = abs(cosine * other_cosine + sine * other_sine)
    turn_sine = abs(cosine * other_sine - sine * other_cosine)
    gap = abs(dy * cosine - dx * sine) - (HALF_WIDTH + half_length * turn_sine + half_width * turn_cosine)
    gap = max(gap, abs(dx * cosine + dy * sine) - (HALF_LENGTH + half_length * turn_cosine + half_width * turn_sine))
    if gap > enough:
        return gap
    along = abs(dx * other_cosine + dy * other_sine)
    gap = max(gap, along - (half_length + HALF_LENGTH * turn_cosine + HALF_WIDTH * turn_sine))
    across = abs(dy * other_cosine - dx * other_sine)
    return max(gap, across - (half_width + HALF_LENGTH * turn_sine + HALF_WIDTH * turn_cosine))


@inner
def quad_centroid(corners) -> tuple[float, float]:
    """The polygon's centroid as GEOS sums it, by triangles about the first corner, in the map (metric 10.1 (4)).

    That of its outline where it has no area, and the first corner where it has no extent.
    """
    base_x, base_y = corners[0, 0], corners[0, 1]
    sum_x, sum_y, area = 0.0, 0.0, 0.0
    for i in range(4):
        j = (i + 1) & 3
        ax, ay, bx, by = corners[i, 0], corners[i, 1], corners[j, 0], corners[j, 1]
        twice = -((ax - base_x) * (by - base_y) - (bx - base_x) * (ay - base_y))
        sum_x += twice * (base_x + ax + bx)
        sum_y += twice * (base_y + ay + by)
        area += twice
    if area == 0.0:
        return _outline_centroid(corners)
    return sum_x / 3.0 / area, sum_y / 3.0 / area


@inner
def _outline_centroid(corners) -> tuple[float, float]:
    sum_x, sum_y, total = 0.0, 0.0, 0.0
    for i in range(4):
        j = (i + 1) & 3
        ax, ay, bx, by = corners[i, 0], corners[i, 1], corners[j, 0], corners[j, 1]
        length = sqrt((ax - bx) ** 2 + (ay - by) ** 2)
        sum_x += length * (ax + bx) / 2.0
        sum_y += length * (ay + by) / 2.0
        total += length
    if total == 0.0:
        return corners[0, 0], corners[0, 1]
    return sum_x / total, sum_y / total


@inner
def is_flat(corners) -> bool:
    """Whether a box has no length or no width: two pairs of neighbouring corners coincide."""
    for i in range(2):
        j, k, m = i + 1, i + 2, (i + 3) & 3
        is_first = corners[i, 0] == corners[j, 0] and corners[i, 1] == corners[j, 1]
        if is_first and corners[k, 0] == corners[m, 0] and corners[k, 1] == corners[m, 1]:
            return True
    return False


@inner
def is_within(px, py, ax, ay, bx, by, distance) -> bool:
    """Whether p is at most `distance` from the segment a-b."""
    return is_within_square(px, py, ax, ay, bx, by, distance * distance)


@inner
def is_within_square(px, py, ax, ay, bx, by, bound) -> bool:
    """Whether the squared distance of p from the segment a-b is at most the bound."""
    dx, dy, qx, qy = bx - ax, by - ay, px - ax, py - ay
    square, along = dx * dx + dy * dy, qx * dx + qy * dy
    if along >= square:
        qx, qy = px - bx, py - by
    if along <= 0.0 or along >= square:
        return qx * qx + qy * qy <= bound
    across = qx * dy - qy * dx
    return across * across <= bound * square


@inner
def distance_to_segment(px, py, ax, ay, bx, by) -> float:
    """As GEOS computes it."""
    dx, dy = bx - ax, by - ay
    square = dx * dx + dy * dy
    if square == 0.0:
        return sqrt((px - ax) ** 2 + (py - ay) ** 2)
    along = ((px - ax) * dx + (py - ay) * dy) / square
    if along <= 0.0:
        return sqrt((px - ax) ** 2 + (py - ay) ** 2)
    if along >= 1.0:
        return sqrt((px - bx) ** 2 + (py - by) ** 2)
    return abs(((ay - py) * dx - (ax - px) * dy) / square) * sqrt(square)


def polygon_boxes(vertices: np.ndarray, ring_start: np.ndarray, polygon_start: np.ndarray) -> np.ndarray:
    """Bounding boxes x_min, y_min, x_max, y_max of polygons of rings: (P, 4)."""
    first = ring_start[polygon_start[:-1]]
    if len(first) == 0:
        return np.empty((0, 4))
    low = np.minimum.reduceat(vertices, first, axis=0)
    high = np.maximum.reduceat(vertices, first, axis=0)
    return np.hstack([low, high])
