"""Layouts where roads meet at an angle: crossing with lights, T-junction, roundabout."""

from __future__ import annotations

import numpy as np

from navsim_adapter.synthetic.geometry import sections
from navsim_adapter.synthetic.roads import Block, Junction, Network

Rng = np.random.Generator
Arm = tuple[Block, Block]  # away from the junction, towards it


def crossing(rng: Rng, net: Network) -> None:
    """Four arms under lights; opposite arms share a phase, left turns give way to oncoming traffic."""
    lanes = [int(rng.integers(1, 3)), int(rng.integers(1, 3))]
    width, limit = rng.uniform(3.7, 4.2), float(rng.choice([8.94, 11.11, 11.18]))
    corner = rng.uniform(8.0, 13.0)
    reach = max(lanes) * width + corner
    angles = np.array([0, 0.5, 1, 1.5]) * np.pi + rng.uniform(-0.16, 0.16, 4)
    arms = [_arm(rng, net, angle, reach, lanes[k % 2], width, limit) for k, angle in enumerate(angles)]
    junction = net.add_junction(hull=True, has_signals=True)
    for k, (_, towards) in enumerate(arms):
        group = k % 2
        _turn(net, junction, towards, arms[(k + 2) % 4][0], "straight", 2, group)
        _turn(net, junction, towards, arms[(k + 1) % 4][0], "right", 1, group)
        _turn(net, junction, towards, arms[(k + 3) % 4][0], "left", 0, group)
    for away, towards in arms:
        net.add_crosswalk(towards, True, away)


def t_junction(rng: Rng, net: Network) -> None:
    """A side road that ends on a main road; the side road and left turns give way."""
    lanes, width = int(rng.integers(1, 3)), rng.uniform(3.7, 4.2)
    limit = float(rng.choice([8.94, 11.11, 11.18]))
    reach = lanes * width + rng.uniform(8.0, 13.0)
    angles = np.array([0.0, np.pi, -0.5 * np.pi]) + rng.uniform(-0.12, 0.12, 3)
    main_a, main_b = (_arm(rng, net, angle, reach, lanes, width, limit) for angle in angles[:2])
    side = _arm(rng, net, angles[2], reach, 1, width, limit)
    junction = net.add_junction(hull=True)
    # Arm a points east, b west, the side road south: from the west, right is south.
    _turn(net, junction, main_a[1], main_b[0], "straight", 4)
    _turn(net, junction, main_b[1], main_a[0], "straight", 4)
    _turn(net, junction, main_b[1], side[0], "right", 3)
    _turn(net, junction, main_a[1], side[0], "left", 2)
    _turn(net, junction, side[1], main_a[0], "right", 1)
    _turn(net, junction, side[1], main_b[0], "left", 0)
    if rng.random() < 0.7:
        net.add_crosswalk(side[1], True, side[0])
    if rng.random() < 0.5:
        net.add_crosswalk(main_a[1], True, main_a[0])
    net.ego_turns = ("left", "right", "straight")


def roundabout(rng: Rng, net: Network) -> None:
    """A one-lane ring, driven anticlockwise, with three or four arms that give way to it."""
    count = int(rng.integers(3, 5))
    radius, width = rng.uniform(17, 25), rng.uniform(4.4, 5.0)
    limit = float(rng.choice([8.33, 8.94, 11.11]))
    angles = np.arange(count) * 2 * np.pi / count + rng.uniform(-0.12, 0.12, count)
    half = min(13 / radius, 0.37 * 2 * np.pi / count)  # a junction covers this angle to either side of its arm
    inner = radius - width / 2
    ring: list[Block] = []
    for k in range(count):
        start = angles[k] + half
        sweep = (angles[(k + 1) % count] - half - start) % (2 * np.pi)
        at = (inner * np.cos(start), inner * np.sin(start), start + np.pi / 2)
        ring.append(net.add_block(sections(at, [(sweep * inner, 1 / inner)]), [width], round(0.8 * limit, 2)))
    for k in range(count):
        arm = _arm(rng, net, float(angles[k]), radius + rng.uniform(12.0, 15.0), 1, width, limit)
        junction = net.add_junction(hull=False)
        net.join(junction, ring[k - 1], ring[k], [(0, 0)], priority=3)
        net.join(junction, ring[k - 1], arm[0], [(0, 0)], priority=3)
        net.join(junction, arm[1], ring[k], [(0, 0)], priority=1)
        if rng.random() < 0.5:
            net.add_crosswalk(arm[1], True, arm[0])


def _arm(rng: Rng, net: Network, angle: float, reach: float, lanes: int, width: float, limit: float) -> Arm:
    """A two-way road that starts `reach` metres out along `angle` and runs away from the origin."""
    length = rng.uniform(125, 150)
    bend = rng.uniform(-1, 1) / 350
    start = (reach * np.cos(angle), reach * np.sin(angle), angle)
    line = sections(start, [(20, 0.0), (length - 20, bend)])
    return net.add_two_way(line, [width] * lanes, [width] * lanes, limit)


def _turn(
    net: Network, junction: Junction, source: Block, target: Block, turn: str, priority: int, signal: int | None = None
) -> None:
    """Straight: lane by lane. Right: the rightmost lanes. Left: the leftmost."""
    n, m = len(source.lanes), len(target.lanes)
    pairs = {"straight": [(i, min(i, m - 1)) for i in range(n)], "right": [(n - 1, m - 1)], "left": [(0, 0)]}[turn]
    if turn == "straight" and n > m:
        pairs = pairs[:m]
    net.join(junction, source, target, pairs, priority, signal)
