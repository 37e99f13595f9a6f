"""An index as one flat block of memory: named sections of float64 or int64, found through a header.

Kernels take the block's address and read single numbers from it. Dozens of arrays as arguments would cost machine code
in every function they pass through, time at every call from Python, and an atomic reference count at every use; and a
block maps straight from a file. The caller of a kernel keeps the block alive and answers for the positions being in
it; nothing is ever written through an address.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from navsim_adapter.metric.geometry import crosses_right, segment_meets_quad
from navsim_adapter.metric.jit import bit_finder, inner, reader, view


@dataclass(frozen=True)
class Packed:
    """Numbers s and s + 1 of the header say where section s starts and ends.

    reals: (n,) float64, the block.
    """

    reals: np.ndarray

    @property
    def wholes(self) -> np.ndarray:
        """(n,) int64, the same memory."""
        return self.reals.view(np.int64)

    def size(self, section: int) -> int:
        """How many numbers a section has."""
        return int(self.wholes[section + 1] - self.wholes[section])

    @cached_property
    def address(self) -> int:
        return int(self.reals.ctypes.data)


@reader
def real(block: int, position: int) -> float:
    """A float64 of the block."""
    return ctypes.c_double.from_address(int(block) + 8 * int(position)).value


@reader
def whole(block: int, position: int) -> int:
    """An int64 of the block."""
    return ctypes.c_int64.from_address(int(block) + 8 * int(position)).value


@reader
def small(block: int, position: int) -> np.int32:
    """An int32 of the block; positions count these."""
    return np.int32(ctypes.c_int32.from_address(int(block) + 4 * int(position)).value)


@view
def reals(address: int, shape: tuple[int, ...]) -> np.ndarray:
    """Memory as a float64 array."""
    return _array(address, shape, np.float64)


@view
def wholes(address: int, shape: tuple[int, ...]) -> np.ndarray:
    """Memory as an int64 array."""
    return _array(address, shape, np.int64)


@view
def singles(address: int, shape: tuple[int, ...]) -> np.ndarray:
    """Memory as a float32 array."""
    return _array(address, shape, np.float32)


@view
def smalls(address: int, shape: tuple[int, ...]) -> np.ndarray:
    """Memory as an int32 array."""
    return _array(address, shape, np.int32)


def _array(address: int, shape: tuple[int, ...], kind: Any) -> np.ndarray:
    size = math.prod(shape) * np.dtype(kind).itemsize
    return np.ndarray(shape, kind, (ctypes.c_char * max(size, 1)).from_address(int(address)))


@inner
def end_of(array: np.ndarray) -> int:
    """The address after an array."""
    return array.ctypes.data + array.nbytes


@bit_finder
def first_bit(bits: int) -> int:
    """Number of the lowest bit that is set; there must be one."""
    return (int(bits) & -int(bits)).bit_length() - 1


@bit_finder
def last_bit(bits: int) -> int:
    """Number of the highest bit that is set; there must be one, and not the sign."""
    return int(bits).bit_length() - 1


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
    return Packed(reals)


def pack_polygons(
    vertices: np.ndarray, ring_start: np.ndarray, polygon_start: np.ndarray, others: Sequence[np.ndarray]
) -> Packed:
    """Polygons of rings (as `scene_cache.Polygons`) in the first three sections, `others` in those that follow."""
    header = 3 + len(others) + 1
    ring_positions = header + vertices.size + np.asarray(polygon_start, np.int64)
    vertex_positions = header + 2 * np.asarray(ring_start, np.int64)
    return pack([np.asarray(vertices, np.float64), vertex_positions, ring_positions, *others])


@inner
def polygon_contains(block, polygon, x, y) -> bool:
    """Whether (x, y) is strictly inside a polygon of rings (even-odd), its boundary excluded."""
    at = whole(block, POLYGONS) + polygon
    is_inside = False
    for ring in range(whole(block, at), whole(block, at + 1)):
        for v in range(whole(block, ring), whole(block, ring + 1) - 2, 2):
            crossing = crosses_right(real(block, v), real(block, v + 1), real(block, v + 2), real(block, v + 3), x, y)
            if crossing < 0:
                return False
            if crossing > 0:
                is_inside = not is_inside
    return is_inside


@inner
def quad_meets_polygon(corners, block, polygon) -> bool:
    """Whether a closed convex quadrilateral shares a point with a polygon of rings."""
    low_x, high_x, low_y, high_y = corners[0, 0], corners[0, 0], corners[0, 1], corners[0, 1]
    for i in range(1, 4):
        low_x, high_x = min(low_x, corners[i, 0]), max(high_x, corners[i, 0])
        low_y, high_y = min(low_y, corners[i, 1]), max(high_y, corners[i, 1])
    at = whole(block, POLYGONS) + polygon
    for ring in range(whole(block, at), whole(block, at + 1)):
        for v in range(whole(block, ring), whole(block, ring + 1) - 2, 2):
            ax, ay, bx, by = real(block, v), real(block, v + 1), real(block, v + 2), real(block, v + 3)
            if max(ax, bx) < low_x or min(ax, bx) > high_x or max(ay, by) < low_y or min(ay, by) > high_y:
                continue
            if segment_meets_quad(ax, ay, bx, by, corners):
                return True
    return polygon_contains(block, polygon, corners[0, 0], corners[0, 1])
