"""Objects over time: annotations of 2 Hz frames -> boxes every 0.1 s, and red lights (metric 2.5, 4.2, 4.3).

PDMS looks 5 s ahead (frames 0..10), EPDMS 4 s (frames 0..8). That changes little: a track that comes back after 4 s,
or is seen a second time only then. One table serves both, with two rows for a track where they disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.scene_cache import EPDMS, PDMS, ObjectType

if TYPE_CHECKING:
    from navsim_adapter.nuplan.logs import Annotations
    from navsim_adapter.nuplan.unpickle import Record

STEPS_PER_FRAME = 5
PDMS_FRAMES, EPDMS_FRAMES = 11, 9  # frames 0..10 and 0..8
FUTURE_FRAMES = {"pdms": PDMS_FRAMES - 1, "epdms": EPDMS_FRAMES - 1}
EPDMS_STEPS = 41
_LAST_AGENT = ObjectType.BICYCLE


@dataclass(frozen=True)
class FrameObjects:
    """Objects of one frame in the global frame, stably sorted by type (metric 2.5)."""

    tokens: tuple[str, ...]
    type: np.ndarray  # (n,) int8
    size: np.ndarray  # (n, 2) length, width
    pose: np.ndarray  # (n, 3) x, y, heading of the center
    velocity: np.ndarray  # (n, 2) global; 0 for static objects


@dataclass(frozen=True)
class Tracks:
    """Rows of the object table in official order: what was seen in each frame, and what is made of it.

    knots: (M, 11, 3) pose in each frame, NaN where not seen. The other fields are as in `SceneCache`.
    """

    tokens: tuple[str, ...]
    type: np.ndarray
    versions: np.ndarray
    size: np.ndarray
    velocity: np.ndarray
    knots: np.ndarray


def recorded_objects(records: Sequence[Record]) -> FrameObjects:
    """nuPlan's own objects out of a pickle, whose boxes are global already."""
    types = np.array([ObjectType(record._tracked_object_type.args[0]) for record in records], np.int8)
    boxes = [record._box for record in records]
    pose = np.array([[box._center.x, box._center.y, box._center.heading] for box in boxes], np.float64)
    size = np.array([[box._length, box._width] for box in boxes], np.float64)
    order = np.argsort(types, kind="stable")
    return FrameObjects(
        tokens=tuple(str(records[row]._metadata.track_token) for row in order),
        type=types[order],
        size=size.reshape(-1, 2)[order],
        pose=pose.reshape(-1, 3)[order],
        velocity=recorded_velocities(records)[order],
    )


def recorded_velocities(records: Sequence[Record]) -> np.ndarray:
    """(n, 2); 0 for static objects, which have none."""
    moving = [record._tracked_object_type.args[0] <= ObjectType.BICYCLE for record in records]
    found = [(one._velocity._x, one._velocity._y) if moves else (0.0, 0.0) for one, moves in zip(records, moving)]
    return np.array(found, np.float64).reshape(-1, 2)


def frame_objects(annotations: Annotations, ego_pose: np.ndarray) -> FrameObjects:
    """Boxes and velocities of a frame, moved from the ego frame (position and yaw only) to the global frame."""
    try:
        types = np.array([ObjectType[name.upper()] for name in annotations.names], np.int8)
    except KeyError as problem:
        raise InputError(f"objects: class name {problem} is not one of nuPlan's; repair the log") from problem
    # Arithmetic in the file's own precision first, as officially; float32 boxes stay float32 until added to the pose.
    boxes, (x, y, yaw) = annotations.boxes, ego_pose
    cosine, sine = np.cos(yaw), np.sin(yaw)
    turned = boxes[:, :2].astype(np.float64) @ np.array([[cosine, sine], [-sine, cosine]])
    heading = wrap(wrap(boxes[:, 6].astype(np.float64) + yaw))
    velocity = annotations.velocity.astype(np.float64) @ np.array([[cosine, sine], [-sine, cosine]])
    velocity[types > _LAST_AGENT] = 0.0
    order = np.argsort(types, kind="stable")
    return FrameObjects(
        tokens=tuple(annotations.tracks[row] for row in order),
        type=types[order],
        size=boxes[order, 3:5].astype(np.float64),
        pose=np.column_stack([turned[:, 0] + x, turned[:, 1] + y, heading])[order],
        velocity=velocity[order],
    )


def wrap(angle: np.ndarray) -> np.ndarray:
    return np.arctan2(np.sin(angle), np.cos(angle))


def track_objects(frames: Sequence[FrameObjects]) -> Tracks:
    """One row per track, or two where the metrics see it differently. frames: 0 (now) .. 8 at least, 10 at most."""
    rows: dict[str, int] = {}
    firsts: list[tuple[FrameObjects, int]] = []
    for frame in frames:
        for place, token in enumerate(frame.tokens):
            if token not in rows:
                rows[token] = len(rows)
                firsts.append((frame, place))
    knots = np.full((len(rows), PDMS_FRAMES, 3), np.nan)
    for index, frame in enumerate(frames):
        backwards = [rows[token] for token in reversed(frame.tokens)]  # of two with one token the first counts
        knots[backwards, index] = frame.pose[::-1]
    types = np.array([frame.type[place] for frame, place in firsts], np.int8)
    order, versions, is_cut = _versions(types, ~np.isnan(knots[..., 0]), len(frames))
    knots = knots[order]
    knots[is_cut, EPDMS_FRAMES:] = np.nan
    tokens = list(rows)
    return Tracks(
        tokens=tuple(tokens[row] for row in order),
        type=types[order],
        versions=versions,
        size=np.array([firsts[row][0].size[firsts[row][1]] for row in order]).reshape(-1, 2),
        velocity=np.array([firsts[row][0].velocity[firsts[row][1]] for row in order]).reshape(-1, 2),
        knots=knots,
    )


def _versions(types: np.ndarray, seen: np.ndarray, frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows in order (some twice), the metrics each serves, and which of them end with frame 8."""
    early, late = seen[:, :EPDMS_FRAMES], seen[:, EPDMS_FRAMES:]
    order: list[int] = []
    versions: list[int] = []
    for row in np.argsort(types, kind="stable"):
        if frames < PDMS_FRAMES:
            order, versions = [*order, row], [*versions, EPDMS]
        elif not early[row].any():
            order, versions = [*order, row], [*versions, PDMS]
        elif not late[row].any() or (early[row, -1] and early[row].sum() > 1):
            # not seen after 4 s, or nothing of its first 4 s depends on what comes after
            order, versions = [*order, row], [*versions, PDMS | EPDMS]
        else:
            order, versions = [*order, row, row], [*versions, PDMS, EPDMS]
    served = np.array(versions, np.uint8)
    return np.array(order, np.int64), served, served == EPDMS


def resample(knots: np.ndarray) -> np.ndarray:
    """(M, F, 3) poses seen at 2 Hz (NaN: not seen) -> (M, 5 (F - 1) + 1, 3) every 0.1 s, NaN where absent (metric 4.2).

    Linear between sightings, gaps included, headings along the shorter turn; nothing before the first sighting and
    after the last. A track seen in one frame only stands there all the time.
    """
    count, frames, _ = knots.shape
    poses = np.empty((count, STEPS_PER_FRAME * (frames - 1) + 1, 3))
    seen = ~np.isnan(knots[..., 0])
    before = np.maximum.accumulate(np.where(seen, np.arange(frames), -1), axis=1)
    after = np.minimum.accumulate(np.where(seen, np.arange(frames), frames)[:, ::-1], axis=1)[:, ::-1]
    rows = np.arange(count)[:, None]
    unwrapped = knots.copy()
    unwrapped[..., 2] = np.unwrap(knots[rows, np.where(before >= 0, before, after[:, :1] % frames), 2], axis=1)

    low, high = before[:, :-1], after[:, 1:]  # the sightings around the steps 5 f .. 5 f + 4
    start = unwrapped[rows, low]
    slope = (unwrapped[rows, high % frames] - start) / (0.5 * np.maximum(high - low, 1))[..., None]
    slope[(low < 0) | (high == frames)] = np.nan
    steps = np.arange(poses.shape[1] - 1).reshape(-1, STEPS_PER_FRAME)
    since = 0.1 * steps - 0.5 * low[..., None]
    between = start[:, :, None] + slope[:, :, None] * since[..., None]
    poses[:, :-1] = between.reshape(count, poses.shape[1] - 1, 3)
    poses[:, -1] = np.nan
    poses[:, ::STEPS_PER_FRAME][seen] = unwrapped[seen]
    poses[..., 2] = wrap(poses[..., 2])
    once = seen.sum(axis=1) == 1
    poses[once] = knots[once, seen[once].argmax(axis=1)][:, None]
    return poses


def red_lights(
    states: Sequence[tuple[tuple[str, bool], ...]], connectors: Mapping[str, object]
) -> tuple[tuple[str, ...], np.ndarray]:
    """Lights that are red at some step on these route lanes: ids (L,), and (L, 41) red at step k (metric 4.3).

    states: (lane connector id, is red) of frames 0 (now) .. 8; each holds until the next. connectors: keys are lane
    ids of the route as logged.
    """
    red: dict[str, np.ndarray] = {}
    for index, lights in enumerate(states[:EPDMS_FRAMES]):
        for connector, is_red in lights:
            if is_red and connector in connectors:
                steps = red.setdefault(connector, np.zeros(EPDMS_STEPS, bool))
                steps[index * STEPS_PER_FRAME : (index + 1) * STEPS_PER_FRAME] = True
    return tuple(red), np.array(list(red.values()), bool).reshape(-1, EPDMS_STEPS)
