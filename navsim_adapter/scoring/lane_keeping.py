"""Lane keeping (spec 6.11, EPDMS): not away from the centerline for two seconds."""

from __future__ import annotations

import numpy as np

from navsim_adapter.scoring.areas import center
from navsim_adapter.scoring.geometry import distance_to_segment
from navsim_adapter.scoring.jit import kernel
from navsim_adapter.scoring.map_index import BLOCK, BLOCK_BOXES, CENTERLINE, INTERSECTION, categories_at
from navsim_adapter.scoring.packed import real, whole
from navsim_adapter.scoring.vehicle import STATES

_DEVIATION = 0.5  # m, strict
_LONGEST = 20  # consecutive states outside intersections


@kernel
def lane_keeping(area, states, c) -> float:
    """0 after 20 consecutive states with the center more than 0.5 m off; intersections freeze the count (10.4)."""
    away, near = 0, np.int64(-1)
    for k in range(STATES):
        x, y = center(states, k, c)
        if categories_at(area, x, y, INTERSECTION) != 0:
            continue
        near = _vertex_within(area, x, y, near)
        away = 0 if near >= 0 else away + 1
        if away >= _LONGEST:
            return 0.0
    return 1.0


@kernel
def _vertex_within(area, x, y, hint):
    """Where a centerline segment within the allowed deviation starts, -1 if there is none; tried first at `hint`."""
    start, end = whole(area, CENTERLINE), whole(area, CENTERLINE + 1)
    if hint >= 0:
        for v in range(hint, min(hint + 12, end - 3), 3):
            if (
                distance_to_segment(x, y, real(area, v), real(area, v + 1), real(area, v + 3), real(area, v + 4))
                <= _DEVIATION
            ):
                return v
    first = start
    for box in range(whole(area, BLOCK_BOXES), whole(area, BLOCK_BOXES + 1), 4):
        dx, dy = (
            max(real(area, box) - x, x - real(area, box + 2)),
            max(real(area, box + 1) - y, y - real(area, box + 3)),
        )
        if max(dx, dy) <= _DEVIATION:
            for v in range(first, min(first + 3 * BLOCK, end - 3), 3):
                if (
                    distance_to_segment(x, y, real(area, v), real(area, v + 1), real(area, v + 3), real(area, v + 4))
                    <= _DEVIATION
                ):
                    return v
        first += 3 * BLOCK
    return -1
