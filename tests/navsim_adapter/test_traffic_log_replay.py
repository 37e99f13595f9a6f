"""Log replay shows the log, without what stands on the ego at the start."""

from __future__ import annotations

import numpy as np

from navsim_adapter.scene_cache import PDMS, ObjectType
from navsim_adapter.traffic.log_replay import log_replay
from tests.navsim_adapter.traffic_scenes import cache_of, standing

TYPES = [ObjectType.VEHICLE, ObjectType.VEHICLE, ObjectType.PEDESTRIAN]


def test_what_overlaps_the_ego_at_the_start_is_never_there() -> None:
    pose = standing((-38.0, 0.0), (0.0, 0.0), (20.0, 3.0))
    pose[0, 1:] += 50.0  # it drives off at once, and is left out all the same
    objects = log_replay(cache_of(["on", "off", "walker"], TYPES, pose, None))
    assert objects.tokens == ("off", "walker")
    np.testing.assert_array_equal(objects.pose, pose[1:, :41])


def test_touching_counts_as_overlap() -> None:
    nose = -40.0 + 1.461 + 2.588
    pose = standing((nose + 2.0, 0.0), (nose + 2.0 + 1e-6, 0.0), (0.0, 9.0))
    assert log_replay(cache_of(["a", "b", "c"], TYPES, pose, None)).tokens == ("b", "c")


def test_an_object_absent_at_the_start_stays() -> None:
    pose = standing((-38.0, 0.0), (0.0, 0.0), (20.0, 3.0))
    pose[0, 0] = np.nan
    assert log_replay(cache_of(["a", "b", "c"], TYPES, pose, None)).tokens == ("a", "b", "c")


def test_rows_of_the_other_metric_are_not_seen() -> None:
    cache = cache_of(["a", "b", "c"], TYPES, standing((0.0, 0.0), (9.0, 0.0), (20.0, 3.0)), None)
    cache.object_versions[1] = PDMS
    assert log_replay(cache).tokens == ("a", "c")
