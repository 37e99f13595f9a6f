"""An index as one flat block of memory: named sections of float64 or int64, found through a header.

Kernels take two views of the same block instead of dozens of arrays. Each array argument costs machine code in every
function it passes through and time at every call from Python; a block also maps straight from a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from navsim_adapter.scoring.geometry import crosses_right, segment_meets_quad
from navsim_adapter.scoring.jit import kernel


class Packed(NamedTuple):
    """wholes[s] is where section s starts, wholes[s + 1] where it ends."""

    reals: np.ndarray  # (n,) float64
    wholes: np.ndarray  # (n,) int64, the same memory


# Sections that every block with polygons starts with. Rings hold the position of their first vertex in `reals`,
# polygons the position of their first ring in `wholes`; both have one entry more, where the last one ends.
VERTICES, RINGS, POLYGONS = 0, 1, 2


def pack(sections: Sequence[np.ndarray]) -> Packed:
    """Lay out int64 or float64 arrays one after the other behind a header."""
    sizes = np.array([section.size for section in sections], np.int64)
    header = len(sections) + 1
    starts = header + np.concatenate([[0], np.cumsum(sizes)])
    reals = np.empty(starts[-1])
    wholes = reals.view(np.int64)
    wholes[:header] = starts
    for section, start, size in zip(sections, starts[:-1], sizes):
        target = reals if section.dtype == np.float64 else wholes
        target[start : start + size] = section.ravel()
    return Packed(reals, wholes)


def unpack(block: np.ndarray) -> Packed:
    """The block as `pack` made it, from its float64 view."""
    return Packed(block, block.view(np.int64))


def pack_polygons(
    vertices: np.ndarray, ring_start: np.ndarray, polygon_start: np.ndarray, others: Sequence[np.ndarray]
) -> Packed:
    """Polygons of rings (as `scene_cache.Polygons`) in the first three sections, `others` in those that follow."""
    header = 3 + len(others) + 1
    ring_positions = header + vertices.size + np.asarray(polygon_start, np.int64)
    vertex_positions = header + 2 * np.asarray(ring_start, np.int64)
    return pack([np.asarray(vertices, np.float64), vertex_positions, ring_positions, *others])


@kernel
def polygon_contains(packed, polygon, x, y) -> bool:
    """Whether (x, y) is strictly inside a polygon of rings (even-odd), its boundary excluded."""
    reals, wholes = packed.reals, packed.wholes
    at = wholes[POLYGONS] + polygon
    is_inside = False
    for ring in range(wholes[at], wholes[at + 1]):
        for v in range(wholes[ring], wholes[ring + 1] - 2, 2):
            crossing = crosses_right(reals[v], reals[v + 1], reals[v + 2], reals[v + 3], x, y)
            if crossing < 0:
                return False
            if crossing > 0:
                is_inside = not is_inside
    return is_inside


@kernel
def quad_meets_polygon(corners, packed, polygon) -> bool:
    """Whether a closed convex quadrilateral shares a point with a polygon of rings."""
    reals, wholes = packed.reals, packed.wholes
    at = wholes[POLYGONS] + polygon
    for ring in range(wholes[at], wholes[at + 1]):
        for v in range(wholes[ring], wholes[ring + 1] - 2, 2):
            if segment_meets_quad(reals[v], reals[v + 1], reals[v + 2], reals[v + 3], corners):
                return True
    return polygon_contains(packed, polygon, corners[0, 0], corners[0, 1])
