"""The exact predicates against rational arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numba
import numpy as np

from navsim_adapter.metric import geometry

side, fused = geometry.side, geometry.fused


@numba.njit(error_model="numpy", nogil=True)
def sides(points: np.ndarray, found: np.ndarray) -> None:
    for i in range(len(points)):
        a, b, p = points[i, 0], points[i, 1], points[i, 2]
        found[i] = side(a[0], a[1], b[0], b[1], p[0], p[1])


@numba.njit(error_model="numpy", nogil=True)
def fused_all(numbers: np.ndarray, found: np.ndarray) -> None:
    for i in range(len(numbers)):
        found[i] = fused(numbers[i, 0], numbers[i, 1], numbers[i, 2])


def test_the_side_of_a_line_is_exact_where_rounded_arithmetic_is_not() -> None:
    rng = np.random.default_rng(0)
    origin = rng.uniform(6e5, 7e5, (4000, 1, 2))
    points = origin + np.round(rng.uniform(-30, 30, (4000, 3, 2)), 1)
    share = rng.uniform(0, 1, (2000, 1))
    points[:2000, 2] = points[:2000, 0] + share * (points[:2000, 1] - points[:2000, 0])  # next to the line
    points[:200, 2] = points[:200, 1]  # on it
    found = np.empty(len(points), np.int64)
    sides(points, found)
    for (a, b, p), sign in zip(points.tolist(), found.tolist()):
        ax, ay, bx, by, px, py = map(Fraction, (*a, *b, *p))
        exact = (bx - ax) * (py - ay) - (by - ay) * (px - ax)
        assert sign == (exact > 0) - (exact < 0)


def test_fused_rounds_once() -> None:
    rng = np.random.default_rng(1)
    angles = rng.uniform(-np.pi, np.pi, 4000)
    sine, cosine = np.sin(angles), np.cos(angles)
    numbers = np.column_stack([sine, sine, cosine * cosine])  # sums that are 1 or a last bit beside it
    numbers[2000:] = rng.normal(size=(2000, 3))
    found = np.empty(len(numbers))
    fused_all(numbers, found)
    exact = [float(Fraction(a) * Fraction(b) + Fraction(c)) for a, b, c in numbers.tolist()]
    assert found.tolist() == exact
    assert (numbers[:, 0] * numbers[:, 1] + numbers[:, 2] != found).mean() > 0.1  # and it matters
