"""Lane keeping (metric 6.11, EPDMS): not away from the centerline for two seconds."""

from __future__ import annotations

import numpy as np

from navsim_adapter.metric.areas import center
from navsim_adapter.metric.jit import inner
from navsim_adapter.metric.map_index import is_near_centerline
from navsim_adapter.metric.packed import last_bit
from navsim_adapter.vehicle import STATES

_ALL = (1 << STATES) - 1
_LONGEST = 20  # consecutive states outside intersections


@inner
def lane_keeping(area, states, c, in_crossing, may_be_near) -> float:
    """0 after 20 consecutive states with the center more than 0.5 m off; intersections freeze the count (metric 10.4).

    in_crossing: bits of the states with the center in an intersection.  may_be_near: of those at which it may be near
    the centerline, and has to be looked at. A run is looked at from its end: nearly always the first look ends it.
    """
    counted = ~in_crossing & _ALL
    while True:
        run, last = np.int64(0), counted
        for _ in range(_LONGEST):
            if last == 0:
                return 1.0
            run |= last & -last
            last &= last - 1
        while run != 0:
            k = last_bit(run)
            if (may_be_near >> k) & 1 != 0:
                x, y = center(states, k, c)
                if is_near_centerline(area, x, y):
                    break
            run ^= np.int64(1) << k
        if run == 0:
            return 0.0
        counted &= -(np.int64(2) << last_bit(run))
