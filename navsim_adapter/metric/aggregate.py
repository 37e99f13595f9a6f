"""From sub-scores to progress and score (metric 6.6, 6.13, 7.1): the one place that knows the weights.

Plain Python; the engine compiles these rules for itself.
"""

from __future__ import annotations

from math import isnan

_LEAST_PROGRESS = 5.0  # m, strict: below it nobody is measured against anybody


def pdms_progress(raw: float, product: float, best: float) -> float:
    """v1.1: product is the candidate's no-collision x drivable-area; best the largest raw x product of the batch."""
    if best > _LEAST_PROGRESS:
        return raw * product / best
    return 1.0 if product > 0.0 else 0.0


def epdms_progress(raw: float, best: float) -> float:
    """v2.2: the candidate's own progress is not masked by its product, only the best of the batch is."""
    if best > _LEAST_PROGRESS:
        return min(max(raw / best, 0.0), 1.0)
    return 1.0


def pdms(no_collision: float, drivable: float, progress: float, ttc: float, comfort: float) -> float:
    """v1.1; driving direction compliance has weight 0."""
    return no_collision * drivable * ((5.0 * progress + 5.0 * ttc + 2.0 * comfort) / 12.0)


def epdms(
    no_collision: float,
    drivable: float,
    direction: float,
    lights: float,
    progress: float,
    ttc: float,
    lane_keeping: float,
    history_comfort: float,
    two_frame_comfort: float,
) -> float:
    """v2.2; a NaN two-frame comfort (no earlier frame) leaves the mean with its weight."""
    weighted, weight = 5.0 * progress + 5.0 * ttc + 2.0 * lane_keeping + 2.0 * history_comfort, 14.0
    if not isnan(two_frame_comfort):
        weighted += 2.0 * two_frame_comfort
        weight += 2.0
    return no_collision * drivable * direction * lights * (weighted / weight)


def human_filtered(own: float, human: float) -> float:
    """The human filter: the candidate's value, or 1 where the human's is 0 (metric 6.13)."""
    return 1.0 if human == 0.0 else own
