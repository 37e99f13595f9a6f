"""Every layout, with several shapes: a network that maps, traffic and scorer can live with."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from shapely.geometry import Polygon

from navsim_adapter.synthetic.driver import AXLE_TO_CENTER, LENGTH, WIDTH
from navsim_adapter.synthetic.geometry import box_corners
from navsim_adapter.synthetic.layers import LAYERS, features
from navsim_adapter.synthetic.layouts import LAYOUTS, build
from navsim_adapter.synthetic.places import MOST_PLACES, places
from navsim_adapter.synthetic.setting import survey

SHAPES = [(layout, seed) for layout in LAYOUTS for seed in range(3)]


@pytest.fixture(params=SHAPES, ids=lambda p: f"{p[0]}-{p[1]}")
def net(request):
    layout, seed = request.param
    return build(layout, np.random.default_rng(seed), 100, np.array([331000.0, 4691000.0]))


def test_there_are_six_layouts():
    assert {"straight", "curve", "crossing", "t_junction", "merge", "roundabout"} <= set(LAYOUTS)


def test_surfaces_are_valid_and_ids_are_unique_within_a_layer(net):
    seen: dict[str, list[int]] = {}
    for layer, feature in features(net):
        assert shapely.is_valid(feature.geometry), (layer, feature.id)
        assert set(feature.columns) <= set(LAYERS[layer][1])
        seen.setdefault(layer, []).append(feature.id)
    assert all(len(ids) == len(set(ids)) for ids in seen.values())
    roads = (
        seen["lane_groups_polygons"] + seen["lane_group_connectors"] + seen["lanes_polygons"] + seen["lane_connectors"]
    )
    assert len(roads) == len(set(roads))


def test_connectors_begin_and_end_at_their_lanes(net):
    lanes = {lane.id: lane for lane in net.lanes()}
    for connector in net.connectors():
        assert np.allclose(connector.baseline[0], lanes[connector.from_lane].baseline[-1])
        assert np.allclose(connector.baseline[-1], lanes[connector.to_lane].baseline[0])


def test_baselines_have_a_vertex_about_every_metre(net):
    for edge in [*net.lanes(), *net.connectors()]:
        steps = np.hypot(*np.diff(edge.baseline, axis=0).T)
        assert steps.min() > 0.4
        assert steps.max() < 1.7


def test_every_way_can_be_driven_without_leaving_the_road(net):
    """The scorer's own reference keeps its rear axle on the baseline: all four corners must stay on the surface."""
    site = survey(net)
    assert site.paths
    for path in site.paths:
        heading = path.heading
        center = path.points + AXLE_TO_CENTER * np.stack([np.cos(heading), np.sin(heading)], axis=1)
        corners = box_corners(center, heading, np.full(len(heading), LENGTH), np.full(len(heading), WIDTH))
        inside = shapely.contains_xy(site.drivable, corners[..., 0], corners[..., 1]).all(axis=1)
        assert inside[3:-6].all(), path.turns
        assert np.abs(path.curvature).max() < 1 / 6.0


def test_neighbouring_roadblocks_and_junctions_leave_no_gap(net):
    site = survey(net)
    lanes = {lane.id: lane for lane in net.lanes()}
    for connector in net.connectors():
        joint = lanes[connector.from_lane].ring
        half = np.array([lanes[connector.from_lane].left[-1], lanes[connector.from_lane].right[-1]])
        across = half[0] * 0.3 + half[1] * 0.7
        assert shapely.contains_xy(site.drivable, *across)
        assert Polygon(joint).area > 0


def test_places_are_used_by_one_split_only_and_one_city_is_kept_for_the_test():
    by_split = {split: places(split, 1000) for split in MOST_PLACES}
    numbers = [place.number for all_places in by_split.values() for place in all_places]
    assert len(numbers) == len(set(numbers))
    cities = {split: {place.city.name for place in all_places} for split, all_places in by_split.items()}
    assert "sg-one-north" in cities["test"]
    assert "sg-one-north" not in cities["trainval"] | cities["mini"]
    assert {"us-ma-boston", "us-pa-pittsburgh-hazelwood"} <= cities["trainval"] & cities["mini"] & cities["test"]
    for all_places in by_split.values():
        assert {place.layout for place in all_places} == set(LAYOUTS)


def test_the_same_place_is_the_same_roads_however_many_logs_there_are():
    few, many = places("trainval", 3), places("trainval", 40)
    assert few == many[:3]
    again = few[2].network(5)
    assert np.array_equal(again.lanes()[0].baseline, many[2].network(5).lanes()[0].baseline)
    assert not np.array_equal(again.lanes()[0].baseline, few[2].network(6).lanes()[0].baseline)
