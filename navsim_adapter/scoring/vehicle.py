"""The ego vehicle and the time grid every sub-score uses (spec 2.6 and the conventions before section 1)."""

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
