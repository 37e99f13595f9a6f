"""From the logged roadblocks to the lanes a scene is scored on (metric 3.4, 3.5).

Every tie is broken as officially: order of rows, of discovery, of the tree's answers. Lists of blocks may hold a
block twice until the very end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import shapely

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.nuplan.maps import Block, Lane, Map
from navsim_adapter.scene_cache import AreaType

CANDIDATE_RADIUS = 1.0  # half side of the square around the rear axle, m
MAX_HEADING_ERROR = np.pi / 4
MAX_DISPLACEMENT = 3.0
BACKWARD_DEPTH, FORWARD_DEPTH = 15, 30
LOOP_OVERLAP = 1.0  # m2
SEARCH_BLOCKS = 30

DrivableMap = Sequence[tuple[str, AreaType, int]]


@dataclass(frozen=True)
class Route:
    """`logged`, `corrected`: blocks without repetition. `start`: the lane under the ego; `path`: lanes ahead of it."""

    logged: list[Block]
    corrected: list[Block]
    start: Lane
    path: list[Lane]

    @property
    def lanes(self) -> dict[str, Lane]:
        """Lanes of the corrected route, blocks in order, rows in order; keys are `route_lane_ids`."""
        return lanes_of(self.corrected)

    @property
    def logged_lanes(self) -> dict[str, Lane]:
        return lanes_of(self.logged)

    @property
    def centerline(self) -> np.ndarray:
        """(C, 3) x, y, heading (unwrapped along the way) of the path's baseline vertices, joints duplicated."""
        vertices = np.concatenate([lane.baseline for lane in self.path])
        vertices[:, 2] = np.unwrap(vertices[:, 2])
        return vertices


def plan_route(
    city: Map,
    roadblock_ids: Sequence[str],
    ego: np.ndarray,
    center: np.ndarray,
    footprint: np.ndarray,
    near: DrivableMap,
) -> Route:
    """Correct the route and find the lanes ahead.

    ego: (3,) rear axle x, y, heading. center: (2,) geometric center. footprint: (4, 2) corners.
    near: the drivable map around the ego (metric 3.3). Raises InputError where the map lacks what the route names.
    """
    logged = [city.block(block_id) for block_id in dict.fromkeys(roadblock_ids)]
    if not logged:
        raise InputError("route: roadblock_ids is empty; a scene without route has no score")
    corrected = list({block.id: block for block in correct(city, logged, ego)}.values())
    lanes = lanes_of(corrected)
    start = starting_lane(city, lanes, ego, center, footprint, near)
    return Route(logged, corrected, start, lanes_ahead(city, corrected, lanes, start))


def lanes_of(blocks: Sequence[Block]) -> dict[str, Lane]:
    return {lane.id: lane for block in blocks for lane in block.lanes}


def correct(city: Map, route: list[Block], ego: np.ndarray) -> list[Block]:
    """The three fixes of metric 3.4; the result may repeat blocks."""
    start, candidates = _start_block(city, {block.id for block in route}, ego)
    if start.id not in {block.id for block in route}:
        route = _reach_route(city, route, start, candidates)
    return _cut_loop(_bridge_gaps(city, route))


def _start_block(city: Map, route_ids: set[str], ego: np.ndarray) -> tuple[Block, list[Block]]:
    """The block under the ego, and the set of candidates it was chosen from."""
    candidates = city.blocks_near(ego[0], ego[1], CANDIDATE_RADIUS) or city.nearest_blocks(ego[0], ego[1])
    fitting: dict[bool, list[tuple[float, Block]]] = {True: [], False: []}
    best = []
    for block in candidates:
        errors = [_lane_error(lane, ego) for lane in block.lanes]
        if not errors:
            raise InputError(f"map {city.name}: roadblock {block.id} has no lanes; scenes beside it have no score")
        best.append((min(distance for distance, _ in errors), block))
        for distance, heading_error in errors:
            if heading_error < MAX_HEADING_ERROR and distance < MAX_DISPLACEMENT:
                fitting[block.id in route_ids].append((distance, block))
    chosen = fitting[True] or fitting[False] or best
    if not chosen:
        raise InputError(f"map {city.name}: has no roadblocks; replace the map")
    nearest = min(chosen, key=lambda entry: entry[0])[1]
    return nearest, [block for _, block in chosen]


def _lane_error(lane: Lane, ego: np.ndarray) -> tuple[float, float]:
    """Distance to the nearest baseline vertex, and the absolute heading error there."""
    distance = ((lane.baseline[:, :2] - ego[:2]) ** 2.0).sum(axis=-1) ** 0.5
    nearest = int(np.argmin(distance))
    error = lane.baseline[nearest, 2] - ego[2]
    return float(distance[nearest]), float(np.abs(np.arctan2(np.sin(error), np.cos(error))))


def _reach_route(city: Map, route: list[Block], start: Block, candidates: list[Block]) -> list[Block]:
    """Fix 1: the start block is off the route; search behind the route, else ahead of the ego."""
    behind = search_blocks(city, route[0], {block.id for block in candidates}, BACKWARD_DEPTH, is_backward=True)
    if behind:
        return behind[:-1] + route
    first_ids = [block.id for block in route[:3]]
    ahead = search_blocks(city, start, set(first_ids), FORWARD_DEPTH)
    if ahead:
        return ahead + route[first_ids.index(ahead[-1].id) + 1 :]
    return route


def _bridge_gaps(city: Map, route: list[Block]) -> list[Block]:
    """Fix 2: insert what lies between neighbours that are not connected."""
    bridged = route[:1]
    for block, following in pairwise(route):
        if block.id not in {before.id for before in city.incoming_blocks(following)}:
            bridged += search_blocks(city, block, {following.id}, FORWARD_DEPTH)[1:-1]
        bridged.append(following)
    return bridged


def _cut_loop(route: list[Block]) -> list[Block]:
    """Fix 3: end the route before a connector that overlaps an earlier one."""
    seen: list[Block] = []
    for index, block in enumerate(route):
        if not block.is_connector:
            continue
        if any(_overlap(block, earlier) > LOOP_OVERLAP for earlier in seen):
            return route[:index]
        seen.append(block)
    return route


def _overlap(block: Block, other: Block) -> float:
    return float(shapely.area(shapely.intersection(block.polygon, other.polygon)))


def search_blocks(city: Map, start: Block, goals: set[str], max_depth: int, is_backward: bool = False) -> list[Block]:
    """Breadth-first path from `start` to the first goal, or []; backward paths are given in driving order.

    The official search keeps no visited set, so a block can be queued many times in a level and each time overwrites
    the parents of its neighbours: the last writer wins. Two orders per level give the same without the queue: that
    of first occurrence decides which goal is met first, that of last occurrence in which parents are written.
    """
    first, last = [start], [start]
    parents: list[dict[str, Block]] = [{}]
    for depth in range(1, max_depth + 1):
        goal = next((block for block in first if block.id in goals), None)
        if goal is not None:
            path = [goal]
            for level in reversed(parents[1:]):
                path.append(level[path[-1].id])
            return path if is_backward else path[::-1]
        if depth == max_depth:
            break
        neighbours = city.incoming_blocks if is_backward else city.outgoing_blocks
        level_parents: dict[str, Block] = {}
        next_last: dict[str, Block] = {}
        for block in last:
            for neighbour in neighbours(block):
                level_parents[neighbour.id] = block
                next_last.pop(neighbour.id, None)
                next_last[neighbour.id] = neighbour
        first = list({neighbour.id: neighbour for block in first for neighbour in neighbours(block)}.values())
        last = list(next_last.values())
        parents.append(level_parents)
    return []


def starting_lane(
    city: Map, lanes: dict[str, Lane], ego: np.ndarray, center: np.ndarray, footprint: np.ndarray, near: DrivableMap
) -> Lane:
    """The route lane under the rear axle with the least heading error, else under the center, else the nearest."""
    if not lanes:
        raise InputError(f"map {city.name}: the route has no lanes; a scene without lanes has no score")
    # Ties go to the tree's order of answers, so it is built as officially: all areas, default node size (metric 3.5).
    tree = shapely.STRtree(city.area_geometry[[area for _, _, area in near]])
    under = [near[row][0] for row in tree.query(shapely.Point(ego[0], ego[1]), "intersects") if near[row][0] in lanes]
    if under:
        return lanes[min(under, key=lambda lane_id: _lane_error(lanes[lane_id], ego)[1])]
    point = shapely.Point(center[0], center[1])
    for lane in lanes.values():
        if shapely.contains(lane.polygon, point):
            return lane
    outline = shapely.Polygon(footprint)
    return min(lanes.values(), key=lambda lane: float(shapely.distance(lane.polygon, outline)))


def lanes_ahead(city: Map, blocks: list[Block], lanes: dict[str, Lane], start: Lane) -> list[Lane]:
    """Cheapest lane sequence from the starting lane to the block 30 ahead, or as far as the route's lanes go.

    Dijkstra as officially (metric 3.5): ties go to the place in the open list; without a way to the goal the deepest
    expanded lane is taken, among those the cheapest, then the first.
    """
    ids = [block.id for block in blocks]
    start_index = ids.index(start.block_id) if start.block_id in ids else 0
    goal_id = ids[min(start_index + SEARCH_BLOCKS - 1, len(ids) - 1)]
    open_lanes, cost, depth = [start], {start.id: 1.0}, {start.id: 1}
    parent: dict[str, Lane | None] = {start.id: None}
    expanded: dict[str, Lane] = {}
    while open_lanes:
        place = min(range(len(open_lanes)), key=lambda index: cost[open_lanes[index].id])
        lane = open_lanes.pop(place)
        expanded[lane.id] = lane
        if lane.block_id == goal_id:
            return _path_to(lane, parent)
        for following in city.outgoing_lanes(lane):
            if following.id not in lanes or following.id in expanded:
                continue
            reached = cost[lane.id] + following.length
            is_new = following.id not in cost
            if is_new:
                open_lanes.append(following)
            if is_new or reached < cost[following.id]:
                cost[following.id], depth[following.id], parent[following.id] = reached, depth[lane.id] + 1, lane
    end = min(expanded.values(), key=lambda lane: (-depth[lane.id], cost[lane.id]))
    return _path_to(end, parent)


def _path_to(lane: Lane, parent: dict[str, Lane | None]) -> list[Lane]:
    path = [lane]
    while (before := parent[path[-1].id]) is not None:
        path.append(before)
    return path[::-1]
