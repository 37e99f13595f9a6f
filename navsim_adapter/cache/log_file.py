"""One log's scenes in one memory-mapped file: a fixed header, 64-byte aligned arrays, a table of where each scene's
arrays are, and a JSON footer.

Neighbouring scenes share most of their map and often the whole centerline, so a file holds each polygon once and each
array content once. Objects are kept as their 2 Hz sightings and resampled on reading. Every scene has a checksum over
its arrays, looked at when the scene is read.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import atomic_path
from navsim_adapter.nuplan.objects import resample
from navsim_adapter.scene_cache import Polygons, SceneCache

FORMAT = 2  # raise it whenever the meaning of any array changes; older files are then refused
MAGIC = b"NAVCACHE"
_HEADER = struct.Struct("<8sIIQQQ")  # magic, format, checksum of the footer, its offset, its length, size of the file
_ALIGN = 64
_DIMENSIONS = 4  # most dimensions of a stored array

_ARRAYS = (
    "ego_state",
    "centerline",
    "area_type",
    "area_on_route",
    "object_type",
    "object_versions",
    "object_size",
    "object_velocity",
    "light_red",
    "past_states",
    "past_time_us",
    "reference_pdms",
    "reference_epdms",
)
_OPTIONAL = ("human_future", "object_knots")
_TEXTS = ("route_lane_ids", "area_ids", "object_tokens", "light_ids")
_POLYGONS = ("areas", "lights")
_EXTRA = "extras/"


@dataclass(frozen=True)
class LogFacts:
    """What a log's file says about itself: its scenes' (token, log, map), in order, and what made it."""

    scenes: tuple[tuple[str, str, str], ...]
    made_by: Mapping[str, Any]


def write_log(path: str | Path, scenes: Iterable[SceneCache], made_by: Mapping[str, Any]) -> LogFacts:
    """Write the scenes of one log; the file is complete or absent. Scenes may come from a generator."""
    with atomic_path(path) as aside, open(aside, "wb") as file:
        return _Writer(file).write(scenes, made_by)


def read_facts(path: str | Path) -> LogFacts:
    """Header and footer of a log's file; raises InputError if it is damaged or of another format."""
    return LogFile(Path(path)).facts


def check_format(path: Path, version: int) -> None:
    """Raise InputError for a file of another format."""
    if version != FORMAT:
        raise InputError(
            f"{path}: made in cache format {version}, this program reads {FORMAT}; run navsim-adapter cache again"
        )


# -- scenes as named arrays --------------------------------------------------------------------------------------------


def _encode(scene: SceneCache) -> dict[str, np.ndarray]:
    """The arrays of a scene that are stored as they are (polygons go to the pool)."""
    arrays = {name: np.ascontiguousarray(getattr(scene, name)) for name in _ARRAYS}
    arrays |= {name: _pack(getattr(scene, name)) for name in _TEXTS}
    arrays |= {name: np.ascontiguousarray(value) for name in _OPTIONAL if (value := getattr(scene, name)) is not None}
    if scene.object_knots is None:
        arrays["object_pose"] = np.ascontiguousarray(scene.object_pose)
    arrays |= {_EXTRA + name: np.ascontiguousarray(value) for name, value in scene.extras.items()}
    arrays["facts"] = np.array([scene.time_us, scene.is_synthetic, scene.versions], np.int64)
    return arrays


def _decode(names: tuple[str, str, str], arrays: dict[str, np.ndarray], polygons: dict[str, Polygons]) -> SceneCache:
    facts = arrays["facts"]
    knots = arrays.get("object_knots")
    fields: dict[str, Any] = {
        **polygons,
        **{name: _unpack(arrays[name]) for name in _TEXTS},
        **{name: arrays[name] for name in _ARRAYS},
    }
    return SceneCache(
        token=names[0],
        log_name=names[1],
        map_name=names[2],
        time_us=int(facts[0]),
        is_synthetic=bool(facts[1]),
        versions=int(facts[2]),
        human_future=arrays.get("human_future"),
        object_knots=knots,
        object_pose=arrays["object_pose"] if knots is None else resample(knots),
        extras={name[len(_EXTRA) :]: value for name, value in arrays.items() if name.startswith(_EXTRA)},
        **fields,
    )


def _pack(texts: Sequence[str]) -> np.ndarray:
    return np.frombuffer("".join(text + "\n" for text in texts).encode(), np.uint8)


def _unpack(packed: np.ndarray) -> tuple[str, ...]:
    return tuple(packed.tobytes().decode().split("\n")[:-1])


def _checksum(arrays: Mapping[str, np.ndarray], polygons: Mapping[str, Polygons]) -> int:
    total = 0
    for name in sorted(arrays):
        total = zlib.crc32(arrays[name].data, zlib.crc32(name.encode(), total))
    for name in sorted(polygons):
        for part in (polygons[name].vertices, polygons[name].ring_start, polygons[name].polygon_start):
            total = zlib.crc32(np.ascontiguousarray(part).data, total)
    return total


# -- bytes -------------------------------------------------------------------------------------------------------------


class _Writer:
    """Streams scenes to a file; only the table, the polygon pool and digests stay in memory."""

    def __init__(self, file: IO[bytes]):
        self.file = file
        self.known: dict[bytes, int] = {}  # digest of an array's bytes -> offset
        self.fields: dict[str, tuple[str, int]] = {}  # name -> dtype, dimensions
        self.pool: dict[bytes, int] = {}  # digest of a polygon -> its place in the pool
        self.pool_vertices: list[np.ndarray] = []
        self.pool_rings: list[np.ndarray] = []

    def write(self, scenes: Iterable[SceneCache], made_by: Mapping[str, Any]) -> LogFacts:
        self.file.write(bytes(_ALIGN))
        names: list[tuple[str, str, str]] = []
        rows: list[dict[str, tuple[int, ...]]] = []
        checksums: list[int] = []
        for scene in scenes:
            arrays = _encode(scene)
            polygons = {name: getattr(scene, name) for name in _POLYGONS}
            checksums.append(_checksum(arrays, polygons))
            arrays |= {name: self._to_pool(shapes) for name, shapes in polygons.items()}
            rows.append({name: self._store(name, array) for name, array in arrays.items()})
            names.append((scene.token, scene.log_name, scene.map_name))
        footer = {
            "scenes": names,
            "made_by": dict(made_by),
            "fields": [[name, *kind] for name, kind in self.fields.items()],
            "parts": self._parts(rows, checksums),
        }
        self._finish(json.dumps(footer).encode())
        return LogFacts(tuple(names), dict(made_by))

    def _store(self, name: str, array: np.ndarray) -> tuple[int, ...]:
        kind = (array.dtype.str, array.ndim)
        if self.fields.setdefault(name, kind) != kind or array.ndim > _DIMENSIONS or array.dtype.hasobject:
            raise ValueError(f"array {name} is {kind}, other scenes of the log have {self.fields[name]}")
        digest = hashlib.blake2b(array.data, digest_size=16).digest()
        if digest not in self.known:
            self.known[digest] = self._append(array)
        return (self.known[digest], *array.shape)

    def _append(self, array: np.ndarray) -> int:
        self.file.write(bytes(-self.file.tell() % _ALIGN))
        offset = self.file.tell()
        self.file.write(array.data)
        return offset

    def _to_pool(self, polygons: Polygons) -> np.ndarray:
        places = np.empty(len(polygons), np.int32)
        for index in range(len(polygons)):
            rings = slice(polygons.polygon_start[index], polygons.polygon_start[index + 1] + 1)
            starts = polygons.ring_start[rings]
            vertices = np.ascontiguousarray(polygons.vertices[starts[0] : starts[-1]])
            sizes = np.diff(starts)
            digest = hashlib.blake2b(vertices.data, digest_size=16)
            digest.update(np.ascontiguousarray(sizes).data)
            key = digest.digest()
            if key not in self.pool:
                self.pool[key] = len(self.pool)
                self.pool_vertices.append(vertices)
                self.pool_rings.append(sizes)
            places[index] = self.pool[key]
        return places

    def _parts(self, rows: list[dict[str, tuple[int, ...]]], checksums: list[int]) -> dict[str, tuple[Any, ...]]:
        """Arrays of the whole file: where scenes' arrays are (offset, shape; -1: none), checksums, the polygon pool."""
        table = np.full((len(rows), len(self.fields), 1 + _DIMENSIONS), -1, np.int64)
        for row, places in enumerate(rows):
            for column, name in enumerate(self.fields):
                if name in places:
                    table[row, column, : len(places[name])] = places[name]
        rings = np.concatenate([np.empty(0, np.int64), *self.pool_rings])
        parts: dict[str, np.ndarray] = {
            "table": table,
            "checksums": np.array(checksums, np.uint32),
            "vertices": np.concatenate([np.empty((0, 2)), *self.pool_vertices]),
            "ring_start": np.concatenate([[0], np.cumsum(rings)]).astype(np.int64),
            "polygon_start": np.cumsum([0] + [len(sizes) for sizes in self.pool_rings]).astype(np.int64),
        }
        return {
            name: (part.dtype.str, zlib.crc32(part.data), self._append(part), *part.shape)
            for name, part in parts.items()
        }

    def _finish(self, footer: bytes) -> None:
        offset = self.file.tell()
        self.file.write(footer)
        self.file.seek(0)
        size = offset + len(footer)
        self.file.write(_HEADER.pack(MAGIC, FORMAT, zlib.crc32(footer), offset, len(footer), size))


class LogFile:
    """A log's file, mapped; scenes are copied out of it, so nothing depends on it staying open."""

    def __init__(self, path: Path, expected_bytes: int | None = None):
        self.path = path
        self.map = self._open(expected_bytes)
        footer = self._footer()
        self.facts = LogFacts(tuple((s[0], s[1], s[2]) for s in footer["scenes"]), footer["made_by"])
        self.fields = [(name, np.dtype(kind), int(dimensions)) for name, kind, dimensions in footer["fields"]]
        try:
            parts = {name: self._array(np.dtype(part[0]), *part[2:]) for name, part in footer["parts"].items()}
            for name, part in parts.items():  # vertices are covered by the checksums of the scenes that use them
                if name != "vertices" and zlib.crc32(part.data) != footer["parts"][name][1]:
                    raise self._damaged(f"checksum of its {name} is wrong")
            self.table, self.checksums = parts["table"], parts["checksums"]
            self.pool = Polygons(parts["vertices"], parts["ring_start"], parts["polygon_start"])
        except (KeyError, ValueError, OverflowError) as problem:
            if isinstance(problem, InputError):
                raise
            raise self._damaged("its table does not fit the file") from problem

    def scene(self, row: int) -> SceneCache:
        names = self.facts.scenes[row]
        try:
            arrays = {
                name: self._array(kind, *place[: 1 + dimensions]).copy()
                for place, (name, kind, dimensions) in zip(self.table[row].tolist(), self.fields)
                if place[0] >= 0
            }
            polygons = {name: self.pool.take(arrays.pop(name)) for name in _POLYGONS}
        except (ValueError, KeyError, IndexError, OverflowError) as problem:
            raise self._damaged(f"arrays of scene {names[0]} do not fit the file") from problem
        if _checksum(arrays, polygons) != self.checksums[row]:
            raise self._damaged(f"checksum of scene {names[0]} is wrong")
        return _decode(names, arrays, polygons)

    def _open(self, expected_bytes: int | None) -> mmap.mmap:
        try:
            with open(self.path, "rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as problem:
            raise InputError(f"{self.path}: cache file cannot be opened ({problem}); build it again") from problem
        if expected_bytes is not None and len(mapped) != expected_bytes:
            raise self._damaged(f"it has {len(mapped)} bytes, the index says {expected_bytes}")
        return mapped

    def _footer(self) -> dict[str, Any]:
        if len(self.map) < _HEADER.size or self.map[: len(MAGIC)] != MAGIC:
            raise self._damaged("it is no cache file")
        _, version, checksum, offset, length, size = _HEADER.unpack(self.map[: _HEADER.size])
        check_format(self.path, version)
        if size != len(self.map) or offset + length != size or zlib.crc32(self.map[offset:]) != checksum:
            raise self._damaged("its footer is damaged or the file was cut")
        return dict(json.loads(self.map[offset:]))

    def _array(self, kind: np.dtype, offset: int, *shape: int) -> np.ndarray:
        return np.frombuffer(self.map, kind, math.prod(shape), offset).reshape(shape)

    def _damaged(self, what: str) -> InputError:
        return InputError(f"{self.path}: {what}; remove the file and run navsim-adapter cache again")
