"""What the grids of the map say of a candidate's states, looked up side by side: most need no exact test.

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
from navsim_adapter.vehicle import HALF_LENGTH, HALF_WIDTH, STATES

_LONG, _WIDE = np.float32(HALF_LENGTH), np.float32(HALF_WIDTH)
_NOUGHT, _PER_CELL, _FINE = np.float32(0.0), np.float32(1.0 / CELL), np.float32(1.0 / ROAD_CELL)
_MAY_BE = np.int32(MAY_BE_ROAD)
_OFF_GRID = np.int32(((ON_ROUTE | INTERSECTION) << CUT_SHIFT) | NEAR_LINE)
# Bit STRETCH j + i of state i: (4, STRETCH).
_BITS, _NONE = (np.uint32(1) << np.arange(4 * STRETCH, dtype=np.uint32)).view(np.int32).reshape(4, -1), np.int32(0)
_ALL, _EACH = (1 << STATES) - 1, (1 << STRETCH) - 1


@inner
def mark_centers(ego, area, own, wanted):
    """Bits of the states: the center is on the route for sure; in an intersection for sure; whether it is in one
    that is wanted needs an exact test; so does whether it is near the centerline, else it is not.

    own: of `hits.take_places`.
    """
    in_route, in_crossing, is_open, is_near = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    for stretch in range(STRETCHES):
        found, first = _find_centers(ego, area, own[stretch], wanted), STRETCH * stretch
        in_route |= (found & _EACH) << first
        in_crossing |= ((found >> STRETCH) & _EACH) << first
        is_open |= ((found >> (2 * STRETCH)) & _EACH) << first
        is_near |= ((found >> (3 * STRETCH)) & _EACH) << first
    return in_route & _ALL, in_crossing & _ALL, is_open & _ALL, is_near & _ALL


@lanes
def _find_centers(ego, area, own, wanted):
    origin, shape, flags = whole(area, ORIGIN), whole(area, SHAPE), 2 * whole(area, FLAGS)
    left, bottom = np.float32(real(area, origin) - ego[0]), np.float32(real(area, origin + 1) - ego[1])
    columns, rows = np.int32(whole(area, shape)), np.int32(whole(area, shape + 1))
    right, top, bits, x, y = np.float32(columns), np.float32(rows), np.int32(0), own[X], own[Y]
    for i in range(STRETCH):
        column, row = (x[i] - left) * _PER_CELL, (y[i] - bottom) * _PER_CELL
        is_on = (column >= _NOUGHT) & (column < right) & (row >= _NOUGHT) & (row < top)
        place = np.int32(np.int32(row if is_on else _NOUGHT) * columns + np.int32(column if is_on else _NOUGHT))
        known = small(area, flags + place)
        found = known if is_on else _OFF_GRID
        cut = np.int32((found >> CUT_SHIFT) & ~found)
        four = _if(found & ON_ROUTE, _BITS[0, i]) | _if(found & INTERSECTION, _BITS[1, i])
        four |= _if(cut & wanted, _BITS[2, i]) | _if(found & NEAR_LINE, _BITS[3, i])
        bits = np.int32(bits | np.int32(four))
    return np.int64(bits)


@inner
def mark_corners(ego, area, own, cells):
    """Bits of the states: a corner may be off the road; it is for sure, and of later states nothing is said then.

    cells: (2, 4, STRETCH) int32 scratch.
    """
    is_open, is_off = np.int64(0), np.int64(0)
    for stretch in range(STRETCHES):
        found, first = _find_corners(ego, area, own[stretch], cells), STRETCH * stretch
        is_open |= (found & _EACH) << first
        is_off |= (found >> STRETCH) << first
        if is_off != 0:
            break
    return is_open & _ALL, is_off


@inner
def _find_corners(ego, area, own, cells):
    _place_corners(ego, area, own, cells)
    _read_words(area, cells)
    return _join_corners(cells)


@lanes
def _place_corners(ego, area, own, cells):
    """For each corner and state the word with its fine cell, and the place in it; -1 off the grid."""
    origin, shape = whole(area, ORIGIN), whole(area, SHAPE)
    left, bottom = np.float32(real(area, origin) - ego[0]), np.float32(real(area, origin + 1) - ego[1])
    columns, rows = whole(area, shape), whole(area, shape + 1)
    width = np.int32(2 * road_words(columns))  # int32 words of a row
    right, top = np.float32(columns * FINE), np.float32(rows * FINE)
    x, y, cosine, sine = own[X], own[Y], own[COSINE], own[SINE]
    words_0, words_1, words_2, words_3 = cells[0, 0], cells[0, 1], cells[0, 2], cells[0, 3]
    slots_0, slots_1, slots_2, slots_3 = cells[1, 0], cells[1, 1], cells[1, 2], cells[1, 3]
    for i in range(STRETCH):
        column, row = (x[i] - left) * _FINE, (y[i] - bottom) * _FINE
        long_x, long_y = _LONG * cosine[i] * _FINE, _LONG * sine[i] * _FINE
        wide_x, wide_y = _WIDE * sine[i] * _FINE, _WIDE * cosine[i] * _FINE
        front_x, front_y, rear_x, rear_y = column + long_x, row + long_y, column - long_x, row - long_y
        words_0[i], slots_0[i] = _fine_cell(front_x - wide_x, front_y + wide_y, right, top, width)
        words_1[i], slots_1[i] = _fine_cell(front_x + wide_x, front_y - wide_y, right, top, width)
        words_2[i], slots_2[i] = _fine_cell(rear_x - wide_x, rear_y + wide_y, right, top, width)
        words_3[i], slots_3[i] = _fine_cell(rear_x + wide_x, rear_y - wide_y, right, top, width)


@inlined
def _fine_cell(column, row, right, top, width):
    is_on = (column >= _NOUGHT) & (column < right) & (row >= _NOUGHT) & (row < top)
    i, j = np.int32(column if is_on else _NOUGHT), np.int32(row if is_on else _NOUGHT)
    return np.int32(np.int32(j * width) + np.int32(i >> 4)), (np.int32(i & 15) if is_on else np.int32(-1))


@lanes
def _read_words(area, cells):
    bits = 2 * whole(area, ROAD)
    for corner in range(4):
        words = cells[0, corner]
        for i in range(STRETCH):
            words[i] = small(area, bits + words[i])


@lanes
def _join_corners(cells):
    """Bit i: a corner of state i may be off the road; bit STRETCH + i: one is for sure."""
    words_0, words_1, words_2, words_3 = cells[0, 0], cells[0, 1], cells[0, 2], cells[0, 3]
    slots_0, slots_1, slots_2, slots_3 = cells[1, 0], cells[1, 1], cells[1, 2], cells[1, 3]
    is_open, is_off, two = _BITS[0], _BITS[1], np.int32(0)
    for i in range(STRETCH):
        front = _known(words_0[i], slots_0[i]) & _known(words_1[i], slots_1[i])
        found = np.int32(front & _known(words_2[i], slots_2[i]) & _known(words_3[i], slots_3[i]))
        both = _unless(found & IS_ROAD, is_open[i]) | _unless(found & MAY_BE_ROAD, is_off[i])
        two = np.int32(two | np.int32(both))
    return np.int64(two)


@inlined
def _known(word, slot):
    """The two bits of a fine cell; off the grid nothing is sure."""
    found = np.int32(word >> np.int32(2 * (slot & 15)))
    return found if slot >= 0 else _MAY_BE


@inlined
def _if(flag, bit):
    return bit if flag != 0 else _NONE


@inlined
def _unless(flag, bit):
    return _NONE if flag != 0 else bit
