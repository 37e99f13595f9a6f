"""Fills the grid of `map_index.py`: which cells a polygon covers, which it cuts and with which edges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from navsim_adapter.scoring.geometry import distance_to_segment
from navsim_adapter.scoring.jit import entry, kernel

CELL = 1.0  # m
# A cell's number: categories that cover it, categories that cut it (four bits each), and its first item.
CUT_SHIFT, FLAG_BITS = 4, 8
IS_OUTSIDE, IS_INSIDE, IS_UNSURE = 0, 1, 2  # where a cell's center is; unsure when an edge passes within _MARGIN
_MARGIN = 1e-6  # m; an edge this near to a cell counts as crossing it


@entry
def index_cells(fingerprint: int) -> Callable[..., Any]:
    def index_cells(x_min, y_min, columns, rows, vertices, ring_start, polygon_start, boxes, category):
        """The grid's sections of the map index.

        vertices (V, 2), ring_start, polygon_start: as `scene_cache.Polygons`.  boxes (P, 4), category (P,) of the
        polygons.  Returns cells (rows * columns + 1,), items (I + 1, 3) and edges (E,), all int64: see `map_index`.
        """
        _ = fingerprint
        count = rows * columns
        flags = np.zeros(count, np.int64)
        is_inside = np.zeros(count, np.int64)  # of one polygon at a time
        cut_by = np.full(count, -1, np.int64)  # the last polygon that cut the cell
        pairs = np.empty((4096, 4), np.int64)  # cell, polygon, first vertex of an edge, where the center is
        size = 0
        for polygon in range(boxes.shape[0]):
            low_row, high_row = _span(boxes[polygon, 1] - y_min, boxes[polygon, 3] - y_min, rows)
            low_column, high_column = _span(boxes[polygon, 0] - x_min, boxes[polygon, 2] - x_min, columns)
            if low_row > high_row or low_column > high_column:
                continue
            high_column = min(high_column + 1, columns - 1)  # an edge may flip the cell beyond it
            first = size
            for ring in range(polygon_start[polygon], polygon_start[polygon + 1]):
                for i in range(ring_start[ring], ring_start[ring + 1] - 1):
                    ax, ay = vertices[i, 0] - x_min, vertices[i, 1] - y_min
                    bx, by = vertices[i + 1, 0] - x_min, vertices[i + 1, 1] - y_min
                    low, high = _span(min(ay, by), max(ay, by), rows)
                    for row in range(low, high + 1):
                        _flip_centers(ax, ay, bx, by, row, columns, is_inside)
                        left, right = _columns_in_row(ax, ay, bx, by, row, columns)
                        while size + right - left >= len(pairs):
                            pairs = np.concatenate((pairs, pairs))
                        for column in range(left, right + 1):
                            cell = row * columns + column
                            cut_by[cell] = polygon
                            pairs[size, 0], pairs[size, 1], pairs[size, 2] = cell, polygon, i
                            near = distance_to_segment((column + 0.5) * CELL, (row + 0.5) * CELL, ax, ay, bx, by)
                            pairs[size, 3] = IS_UNSURE if near < _MARGIN else IS_OUTSIDE
                            size += 1
            for row in range(low_row, high_row + 1):
                inside = 0
                for cell in range(row * columns + low_column, row * columns + high_column + 1):
                    inside ^= is_inside[cell]
                    is_inside[cell] = inside
                    if cut_by[cell] == polygon:
                        flags[cell] |= category[polygon] << CUT_SHIFT
                    elif inside:
                        flags[cell] |= category[polygon]
            for pair in range(first, size):
                if pairs[pair, 3] != IS_UNSURE:
                    pairs[pair, 3] = is_inside[pairs[pair, 0]]
            for row in range(low_row, high_row + 1):
                is_inside[row * columns + low_column : row * columns + high_column + 1] = 0
        return _items(pairs[:size], flags)

    return index_cells


@kernel
def _span(low, high, count):
    """First and last cell that [low, high] touches, clipped to the grid (empty: first > last)."""
    if high < -_MARGIN or low > count * CELL + _MARGIN:
        return 0, -1
    first = max(low - _MARGIN, 0.0) / CELL
    last = min(high + _MARGIN, count * CELL) / CELL
    return int(first), min(int(last), count - 1)


@kernel
def _flip_centers(ax, ay, bx, by, row, columns, is_inside):
    """Flip the first cell of the row whose center is right of the edge; a running sum makes it all of them."""
    center = (row + 0.5) * CELL
    if (ay > center) != (by > center):
        x = ax + (center - ay) / (by - ay) * (bx - ax)
        column = np.ceil(x / CELL - 0.5)
        if column < columns:
            is_inside[row * columns + int(max(column, 0.0))] ^= 1


@kernel
def _columns_in_row(ax, ay, bx, by, row, columns):
    """First and last column of the row that the edge touches."""
    low, high = min(ax, bx), max(ax, bx)
    if ay != by:
        at_bottom = ax + (row * CELL - _MARGIN - ay) / (by - ay) * (bx - ax)
        at_top = ax + ((row + 1) * CELL + _MARGIN - ay) / (by - ay) * (bx - ax)
        low = max(low, min(at_bottom, at_top))
        high = min(high, max(at_bottom, at_top))
    return _span(low, high, columns)


@kernel
def _items(pairs, flags):
    """Sort (cell, polygon, edge) by cell, polygons staying in order, and cut into one item per cell and polygon."""
    count = len(flags)
    begin = np.zeros(count + 1, np.int64)
    for pair in range(len(pairs)):
        begin[pairs[pair, 0] + 1] += 1
    for cell in range(count):
        begin[cell + 1] += begin[cell]
    order = np.empty(len(pairs), np.int64)
    for pair in range(len(pairs)):
        cell = pairs[pair, 0]
        order[begin[cell]] = pair
        begin[cell] += 1  # now where the cell's pairs end
    cells, items, edges = np.empty(count + 1, np.int64), np.empty((len(pairs) + 1, 3), np.int64), np.empty_like(order)
    at, size = 0, 0
    for cell in range(count):
        cells[cell] = flags[cell] | (size << FLAG_BITS)
        polygon = -1
        while at < begin[cell]:
            pair = order[at]
            if pairs[pair, 1] != polygon:
                polygon = pairs[pair, 1]
                items[size, 0], items[size, 1], items[size, 2] = polygon, pairs[pair, 3], at
                size += 1
            items[size - 1, 1] = max(items[size - 1, 1], pairs[pair, 3])
            edges[at] = pairs[pair, 2]
            at += 1
    cells[count] = size << FLAG_BITS
    items[size, 0], items[size, 1], items[size, 2] = -1, IS_OUTSIDE, at
    return cells, items[: size + 1].copy(), edges
