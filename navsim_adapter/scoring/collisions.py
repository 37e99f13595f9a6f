"""No at-fault collisions (spec 6.2): who is to blame when the ego's footprint meets an object's.

An object's first contact decides: at fault it lowers the score, otherwise the object is ignored from then on.
`contacts.py` finds the contacts.
"""

from __future__ import annotations

from math import acos, pi, sqrt

from navsim_adapter.scoring.areas import is_off_lane
from navsim_adapter.scoring.geometry import quad_centroid, segment_meets_quad
from navsim_adapter.scoring.jit import kernel
from navsim_adapter.scoring.simulate import COSINE, SINE, X, Y
from navsim_adapter.scoring.traffic_index import IS_STOPPED, STOPPED_SPEED, has_flag

BEHIND = 150.0 * pi / 180.0
AHEAD = 30.0 * pi / 180.0

AGENT_SCORE, STATIC_SCORE = 0.0, 0.5  # what is left after an at-fault contact


@kernel
def is_at_fault(area, traffic, m, states, k, c, speed, corners, object_corners, lanes) -> bool:
    """Whether a contact with object m at step k is the ego's fault.

    It is when the object stands (standing at first sight, 10.4 item 1), when the ego's front edge meets it, or when
    the contact is lateral while the ego is off its lane; never when the ego stands or is hit from behind.
    """
    if speed <= STOPPED_SPEED:
        return False
    if has_flag(traffic, m, IS_STOPPED):
        return True
    if bearing(states, k, c, object_corners) > BEHIND:
        return False
    if segment_meets_quad(corners[0, 0], corners[0, 1], corners[3, 0], corners[3, 1], object_corners):
        return True
    return is_off_lane(area, corners, lanes)


@kernel
def bearing(states, k, c, object_corners) -> float:
    """Angle between the ego's heading and the object's centroid seen from the rear axle.

    NaN when rounding takes the cosine beyond 1, which makes an object dead ahead neither ahead nor behind: the
    official code does so too (10.1 item 4).
    """
    x, y = quad_centroid(object_corners)
    dx, dy = x - states[X, k, c], y - states[Y, k, c]
    length = sqrt(dx * dx + dy * dy)
    return acos(states[COSINE, k, c] * (dx / length) + states[SINE, k, c] * (dy / length))
