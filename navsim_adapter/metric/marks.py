"""What the grids of the map say of a stretch of states, for all candidates side by side: most need no exact test.

Positions are in single precision from where the ego starts, as `hits.py` places them; the grids' margins allow for it.
"""

from __future__ import annotations

import numpy as np

from navsim_adapter.metric.cells import CELL, CUT_SHIFT, NEAR_LINE
from navsim_adapter.metric.hits import COSINE, SINE, X, Y
from navsim_adapter.metric.jit import inlined, inner, lanes
from navsim_adapter.metric.map_index import FLAGS, INTERSECTION, ON_ROUTE, ORIGIN, ROAD, SHAPE
from navsim_adapter.metric.packed import real, small, whole
from navsim_adapter.metric.road import FINE, IS_ROAD, MAY_BE_ROAD, ROAD_CELL, road_words
from navsim_adapter.metric.traffic_index import STRETCH, STRETCHES
from navsim_adapter.vehicle import HALF_LENGTH, HALF_WIDTH

# Planes of marks: of each state of a stretch one bit.
IN_ROUTE, IN_CROSSING, CENTER_OPEN, LINE_OPEN, CORNERS_OPEN, OFF_ROAD = range(6)
MARKS = 6

_LONG, _WIDE = np.float32(HALF_LENGTH), np.float32(HALF_WIDTH)
_NOUGHT, _PER_CELL, _FINE = np.float32(0.0), np.float32(1.0 / CELL), np.float32(1.0 / ROAD_CELL)
_MAY_BE = np.int32(MAY_BE_ROAD)
_OFF_GRID = np.int32(((ON_ROUTE | INTERSECTION) << CUT_SHIFT) | NEAR_LINE)


@inner
def mark(ego, area, stretch, count, places, n, marks):
    """Marks of the first `count` states of a stretch: (STRETCHES, MARKS, lanes) int32 out.

    IN_ROUTE, IN_CROSSING: the center is there for sure.  CENTER_OPEN: whether it is in either needs an exact test.
    LINE_OPEN: so does whether it is near the centerline; else it is not.
    OFF_ROAD: a corner is off the road for sure.  CORNERS_OPEN: not all corners are on it for sure.
    """
    for plane in range(MARKS):
        row = marks[stretch, plane]
        for c in range(n):
            row[c] = 0
    for i in range(count):
        _mark_center(ego, area, stretch, i, places, n, marks)
        _mark_corners(ego, area, stretch, i, places, n, marks)


@lanes
def _mark_center(ego, area, stretch, i, places, n, marks):
    origin, shape, flags = whole(area, ORIGIN), whole(area, SHAPE), 2 * whole(area, FLAGS)
    left, bottom = np.float32(real(area, origin) - ego[0]), np.float32(real(area, origin + 1) - ego[1])
    columns, rows = np.int32(whole(area, shape)), np.int32(whole(area, shape + 1))
    right, top = np.float32(columns), np.float32(rows)
    x, y = places[X, i], places[Y, i]
    in_route, in_crossing = marks[stretch, IN_ROUTE], marks[stretch, IN_CROSSING]
    center_open, line_open = marks[stretch, CENTER_OPEN], marks[stretch, LINE_OPEN]
    for c in range(n):
        column, row = (x[c] - left) * _PER_CELL, (y[c] - bottom) * _PER_CELL
        is_on = (column >= _NOUGHT) & (column < right) & (row >= _NOUGHT) & (row < top)
        place = np.int32(row if is_on else _NOUGHT) * columns + np.int32(column if is_on else _NOUGHT)
        found = small(area, flags + place) if is_on else _OFF_GRID
        cut = (found >> CUT_SHIFT) & ~found
        in_route[c] |= ((found >> 1) & 1) << i
        in_crossing[c] |= ((found >> 2) & 1) << i
        center_open[c] |= (((cut >> 1) | (cut >> 2)) & 1) << i
        line_open[c] |= ((found >> 8) & 1) << i


@lanes
def _mark_corners(ego, area, stretch, i, places, n, marks):
    origin, shape, bits = whole(area, ORIGIN), whole(area, SHAPE), 2 * whole(area, ROAD)
    left, bottom = np.float32(real(area, origin) - ego[0]), np.float32(real(area, origin + 1) - ego[1])
    columns, rows = whole(area, shape), whole(area, shape + 1)
    width = np.int32(2 * road_words(columns))  # int32 words of a row
    right, top = np.float32(columns * FINE), np.float32(rows * FINE)
    x, y, cosine, sine = places[X, i], places[Y, i], places[COSINE, i], places[SINE, i]
    corners_open, off_road = marks[stretch, CORNERS_OPEN], marks[stretch, OFF_ROAD]
    for c in range(n):
        column, row = (x[c] - left) * _FINE, (y[c] - bottom) * _FINE
        long_x, long_y = _LONG * cosine[c] * _FINE, _LONG * sine[c] * _FINE
        wide_x, wide_y = _WIDE * sine[c] * _FINE, _WIDE * cosine[c] * _FINE
        front_x, front_y, rear_x, rear_y = column + long_x, row + long_y, column - long_x, row - long_y
        found = _road_at(area, bits, front_x - wide_x, front_y + wide_y, right, top, width)
        found &= _road_at(area, bits, front_x + wide_x, front_y - wide_y, right, top, width)
        found &= _road_at(area, bits, rear_x - wide_x, rear_y + wide_y, right, top, width)
        found &= _road_at(area, bits, rear_x + wide_x, rear_y - wide_y, right, top, width)
        corners_open[c] |= ((found & IS_ROAD) ^ IS_ROAD) << i
        off_road[c] |= (((found & MAY_BE_ROAD) ^ MAY_BE_ROAD) >> 1) << i


@inlined
def _road_at(area, bits, column, row, right, top, width):
    """The two bits of the fine cell; off the grid nothing is sure."""
    is_on = (column >= _NOUGHT) & (column < right) & (row >= _NOUGHT) & (row < top)
    i, j = np.int32(column if is_on else _NOUGHT), np.int32(row if is_on else _NOUGHT)
    found = small(area, bits + (j * width + (i >> 4))) >> (2 * (i & 15))
    return found if is_on else _MAY_BE


@inner
def marked(marks, plane, c) -> np.int64:
    """A candidate's marks of all states: bit k of state k."""
    bits = np.int64(0)
    for stretch in range(STRETCHES):
        bits |= np.int64(marks[stretch, plane, c]) << (STRETCH * stretch)
    return bits
