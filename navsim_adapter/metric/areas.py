"""Where the footprint is at a step (metric 6.1) and drivable area compliance (metric 6.3).

Containment is strict: a corner on a boundary is outside (metric 10.1 (1)). The flags are computed where a rule asks for
them; only the drivable test runs over all steps.
"""

from __future__ import annotations

from navsim_adapter.metric.geometry import box_corners
from navsim_adapter.metric.jit import inner
from navsim_adapter.metric.map_index import DRIVABLE, INTERSECTION, ON_ROUTE, categories_at, lanes_at
from navsim_adapter.metric.packed import first_bit
from navsim_adapter.metric.simulate import COSINE, SINE, X, Y
from navsim_adapter.vehicle import AXLE_TO_CENTER, HALF_LENGTH, HALF_WIDTH, STATES


@inner
def center(states, k, c) -> tuple[float, float]:
    """Geometric center of the ego at step k (metric 5.6)."""
    return (
        states[X, k, c] + AXLE_TO_CENTER * states[COSINE, k, c],
        states[Y, k, c] + AXLE_TO_CENTER * states[SINE, k, c],
    )


@inner
def ego_corners(states, k, c, corners) -> None:
    x, y = center(states, k, c)
    box_corners(x, y, states[COSINE, k, c], states[SINE, k, c], HALF_LENGTH, HALF_WIDTH, corners)


@inner
def is_off_road(area, corners) -> bool:
    """NON_DRIVABLE: at least one corner in no roadblock, intersection or car park."""
    for i in range(4):  # noqa: SIM110 (numba has no generators)
        if categories_at(area, corners[i, 0], corners[i, 1], DRIVABLE) == 0:
            return True
    return False


@inner
def is_over_several_lanes(area, corners, lanes) -> bool:
    """MULTI_LANE: more than one lane holds a corner, and no lane holds all four.  lanes: (5, P) scratch."""
    first, is_several, shared = -1, False, 0
    for i in range(4):
        count = lanes_at(area, corners[i, 0], corners[i, 1], lanes[i])
        for at in range(count):
            is_several |= first >= 0 and lanes[i, at] != first
            first = lanes[i, at]
        kept = 0
        for at in range(count if i == 0 else shared):  # lanes that hold every corner so far, in lanes[4]
            lane = lanes[0, at] if i == 0 else lanes[4, at]
            for other in range(count):
                if lanes[i, other] == lane:
                    lanes[4, kept] = lane
                    kept += 1
                    break
        shared = kept
    return is_several and shared == 0


@inner
def is_off_lane(area, corners, lanes) -> bool:
    """MULTI_LANE or NON_DRIVABLE: where a sideways contact is the ego's fault.  lanes: (5, P) scratch."""
    return is_off_road(area, corners) or is_over_several_lanes(area, corners, lanes)


@inner
def settle_center(area, states, c, in_route, in_crossing, is_open, wanted) -> tuple[int, int]:
    """At which states the center is in the route's lanes, and in an intersection if wanted, as bits.

    in_route, in_crossing, is_open: what is known of it, see `marks.mark_centers`.
    """
    while is_open != 0:
        k = first_bit(is_open)
        is_open &= is_open - 1
        x, y = center(states, k, c)
        found = categories_at(area, x, y, wanted)
        in_route |= (1 if (found & ON_ROUTE) != 0 else 0) << k
        in_crossing |= (1 if (found & INTERSECTION) != 0 else 0) << k
    return in_route, in_crossing


@inner
def drivable_area_compliance(area, states, c, is_open, off_road, corners) -> float:
    """0 if the footprint leaves the drivable area at any of the 41 states, else 1.

    is_open, off_road: bits of the states at which it may, and surely does.
    """
    if off_road != 0:
        return 0.0
    while is_open != 0:
        ego_corners(states, first_bit(is_open), c, corners)
        if is_off_road(area, corners):
            return 0.0
        is_open &= is_open - 1
    return 1.0


@inner
def count_area_steps(area, states, c, corners, lanes) -> tuple[int, int, int]:
    """Diagnostics: states over several lanes, off the drivable area, and with the center off the route's lanes."""
    several, off_road, oncoming = 0, 0, 0
    for k in range(STATES):
        ego_corners(states, k, c, corners)
        several += is_over_several_lanes(area, corners, lanes)
        off_road += is_off_road(area, corners)
        x, y = center(states, k, c)
        oncoming += categories_at(area, x, y, ON_ROUTE) == 0
    return several, off_road, oncoming
