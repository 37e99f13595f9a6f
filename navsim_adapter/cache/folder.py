"""Whole splits into caches, log by log in a process pool: a folder (`build_cache`) or memory (`build_scenes`).

What the official code cannot cache is no scene of the cache: it is listed with its reason, never scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from navsim_adapter import __version__
from navsim_adapter.cache import log_file, store
from navsim_adapter.cache.build import build_scene
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import file_stamps, making, sha256
from navsim_adapter.foundation.parallel import in_processes
from navsim_adapter.foundation.words import counted
from navsim_adapter.nuplan.maps import load_map, map_files, map_index, map_path
from navsim_adapter.nuplan.root import DataRoot
from navsim_adapter.nuplan.scenes import SceneFilter, absent, empty_split, find_logs, log_scenes
from navsim_adapter.scene_cache import SceneCache

Memory = Literal["none", "log"]
MEMORIES: tuple[Memory, ...] = ("none", "log")
REFERENCE_MEMORY, REMEMBERED = "reference_memory", "remembered"  # keys of what made a cache


@dataclass(frozen=True)
class LogJob:
    """One log to cache. `made_by`: what the result depends on, apart from the log and its map.

    memory: whether PDM-Closed remembers from scene to scene, as the official builder does (metric 10.3).
    """

    log: Path
    split: str
    filter: SceneFilter
    maps: Path
    made_by: Mapping[str, Any]
    memory: bool = False


class Skipped(NamedTuple):
    """A scene that the official code cannot cache either, and why."""

    token: str
    log_name: str
    reason: str


@dataclass(frozen=True)
class Built:
    """What became of one log's file: its tokens, or the scenes themselves, and what was skipped.

    logs: names that its scenes give their logs.
    """

    log_name: str
    tokens: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    scenes: tuple[SceneCache, ...] = ()
    logs: tuple[str, ...] = ()


def build_cache(
    root: DataRoot,
    split: str,
    chosen: SceneFilter,
    out: str | Path,
    workers: int = 1,
    progress: Callable[[int, int, Built], None] | None = None,
    reference_memory: Memory = "none",
) -> dict[str, Any]:
    """Cache every scene of a split into a folder; returns the content of its `scenes.json`.

    chosen: which scenes; `SceneFilter()` takes all that have history and future.
    workers: processes, one log each at a time.
    progress: called after each log with the number done, the number of all, and what was built.
    reference_memory: "log" for references as the official builder makes them, one builder a log (metric 10.3).
    A finished folder of the same inputs is left alone, finished logs of an interrupted run are kept, changed logs are
    cached again; scenes without cache are listed. Raises InputError for a folder of another split or filter, an
    unreadable log or map, repeated tokens and an empty split.
    """
    out = Path(out)
    map_index(root.maps)
    made_by = {
        "command": "navsim-adapter cache",
        "version": __version__,
        "format": log_file.FORMAT,
        "split": split,
        "filter": describe(chosen),
        "data_root": str(root.path.resolve()),
        "maps_root": str(root.maps.resolve()),
        **remembering(reference_memory),
    }
    logs = find_logs(root, split, chosen)
    found = {"inputs": file_stamps([*logs, *map_files(root.maps)])}
    job_made_by = {name: made_by[name] for name in ("version", "format", "filter")} | remembering(reference_memory)
    jobs = [LogJob(path, split, chosen, root.maps, job_made_by, reference_memory == "log") for path in logs]
    built = []
    with making(out, made_by, found) as is_open:
        if not is_open:
            return store.read_scenes(out)
        for result in run_logs(partial(_cache_log, out), jobs, workers, chosen.max_scenes):
            built.append(result)
            if progress:
                progress(len(built), len(jobs), result)
        built.sort(key=lambda result: result.log_name)
        tokens = {result.log_name: result.tokens for result in built}
        skipped = [item for result in built for item in result.skipped]
        seen = {token for result in built for token in result.tokens} | {item.token for item in skipped}
        names = {path.stem for path in logs} | {name for result in built for name in result.logs}
        if not seen:
            raise empty_split(root, split, chosen)
        if len(seen) == len(skipped):
            where = root.logs / split
            raise InputError(
                f"{where}: none of {counted(len(skipped), 'scene')} can be cached; first: {skipped[0].reason}"
            )
        facts = {
            "split": split,
            "data_root": made_by["data_root"],
            "filter": made_by["filter"],
            "skipped": [item._asdict() for item in skipped],
            "absent": absent(chosen, names, seen),
        }
        return store.finish_cache(out, tokens, facts, {**made_by, **found})


def remembering(memory: Memory) -> dict[str, str]:
    """What a record of what made a cache says of PDM-Closed's memory; nothing where there is none."""
    return {} if memory == "none" else {REFERENCE_MEMORY: memory}


def build_scenes(
    root: DataRoot, split: str, chosen: SceneFilter, workers: int = 1
) -> tuple[dict[str, SceneCache], list[Skipped]]:
    """The caches of a filter's scenes in memory, and the scenes that have none."""
    jobs = [LogJob(path, split, chosen, root.maps, {}) for path in find_logs(root, split, chosen)]
    scenes: dict[str, SceneCache] = {}
    skipped: list[Skipped] = []
    wanted = len(chosen.tokens) if chosen.tokens is not None else None
    for built in run_logs(_scenes_of_log, jobs, workers, chosen.max_scenes):
        for scene in built.scenes:
            if scene.token in scenes:
                raise InputError(
                    f"token {scene.token}: occurs in logs {scenes[scene.token].log_name} and {scene.log_name}; "
                    "remove one of them"
                )
            scenes[scene.token] = scene
        skipped += built.skipped
        if wanted is not None and len(scenes) + len(skipped) >= wanted:
            break
    return scenes, skipped


def describe(chosen: SceneFilter) -> dict[str, Any]:
    """A filter as JSON."""
    lists = {name: getattr(chosen, name) for name in ("log_names", "tokens")}
    return {**vars(chosen), **{name: None if value is None else sorted(value) for name, value in lists.items()}}


def run_logs(
    work: Callable[[LogJob], Built], jobs: list[LogJob], workers: int, max_scenes: int | None
) -> Iterator[Built]:
    """Results as they come. With `max_scenes` logs are done one after the other, since each depends on the last."""
    if max_scenes is None:
        yield from (built for _, built in in_processes(work, jobs, workers))
        return
    for job in jobs:
        if max_scenes <= 0:
            return
        built = work(replace(job, filter=replace(job.filter, max_scenes=max_scenes)))
        max_scenes -= len(built.tokens) + len(built.skipped)
        yield built


def _scenes_of_log(job: LogJob) -> Built:
    skipped: list[Skipped] = []
    scenes = tuple(_caches(job, skipped))
    return Built(job.log.stem, tuple(scene.token for scene in scenes), tuple(skipped), scenes)


def _cache_log(out: Path, job: LogJob) -> Built:
    """Write the file of one log, unless it is there, made of the same inputs."""
    path = store.log_path(out, job.log.stem)
    log_hash = sha256(job.log)
    kept = _finished(path, job, log_hash)
    if kept is not None:
        return kept
    skipped: list[Skipped] = []
    made_by: dict[str, Any] = {**job.made_by, "log": job.log.name, "log_sha256": log_hash}
    made_by |= {
        "maps": {},
        "skipped": skipped,
        **({REMEMBERED: []} if job.memory else {}),
    }  # filled while the scenes are made; the footer is written after them
    caches = _caches(job, skipped, made_by["maps"], made_by.get(REMEMBERED))
    facts = log_file.write_log(path, caches, made_by)
    return _built(job.log.stem, facts, tuple(skipped))


def _finished(path: Path, job: LogJob, log_hash: str) -> Built | None:
    try:
        facts = log_file.read_facts(path)
    except InputError:  # absent, torn or of another format: make it again
        return None
    made_by = facts.made_by
    if (REFERENCE_MEMORY in made_by) != job.memory:
        return None
    same_inputs = {**job.made_by, "log_sha256": log_hash}.items() <= made_by.items()
    if not same_inputs or any(_map_hash(job.maps, name) != known for name, known in made_by["maps"].items()):
        return None
    return _built(job.log.stem, facts, tuple(Skipped(*item) for item in made_by["skipped"]))


def _built(name: str, facts: log_file.LogFacts, skipped: tuple[Skipped, ...]) -> Built:
    logs = {scene[1] for scene in facts.scenes} | {item.log_name for item in skipped}
    return Built(name, tuple(scene[0] for scene in facts.scenes), skipped, logs=tuple(sorted(logs)))


def _caches(
    job: LogJob, skipped: list[Skipped], maps: dict[str, str] | None = None, remembered: list[str] | None = None
) -> Iterator[SceneCache]:
    """The scenes of one log in time order; what cannot be cached goes to `skipped`, what the planner remembers at the
    end to `remembered`."""
    memory: set[str] | None = set() if job.memory else None
    for scene in log_scenes(job.log, job.split, job.filter)[: job.filter.max_scenes]:
        name = scene.now.map_name
        city = load_map(str(job.maps), name)
        if maps is not None and name not in maps:
            maps[name] = _map_hash(job.maps, name)
        try:
            yield build_scene(scene, city, memory)
        except InputError as problem:
            skipped.append(Skipped(scene.token, scene.now.log_name, str(problem)))
    if remembered is not None:
        remembered += sorted(memory or ())


_MAP_HASHES: dict[Path, str] = {}


def _map_hash(maps: Path, name: str) -> str:
    path = map_path(maps, name)
    if path not in _MAP_HASHES:
        _MAP_HASHES[path] = sha256(path)
    return _MAP_HASHES[path]


def skipped_in(folder: str | Path) -> dict[str, str]:
    """Token -> reason of the scenes that a cache folder lists as skipped."""
    return {item["token"]: item["reason"] for item in store.read_scenes(folder)["skipped"]}
