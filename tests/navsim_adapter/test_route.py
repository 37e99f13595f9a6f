"""Routes are corrected and lanes chosen as the specification says, ties included."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
import shapely

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.nuplan.maps import Block, Lane, Map, flatten
from navsim_adapter.nuplan.route import correct, lanes_ahead, lanes_of, plan_route, search_blocks, starting_lane
from navsim_adapter.scene_cache import AreaType

EGO = np.array([0.0, 0.0, 0.0])


def _city(edges: list[tuple[str, str]], places: dict[str, tuple[float, float]] | None = None) -> Map:
    """Roadblocks (names without "-") joined by connectors "a-b"; each has one lane of the same id, 10 m along x."""
    names = sorted({end for edge in edges for end in edge})
    spots = places or {}
    geometry = []

    def block(block_id: str, is_connector: bool, x: float, y: float) -> Block:
        polygon = shapely.box(x, y - 2, x + 10, y + 2)
        geometry.append(polygon)
        kind = AreaType.LANE_CONNECTOR if is_connector else AreaType.LANE
        line = shapely.LineString([(x, y), (x + 5, y), (x + 10, y)])
        lane = Lane(block_id, kind, len(geometry) - 1, polygon, line, None, block_id)
        return Block(block_id, is_connector, len(geometry) - 1, polygon, [lane])

    far = iter(range(1000, 10**6, 20))
    roadblocks = {name: block(name, False, *spots.get(name, (next(far), 0.0))) for name in names}
    connectors = {}
    for source, target in edges:
        link = f"{source}-{target}"
        connectors[link] = block(link, True, *spots.get(link, (next(far), 500.0)))
        connectors[link].incoming_ids, connectors[link].outgoing_ids = (source,), (target,)
        connectors[link].lanes[0].outgoing_ids = (target,)
        roadblocks[source].outgoing_ids += (link,)
        roadblocks[source].lanes[0].outgoing_ids += (link,)
        roadblocks[target].incoming_ids += (link,)
    shapes = np.array(geometry, dtype=object)
    lanes = {name: item.lanes[0] for name, item in roadblocks.items()}
    links = {name: item.lanes[0] for name, item in connectors.items()}
    return Map("town", "", roadblocks, connectors, lanes, links, [], [], flatten(shapes), shapes)


def _ids(blocks: list[Block]) -> list[str]:
    return [block.id for block in blocks]


def _corrected(city: Map, *route: str) -> list[str]:
    return _ids(correct(city, [city.block(block_id) for block_id in route], EGO))


def _literal_search(city: Map, start: Block, goals: set[str], max_depth: int, is_backward: bool) -> list[str]:
    """The search as the specification tells it: one queue, no visited set, parents overwritten per id and depth."""
    queue = deque([(start, 1)])
    parent: dict[tuple[str, int], tuple[str, int] | None] = {(start.id, 1): None}
    while queue:
        block, depth = queue.popleft()
        if depth > max_depth:
            return []
        if block.id in goals:
            path, key = [], (block.id, depth)
            while key is not None:
                path.append(key[0])
                key = parent[key]  # type: ignore[assignment]
            return path if is_backward else path[::-1]
        for neighbour in (city.incoming_blocks if is_backward else city.outgoing_blocks)(block):
            queue.append((neighbour, depth + 1))
            parent[neighbour.id, depth + 1] = (block.id, depth)
    return []


@pytest.mark.parametrize("seed", range(60))
def test_search_equals_the_literal_queue_without_visited_set(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(3, 7))
    edges = [(str(a), str(b)) for a in range(count) for b in range(count) if a != b and rng.random() < 0.45]
    if not edges:
        return
    city = _city(edges)
    names = list(city.roadblocks) + list(city.connectors)
    for _ in range(10):
        start = city.block(str(rng.choice(names)))
        goals = set(rng.choice(names, int(rng.integers(1, 3))).tolist())
        depth, backward = int(rng.integers(1, 10)), bool(rng.random() < 0.5)
        found = _ids(search_blocks(city, start, goals, depth, backward))
        assert found == _literal_search(city, start, goals, depth, backward)


def test_among_equally_long_ways_the_last_parent_wins() -> None:
    city = _city([("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")])
    assert _ids(search_blocks(city, city.block("a"), {"d"}, 30)) == ["a", "a-c", "c", "c-d", "d"]


def test_a_route_that_starts_ahead_is_extended_back_to_the_ego() -> None:
    city = _city([("a", "b"), ("b", "c")], {"a": (-5, 0)})
    assert _corrected(city, "b", "b-c", "c") == ["a", "a-b", "b", "b-c", "c"]


def test_a_route_beside_the_ego_is_joined_within_its_first_three_blocks() -> None:
    edges = [("a", "c"), ("x", "y"), ("y", "c"), ("c", "d")]
    city = _city(edges, {"a": (-5, 0)})
    assert _corrected(city, "x", "y", "c", "d") == ["a", "a-c", "c", "c-d", "d"]


def test_a_route_that_cannot_be_reached_stays() -> None:
    city = _city([("a", "b"), ("x", "y")], {"a": (-5, 0)})
    assert _corrected(city, "x", "x-y", "y") == ["x", "x-y", "y"]


def test_backward_search_is_bounded_to_fifteen_levels() -> None:
    chain = [(f"n{i:02d}", f"n{i + 1:02d}") for i in range(9)]
    city = _city(chain, {"n00": (-5, 0)})
    assert _corrected(city, "n07")[0] == "n00"  # 15 blocks, the goal among them
    assert _corrected(city, "n08")[0] == "n00"  # 17 blocks: reached by the forward search, which may go 30 deep


def test_gaps_in_the_route_are_bridged() -> None:
    city = _city([("a", "b"), ("b", "c"), ("c", "d")], {"a": (-5, 0)})
    assert _corrected(city, "a", "b", "d") == ["a", "a-b", "b", "b-c", "c", "c-d", "d"]


def test_the_route_ends_before_a_connector_that_overlaps_an_earlier_one() -> None:
    places = {"a": (-5, 0), "a-b": (50, 0), "b-c": (58, 0), "c-d": (68.5, 0)}
    city = _city([("a", "b"), ("b", "c"), ("c", "d")], places)
    assert _corrected(city, "a", "a-b", "b", "b-c", "c") == ["a", "a-b", "b"]  # 2 m x 4 m shared
    places["b-c"] = (59.8, 0)  # 0.2 m x 4 m: below 1 m2
    city = _city([("a", "b"), ("b", "c"), ("c", "d")], places)
    assert _corrected(city, "a", "a-b", "b", "b-c", "c")[-1] == "c"


def test_the_start_block_is_the_nearest_that_fits_and_lies_on_the_route() -> None:
    city = _city([("a", "b"), ("z", "b")], {"a": (-5, 1.5), "z": (-5, 0.0)})
    assert _corrected(city, "a", "a-b", "b")[0] == "a"  # z is nearer but off the route


def test_a_start_block_can_be_on_the_route_although_it_faces_away() -> None:
    city = _city([("a", "b")], {"a": (-5, 0)})
    turned = np.array([0.0, 0.0, np.pi])
    assert _ids(correct(city, [city.block("a"), city.block("a-b"), city.block("b")], turned)) == ["a", "a-b", "b"]


def _start(city: Map, lanes: dict[str, Lane], ego: np.ndarray, center: tuple[float, float] = (1.461, 0.0)) -> str:
    near = [(lane.id, lane.type, lane.area) for lane in city.lanes.values()]
    corners = np.array([[4, 1], [-1, 1], [-1, -1], [4, -1]]) + ego[:2]
    return starting_lane(city, lanes, ego, np.array(center), corners, near).id


def test_the_starting_lane_has_the_least_heading_error_under_the_axle() -> None:
    city = _city([("a", "b")], {"a": (-5, 0), "b": (-5, 1)})
    city.lanes["b"].line = shapely.LineString([(-5, 1), (5, 2)])
    lanes = lanes_of(list(city.roadblocks.values()))
    assert _start(city, lanes, EGO) == "a"
    assert _start(city, lanes, np.array([0.0, 0.0, 0.1])) == "b"
    assert _start(city, {"b": lanes["b"]}, EGO) == "b"  # a is no lane of the route


def test_without_a_lane_under_the_axle_the_one_under_the_center_then_the_nearest_counts() -> None:
    city = _city([("a", "b")], {"a": (1, 0), "b": (0, 5.5)})
    lanes = lanes_of(list(city.roadblocks.values()))
    assert _start(city, lanes, EGO) == "a"
    assert _start(city, {"b": lanes["b"]}, EGO) == "b"
    with pytest.raises(InputError, match="the route has no lanes"):
        _start(city, {}, EGO)


def _ahead(city: Map, *route: str) -> list[str]:
    blocks = [city.block(block_id) for block_id in route]
    return [lane.id for lane in lanes_ahead(city, blocks, lanes_of(blocks), blocks[0].lanes[0])]


def test_lanes_ahead_follow_the_cheapest_way_to_the_goal() -> None:
    city = _city([("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")])
    city.lanes["b"].line = shapely.LineString([(0, 0), (50, 0)])
    route = ("a", "a-b", "b", "b-d", "a-c", "c", "c-d", "d")
    assert _ahead(city, *route) == ["a", "a-c", "c", "c-d", "d"]


def test_lanes_ahead_stop_thirty_blocks_on() -> None:
    chain = [(f"n{i:02d}", f"n{i + 1:02d}") for i in range(20)]
    city = _city(chain)
    route = [item for a, b in chain for item in (a, f"{a}-{b}")]
    assert _ahead(city, *route) == route[:30]


def test_without_a_way_to_the_goal_the_deepest_then_cheapest_lane_ends_the_path() -> None:
    city = _city([("a", "b"), ("a", "c"), ("x", "y")])
    city.lanes["b"].line = shapely.LineString([(0, 0), (50, 0)])
    assert _ahead(city, "a", "a-b", "b", "a-c", "c", "x") == ["a", "a-c", "c"]


def test_a_goal_in_the_starting_block_gives_one_lane() -> None:
    city = _city([("a", "b")])
    assert _ahead(city, "a") == ["a"]


def test_a_route_the_map_lacks_is_refused() -> None:
    city = _city([("a", "b")], {"a": (-5, 0)})
    near = [("a", AreaType.LANE, 0)]
    corners = np.zeros((4, 2))
    with pytest.raises(InputError, match="has no roadblock 99"):
        plan_route(city, ["a", "99"], EGO, np.zeros(2), corners, near)
    with pytest.raises(InputError, match="roadblock_ids is empty"):
        plan_route(city, [], EGO, np.zeros(2), corners, near)
