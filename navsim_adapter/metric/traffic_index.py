"""Road users and red lights of one scene at 0.1 s steps, made quick to ask: what is near the ego at step k.

A coarse grid; each cell lists the objects whose box comes near enough to matter to a footprint centered in the cell,
with the steps at which it does as bits of one integer, and has the steps of them all. A parked car is one entry per
cell, whatever the number of steps. Off the grid every object is a candidate.
"""

from __future__ import annotations

import numpy as np

from navsim_adapter.metric.geometry import box_corners, ego_gap, quads_meet
from navsim_adapter.metric.jit import entry, inlined, inner
from navsim_adapter.metric.packed import POLYGONS, Packed, pack_polygons, real, whole
from navsim_adapter.scene_cache import ObjectType, Polygons
from navsim_adapter.vehicle import HALF_LENGTH, HALF_WIDTH, RADIUS

TRAFFIC_CELL = 2.0  # m
_TOGETHER = 4  # steps whose boxes are entered into the grid as one
SHAPE_NUMBERS = 6  # of a shape that enters the grid: x, y, cosine, sine, half length, half width
STOPPED_SPEED = 0.05  # m/s, inclusive (metric 6.2)
_NEAR = RADIUS + TRAFFIC_CELL * 0.7072  # from a cell's center: the footprint's circle may touch
UNSURE_GAP = 1e-6  # m; closer than this, contact is decided on the exact corners

# Sections of the traffic index, after those of the polygons, which are the lights'.
LIGHT_STEPS = POLYGONS + 1  # (L,) int64, bit k: red at step k
OBJECTS = LIGHT_STEPS + 1  # (M,) int64, the flags below
HALF_SIZES = OBJECTS + 1  # (M, 2) half length, half width
BOXES = HALF_SIZES + 1  # (steps, M, 4) x, y, cosine, sine of the boxes; NaN where absent
ORIGIN = BOXES + 1  # (2,) lower corner of the grid
SHAPE = ORIGIN + 1  # (2,) int64 columns, rows
CELLS = SHAPE + 1  # (cells + 1, 2) int64 first entry of a cell, bit k: some entry's at step k
ENTRIES = CELLS + 1  # (E, 2) int64 object (lights after the objects), bit k: near the cell at step k

IS_AGENT = np.int64(1)  # vehicle, pedestrian or bicycle
IS_STOPPED = np.int64(2)  # static, or standing at first sight (metric 6.2 (2))
IS_IGNORED = np.int64(4)  # collisions and time to collision leave it out from the start


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
    """Index the objects and lights around an ego that starts at `ego` (11,).

    size (M, 2), pose (M, steps, 3), kind (M,), velocity (M, 2), ignored (M,), lights L polygons with light_red
    (L, steps): as in SceneCache.
    """
    reach = 40.0 + 4.5 * min(abs(float(ego[3])), 25.0)
    x_min, y_min = float(ego[0]) - reach, float(ego[1]) - reach
    columns = rows = int(np.ceil(2 * reach / TRAFFIC_CELL))
    box = np.empty((pose.shape[1], pose.shape[0], 4))
    box[..., :2] = pose[..., :2].swapaxes(0, 1)
    box[..., 2], box[..., 3] = np.cos(pose[..., 2]).T, np.sin(pose[..., 2]).T
    half_size = np.ascontiguousarray(size, np.float64) / 2.0
    is_agent = kind <= ObjectType.BICYCLE
    is_stopped = ~is_agent | (np.hypot(velocity[:, 0], velocity[:, 1]) <= STOPPED_SPEED)
    flags = is_agent * IS_AGENT + is_stopped * IS_STOPPED + np.asarray(ignored, bool) * IS_IGNORED
    light_steps = _as_bits(light_red)
    vertices = np.asarray(lights.vertices, np.float64).reshape(-1, 2)
    shapes = [_light_shapes(lights, light, np.array([x_min, y_min])) for light in range(len(light_steps))]
    light = np.repeat(np.arange(len(shapes)), [len(shape) for shape in shapes])
    light_shape = np.concatenate([np.empty((0, SHAPE_NUMBERS)), *shapes])
    cells, entries = index_traffic(x_min, y_min, columns, rows, box, half_size, light, light_shape, light_steps)
    return pack_polygons(
        vertices,
        np.asarray(lights.ring_start),
        np.asarray(lights.polygon_start),
        [
            light_steps,
            flags.astype(np.int64),
            half_size,
            box,
            np.array([x_min, y_min]),
            np.array([columns, rows], np.int64),
            cells,
            entries,
        ],
    )


def _as_bits(flags: np.ndarray) -> np.ndarray:
    return (flags.astype(np.int64) << np.arange(flags.shape[1])).sum(axis=1)


def _light_shapes(lights: Polygons, light: int, corner: np.ndarray) -> np.ndarray:
    """Shapes (S, 6) that together reach as far as a light's polygon: its edges, and the cell centers inside it."""
    rings = range(int(lights.polygon_start[light]), int(lights.polygon_start[light + 1]))
    lines = [np.asarray(lights.vertices[lights.ring_start[ring] : lights.ring_start[ring + 1]]) for ring in rings]
    starts, ends = np.concatenate([line[:-1] for line in lines]), np.concatenate([line[1:] for line in lines])
    middle, across = (starts + ends) / 2, ends - starts
    angle = np.arctan2(across[:, 1], across[:, 0])
    edges = np.column_stack([middle, np.cos(angle), np.sin(angle), np.hypot(*across.T) / 2, np.zeros(len(middle))])
    low, high = np.floor((np.stack([starts.min(axis=0), starts.max(axis=0)]) - corner) / TRAFFIC_CELL)
    columns, rows = np.meshgrid(np.arange(low[0], high[0] + 1), np.arange(low[1], high[1] + 1))
    x, y = ((np.stack([columns.ravel(), rows.ravel()]) + 0.5) * TRAFFIC_CELL + corner[:, None])[:, :, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = starts[:, 0] + (y - starts[:, 1]) / across[:, 1] * across[:, 0]
    is_inside = (((starts[:, 1] > y) != (ends[:, 1] > y)) & (crossing > x)).sum(axis=1) % 2 == 1
    inside = np.column_stack([x[is_inside, 0], y[is_inside, 0]])
    points = np.zeros((len(inside), 6))
    points[:, :2], points[:, 2] = inside, 1.0
    return np.concatenate([edges, points])


def index_traffic(
    x_min: float,
    y_min: float,
    columns: int,
    rows: int,
    box: np.ndarray,
    half_size: np.ndarray,
    light: np.ndarray,
    light_shape: np.ndarray,
    light_steps: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The grid's sections of the traffic index: cells (columns * rows + 1, 2), entries (E, 2).

    box (steps, M, 4), half_size (M, 2), light_steps (L,): as in the index.  light (S,), light_shape (S, 6): shapes
    that together cover the lights, in order.
    """
    cells, room = np.empty((columns * rows + 1, 2), np.int64), 4096
    while True:
        found, entries = np.empty((room, 3), np.int64), np.empty((room, 2), np.int64)
        count = fill_traffic(
            x_min, y_min, columns, rows, box, half_size, light, light_shape, light_steps, found, cells, entries
        )
        if count >= 0:
            return cells, entries[:count].copy()
        room *= 2


@entry("i8(f8, f8, i8, i8, f8[:,:,::1], f8[:,::1], i8[::1], f8[:,::1], i8[::1], i8[:,::1], i8[:,::1], i8[:,::1])")
def fill_traffic(x_min, y_min, columns, rows, box, half_size, light, light_shape, light_steps, found, cells, entries):
    """Write the sections of `index_traffic`; returns the number of entries, -1 where they have too little room.

    found: (R, 3) scratch: cell, object, steps.
    """
    who, what, when = _shapes(box, half_size, light, light_shape, light_steps)
    count = columns * rows
    last = np.full(count, -1, np.int64)  # the cell's latest entry
    size = 0
    for i in range(len(who)):
        x, y, cosine, sine = what[i, 0] - x_min, what[i, 1] - y_min, what[i, 2], what[i, 3]
        long, wide = what[i, 4] + _NEAR, what[i, 5] + _NEAR
        reach_x, reach_y = abs(cosine) * long + abs(sine) * wide, abs(sine) * long + abs(cosine) * wide
        low_row, high_row = _cell_span(y - reach_y, y + reach_y, rows)
        low_column, high_column = _cell_span(x - reach_x, x + reach_x, columns)
        for row in range(low_row, high_row + 1):
            for column in range(low_column, high_column + 1):
                dx, dy = (column + 0.5) * TRAFFIC_CELL - x, (row + 0.5) * TRAFFIC_CELL - y
                if abs(dx * cosine + dy * sine) > long or abs(dy * cosine - dx * sine) > wide:
                    continue
                cell = row * columns + column
                if last[cell] < 0 or found[last[cell], 1] != who[i]:
                    if size == len(found):
                        return -1
                    found[size, 0], found[size, 1], found[size, 2] = cell, who[i], 0
                    last[cell] = size
                    size += 1
                found[last[cell], 2] |= when[i]
    _sort_by_cell(found[:size], count, cells, entries)
    return size


@inner
def _shapes(box, half_size, light, light_shape, light_steps):
    """Object (lights after the objects), shape and step bits of everything that enters the grid, by object."""
    steps, objects = box.shape[0], box.shape[1]
    most = objects * ((steps + _TOGETHER - 1) // _TOGETHER) + len(light)
    who, when, what = np.empty(most, np.int64), np.empty(most, np.int64), np.empty((most, SHAPE_NUMBERS))
    count = 0
    for m in range(objects):
        for first in range(0, steps, _TOGETHER):
            bits = _cover(box, half_size, m, first, what[count])
            if bits != 0:
                who[count], when[count] = m, bits
                count += 1
    for i in range(len(light)):
        who[count], when[count] = objects + light[i], light_steps[light[i]]
        for number in range(SHAPE_NUMBERS):
            what[count, number] = light_shape[i, number]
        count += 1
    return who[:count], what[:count], when[:count]


@inner
def _cover(box, half_size, m, first, shape) -> int:
    """A shape over an object's boxes of _TOGETHER steps, so that a car that moves a little is not entered each time.

    shape: (6,) out.  Returns the steps as bits, 0 if the object is absent at all of them.
    """
    bits, along, across, turn = 0, 0.0, 0.0, 0.0
    for k in range(first, min(first + _TOGETHER, box.shape[0])):
        x, y, cosine, sine = box[k, m, 0], box[k, m, 1], box[k, m, 2], box[k, m, 3]
        if np.isnan(x):
            continue
        if bits == 0:
            shape[0], shape[1], shape[2], shape[3] = x, y, cosine, sine
        bits |= 1 << k
        dx, dy = x - shape[0], y - shape[1]
        along = max(along, abs(dx * shape[2] + dy * shape[3]))
        across = max(across, abs(dy * shape[2] - dx * shape[3]))
        is_ahead = cosine * shape[2] + sine * shape[3] > 0.0
        turn = max(turn, abs(sine * shape[2] - cosine * shape[3]) if is_ahead else 1.0)
    swing = turn * (half_size[m, 0] + half_size[m, 1])
    shape[4], shape[5] = half_size[m, 0] + along + swing, half_size[m, 1] + across + swing
    return bits


@inner
def _cell_span(low, high, count):
    """First and last cell that [low, high] touches; empty (first > last) off the grid and for NaN."""
    if not (high >= 0.0 and low <= count * TRAFFIC_CELL):
        return 0, -1
    return int(max(low, 0.0) / TRAFFIC_CELL), min(int(min(high / TRAFFIC_CELL, float(count))), count - 1)


@inner
def _sort_by_cell(found, count, cells, entries):
    cells[:] = 0
    for at in range(len(found)):
        cells[found[at, 0], 0] += 1
        cells[found[at, 0], 1] |= found[at, 2]
    for cell in range(count):
        cells[cell + 1, 0] += cells[cell, 0]  # where the cell's entries end
    for at in range(len(found) - 1, -1, -1):
        cell = found[at, 0]
        cells[cell, 0] -= 1
        entries[cells[cell, 0], 0], entries[cells[cell, 0], 1] = found[at, 1], found[at, 2]
    cells[count, 0] = len(found)


@inner
def object_count(traffic) -> int:
    return whole(traffic, OBJECTS + 1) - whole(traffic, OBJECTS)


@inner
def light_count(traffic) -> int:
    return whole(traffic, LIGHT_STEPS + 1) - whole(traffic, LIGHT_STEPS)


@inner
def has_flag(traffic, m, flag) -> bool:
    return (whole(traffic, whole(traffic, OBJECTS) + m) & flag) != 0


@inner
def grid_of(traffic) -> tuple[float, float, int, int, int, int]:
    """What `entries_near` asks for again and again: lower corner, columns, rows, positions of cells and entries."""
    origin, shape = whole(traffic, ORIGIN), whole(traffic, SHAPE)
    x_min, y_min, columns, rows = (
        real(traffic, origin),
        real(traffic, origin + 1),
        whole(traffic, shape),
        whole(traffic, shape + 1),
    )
    return x_min, y_min, columns, rows, whole(traffic, CELLS), whole(traffic, ENTRIES)


@inlined
def entries_near(traffic, grid, k, x, y) -> tuple[int, int]:
    """Positions in `wholes` of the first and past the last entry near a footprint centered at (x, y).

    None (0, 0) if none of them is near at step k; off the grid everything is: (-1, number of objects and lights).
    """
    x_min, y_min, columns, rows, cells, entries = grid
    column, row = (x - x_min) / TRAFFIC_CELL, (y - y_min) / TRAFFIC_CELL
    if 0.0 <= column < columns and 0.0 <= row < rows:
        cell = cells + 2 * (int(row) * columns + int(column))
        if (whole(traffic, cell + 1) >> k) & 1 == 0:
            return 0, 0
        return entries + 2 * whole(traffic, cell), entries + 2 * whole(traffic, cell + 2)
    return -1, object_count(traffic) + light_count(traffic)


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
