"""The road layouts and their random shapes: straight, curve, merge here; junctions in `junctions`.

Every builder draws its sizes from the generator it is given and fills a fresh network around the local origin.
Ways in are long enough to warm up on, ways out long enough for a five-second plan at the speed limit.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from navsim_adapter.synthetic.geometry import headings, offset, sections
from navsim_adapter.synthetic.junctions import crossing, roundabout, t_junction
from navsim_adapter.synthetic.roads import Block, CarPark, Network

Rng = np.random.Generator
SPEED_LIMITS = (8.94, 8.94, 11.11, 11.18, 13.41)  # 20, 25, 30 mph and 40 km/h
MISSING_LIMIT = 0.06  # share of roads whose map gives none


def straight(rng: Rng, net: Network) -> None:
    """Two long pieces of a straight (or barely bent) multi-lane road, with a minor joint between them."""
    bend = rng.uniform(-1, 1) / 900
    line = sections((-190, 0, 0), [(rng.uniform(170, 200), bend), (24, bend), (210, bend)])
    _two_pieces(rng, net, line, int(rng.integers(1, 4)), int(rng.integers(1, 3)), rng.choice(SPEED_LIMITS))


def curve(rng: Rng, net: Network) -> None:
    """One bend or an S, of comfortable to tight radius, between straights."""
    side = rng.choice([-1.0, 1.0])
    radius = rng.uniform(30, 80)
    turn = rng.uniform(0.6, 1.6)
    parts = [(rng.uniform(75, 95), 0.0), *_bend(side / radius, turn)]
    if rng.random() < 0.4:
        parts += [(rng.uniform(5, 25), 0.0), *_bend(-side / rng.uniform(30, 80), rng.uniform(0.5, 1.3))]
    parts += [(rng.uniform(130, 150), 0.0)]
    lanes = int(rng.integers(1, 3))
    _two_pieces(rng, net, sections((-100, 0, 0), parts), lanes, lanes, rng.choice(SPEED_LIMITS[:4]), joint=0.45)


def merge(rng: Rng, net: Network) -> None:
    """A one-way road and a ramp that joins it from the right; the ramp yields."""
    main_lanes = int(rng.integers(1, 3))
    width, limit = rng.uniform(3.7, 4.2), rng.choice(SPEED_LIMITS[2:])
    before = sections((-190, 0, 0), [(190, rng.uniform(-1, 1) / 700)])
    end, heading = before[-1], headings(before)[-1]
    gap = rng.uniform(40, 60)
    start = end + gap * np.array([np.cos(heading), np.sin(heading)])
    after = sections((start[0], start[1], heading), [(rng.uniform(200, 230), rng.uniform(-1, 1) / 700)])
    main = net.add_block(before, [width] * main_lanes, limit)
    out = net.add_block(after, [width] * main_lanes, limit)
    # The ramp ends beside the main road's right edge and slightly turned towards it.
    angle = rng.uniform(0.10, 0.22)
    ramp_end = offset(before, -(main_lanes * width + rng.uniform(3.0, 6.0)))[-1]
    bend = 1 / rng.uniform(45, 90)
    back = sections((ramp_end[0], ramp_end[1], heading + angle + np.pi), [(20, 0.0), *_bend(bend, 0.7), (110, 0.0)])
    ramp = net.add_block(back[::-1], [width], round(0.85 * limit, 2))
    junction = net.add_junction(hull=False)
    net.join(junction, main, out, [(i, i) for i in range(main_lanes)], priority=2)
    net.join(junction, ramp, out, [(0, main_lanes - 1)], priority=0)


LAYOUTS: dict[str, Callable[[Rng, Network], None]] = {
    "straight": straight,
    "curve": curve,
    "crossing": crossing,
    "t_junction": t_junction,
    "merge": merge,
    "roundabout": roundabout,
}


def build(layout: str, rng: Rng, first_id: int, origin: np.ndarray) -> Network:
    """A network of the given layout at `origin`, turned at random; ids count up from `first_id`."""
    net = Network(first_id, layout)
    LAYOUTS[layout](rng, net)
    net.place(origin, rng.uniform(-np.pi, np.pi))
    for block in net.blocks.values():
        if rng.random() < MISSING_LIMIT:
            for lane in block.lanes:
                lane.speed_limit = None
    return net


def _bend(curvature: float, turn: float) -> list[tuple[float, float]]:
    """A turn with eased ends, so that steering need not jump."""
    ease = min(8.0, turn / abs(curvature) / 4)
    body = turn / abs(curvature) - ease
    return [(ease, curvature / 2), (body, curvature), (ease, curvature / 2)]


def _two_pieces(
    rng: Rng, net: Network, line: np.ndarray, right: int, left: int, limit: float, joint: float | None = None
) -> None:
    """A two-way road cut at a joint (fraction of its length; near the middle by default), with walkers' crossing."""
    width = rng.uniform(3.7, 4.3)
    median = rng.choice([0.0, 0.0, rng.uniform(1.5, 3.0)])
    cut = int(len(line) * (joint or rng.uniform(0.42, 0.55)))
    first, second = line[: cut + 1], line[cut + 12 :]
    a_out, a_back = net.add_two_way(first, [width] * right, [width] * left, limit, median)
    b_out, b_back = net.add_two_way(second, [width] * right, [width] * left, limit, median)
    junction = net.add_junction(hull=False, mini=True)
    net.join(junction, a_out, b_out, [(i, i) for i in range(right)], priority=2)
    net.join(junction, b_back, a_back, [(i, i) for i in range(left)], priority=2)
    net.add_crosswalk(a_out, True, a_back if median == 0 else None)
    if rng.random() < 0.7:
        add_car_park(rng, net, b_out)


def add_car_park(rng: Rng, net: Network, block: Block) -> None:
    """A paved strip along part of a roadblock's right edge."""
    edge = block.right
    first = int(rng.uniform(0.15, 0.3) * len(edge))
    last = int(rng.uniform(0.6, 0.8) * len(edge))
    inner = edge[first:last]
    outer = offset(edge, -rng.uniform(5.5, 8.0))[first:last]
    ring = np.concatenate([inner, outer[::-1], inner[:1]])
    net.car_parks.append(CarPark(net.new_id(), ring, float(headings(inner)[0])))
