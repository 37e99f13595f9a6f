"""Fills the grid of `map_index.py`: which cells a polygon covers, which it cuts and with which edges.

A cell's number holds, from the lowest bit: the categories of polygons that cover it (4 bits), of polygons that cut it
(4), whether the centerline passes near (1), the lanes that cover it (20: the first link of a chain), its first item.
An item is a polygon with a boundary in the cell: its categories (4 bits), where the cell's center is (4), the polygon.
An edge is twice the number of its first vertex, and one more where the cell's center lies left of it.
"""

from __future__ import annotations

import numpy as np

from navsim_adapter.metric.geometry import is_within, side
from navsim_adapter.metric.jit import entry, inner

CELL = 1.0  # m
LANE = np.int64(8)  # the category of which a cell remembers the polygons that cover it
CUT_SHIFT, FLAG_BITS, NEAR_LINE, LANES_SHIFT, ITEM_SHIFT = 4, 8, 1 << 8, 9, 29
_LANES_MASK = (1 << (ITEM_SHIFT - LANES_SHIFT)) - 1
IS_OUTSIDE, IS_INSIDE, IS_UNSURE = 0, 1, 2  # where a cell's center is; unsure when an edge passes within _MARGIN
_MARGIN = 1e-4  # m; an edge this near to a cell counts as crossing it: `marks.py` takes points in single precision


@inner
def first_link(number) -> int:
    """The chain of lanes that cover a cell; 0 is the empty chain."""
    return (number >> LANES_SHIFT) & _LANES_MASK


def index_cells(
    x_min: float,
    y_min: float,
    columns: int,
    rows: int,
    vertices: np.ndarray,
    ring_start: np.ndarray,
    polygon_start: np.ndarray,
    boxes: np.ndarray,
    category: np.ndarray,
    line: np.ndarray,
    line_distance: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The map index's cells (rows * columns + 1,), items (I + 1, 2), edges (E,) and links (K, 2).

    vertices (V, 2), ring_start, polygon_start: as `scene_cache.Polygons`.  boxes (P, 4), category (P,) of the
    polygons.  line (C, 2): cells within line_distance of it get an item of polygon P with its segments.
    Links are chains of lanes: the polygon and the next link.
    """
    cells, sizes = np.empty(rows * columns + 1, np.int64), np.empty(2, np.int64)
    room = 8192
    while True:
        grid, more = np.empty((3, len(cells)), np.int64), np.empty((2, room), np.int64)
        pairs, links = np.empty((room, 4), np.int64), np.empty((room, 2), np.int64)
        items, edges = np.empty((room + 1, 2), np.int64), np.empty(room, np.int64)
        if fill_cells(
            x_min, y_min, columns, rows, vertices, ring_start, polygon_start, boxes, category, line, line_distance,
            grid, more, pairs, cells, items, edges, links, sizes,
        ):  # fmt: skip
            return cells, items[: sizes[0] + 1].copy(), edges[: items[sizes[0], 1]].copy(), links[: sizes[1]].copy()
        room *= 2


@entry(
    "b1(f8, f8, i8, i8, f8[:,::1], i8[::1], i8[::1], f8[:,::1], i8[::1], f8[:,::1], f8,"
    " i8[:,::1], i8[:,::1], i8[:,::1], i8[::1], i8[:,::1], i8[::1], i8[:,::1], i8[::1])"
)
def fill_cells(
    x_min, y_min, columns, rows, vertices, ring_start, polygon_start, boxes, category, line, line_distance,
    grid, more, pairs, cells, items, edges, links, sizes,
):  # fmt: skip
    """Write the sections of `index_cells`; returns False where they have too little room.

    grid (3, rows * columns + 1), more (2, R): scratch.
    pairs: (R, 4) scratch: cell, polygon, first vertex of an edge, where the center is.
    sizes: (2,) out, the number of items and of links.
    """
    numbers, size = cells[: rows * columns], 0
    is_inside, cut_by = grid[0], grid[1]  # of one polygon at a time; the last polygon that cut the cell
    extended = more[0]  # each chain with this polygon put in front
    for cell in range(rows * columns):
        numbers[cell] = is_inside[cell] = 0
        cut_by[cell] = -1
    links[0, 0], links[0, 1], link_count = 0, 0, 1
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
                    if size + right - left >= len(pairs):
                        return False
                    for column in range(left, right + 1):
                        cell = row * columns + column
                        cut_by[cell] = polygon
                        pairs[size, 0], pairs[size, 1], pairs[size, 2] = cell, polygon, i
                        is_near = is_within((column + 0.5) * CELL, (row + 0.5) * CELL, ax, ay, bx, by, _MARGIN)
                        pairs[size, 3] = IS_UNSURE if is_near else IS_OUTSIDE
                        size += 1
        for chain in range(link_count):
            extended[chain] = 0
        for row in range(low_row, high_row + 1):
            inside = 0
            for cell in range(row * columns + low_column, row * columns + high_column + 1):
                inside ^= is_inside[cell]
                is_inside[cell] = inside
                if cut_by[cell] == polygon:
                    numbers[cell] |= category[polygon] << CUT_SHIFT
                elif inside:
                    numbers[cell] |= category[polygon]
                    if category[polygon] & LANE:
                        chain = first_link(numbers[cell])
                        if extended[chain] == 0:
                            if link_count == len(links):
                                return False
                            links[link_count, 0], links[link_count, 1] = polygon, chain
                            extended[chain] = link_count
                            link_count += 1
                        numbers[cell] += (extended[chain] - chain) << LANES_SHIFT
        for pair in range(first, size):
            if pairs[pair, 3] != IS_UNSURE:
                pairs[pair, 3] = is_inside[pairs[pair, 0]]
        for row in range(low_row, high_row + 1):
            for cell in range(row * columns + low_column, row * columns + high_column + 1):
                is_inside[cell] = 0
    for i in range(line.shape[0] - 1):
        ax, ay, bx, by = line[i, 0] - x_min, line[i, 1] - y_min, line[i + 1, 0] - x_min, line[i + 1, 1] - y_min
        low, high = _span(min(ay, by) - line_distance, max(ay, by) + line_distance, rows)
        left, right = _span(min(ax, bx) - line_distance, max(ax, bx) + line_distance, columns)
        for row in range(low, high + 1):
            if size + right - left >= len(pairs):
                return False
            for column in range(left, right + 1):
                middle_x, middle_y = (column + 0.5) * CELL, (row + 0.5) * CELL
                if is_within(middle_x, middle_y, ax, ay, bx, by, line_distance + 0.7072 * CELL):
                    cell = row * columns + column
                    numbers[cell] |= NEAR_LINE
                    pairs[size, 0], pairs[size, 1], pairs[size, 2] = cell, boxes.shape[0], i
                    pairs[size, 3] = IS_OUTSIDE
                    size += 1
    sizes[0] = _cut_items(
        pairs[:size], cells, category, vertices, x_min, y_min, columns, grid[2], more[1], items, edges
    )
    sizes[1] = link_count
    return True


@inner
def _span(low, high, count):
    """First and last cell that [low, high] touches, clipped to the grid (empty: first > last)."""
    if high < -_MARGIN or low > count * CELL + _MARGIN:
        return 0, -1
    first = max(low - _MARGIN, 0.0) / CELL
    last = min(high + _MARGIN, count * CELL) / CELL
    return int(first), min(int(last), count - 1)


@inner
def _flip_centers(ax, ay, bx, by, row, columns, is_inside):
    """Flip the first cell of the row whose center is right of the edge; a running sum makes it all of them."""
    center = (row + 0.5) * CELL
    if (ay > center) != (by > center):
        x = ax + (center - ay) / (by - ay) * (bx - ax)
        column = np.ceil(x / CELL - 0.5)
        if column < columns:
            is_inside[row * columns + int(max(column, 0.0))] ^= 1


@inner
def _columns_in_row(ax, ay, bx, by, row, columns):
    """First and last column of the row that the edge touches."""
    low, high = min(ax, bx), max(ax, bx)
    if ay != by:
        at_bottom = ax + (row * CELL - _MARGIN - ay) / (by - ay) * (bx - ax)
        at_top = ax + ((row + 1) * CELL + _MARGIN - ay) / (by - ay) * (bx - ax)
        low = max(low, min(at_bottom, at_top))
        high = min(high, max(at_bottom, at_top))
    return _span(low, high, columns)


@inner
def _cut_items(pairs, cells, category, vertices, x_min, y_min, columns, end, order, items, edges) -> int:
    """Sort (cell, polygon, edge) by cell, polygons staying in order, and cut into one item per cell and polygon."""
    count = len(cells) - 1
    for cell in range(count + 1):
        end[cell] = 0
    for pair in range(len(pairs)):
        end[pairs[pair, 0] + 1] += 1
    for cell in range(count):
        end[cell + 1] += end[cell]
    for pair in range(len(pairs)):
        cell = pairs[pair, 0]
        order[end[cell]] = pair
        end[cell] += 1  # from where the cell's pairs start to where they end
    at, size = 0, 0
    for cell in range(count):
        cells[cell] |= size << ITEM_SHIFT
        polygon, center = -1, IS_OUTSIDE
        x, y = x_min + (cell % columns + 0.5) * CELL, y_min + (cell // columns + 0.5) * CELL
        while at < end[cell]:
            pair = order[at]
            if pairs[pair, 1] != polygon:
                polygon, center = pairs[pair, 1], IS_OUTSIDE
                items[size, 1] = at
                size += 1
            center = max(center, pairs[pair, 3])
            kinds = category[polygon] if polygon < len(category) else 0
            items[size - 1, 0] = kinds | (center << CUT_SHIFT) | (polygon << FLAG_BITS)
            i = pairs[pair, 2]
            edges[at] = 2 * i
            if polygon < len(category):
                left = side(vertices[i, 0], vertices[i, 1], vertices[i + 1, 0], vertices[i + 1, 1], x, y) > 0
                edges[at] += 1 if left else 0
            at += 1
    cells[count] = size << ITEM_SHIFT
    items[size, 0], items[size, 1] = 0, at
    return size
