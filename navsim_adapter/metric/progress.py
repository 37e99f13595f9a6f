"""Raw ego progress: how far the center gets along the centerline, at least 0 (metric 6.6). `aggregate` normalises."""

from __future__ import annotations

from math import inf, sqrt

from navsim_adapter.metric.areas import center
from navsim_adapter.metric.geometry import distance_to_segment, is_within_square
from navsim_adapter.metric.jit import inner
from navsim_adapter.metric.map_index import BLOCK, BLOCK_BOXES, CENTERLINE
from navsim_adapter.metric.packed import real, whole


@inner
def progress_at(area, states, k, c) -> float:
    """Arc length of the centerline that the center has reached at step k, m."""
    x, y = center(states, k, c)
    return project(area, x, y)


@inner
def project(area, x, y) -> float:
    """Arc length of the first nearest point of the centerline (GEOS line-locate)."""
    start, end = whole(area, CENTERLINE), whole(area, CENTERLINE + 1)
    bound = inf  # on the squared distance, from one vertex of each block
    for v in range(start, end, 3 * BLOCK):
        bound = min(bound, (real(area, v) - x) ** 2 + (real(area, v + 1) - y) ** 2)
    bound = _with_slack(bound)
    nearest, where = inf, 0.0
    first = start
    for box in range(whole(area, BLOCK_BOXES), whole(area, BLOCK_BOXES + 1), 4):
        dx, dy = (
            max(real(area, box) - x, x - real(area, box + 2)),
            max(real(area, box + 1) - y, y - real(area, box + 3)),
        )
        dx, dy = max(dx, 0.0), max(dy, 0.0)
        if dx * dx + dy * dy <= bound:
            for v in range(first, min(first + 3 * BLOCK, end - 3), 3):
                ax, ay, bx, by = real(area, v), real(area, v + 1), real(area, v + 3), real(area, v + 4)
                if not is_within_square(x, y, ax, ay, bx, by, bound):
                    continue
                distance = distance_to_segment(x, y, ax, ay, bx, by)
                if distance < nearest:
                    nearest = distance
                    bound = min(bound, _with_slack(distance * distance))
                    where = _measure(x, y, ax, ay, bx, by, real(area, v + 2), real(area, v + 5))
        first += 3 * BLOCK
    return where


@inner
def _with_slack(square):
    return square * (1.0 + 1e-12) + 1e-12


@inner
def _measure(x, y, ax, ay, bx, by, start, end):
    dx, dy = bx - ax, by - ay
    square = dx * dx + dy * dy
    if square == 0.0:
        return end
    along = ((x - ax) * dx + (y - ay) * dy) / square
    if along <= 0.0:
        return start
    if along <= 1.0:
        return start + along * sqrt(square)
    return end
