"""When a plan has poses, and the one rule by which it gets them at other times.

The rule is the metric's own (metric 5.1): straight lines between neighbouring poses, the first of which starts at the
origin now, and headings the shorter way round. A pose that is there at a wanted time is taken as it is. Nothing is
extrapolated. The metric reads a plan every 0.1 s up to 4 s (`SIMULATED`), so a plan brought to those times scores as
it did, while 8 poses at 0.5 s lose whatever a denser plan does between them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.vehicle import INTERVAL, LONGEST_INTERVAL, SHORTEST_INTERVAL, STEPS

_SAME_TIME = 1e-6  # of an interval: times that differ by less are one


@dataclass(frozen=True)
class Sampling:
    """`horizon` poses, `interval` seconds apart, the first `interval` from now. InputError for what cannot be."""

    horizon: int = 8
    interval: float = 0.5

    def __post_init__(self) -> None:
        if self.horizon < 1 or not SHORTEST_INTERVAL <= self.interval <= LONGEST_INTERVAL:
            raise InputError(
                f"a plan of {self.horizon} poses every {self.interval} s: give at least one, and seconds from "
                f"{SHORTEST_INTERVAL:g} to {LONGEST_INTERVAL:g}"
            )

    def __str__(self) -> str:
        return f"{self.horizon} poses every {self.interval:g} s"

    @property
    def reach(self) -> float:
        """Seconds from now to the last pose."""
        return self.horizon * self.interval

    def lasts(self, seconds: float) -> bool:
        """Whether its last pose is at `seconds` from now, or later."""
        return seconds <= self.reach + _SAME_TIME * self.interval

    def within(self, seconds: float) -> Sampling:
        """Its first poses, as few as last `seconds`; all where there are no more."""
        return Sampling(min(self.horizon, math.ceil(seconds / self.interval - _SAME_TIME)), self.interval)


SIMULATED = Sampling(STEPS, INTERVAL)


def unlike(found: Sampling, own: Sampling) -> tuple[str, str]:
    """Two samplings in the words that tell them from each other: "6 poses", "8"."""
    if found.interval == own.interval:
        return f"{found.horizon} poses", f"{own.horizon}"
    return str(found), str(own)


def resampled(poses: np.ndarray, interval: float, wanted: Sampling) -> np.ndarray:
    """Poses (..., T, 3) x, y, heading every `interval` seconds, without t = 0, at `wanted` times: (..., horizon, 3).

    Raises InputError where they end before `wanted` does.
    """
    poses = np.asarray(poses)
    recorded = Sampling(poses.shape[-2], interval)
    if not recorded.lasts(wanted.reach):
        raise InputError(
            f"{recorded} end {recorded.reach:g} s from now, {wanted} at {wanted.reach:g} s; nothing is extrapolated"
        )
    places = np.arange(1, wanted.horizon + 1) * (wanted.interval / interval)
    nearest = np.rint(places).astype(np.int64)
    is_there = np.abs(places - nearest) <= _SAME_TIME
    found = np.take(poses, np.clip(nearest - 1, 0, None), axis=-2)
    if is_there.all():
        return found
    return np.where(is_there[:, None], found, _between(poses, places))


def _between(poses: np.ndarray, places: np.ndarray) -> np.ndarray:
    """places: (horizon,) in intervals from now, where the origin is."""
    path = np.concatenate([np.zeros_like(poses[..., :1, :]), poses], axis=-2)
    path = np.concatenate([path[..., :2], np.unwrap(path[..., 2:], axis=-2)], axis=-1)
    before = np.clip(places.astype(np.int64), 0, poses.shape[-2] - 1)
    start, end = (np.take(path, before + step, axis=-2) for step in (0, 1))
    found = start + (places - before)[:, None] * (end - start)
    found[..., 2] = np.mod(found[..., 2] + np.pi, 2 * np.pi) - np.pi
    return found
