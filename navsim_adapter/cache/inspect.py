"""What a cache folder holds, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from navsim_adapter.cache.health import Humans
from navsim_adapter.cache.store import LOGS, SUFFIX, open_cache, read_scenes
from navsim_adapter.foundation.errors import InputError, did_you_mean
from navsim_adapter.foundation.files import MANIFEST, read_json, verify
from navsim_adapter.foundation.words import counted
from navsim_adapter.scene_cache import EPDMS, PDMS, AreaType, ObjectType, SceneCache


def describe_cache(folder: str | Path) -> list[str]:
    """Lines on a whole folder."""
    folder = Path(folder)
    cache = open_cache(folder)
    content = read_scenes(folder)
    made_by = read_json(folder / MANIFEST).get("made_by", {})
    size = sum(path.stat().st_size for path in (folder / LOGS).glob("*" + SUFFIX))
    per_scene = size / max(len(cache), 1) / 1000
    lines = [
        f"{folder}: {counted(len(cache), 'scene')} of {counted(len(cache.logs), 'log')}, {size / 1e6:.1f} "
        f"MB, {per_scene:.0f} kB per scene",
        f"split {content['split']}, made by navsim-adapter {made_by.get('version')}, format {made_by.get('format')}",
        f"{counted(len(content['skipped']), 'scene')} skipped",
    ]
    return lines + [f"  {item['reason']}" for item in content["skipped"]]


def describe_scene(folder: str | Path, token: str) -> list[str]:
    """Lines on one scene."""
    cache = open_cache(folder)
    if token not in cache:
        raise InputError(f"{folder}: has no scene {token}{did_you_mean(token, list(cache))}; check the token")
    scene = cache[token]
    metrics = [name for bit, name in ((PDMS, "pdms"), (EPDMS, "epdms")) if scene.versions & bit]
    kinds = Counter(AreaType(kind).name.lower() for kind in scene.area_type)
    return [
        f"{token}: log {scene.log_name}, map {scene.map_name}, time {scene.time_us} us, for {' and '.join(metrics)}",
        f"ego at {scene.ego_state[0]:.2f}, {scene.ego_state[1]:.2f} m, heading {scene.ego_state[2]:.3f} rad, "
        f"speed {float(np.hypot(*scene.ego_state[3:5])):.2f} m/s",
        f"map: {len(scene.areas)} polygons ({', '.join(f'{count} {name}' for name, count in kinds.items())})",
        f"route: {len(scene.route_lane_ids)} lanes, centerline of {len(scene.centerline)} vertices",
        f"objects: {_objects(scene)}",
        f"red lights: {', '.join(scene.light_ids) or 'none'}",
        f"human future: {'none' if scene.human_future is None else f'{len(scene.human_future)} poses'}",
        f"extra arrays: {', '.join(scene.extras) or 'none'}",
    ]


def verify_cache(folder: str | Path, progress: Callable[[int, int], None] = lambda done, total: None) -> int:
    """Check the checksums of every file and scene, and that the scenes are sound; returns how many there are.

    Raises InputError for a damaged file, and for a cache made where the devkit's fit had failed (`health`).
    """
    verify(folder)
    cache = open_cache(folder)
    require_sound(cache, list(cache), folder, progress)
    return len(cache)


def require_sound(
    cache: Mapping[str, SceneCache],
    tokens: Sequence[str],
    where: str | Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Read these scenes; raises InputError for sick ones."""
    humans = Humans()
    for done, token in enumerate(tokens, 1):
        try:
            humans.see(cache[token])
        except InputError as problem:
            raise InputError(f"{where}: {problem}") from problem
        progress(done, len(tokens))
    humans.require_sound(where)


def _objects(scene: SceneCache) -> str:
    counts: Counter[str] = Counter()
    for kind, token in {(int(k), t) for k, t in zip(scene.object_type, scene.object_tokens)}:
        counts[ObjectType(kind).name.lower()] += bool(token)
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"
