"""Lane keeping (metric 6.11, EPDMS): not away from the centerline for two seconds."""

from __future__ import annotations

from navsim_adapter.metric.areas import center
from navsim_adapter.metric.jit import inner
from navsim_adapter.metric.map_index import INTERSECTION, is_near_centerline
from navsim_adapter.vehicle import STATES

_LONGEST = 20  # consecutive states outside intersections


@inner
def lane_keeping(area, states, c, center_areas) -> float:
    """0 after 20 consecutive states with the center more than 0.5 m off; intersections freeze the count (metric 10.4).

    center_areas: (41,) categories that hold the center, INTERSECTION among those asked for.
    """
    away = 0
    for k in range(STATES):
        if (center_areas[k] & INTERSECTION) != 0:
            continue
        x, y = center(states, k, c)
        away = 0 if is_near_centerline(area, x, y) else away + 1
        if away >= _LONGEST:
            return 0.0
    return 1.0
