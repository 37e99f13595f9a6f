"""GeoPackage maps: projection, order, topology and holes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import shapely

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.nuplan.maps import Map, flatten, load_map, map_path, with_headings
from navsim_adapter.scene_cache import AreaType
from tests.navsim_adapter.tiny import CITY, ORIGIN, write_maps


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Map:
    return load_map(str(write_maps(tmp_path_factory.mktemp("world"))), CITY)


def test_coordinates_are_projected_to_metres(city: Map) -> None:
    np.testing.assert_allclose(city.lanes["12"].baseline[[0, -1], :2] - ORIGIN, [[-50, 4], [50, 4]], atol=1e-6)
    np.testing.assert_allclose(city.lanes["12"].baseline[:, 2], 0, atol=1e-6)
    assert city.lanes["12"].length == pytest.approx(100, abs=1e-5)


def test_topology_follows_the_columns(city: Map) -> None:
    connector = city.lane_connectors["51"]
    assert [lane.id for lane in city.outgoing_lanes(city.lanes["11"])] == ["51"]
    assert [lane.id for lane in city.outgoing_lanes(connector)] == ["13"]
    assert city.outgoing_lanes(city.lanes["12"]) == []
    assert [block.id for block in city.outgoing_blocks(city.block("1"))] == ["5"]
    assert [block.id for block in city.outgoing_blocks(city.block("5"))] == ["2"]
    assert [block.id for block in city.incoming_blocks(city.block("2"))] == ["5"]
    assert [lane.id for lane in city.block("1").lanes] == ["11", "12"]


def test_an_empty_speed_limit_is_none(city: Map) -> None:
    assert city.lanes["11"].speed_limit == 10
    assert city.lanes["12"].speed_limit is None
    assert city.lane_connectors["51"].speed_limit is None


def test_the_drivable_map_lists_layers_in_official_order(city: Map) -> None:
    near = city.drivable(ORIGIN[0], ORIGIN[1], 100.0)
    assert [(area_id, kind.name) for area_id, kind, _ in near] == [
        ("1", "ROADBLOCK"),
        ("2", "ROADBLOCK"),
        ("11", "LANE"),
        ("12", "LANE"),
        ("13", "LANE"),
        ("51", "LANE_CONNECTOR"),
        ("90", "INTERSECTION"),
        ("95", "CARPARK_AREA"),
    ]
    far = city.drivable(ORIGIN[0] + 300, ORIGIN[1], 100.0)
    assert [area_id for area_id, _, _ in far] == ["2", "13"]


def test_nearest_blocks_are_one_of_each_kind(city: Map) -> None:
    assert [block.id for block in city.nearest_blocks(ORIGIN[0] + 80, ORIGIN[1] + 50)] == ["2", "5"]
    assert city.blocks_near(ORIGIN[0] + 80, ORIGIN[1] + 50, 1.0) == []


def test_rings_keep_holes_and_parts_and_the_even_odd_rule() -> None:
    holed = shapely.Polygon([(0, 0), (9, 0), (9, 9), (0, 9)], [[(3, 3), (6, 3), (6, 6), (3, 6)]])
    parts = shapely.MultiPolygon([shapely.box(20, 0, 22, 2), shapely.box(30, 0, 32, 2)])
    shapes = np.array([holed, parts, shapely.box(1, 1, 2, 2)], dtype=object)
    flat = flatten(shapes)
    assert flat.polygon_start.tolist() == [0, 2, 4, 5]
    rng = np.random.default_rng(0)
    for x, y in rng.uniform(-1, 33, (200, 2)):
        for index, shape in enumerate(shapes):
            assert _is_inside(flat, index, x, y) == shapely.contains_xy(shape, x, y)


def test_taking_polygons_keeps_order_and_repeats() -> None:
    shapes = np.array([shapely.box(i, 0, i + 1, 1) for i in range(4)], dtype=object)
    taken = flatten(shapes).take(np.array([3, 1, 1]))
    expected = flatten(shapes[[3, 1, 1]])
    for name in ("vertices", "ring_start", "polygon_start"):
        np.testing.assert_array_equal(getattr(taken, name), getattr(expected, name))
    assert len(flatten(shapes).take(np.empty(0, np.int64))) == 0


def test_a_repeated_vertex_has_heading_zero() -> None:
    west = with_headings(np.array([[2.0, 0], [1, 0], [1, 0], [0, 0]]))
    np.testing.assert_allclose(west[:, 2], [np.pi, 0, np.pi, np.pi])


def test_what_is_missing_is_named(city: Map, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no roadblock 777"):
        city.block("777")
    with pytest.raises(InputError, match=r"nuplan-maps-v1\.0\.json: map index not found.*NUPLAN_MAPS_ROOT"):
        map_path(tmp_path, CITY)
    maps = write_maps(tmp_path)
    with pytest.raises(InputError, match="no version for map sg-one-north"):
        map_path(maps, "sg-one-north")
    path = map_path(maps, CITY)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"map\.gpkg: (layer \w+|cannot be read)"):
        load_map(str(maps), CITY)
    path.unlink()
    with pytest.raises(InputError, match=r"map\.gpkg: map us-ma-boston not found.*NUPLAN_MAPS_ROOT"):
        load_map(str(maps), CITY)


def test_a_missing_baseline_matters_only_where_it_is_needed(city: Map) -> None:
    lane = city.lanes["11"]
    without = type(lane)("9", AreaType.LANE, 0, lane.polygon, None, None, "1")
    with pytest.raises(InputError, match="lane 9 has no baseline"):
        _ = without.baseline


def _is_inside(flat, index: int, x: float, y: float) -> bool:  # type: ignore[no-untyped-def]
    """Even-odd crossings of a ray to the right, over all rings of a polygon."""
    odd = False
    for ring in range(flat.polygon_start[index], flat.polygon_start[index + 1]):
        ends = flat.vertices[flat.ring_start[ring] : flat.ring_start[ring + 1]]
        for (ax, ay), (bx, by) in pairwise(ends):
            if (ay > y) != (by > y) and x < ax + (y - ay) / (by - ay) * (bx - ax):
                odd = not odd
    return odd
