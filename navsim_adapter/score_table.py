"""Trajectory tables in (.npz), score tables out (.csv): what `navsim-adapter score` reads and writes.

Rows of one name are one planner. Rows are scored in blocks (scenes x names) of one sampling, so that EPDMS can compare
a planner's plans of neighbouring scenes; the block a row is in changes nothing else.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from navsim_adapter.errors import InputError
from navsim_adapter.files import atomic_path

if TYPE_CHECKING:
    from navsim_adapter.scoring.scorer import Scorer

DEFAULT_INTERVAL = 0.5


@dataclass(frozen=True)
class Trajectories:
    """M planned trajectories: ego-frame poses (T_i, 3) x, y, heading at `interval[i]` seconds, without t = 0."""

    tokens: tuple[str, ...]
    names: tuple[str, ...]
    poses: Sequence[np.ndarray]
    interval: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)


def read_trajectories(path: str | Path) -> Trajectories:
    """Read and check a table: `token`, `name`, `poses` (M, T, 3); mixed samplings as `poses` (sum T, 3) beside `size`
    and `interval`. Raises InputError for missing arrays, wrong shapes, NaN or infinity, and repeated rows."""
    content = _read_arrays(Path(path))
    count = len(content["token"])
    for name in ("name", "size", "interval"):
        if name in content and content[name].shape != (count,):
            raise InputError(f"{path}: {name} has shape {content[name].shape}, token has ({count},); they must agree")
    tokens = tuple(str(token) for token in content["token"])
    names = tuple(str(name) for name in content["name"])
    poses = _split_poses(path, content, count)
    interval = np.asarray(content.get("interval", np.full(count, DEFAULT_INTERVAL)), np.float64)
    for row in range(count):
        where = f"{path}: trajectory {names[row]!r} of scene {tokens[row]}"
        if not np.isfinite(poses[row]).all():
            step = int(np.argmin(np.isfinite(poses[row]).all(axis=1)))
            raise InputError(f"{where}: poses contain NaN or infinity at step {step}; repair or leave out this row")
        if not len(poses[row]) or not 0 < interval[row] < np.inf:
            raise InputError(f"{where}: has {len(poses[row])} poses at interval {interval[row]}; both must be positive")
    _refuse_repeats(path, tokens, names)
    return Trajectories(tokens, names, poses, interval)


def score_rows(
    scorer: Scorer, trajectories: Trajectories, missing: frozenset[str] = frozenset()
) -> dict[str, np.ndarray]:
    """Column name -> (M,) figures in the table's order; NaN where there is none (rows of `missing` scenes)."""
    columns: dict[str, np.ndarray] = {}
    for tokens, rows in _blocks(trajectories, missing):
        poses = np.array([[trajectories.poses[row] for row in line] for line in rows], np.float64)
        interval = float(trajectories.interval[rows[0][0]])
        scores = scorer.score(list(tokens), poses, interval=interval)
        for name in (*scores.sub_scores, "score"):
            column = columns.setdefault(name, np.full(len(trajectories), np.nan))
            column[np.array(rows)] = scores[name]
    return columns


def write_csv(path: str | Path, trajectories: Trajectories, columns: Mapping[str, np.ndarray]) -> None:
    """token, name and the columns, in input order, floats to the last digit; an empty cell where there is no figure."""
    with atomic_path(path) as aside, open(aside, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["token", "name", *columns])
        for row, (token, name) in enumerate(zip(trajectories.tokens, trajectories.names)):
            figures = [float(column[row]) for column in columns.values()]
            writer.writerow([token, name, *("" if np.isnan(figure) else repr(figure) for figure in figures)])


def _blocks(trajectories: Trajectories, missing: frozenset[str]) -> list[tuple[tuple[str, ...], list[list[int]]]]:
    """(tokens, rows per token and name): names that have the same scenes and the same sampling go together."""
    of_name: dict[tuple[str, int, float], dict[str, int]] = {}
    for row, (token, name) in enumerate(zip(trajectories.tokens, trajectories.names)):
        if token not in missing:
            sampling = (name, len(trajectories.poses[row]), float(trajectories.interval[row]))
            of_name.setdefault(sampling, {})[token] = row
    together: dict[tuple[tuple[str, ...], int, float], list[dict[str, int]]] = {}
    for (_, size, interval), rows in of_name.items():
        together.setdefault((tuple(sorted(rows)), size, interval), []).append(rows)
    return [
        (tokens, [[rows[token] for rows in planners] for token in tokens])
        for (tokens, _, _), planners in together.items()
    ]


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            content = {name: archive[name] for name in archive.files}
    except Exception as problem:  # numpy and zipfile raise what they like on damaged files
        reason = " ".join(str(problem).split())[:120]
        raise InputError(f"{path}: cannot be read as .npz ({reason}); save it with numpy.savez") from problem
    missing = [name for name in ("token", "name", "poses") if name not in content]
    if missing:
        raise InputError(f"{path}: has no array {missing[0]} (found {', '.join(content) or 'none'}); add it")
    if content["token"].ndim != 1 or not len(content["token"]):
        raise InputError(f"{path}: token has shape {content['token'].shape}, expected (M,) with M > 0")
    if content["poses"].dtype.kind not in "fiu":
        raise InputError(f"{path}: poses are {content['poses'].dtype}, expected numbers")
    return content


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
