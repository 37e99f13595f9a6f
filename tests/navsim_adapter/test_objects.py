"""Boxes every 0.1 s from annotations every 0.5 s; one table for both metrics."""

from __future__ import annotations

import numpy as np
import pytest

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.nuplan.logs import Annotations
from navsim_adapter.nuplan.objects import FrameObjects, frame_objects, red_lights, resample, track_objects
from navsim_adapter.scene_cache import EPDMS, PDMS, ObjectType


def _annotations(boxes: list[list[float]], names: list[str], velocity: list[list[float]]) -> Annotations:
    tracks = tuple(f"t{index}" for index in range(len(names)))
    return Annotations(np.array(boxes), tuple(names), np.array(velocity), tracks)


def test_boxes_move_to_the_global_frame_and_are_sorted_by_type() -> None:
    boxes = [[1, 0, 0, 1, 2, 3, 0], [10, 2, 0, 5, 2, 1, 3.0], [0, 5, 0, 1, 1, 1, 0.5]]
    moved = frame_objects(
        _annotations(boxes, ["barrier", "vehicle", "pedestrian"], [[9, 9], [3, 1], [0, 1]]),
        np.array([100.0, 200.0, np.pi / 2]),
    )
    assert moved.tokens == ("t1", "t2", "t0")
    assert moved.type.tolist() == [ObjectType.VEHICLE, ObjectType.PEDESTRIAN, ObjectType.BARRIER]
    np.testing.assert_allclose(moved.pose[:, :2], [[98, 210], [95, 200], [100, 201]], atol=1e-12)
    np.testing.assert_allclose(moved.pose[:, 2], [3 + np.pi / 2 - 2 * np.pi, 0.5 + np.pi / 2, np.pi / 2], atol=1e-12)
    np.testing.assert_allclose(moved.velocity, [[-1, 3], [-1, 0], [0, 0]], atol=1e-12)  # static: none
    np.testing.assert_array_equal(moved.size, [[5, 2], [1, 1], [1, 2]])


def test_an_unknown_class_is_refused() -> None:
    with pytest.raises(InputError, match="'TANK' is not one of nuPlan's"):
        frame_objects(_annotations([[0] * 7], ["tank"], [[0, 0]]), np.zeros(3))


def _slow(times: np.ndarray, poses: np.ndarray, steps: int) -> np.ndarray:
    """One track with numpy's own interpolation, step by step."""
    out = np.full((steps, 3), np.nan)
    if len(times) == 1:
        return np.tile(poses, (steps, 1))
    heading = np.unwrap(poses[:, 2])
    for step in range(steps):
        t = 0.1 * step
        if times[0] - 1e-9 <= t <= times[-1] + 1e-9:
            x, y, h = (np.interp(t, times, column) for column in (poses[:, 0], poses[:, 1], heading))
            out[step] = x, y, np.arctan2(np.sin(h), np.cos(h))
    return out


def test_resampling_equals_interpolation_of_each_track() -> None:
    rng = np.random.default_rng(0)
    count, frames = 300, 11
    knots = rng.uniform(-3.1, 3.1, (count, frames, 3))
    seen = rng.random((count, frames)) < rng.uniform(0.1, 1, (count, 1))
    seen[~seen.any(axis=1), 4] = True
    knots[~seen] = np.nan
    made = resample(knots)
    assert made.shape == (count, 51, 3)
    for row in range(count):
        expected = _slow(0.5 * np.flatnonzero(seen[row]), knots[row, seen[row]], 51)
        np.testing.assert_allclose(made[row], expected, atol=1e-12)
    np.testing.assert_array_equal(made[:, ::5, :2][seen], knots[..., :2][seen])
    assert resample(np.empty((0, 11, 3))).shape == (0, 51, 3)


def _tracks(sightings: dict[str, list[int]], frames: int = 11):  # type: ignore[no-untyped-def]
    """Tracks seen in the given frames; token letters say the type: v vehicle, p pedestrian, c cone."""
    kinds = {"v": ObjectType.VEHICLE, "p": ObjectType.PEDESTRIAN, "c": ObjectType.TRAFFIC_CONE}
    content = []
    for index in range(frames):
        tokens = sorted((t for t, at in sightings.items() if index in at), key=lambda t: kinds[t[0]])
        pose = np.array([[index, ord(token[1]), 0.1] for token in tokens], float).reshape(-1, 3)
        velocity = np.array([[index, 0.0] for _ in tokens]).reshape(-1, 2)
        types = np.array([kinds[token[0]] for token in tokens], np.int8)
        content.append(FrameObjects(tuple(tokens), types, np.ones((len(tokens), 2)), pose, velocity))
    return track_objects(content)


def _rows(tracks) -> list[tuple[str, int]]:  # type: ignore[no-untyped-def]
    return list(zip(tracks.tokens, tracks.versions.tolist()))


def test_order_is_first_sighting_then_type() -> None:
    tracks = _tracks({"c1": [0, 1], "p1": [0, 1], "v2": [3, 4, 8], "v1": [0, 1]})
    assert tracks.tokens == ("v1", "v2", "p1", "c1")


def test_velocity_is_that_of_the_first_sighting() -> None:
    np.testing.assert_array_equal(_tracks({"v1": [2, 3, 4]}).velocity, [[2, 0]])


BOTH = PDMS | EPDMS


@pytest.mark.parametrize(
    ("seen", "rows"),
    [
        (list(range(11)), [BOTH]),
        ([0, 1, 2], [BOTH]),
        ([0], [BOTH]),
        ([8], [BOTH]),
        ([3, 8, 10], [BOTH]),
        ([9], [PDMS]),
        ([9, 10], [PDMS]),
        ([8, 9], [PDMS, EPDMS]),  # one early sighting: for EPDMS it stands there all the time
        ([2, 10], [PDMS, EPDMS]),
        ([2, 3, 10], [PDMS, EPDMS]),  # the gap after 1.5 s is bridged for PDMS only
    ],
)
def test_each_metric_sees_the_frames_it_reads(seen: list[int], rows: list[int]) -> None:
    tracks = _tracks({"v1": seen})
    assert tracks.versions.tolist() == rows
    made = resample(tracks.knots)
    for bit, frames, steps in ((PDMS, 11, 51), (EPDMS, 9, 41)):
        times = [index for index in seen if index < frames]
        own = made[(tracks.versions & bit) > 0]
        assert len(own) == bool(times)
        if times:
            poses = np.array([[index, ord("1"), 0.1] for index in times], float)
            np.testing.assert_allclose(own[0, :steps], _slow(0.5 * np.array(times), poses, steps), atol=1e-12)


def test_without_ten_future_frames_only_epdms_is_served() -> None:
    assert _rows(_tracks({"v1": [0, 1], "v2": [3]}, frames=9)) == [("v1", EPDMS), ("v2", EPDMS)]


def test_lights_hold_for_half_a_second_and_only_on_the_route() -> None:
    frames = [(("7", index in (1, 2)), ("8", index == 8), ("9", True)) for index in range(11)]
    ids, red = red_lights(frames, {"7": None, "8": None})
    assert ids == ("7", "8")
    assert np.flatnonzero(red[0]).tolist() == list(range(5, 15))
    assert np.flatnonzero(red[1]).tolist() == [40]
    assert red_lights(frames, {})[1].shape == (0, 41)


def test_of_two_objects_with_one_token_the_first_counts() -> None:
    pose = np.array([[1.0, 2.0, 0.0], [3.0, 4.0, 0.0]])
    frames = [FrameObjects((), np.empty(0, np.int8), np.empty((0, 2)), np.empty((0, 3)), np.empty((0, 2)))] * 8
    twice = FrameObjects(("a", "a"), np.zeros(2, np.int8), np.array([[4.0, 2.0], [5.0, 1.0]]), pose, np.zeros((2, 2)))
    tracks = track_objects([*frames, twice])
    assert tracks.size.tolist() == [[4.0, 2.0]]
    np.testing.assert_array_equal(tracks.knots[0, 8], pose[0])
