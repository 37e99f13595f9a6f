"""Means and paired differences with intervals that respect logs, and that do not flatter where logs are few.

Scenes of one log overlap in time, so they are not independent: whole logs are the observations. The mean over scenes is
then a ratio; its variance is the bias-reduced one of Bell and McCaffrey ("CR2", Survey Methodology 28(2), 2002) with a
t quantile at Satterthwaite's degrees of freedom. `benchmarks/interval_coverage.py` counts how often it holds the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

FEWEST_LOGS = 3  # with fewer there is no interval: two logs cannot tell a difference from chance
FEWEST_ALIKE = 6  # logs that all show the same gain: n equal signs come by chance in one of 2^(n - 1) cases
WITHIN_LOG = 0.1  # correlation of scenes of one log that the degrees of freedom assume; the variance assumes none
TOO_FEW = "too few logs to tell"

Interval = tuple[float, float]


class LogIntervals:
    """Intervals of means over the scenes of a split, some of which share a log."""

    def __init__(self, log_names: Sequence[str]):
        names, self._log, scenes = np.unique(np.asarray(log_names), return_inverse=True, return_counts=True)
        self.logs = len(names)
        if self.logs >= FEWEST_LOGS:
            share = scenes / scenes.sum()
            self._correction = 1 / (1 - share)
            self._freedom = _degrees_of_freedom(scenes, share, self._correction)

    def interval(self, values: np.ndarray, level: float = 0.95) -> Interval | None:
        """Interval of the mean over scenes; None where the logs are too few to tell. values: (scenes,)."""
        error = self.error(values)
        if error is None:
            return None
        mean = float(np.mean(values, dtype=np.float64))
        if error <= 1e-12 * max(1.0, abs(mean)):  # rounding: the logs are alike
            return (mean, mean) if self.logs >= FEWEST_ALIKE or abs(mean) <= 1e-12 else None
        reach = t_quantile(self._freedom, level) * error
        return mean - reach, mean + reach

    def error(self, values: np.ndarray) -> float | None:
        """Standard error of the mean over scenes; None where the logs are too few to tell. values: (scenes,)."""
        if self.logs < FEWEST_LOGS:
            return None
        values = np.asarray(values, dtype=np.float64)
        sums = np.bincount(self._log, weights=values - float(values.mean()), minlength=self.logs) / len(values)
        return float(np.sqrt(self._correction @ sums**2))


def certain_sign(interval: Sequence[float] | None) -> int:
    """1 or -1 where an interval lies above or below zero, 0 where it holds zero or there is none."""
    return 0 if interval is None else int(interval[0] > 0) - int(interval[1] < 0)


def verdict(interval: Sequence[float] | None) -> str:
    """What may be concluded from the interval of a gain, in words."""
    if interval is None:
        return TOO_FEW
    return ("not distinguishable from chance", "better beyond chance", "worse beyond chance")[certain_sign(interval)]


@lru_cache
def t_quantile(freedom: float, level: float) -> float:
    """t such that `level` of Student's distribution lies within +-t; freedom >= 1.

    With t = sqrt(freedom) tan(a) the density of the angle a is cos(a) ** (freedom - 1).
    """
    angles = np.linspace(0, np.pi / 2, 20001)
    density = np.cos(angles) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return float(np.sqrt(freedom) * np.tan(np.interp(level * below[-1], below, angles)))


def _degrees_of_freedom(scenes: np.ndarray, share: np.ndarray, correction: np.ndarray) -> float:
    """Satterthwaite's for sum(correction * r^2), r = s - share * sum(s), where s are the independent sums of logs."""
    variance = scenes * (1 + WITHIN_LOG * (scenes - 1))
    covariance = np.diag(variance) - np.outer(share, variance) - np.outer(variance, share)
    covariance += variance.sum() * np.outer(share, share)
    covariance *= np.sqrt(np.outer(correction, correction))
    return float(np.trace(covariance) ** 2 / (covariance**2).sum())
