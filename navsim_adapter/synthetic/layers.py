"""What a network looks like as map features: the layers and columns of nuPlan's GeoPackages, and our rows for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from shapely.geometry import LineString, Polygon

from navsim_adapter.synthetic.geometry import offset, tangents
from navsim_adapter.synthetic.roads import Edge, Junction, Lane, Network

INTEGER, REAL, TEXT, BOOLEAN = "INTEGER", "REAL", "TEXT", "BOOLEAN"
CREATOR = "synthetic"
TURN_TYPES = {"straight": 0, "left": 1, "right": 2}

# layer -> (geometry type, column -> SQLite type), in the order of the published maps
LAYERS: dict[str, tuple[str, dict[str, str]]] = {
    "boundaries": (
        "LINESTRING",
        {"boundary_segment_fids": TEXT, "has_reflectors": BOOLEAN, "boundary_type_fid": INTEGER, "creator_id": TEXT},
    ),
    "baseline_paths": (
        "LINESTRING",
        {
            "path_type_fid": INTEGER,
            "creator_id": TEXT,
            "lane_fid": INTEGER,
            "lane_connector_fid": INTEGER,
            "dubins_node_fids": TEXT,
        },
    ),
    "lanes_polygons": (
        "POLYGON",
        {
            "lane_group_fid": INTEGER,
            "lane_fid": INTEGER,
            "lane_index": INTEGER,
            "creator_id": TEXT,
            "name": TEXT,
            "road_type_fid": INTEGER,
            "lane_type_fid": INTEGER,
            "width": INTEGER,
            "left_offset": REAL,
            "right_offset": REAL,
            "min_speed": REAL,
            "max_speed": REAL,
            "stops": REAL,
            "left_boundary_fid": INTEGER,
            "right_boundary_fid": INTEGER,
            "speed_limit_mps": REAL,
            "left_has_reflectors": BOOLEAN,
            "right_has_reflectors": BOOLEAN,
            "from_edge_fid": INTEGER,
            "to_edge_fid": INTEGER,
        },
    ),
    "lane_connectors": (
        "LINESTRING",
        {
            "exit_lane_group_fid": INTEGER,
            "exit_lane_fid": INTEGER,
            "entry_lane_group_fid": INTEGER,
            "lane_group_connector_fid": INTEGER,
            "entry_lane_fid": INTEGER,
            "intersection_fid": INTEGER,
            "turn_type_fid": INTEGER,
            "bulb_fids": TEXT,
            "traffic_light_stop_line_fids": TEXT,
            "overlap": INTEGER,
            "creator_id": TEXT,
            "reflector_side_fid": INTEGER,
            "left_has_reflectors": BOOLEAN,
            "right_has_reflectors": BOOLEAN,
            "speed_limit_mps": REAL,
        },
    ),
    "gen_lane_connectors_scaled_width_polygons": (
        "POLYGON",
        {
            "baseline_path_fid": INTEGER,
            "lane_connector_fid": INTEGER,
            "from_edge_fid": INTEGER,
            "to_edge_fid": INTEGER,
            "left_boundary_fid": INTEGER,
            "right_boundary_fid": INTEGER,
        },
    ),
    "lane_groups_polygons": (
        "POLYGON",
        {
            "creator_id": TEXT,
            "left_boundary_fid": INTEGER,
            "right_boundary_fid": INTEGER,
            "from_edge_fid": INTEGER,
            "to_edge_fid": INTEGER,
        },
    ),
    "lane_group_connectors": (
        "POLYGON",
        {
            "intersection_fid": INTEGER,
            "from_lane_group_fid": INTEGER,
            "to_lane_group_fid": INTEGER,
            "creator_id": TEXT,
            "from_edge_fid": INTEGER,
            "to_edge_fid": INTEGER,
            "left_boundary_fid": INTEGER,
            "right_boundary_fid": INTEGER,
        },
    ),
    "road_segments": ("POLYGON", {"lane_group_fids": TEXT}),
    "intersections": ("POLYGON", {"creator_id": TEXT, "intersection_type_fid": INTEGER, "is_mini": BOOLEAN}),
    "stop_polygons": (
        "POLYGON",
        {
            "stop_polygon_type_fid": INTEGER,
            "lane_group_fid": INTEGER,
            "lane_fids": TEXT,
            "lane_connector_fids": TEXT,
            "traffic_light_fids": TEXT,
            "crosswalk_fids": TEXT,
            "precedence_area_fids": TEXT,
            "creator_id": TEXT,
        },
    ),
    "crosswalks": (
        "POLYGON",
        {"intersection_fids": TEXT, "lane_fids": TEXT, "creator_id": TEXT, "is_marked": BOOLEAN},
    ),
    "walkways": ("POLYGON", {"creator_id": TEXT}),
    "carpark_areas": ("POLYGON", {"heading": REAL, "creator_id": TEXT}),
    "generic_drivable_areas": ("POLYGON", {"creator_id": TEXT}),
    "traffic_lights": ("POINT", {"creator_id": TEXT, "stop_polygon_fids": TEXT, "heading": REAL}),
    "dubins_nodes": ("POINT", {"radius": REAL, "heading": REAL, "creator_id": TEXT}),
}


@dataclass(frozen=True)
class Feature:
    id: int
    geometry: Any  # shapely, projected metres
    columns: dict[str, Any]


def features(net: Network) -> Iterator[tuple[str, Feature]]:
    """(layer, feature) for everything of a network. Ids not given by the network count on from its last one."""
    yield from _roads(net)
    yield from _junctions(net)
    yield from _surroundings(net)


def junction_polygon(net: Network, junction: Junction) -> Any:
    """Its drivable surface: the connectors with some room beside them, or the hull of a crossing.

    It reaches a little into the roads, so that no gap is left.
    """
    strips = [Polygon(c.ring).buffer(0) for link in junction.links for c in link.connectors]
    surface = shapely.union_all(strips)
    surface = surface.convex_hull if junction.hull else surface.buffer(2.6).buffer(-2.0)
    surface = surface.buffer(0.3, join_style="mitre").simplify(0.02)
    return max(surface.geoms, key=lambda part: part.area) if hasattr(surface, "geoms") else surface


def _roads(net: Network) -> Iterator[tuple[str, Feature]]:
    written: set[int] = set()
    for block in net.blocks.values():
        common = {"left_boundary_fid": block.lanes[0].left_id, "right_boundary_fid": block.lanes[-1].right_id}
        yield "lane_groups_polygons", Feature(block.id, Polygon(block.ring), {"creator_id": CREATOR, **common})
        yield "road_segments", Feature(block.id, Polygon(block.ring), {"lane_group_fids": str(block.id)})
        for lane in block.lanes:
            yield from _borders(lane, written)
            yield _baseline(lane, "lane_fid")
            yield "lanes_polygons", Feature(lane.id, Polygon(lane.ring), _lane_columns(lane))


def _junctions(net: Network) -> Iterator[tuple[str, Feature]]:
    groups = {lane.id: lane.block_id for lane in net.lanes()}
    written: set[int] = set()
    for junction in net.junctions:
        polygon = junction_polygon(net, junction)
        yield (
            "intersections",
            Feature(
                junction.id,
                polygon,
                {"creator_id": CREATOR, "intersection_type_fid": 0, "is_mini": junction.mini},
            ),
        )
        stops: dict[int, int] = {}
        for link in junction.links:
            if junction.has_signals and link.from_block not in stops:
                stops[link.from_block] = net.new_id()
                yield _stop(net, link.from_block, stops[link.from_block])
            surface = shapely.union_all([Polygon(c.ring).buffer(0) for c in link.connectors])
            surface = surface.convex_hull if hasattr(surface, "geoms") else surface
            ends = {"from_lane_group_fid": link.from_block, "to_lane_group_fid": link.to_block}
            place = {"intersection_fid": junction.id, "creator_id": CREATOR}
            yield "lane_group_connectors", Feature(link.id, surface, {**place, **ends})
            for connector in link.connectors:
                yield from _borders(connector, written)
                yield _baseline(connector, "lane_connector_fid")
                yield (
                    "lane_connectors",
                    Feature(
                        connector.id,
                        LineString(connector.baseline),
                        {
                            **place,
                            "exit_lane_group_fid": groups[connector.from_lane],
                            "exit_lane_fid": connector.from_lane,
                            "entry_lane_group_fid": groups[connector.to_lane],
                            "entry_lane_fid": connector.to_lane,
                            "lane_group_connector_fid": link.id,
                            "turn_type_fid": TURN_TYPES[connector.turn],
                            "bulb_fids": "",
                            "traffic_light_stop_line_fids": str(stops.get(link.from_block, "")),
                            "overlap": 0,
                            "reflector_side_fid": 0,
                            "speed_limit_mps": connector.speed_limit,
                        },
                    ),
                )
                yield (
                    "gen_lane_connectors_scaled_width_polygons",
                    Feature(
                        connector.polygon_id,
                        Polygon(connector.ring),
                        {
                            "baseline_path_fid": connector.baseline_id,
                            "lane_connector_fid": connector.id,
                            "left_boundary_fid": connector.left_id,
                            "right_boundary_fid": connector.right_id,
                        },
                    ),
                )


def _surroundings(net: Network) -> Iterator[tuple[str, Feature]]:
    for crosswalk in net.crosswalks:
        columns = {"intersection_fids": "", "lane_fids": "", "creator_id": CREATOR, "is_marked": True}
        yield "crosswalks", Feature(crosswalk.id, Polygon(crosswalk.corners), columns)
    for park in net.car_parks:
        yield "carpark_areas", Feature(park.id, Polygon(park.ring), {"heading": park.heading, "creator_id": CREATOR})
        yield "generic_drivable_areas", Feature(net.new_id(), Polygon(park.ring), {"creator_id": CREATOR})
    for block in net.blocks.values():
        inner, outer = offset(block.right, -1.0), offset(block.right, -3.0)
        ring = np.concatenate([inner, outer[::-1], inner[:1]])
        yield "walkways", Feature(net.new_id(), Polygon(ring).buffer(0), {"creator_id": CREATOR})


def _stop(net: Network, block_id: int, stop_id: int) -> tuple[str, Feature]:
    """The strip before the stop line of a roadblock (type 1: traffic light)."""
    block = net.blocks[block_id]
    left, right = block.left[-1], block.right[-1]
    back = -2.0 * tangents(block.left)[-1]
    columns = {
        "stop_polygon_type_fid": 1,
        "lane_group_fid": block_id,
        "lane_fids": ",".join(str(lane.id) for lane in block.lanes),
        "lane_connector_fids": "",
        "traffic_light_fids": "",
        "crosswalk_fids": "",
        "precedence_area_fids": "",
        "creator_id": CREATOR,
    }
    return "stop_polygons", Feature(stop_id, Polygon([left, right, right + back, left + back]), columns)


def _borders(edge: Edge, written: set[int]) -> Iterator[tuple[str, Feature]]:
    for border_id, line in ((edge.left_id, edge.left), (edge.right_id, edge.right)):
        if border_id not in written:
            written.add(border_id)
            columns = {
                "boundary_segment_fids": "",
                "has_reflectors": False,
                "boundary_type_fid": 0,
                "creator_id": CREATOR,
            }
            yield "boundaries", Feature(border_id, LineString(line), columns)


def _baseline(edge: Edge, column: str) -> tuple[str, Feature]:
    columns = {"path_type_fid": 0, "creator_id": CREATOR, column: edge.id, "dubins_node_fids": ""}
    return "baseline_paths", Feature(edge.baseline_id, LineString(edge.baseline), columns)


def _lane_columns(lane: Lane) -> dict[str, Any]:
    return {
        "lane_group_fid": lane.block_id,
        "lane_fid": lane.id,
        "lane_index": lane.index,
        "creator_id": CREATOR,
        "name": "",
        "road_type_fid": 0,
        "lane_type_fid": 0,
        "width": round(lane.width),
        "left_boundary_fid": lane.left_id,
        "right_boundary_fid": lane.right_id,
        "speed_limit_mps": lane.speed_limit,
    }
