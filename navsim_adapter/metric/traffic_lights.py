"""Traffic light compliance (metric 6.5, EPDMS): the footprint must not touch a red connector's polygon.

No exemption for standing inside it at the start.
"""

from __future__ import annotations

from navsim_adapter.metric.jit import inner
from navsim_adapter.metric.packed import quad_meets_polygon, whole
from navsim_adapter.metric.traffic_index import LIGHT_STEPS


@inner
def runs_red_light(traffic, light, k, corners) -> bool:
    """Whether the footprint touches this light's polygon while it is red at step k."""
    red = whole(traffic, whole(traffic, LIGHT_STEPS) + light)
    return (red >> k) & 1 != 0 and quad_meets_polygon(corners, traffic, light)
