"""The map of one scene, made quick to ask: which kinds of area hold a point (metric 6.1), how far is the centerline.

A grid of square cells covers the road that the ego can reach (`cells.py` fills it). A cell knows the categories of
the polygons that cover it wholly, those whose boundary runs through it, and for the latter whether its center is
inside and which edges cross it: a point is on the center's side of a polygon unless an odd number of those edges
lies between them. Points off the grid are tested against whole polygons: slower, with the same answer.
"""

from __future__ import annotations

from math import ceil, cos, sin

import numpy as np

from navsim_adapter.metric import cells
from navsim_adapter.metric.cells import (
    CELL,
    CUT_SHIFT,
    FLAG_BITS,
    IS_INSIDE,
    IS_UNSURE,
    ITEM_SHIFT,
    LANE,
    NEAR_LINE,
    first_link,
)
from navsim_adapter.metric.geometry import is_within, polygon_boxes, side
from navsim_adapter.metric.jit import inlined, inner
from navsim_adapter.metric.packed import POLYGONS, VERTICES, Packed, pack_polygons, polygon_contains, real, whole
from navsim_adapter.metric.road import road_bits
from navsim_adapter.scene_cache import AreaType, Polygons, SceneCache

# Categories of an area, as bits. (Numpy integers: numba compiles a function again for every literal it is called with.)
DRIVABLE, ON_ROUTE, INTERSECTION = np.int64(1), np.int64(2), np.int64(4)  # and LANE, 8
LANE_DEVIATION = 0.5  # m from the centerline (metric 6.11)

BLOCK = 8  # centerline segments that share a bounding box

# Sections of the map index, after those of the polygons (`packed.py`).
CATEGORIES = POLYGONS + 1  # (P,) int64, bits
BOXES = CATEGORIES + 1  # (P, 4) x_min, y_min, x_max, y_max of the polygons
ORIGIN = BOXES + 1  # (2,) lower corner of the grid
SHAPE = ORIGIN + 1  # (2,) int64 columns, rows
CELLS = SHAPE + 1  # (columns * rows + 1,) int64, see `cells.py`
ITEMS = CELLS + 1  # (I + 1, 2) int64: what `cells.py` says of the item, and its first edge
EDGES = ITEMS + 1  # (E,) int64, see `cells.py`
LINKS = EDGES + 1  # (K, 2) int64: chains of lanes, each a polygon and the next link (0 ends the chain)
CENTERLINE = LINKS + 1  # (C, 3) x, y, progress
BLOCK_BOXES = CENTERLINE + 1  # (ceil((C - 1) / BLOCK), 4)
FLAGS = BLOCK_BOXES + 1  # (columns * rows,) int32 and perhaps one more, the FLAG_BITS of a cell and NEAR_LINE
ROAD = FLAGS + 1  # (FINE * rows, ...) int64, see `road.py`


def build_map_index(scene: SceneCache) -> Packed:
    vertices = np.array(scene.areas.vertices, np.float64, order="C")
    ring_start = np.array(scene.areas.ring_start, np.int64)
    polygon_start = np.array(scene.areas.polygon_start, np.int64)
    boxes = polygon_boxes(vertices, ring_start, polygon_start)
    categories = area_categories(scene)
    x_min, y_min, columns, rows = _grid_extent(scene.ego_state)
    line = np.array(scene.centerline[:, :2], np.float64, order="C")
    grid = cells.index_cells(
        x_min, y_min, columns, rows, vertices, ring_start, polygon_start, boxes, categories, line, LANE_DEVIATION
    )
    return pack_polygons(
        vertices,
        ring_start,
        polygon_start,
        [
            categories,
            boxes,
            np.array([x_min, y_min]),
            np.array([columns, rows], np.int64),
            *grid,
            np.column_stack([line, _progress(line)]),
            _block_boxes(line),
            _flags(grid[0]),
            road_bits(x_min, y_min, columns, rows, *_drivable(scene.areas, categories, boxes)),
        ],
    )


def _flags(cells: np.ndarray) -> np.ndarray:
    flags = (cells & (NEAR_LINE | (NEAR_LINE - 1))).astype(np.int32)
    return flags[: len(flags) // 2 * 2].view(np.int64)  # of the last entry there is no cell


def _drivable(areas: Polygons, categories: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, ...]:
    """Vertices, rings, polygons and boxes of the drivable ones."""
    chosen = np.flatnonzero(categories & DRIVABLE)
    road = areas.take(chosen)
    return np.ascontiguousarray(road.vertices, np.float64), road.ring_start, road.polygon_start, boxes[chosen]


def area_categories(scene: SceneCache) -> np.ndarray:
    """(P,) int64: lanes are not drivable area, only the blocks, intersections and car parks are (metric 10.1 (2))."""
    kind = scene.area_type
    is_drivable = (kind == AreaType.ROADBLOCK) | (kind == AreaType.INTERSECTION) | (kind == AreaType.CARPARK_AREA)
    category = np.zeros(len(kind), np.int64)
    category[is_drivable] |= DRIVABLE
    category[kind == AreaType.INTERSECTION] |= INTERSECTION
    category[(kind == AreaType.LANE) | (kind == AreaType.LANE_CONNECTOR)] |= LANE
    category[np.asarray(scene.area_on_route)] |= ON_ROUTE
    return category


def _grid_extent(ego: np.ndarray) -> tuple[float, float, int, int]:
    """Lower corner and size of the grid: where the ego can be in four seconds if it drives at all sensibly."""
    ahead, behind, aside = 25.0 + 4.5 * min(abs(float(ego[3])), 25.0), 15.0, 25.0
    cosine, sine = cos(ego[2]), sin(ego[2])
    x = [along * cosine - across * sine for along in (ahead, -behind) for across in (aside, -aside)]
    y = [along * sine + across * cosine for along in (ahead, -behind) for across in (aside, -aside)]
    columns, rows = ceil((max(x) - min(x)) / CELL), ceil((max(y) - min(y)) / CELL)
    return float(ego[0]) + min(x), float(ego[1]) + min(y), columns, rows


def _progress(centerline: np.ndarray) -> np.ndarray:
    step = np.diff(centerline, axis=0)
    return np.concatenate([[0.0], np.cumsum(np.sqrt(step[:, 0] ** 2 + step[:, 1] ** 2))])


def _block_boxes(centerline: np.ndarray) -> np.ndarray:
    """Bounding boxes of BLOCK segments each, that is of BLOCK + 1 vertices."""
    start = np.arange(0, max(len(centerline) - 1, 1), BLOCK)
    last = centerline[np.minimum(start + BLOCK, len(centerline) - 1)]
    low, high = np.minimum.reduceat(centerline, start, axis=0), np.maximum.reduceat(centerline, start, axis=0)
    return np.hstack([np.minimum(low, last), np.maximum(high, last)])


@inner
def area_count(area) -> int:
    return whole(area, CATEGORIES + 1) - whole(area, CATEGORIES)


@inner
def cell_at(area, x, y) -> int:
    """Position of the number of the cell with (x, y), -1 off the grid."""
    origin, shape = whole(area, ORIGIN), whole(area, SHAPE)
    column, row = (x - real(area, origin)) / CELL, (y - real(area, origin + 1)) / CELL
    columns = whole(area, shape)
    if 0.0 <= column < columns and 0.0 <= row < whole(area, shape + 1):
        return whole(area, CELLS) + int(row) * columns + int(column)
    return -1


@inlined
def categories_at(area, x, y, wanted) -> int:
    """Which of the wanted categories have a polygon with (x, y) strictly inside."""
    cell = cell_at(area, x, y)
    if cell < 0:
        return _categories_off_grid(area, x, y, wanted)
    number = whole(area, cell)
    found = number & wanted
    if ((number >> CUT_SHIFT) & wanted & ~found) == 0:
        return found
    return _categories_in_cut_cell(area, cell, x, y, wanted)


@inner
def _categories_in_cut_cell(area, cell, x, y, wanted):
    found = whole(area, cell) & wanted
    items = whole(area, ITEMS)
    last = items + 2 * (whole(area, cell + 1) >> ITEM_SHIFT)
    for at in range(items + 2 * (whole(area, cell) >> ITEM_SHIFT), last, 2):
        category = whole(area, at) & wanted
        if (category & ~found) != 0 and _item_contains(area, at, x, y):
            found |= category
    return found


@inner
def _item_contains(area, at, x, y):
    """Whether (x, y) in the item's cell is strictly inside its polygon: on the side of the cell's center, unless an
    odd number of edges lies between."""
    center = (whole(area, at) >> CUT_SHIFT) & 3
    if center == IS_UNSURE:
        return polygon_contains(area, whole(area, at) >> FLAG_BITS, x, y)
    origin, vertices, edges = whole(area, ORIGIN), whole(area, VERTICES), whole(area, EDGES)
    is_inside = center == IS_INSIDE
    for edge in range(edges + whole(area, at + 1), edges + whole(area, at + 3)):
        number = whole(area, edge)
        v = vertices + (number & ~1)
        ax, ay, bx, by = real(area, v), real(area, v + 1), real(area, v + 2), real(area, v + 3)
        point_side = side(ax, ay, bx, by, x, y)
        if point_side == 0 and min(ax, bx) <= x <= max(ax, bx) and min(ay, by) <= y <= max(ay, by):
            return False  # on the boundary
        if (point_side > 0) != ((number & 1) == 1):  # on the other side than the cell's center
            center_x, center_y = _cell_center(x, real(area, origin)), _cell_center(y, real(area, origin + 1))
            if (side(center_x, center_y, x, y, ax, ay) > 0) != (side(center_x, center_y, x, y, bx, by) > 0):
                is_inside = not is_inside
    return is_inside


@inner
def _cell_center(x, x_min):
    return x_min + (np.floor((x - x_min) / CELL) + 0.5) * CELL


@inner
def _categories_off_grid(area, x, y, wanted):
    found = 0
    for polygon in range(area_count(area)):
        category = whole(area, whole(area, CATEGORIES) + polygon) & wanted
        if (category & ~found) != 0 and _whole_polygon_contains(area, polygon, x, y):
            found |= category
    return found


@inner
def _whole_polygon_contains(area, polygon, x, y):
    box = whole(area, BOXES) + 4 * polygon
    if not (real(area, box) < x < real(area, box + 2) and real(area, box + 1) < y < real(area, box + 3)):
        return False
    return polygon_contains(area, polygon, x, y)


@inner
def lanes_at(area, x, y, lanes) -> int:
    """How many lanes have (x, y) strictly inside; their polygons in `lanes` (P,) out."""
    count = 0
    cell = cell_at(area, x, y)
    if cell < 0:
        for polygon in range(area_count(area)):
            is_lane = (whole(area, whole(area, CATEGORIES) + polygon) & LANE) != 0
            if is_lane and _whole_polygon_contains(area, polygon, x, y):
                lanes[count] = polygon
                count += 1
        return count
    link = first_link(whole(area, cell))
    while link != 0:
        lanes[count] = whole(area, whole(area, LINKS) + 2 * link)
        count += 1
        link = whole(area, whole(area, LINKS) + 2 * link + 1)
    items = whole(area, ITEMS)
    last = items + 2 * (whole(area, cell + 1) >> ITEM_SHIFT)
    for at in range(items + 2 * (whole(area, cell) >> ITEM_SHIFT), last, 2):
        if (whole(area, at) & LANE) != 0 and _item_contains(area, at, x, y):
            lanes[count] = whole(area, at) >> FLAG_BITS
            count += 1
    return count


@inner
def is_near_centerline(area, x, y) -> bool:
    """Whether (x, y) is at most LANE_DEVIATION from the centerline."""
    cell = cell_at(area, x, y)
    if cell < 0:
        for v in range(whole(area, CENTERLINE), whole(area, CENTERLINE + 1) - 3, 3):
            if _is_near_segment(area, v, x, y):
                return True
        return False
    if (whole(area, cell) & NEAR_LINE) != 0:
        at = whole(area, ITEMS) + 2 * ((whole(area, cell + 1) >> ITEM_SHIFT) - 1)  # the centerline's item is the last
        for edge in range(whole(area, EDGES) + whole(area, at + 1), whole(area, EDGES) + whole(area, at + 3)):
            if _is_near_segment(area, whole(area, CENTERLINE) + 3 * (whole(area, edge) >> 1), x, y):
                return True
    return False


@inner
def _is_near_segment(area, v, x, y):
    ax, ay, bx, by = real(area, v), real(area, v + 1), real(area, v + 3), real(area, v + 4)
    return is_within(x, y, ax, ay, bx, by, LANE_DEVIATION)
