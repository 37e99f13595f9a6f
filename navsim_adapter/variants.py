"""Variants of a planned trajectory: the same path driven faster or slower, and drifting to a side.

A critic can rate them beside the plans they are of, at no cost for the policy that made those.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

SPEED = 0.15  # standard deviation of the factor on the distance driven
SIDE = 0.5  # m, standard deviation of how far to the left the last pose comes to lie
R2 = np.array([0.7548776662466927, 0.5698402909980532])  # 1 / g and 1 / g**2, g**3 = g + 1
SHORT = 5.0  # m: a path shorter than this is drifted from in proportion, so a car that stands stays where it is


def spread(count: int, seed: int = 0) -> np.ndarray:
    """(count, 2) draws for `varied`: standard normal, evenly spread, each followed by its opposite; the first do not
    depend on how many follow.

    They are the R2 sequence (Roberts, 2018) through the normal's quantile function, shifted by a seed other than 0.
    """
    begin = np.random.default_rng(seed).random(2) if seed else np.full(2, 0.5)
    points = (begin + np.arange(1, (count + 1) // 2 + 1)[:, None] * R2) % 1
    draws = np.array([[NormalDist().inv_cdf(value) for value in point] for point in points]).reshape(-1, 1, 2)
    return (draws * [[1], [-1]]).reshape(-1, 2)[:count]


def varied(trajectories: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Variants (..., T, 3) float64 of ego-frame poses (..., T, 3), which begin where the car is, at the origin.

    draws: (..., 2) standard normal, for speed and for side; broadcast against the trajectories. (0, 0) is the
        trajectory itself, but for rounding.
    """
    draws = np.asarray(draws, np.float64)
    shape = np.broadcast_shapes(np.shape(trajectories)[:-2], draws.shape[:-1])
    poses = np.broadcast_to(np.asarray(trajectories, np.float64), (*shape, *np.shape(trajectories)[-2:]))
    draws = np.broadcast_to(draws, (*shape, 2))
    return _drifted(*_paced(poses, np.maximum(1 + SPEED * draws[..., :1], 0)), SIDE * draws[..., 1:])


def _paced(poses: np.ndarray, factor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Poses at `factor` (..., 1) times the distance along the path, straight on beyond its end; and that distance."""
    path = np.concatenate([np.zeros_like(poses[..., :1, :]), poses], axis=-2)
    path[..., 2] = np.unwrap(path[..., 2], axis=-1)
    along = np.pad(np.hypot(*np.moveaxis(np.diff(path[..., :2], axis=-2), -1, 0)).cumsum(-1), _one_before(poses.ndim))
    wanted = factor * along[..., 1:]
    leg = (wanted[..., None] >= along[..., None, 1:-1]).sum(-1)  # of the path, from 0
    start, end = (np.take_along_axis(along, leg + k, axis=-1) for k in (0, 1))
    part = np.clip((wanted - start) / np.maximum(end - start, 1e-9), 0, 1)[..., None]
    first, last = (np.take_along_axis(path, leg[..., None] + k, axis=-2) for k in (0, 1))
    found = first + part * (last - first)
    beyond = np.maximum(wanted - along[..., -1:], 0)
    found[..., 0] += beyond * np.cos(found[..., 2])
    found[..., 1] += beyond * np.sin(found[..., 2])
    return found, wanted


def _drifted(poses: np.ndarray, along: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Moved to the left by `side` (..., 1) metres at the last pose, before it by the square of the way driven, so that
    the path still leaves the origin in its own direction. along: distance at each pose."""
    length = along[..., -1:]
    side = side * np.minimum(length / SHORT, 1)
    done = along / np.maximum(length, 1e-9)
    offset, slope = side * done**2, 2 * side * done / np.maximum(length, 1e-9)
    sideways = np.stack([-np.sin(poses[..., 2]), np.cos(poses[..., 2])], axis=-1)
    return np.concatenate(
        [poses[..., :2] + offset[..., None] * sideways, (poses[..., 2] + np.arctan(slope))[..., None]], -1
    )


def _one_before(dimensions: int) -> list[tuple[int, int]]:
    """Padding of distances (..., T) by the origin's 0."""
    return [(0, 0)] * (dimensions - 2) + [(1, 0)]
