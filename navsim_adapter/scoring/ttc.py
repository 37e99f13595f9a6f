"""Time to collision within bound (spec 6.7): would the ego, going straight on, meet something within a second?"""

from __future__ import annotations

from navsim_adapter.scoring.areas import is_off_lane
from navsim_adapter.scoring.collisions import AHEAD, BEHIND, bearing
from navsim_adapter.scoring.jit import kernel
from navsim_adapter.scoring.map_index import INTERSECTION, categories_at
from navsim_adapter.scoring.simulate import X, Y

STOPPED_SPEED = 0.005  # m/s, strict: below it nothing is checked
STRIDE, OFFSETS = 3, 4  # the footprint is projected 0, 3, 6 and 9 steps ahead


@kernel
def is_dangerous(area, states, k, c, corners, object_corners, lanes) -> bool:
    """Whether a projected contact counts: the object is ahead, or not behind while the ego is off its lane.

    object_corners: the object at the projected step; corners: the ego's at step k. Being inside an intersection
    (rear axle) counts as being off the lane. Otherwise the object is ignored from then on.
    """
    angle = bearing(states, k, c, object_corners)
    if angle < AHEAD:
        return True
    if angle > BEHIND:
        return False
    if categories_at(area, states[X, k, c], states[Y, k, c], INTERSECTION) != 0:
        return True
    return is_off_lane(area, corners, lanes)
