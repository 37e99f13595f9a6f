"""Intervals respect that scenes of one log are not independent."""

import numpy as np

from dipole_vla.evaluation.statistics import LogBootstrap


def test_coverage_of_the_mean_with_correlated_scenes():
    """Log effects dominate: about 95 % of the intervals must hold the true mean 0 (binomial slack for 200 trials)."""
    rng = np.random.default_rng(0)
    logs = np.repeat(np.arange(40), 5)
    inside = 0
    for trial in range(200):
        values = rng.normal(size=40)[logs] + 0.1 * rng.normal(size=200)
        low, high = LogBootstrap(logs.astype(str), seed=trial, resamples=500).interval(values)
        inside += low <= 0 <= high
    assert 178 <= inside <= 199


def test_logs_make_wider_intervals_than_scenes_would():
    rng = np.random.default_rng(1)
    logs = np.repeat(np.arange(20), 10)
    values = rng.normal(size=20)[logs]
    by_log = LogBootstrap(logs.astype(str)).interval(values)
    by_scene = LogBootstrap([str(i) for i in range(200)]).interval(values)
    assert by_log[1] - by_log[0] > 2 * (by_scene[1] - by_scene[0])


def test_a_constant_has_no_interval():
    low, high = LogBootstrap(["a", "a", "b"]).interval(np.full(3, 0.7))
    assert abs(low - 0.7) < 1e-12
    assert abs(high - 0.7) < 1e-12
