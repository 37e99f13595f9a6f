"""The memory that the kernels work in: one piece, cut into arrays here and nowhere else.

Each function takes an address and returns the arrays of one stage, and where they end.
"""

from __future__ import annotations

from navsim_adapter.metric import comfort, hits, simulate
from navsim_adapter.metric.jit import inner
from navsim_adapter.metric.packed import end_of, reals, singles, smalls, wholes
from navsim_adapter.metric.traffic_index import STRETCH, STRETCHES
from navsim_adapter.vehicle import STATES, STEPS


@inner
def for_knots(address, size, width):
    """Of `simulate.plan`: times, span, lower, offset, knots, slopes; and where they end."""
    times = reals(address, (size + 1,))
    span = reals(end_of(times), (size,))
    lower = wholes(end_of(span), (STATES,))
    offset = reals(end_of(lower), (STATES,))
    knots = reals(end_of(offset), (3, size + 1, width))
    slopes = reals(end_of(knots), (3, size, width))
    return (times, span, lower, offset, knots, slopes), end_of(slopes)


@inner
def for_tracking(address, width):
    """Of `simulate.drive`: reference, speed, excess, curvature; and where they end."""
    reference = reals(address, (simulate.REFERENCE_PLANES, STATES, width))
    speed = reals(end_of(reference), (STEPS, width))
    excess = reals(end_of(speed), (STEPS, width))
    curvature = reals(end_of(excess), (STEPS, width))
    return (reference, speed, excess, curvature), end_of(curvature)


@inner
def for_comfort(address, rows, width):
    """Of `comfort`: series, turns, is_comfortable; and where they end."""
    series = reals(address, (comfort.SCRATCH_SERIES, rows | 1, width))  # planes must not be whole pages apart
    turns = reals(end_of(series), (width,))
    is_comfortable = reals(end_of(turns), (width,))
    return (series, turns, is_comfortable), end_of(is_comfortable)


@inner
def for_survey(address, objects, things, width):
    """Of `hits.survey`: near, near_count, places, bounds, spans, tracks; and where they end."""
    near = wholes(address, (STRETCHES, things))
    near_count = wholes(end_of(near), (STRETCHES,))
    places = singles(end_of(near_count), (hits.PLACES, STATES, width))
    bounds = singles(end_of(places), (STRETCHES, 4, width))
    spans = singles(end_of(bounds), (STRETCHES, 4, things))
    tracks = singles(end_of(spans), (STRETCHES, objects, 4, hits.TRACK))
    return (near, near_count, places, bounds, spans, tracks), end_of(tracks)


@inner
def for_candidate(address, things, polygons):
    """Of the rules: touching, hit, settled, corners, other, moved, lanes, own, cells; and where they end."""
    touching = wholes((address + 7) // 8 * 8, (things,))
    hit = wholes(end_of(touching), (things,))
    settled = wholes(end_of(hit), (things,))
    corners = reals(end_of(settled), (4, 2))
    other = reals(end_of(corners), (4, 2))
    moved = reals(end_of(other), (STATES,))
    lanes = wholes(end_of(moved), (5, polygons))
    own = singles(end_of(lanes), hits.OWN)
    cells = smalls(end_of(own), (2, 4, STRETCH))
    return (touching, hit, settled, corners, other, moved, lanes, own, cells), end_of(cells)
