"""What is there besides the event: other traffic, parked cars, people on the walkways, bins."""

from __future__ import annotations

import numpy as np

from navsim_adapter.synthetic import agents
from navsim_adapter.synthetic.agents import Thing, Walker
from navsim_adapter.synthetic.geometry import headings, offset
from navsim_adapter.synthetic.setting import Setting

Array = np.ndarray
Rng = np.random.Generator


def add_traffic(rng: Rng, setting: Setting, count: int) -> None:
    """Up to `count` vehicles anywhere on the roads."""
    for _ in range(count):
        index = int(rng.integers(len(setting.site.paths)))
        path = setting.paths[index]
        setting.try_vehicle(rng, index, rng.uniform(5, path.length - 60), rng.uniform(0.75, 1.05))


def add_scenery(rng: Rng, setting: Setting) -> None:
    """Parked cars on the car parks, people on the walkways, bins beside the road."""
    for park in setting.site.net.car_parks:
        half = (len(park.ring) - 1) // 2
        middle = (park.ring[:half] + park.ring[half : 2 * half][::-1]) / 2
        direction = headings(middle)
        for k in range(3, half - 3, 7):
            if rng.random() < 0.45:
                size = agents.vehicle_size(rng)
                if size[0] < 6:
                    setting.things.append(
                        Thing("vehicle", middle[k] + rng.normal(size=2) * 0.15, float(direction[k]), size)
                    )
    blocks = list(setting.site.net.blocks.values())
    for _ in range(int(rng.integers(2, 8))):
        block = blocks[int(rng.integers(len(blocks)))]
        edge = offset(block.right, -rng.uniform(1.6, 3.2))
        k = int(rng.integers(2, max(len(edge) - 2, 3)))
        if _on_road(setting, edge[min(k, len(edge) - 1)]):
            continue
        k = min(k, len(edge) - 1)
        heading = float(headings(edge)[k])
        if rng.random() < 0.25:
            setting.things.append(Thing("generic_object", edge[k], heading, (0.7, 0.7, 1.1)))
            continue
        speed = rng.choice([0.0, rng.uniform(0.8, 1.5)]) * rng.choice([-1, 1])
        velocity = speed * np.array([np.cos(heading), np.sin(heading)])
        setting.walkers.append(
            Walker("pedestrian", edge[k], velocity, 0.0, np.inf, agents.walker_size(rng, "pedestrian"))
        )


def _on_road(setting: Setting, point: Array) -> bool:
    near = any(np.hypot(*(path.points - point).T).min() < 3.0 for path in setting.site.paths)
    return near or any(np.hypot(*(c.corners.mean(axis=0) - point)) < 6 for c in setting.site.net.crosswalks)
