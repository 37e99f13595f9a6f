"""Intervals respect that scenes of one log are not independent, and claim nothing where logs are few."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t, ttest_1samp

from navsim_adapter.foundation.statistics import LogIntervals, certain_sign, t_quantile, verdict

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def table():
    """benchmarks/interval_coverage.py as a module."""
    spec = importlib.util.spec_from_file_location("coverage_table", BENCHMARKS / "interval_coverage.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("logs", "least", "most"), [(2, 1.0, 1.0), (3, 0.9, 1.0), (5, 0.9, 1.0), (10, 0.93, 0.97)])
@pytest.mark.parametrize("noise", ["difference, Gaussian", "difference, 10 % +100, 20 % -50"])
def test_coverage_on_pure_noise(table, noise, logs, least, most):
    """Logs of 1 to 20 scenes that go alike; binomial slack of two standard errors for 300 trials."""
    held, none = table.coverage(table.NOISE[noise], logs, (1, 20), 0.3, 300, seed=3)
    slack = 2 * (0.95 * 0.05 / 300) ** 0.5
    assert least - slack <= held <= most + slack
    assert (none == 1.0) == (logs < 3)


def test_one_scene_a_log_is_the_t_interval():
    values = np.random.default_rng(0).exponential(size=9)
    own = LogIntervals([str(i) for i in range(9)]).interval(values)
    low, high = ttest_1samp(values, 0).confidence_interval(0.95)
    assert own == pytest.approx((low, high), rel=1e-6)


@pytest.mark.parametrize("freedom", [1, 1.5, 4, 9.3, 47, 2000])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_quantiles_are_students(freedom, level):
    assert t_quantile(freedom, level) == pytest.approx(t.ppf((1 + level) / 2, freedom), rel=1e-4)


def test_logs_make_wider_intervals_than_scenes_would():
    rng = np.random.default_rng(1)
    logs = np.repeat(np.arange(20), 10)
    values = rng.normal(size=20)[logs]
    by_log = LogIntervals(logs.astype(str)).interval(values)
    by_scene = LogIntervals([str(i) for i in range(200)]).interval(values)
    assert by_log[1] - by_log[0] > 2 * (by_scene[1] - by_scene[0])


def test_one_long_log_among_short_ones_counts_for_few():
    """Three short logs and one that is most of the split: hardly more than one comparison."""
    values = np.array([0.1, 0.2, 0.15, *np.full(30, 0.12)])
    even = LogIntervals(["a", "b", "c", *["d", "e", "f"] * 10]).interval(values)
    uneven = LogIntervals(["a", "b", "c", *["d"] * 30]).interval(values)
    assert uneven[1] - uneven[0] > 2 * (even[1] - even[0])


@pytest.mark.parametrize("logs", [["a"] * 4, ["a", "a", "b", "b"]])
def test_one_or_two_logs_tell_nothing(logs):
    interval = LogIntervals(logs).interval(np.array([2.2, 2.3, 2.2, 2.25]))
    assert interval is None
    assert certain_sign(interval) == 0
    assert verdict(interval) == "too few logs to tell"


def test_logs_without_spread():
    assert LogIntervals(list("abcde")).interval(np.full(5, 0.7)) is None, "five equal signs are one chance in sixteen"
    assert LogIntervals(list("abcdef")).interval(np.full(6, 0.7)) == pytest.approx((0.7, 0.7))
    assert LogIntervals(list("abc")).interval(np.zeros(3)) == (0.0, 0.0), "no scene differs: nothing is claimed"


def test_verdicts():
    assert verdict((0.1, 0.2)) == "better beyond chance"
    assert verdict((-0.2, -0.1)) == "worse beyond chance"
    assert verdict((-0.2, 0.1)).startswith("not distinguishable")
