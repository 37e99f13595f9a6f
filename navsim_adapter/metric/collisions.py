"""No at-fault collisions (metric 6.2): who is to blame when the ego's footprint meets an object's.

An object's first contact decides: at fault it lowers the score, otherwise the object is ignored from then on.
`contacts.py` finds the contacts.
"""

from __future__ import annotations

from math import acos, pi, sqrt

from navsim_adapter.metric.geometry import fused, is_flat, quad_centroid, segment_meets_quad
from navsim_adapter.metric.jit import inner
from navsim_adapter.metric.simulate import COSINE, SINE, X, Y
from navsim_adapter.metric.traffic_index import IS_STOPPED, STOPPED_SPEED, has_flag

NO, YES, IF_OFF_LANE = 0, 1, 2  # verdicts; the last hangs on whether the ego is off its lane (`areas.is_off_lane`)
BEHIND = 150.0 * pi / 180.0
AHEAD = 30.0 * pi / 180.0

AGENT_SCORE, STATIC_SCORE = 0.0, 0.5  # what is left after an at-fault contact


@inner
def at_fault(traffic, m, speed, angle, corners, object_corners) -> int:
    """Whether a contact with object m is the ego's fault.

    It is when the object stands (standing at first sight, metric 10.4 (1)), when the ego's front edge meets it, or when
    the contact is lateral while the ego is off its lane; never when the ego stands or is hit from behind. A box without
    length or width is never met by the front edge: GEOS 3.11, which the devkit has, sees no polygon in a line.
    speed: the ego's.  angle: the object's `bearing`.
    """
    if speed <= STOPPED_SPEED:
        return NO
    if has_flag(traffic, m, IS_STOPPED):
        return YES
    if angle > BEHIND:
        return NO
    if not is_flat(object_corners) and segment_meets_quad(
        corners[0, 0], corners[0, 1], corners[3, 0], corners[3, 1], object_corners
    ):
        return YES
    return IF_OFF_LANE


@inner
def bearing(states, k, c, object_corners) -> float:
    """Angle between the ego's heading and the object's centroid seen from the rear axle.

    NaN when rounding takes the cosine beyond 1 or -1, which makes an object dead ahead neither ahead nor behind, one
    dead behind both (metric 10.1 (4)). The official dot products are BLAS's: on processors with AVX-512, where the
    official figures were made, the second product is fused into the sum; on others it may not be.
    """
    x, y = quad_centroid(object_corners)
    dx, dy = x - states[X, k, c], y - states[Y, k, c]
    length = sqrt(fused(dy, dy, dx * dx))
    return acos(fused(states[SINE, k, c], dy / length, states[COSINE, k, c] * (dx / length)))
