"""Caches of second-stage scenes (metric 2.3), one pickle a scene: in memory (`build_second_stage`) or a cache folder.

A folder holds one file per chunk of pickles, so that neighbours share their map. `folder` does the same for logs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from navsim_adapter import __version__
from navsim_adapter.cache import log_file, store
from navsim_adapter.cache.build import build_scene
from navsim_adapter.cache.folder import REFERENCE_MEMORY, REMEMBERED, Built, Skipped
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import file_stamps, making, stamp
from navsim_adapter.foundation.parallel import in_processes
from navsim_adapter.nuplan.maps import load_map, map_files, map_index
from navsim_adapter.nuplan.second_stage import FOLDER, SPLIT, read_second_stage, second_stage_files
from navsim_adapter.scene_cache import SceneCache

CHUNK = 16  # pickles a job


@dataclass(frozen=True)
class _Chunk:
    """Pickles to cache. tokens: those wanted, None for all.  out: file to write, None to keep the scenes.

    memory: what PDM-Closed remembers before the first of them, None for no memory (metric 10.3).
    """

    name: str
    files: tuple[Path, ...]
    maps: Path
    tokens: frozenset[str] | None = None
    out: Path | None = None
    memory: tuple[str, ...] | None = None


def build_second_stage(
    folder: str | Path, maps: Path, tokens: frozenset[str] | None = None, workers: int = 1
) -> tuple[dict[str, SceneCache], list[Skipped]]:
    """The caches of second-stage scenes in memory, and the scenes that the official code cannot cache either.

    maps: root of the nuPlan maps.  tokens: scenes wanted, by default all.  Raises InputError for an unreadable file.
    """
    chunks = [_Chunk(name, files, maps, tokens) for name, files in _chunks(second_stage_files(folder))]
    scenes: dict[str, SceneCache] = {}
    skipped: list[Skipped] = []
    for _, built in in_processes(_work, chunks, workers):
        for scene in built.scenes:
            if scene.token in scenes:
                where = Path(folder) / FOLDER
                raise InputError(f"{where}: two files hold the rendered scene {scene.token}; remove one of them")
            scenes[scene.token] = scene
        skipped += built.skipped
    return scenes, skipped


def cache_second_stage(
    folder: str | Path,
    maps: Path,
    out: str | Path,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    first_stage: str | Path | None = None,
) -> dict[str, Any]:
    """Cache every second-stage scene into the folder `out`; returns the content of its `scenes.json`.

    first_stage: a cache made with a memory by log, whose logs the scenes continue, by name of file (metric 10.3).
    A finished folder of the same inputs is left alone, finished chunks of an interrupted run are kept.
    """
    out, files = Path(out), second_stage_files(folder)
    map_index(maps)
    made_by = {
        "command": "navsim-adapter cache --two-stage",
        "version": __version__,
        "format": log_file.FORMAT,
        "two_stage": str(Path(folder).resolve()),
        "maps_root": str(maps.resolve()),
        **({REFERENCE_MEMORY: "log", "first_stage": stamp(first_stage)} if first_stage else {}),
    }
    found = {"inputs": file_stamps([*files, *map_files(maps)])}
    with making(out, made_by, found) as is_open:
        if not is_open:
            return store.read_scenes(out)
        if first_stage:
            chunks = _chunks_by_log(files, maps, out, Path(first_stage))
        else:
            chunks = [_Chunk(name, part, maps, out=store.log_path(out, name)) for name, part in _chunks(files)]
        return _cache_chunks(chunks, out, workers, progress, {**made_by, **found})


def _cache_chunks(
    chunks: Sequence[_Chunk],
    out: Path,
    workers: int,
    progress: Callable[[int, int], None] | None,
    made_by: Mapping[str, Any],
) -> dict[str, Any]:
    built = []
    for _, result in in_processes(_work, chunks, workers):
        built.append(result)
        if progress:
            progress(len(built), len(chunks))
    built.sort(key=lambda result: result.log_name)
    skipped = [item for result in built for item in result.skipped]
    facts = {
        "split": SPLIT,
        "data_root": made_by["two_stage"],
        "filter": {},
        "skipped": [item._asdict() for item in skipped],
    }
    return store.finish_cache(out, {result.log_name: result.tokens for result in built}, facts, made_by)


def _chunks(files: Sequence[Path]) -> list[tuple[str, tuple[Path, ...]]]:
    starts = range(0, len(files), CHUNK)
    return [(f"second-stage-{start // CHUNK:05d}", tuple(files[start : start + CHUNK])) for start in starts]


def _chunks_by_log(files: Sequence[Path], maps: Path, out: Path, first_stage: Path) -> list[_Chunk]:
    """A chunk a log, so that one planner meets its scenes in the order of their files."""
    logs: dict[str, list[Path]] = {}
    for path in sorted(files):
        logs.setdefault(read_second_stage(path).now.log_name, []).append(path)
    places = {name: f"second-stage-{place:05d}" for place, name in enumerate(sorted(logs))}
    return [
        _Chunk(
            places[name], tuple(own), maps, None, store.log_path(out, places[name]), _remembered(first_stage, name)
        )
        for name, own in sorted(logs.items())
    ]  # fmt: skip


def _remembered(first_stage: Path, log_name: str) -> tuple[str, ...]:
    """What PDM-Closed remembers at the end of a log's recorded scenes."""
    path = store.log_path(first_stage, log_name)
    if log_name not in store.open_cache(first_stage).logs:
        return ()  # nothing recorded of this log is scored
    known = log_file.read_facts(path).made_by
    if REMEMBERED not in known:
        raise InputError(f"{path}: was made without a memory; cache the first stage with --reference-memory log")
    return tuple(known[REMEMBERED])


def _work(chunk: _Chunk) -> Built:
    skipped: list[Skipped] = []
    if chunk.out is None:
        scenes = tuple(_scenes(chunk, skipped))
        return Built(chunk.name, tuple(scene.token for scene in scenes), tuple(skipped), scenes)
    sources = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in chunk.files]
    made_by: dict[str, Any] = {"version": __version__, "maps": file_stamps(map_files(chunk.maps)), "sources": sources}
    if chunk.memory is not None:
        made_by["memory"] = list(chunk.memory)
    try:
        known = log_file.read_facts(chunk.out)
        if {**known.made_by, "skipped": None} == {**made_by, "skipped": None}:
            tokens = tuple(scene[0] for scene in known.scenes)
            return Built(chunk.name, tokens, tuple(Skipped(*item) for item in known.made_by["skipped"]))
    except InputError:  # absent, torn or of another format: make it again
        pass
    facts = log_file.write_log(chunk.out, _scenes(chunk, skipped), {**made_by, "skipped": skipped})
    return Built(chunk.name, tuple(scene[0] for scene in facts.scenes), tuple(skipped))


def _scenes(chunk: _Chunk, skipped: list[Skipped]) -> Iterator[SceneCache]:
    memory = None if chunk.memory is None else set(chunk.memory)
    for path in chunk.files:
        scene = read_second_stage(path)
        if chunk.tokens is not None and scene.token not in chunk.tokens:
            continue
        city = load_map(str(chunk.maps), scene.now.map_name)
        try:
            yield build_scene(scene, city, memory)
        except InputError as problem:
            skipped.append(Skipped(scene.token, scene.now.log_name, str(problem)))
