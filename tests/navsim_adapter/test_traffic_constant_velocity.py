"""Vehicles keep their velocity, the rest replays."""

from __future__ import annotations

import numpy as np
import pytest

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.scene_cache import ObjectType
from navsim_adapter.traffic.constant_velocity import constant_velocity
from tests.navsim_adapter.traffic_scenes import cache_of, placed, standing, vehicles

LANE = np.arange(0.0, 101.0)


def test_vehicles_of_the_current_frame_move_on_and_others_do_not_exist() -> None:
    traffic = placed(vehicles((10.0, 0.0, 5.0), (30.0, 9.0, 0.0)), LANE)
    tokens, types = ["vehicle 0", "vehicle 1", "late"], [ObjectType.VEHICLE] * 3
    cache = cache_of(tokens, types, standing((10.0, 0.0), (30.0, 9.0), (50.0, 0.0)), traffic)
    objects = constant_velocity(cache)
    assert objects.tokens == ("vehicle 0", "vehicle 1")
    np.testing.assert_allclose(objects.pose[0, :, 0], 10.0 + 0.5 * np.arange(41))
    np.testing.assert_allclose(objects.pose[1], standing((30.0, 9.0))[0, :41])


def test_overlaps_with_the_ego_are_kept() -> None:
    traffic = placed(vehicles((-40.0, 0.0, 0.0)), LANE)
    cache = cache_of(["vehicle 0"], [ObjectType.VEHICLE], standing((-40.0, 0.0)), traffic)
    assert constant_velocity(cache).tokens == ("vehicle 0",)


def test_what_is_not_in_the_current_frame_is_absent_at_step_0_only() -> None:
    traffic = placed(vehicles((10.0, 0.0, 5.0)), LANE)
    cache = cache_of(
        ["vehicle 0", "ghost"], [ObjectType.VEHICLE, ObjectType.BARRIER], standing((10.0, 0.0), (60.0, 0.0)), traffic
    )
    objects = constant_velocity(cache)
    assert objects.tokens == ("vehicle 0", "ghost")
    assert np.isnan(objects.pose[1, 0]).all()
    assert not np.isnan(objects.pose[1, 1:]).any()


def test_a_cache_without_traffic_arrays_is_refused() -> None:
    with pytest.raises(InputError, match="no arrays for simulated traffic"):
        constant_velocity(cache_of(["a"], [ObjectType.VEHICLE], standing((0.0, 0.0)), None))
