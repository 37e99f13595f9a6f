"""Trajectory tables (.npz): what `navsim-adapter score`, `submission` and `render` read.

Rows of one name are one planner.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import write_bytes, write_once
from navsim_adapter.foundation.foreign import check_archive
from navsim_adapter.sampling import Sampling
from navsim_adapter.vehicle import FARTHEST, LONGEST_INTERVAL, SHORTEST_INTERVAL

DEFAULT_INTERVAL = Sampling().interval


@dataclass(frozen=True)
class Trajectories:
    """M planned trajectories: ego-frame poses (T_i, 3) x, y, heading at `interval[i]` seconds, without t = 0."""

    tokens: tuple[str, ...]
    names: tuple[str, ...]
    poses: Sequence[np.ndarray]
    interval: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: Sequence[int]) -> Trajectories:
        """These rows, in this order."""
        return Trajectories(
            tuple(self.tokens[row] for row in rows),
            tuple(self.names[row] for row in rows),
            [self.poses[row] for row in rows],
            self.interval[np.asarray(rows, np.int64)],
        )


def read_trajectories(path: str | Path, *, any_numbers: bool = False) -> Trajectories:
    """Read and check a table: `token`, `name`, `poses` (M, T, 3) as ego-frame x, y (m), heading (rad).

    Mixed samplings: `poses` (sum T, 3) beside `size` and `interval`. Raises InputError for missing arrays, wrong
    shapes, NaN or infinity, and repeated rows.

    any_numbers: leave it to `check_poses` whether poses are finite, as rows of scenes without cache need not be.
    """
    content = _read_arrays(Path(path))
    count = len(content["token"])
    for name in ("name", "size", "interval"):
        if name in content and content[name].shape != (count,):
            raise InputError(f"{path}: {name} has shape {content[name].shape}, token has ({count},); they must agree")
    tokens, names = _texts(path, "token", content["token"]), _texts(path, "name", content["name"])
    poses = _split_poses(path, content, count)
    interval = np.asarray(content.get("interval", np.full(count, DEFAULT_INTERVAL)), np.float64)
    table = Trajectories(tokens, names, poses, interval)
    (check_sampling if any_numbers else check_poses)(table, f"{path}: ")
    _refuse_repeats(path, tokens, names)
    return table


def read_about(path: str | Path) -> dict[str, Any]:
    """What made a trajectory table: its array `about`, JSON, if it has one. Raises InputError if it is no table."""
    content = _read_arrays(Path(path))
    try:
        about = json.loads(str(content.get("about", "{}")), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as problem:
        raise InputError(f"{path}: about is not JSON ({problem}); make the table again") from problem
    return about if isinstance(about, dict) else {}


def check_sampling(table: Trajectories, where: str = "") -> None:
    """Raises InputError naming the first trajectory without poses or with an interval that cannot be simulated.

    where: what to begin the message with.
    """
    if (
        all(map(len, table.poses))
        and ((table.interval >= SHORTEST_INTERVAL) & (table.interval <= LONGEST_INTERVAL)).all()
    ):
        return
    for token, name, own, interval in zip(table.tokens, table.names, table.poses, table.interval):
        if not (len(own) and SHORTEST_INTERVAL <= interval <= LONGEST_INTERVAL):
            raise InputError(
                f"{where}trajectory {name!r} of scene {token}: has {len(own)} poses at interval {interval}; give at "
                f"least one, and seconds from {SHORTEST_INTERVAL:g} to {LONGEST_INTERVAL:g}"
            )


def check_poses(table: Trajectories, where: str = "") -> None:
    """`check_sampling`, and an InputError for poses that are no places: NaN, infinite or absurdly far."""
    check_sampling(table, where)
    if not len(table) or (np.abs(np.concatenate(table.poses)) <= FARTHEST).all():  # False for NaN
        return
    for token, name, own in zip(table.tokens, table.names, table.poses):
        start = f"{where}trajectory {name!r} of scene {token}"
        if not np.isfinite(own).all():
            step = int(np.argmin(np.isfinite(own).all(axis=1)))
            raise InputError(f"{start}: poses contain NaN or infinity at step {step}; repair or leave out this row")
        if np.abs(own).max() > FARTHEST:
            step = int(np.argmax(np.abs(own).max(axis=1) > FARTHEST))
            raise InputError(f"{start}: pose {own[step].tolist()} at step {step} is no place; repair this row")


def _texts(path: str | Path, key: str, values: np.ndarray) -> tuple[str, ...]:
    """As text, whether it was saved as text, bytes or numbers."""
    try:
        return tuple(value.decode() if isinstance(value, bytes) else str(value) for value in values.tolist())
    except UnicodeDecodeError as problem:
        raise InputError(f"{path}: {key} holds bytes that are no text ({problem}); save it as text") from problem


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")  # Python reads NaN and Infinity, and would write them on


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    check_archive(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            objects = [name for name in archive.files if _is_objects(archive, name)]
            content = {name: archive[name] for name in archive.files if name not in objects}
    except Exception as problem:  # numpy and zipfile raise what they like on damaged files
        reason = " ".join(str(problem).split())[:120]
        raise InputError(f"{path}: cannot be read as .npz ({reason}); save it with numpy.savez") from problem
    if objects:
        raise InputError(
            f"{path}: {objects[0]} is saved as Python objects; save it as an array of text or numbers, such as "
            f"{objects[0]}.astype(str)"
        )
    missing = [name for name in ("token", "name", "poses") if name not in content]
    if missing:
        raise InputError(f"{path}: has no array {missing[0]} (found {', '.join(content) or 'none'}); add it")
    if content["token"].ndim != 1 or not len(content["token"]):
        raise InputError(f"{path}: token has shape {content['token'].shape}, expected (M,) with M > 0")
    for name, kinds in (("poses", "fiu"), ("interval", "fiu"), ("size", "iu")):
        if name in content and content[name].dtype.kind not in kinds:
            wanted = "numbers" if "f" in kinds else "whole numbers"
            raise InputError(f"{path}: {name} holds {content[name].dtype}, expected {wanted}; convert the array")
    content["poses"] = content["poses"].astype(np.result_type(content["poses"], np.float32), copy=False)
    return content


def _is_objects(archive: Any, name: str) -> bool:
    """Whether an array is pickled; found in its header."""
    with archive.zip.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return bool(reader(file)[2].hasobject)


def _split_poses(path: str | Path, content: Mapping[str, np.ndarray], count: int) -> list[np.ndarray]:
    poses = content["poses"]
    if "size" in content:
        sizes = content["size"].astype(np.int64)
        if poses.ndim != 2 or poses.shape[1] != 3 or (sizes < 0).any() or sizes.sum() != len(poses):
            raise InputError(f"{path}: poses {poses.shape} must be (sum of size = {sizes.sum()}, 3); check both arrays")
        return np.split(poses, np.cumsum(sizes)[:-1])
    if poses.ndim != 3 or poses.shape[0] != count or poses.shape[2] != 3:
        raise InputError(f"{path}: poses have shape {poses.shape}, expected ({count}, T, 3): x, y, heading")
    return list(poses)


def _refuse_repeats(path: str | Path, tokens: Sequence[str], names: Sequence[str]) -> None:
    seen: set[tuple[str, str]] = set()
    for key in zip(tokens, names):
        if key in seen:
            raise InputError(f"{path}: scene {key[0]} has two trajectories named {key[1]!r}; names must differ")
        seen.add(key)


def write_trajectories(
    path: str | Path,
    name: str,
    plans: Mapping[str, np.ndarray],
    interval: float = DEFAULT_INTERVAL,
    about: Mapping[str, Any] | None = None,
) -> None:
    """A table as `navsim-adapter score --trajectories` reads it: token, name, poses (M, T, 3) at `interval` seconds.

    name: of the planner.  plans: token -> poses (T, 3) x, y (m), heading (rad) in the ego frame, without t = 0.
    about: what made it, JSON; `read_about` reads it. A table that does not say so replaces no other one: InputError.
    """
    if not plans:
        raise InputError(f"{path}: no scene has a {name} trajectory; check the cache")
    stream = io.BytesIO()
    np.savez(
        stream,
        token=np.array(list(plans)),
        name=np.full(len(plans), name),
        poses=np.array(list(plans.values())),
        interval=np.full(len(plans), interval),
        about=json.dumps(dict(about or {})),
    )
    (write_bytes if about else write_once)(path, stream.getvalue())
