"""Which place (one network) lies in which city and serves which split, and where it is on the map.

Training and validation logs drive in three cities, on different places; test logs drive on places that occur
nowhere else, half of them in sg-one-north, which the other splits never visit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from navsim_adapter.synthetic.layouts import LAYOUTS, build
from navsim_adapter.synthetic.roads import Network


@dataclass(frozen=True)
class City:
    """A nuPlan city: map version, projected system, and a point in it around which the places are laid out."""

    name: str
    version: str
    epsg: int
    center: tuple[float, float]


CITIES = {
    city.name: city
    for city in (
        City("us-ma-boston", "9.12.1817", 32619, (331000.0, 4691000.0)),
        City("us-pa-pittsburgh-hazelwood", "9.17.1937", 32617, (587500.0, 4476000.0)),
        City("us-nv-las-vegas-strip", "9.15.1915", 32611, (664500.0, 3998000.0)),
        City("sg-one-north", "9.17.1964", 32648, (365000.0, 143500.0)),
    )
}
SEEN = ("us-ma-boston", "us-pa-pittsburgh-hazelwood", "us-nv-las-vegas-strip")
SPLIT_CITIES = {
    "trainval": SEEN,
    "mini": SEEN,
    "test": ("sg-one-north", SEEN[0], "sg-one-north", SEEN[1], "sg-one-north", SEEN[2]),
}
MOST_PLACES = {"trainval": 48, "mini": 18, "test": 36}
SPACING = 900.0  # metres between neighbouring places: nothing of one is in sight of another
IDS_PER_PLACE = 2000


@dataclass(frozen=True)
class Place:
    """A network to build: `number` is unique over all splits and fixes position, ids and random shape."""

    number: int
    split: str
    city: City
    layout: str

    def network(self, seed: int) -> Network:
        rng = np.random.default_rng([seed, 1, self.number])
        grid = np.array(divmod(self.number, 12)) * SPACING
        origin = np.array(self.city.center) + grid + rng.uniform(-100, 100, 2)
        return build(self.layout, rng, 10_000 + self.number * IDS_PER_PLACE, origin)


def places(split: str, logs: int) -> list[Place]:
    """The places of a split that is to have `logs` logs: log i drives on place i modulo their number."""
    count = min(logs, MOST_PLACES[split])
    layouts, cities = list(LAYOUTS), SPLIT_CITIES[split]
    first = sum(MOST_PLACES[s] for s in list(MOST_PLACES)[: list(MOST_PLACES).index(split)])
    return [
        # The city moves on by one more after each round of layouts, so that every layout visits every city.
        Place(first + i, split, CITIES[cities[(i + i // len(layouts)) % len(cities)]], layouts[i % len(layouts)])
        for i in range(count)
    ]
