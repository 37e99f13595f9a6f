"""The map of one scene, made quick to ask: which kinds of area hold a point (spec 6.1), how far is the centerline.

A grid of square cells covers the road that the ego can reach (`cells.py` fills it). A cell knows the categories of
the polygons that cover it wholly, those whose boundary runs through it, and for the latter whether its center is
inside and which edges cross it: a point is on the center's side of a polygon unless an odd number of those edges
lies between them. Points off the grid are tested against whole polygons: slower, with the same answer.
"""

from __future__ import annotations

import numpy as np

from navsim_adapter.cache.scene_cache import AreaType, SceneCache
from navsim_adapter.scoring import cells
from navsim_adapter.scoring.cells import CELL, CUT_SHIFT, FLAG_BITS, IS_INSIDE, IS_UNSURE
from navsim_adapter.scoring.geometry import polygon_boxes, side
from navsim_adapter.scoring.jit import kernel
from navsim_adapter.scoring.packed import POLYGONS, VERTICES, Packed, pack_polygons, polygon_contains, real, whole

# Categories of an area, as bits. (Numpy integers: numba compiles a function anew for every literal it is called with.)
DRIVABLE, ON_ROUTE, INTERSECTION, LANE = np.int64(1), np.int64(2), np.int64(4), np.int64(8)

BLOCK = 8  # centerline segments that share a bounding box

# Sections of the map index, after those of the polygons (`packed.py`).
CATEGORIES = POLYGONS + 1  # (P,) int64, bits
BOXES = CATEGORIES + 1  # (P, 4) x_min, y_min, x_max, y_max of the polygons
ORIGIN = BOXES + 1  # (2,) lower corner of the grid
SHAPE = ORIGIN + 1  # (2,) int64 columns, rows
CELLS = SHAPE + 1  # (columns * rows + 1,) int64, see `cells.py`
ITEMS = CELLS + 1  # (I + 1, 3) int64: polygon with a boundary in the cell, where the cell's center is, first edge
EDGES = ITEMS + 1  # (E,) int64: vertex with which the edge starts
CENTERLINE = EDGES + 1  # (C, 3) x, y, progress
BLOCK_BOXES = CENTERLINE + 1  # (ceil((C - 1) / BLOCK), 4)


def build_map_index(scene: SceneCache) -> Packed:
    vertices = np.array(scene.areas.vertices, np.float64, order="C")
    ring_start = np.array(scene.areas.ring_start, np.int64)
    polygon_start = np.array(scene.areas.polygon_start, np.int64)
    boxes = polygon_boxes(vertices, ring_start, polygon_start)
    categories = area_categories(scene)
    x_min, y_min, columns, rows = _grid_extent(scene.ego_state)
    grid = cells.index_cells(x_min, y_min, columns, rows, vertices, ring_start, polygon_start, boxes, categories)
    line = np.array(scene.centerline[:, :2], np.float64, order="C")
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
        ],
    )


def area_categories(scene: SceneCache) -> np.ndarray:
    """(P,) int64: lanes are not drivable area, only the blocks, intersections and car parks are (10.1 item 2)."""
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
    cosine, sine = np.cos(ego[2]), np.sin(ego[2])
    corners = np.array([[a, s] for a in (ahead, -behind) for s in (aside, -aside)])
    x = ego[0] + corners @ [cosine, -sine]
    y = ego[1] + corners @ [sine, cosine]
    return float(x.min()), float(y.min()), int(np.ceil(np.ptp(x) / CELL)), int(np.ceil(np.ptp(y) / CELL))


def _progress(centerline: np.ndarray) -> np.ndarray:
    step = np.diff(centerline, axis=0)
    return np.concatenate([[0.0], np.cumsum(np.sqrt(step[:, 0] ** 2 + step[:, 1] ** 2))])


def _block_boxes(centerline: np.ndarray) -> np.ndarray:
    blocks = [centerline[i : i + BLOCK + 1] for i in range(0, max(len(centerline) - 1, 1), BLOCK)]
    return np.array([[*block.min(axis=0), *block.max(axis=0)] for block in blocks])


@kernel
def categories_at(area, x, y, wanted) -> int:
    """Which of the wanted categories have a polygon with (x, y) strictly inside."""
    origin, shape = whole(area, ORIGIN), whole(area, SHAPE)
    columns, rows = whole(area, shape), whole(area, shape + 1)
    column, row = (x - real(area, origin)) / CELL, (y - real(area, origin + 1)) / CELL
    if not (0.0 <= column < columns and 0.0 <= row < rows):
        return _categories_off_grid(area, x, y, wanted)
    cell = int(row) * columns + int(column)
    number = whole(area, whole(area, CELLS) + cell)
    found = number & wanted
    if ((number >> CUT_SHIFT) & wanted & ~found) == 0:
        return found
    for item in range(number >> FLAG_BITS, whole(area, whole(area, CELLS) + cell + 1) >> FLAG_BITS):
        category = whole(area, whole(area, CATEGORIES) + whole(area, whole(area, ITEMS) + 3 * item)) & wanted
        if (category & ~found) != 0:
            center_x = real(area, origin) + (np.floor(column) + 0.5) * CELL
            center_y = real(area, origin + 1) + (np.floor(row) + 0.5) * CELL
            if _item_contains(area, whole(area, ITEMS) + 3 * item, center_x, center_y, x, y):
                found |= category
    return found


@kernel
def _item_contains(area, item, center_x, center_y, x, y):
    """Whether (x, y) is strictly inside the item's polygon, from where the cell's center is and the edges between."""
    if whole(area, item + 1) == IS_UNSURE:
        return polygon_contains(area, whole(area, item), x, y)
    is_inside = whole(area, item + 1) == IS_INSIDE
    for edge in range(whole(area, EDGES) + whole(area, item + 2), whole(area, EDGES) + whole(area, item + 5)):
        v = whole(area, VERTICES) + 2 * whole(area, edge)
        ax, ay, bx, by = real(area, v), real(area, v + 1), real(area, v + 2), real(area, v + 3)
        point_side = side(ax, ay, bx, by, x, y)
        if point_side == 0 and min(ax, bx) <= x <= max(ax, bx) and min(ay, by) <= y <= max(ay, by):
            return False  # on the boundary
        if (point_side > 0) != (side(ax, ay, bx, by, center_x, center_y) > 0) and (
            side(center_x, center_y, x, y, ax, ay) > 0
        ) != (side(center_x, center_y, x, y, bx, by) > 0):
            is_inside = not is_inside
    return is_inside


@kernel
def _categories_off_grid(area, x, y, wanted):
    found = 0
    for polygon in range(whole(area, CATEGORIES + 1) - whole(area, CATEGORIES)):
        category = whole(area, whole(area, CATEGORIES) + polygon) & wanted
        if (category & ~found) != 0 and _is_in_box(area, polygon, x, y) and polygon_contains(area, polygon, x, y):
            found |= category
    return found


@kernel
def _is_in_box(area, polygon, x, y):
    box = whole(area, BOXES) + 4 * polygon
    return real(area, box) < x < real(area, box + 2) and real(area, box + 1) < y < real(area, box + 3)


@kernel
def is_over_several_lanes(area, corners) -> bool:
    """MULTI_LANE (6.1): more than one lane holds a corner, and no lane holds all four."""
    touched = 0
    for polygon in range(whole(area, CATEGORIES + 1) - whole(area, CATEGORIES)):
        if whole(area, whole(area, CATEGORIES) + polygon) & LANE:
            held = 0
            for i in range(4):
                x, y = corners[i, 0], corners[i, 1]
                if _is_in_box(area, polygon, x, y) and polygon_contains(area, polygon, x, y):
                    held += 1
            if held == 4:
                return False
            if held > 0:
                touched += 1
    return touched > 1
