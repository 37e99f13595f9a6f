"""Plans at other times: taken as they are where a pose is there, on the line where none is, never beyond their end."""

from __future__ import annotations

import numpy as np
import pytest

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.sampling import SIMULATED, Sampling, resampled

SAMPLINGS = [Sampling(8, 0.5), Sampling(20, 0.25), Sampling(64, 0.1), Sampling(40, 0.1), Sampling(6, 0.7)]


def curve(sampling: Sampling, speed: float = 6.0) -> np.ndarray:
    """A drive that turns through pi, with headings in [-pi, pi)."""
    times = sampling.interval * np.arange(1, sampling.horizon + 1)
    angle = 0.9 * times
    heading = np.mod(angle + np.pi, 2 * np.pi) - np.pi
    return np.stack([speed / 0.9 * np.sin(angle), speed / 0.9 * (1 - np.cos(angle)), heading], axis=-1)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_the_same_times_give_the_same_bits(sampling: Sampling) -> None:
    poses = np.random.default_rng(0).normal(size=(2, 3, sampling.horizon, 3)).astype(np.float32)
    found = resampled(poses, sampling.interval, sampling)
    assert found.dtype == poses.dtype
    assert np.array_equal(found, poses)


def test_poses_that_are_there_are_taken_as_they_are() -> None:
    dense = curve(Sampling(64, 0.1))
    assert np.array_equal(resampled(dense, 0.1, Sampling(12, 0.5)), dense[4::5])
    assert np.array_equal(resampled(dense, 0.1, SIMULATED), dense[:40])


def test_between_them_lies_the_line_and_the_heading_goes_the_short_way_round() -> None:
    sampling, wanted = Sampling(8, 0.5), Sampling(40, 0.1)
    poses = curve(sampling)
    path = np.concatenate([np.zeros((1, 3)), poses])
    times = 0.5 * np.arange(9)
    columns = [path[:, 0], path[:, 1], np.unwrap(path[:, 2])]
    line = np.stack([np.interp(0.1 * np.arange(1, 41), times, column) for column in columns], axis=1)
    found = resampled(poses, 0.5, wanted)
    np.testing.assert_allclose(found[:, :2], line[:, :2], atol=1e-12)
    np.testing.assert_allclose(np.exp(1j * found[:, 2]), np.exp(1j * line[:, 2]), atol=1e-12)
    assert (np.abs(found[:, 2]) <= np.pi).all()


@pytest.mark.parametrize(("sampling", "wanted"), [(Sampling(8, 0.5), Sampling(41, 0.1)), (Sampling(6), Sampling(8))])
def test_nothing_is_extrapolated(sampling: Sampling, wanted: Sampling) -> None:
    with pytest.raises(InputError, match=f"{sampling.horizon} poses every 0.5 s end {sampling.reach:g} s from now"):
        resampled(curve(sampling), sampling.interval, wanted)


def test_a_part_of_a_sampling_is_as_short_as_lasts() -> None:
    assert Sampling(64, 0.1).within(4.0) == Sampling(40, 0.1)
    assert Sampling(20, 0.25).within(4.0) == Sampling(16, 0.25)
    assert Sampling(6, 0.7).within(4.0) == Sampling(6, 0.7)
    assert Sampling(8, 0.5).within(4.0) == Sampling(8, 0.5)
    assert Sampling(3, 0.1).lasts(0.3)


@pytest.mark.parametrize(("horizon", "interval"), [(0, 0.5), (8, 0.0), (8, -1.0), (8, float("nan")), (8, 1e6)])
def test_what_cannot_be_is_refused(horizon: int, interval: float) -> None:
    with pytest.raises(InputError, match="give at least one, and seconds from"):
        Sampling(horizon, interval)
