"""Sine, cosine and wrapping that vectorise: straight-line arithmetic, the same bits in every lane.

Accurate to about one unit in the last place for the angles met here (|angle| up to thousands of radians). Library
calls would keep the loops over candidates scalar.
"""

from __future__ import annotations

from math import pi

import numpy as np

from navsim_adapter.metric.jit import inner

TWO_PI = 2.0 * pi
_TURNS = 1.0 / TWO_PI

# pi/2 in three pieces of 33 bits: products with small whole numbers are exact (Cody and Waite).
_HALF_PI_1 = 1.57079632673412561417e00
_HALF_PI_2 = 6.07710050630396597660e-11
_HALF_PI_3 = 2.02226624879595063154e-21

# Minimax polynomials on [-pi/4, pi/4].
_S1, _S2, _S3 = -1.66666666666666324348e-01, 8.33333333332248946124e-03, -1.98412698298579493134e-04
_S4, _S5, _S6 = 2.75573137070700676789e-06, -2.50507602534068634195e-08, 1.58969099521155010221e-10
_C1, _C2, _C3 = 4.16666666666666019037e-02, -1.38888888888741095749e-03, 2.48015872894767294178e-05
_C4, _C5, _C6 = -2.75573143513906633035e-07, 2.08757232129817482790e-09, -1.13596475577881948265e-11


@inner
def sine_cosine(angle: float) -> tuple[float, float]:
    quarter = np.rint(angle * (2.0 / pi))
    r = ((angle - quarter * _HALF_PI_1) - quarter * _HALF_PI_2) - quarter * _HALF_PI_3
    z = r * r
    s = r + r * z * (_S1 + z * (_S2 + z * (_S3 + z * (_S4 + z * (_S5 + z * _S6)))))
    half = 0.5 * z
    w = 1.0 - half
    c = w + (((1.0 - w) - half) + z * z * (_C1 + z * (_C2 + z * (_C3 + z * (_C4 + z * (_C5 + z * _C6))))))
    turn = quarter - 4.0 * np.floor(quarter * 0.25)
    is_odd = (turn == 1.0) | (turn == 3.0)
    sine = c if is_odd else s
    cosine = s if is_odd else c
    return (-sine if turn >= 2.0 else sine), (-cosine if (turn == 1.0) | (turn == 2.0) else cosine)


@inner
def tangent(angle: float) -> float:
    """Of |angle| up to pi / 2, by the double angle: half of it needs no reduction."""
    r = 0.5 * angle
    z = r * r
    s = r + r * z * (_S1 + z * (_S2 + z * (_S3 + z * (_S4 + z * (_S5 + z * _S6)))))
    c = 1.0 - 0.5 * z + z * z * (_C1 + z * (_C2 + z * (_C3 + z * (_C4 + z * (_C5 + z * _C6)))))
    return 2.0 * s * c / (c * c - s * s)


@inner
def wrap(angle: float) -> float:
    """The angle in [-pi, pi], as atan2(sin, cos) decides the ties: both ends stay, the next double turns."""
    wrapped = angle - TWO_PI * np.rint(angle * _TURNS)
    if wrapped > pi:
        wrapped -= TWO_PI
    if wrapped < -pi:
        wrapped += TWO_PI
    return wrapped


@inner
def principal(angle: float) -> float:
    """(angle + pi) mod 2 pi - pi, in [-pi, pi)."""
    shifted = angle + pi
    rest = shifted - TWO_PI * np.floor(shifted * _TURNS)
    if rest < 0.0:
        rest += TWO_PI
    if rest >= TWO_PI:
        rest -= TWO_PI
    return rest - pi
