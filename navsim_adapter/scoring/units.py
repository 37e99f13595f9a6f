"""A score run cut into units that need nothing of each other: one log, or one entry of a two-stage mapping.

Two-frame comfort compares scenes of one log, and an entry's weights know that entry only, so units can be scored in any
order, anywhere. A finished unit is a small file beside the result until the result is there; a run that was killed
takes those up, and shards share them. A file says of which inputs it was made and is not used for others. One run at a
time, or the shards of one, writes a result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from navsim_adapter.cache.folder import build_scenes
from navsim_adapter.cache.store import open_cache
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import LOCK, STARTED, atomic_path, file_stamps, making, sweep
from navsim_adapter.foundation.parallel import in_processes
from navsim_adapter.foundation.shard import Shard
from navsim_adapter.metric import engine
from navsim_adapter.nuplan.maps import map_files
from navsim_adapter.nuplan.objects import FUTURE_FRAMES
from navsim_adapter.nuplan.root import DataRoot
from navsim_adapter.nuplan.scenes import every_frame
from navsim_adapter.scene_cache import SceneCache
from navsim_adapter.scoring.rows import Traffic, score_rows, score_scene
from navsim_adapter.scoring.scorer import VERSIONS, family_of
from navsim_adapter.scoring.two_stage import Entry, SceneResult
from navsim_adapter.scoring.two_stage_table import FIGURES, entry_figures
from navsim_adapter.trajectories import Trajectories, read_trajectories


@dataclass(frozen=True)
class Part:
    """What became of a unit's rows.

    rows: (m,) their places in the whole table.  figures: (m, F), NaN where there is none, and then `reasons` (row ->
    text) says why.
    """

    rows: np.ndarray
    figures: np.ndarray
    reasons: Mapping[int, str]


class Unit(Protocol):
    """Something to score; picklable, so that it can be scored anywhere."""

    @property
    def name(self) -> str: ...

    def stamp(self) -> Any:
        """What the figures depend on besides the inputs of the whole run, as JSON."""

    def score(self) -> Part: ...


@dataclass(frozen=True)
class LogUnit:
    """The trajectories of one log's scenes.

    metric: a short name or a basis, as `Scorer` takes it.
    cache: folder to read the scenes from, else they are built from `root`.  tokens: which of the cache's scenes;
    without a cache the log itself says.  skipped: token -> why a scene of the cache's split has no cache.
    """

    name: str
    trajectories: str
    metric: str
    traffic: Traffic
    threads: int = 1
    cache: str | None = None
    tokens: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    root: DataRoot | None = None
    split: str = ""

    def stamp(self) -> Any:
        if self.root is None:
            return sorted(self.tokens)
        return file_stamps([self.root.logs / self.split / f"{self.name}.pkl", *map_files(self.root.maps)])

    def score(self) -> Part:
        table, places = _read(self.trajectories)
        scenes, missing = self._scenes(frozenset(places))
        rows = sorted(row for token in (*scenes, *missing) for row in places[token])
        chosen = table.take(rows)
        scores = score_rows(scenes, chosen, self.metric, self.traffic, threads=self.threads, missing=missing)
        return Part(
            np.array(rows, np.int64), scores.figures, {rows[row]: text for row, text in scores.failures.items()}
        )

    def _scenes(self, wanted: frozenset[str]) -> tuple[dict[str, SceneCache], dict[str, str]]:
        if self.cache is not None:
            cache = open_cache(self.cache)
            return {token: cache[token] for token in self.tokens}, dict(self.skipped)
        assert self.root is not None
        chosen = replace(_filter(wanted, FUTURE_FRAMES[family_of(self.metric)]), log_names=frozenset({self.name}))
        scenes, skipped = build_scenes(self.root, self.split, chosen)
        return scenes, {item.token: item.reason for item in skipped}


@dataclass(frozen=True)
class Plan:
    """One trajectory of a scene. row: its place in the whole table."""

    row: int
    name: str
    poses: np.ndarray
    interval: float


@dataclass(frozen=True)
class EntryUnit:
    """One entry of a two-stage mapping, with all planners' trajectories.

    scenes: holds the entry's tokens, or `skipped` says why not.  plans: token -> trajectories.
    inputs: changes when the files do that the scenes are read from.  basis: of the scores.
    """

    name: str
    entry: Entry
    scenes: Mapping[str, SceneCache]
    skipped: Mapping[str, str]
    plans: Mapping[str, Sequence[Plan]]
    traffic: Traffic
    inputs: str = ""
    basis: str = VERSIONS["epdms"]

    def stamp(self) -> Any:
        return [*self.entry.tokens, self.inputs]

    def score(self) -> Part:
        results: dict[str, dict[str, SceneResult]] = {}  # planner -> token -> result
        reasons: dict[int, str] = {}
        for token in self.entry.tokens:
            plans = self.plans.get(token, ())
            if not plans:  # of no planner: there is no scene either
                continue
            if token in self.skipped:
                reasons |= {plan.row: self.skipped[token] for plan in plans}
                continue
            for plan, result in _scene_results(self.scenes[token], plans, self.traffic):
                if isinstance(result, str):
                    reasons[plan.row] = result
                else:
                    results.setdefault(plan.name, {})[token] = result
        found = {name: entry_figures(self.entry, own, self.basis) for name, own in results.items()}
        reasons |= self._incomplete(results)
        every = sorted((plan.row, token, plan.name) for token, plans in self.plans.items() for plan in plans)
        blank = np.full(len(FIGURES), np.nan)
        figures = np.array([found.get(name, {}).get(token, blank) for _, token, name in every])
        return Part(np.array([row for row, _, _ in every], np.int64), figures.reshape(-1, len(FIGURES)), reasons)

    def _incomplete(self, results: Mapping[str, Mapping[str, SceneResult]]) -> dict[int, str]:
        """Why rows have sub-scores but no score: another scene of the entry has none."""
        reasons = {}
        for token, plans in self.plans.items():
            for plan in plans:
                own = results.get(plan.name, {})
                missing = [other for other in self.entry.tokens if other not in own]
                if token in own and missing:
                    reasons[plan.row] = (
                        f"entry {self.entry.first.now}: scene {missing[0]} has no result for {plan.name!r}; the other "
                        "scenes of the entry are left without weight, two-frame comfort and score"
                    )
        return reasons


def _scene_results(scene: SceneCache, plans: Sequence[Plan], traffic: str) -> Iterator[tuple[Plan, SceneResult | str]]:
    """Every trajectory with its result, or with the reason why there is none."""
    samplings: dict[tuple[int, float], list[Plan]] = {}
    for plan in plans:
        samplings.setdefault((len(plan.poses), plan.interval), []).append(plan)
    axle, yaw = np.array(scene.ego_state[:2]), float(scene.ego_state[2])
    turn = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
    for (_, interval), group in samplings.items():
        scores = score_scene(scene, np.array([plan.poses for plan in group], np.float64), interval, traffic)
        for place, plan in enumerate(group):
            if place in scores.failures:
                yield plan, scores.failures[place]
                continue
            end = axle + turn @ np.asarray(plan.poses[-1, :2], np.float64)
            row = scores.table[place]
            final, raw = row[: engine.TWO_FRAME], row[engine.RAW : engine.RAW + engine.TWO_FRAME]
            yield plan, SceneResult(int(scene.time_us), final, axle, end, scores.states[place], raw)


def _read(path: str) -> tuple[Trajectories, dict[str, list[int]]]:
    """A table and the rows of each token, read once per process as long as the file is the same."""
    return _read_as_it_is(path, file_stamps([path]))


@lru_cache(maxsize=2)
def _read_as_it_is(path: str, stamp: str) -> tuple[Trajectories, dict[str, list[int]]]:
    table = read_trajectories(path, any_numbers=True)
    places: dict[str, list[int]] = {}
    for row, token in enumerate(table.tokens):
        places.setdefault(token, []).append(row)
    return table, places


@lru_cache(maxsize=2)
def _filter(tokens: frozenset[str], num_future_frames: int) -> Any:
    return every_frame(tokens, num_future_frames)


# -- running them ------------------------------------------------------------------------------------------------------

Map = Callable[[Sequence[Unit]], Generator[tuple[Unit, Part]]]  # scores units in any order


def run_in_processes(workers: int) -> Map:
    """Score in a pool of processes; with one worker in this one."""
    if workers < 1:
        raise InputError(f"--workers: must be at least 1, got {workers}")
    return lambda units: in_processes(score_unit, units, workers)


def score_unit(unit: Unit) -> Part:
    return unit.score()


class Parts:
    """Finished units of a run in the folder `<out>.parts`, until `clear`.

    made_by: what decides the figures; its `inputs` is a hash of all of it.
    """

    def __init__(self, out: str | Path, made_by: Mapping[str, Any]):
        out = Path(out)
        self.folder = out.with_name(out.name + ".parts")
        self._inputs = made_by["inputs"]
        named = {key: value for key, value in made_by.items() if key != "inputs"}  # a hash tells nobody what differs
        self._made_by = {"command": "navsim-adapter score", **named}

    def known(self, unit: Unit) -> Part | None:
        """The unit's part if an earlier run of the same inputs finished it."""
        try:
            with np.load(self._path(unit), allow_pickle=False) as content:
                if str(content["made_of"]) != self._made_of(unit):
                    return None
                reasons = dict(zip(content["reason_rows"].tolist(), content["reasons"].tolist()))
                return Part(content["rows"], content["figures"], reasons)
        except Exception:  # absent, torn, of another layout: score it again
            return None

    def all_of(self, units: Sequence[Unit]) -> list[Part]:
        """The parts of those units that are finished."""
        return [part for unit in units if (part := self.known(unit)) is not None]

    @contextmanager
    def held(self, shard: Shard | None = None, wait: bool = False) -> Iterator[None]:
        """Keep other runs from writing the same result, but not other shards of the same one.

        wait: for other runs to end; else they are an InputError, as are parts of other inputs.
        """
        with making(self.folder, self._made_by, shard=str(shard) if shard else None, wait=wait):
            try:
                yield
            finally:
                if shard is None and not any(self.folder.glob("*.npz")):
                    self._remove()

    def keep(self, unit: Unit, part: Part) -> None:
        with atomic_path(self._path(unit)) as aside, open(aside, "wb") as file:
            np.savez(
                file,
                made_of=np.array(self._made_of(unit)),
                rows=part.rows,
                figures=part.figures,
                reason_rows=np.array(list(part.reasons), np.int64),
                reasons=np.array(list(part.reasons.values()), str),
            )

    def clear(self) -> None:
        """Remove what was kept, once the result is there."""
        self._remove()
        sweep(self.folder.parent.glob(f".{self.folder.name.removesuffix('.parts')}.*.part"))

    def _remove(self) -> None:
        sweep(self.folder.glob(".*.part"))
        for path in (*self.folder.glob("*.npz"), self.folder / STARTED, *self.folder.glob(f"{LOCK}*")):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _path(self, unit: Unit) -> Path:
        return self.folder / f"{unit.name}.npz"

    def _made_of(self, unit: Unit) -> str:
        return digest([self._inputs, unit.name, unit.stamp()])


def digest(content: Any) -> str:
    """A short hash of anything that is JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]
