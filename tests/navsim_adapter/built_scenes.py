"""Scenes of the developer sets built from logs and maps, for tests of what is not in the official caches."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from navsim_adapter.cache.build import build_scene
from navsim_adapter.nuplan.logs import read_log
from navsim_adapter.nuplan.maps import Map, load_map
from navsim_adapter.nuplan.objects import FrameObjects
from navsim_adapter.nuplan.scenes import Scene
from navsim_adapter.scene_cache import SceneCache

FUTURE = 10


@cache
def listed(root: Path) -> dict[str, dict[str, object]]:
    """token -> entry of the set's scenes.json."""
    return {entry["token"]: entry for entry in json.loads((root / "scenes.json").read_text())}


def scene(root: Path, token: str) -> Scene:
    entry = listed(root)[token]
    frames = read_log(root / "navsim_logs" / "mini" / f"{entry['log_name']}.pkl")
    now = int(str(entry["frame_idx"]))
    return Scene(token, "mini", tuple(frames[now - 3 : now + 1 + FUTURE]), 4)


def city(root: Path, name: str, maps: Path | None = None) -> Map:
    return load_map(str(maps or root / "maps"), name)


@cache
def built(root: Path, token: str, maps: Path | None = None) -> tuple[SceneCache, Map, FrameObjects]:
    """The cache of a scene, its map, and the objects of its current frame."""
    chosen = scene(root, token)
    town = city(root, chosen.now.map_name, maps)
    return build_scene(chosen, town), town, chosen.moments(1)[0].objects
