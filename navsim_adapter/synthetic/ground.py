"""The ground of a place seen from above: a raster of surfaces and paint that the cameras look up.

One byte per cell of CELL metres, an index into PALETTE. Painted in the order surface, markings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import shapely
from PIL import Image, ImageDraw

from navsim_adapter.synthetic.geometry import arc_length, headings, offset
from navsim_adapter.synthetic.layers import junction_polygon
from navsim_adapter.synthetic.roads import Lane, Network

Array = np.ndarray
CELL = 0.16
BORDER = 40.0
GRASS, WALKWAY, ROAD, JUNCTION, PARKING, WHITE, YELLOW, KERB = range(8)
PALETTE = np.array(
    [
        (92, 122, 66),
        (158, 150, 138),
        (78, 80, 86),
        (88, 88, 92),
        (104, 96, 96),
        (226, 226, 222),
        (226, 186, 60),
        (176, 172, 166),
    ],
    dtype=np.float32,
)


@dataclass(frozen=True)
class Ground:
    """cells (H, W) uint8, row 0 at the smallest y; origin: x, y of the corner of cell (0, 0)."""

    cells: Array
    origin: Array

    def at(self, x: Array, y: Array) -> Array:
        """Surface indices at points; grass outside."""
        column = ((x - self.origin[0]) / CELL).astype(np.int32)
        row = ((y - self.origin[1]) / CELL).astype(np.int32)
        height, width = self.cells.shape
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        return np.where(inside, self.cells[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)], GRASS)


def paint(net: Network) -> Ground:
    """The raster of a network: roads, junctions, car parks, lane lines, crosswalks, stop lines."""
    points = np.concatenate([block.ring for block in net.blocks.values()])
    low, high = points.min(axis=0) - BORDER, points.max(axis=0) + BORDER
    width, height = np.ceil((high - low) / CELL).astype(int)
    picture = Image.new("L", (int(width), int(height)), GRASS)
    draw = ImageDraw.Draw(picture)

    def fill(ring: Array, surface: int) -> None:
        draw.polygon([tuple(p) for p in (ring - low) / CELL], fill=surface)

    def line(points: Array, surface: int, thickness: float) -> None:
        draw.line([tuple(p) for p in (points - low) / CELL], fill=surface, width=max(1, round(thickness / CELL)))

    for block in net.blocks.values():
        fill(np.concatenate([offset(block.right, -1.0), offset(block.right, -3.0)[::-1]]), WALKWAY)
    junctions = [junction_polygon(net, junction) for junction in net.junctions]
    for polygon in junctions:
        line(shapely.get_coordinates(polygon.exterior), KERB, 0.6)
    for park in net.car_parks:
        fill(park.ring, PARKING)
    for block in net.blocks.values():
        fill(block.ring, ROAD)
        line(block.right, KERB, 0.5)
    for polygon in junctions:
        fill(shapely.get_coordinates(polygon.exterior), JUNCTION)
    for block in net.blocks.values():
        _mark(block.lanes, line)
    for crosswalk in net.crosswalks:
        for ring in _stripes(crosswalk.corners):
            fill(ring, WHITE)
    for junction in net.junctions:
        if junction.has_signals:
            for source in sorted({link.from_block for link in junction.links}):
                block = net.blocks[source]
                line(np.array([block.left[-1], block.right[-1]]), WHITE, 0.5)
    return Ground(np.asarray(picture), low)


def _mark(lanes: list[Lane], line: Callable[[Array, int, float], None]) -> None:
    """Yellow on the left of a roadblock, white on its right, dashes between lanes."""
    line(offset(lanes[0].left, -0.15), YELLOW, 0.17)
    line(offset(lanes[-1].right, 0.2), WHITE, 0.17)
    for lane in lanes[:-1]:
        s = arc_length(lane.right)
        for start in np.arange(2.0, s[-1] - 3, 9.0):
            at = np.linspace(start, start + 3, 4)
            line(
                np.stack([np.interp(at, s, lane.right[:, 0]), np.interp(at, s, lane.right[:, 1])], axis=1), WHITE, 0.17
            )


def _stripes(corners: Array) -> list[Array]:
    """Zebra stripes, 0.6 m wide and as far apart, across a crosswalk's quadrilateral."""
    a, b, c, d = corners
    length = float(np.hypot(*(d - a)))
    edges = np.arange(0.3, length - 0.6, 1.2) / length
    wide = 0.6 / length
    return [
        np.array([a + (d - a) * e, b + (c - b) * e, b + (c - b) * (e + wide), a + (d - a) * (e + wide)]) for e in edges
    ]


def lamp_places(net: Network) -> list[tuple[int, Array, float]]:
    """(signal group, foot of the post, heading of the traffic it is for): right and left of every stop line."""
    found = []
    for junction in net.junctions:
        groups = {link.from_block: link.connectors[0].signal for link in junction.links}
        for source, group in groups.items():
            if group is None:
                continue
            block = net.blocks[source]
            heading = float(headings(block.right)[-1])
            across = np.array([-np.sin(heading), np.cos(heading)])
            found.append((group, block.right[-1] - 0.9 * across, heading))
            found.append((group, block.left[-1] + 0.4 * across, heading))
    return found
