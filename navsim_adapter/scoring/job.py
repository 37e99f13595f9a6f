"""A score run before it runs: from what was asked to units of work, and from their parts to the result.

One stage goes log by log, two stages entry by entry of the mapping (`units` says why).
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from navsim_adapter import __version__
from navsim_adapter.cache.folder import REFERENCE_MEMORY, build_scenes, skipped_in
from navsim_adapter.cache.second_stage import build_second_stage
from navsim_adapter.cache.store import open_cache, read_scenes
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import MANIFEST, file_stamps, read_json, sha256
from navsim_adapter.foundation.shard import Shard
from navsim_adapter.foundation.words import counted
from navsim_adapter.nuplan.maps import map_files
from navsim_adapter.nuplan.objects import FUTURE_FRAMES
from navsim_adapter.nuplan.root import DataRoot
from navsim_adapter.nuplan.scenes import every_frame, find_logs, split_filter
from navsim_adapter.nuplan.second_stage import second_stage_files
from navsim_adapter.scene_cache import SceneCache
from navsim_adapter.scoring.result import Facts, Result
from navsim_adapter.scoring.rows import Traffic
from navsim_adapter.scoring.scorer import basis_of, columns_of
from navsim_adapter.scoring.table import ScoreTable
from navsim_adapter.scoring.two_stage import Entry
from navsim_adapter.scoring.two_stage_table import FIGURES, ORIGINAL, SYNTHETIC, find_mapping
from navsim_adapter.scoring.units import EntryUnit, LogUnit, Map, Part, Parts, Plan, Unit, digest
from navsim_adapter.trajectories import Trajectories, check_poses, read_about, read_trajectories
from navsim_adapter.vehicle import INTERVAL, STEPS


@dataclass(frozen=True)
class Source:
    """Where scenes are: a cache folder, or a split of logs with its maps.

    name: how messages call it.
    """

    cache: str | None = None
    root: DataRoot | None = None
    split: str = ""

    @property
    def name(self) -> str:
        return self.cache or f"split {self.split}"

    def describe(self) -> dict[str, Any]:
        if self.cache is None:
            assert self.root is not None
            return {"split": self.split, "data_root": str(self.root.path.resolve()), "cache": None}
        open_cache(self.cache)  # says what is wrong with it
        content = read_scenes(self.cache)
        made_by = read_json(Path(self.cache) / MANIFEST).get("made_by", {})
        memory = {REFERENCE_MEMORY: made_by[REFERENCE_MEMORY]} if REFERENCE_MEMORY in made_by else {}
        where = {"data_root": content["data_root"], "cache": str(Path(self.cache).resolve())}
        return {"split": content["split"], **where, **memory}

    def stamp(self) -> Any:
        """Changes when the scenes do, as far as that is cheap to know."""
        if self.cache is not None:
            return sha256(Path(self.cache) / MANIFEST)
        assert self.root is not None
        return [str(self.root.path.resolve()), str(self.root.maps.resolve()), self.split]


@dataclass(frozen=True)
class Job:
    """labels: column name -> texts of the table.  columns: names of the figures.  units: what is scored, in order.

    prepare: makes units ready that no earlier run has finished.  remarks: what was left out, for the user.
    """

    facts: Facts
    source: Source
    labels: Mapping[str, Sequence[str]]
    columns: tuple[str, ...]
    units: Sequence[Unit]
    prepare: Callable[[Sequence[Unit]], Sequence[Unit]] = list
    remarks: Sequence[str] = ()

    def run(
        self, parts: Parts, score: Map, progress: Callable[[int, int], None], shard: Shard | None = None
    ) -> list[Part]:
        """Score what no earlier run has finished, of the shard's units; returns all parts that there are now."""
        mine = shard.take(self.units) if shard else self.units
        known = {unit.name: parts.known(unit) for unit in self.units}
        found = [part for part in known.values() if part is not None]
        todo = self.prepare([unit for unit in mine if known[unit.name] is None])
        covered = sum(len(part.rows) for part in found)
        if covered < self.facts.total and todo:
            with closing(score(todo)) as scored:
                for done, (unit, part) in enumerate(scored, len(mine) - len(todo) + 1):
                    parts.keep(unit, part)
                    found.append(part)
                    progress(done, len(mine))
                    covered += len(part.rows)
                    if covered >= self.facts.total:
                        break  # no other log has more
        return found

    def left(self, parts: Parts) -> int:
        """How many units are still to be scored before the table is whole."""
        found = parts.all_of(self.units)
        if sum(len(part.rows) for part in found) >= self.facts.total:
            return 0
        return len(self.units) - len(found)

    def result(self, parts: Sequence[Part]) -> Result:
        """The parts put together; raises InputError if tokens are no scene of the source, or of two logs."""
        rows = np.concatenate([np.empty(0, np.int64), *(part.rows for part in parts)])
        figures = np.concatenate([np.empty((0, len(self.columns))), *(part.figures for part in parts)])
        order = np.argsort(rows, kind="stable")
        rows, figures = rows[order], figures[order]
        twice = rows[1:][rows[1:] == rows[:-1]]
        if len(twice):
            raise InputError(f"token {self.labels['token'][twice[0]]}: occurs in two logs; remove one of them")
        self._check_complete(rows)
        table = ScoreTable(self.labels, self.columns, figures)
        reasons = {row: reason for part in parts for row, reason in sorted(part.reasons.items())}
        return Result(self.facts, table, reasons)

    def _check_complete(self, rows: np.ndarray) -> None:
        absent = np.setdiff1d(np.arange(self.facts.total), rows)
        if len(absent):
            every = set(self.labels["token"])
            unknown = dict.fromkeys(self.labels["token"][row] for row in absent)
            raise unknown_tokens(self.facts.source["trajectories"], list(unknown), len(every), self.source)


def unknown_tokens(table: Any, unknown: Sequence[str], count: int, source: Source) -> InputError:
    pdms, epdms = FUTURE_FRAMES["pdms"], FUTURE_FRAMES["epdms"]
    return InputError(
        f"{table}: {len(unknown)} of {count} tokens are no scene of {source.name} (first: {unknown[0]}); a scene needs "
        f"3 frames before, {pdms} after ({epdms} for EPDMS) and a route; check --split and --data"
    )


def one_stage(table_path: str, source: Source, metric: str, traffic: Traffic, threads: int = 1) -> Job:
    """Every row of a trajectory table, a log a unit. metric: a short name or a basis, as `Scorer` takes it."""
    table = read_trajectories(table_path, any_numbers=True)
    described = {**source.describe(), **_described_table(table_path, table)}
    units: list[Unit] = list(_log_units(table_path, table, source, metric, traffic, threads))
    basis = basis_of(metric)
    facts = Facts(basis, traffic, described, _inputs(basis, traffic, described, source.stamp()), len(table))
    labels = {"token": table.tokens, "name": table.names}
    return Job(facts, source, labels, columns_of(metric), units, remarks=_short(table_path, table))


def _short(path: str, table: Trajectories) -> list[str]:
    """A line where plans end before the simulation does: they are scored, but hardly meant so."""
    horizon = STEPS * INTERVAL
    spans = np.array([len(poses) for poses in table.poses]) * table.interval
    rows = np.flatnonzero(spans < horizon - 1e-6)
    if not len(rows):
        return []
    first = f"{table.names[rows[0]]!r} of scene {table.tokens[rows[0]]}, {spans[rows[0]]:g} s"
    return [
        f"short: {len(rows)} of {len(table)} trajectories of {path} end before the {horizon:g} s that are simulated "
        f"(first: {first}); give poses up to there"
    ]


def _described_table(path: str, table: Trajectories, key: str = "trajectories") -> dict[str, Any]:
    """Which table, its samplings, and what made it, if it says so."""
    samplings = sorted({(len(poses), float(interval)) for poses, interval in zip(table.poses, table.interval)})
    return {
        key: str(path),
        f"{key}_sha256": sha256(path),
        f"{key}_sampling": [f"{count} x {interval:g} s" for count, interval in samplings],
        f"{key}_about": read_about(path) or None,
    }


def _log_units(
    table_path: str, table: Trajectories, source: Source, metric: str, traffic: Traffic, threads: int
) -> list[LogUnit]:
    """In the order of their names, so that shards agree."""
    common: dict[str, Any] = {"trajectories": str(table_path), "metric": metric, "traffic": traffic, "threads": threads}
    if source.cache is None:
        assert source.root is not None
        files = find_logs(source.root, source.split)
        return [LogUnit(path.stem, **common, root=source.root, split=source.split) for path in files]
    cache, skipped = open_cache(source.cache), skipped_in(source.cache)
    wanted = sorted(set(table.tokens))
    unknown = [token for token in wanted if token not in cache and token not in skipped]
    if unknown:
        raise unknown_tokens(table_path, unknown, len(wanted), source)
    logs: dict[str, list[str]] = {}
    for token in wanted:
        if token in cache:
            logs.setdefault(cache.log_of(token), []).append(token)
    check_poses(table.take([row for row, token in enumerate(table.tokens) if token in cache]), f"{table_path}: ")
    units = [LogUnit(name, **common, cache=source.cache, tokens=tuple(logs[name])) for name in sorted(logs)]
    without = {token: skipped[token] for token in wanted if token in skipped}
    if without:
        units.append(LogUnit("scenes without cache", **common, cache=source.cache, skipped=without))
    return units


@dataclass(frozen=True)
class SecondStage:
    """Rendered scenes: a two-stage folder, the mapping if it lies elsewhere, and a cache of them if there is one."""

    folder: str
    trajectories: str
    mapping: str | None = None
    cache: str | None = None


def two_stage(
    table_path: str,
    source: Source,
    second: SecondStage,
    traffic: Traffic,
    workers: int = 1,
    metric: str = "epdms",
) -> Job:
    """The planners that are in both tables, an entry of the mapping a unit; other rows are left out with a remark.

    metric: "epdms", or its basis by its whole name.
    """
    mapping_path, entries = find_mapping(second.mapping or second.folder)
    tables = (read_trajectories(table_path), read_trajectories(second.trajectories))
    plans, labels, remarks = _plans(entries, tables, (table_path, second.trajectories))
    described = {
        **source.describe(),
        **_described_table(table_path, tables[0]),
        "two_stage": str(Path(second.folder).resolve()),
        "mapping": str(mapping_path),
        "mapping_sha256": sha256(mapping_path),
        "second_stage_cache": str(Path(second.cache).resolve()) if second.cache else None,
        **_described_table(second.trajectories, tables[1], "second_stage_trajectories"),
        "remarks": remarks,
    }
    stamps = [source.stamp(), sha256(Path(second.cache) / MANIFEST) if second.cache else None]
    numbered = [(place, entry) for place, entry in enumerate(entries) if any(token in plans for token in entry.tokens)]
    if len(numbered) < len(entries):
        remarks.append(f"no trajectories for {len(entries) - len(numbered)} of the mapping's {len(entries)} entries")
    inputs = file_stamps(_two_stage_files(source, second))
    units = [
        EntryUnit(
            f"entry-{place:05d}", entry, {}, {}, {token: plans[token] for token in entry.tokens if token in plans},
            traffic, inputs, basis_of(metric),
        )
        for place, entry in numbered
    ]  # fmt: skip
    facts = Facts(
        basis_of(metric), traffic, described, _inputs(basis_of(metric), traffic, described, stamps),
        len(labels["token"]),
        tuple(entry for _, entry in numbered),
    )  # fmt: skip

    def prepare(todo: Sequence[Unit]) -> Sequence[Unit]:
        return _with_scenes([unit for unit in todo if isinstance(unit, EntryUnit)], source, second, workers)

    short = [line for path, table in zip((table_path, second.trajectories), tables) for line in _short(path, table)]
    return Job(facts, source, labels, FIGURES, units, prepare, [*remarks, *short])


def _plans(
    entries: Sequence[Entry], tables: tuple[Trajectories, Trajectories], paths: tuple[str, str]
) -> tuple[dict[str, list[Plan]], dict[str, list[str]], list[str]]:
    """Token -> trajectories, the labels of all rows, and what of the tables is left out."""
    first_names, second_names = set(tables[0].names), set(tables[1].names)
    shared = first_names & second_names
    if not shared:
        raise InputError(
            f"{paths[0]} and {paths[1]}: no planner is in both ({_some(first_names)} and {_some(second_names)}); give "
            "rows of one planner the same name"
        )
    of_stage = (
        {token for entry in entries for token in (entry.first.now, entry.first.previous)},
        {token for entry in entries for pair in entry.second for token in (pair.now, pair.previous)},
    )
    plans: dict[str, list[Plan]] = {}
    labels: dict[str, list[str]] = {"token": [], "name": [], "frame_type": []}
    remarks = []
    for table, tokens, kind, path in zip(tables, of_stage, (ORIGINAL, SYNTHETIC), paths):
        before = len(labels["token"])
        for token, name, poses, interval in zip(table.tokens, table.names, table.poses, table.interval):
            if name in shared and token in tokens:
                plans.setdefault(token, []).append(Plan(len(labels["token"]), name, poses, float(interval)))
                for label, text in zip(labels.values(), (token, name, kind)):
                    label.append(text)
        used = len(labels["token"]) - before
        if not used:
            raise InputError(f"{path}: none of its tokens is a {kind} scene of the mapping; check the table")
        if used < len(table):
            lone = (first_names if kind == ORIGINAL else second_names) - shared
            why = f"; planners in this table only: {_some(lone)}" if lone else ""
            remarks.append(
                f"left out: {len(table) - used} of {counted(len(table), 'row')} of {path}, not of the two stages{why}"
            )
    return plans, labels, remarks


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:5]) + (f", … ({len(listed)})" if len(listed) > 5 else "")


def _with_scenes(units: Sequence[EntryUnit], source: Source, second: SecondStage, workers: int) -> list[Unit]:
    """The units with the scenes of both stages; those read from caches are read where they are scored."""
    first_tokens = sorted({token for unit in units for token in _first(unit.entry) if token in unit.plans})
    second_tokens = sorted({token for unit in units for token in unit.plans} - set(first_tokens))
    scenes, skipped = _first_scenes(first_tokens, source, workers)
    later, skipped_later = _second_scenes(second_tokens, source, second, workers)
    both: Mapping[str, SceneCache] = ChainMap(scenes, later)  # type: ignore[arg-type]
    without = skipped | skipped_later
    for tokens, place in ((first_tokens, source), (second_tokens, Source(cache=second.cache or second.folder))):
        unknown = [token for token in tokens if token not in both and token not in without]
        if unknown:
            raise unknown_tokens("two-stage trajectories", unknown, len(tokens), place)
    return [
        replace(
            unit,
            scenes=both if source.cache and second.cache else {t: both[t] for t in unit.plans if t not in without},
            skipped={token: without[token] for token in unit.plans if token in without},
        )
        for unit in units
    ]


def _two_stage_files(source: Source, second: SecondStage) -> list[Path]:
    """What the scenes of both stages are read from, where that is no cache."""
    files: list[Path] = []
    if source.root is not None:
        files += map_files(source.root.maps)
        files += [] if source.cache else find_logs(source.root, source.split)
    return files + ([] if second.cache else second_stage_files(second.folder))


def _first(entry: Entry) -> tuple[str, str]:
    return entry.first.now, entry.first.previous


_Scenes = tuple[Mapping[str, SceneCache], dict[str, str]]  # and why some tokens have none


def _first_scenes(tokens: Sequence[str], source: Source, workers: int) -> _Scenes:
    if source.cache is not None:
        return open_cache(source.cache), skipped_in(source.cache)
    assert source.root is not None
    scenes, skipped = build_scenes(source.root, source.split, every_frame(tokens, FUTURE_FRAMES["epdms"]), workers)
    return scenes, {item.token: item.reason for item in skipped}


def _second_scenes(tokens: Sequence[str], source: Source, second: SecondStage, workers: int) -> _Scenes:
    if second.cache is not None:
        return open_cache(second.cache), skipped_in(second.cache)
    if source.root is None:
        raise InputError(
            "--two-stage: rendered scenes need the maps; give --data, or a cache of them with --second-stage-cache"
        )
    scenes, skipped = build_second_stage(second.folder, source.root.maps, frozenset(tokens), workers)
    return scenes, {item.token: item.reason for item in skipped}


def _inputs(basis: str, traffic: str, described: Mapping[str, Any], stamps: Any) -> str:
    """Trajectories count by their content, wherever they lie."""
    told = ("trajectories", "second_stage_trajectories", "remarks")
    named = {key: value for key, value in described.items() if key not in told}
    return digest([basis, columns_of(basis), traffic, __version__, named, stamps])


def source_of(cache: str | None, root: Callable[[], DataRoot], split: str | None, needs_maps: bool = False) -> Source:
    """From options: a cache, or a split (official names are known) of a data root.

    needs_maps: also look for the root beside a cache, where one is named.
    """
    if cache:
        return Source(cache, root() if needs_maps else None)
    if not split:
        raise InputError("--split: not given; name the split that holds the scenes, or a cache with --cache")
    return Source(None, root(), split_filter(split)[0])
