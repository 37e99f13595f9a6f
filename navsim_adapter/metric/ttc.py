"""Time to collision within bound (metric 6.7): would the ego, going straight on, meet something within a second?

`contacts.py` finds the projected contacts.
"""

from __future__ import annotations

from navsim_adapter.metric.collisions import AHEAD, BEHIND, IF_OFF_LANE, NO, YES
from navsim_adapter.metric.jit import inner

STOPPED_SPEED = 0.005  # m/s, strict: below it nothing is checked
STRIDE, OFFSETS = 3, 4  # the footprint is projected 0, 3, 6 and 9 steps ahead


@inner
def is_dangerous(angle) -> int:
    """Whether a projected contact counts: the object is ahead, or not behind while the ego is off its lane.

    angle: the `bearing` of the object at the projected step from the ego at the current one. Here being inside an
    intersection (rear axle) is as bad as being off the lane. What is not dangerous is ignored from then on.
    """
    if angle < AHEAD:
        return YES
    return NO if angle > BEHIND else IF_OFF_LANE
