"""Where the road surely is and where it surely is not, on a fine grid over that of `map_index.py`.

Two bits a cell: it lies wholly in a drivable polygon; some drivable polygon reaches into it. Sixteen cells share an
int32. A point in a cell with the second bit alone has to be tested exactly.
"""

from __future__ import annotations

import numpy as np

from navsim_adapter.metric.cells import CELL
from navsim_adapter.metric.jit import entry, inner

ROAD_CELL = 0.25  # m
FINE = int(CELL / ROAD_CELL)  # fine cells along a coarse one
IS_ROAD, MAY_BE_ROAD = 1, 2
_WORD = 64  # cells in an integer of the bitmaps below
_MARGIN = (
    1e-3  # cells; an edge this near to a cell cuts it, so that a point may be that far from where it is said to be
)


@inner
def road_words(columns) -> int:
    """int64 words of a row of the fine grid over so many coarse columns: 32 cells each."""
    return 2 * -(-FINE * columns // _WORD)


def road_bits(
    x_min: float,
    y_min: float,
    columns: int,
    rows: int,
    vertices: np.ndarray,
    ring_start: np.ndarray,
    polygon_start: np.ndarray,
    boxes: np.ndarray,
) -> np.ndarray:
    """(FINE * rows, road_words) of drivable polygons with boxes (P, 4), vertices and so on as `scene_cache.Polygons`.

    columns, rows, x_min, y_min: of the coarse grid.
    """
    bits = np.zeros((FINE * rows, road_words(columns)), np.int64)
    cut, flip = np.zeros((2, FINE * rows, road_words(columns) // 2), np.int64)
    fill_road(x_min, y_min, columns, vertices, ring_start, polygon_start, boxes, cut, flip, bits)
    return bits


@entry("void(f8, f8, i8, f8[:,::1], i8[::1], i8[::1], f8[:,::1], i8[:,::1], i8[:,::1], i8[:,::1])")
def fill_road(x_min, y_min, columns, vertices, ring_start, polygon_start, boxes, cut, flip, bits):
    """Set the bits of `road_bits`.  cut, flip: bitmaps of the grid, scratch: zeros, and zeros again at the end."""
    rows, columns = bits.shape[0], columns * FINE
    for polygon in range(boxes.shape[0]):
        low_row, high_row = _cells(
            (boxes[polygon, 1] - y_min) / ROAD_CELL, (boxes[polygon, 3] - y_min) / ROAD_CELL, rows
        )
        low, high = _cells((boxes[polygon, 0] - x_min) / ROAD_CELL, (boxes[polygon, 2] - x_min) / ROAD_CELL, columns)
        if low_row > high_row or low > high:
            continue
        for ring in range(polygon_start[polygon], polygon_start[polygon + 1]):
            for i in range(ring_start[ring], ring_start[ring + 1] - 1):
                ax, ay = (vertices[i, 0] - x_min) / ROAD_CELL, (vertices[i, 1] - y_min) / ROAD_CELL
                bx, by = (vertices[i + 1, 0] - x_min) / ROAD_CELL, (vertices[i + 1, 1] - y_min) / ROAD_CELL
                _mark_edge(ax, ay, bx, by, rows, columns, cut, flip)
        last = min((high + 1) // _WORD, cut.shape[1] - 1)  # an edge may flip the cell beyond it
        for row in range(low_row, high_row + 1):
            carry = 0
            for word in range(low // _WORD, last + 1):
                inside = _running_parity(flip[row, word]) ^ carry
                carry = inside >> 63
                is_road, may_be = inside & ~cut[row, word], inside | cut[row, word]
                bits[row, 2 * word] |= _spread(is_road) | (_spread(may_be) << 1)
                bits[row, 2 * word + 1] |= _spread(is_road >> 32) | (_spread(may_be >> 32) << 1)
                cut[row, word] = flip[row, word] = 0


@inner
def _cells(low, high, count):
    """First and last cell that [low, high] touches, clipped to the grid (empty: first > last)."""
    return max(int(np.floor(low - _MARGIN)), 0), min(int(np.floor(high + _MARGIN)), count - 1)


@inner
def _running_parity(bits):
    """Each bit the parity of those up to it."""
    for shift in (1, 2, 4, 8, 16, 32):
        bits ^= bits << shift
    return bits


@inner
def _spread(bits):
    """The lower 32 bits, every other place free."""
    bits &= 0xFFFFFFFF
    bits = (bits | (bits << 16)) & 0x0000FFFF0000FFFF
    bits = (bits | (bits << 8)) & 0x00FF00FF00FF00FF
    bits = (bits | (bits << 4)) & 0x0F0F0F0F0F0F0F0F
    bits = (bits | (bits << 2)) & 0x3333333333333333
    return (bits | (bits << 1)) & 0x5555555555555555


@inner
def _mark_edge(ax, ay, bx, by, rows, columns, cut, flip):
    """Set the bits of the cells that the edge touches; in each row flip the first cell whose center is right of it."""
    slope = (bx - ax) / (by - ay) if ay != by else 0.0
    low_row, high_row = _cells(min(ay, by), max(ay, by), rows)
    for row in range(low_row, high_row + 1):
        left, right = min(ax, bx), max(ax, bx)
        if ay != by:
            one, two = ax + (row - _MARGIN - ay) * slope, ax + (row + 1 + _MARGIN - ay) * slope
            left, right = max(left, min(one, two)), min(right, max(one, two))
        first, last = _cells(left, right, columns)
        while first <= last:
            end = min(last, first | (_WORD - 1))
            count = end - first + 1
            ones = -1 if count == _WORD else ((1 << count) - 1) << (first & (_WORD - 1))
            cut[row, first // _WORD] |= ones
            first = end + 1
        center = row + 0.5
        if (ay > center) != (by > center):
            column = max(int(np.ceil(ax + (center - ay) * slope - 0.5)), 0)
            if column < columns:
                flip[row, column // _WORD] ^= 1 << (column & (_WORD - 1))
