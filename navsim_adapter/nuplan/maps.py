"""nuPlan's GeoPackage maps: polygons, baselines and topology in the city's projected frame (metric 3.1 to 3.3).

A map is read once per process and kept as shapely geometries (for exact predicates) beside flat ring arrays (for
the cache). Rows keep the order of the file, because every list of the official code does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.foreign import check_geopackage, read_text
from navsim_adapter.nuplan.root import MAPS_FILE, MAPS_VARIABLE
from navsim_adapter.scene_cache import AreaType, Polygons

_COLUMNS = {
    "lane_groups_polygons": (),
    "lane_group_connectors": ("from_lane_group_fid", "to_lane_group_fid"),
    "lanes_polygons": ("lane_fid", "lane_group_fid", "speed_limit_mps"),
    "lane_connectors": ("lane_group_connector_fid", "exit_lane_fid", "entry_lane_fid", "speed_limit_mps"),
    "gen_lane_connectors_scaled_width_polygons": ("lane_connector_fid",),
    "baseline_paths": ("lane_fid", "lane_connector_fid"),
    "intersections": (),
    "carpark_areas": (),
}
_NO_GEOMETRY = ("lane_connectors",)  # their polygons are in the scaled-width layer


@dataclass(eq=False)
class Lane:
    """A lane or lane connector. `area`: row among the map's areas, -1 where the map has no polygon for it.

    Real maps lack a baseline here and there; that matters only to scenes that need it, so it is reported on use.
    """

    id: str
    type: AreaType
    area: int
    polygon: Any
    line: Any  # the baseline as shapely has it, or None
    speed_limit: float | None
    block_id: str
    outgoing_ids: tuple[str, ...] = ()

    @cached_property
    def baseline(self) -> np.ndarray:
        """(n, 3) x, y, heading of each vertex (metric 3.1)."""
        if self.line is None:
            raise InputError(f"map: {self.type.name.lower()} {self.id} has no baseline; scenes on it have no score")
        return with_headings(shapely.get_coordinates(self.line))

    @cached_property
    def length(self) -> float:
        """Planar length of the baseline."""
        return float(shapely.length(self.line)) if self.line is not None else float("nan")


@dataclass(eq=False)
class Block:
    """A roadblock or roadblock connector with its lanes in file order."""

    id: str
    is_connector: bool
    area: int  # -1 for connectors, which are no part of the drivable map
    polygon: Any
    lanes: list[Lane] = field(default_factory=list)
    incoming_ids: tuple[str, ...] = ()
    outgoing_ids: tuple[str, ...] = ()


@dataclass(eq=False)
class Map:
    """One city. `areas` holds the rings of every roadblock, lane, connector, intersection and car park."""

    name: str
    crs: str
    roadblocks: dict[str, Block]
    connectors: dict[str, Block]
    lanes: dict[str, Lane]
    lane_connectors: dict[str, Lane]
    intersections: Sequence[tuple[str, int]]  # id, area row
    carparks: Sequence[tuple[str, int]]
    areas: Polygons
    area_geometry: np.ndarray  # shapely polygons, parallel to `areas`

    def block(self, block_id: str) -> Block:
        """Roadblock, else connector of that id (metric 3.4)."""
        found = self.roadblocks.get(block_id) or self.connectors.get(block_id)
        if found is None:
            raise InputError(f"map {self.name}: has no roadblock {block_id}; the log's route does not fit this map")
        return found

    def outgoing_blocks(self, block: Block) -> list[Block]:
        return self._neighbours(block, block.outgoing_ids)

    def incoming_blocks(self, block: Block) -> list[Block]:
        return self._neighbours(block, block.incoming_ids)

    def outgoing_lanes(self, lane: Lane) -> list[Lane]:
        table = self.lane_connectors if lane.type is AreaType.LANE else self.lanes
        return [self._known(table, lane_id, "lane", lane.id) for lane_id in lane.outgoing_ids]

    def blocks_near(self, x: float, y: float, radius: float) -> list[Block]:
        """Roadblocks, then connectors, touching the square around a point (metric 3.2)."""
        square = shapely.box(x - radius, y - radius, x + radius, y + radius)
        return [blocks[row] for blocks, tree in self._block_trees for row in np.sort(tree.query(square, "intersects"))]

    def nearest_blocks(self, x: float, y: float) -> list[Block]:
        """The nearest roadblock and the nearest connector by distance."""
        point = shapely.Point(x, y)
        return [
            blocks[int(np.argmin(shapely.distance(tree.geometries, point)))]
            for blocks, tree in self._block_trees
            if blocks
        ]

    def drivable(self, x: float, y: float, radius: float) -> list[tuple[str, AreaType, int]]:
        """(id, type, area row) of the drivable map around a point, in its official order (metric 3.3)."""
        near = self.blocks_near(x, y, radius)
        found = [(block.id, AreaType.ROADBLOCK, block.area) for block in near if not block.is_connector]
        for lane in (lane for block in near for lane in block.lanes):
            if lane.area < 0:
                raise InputError(f"map {self.name}: {lane.type.name.lower()} {lane.id} has no polygon; repair the map")
            found.append((lane.id, lane.type, lane.area))
        square = shapely.box(x - radius, y - radius, x + radius, y + radius)
        for kind, rows, tree in self._plain_trees:
            found += [(rows[row][0], kind, rows[row][1]) for row in np.sort(tree.query(square, "intersects"))]
        return found

    @cached_property
    def _block_trees(self) -> list[tuple[list[Block], shapely.STRtree]]:
        layers = [list(self.roadblocks.values()), list(self.connectors.values())]
        return [(blocks, shapely.STRtree([block.polygon for block in blocks])) for blocks in layers]

    @cached_property
    def _plain_trees(self) -> list[tuple[AreaType, Sequence[tuple[str, int]], shapely.STRtree]]:
        layers = [(AreaType.INTERSECTION, self.intersections), (AreaType.CARPARK_AREA, self.carparks)]
        return [(kind, rows, shapely.STRtree([self.area_geometry[area] for _, area in rows])) for kind, rows in layers]

    def _neighbours(self, block: Block, ids: Sequence[str]) -> list[Block]:
        table = self.roadblocks if block.is_connector else self.connectors
        return [self._known(table, block_id, "roadblock", block.id) for block_id in ids]

    def _known(self, table: dict[str, Any], wanted: str, kind: str, from_id: str) -> Any:
        if wanted not in table:
            raise InputError(f"map {self.name}: {kind} {from_id} refers to {wanted}, which it lacks; repair the map")
        return table[wanted]


def map_index(maps_root: str | Path) -> Path:
    """The root's JSON; raises InputError where there is none."""
    index = Path(maps_root) / MAPS_FILE
    if not index.is_file():
        raise InputError(f"{index}: map index not found; put the nuPlan maps there or set {MAPS_VARIABLE}")
    return index


def map_path(maps_root: str | Path, name: str) -> Path:
    """`<root>/<city>/<version>/map.gpkg`, the version as in the root's JSON."""
    index = map_index(maps_root)
    try:
        version = str(json.loads(read_text(index))[name]["version"])
    except (ValueError, KeyError, TypeError) as problem:
        raise InputError(f"{index}: has no version for map {name}; check {MAPS_VARIABLE}") from problem
    path = Path(maps_root) / name / version / "map.gpkg"
    if not path.is_file():
        raise InputError(f"{path}: map {name} not found; put the nuPlan maps there or set {MAPS_VARIABLE}")
    return path


def map_files(maps_root: str | Path) -> list[Path]:
    """The index and every city's map, those that are there."""
    root = Path(maps_root)
    return [path for path in (root / MAPS_FILE, *sorted(root.glob("*/*/map.gpkg"))) if path.is_file()]


@lru_cache(maxsize=8)
def load_map(maps_root: str | Path, name: str) -> Map:
    """A city's map; kept for the life of the process. Raises InputError naming the file and what it lacks."""
    path = map_path(maps_root, name)
    check_geopackage(path, ("meta", *_COLUMNS))
    target = _projected_crs(path)
    return _assemble(name, target, {layer: _read(path, layer, target) for layer in _COLUMNS})


@dataclass(frozen=True)
class _Layer:
    """Rows of one layer in file order: feature ids as text, projected geometry, columns as float64 (NaN: empty)."""

    ids: list[str]
    geometry: np.ndarray
    columns: dict[str, np.ndarray]

    def references(self, column: str) -> list[str]:
        """A column of feature ids as text; "" where empty."""
        values = self.columns[column]
        return ["" if np.isnan(value) else str(int(value)) for value in values]


def _projected_crs(path: Path) -> str:
    from pyogrio.raw import read

    try:
        _, _, _, (keys, values) = read(path, layer="meta", columns=["key", "value"], read_geometry=False)
        return str(values[list(keys).index("projectedCoordSystem")])
    except Exception as problem:
        reason = " ".join(str(problem).split())[:120]
        raise InputError(f"{path}: layer meta gives no projectedCoordSystem ({reason}); replace the map") from problem


def _read(path: Path, layer: str, target: str) -> _Layer:
    from pyogrio.raw import read

    has_geometry = layer not in _NO_GEOMETRY
    try:
        meta, fids, wkb, fields = read(
            path, layer=layer, columns=list(_COLUMNS[layer]), return_fids=True, read_geometry=has_geometry
        )
    except Exception as problem:
        reason = " ".join(str(problem).split())[:120]
        raise InputError(f"{path}: layer {layer} cannot be read ({reason}); replace the map") from problem
    columns = {str(name): values for name, values in zip(meta["fields"], fields)}
    missing = [name for name in _COLUMNS[layer] if name not in columns]
    if missing:
        raise InputError(f"{path}: layer {layer} has no column {missing[0]}; replace the map")
    geometry = _project(shapely.from_wkb(wkb), meta["crs"], target) if has_geometry else np.empty(0, object)
    return _Layer([str(fid) for fid in fids], geometry, {k: v.astype(np.float64) for k, v in columns.items()})


def _project(geometry: np.ndarray, source: str | None, target: str) -> np.ndarray:
    """All layers are geographic; one call of PROJ per layer, x before y, as geopandas does."""
    from pyproj import CRS, Transformer

    source_crs, target_crs = CRS.from_user_input(source or "EPSG:4326"), CRS.from_user_input(target)
    if source_crs.equals(target_crs) or not len(geometry):
        return geometry
    transformer = Transformer.from_crs(source_crs, target_crs, always_xy=True)
    x, y = shapely.get_coordinates(geometry).T
    return shapely.set_coordinates(geometry, np.column_stack(transformer.transform(x, y)))


def _assemble(name: str, crs: str, layers: dict[str, _Layer]) -> Map:
    """Join the layers by their ids. A row that others refer to but is absent is reported when a route needs it."""
    geometry: list[Any] = []

    def area(polygon: Any) -> int:
        geometry.append(polygon)
        return len(geometry) - 1

    roadblocks, connectors = _blocks(layers, area)
    lanes, lane_connectors = _lanes(layers, area)
    for lane in lanes.values():
        if lane.block_id in roadblocks:
            roadblocks[lane.block_id].lanes.append(lane)
    for lane in lane_connectors.values():
        if lane.block_id in connectors:
            connectors[lane.block_id].lanes.append(lane)
    plain = [
        [(row_id, area(polygon)) for row_id, polygon in zip(layers[layer].ids, layers[layer].geometry)]
        for layer in ("intersections", "carpark_areas")
    ]
    polygons = np.array(geometry, dtype=object)
    return Map(
        name, crs, roadblocks, connectors, lanes, lane_connectors, plain[0], plain[1], flatten(polygons), polygons
    )


def _blocks(layers: dict[str, _Layer], area: Any) -> tuple[dict[str, Block], dict[str, Block]]:
    groups, links = layers["lane_groups_polygons"], layers["lane_group_connectors"]
    roadblocks = {fid: Block(fid, False, area(polygon), polygon) for fid, polygon in zip(groups.ids, groups.geometry)}
    connectors = {}
    outgoing: dict[str, list[str]] = {}
    incoming: dict[str, list[str]] = {}
    ends = zip(links.references("from_lane_group_fid"), links.references("to_lane_group_fid"))
    for link_id, polygon, (source, target) in zip(links.ids, links.geometry, ends):
        connectors[link_id] = Block(link_id, True, -1, polygon, [], (source,), (target,))
        outgoing.setdefault(source, []).append(link_id)
        incoming.setdefault(target, []).append(link_id)
    for block_id, block in roadblocks.items():
        block.outgoing_ids = tuple(outgoing.get(block_id, ()))
        block.incoming_ids = tuple(incoming.get(block_id, ()))
    return roadblocks, connectors


def _lanes(layers: dict[str, _Layer], area: Any) -> tuple[dict[str, Lane], dict[str, Lane]]:
    baselines, widths = layers["baseline_paths"], layers["gen_lane_connectors_scaled_width_polygons"]
    rows, links = layers["lanes_polygons"], layers["lane_connectors"]
    polygons = dict(zip(rows.ids, rows.geometry))
    widened = _by_key(widths.references("lane_connector_fid"), widths.geometry)
    exits: dict[str, list[str]] = {}
    for link_id, source in zip(links.ids, links.references("exit_lane_fid")):
        exits.setdefault(source, []).append(link_id)
    lines = _by_key(baselines.references("lane_fid"), baselines.geometry)
    lanes = _layer_lanes(AreaType.LANE, rows, "lane_group_fid", polygons, lines, area)
    for lane_id, lane in lanes.items():
        lane.outgoing_ids = tuple(exits.get(lane_id, ()))
    lines = _by_key(baselines.references("lane_connector_fid"), baselines.geometry)
    connectors = _layer_lanes(AreaType.LANE_CONNECTOR, links, "lane_group_connector_fid", widened, lines, area)
    for link_id, entry in zip(links.ids, links.references("entry_lane_fid")):
        connectors[link_id].outgoing_ids = (entry,)
    return lanes, connectors


def _layer_lanes(
    kind: AreaType, layer: _Layer, block_column: str, polygons: dict[str, Any], lines: dict[str, Any], area: Any
) -> dict[str, Lane]:
    lanes = {}
    limits = layer.columns["speed_limit_mps"]
    for lane_id, block_id, limit in zip(layer.ids, layer.references(block_column), limits):
        polygon = polygons.get(lane_id)
        row = -1 if polygon is None else area(polygon)
        speed_limit = None if np.isnan(limit) else float(limit)
        lanes[lane_id] = Lane(lane_id, kind, row, polygon, lines.get(lane_id), speed_limit, block_id)
    return lanes


def _by_key(keys: list[str], values: np.ndarray) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in zip(keys, values):
        found.setdefault(key, value)
    return found


def with_headings(vertices: np.ndarray) -> np.ndarray:
    """(n, 2) polyline vertices -> (n, 3) with the heading of the segment that follows; the last repeats (metric 3.1).

    A vertex repeated by the next one has heading arctan2(0, 0) = 0 whatever the road does, as officially.
    """
    steps = np.diff(vertices, axis=0)
    heading = np.arctan2(steps[:, 1], steps[:, 0])
    return np.column_stack([vertices, np.append(heading, heading[-1:])])


def flatten(polygons: np.ndarray) -> Polygons:
    """Shapely polygons and multipolygons as flat closed rings; the even-odd rule over a polygon's rings is GEOS'."""
    parts, owner = shapely.get_parts(polygons, return_index=True)
    rings, part_of_ring = shapely.get_rings(parts, return_index=True)
    vertices, ring_of_vertex = shapely.get_coordinates(rings, return_index=True)
    return Polygons(vertices, _starts(ring_of_vertex, len(rings)), _starts(owner[part_of_ring], len(polygons)))


def _starts(group: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.bincount(group, minlength=count))]).astype(np.int64)
