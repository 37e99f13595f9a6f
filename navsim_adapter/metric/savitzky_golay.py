"""Savitzky-Golay filters as scipy's `savgol_filter` defines them in mode "interp" (metric 6.8).

A filter is a table of weights: one row of `window` weights for each edge position at the start, one for the interior,
one for each edge position at the end. Rows of a series are time, columns are candidates side by side.
"""

from __future__ import annotations

import numpy as np

from navsim_adapter.metric.jit import inlined, lanes
from navsim_adapter.vehicle import INTERVAL


def filter_weights(window: int, order: int, derivative: int) -> np.ndarray:
    """(2 * (window // 2) + 1, window): start edges, interior, end edges; derivatives are per second.

    The interior value is the fit at the window's middle, which for an even window lies between two samples.
    """
    half = window // 2
    positions = np.concatenate([np.arange(half), [(window - 1) / 2], np.arange(window - half, window)])
    middle = (window - 1) / 2
    powers = np.arange(order + 1)
    fit = np.linalg.pinv((np.arange(window) - middle)[:, None] ** powers)
    factor = np.array([np.prod(np.arange(p, p - derivative, -1)) if p >= derivative else 0.0 for p in powers])
    at = (positions - middle)[:, None] ** np.maximum(powers - derivative, 0) * factor
    return np.ascontiguousarray(at @ fit) / INTERVAL**derivative


@inlined
def weights_at(i, rows, window) -> tuple[int, int]:
    """Which row of the weights makes row i of a filtered series, and the first row of the series that it weighs."""
    half = window // 2
    if i < half:
        return i, 0
    if i < rows - half:
        return half, i - (window - 1) // 2
    return i - rows + 2 * half + 1, rows - window


@lanes
def filter_series(series, rows, n, weights, filtered) -> None:
    """Filter the first `rows` rows and n columns of `series`, rounding to 8 decimals: `filtered` out."""
    window = weights.shape[1]
    for i in range(rows):
        row, start = weights_at(i, rows, window)
        out = filtered[i]
        for c in range(n):
            out[c] = 0.0
        for j in range(window):
            weight, source = weights[row, j], series[start + j]
            for c in range(n):
                out[c] += weight * source[c]
        for c in range(n):
            out[c] = np.rint(out[c] * 1e8) / 1e8


@inlined
def weighted_5(w, s0, s1, s2, s3, s4) -> float:
    """A filtered value before it is rounded, its terms in the order of `filter_series`."""
    return 0.0 + w[0] * s0 + w[1] * s1 + w[2] * s2 + w[3] * s3 + w[4] * s4


@inlined
def weighted_7(w, s0, s1, s2, s3, s4, s5, s6) -> float:
    return 0.0 + w[0] * s0 + w[1] * s1 + w[2] * s2 + w[3] * s3 + w[4] * s4 + w[5] * s5 + w[6] * s6


@inlined
def weighted_8(total, w, s0, s1, s2, s3, s4, s5, s6, s7) -> float:
    total = total + w[0] * s0 + w[1] * s1 + w[2] * s2 + w[3] * s3
    return total + w[4] * s4 + w[5] * s5 + w[6] * s6 + w[7] * s7


@lanes
def unwrap(headings, rows, n, turns, unwrapped) -> None:
    """Headings without jumps: less 2 pi times the cumulated rounded turns (metric 6.9).  turns: (n,) scratch."""
    for c in range(n):
        turns[c] = 0.0
        unwrapped[0, c] = headings[0, c]
    for i in range(1, rows):
        before, here, out = headings[i - 1], headings[i], unwrapped[i]
        for c in range(n):
            turns[c] += np.rint((here[c] - before[c]) / (2.0 * np.pi))
            out[c] = here[c] - 2.0 * np.pi * turns[c]
