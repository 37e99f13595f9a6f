"""Import of the devkit's own metric caches: one LZMA pickle of devkit objects per scene -> `SceneCache` (metric 4.1).

The devkit is not needed. Pickles pass through `unpickle`, which makes inert `Record`s of devkit classes; this file
knows which attributes they carry. Geometries are pickled as well-known binary; it is parsed here, polygons only,
because GEOS would follow collections nested as deep as the file asks.

A v1.1 cache serves PDMS only, a v2.2 cache EPDMS only: what the other metric needs is absent (NaN, no rows) and
`versions` says so. `combine` joins the two caches of one scene. Importing keeps what only an official run has: the
reference trajectory as its builder, which carries state from scene to scene, left it (metric 10.3).
"""

from __future__ import annotations

import lzma
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.foreign import data_files, what_it_is
from navsim_adapter.nuplan.objects import FrameObjects, recorded_objects, recorded_velocities
from navsim_adapter.nuplan.unpickle import Record, loads
from navsim_adapter.scene_cache import EPDMS, PDMS, STEPS, AreaType, ObjectType, Polygons, SceneCache
from navsim_adapter.vehicle import AXLE_TO_CENTER

FILE_NAME = "metric_cache.pkl"
LARGEST_PICKLE = 2**28  # bytes unpacked; real ones have a few million
REFERENCE_STATES = 41
LIGHT_STEPS = 41
_STEPS = {PDMS: STEPS, EPDMS: LIGHT_STEPS}
_LIGHT = "red_light_"
_AREA_TYPES = {  # nuPlan's SemanticMapLayer values
    0: AreaType.LANE,
    1: AreaType.INTERSECTION,
    11: AreaType.LANE_CONNECTOR,
    15: AreaType.CARPARK_AREA,
    17: AreaType.ROADBLOCK,
}
_STEEP = 1e-6  # m per radian: coordinates that move less say nothing about the heading
_WKB_POLYGON, _WKB_MULTIPOLYGON = 3, 6
_WKB_Z, _WKB_M, _WKB_SRID = 0x80000000, 0x40000000, 0x20000000


@dataclass(frozen=True)
class Shape:
    """A polygon or multipolygon: its closed rings, each (n, 2), outer ring first within each part."""

    rings: tuple[np.ndarray, ...]


def find_official(folder: str | Path) -> dict[str, list[Path]]:
    """Cache files of a tree `<log>/<scenario type>/<token>/metric_cache.pkl`, by log, both sorted."""
    folder = Path(folder)
    logs: dict[str, list[Path]] = {}
    for path in sorted(folder.glob(f"*/*/*/{FILE_NAME}")):
        logs.setdefault(path.parts[-4], []).append(path)
    if not logs:
        raise InputError(f"{folder}: holds no <log>/<type>/<token>/{FILE_NAME}; give the devkit's metric cache folder")
    return logs


def listed_only(folder: str | Path, logs: Mapping[str, Sequence[Path]]) -> list[tuple[str, str]]:
    """(token, log) of the scenes that the tree's index (metadata/*.csv) lists and that are not among its files.

    Of a listed path its last parts count: trees are copied, and the index keeps where it was made.
    """
    there = {path.parts[-2] for paths in logs.values() for path in paths}
    found: dict[str, str] = {}
    for index in data_files(Path(folder) / "metadata", "*.csv"):
        for line in index.read_bytes().decode(errors="replace").splitlines():
            parts = line.strip().strip('"').replace("\\", "/").split("/")
            if len(parts) >= 4 and parts[-1].split(",")[0].strip('"') == FILE_NAME and parts[-2] not in there:
                found[parts[-2]] = parts[-4]
    return sorted(found.items())


def import_log(
    paths: Sequence[Path], other: dict[str, Path] | None = None, maps: str | Path | None = None
) -> Iterator[SceneCache]:
    """Scenes of one log in time order; `other` maps tokens to the cache of the other devkit version, to combine."""
    scenes = sorted((read_official(path, maps) for path in paths), key=lambda scene: scene.time_us)
    for scene in scenes:
        twin = (other or {}).get(scene.token)
        yield scene if twin is None else combine(scene, read_official(twin, maps))


def read_official(path: str | Path, maps: str | Path | None = None) -> SceneCache:
    """The scene of one official cache file; raises InputError if it is damaged or not a metric cache.

    maps: nuPlan's map root, which simulated traffic needs (EPDMS); log replay does not.
    """
    path = Path(path)
    root = loads(_unpacked(path), str(path), {("shapely.io", "from_wkb"): read_wkb})
    if not isinstance(root, Record) or not root.kind.endswith(".MetricCache"):
        raise InputError(f"{path}: holds no metric cache; give a {FILE_NAME} written by the devkit")
    try:
        scene = _scene(root, path)
        current = None
        if maps is not None and scene.versions == EPDMS:  # the objects before resampling added others
            current = recorded_objects(root.current_tracked_objects[0].tracked_objects.tracked_objects)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as problem:
        if isinstance(problem, InputError):
            raise InputError(f"{path}: {problem}") from problem
        reason = f"{type(problem).__name__}: {problem}"
        raise InputError(f"{path}: not laid out as devkit 1.1 or 2.2 writes it ({reason}); cache it again") from problem
    return scene if current is None else _with_traffic(scene, current, str(maps))


def combine(pdms: SceneCache, epdms: SceneCache) -> SceneCache:
    """One cache for both metrics from the v1.1 and the v2.2 cache of a scene (in either order)."""
    if pdms.versions == EPDMS:
        pdms, epdms = epdms, pdms
    if (pdms.versions, epdms.versions) != (PDMS, EPDMS):
        raise InputError(f"scene {pdms.token}: to combine, one cache must be of devkit 1.1 and the other of 2.2")
    same = pdms.area_ids == epdms.area_ids and pdms.route_lane_ids == epdms.route_lane_ids
    if not same or (pdms.token, pdms.time_us) != (epdms.token, epdms.time_us):
        raise InputError(f"scene {pdms.token}: the two official caches differ in time, map or route; cache both again")
    return replace(
        epdms,
        object_tokens=pdms.object_tokens + epdms.object_tokens,
        object_type=np.concatenate([pdms.object_type, epdms.object_type]),
        object_versions=np.concatenate([pdms.object_versions, epdms.object_versions]),
        object_size=np.concatenate([pdms.object_size, epdms.object_size]),
        object_pose=np.concatenate([pdms.object_pose, epdms.object_pose]),
        object_velocity=np.concatenate([pdms.object_velocity, epdms.object_velocity]),
        reference_pdms=pdms.reference_pdms,
        versions=PDMS | EPDMS,
    )


def read_wkb(content: bytes) -> Shape:
    """Rings of a (multi)polygon in little-endian well-known binary, as shapely pickles it, in x and y alone."""
    kind, place, width = _wkb_header(content, 0)
    if kind == _WKB_POLYGON:
        return Shape(tuple(_wkb_rings(content, place, width)[0]))
    if kind != _WKB_MULTIPOLYGON:
        raise ValueError(f"a geometry of type {kind}, only polygons are expected")
    (parts,) = struct.unpack_from("<I", content, place)
    place += 4
    rings: list[np.ndarray] = []
    for _ in range(parts):
        kind, place, width = _wkb_header(content, place)
        if kind != _WKB_POLYGON:
            raise ValueError(f"a multipolygon with a part of type {kind}")
        found, place = _wkb_rings(content, place, width)
        rings += found
    return Shape(tuple(rings))


def _wkb_header(content: bytes, place: int) -> tuple[int, int, int]:
    """Geometry type, where its counts start, numbers per vertex."""
    order, flags = struct.unpack_from("<BI", content, place)
    if order != 1:
        raise ValueError("a geometry that is not little-endian")
    further, kind = divmod(flags & 0xFFFF, 1000)  # ISO's own code: 1 with a height, 2 with a measure, 3 with both
    if further > 3 or flags & ~(0xFFFF | _WKB_Z | _WKB_M | _WKB_SRID):
        raise ValueError(f"a geometry of the unknown type {flags:#x}")
    has_height, has_measure = bool(flags & _WKB_Z or further & 1), bool(flags & _WKB_M or further & 2)
    return kind, place + (9 if flags & _WKB_SRID else 5), 2 + has_height + has_measure


def _wkb_rings(content: bytes, place: int, width: int) -> tuple[list[np.ndarray], int]:
    (count,) = struct.unpack_from("<I", content, place)
    place += 4
    rings = []
    for _ in range(count):
        (vertices,) = struct.unpack_from("<I", content, place)
        rings.append(np.frombuffer(content, "<f8", vertices * width, place + 4).reshape(-1, width)[:, :2])
        place += 4 + vertices * width * 8
    return rings, place


def _unpacked(path: Path) -> bytes:
    try:
        packed = path.read_bytes()
    except OSError as problem:
        raise InputError(f"{path}: cannot be read ({problem.strerror}); check the path") from problem
    try:
        unpacker = lzma.LZMADecompressor(memlimit=LARGEST_PICKLE)
        content = unpacker.decompress(packed, LARGEST_PICKLE)
    except lzma.LZMAError as problem:
        what = what_it_is(packed) or problem
        raise InputError(f"{path}: not an LZMA file ({what}); cache the scene again with the devkit") from problem
    if not unpacker.eof:
        what = "cut short" if unpacker.needs_input else f"larger than {LARGEST_PICKLE} bytes unpacked"
        raise InputError(f"{path}: {what}; cache the scene again with the devkit")
    return content


def _scene(root: Record, path: Path) -> SceneCache:
    version = EPDMS if hasattr(root, "scene_type") else PDMS
    token, log_name = path.parts[-2], path.parts[-4]
    time_us = int(root.ego_state._time_point.time_us)
    centerline = np.array([_pose(state) for state in root.centerline.args[0]])
    centerline[:, 2] = np.unwrap(centerline[:, 2])
    reference = sample_reference(root.trajectory.args[0], time_us)
    missing = np.full((REFERENCE_STATES, 3), np.nan)
    past = root.past_human_trajectory.args[0] if version == EPDMS else []
    future = root.human_trajectory.poses if version == EPDMS and root.human_trajectory is not None else None
    return SceneCache(
        token=token,
        log_name=log_name,
        map_name=root.map_parameters.map_name if version == EPDMS else "",
        time_us=time_us,
        is_synthetic=bool(root.scene_type.args[0]) if version == EPDMS else False,
        ego_state=_ego_state(root.ego_state),
        centerline=centerline,
        route_lane_ids=tuple(root.route_lane_ids),
        **_areas(root.drivable_area_map, set(root.route_lane_ids)),
        **_objects(root.observation, version),
        **_lights(root.observation if version == EPDMS else None),
        human_future=None if future is None else np.array(future, np.float64),
        past_states=np.array([_ego_state(state) for state in past]) if past else np.full((4, 11), np.nan),
        past_time_us=np.array([state._time_point.time_us for state in past] if past else [0] * 4, np.int64),
        reference_pdms=reference if version == PDMS else missing,
        reference_epdms=reference if version == EPDMS else missing,
        versions=version,
    )


def _pose(state: Record) -> tuple[float, float, float]:
    return float(state.x), float(state.y), float(state.heading)


def _rear_axle(ego: Record) -> tuple[float, float, float]:
    """Officially the footprint's center is stored and the axle recomputed, with its rounding (metric 5.1)."""
    x, y, heading = _pose(ego._car_footprint._center)
    return x - AXLE_TO_CENTER * np.cos(heading), y - AXLE_TO_CENTER * np.sin(heading), heading


def _ego_state(ego: Record) -> np.ndarray:
    """(11,) as `SceneCache.ego_state`."""
    moving = ego._dynamic_car_state
    velocity, acceleration = moving._rear_axle_velocity_2d, moving._rear_axle_acceleration_2d
    rates = (moving._tire_steering_rate, moving._angular_velocity, moving._angular_acceleration)
    linear = (velocity._x, velocity._y, acceleration._x, acceleration._y)
    return np.array([*_rear_axle(ego), *linear, ego._tire_steering_angle, *rates], np.float64)


def sample_reference(states: Sequence[Record], time_us: int) -> np.ndarray:
    """(41, 3) rear-axle poses of the planned trajectory at the official query times (metric 5.1)."""
    knots = np.array([state._time_point.time_us for state in states], np.float64)
    poses = np.array([_rear_axle(state) for state in states])
    poses[:, 2] = np.unwrap(poses[:, 2])
    times = np.array([int((k * 0.1 + time_us * 1e-6) * 1e6) for k in range(REFERENCE_STATES)], np.float64)
    times = np.clip(times, knots[0], knots[-1])
    sampled = np.column_stack([np.interp(times - knots[0], knots - knots[0], column) for column in poses.T])
    sampled[:, 2] = (sampled[:, 2] + np.pi) % (2 * np.pi) - np.pi
    return sampled


def _areas(drivable: Record, route_lanes: set[str]) -> dict[str, Any]:
    ids, layers, shapes, *_ = drivable.args
    types = np.array([_AREA_TYPES[int(layer.args[0])] for layer in layers], np.int8)
    is_lane = (types == AreaType.LANE) | (types == AreaType.LANE_CONNECTOR)
    return {
        "areas": _polygons(shapes),
        "area_type": types,
        "area_on_route": is_lane & np.array([area_id in route_lanes for area_id in ids], bool),
        "area_ids": tuple(ids),
    }


def _polygons(shapes: Sequence[Shape]) -> Polygons:
    rings = [ring for shape in shapes for ring in shape.rings]
    ring_start = np.cumsum([0, *(len(ring) for ring in rings)], dtype=np.int64)
    polygon_start = np.cumsum([0, *(len(shape.rings) for shape in shapes)], dtype=np.int64)
    return Polygons(np.concatenate(rings) if rings else np.zeros((0, 2)), ring_start, polygon_start)


def _objects(observation: Record, version: int) -> dict[str, Any]:
    """Object rows: boxes of the steps from the tracks where the cache has them (v2), else from their polygons."""
    found = observation._unique_objects
    kinds = {token: int(thing._tracked_object_type.args[0]) for token, thing in found.items()}
    sizes = {token: np.array([thing._box._length, thing._box._width], float) for token, thing in found.items()}
    if version == EPDMS:
        steps = [_tracked_boxes(step) for step in observation._detections_tracks]
    else:
        steps = [_polygon_boxes(step, sizes) for step in observation._occupancy_maps]
    if len(steps) != _STEPS[version] or abs(observation._sample_interval - 0.1) > 1e-9:
        raise InputError(f"has objects at {len(steps)} steps, {_STEPS[version]} of 0.1 s are expected; cache it again")
    tokens = _official_order([list(step) for step in steps], kinds)
    rows = {token: row for row, token in enumerate(tokens)}
    poses = np.full((len(tokens), STEPS, 3), np.nan)
    for k, step in enumerate(steps):
        for token, pose in step.items():
            poses[rows[token], k] = pose
    things = [found[token] for token in tokens]
    return {
        "object_tokens": tokens,
        "object_type": np.array([ObjectType(kinds[token]) for token in tokens], np.int8),
        "object_versions": np.full(len(tokens), version, np.uint8),
        "object_size": np.array([sizes[token] for token in tokens]).reshape(-1, 2),
        "object_pose": poses,
        "object_velocity": recorded_velocities(things),
    }


def _tracked_boxes(step: Record) -> dict[str, tuple[float, float, float]]:
    things = step.tracked_objects.tracked_objects
    return {thing._metadata.track_token: _pose(thing._box._center) for thing in things}


def _polygon_boxes(step: Record, sizes: dict[str, np.ndarray]) -> dict[str, tuple[float, float, float]]:
    """Poses of rectangles given as front left, rear left, rear right, front right (metric 2.5)."""
    tokens, shapes, *_ = step.args
    return {token: _box_pose(shape.rings[0][:4], sizes[token]) for token, shape in zip(tokens, shapes)}


def _box_pose(corners: np.ndarray, size: np.ndarray) -> tuple[float, float, float]:
    """The pose whose corners round to exactly these.

    The mean of the corners is the center to the last bit. Every coordinate confines the heading to an interval, as
    wide as its rounding; the middle of what they have in common gives the same polygon again. That matters: whether
    an object lies straight behind can hang on the last bit of its centroid (metric 10.1 (4)).
    """
    local = corners - corners[0]
    center = corners[0] + local.mean(axis=0)
    ahead = local[0] + local[3] - local[1] - local[2]
    heading = float(np.arctan2(ahead[1], ahead[0]))
    along = np.array([np.cos(heading), np.sin(heading)])
    left = np.array([-along[1], along[0]])
    offsets = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2 * size
    predicted = offsets @ np.array([along, left])
    slope = offsets @ np.array([left, -along])  # of the corners by the heading
    is_steep = np.abs(slope) > _STEEP
    turn = ((corners - center) - predicted)[is_steep] / slope[is_steep]
    width = (np.spacing(np.abs(corners)) / 2)[is_steep] / np.abs(slope[is_steep])
    middle = 0.5 * ((turn - width).max() + (turn + width).min()) if len(turn) else 0.0
    return float(center[0]), float(center[1]), heading + float(middle)


def _with_traffic(scene: SceneCache, current: FrameObjects, maps: str) -> SceneCache:
    from navsim_adapter.nuplan.maps import load_map  # brings the readers of map files
    from navsim_adapter.traffic.scene import traffic_scene

    arrays = traffic_scene(load_map(maps, scene.map_name), scene.ego_state[:3], current).arrays()
    return replace(scene, extras={**scene.extras, **arrays})


def _official_order(steps: Sequence[Sequence[str]], kinds: dict[str, int]) -> tuple[str, ...]:
    """One order of all tokens in which every step's list is sorted (metric 4.2): merged per type, step by step.

    A newcomer goes before the next token of its step that is already placed: objects seen in one frame only are
    present from step 0 on, but come after everything discovered earlier.
    """
    order: list[str] = []
    for kind in sorted(set(kinds.values())):
        placed: list[str] = []
        known: set[str] = set()
        for step in steps:
            following = None
            for token in reversed([token for token in step if kinds[token] == kind]):
                if token not in known:
                    placed.insert(len(placed) if following is None else placed.index(following), token)
                    known.add(token)
                following = token
        order += placed
    return tuple(order)


def _lights(observation: Record | None) -> dict[str, Any]:
    """Red lights per step, one row per lane connector in order of appearance (metric 4.3)."""
    shapes: dict[str, Shape] = {}
    red: dict[str, np.ndarray] = {}
    for k, (tokens, polygons) in enumerate(observation._occupancy_maps_tl if observation is not None else []):
        for token, shape in zip(tokens, polygons):
            light = token.removeprefix(_LIGHT)
            shapes.setdefault(light, shape)
            red.setdefault(light, np.zeros(LIGHT_STEPS, bool))[k] = True
    return {
        "lights": _polygons(list(shapes.values())),
        "light_red": np.array(list(red.values()), bool).reshape(-1, LIGHT_STEPS),
        "light_ids": tuple(shapes),
    }
