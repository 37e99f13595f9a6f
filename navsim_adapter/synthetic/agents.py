"""The other road users of a world, as they are before it starts moving."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

Rng = np.random.Generator


@dataclass
class Brake:
    """A vehicle slows down for no visible reason between two times."""

    start: float
    end: float
    rate: float  # m/s^2
    to: float = 0.0  # speed kept until `end`


@dataclass
class Vehicle:
    """A vehicle that follows a path of the world (index), at distance s with speed v."""

    path: int
    s: float
    v: float
    pace: float = 1.0  # factor on the comfortable speed
    headway: float = 1.4
    accel: float = 1.5
    size: tuple[float, float, float] = (4.6, 1.9, 1.55)
    brakes: list[Brake] = field(default_factory=list)


@dataclass
class Walker:
    """A pedestrian or cyclist who goes straight on from `start` at a time, if no car is about to hit them."""

    name: str
    position: np.ndarray
    velocity: np.ndarray
    start: float
    end: float = np.inf
    size: tuple[float, float, float] = (0.7, 0.7, 1.75)
    is_crossing: bool = False


@dataclass
class Thing:
    """Something that stands still: a parked vehicle, cone, barrier, sign, bin."""

    name: str
    position: np.ndarray
    heading: float
    size: tuple[float, float, float]


def vehicle_size(rng: Rng) -> tuple[float, float, float]:
    kind = rng.random()
    if kind < 0.08:  # lorry or bus
        return (rng.uniform(7.5, 11.0), rng.uniform(2.3, 2.5), rng.uniform(2.8, 3.3))
    if kind < 0.3:  # van
        return (rng.uniform(4.9, 5.6), rng.uniform(1.95, 2.1), rng.uniform(1.8, 2.3))
    return (rng.uniform(4.1, 4.9), rng.uniform(1.75, 1.95), rng.uniform(1.4, 1.65))


def cone(position: np.ndarray) -> Thing:
    return Thing("traffic_cone", position, 0.0, (0.4, 0.4, 0.75))


def barrier(position: np.ndarray, heading: float) -> Thing:
    return Thing("barrier", position, heading, (1.8, 0.5, 1.0))


def walker_size(rng: Rng, name: str) -> tuple[float, float, float]:
    if name == "bicycle":
        return (rng.uniform(1.6, 1.9), rng.uniform(0.6, 0.8), rng.uniform(1.6, 1.8))
    return (rng.uniform(0.55, 0.8), rng.uniform(0.55, 0.8), rng.uniform(1.5, 1.9))
