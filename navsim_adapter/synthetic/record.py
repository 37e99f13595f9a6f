"""From a seed to a recording worth keeping: worlds are drawn until one makes sense.

Drawn again: worlds in which others hit each other, and those in which a scene would begin off the road or in
contact, so that nobody could drive it well. What the human does later in a scene is no reason.
"""

from __future__ import annotations

import numpy as np
import shapely

from navsim_adapter.synthetic.driver import AXLE_TO_CENTER, LENGTH, WIDTH, Window, draw_driver
from navsim_adapter.synthetic.events import WARM
from navsim_adapter.synthetic.geometry import box_corners
from navsim_adapter.synthetic.setting import Site
from navsim_adapter.synthetic.situations import QUIET, stage
from navsim_adapter.synthetic.world import Object, Recording, World

Array = np.ndarray
ATTEMPTS = 8


def record(seed: list[int], site: Site, frames: int, current: range, lapses: float) -> Recording:
    """Stage and run a world of a site; `seed` decides everything. `current`: frames at which scenes are to begin."""
    duration = (frames - 1) * 0.5
    for attempt in range(ATTEMPTS):
        expected = lapses if attempt < ATTEMPTS - 1 else 0.0
        rng = np.random.default_rng([*seed, attempt])
        setting = stage(rng, site, duration)
        first, last = (WARM + 0.5 * index for index in (current[0], current[-1]))
        window = Window(first, last, setting.event_time, setting.situation not in QUIET)
        recording = World(setting, draw_driver(rng, window, expected)).run(frames)
        if not _others_collide(recording) and not _lost(recording, current):
            break
    return recording


def _polygons(objects: list[Object]) -> Array:
    rows = np.array([(o.x, o.y, o.heading, *o.size[:2]) for o in objects]).reshape(-1, 5)
    return shapely.polygons(box_corners(rows[:, :2], rows[:, 2], rows[:, 3], rows[:, 4]))


def _others_collide(recording: Recording) -> bool:
    """Whether a moving vehicle touches anything but the human in any frame."""
    for _, objects, _ in recording.frames:
        boxes = _polygons(objects)
        pairs = shapely.STRtree(boxes).query(boxes, predicate="intersects").T
        for a, b in pairs:
            speed = max(np.hypot(*objects[a].velocity), np.hypot(*objects[b].velocity))
            if a < b and speed > 0.05 and "vehicle" in (objects[a].name, objects[b].name):
                return True
    return False


def _lost(recording: Recording, current: range) -> bool:
    """Whether some scene begins (or its history lies) off the road or in contact: nobody could drive it well."""
    for ego, objects, _ in recording.frames[: current[-1] + 1]:
        center = np.array([ego.x, ego.y]) + AXLE_TO_CENTER * np.array([np.cos(ego.heading), np.sin(ego.heading)])
        corners = box_corners(center, np.array(ego.heading), np.array(LENGTH), np.array(WIDTH))
        if not shapely.contains_xy(recording.setting.site.drivable, corners[:, 0], corners[:, 1]).all():
            return True
        if objects and shapely.intersects(_polygons(objects), shapely.Polygon(corners)).any():
            return True
    return False
