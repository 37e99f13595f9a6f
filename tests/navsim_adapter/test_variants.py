"""Variants of trajectories: the same path, faster or slower, drifting to a side."""

from __future__ import annotations

import numpy as np
import pytest

from navsim_adapter.variants import SIDE, SPEED, spread, varied


def drives(count=5, plans=3):
    """Curved drives of many speeds (count, plans, 8, 3)."""
    generator = np.random.default_rng(0)
    speed = generator.uniform(1, 12, (count, plans, 1))
    heading = generator.normal(0, 0.1, (count, plans, 1)) * np.arange(1, 9)
    steps = 0.5 * speed[..., None] * np.stack([np.cos(heading), np.sin(heading)], -1)
    return np.concatenate([steps.cumsum(-2), heading[..., None]], -1)


def test_no_draw_is_the_trajectory_itself():
    np.testing.assert_allclose(varied(drives(), np.zeros(2)), drives(), atol=1e-12)


def test_a_straight_drive_is_scaled_and_led_to_the_left():
    straight = np.stack([np.arange(1, 9) * 4.0, np.zeros(8), np.zeros(8)], -1)
    faster = varied(straight, [1.0, 0.0])
    np.testing.assert_allclose(faster, straight * [1 + SPEED, 1, 1], atol=1e-12)
    left = varied(straight, [0.0, 2.0])
    np.testing.assert_allclose(left[:, 1], 2 * SIDE * (np.arange(1, 9) / 8) ** 2)
    np.testing.assert_allclose(left[:, 2], np.arctan(np.gradient(left[:, 1], left[:, 0], edge_order=2)), atol=1e-3)


def test_slower_stays_on_the_path():
    """Half the distance along a polyline of equal legs is every second pose, and the middle between."""
    path = drives(1, 1)[0, 0]
    slower = varied(path, [-0.5 / SPEED, 0.0])
    np.testing.assert_allclose(slower[1::2], path[:4], atol=1e-12)
    between = (np.vstack([np.zeros(3), path[:3]]) + path[:4]) / 2
    np.testing.assert_allclose(slower[::2], between, atol=1e-12)


def test_a_heading_that_passes_half_a_turn_goes_the_short_way():
    turning = np.array([[4.0, 0.0, 3.1], [8.0, 0.0, -3.1]])
    assert abs(varied(turning, [-0.25 / SPEED, 0.0])[1, 2]) > 3.1


@pytest.mark.parametrize("draw", [(3.0, 3.0), (-9.0, -3.0)])
def test_a_car_that_stands_stays(draw):
    np.testing.assert_array_equal(varied(np.zeros((8, 3)), draw), 0)


def test_every_trajectory_meets_every_draw_by_broadcasting():
    found = varied(drives()[:, :, None], spread(4))
    assert found.shape == (5, 3, 4, 8, 3)
    np.testing.assert_array_equal(found[2, 1, 3], varied(drives()[2, 1], spread(4)[3]))


def test_draws_are_standard_normal_and_decided_by_the_seed():
    many = spread(2000)
    np.testing.assert_allclose([many.mean(0), many.std(0)], [[0, 0], [1, 1]], atol=0.03)
    assert abs(np.corrcoef(many.T)[0, 1]) < 0.03
    np.testing.assert_array_equal(spread(7), spread(40)[:7])
    np.testing.assert_array_equal(spread(5, 3), spread(5, 3))
    assert not np.isclose(spread(5, 3), spread(5)).any()
    assert spread(0).shape == (0, 2)
