"""Scenes as the official metric caches hold them, and the official score tables (navsim_dev layout)."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from functools import cache
from pathlib import Path

import numpy as np

from navsim_adapter.scene_cache import EPDMS, PDMS, STEPS, AreaType, ObjectType, Polygons, SceneCache


def has_map(root: Path, token: str) -> bool:
    """Whether the token's cache keeps its polygons and all its boxes (some of navsim_quirks do not)."""
    with np.load(root / "caches" / "v1" / f"{token}.npz") as v1:
        return "drivable_coords" in v1.files and len(np.unique(v1["box_step"])) in (0, STEPS)


def load_scene(root: Path, token: str) -> SceneCache:
    v1 = dict(np.load(root / "caches" / "v1" / f"{token}.npz"))
    v2 = {**v1, **np.load(root / "caches" / "v2" / f"{token}.npz")}
    scene = next(scene for scene in json.loads((root / "scenes.json").read_text()) if scene["token"] == token)
    route = {str(lane) for lane in v1["route_lane_ids"]}
    kinds = np.array([AreaType[str(kind)] for kind in v1["drivable_types"]], np.int8)
    ids = tuple(str(area) for area in v1["drivable_tokens"])
    is_lane = (kinds == AreaType.LANE) | (kinds == AreaType.LANE_CONNECTOR)
    own, other = _objects(v1, STEPS, PDMS), _objects(v2, 41, EPDMS)
    lights, red, light_ids = _lights(v2)
    return SceneCache(
        token=token,
        log_name=scene["log_name"],
        map_name=scene["map"],
        time_us=int(v1["ego_time_us"]),
        is_synthetic=False,
        ego_state=v1["ego_state"],
        centerline=v1["centerline"],
        route_lane_ids=tuple(str(lane) for lane in v1["route_lane_ids"]),
        areas=_areas(v1),
        area_type=kinds,
        area_on_route=is_lane & np.array([area in route for area in ids], bool),
        area_ids=ids,
        object_tokens=own["tokens"] + other["tokens"],
        object_type=np.concatenate([own["type"], other["type"]]),
        object_versions=np.concatenate([own["versions"], other["versions"]]),
        object_size=np.concatenate([own["size"], other["size"]]),
        object_pose=np.concatenate([own["pose"], other["pose"]]),
        object_velocity=np.concatenate([own["velocity"], other["velocity"]]),
        lights=lights,
        light_red=red,
        light_ids=light_ids,
        human_future=v2["human_trajectory"],
        past_states=v2["past_human_states"],
        past_time_us=v2["past_human_time_us"],
        reference_pdms=v1["pdm_closed_at_10hz"][:, :3],
        reference_epdms=v2["pdm_closed_at_10hz"][:, :3],
    )


def _areas(cache: dict[str, np.ndarray]) -> Polygons:
    sizes, polygon_of_ring = cache["drivable_sizes"], np.arange(len(cache["drivable_sizes"]))
    if "drivable_rings" in cache:
        polygon_of_ring, sizes = cache["drivable_rings"][:, 0], cache["drivable_rings"][:, 3]
    counts = np.bincount(polygon_of_ring, minlength=len(cache["drivable_sizes"]))
    return Polygons(cache["drivable_coords"], _starts(sizes), _starts(counts))


def _starts(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _objects(cache: dict[str, np.ndarray], steps: int, version: int) -> dict:
    tokens = [str(token) for token in cache["object_token"]]
    rows = {token: row for row, token in enumerate(tokens)}
    pose, size = np.full((len(tokens), STEPS, 3), np.nan), np.zeros((len(tokens), 2))
    for step, token, box in zip(cache["box_step"], cache["box_token"], cache["box_coords"]):
        if step >= steps:
            continue
        row = rows[str(token)]
        front_left, rear_left, rear_right, front_right = box[:4]
        along = (front_left + front_right - rear_left - rear_right) / 2
        across = (front_left + rear_left - front_right - rear_right) / 2
        pose[row, step] = *(front_left + rear_right) / 2, np.arctan2(along[1], along[0])
        size[row] = np.hypot(*along), np.hypot(*across)
    return {
        "tokens": tuple(tokens),
        "type": np.array([ObjectType[str(kind).upper()] for kind in cache["object_type"]], np.int8),
        "versions": np.full(len(tokens), version, np.uint8),
        "pose": pose,
        "size": size,
        "velocity": np.nan_to_num(cache["object_velocity"].reshape(-1, 2)),
    }


def _lights(cache: dict[str, np.ndarray]) -> tuple[Polygons, np.ndarray, tuple[str, ...]]:
    sizes = cache["red_light_sizes"]
    ends = np.cumsum(sizes)
    polygons: dict[str, np.ndarray] = {}
    red = defaultdict(lambda: np.zeros(41, bool))
    for step, token, end, size in zip(cache["red_light_step"], cache["red_light_token"], ends, sizes):
        polygons[str(token)] = cache["red_light_coords"][end - size : end]
        red[str(token)][step] = True
    ids = tuple(polygons)
    vertices = np.concatenate([np.empty((0, 2)), *polygons.values()])
    starts = _starts(np.array([len(polygon) for polygon in polygons.values()], int))
    flags = np.array([red[token] for token in ids], bool).reshape(-1, 41)
    return Polygons(vertices, starts, np.arange(len(ids) + 1, dtype=np.int64)), flags, ids


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@cache
def fragile_cells(root: Path, version: str) -> frozenset[tuple[str, str, str]]:
    rows = read_table(root / "fragile.csv") if (root / "fragile.csv").exists() else []
    return frozenset((row["token"], row["name"], row["column"]) for row in rows if row["version"] == version)
