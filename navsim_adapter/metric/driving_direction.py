"""Driving direction compliance (metric 6.4): how far the ego goes against the route within a second."""

from __future__ import annotations

from math import sqrt

from navsim_adapter.metric.areas import center
from navsim_adapter.metric.jit import inner
from navsim_adapter.vehicle import STATES

_WINDOW = 11  # steps whose displacements are summed: one second and the step that led into it
_ALL = (1 << STATES) - 1
_SOME, _TOO_MUCH = 2.0, 6.0  # m


@inner
def driving_direction_compliance(states, c, is_exempt, moved) -> float:
    """1, 0.5 or 0 by the longest stretch driven within a window with the center off the route's lanes.

    is_exempt: bits of the states that do not count: the center is on the route's lanes or, in EPDMS, strictly inside
    an intersection.  moved: (41,) scratch.
    """
    if (is_exempt | 1) == _ALL:
        return 1.0
    for k in range(STATES):
        moved[k] = 0.0
        if k > 0 and (is_exempt >> k) & 1 == 0:
            x0, y0 = center(states, k - 1, c)
            x1, y1 = center(states, k, c)
            moved[k] = sqrt((x1 - x0) ** 2 + (y1 - y0) ** 2)
    longest = 0.0
    for k in range(STATES):
        stretch = 0.0
        for j in range(max(0, k - _WINDOW + 1), k + 1):
            stretch += moved[j]
        longest = max(longest, stretch)
    return 1.0 if longest < _SOME else (0.5 if longest < _TOO_MUCH else 0.0)
