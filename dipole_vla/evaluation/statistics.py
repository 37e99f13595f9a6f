"""Means and paired differences with bootstrap intervals that respect logs.

Scenes of one log overlap in time, so they are not independent: whole logs are resampled, not scenes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 4000


class LogBootstrap:
    """Resampling weights over the logs of a split, drawn once so that every row is resampled alike."""

    def __init__(self, log_names: Sequence[str], seed: int = 0, resamples: int = RESAMPLES):
        logs, self._log = np.unique(np.asarray(log_names), return_inverse=True)
        self.logs = len(logs)
        rng = np.random.default_rng(seed)
        self._times = rng.multinomial(self.logs, np.full(self.logs, 1 / self.logs), size=resamples).astype(np.float64)
        self._scenes = np.bincount(self._log, minlength=self.logs).astype(np.float64)

    def interval(self, values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
        """Percentile interval of the mean over scenes. values: (scenes,)."""
        sums = np.bincount(self._log, weights=np.asarray(values, dtype=np.float64), minlength=self.logs)
        means = (self._times @ sums) / (self._times @ self._scenes)
        low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)
