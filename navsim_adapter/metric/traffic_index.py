"""Road users and red lights of one scene at 0.1 s steps, laid out for the kernels.

Which of them may touch a footprint is found in `hits.py`; here is what decides it, and where in the map each object is
during a stretch of states, so that most are never asked about.
"""

from __future__ import annotations

import numpy as np

from navsim_adapter.metric.geometry import box_corners, ego_gap, polygon_boxes, quads_meet
from navsim_adapter.metric.jit import inlined, inner
from navsim_adapter.metric.packed import POLYGONS, Packed, pack_polygons, real, whole
from navsim_adapter.scene_cache import ObjectType, Polygons
from navsim_adapter.vehicle import HALF_LENGTH, HALF_WIDTH, STATES

STRETCH, AHEAD = 8, 9  # states looked at together, and how many steps time to collision looks ahead of each
STRETCHES = -(-STATES // STRETCH)
STOPPED_SPEED = 0.05  # m/s, inclusive (metric 6.2)
UNSURE_GAP = 1e-6  # m; closer than this, contact is decided on the exact corners

# Sections of the traffic index, after those of the polygons, which are the lights'.
LIGHT_STEPS = POLYGONS + 1  # (L,) int64, bit k: red at step k
LIGHT_BOXES = LIGHT_STEPS + 1  # (L, 4) x_min, y_min, x_max, y_max
OBJECTS = LIGHT_BOXES + 1  # (M,) int64, the flags below
HALF_SIZES = OBJECTS + 1  # (M, 2) half length, half width
BOXES = HALF_SIZES + 1  # (steps, M, 4) x, y, cosine, sine of the boxes; NaN where absent
SPANS = BOXES + 1  # (STRETCHES, M, 4) x_min, y_min, x_max, y_max of an object's boxes that a stretch may meet

IS_AGENT = np.int64(1)  # vehicle, pedestrian or bicycle
IS_STOPPED = np.int64(2)  # static, or standing at first sight (metric 6.2 (2))
IS_IGNORED = np.int64(4)  # collisions and time to collision leave it out from the start
IS_STILL = np.int64(8)  # the same box at all steps


def build_traffic_index(
    ego: np.ndarray,
    size: np.ndarray,
    pose: np.ndarray,
    kind: np.ndarray,
    velocity: np.ndarray,
    ignored: np.ndarray,
    lights: Polygons,
    light_red: np.ndarray,
) -> Packed:
    """Index the objects and lights around an ego.

    size (M, 2), pose (M, steps, 3), kind (M,), velocity (M, 2), ignored (M,), lights L polygons with light_red
    (L, steps): as in SceneCache.
    """
    box = np.empty((pose.shape[1], pose.shape[0], 4))
    box[..., :2] = pose[..., :2].swapaxes(0, 1)
    box[..., 2], box[..., 3] = np.cos(pose[..., 2]).T, np.sin(pose[..., 2]).T
    half_size = np.ascontiguousarray(size, np.float64) / 2.0
    is_agent = kind <= ObjectType.BICYCLE
    is_stopped = ~is_agent | (np.hypot(velocity[:, 0], velocity[:, 1]) <= STOPPED_SPEED)
    is_still = (box == box[:1]).all(axis=(0, 2))
    flags = is_agent * IS_AGENT + is_stopped * IS_STOPPED + np.asarray(ignored, bool) * IS_IGNORED + is_still * IS_STILL
    vertices = np.asarray(lights.vertices, np.float64).reshape(-1, 2)
    rings, polygons = np.asarray(lights.ring_start), np.asarray(lights.polygon_start)
    return pack_polygons(
        vertices,
        rings,
        polygons,
        [
            _as_bits(light_red),
            polygon_boxes(vertices, rings, polygons),
            flags.astype(np.int64),
            half_size,
            box,
            _spans(box, half_size),
        ],
    )


def _as_bits(flags: np.ndarray) -> np.ndarray:
    return (flags.astype(np.int64) << np.arange(flags.shape[1])).sum(axis=1)


def _spans(box: np.ndarray, half_size: np.ndarray) -> np.ndarray:
    """SPANS of boxes (steps, M, 4); empty (inf to -inf) where an object is absent."""
    reach_x = np.abs(box[..., 2]) * half_size[:, 0] + np.abs(box[..., 3]) * half_size[:, 1]
    reach_y = np.abs(box[..., 3]) * half_size[:, 0] + np.abs(box[..., 2]) * half_size[:, 1]
    sides = np.stack([reach_x - box[..., 0], reach_y - box[..., 1], box[..., 0] + reach_x, box[..., 1] + reach_y], -1)
    sides[np.isnan(sides)] = -np.inf
    starts = range(0, STATES, STRETCH)
    spans = np.stack([sides[first : first + STRETCH + AHEAD].max(axis=0) for first in starts])
    spans[..., :2] *= -1.0
    return spans


@inner
def object_count(traffic) -> int:
    return whole(traffic, OBJECTS + 1) - whole(traffic, OBJECTS)


@inner
def light_count(traffic) -> int:
    return whole(traffic, LIGHT_STEPS + 1) - whole(traffic, LIGHT_STEPS)


@inner
def step_count(traffic) -> int:
    """Steps at which the objects are known; there must be some."""
    return (whole(traffic, BOXES + 1) - whole(traffic, BOXES)) // (4 * object_count(traffic))


@inner
def has_flag(traffic, m, flag) -> bool:
    return (whole(traffic, whole(traffic, OBJECTS) + m) & flag) != 0


@inlined
def gap_to_object(traffic, box, half, x, y, cosine, sine) -> float:
    """`ego_gap` of the footprint centered at (x, y) to an object; NaN where it is absent.

    box, half: positions of the object's box at the step and of its half size.
    """
    dx, dy = real(traffic, box) - x, real(traffic, box + 1) - y
    box_cosine, box_sine = real(traffic, box + 2), real(traffic, box + 3)
    return ego_gap(dx, dy, cosine, sine, box_cosine, box_sine, real(traffic, half), real(traffic, half + 1), UNSURE_GAP)


@inner
def touches_object(traffic, box, half, gap, x, y, cosine, sine, own, other) -> bool:
    """Whether the footprint touches an object that is at most UNSURE_GAP away.

    gap: of `gap_to_object`, whose other arguments these are.  own: (4, 2) scratch.  other: the object's corners, out.
    """
    box_corners(
        real(traffic, box), real(traffic, box + 1), real(traffic, box + 2), real(traffic, box + 3),
        real(traffic, half), real(traffic, half + 1), other,
    )  # fmt: skip
    if gap < -UNSURE_GAP:
        return True
    box_corners(x, y, cosine, sine, HALF_LENGTH, HALF_WIDTH, own)
    return quads_meet(own, other)
