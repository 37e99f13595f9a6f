"""Driving direction compliance (spec 6.4): how far the ego goes against the route within a second."""

from __future__ import annotations

from math import sqrt

from navsim_adapter.scoring.areas import center
from navsim_adapter.scoring.jit import kernel
from navsim_adapter.scoring.map_index import INTERSECTION, ON_ROUTE, categories_at
from navsim_adapter.scoring.vehicle import STATES

_WINDOW = 11  # steps whose displacements are summed: one second and the step that led into it
_SOME, _TOO_MUCH = 2.0, 6.0  # m


@kernel
def driving_direction_compliance(area, states, c, spare_intersections, moved) -> float:
    """1, 0.5 or 0 by the longest stretch driven within a window with the center off the route's lanes.

    spare_intersections: EPDMS does not count displacements that end strictly inside an intersection.
    moved: (41,) scratch.
    """
    exempt = ON_ROUTE | INTERSECTION if spare_intersections else ON_ROUTE
    x, y = 0.0, 0.0
    is_compliant = True
    for k in range(STATES):
        x_before, y_before = x, y
        x, y = center(states, k, c)
        moved[k] = 0.0
        if k > 0 and categories_at(area, x, y, exempt) == 0:
            moved[k] = sqrt((x - x_before) ** 2 + (y - y_before) ** 2)
            is_compliant = False
    if is_compliant:
        return 1.0
    longest = 0.0
    for k in range(STATES):
        stretch = 0.0
        for j in range(max(0, k - _WINDOW + 1), k + 1):
            stretch += moved[j]
        longest = max(longest, stretch)
    return 1.0 if longest < _SOME else (0.5 if longest < _TOO_MUCH else 0.0)
