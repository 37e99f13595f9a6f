"""Import of whole official cache trees into a cache folder, log by log in a process pool, resumable.

`official` reads single files; `folder` builds the same kind of folder from logs and maps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from navsim_adapter import __version__
from navsim_adapter.cache import log_file, store
from navsim_adapter.cache.health import KEY, Humans
from navsim_adapter.cache.official import find_official, import_log, listed_only
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import file_stamps, making
from navsim_adapter.foundation.foreign import data_files
from navsim_adapter.foundation.parallel import in_processes
from navsim_adapter.nuplan.maps import map_files, map_index
from navsim_adapter.scene_cache import SceneCache


def import_official(
    tree: str | Path,
    out: str | Path,
    other: str | Path | None = None,
    maps: str | Path | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Import a devkit metric cache into the folder `out`; returns the content of its `scenes.json`.

    other: a tree of the other devkit version; scenes in both then serve both metrics.
    maps: nuPlan's map root; with it EPDMS can also be scored in simulated traffic.
    A scene that the tree's index lists and whose file is not there is listed as skipped.
    A finished folder of the same inputs is left alone. Raises InputError naming the first file that cannot be read, and
    for a tree that was made where the devkit's fit had failed (`health`).
    """
    out, tree = Path(out), Path(tree)
    if maps:
        map_index(maps)
    logs = find_official(tree)
    twins = {path.parts[-2]: path for paths in (find_official(other) if other else {}).values() for path in paths}
    made_by = {
        "command": "navsim-adapter cache --official",
        "version": __version__,
        "format": log_file.FORMAT,
        "official": str(tree.resolve()),
        "other": str(Path(other).resolve()) if other else None,
        "maps": str(Path(maps).resolve()) if maps else None,
    }
    sources = [path for paths in logs.values() for path in paths]
    index = data_files(tree / "metadata", "*.csv")
    found = {"inputs": file_stamps([*sources, *index, *twins.values(), *(map_files(Path(maps)) if maps else ())])}
    with making(out, made_by, found) as is_open:
        if not is_open:
            return store.read_scenes(out)
        jobs = [(store.log_path(out, name), paths, _twins_of(paths, twins), made_by) for name, paths in logs.items()]
        tokens: dict[str, tuple[str, ...]] = {}
        humans = Humans()
        for done, (_, (name, own, counts)) in enumerate(in_processes(_import, jobs, workers), 1):
            tokens[name] = own
            humans.add(counts)
            if progress:
                progress(done, len(jobs))
        humans.require_sound(tree)
        skipped = [
            {"token": token, "log_name": log, "reason": f"scene {token} of {log}: {tree} lists it and has no such file"}
            for token, log in listed_only(tree, logs)
        ]
        facts = {"split": tree.name, "data_root": made_by["official"], "filter": {}, "skipped": skipped}
        return store.finish_cache(out, tokens, facts, {**made_by, **found})


_Job = tuple[Path, list[Path], dict[str, Path], dict[str, Any]]


def _twins_of(paths: list[Path], twins: dict[str, Path]) -> dict[str, Path]:
    return {path.parts[-2]: twins[path.parts[-2]] for path in paths if path.parts[-2] in twins}


def _import(job: _Job) -> tuple[str, tuple[str, ...], list[int]]:
    """Write the file of one log, unless it is there, made of the same files."""
    path, sources, twins, made_by = job
    facts = {**made_by, "files": [[file.parts[-2], file.stat().st_size] for file in (*sources, *twins.values())]}
    try:
        known = log_file.read_facts(path)
        counts = known.made_by.get(KEY)
        if counts and dict(known.made_by) == {**facts, KEY: counts}:
            return _name(path), tuple(scene[0] for scene in known.scenes), counts
    except InputError:  # absent, torn or of another format: make it again
        pass
    counts = []  # filled while the scenes are made; the footer is written after them
    scenes = _sound(import_log(sources, twins, made_by["maps"]), sources[0].parents[2], counts)
    written = log_file.write_log(path, scenes, {**facts, KEY: counts})
    return _name(path), tuple(scene[0] for scene in written.scenes), counts


def _sound(scenes: Iterator[SceneCache], where: Path, counts: list[int]) -> Iterator[SceneCache]:
    """The scenes as they come; raises InputError for a sick one, and leaves how the human fares in `counts`."""
    humans = Humans()
    for scene in scenes:
        try:
            humans.see(scene)
        except InputError as problem:
            raise InputError(f"{where}: {problem}") from problem
        yield scene
    counts += humans.counts


def _name(path: Path) -> str:
    return path.name.removesuffix(store.SUFFIX)
