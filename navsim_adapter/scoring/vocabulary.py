"""A trajectory vocabulary in every scene of a cache: the table that planners which choose among K trajectories learn.

`<out>/logs/<log>.parquet` has a row a scene, which is a row group: its token, and a list of K float32 per figure. A log
that is there is finished; `table.json` and the manifest come last.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from navsim_adapter import __version__
from navsim_adapter.cache.folder import skipped_in
from navsim_adapter.cache.store import open_cache
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import MANIFEST, atomic_path, finish, making, read_json, sha256, write_json
from navsim_adapter.foundation.foreign import check_archive
from navsim_adapter.foundation.option_checks import check_range
from navsim_adapter.foundation.parallel import in_processes
from navsim_adapter.foundation.shard import Shard
from navsim_adapter.foundation.words import counted
from navsim_adapter.scoring.rows import unfit_scenes
from navsim_adapter.scoring.scorer import MetricName, Scorer, basis_of, columns_of, family_of
from navsim_adapter.vehicle import FARTHEST, LONGEST_INTERVAL, SHORTEST_INTERVAL

TABLE = "table.json"
LOGS = "logs"
INTERVALS = {8: 0.5, 40: 0.1}  # poses -> seconds between them, of four seconds
_NOT_SCORED = "not_scored"
_SPARE = 0.02  # of a disk


@dataclass(frozen=True)
class Vocabulary:
    """K trajectories: ego-frame poses (K, T, 3) x, y (m), heading (rad) every `interval` seconds, without t = 0."""

    poses: np.ndarray
    interval: float
    sha256: str


def read_vocabulary(path: str | Path, interval: float | None = None) -> Vocabulary:
    """Poses (K, T, 3) of a .npy, or of a .npz with one array.

    interval: seconds between poses; by default 0.5 for 8 of them and 0.1 for 40.
    Raises InputError for another shape, what is no numbers, NaN, infinity, poses at t = 0 and a missing interval.
    """
    poses = _read_array(Path(path))
    if poses.ndim != 3 or 0 in poses.shape or poses.shape[2] != 3:
        raise InputError(f"{path}: shape {poses.shape}; expected (K, T, 3), K trajectories of x, y, heading")
    if poses.dtype.kind not in "fiu":
        raise InputError(f"{path}: holds {poses.dtype}, expected numbers; convert the array")
    poses = poses.astype(np.float64)  # once, not for every scene
    bad = np.argwhere(~(np.abs(poses) <= FARTHEST).all(axis=2))  # also where it is NaN
    if len(bad):
        row, step = bad[0].tolist()
        raise InputError(
            f"{path}: trajectory {row} has NaN, infinite or absurd poses at step {step} "
            f"({poses[row, step].tolist()}); repair it or leave it out"
        )
    if poses.shape[1] > 1 and not poses[:, 0].any() and poses.any():
        raise InputError(f"{path}: every trajectory begins at 0, 0, 0, the pose at t = 0; leave it out (poses[:, 1:])")
    interval = INTERVALS.get(poses.shape[1]) if interval is None else interval
    if interval is None:
        raise InputError(f"--interval: not given, and {path} has {poses.shape[1]} poses a trajectory; name the seconds")
    check_range("--interval", interval, SHORTEST_INTERVAL, LONGEST_INTERVAL)
    return Vocabulary(poses, interval, sha256(path))


def _read_array(path: Path) -> np.ndarray:
    is_archive = path.suffix == ".npz"
    if is_archive:
        check_archive(path)
    try:
        content = np.load(path, allow_pickle=False)
        arrays = [content[name] for name in content.files] if is_archive else [content]
    except Exception as problem:  # numpy and zipfile raise what they like on damaged files
        reason = " ".join(str(problem).split())[:120]
        raise InputError(f"{path}: cannot be read as a plain array ({reason}); save it with numpy.save") from problem
    if len(arrays) != 1 or not isinstance(arrays[0], np.ndarray):
        raise InputError(f"{path}: expected one array; save the trajectories alone with numpy.save")
    return arrays[0]


@dataclass(frozen=True)
class Run:
    """What is scored, and into which folder. metric: a short name or a basis, as `Scorer` takes it."""

    cache: str
    vocabulary: Vocabulary
    metric: str
    out: Path

    @property
    def columns(self) -> tuple[str, ...]:
        return columns_of(self.metric)

    def made_by(self) -> dict[str, Any]:
        return {
            "command": "navsim-adapter vocabulary",
            "version": __version__,
            "metric": basis_of(self.metric),
            "vocabulary": self.vocabulary.sha256,
            "interval": self.vocabulary.interval,
            "cache": sha256(Path(self.cache) / MANIFEST),
        }

    def logs(self) -> dict[str, list[str]]:
        """Log -> its scenes."""
        cache = open_cache(self.cache)
        logs: dict[str, list[str]] = {name: [] for name in sorted(cache.logs)}
        for token in cache:
            logs[cache.log_of(token)].append(token)
        return {name: tokens for name, tokens in logs.items() if tokens}

    def path(self, log: str) -> Path:
        return self.out / LOGS / f"{log}.parquet"

    def schema(self) -> pa.Schema:
        figures = pa.list_(pa.float32(), len(self.vocabulary.poses))
        return pa.schema([("token", pa.string()), *((name, figures) for name in self.columns)])

    def write_log(self, log: tuple[str, list[str]]) -> None:
        """The file of one log; one scene is in memory at a time."""
        name, tokens = log
        cache = open_cache(self.cache)
        not_scored: dict[str, str] = {}
        with atomic_path(self.path(name)) as aside, pq.ParquetWriter(aside, self.schema(), compression="zstd") as file:
            for token in tokens:
                scene = {token: cache[token]}
                unfit = unfit_scenes(scene, [token], family_of(self.metric))
                not_scored |= unfit
                if not unfit:
                    file.write_table(self._row(token, Scorer(scene, cast(MetricName, self.metric))))
            file.add_key_value_metadata({_NOT_SCORED: json.dumps(not_scored)})

    def _row(self, token: str, scorer: Scorer) -> pa.Table:
        scores = scorer.score([token], self.vocabulary.poses[None], self.vocabulary.interval)
        size = len(self.vocabulary.poses)
        figures = [pa.array(scores[name][0].astype(np.float32)) for name in self.columns]
        lists = [pa.FixedSizeListArray.from_arrays(own, size) for own in figures]
        return pa.table([pa.array([token]), *lists], schema=self.schema())


def score_vocabulary(
    run: Run,
    shard: Shard | None = None,
    workers: int = 1,
    say: Callable[[str], None] = print,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any] | None:
    """Score the logs that are not there; returns the content of `table.json`, None while other shards have logs to do.

    workers: processes, a log each.  say: is told the size before anything is scored.  progress: logs done, and all.
    Raises InputError for a folder of other inputs, a disk that is too small, and where no scene can be scored.
    """
    logs, made_by = run.logs(), run.made_by()
    if not logs:
        raise InputError(f"{run.cache}: holds no scene; make the cache again")
    mine = shard.take(list(logs)) if shard else list(logs)
    with making(run.out, made_by, shard=str(shard) if shard else None) as is_open:
        if not is_open:
            return dict(read_json(run.out / TABLE))
        todo = [(log, logs[log]) for log in mine if not run.path(log).is_file()]
        if todo:
            say(_size(run, sum(len(tokens) for _, tokens in todo)))
        for done, _ in enumerate(in_processes(partial(Run.write_log, run), todo, workers), 1):
            progress(len(mine) - len(todo) + done, len(mine))
        if not all(run.path(log).is_file() for log in logs):
            return None
        return _finish(run, logs, made_by)


def _size(run: Run, scenes: int) -> str:
    """How much will be written before compression; InputError where it does not fit."""
    trajectories, figures, free = len(run.vocabulary.poses), len(run.columns), shutil.disk_usage(run.out).free
    size = 4 * scenes * trajectories * figures
    words = (
        f"{counted(scenes, 'scene')} x {trajectories} trajectories x {figures} figures x 4 bytes = {size / 1e6:,.1f} MB"
    )
    if size > (1 - _SPARE) * free:
        raise InputError(f"{run.out}: needs {words}, {free / 1e6:,.1f} MB are free; choose another disk, or --shard")
    return f"{words} before compression, to {run.out} ({free / 1e6:,.1f} MB free)"


def _finish(run: Run, logs: Mapping[str, list[str]], made_by: Mapping[str, Any]) -> dict[str, Any]:
    not_scored = dict(skipped_in(run.cache))
    for log in logs:
        not_scored |= json.loads(pq.read_metadata(run.path(log)).metadata[_NOT_SCORED.encode()])
    scenes = sum(pq.read_metadata(run.path(log)).num_rows for log in logs)
    if not scenes:
        raise InputError(f"{run.out}: no scene can be scored; first: {next(iter(not_scored.values()))}")
    content = {
        **made_by,
        "scenes": scenes,
        "trajectories": len(run.vocabulary.poses),
        "figures": list(run.columns),
        _NOT_SCORED: not_scored,
    }
    write_json(run.out / TABLE, content)
    finish(run.out, made_by)
    return content
