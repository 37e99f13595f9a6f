"""The command from a route: NAVSIM's rule on curves whose geometry is known."""

from __future__ import annotations

import numpy as np
import pytest

from dipole_vla.serving.route import command
from navsim_adapter.synthetic.layouts import build
from navsim_adapter.synthetic.paths import find_paths


def arc(radius: float, spacing: float, ahead: float = 60.0, behind: float = 0.0) -> np.ndarray:
    """Points of a circle through the origin along x; radius above 0 bends to the left."""
    along = np.arange(-behind, ahead, spacing)
    return np.column_stack([radius * np.sin(along / radius), radius - radius * np.cos(along / radius)])


def aside(radius: float) -> float:
    """Metres to the left after 20 m."""
    return radius - radius * np.cos(20 / radius)


@pytest.mark.parametrize("spacing", [0.5, 2.0, 4.0])
@pytest.mark.parametrize("radius", [12.0, 40.0, 90.0, 110.0, 1000.0, -12.0, -90.0, -110.0])
def test_two_metres_aside_after_twenty_make_a_turn(radius: float, spacing: float) -> None:
    wanted = "left" if aside(radius) >= 2 else "right" if aside(radius) <= -2 else "straight"
    assert command(arc(radius, spacing)) == wanted
    assert command(arc(radius, spacing, behind=30.0)) == wanted
    assert (
        command(arc(radius, spacing) + np.array([0.0, 1.5])) == wanted
    )  # seen from the route, not from an ego beside it


def test_an_ego_askew_on_a_straight_route_goes_straight() -> None:
    turn = 0.3
    line = np.arange(-10, 60, 2.0)[:, None] * np.array([np.cos(turn), np.sin(turn)])
    assert command(line) == "straight"


@pytest.mark.parametrize("route", [np.zeros((0, 2)), np.full((20, 2), np.nan), np.zeros((5, 2)), np.ones((1, 2))])
def test_no_route_is_unknown(route: np.ndarray) -> None:
    assert command(route) == "unknown"


def test_padding_is_no_route() -> None:
    assert command(np.concatenate([arc(20.0, 4.0), np.full((5, 2), np.nan)])) == "left"


@pytest.mark.parametrize(("radius", "wanted"), [(35.0, "left"), (-35.0, "right"), (1e4, "straight")])
def test_a_route_that_begins_forty_metres_ahead_is_joined_to_the_ego(radius: float, wanted: str) -> None:
    """As the challenge sends it: the part from 40 to 80 m."""
    assert command(arc(radius, 4.0, ahead=80.0)[10:]) == wanted


def test_a_short_route_counts_as_far_as_it_goes() -> None:
    assert command(arc(12.0, 2.0, ahead=9.0)) == "left"
    assert command(np.array([(0.0, 0.0), (3.0, 0.0)])) == "straight"


@pytest.mark.parametrize("layout", ["crossing", "roundabout", "curve", "merge"])
def test_the_command_is_the_synthetic_worlds_own(layout: str) -> None:
    """Their logs take it from the route as it was drawn, with its exact headings."""
    seen = set()
    for path in find_paths(build(layout, np.random.default_rng(1), 100, np.zeros(2)))[:12]:
        for s in np.arange(5.0, path.length - 65, 9.0):
            x, y, heading = path.at(s)
            turn = np.array([[np.cos(heading), -np.sin(heading)], [np.sin(heading), np.cos(heading)]])
            ahead = (np.column_stack(path.at(np.arange(s - 4, s + 60, 2.0))[:2]) - (x, y)) @ turn
            left = ((np.array(path.at(s + 20)[:2]) - (x, y)) @ turn)[1]
            if abs(abs(left) - 2) > 0.1:
                wanted = "left" if left > 2 else "right" if left < -2 else "straight"
                assert command(ahead) == wanted
                seen.add(wanted)
    assert len(seen) > 1
