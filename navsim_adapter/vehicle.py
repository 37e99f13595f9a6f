"""The ego vehicle, the time grid every sub-score uses (metric 2.6 and the conventions at its head), and what plans
can be simulated."""

from __future__ import annotations

from math import hypot

HALF_WIDTH = 1.1485
HALF_LENGTH = 2.588
WHEELBASE = 3.089
AXLE_TO_CENTER = 1.461  # rear axle to geometric center, along the heading
RADIUS = hypot(HALF_LENGTH, HALF_WIDTH)  # of the circle around the footprint

STEPS = 40  # simulated steps; states are k = 0..40
STATES = STEPS + 1
INTERVAL = 0.1

FARTHEST = 1e6  # m and rad: beyond it a pose is garbage and the simulation would overflow
SHORTEST_INTERVAL = 1e-3  # s between poses; official times are whole microseconds, and two of them must differ
LONGEST_INTERVAL = 60.0
