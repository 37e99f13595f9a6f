"""A road network as nuPlan's maps see it: roadblocks of parallel lanes, joined in junctions by connectors.

Only the data and the ways to add to it; `layouts` and `junctions` decide the shapes, `map_writer` writes them down.
Edges shared by two pieces (the divider of a two-way road) have identical vertices, so that no sliver lies between.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from navsim_adapter.synthetic.geometry import connect, end_pose, offset, tangents, wrap

Array = np.ndarray
Turn = Literal["straight", "left", "right"]


@dataclass
class Edge:
    """A lane or a lane connector: its baseline and its two borders, all in driving direction."""

    id: int
    block_id: int
    baseline: Array
    left: Array
    right: Array
    left_id: int  # ids of the border features and the baseline
    right_id: int
    baseline_id: int
    speed_limit: float | None

    @property
    def ring(self) -> Array:
        return np.concatenate([self.left, self.right[::-1], self.left[:1]])


@dataclass
class Lane(Edge):
    index: int = 0
    width: float = 3.6


@dataclass
class LaneConnector(Edge):
    from_lane: int = 0
    to_lane: int = 0
    polygon_id: int = 0
    turn: Turn = "straight"
    priority: int = 0  # of two conflicting streams the higher goes first
    signal: int | None = None  # signal group, None without lights


@dataclass
class Block:
    """A roadblock: lanes of one direction, leftmost first."""

    id: int
    lanes: list[Lane]

    @property
    def left(self) -> Array:
        return self.lanes[0].left

    @property
    def right(self) -> Array:
        return self.lanes[-1].right

    @property
    def ring(self) -> Array:
        return np.concatenate([self.left, self.right[::-1], self.left[:1]])


@dataclass
class BlockConnector:
    id: int
    from_block: int
    to_block: int
    junction_id: int
    connectors: list[LaneConnector]


@dataclass
class Junction:
    """A place where roads meet; `hull` fills the corners of a crossing, otherwise only the connectors are paved."""

    id: int
    hull: bool
    mini: bool
    has_signals: bool = False
    links: list[BlockConnector] = field(default_factory=list)


@dataclass
class Crosswalk:
    id: int
    corners: Array  # (4, 2), walked from side 0-1 to side 2-3


@dataclass
class CarPark:
    id: int
    ring: Array
    heading: float


@dataclass
class Network:
    """The roads of one place, in local metres until `placed` moves them."""

    next_id: int
    layout: str = ""
    blocks: dict[int, Block] = field(default_factory=dict)
    junctions: list[Junction] = field(default_factory=list)
    crosswalks: list[Crosswalk] = field(default_factory=list)
    car_parks: list[CarPark] = field(default_factory=list)
    ego_turns: tuple[Turn, ...] = ()  # turns worth driving here; empty: any

    def new_id(self) -> int:
        self.next_id += 1
        return self.next_id

    def add_block(self, left_edge: Array, widths: list[float], speed_limit: float | None) -> Block:
        """A roadblock of len(widths) lanes to the right of `left_edge` (driving direction), leftmost lane first."""
        block_id, lanes, border = self.new_id(), [], left_edge
        border_id = self.new_id()
        start = 0.0
        for index, width in enumerate(widths):
            right, right_id = offset(left_edge, -(start + width)), self.new_id()
            lanes.append(
                Lane(
                    id=self.new_id(),
                    block_id=block_id,
                    baseline=offset(left_edge, -(start + width / 2)),
                    left=border,
                    right=right,
                    left_id=border_id,
                    right_id=right_id,
                    baseline_id=self.new_id(),
                    speed_limit=speed_limit,
                    index=index,
                    width=width,
                )
            )
            border, border_id, start = right, right_id, start + width
        self.blocks[block_id] = Block(block_id, lanes)
        return self.blocks[block_id]

    def add_two_way(
        self, line: Array, forward: list[float], backward: list[float], speed_limit: float | None, median: float = 0.0
    ) -> tuple[Block, Block]:
        """A road along `line`: `forward` lanes on its right, `backward` on its left (widths, divider outwards)."""
        right_of = line if median == 0 else offset(line, -median / 2)
        left_of = line if median == 0 else offset(line, median / 2)
        return self.add_block(right_of, forward, speed_limit), self.add_block(left_of[::-1], backward, speed_limit)

    def add_junction(self, hull: bool, mini: bool = False, has_signals: bool = False) -> Junction:
        self.junctions.append(Junction(self.new_id(), hull, mini, has_signals))
        return self.junctions[-1]

    def join(
        self,
        junction: Junction,
        source: Block,
        target: Block,
        pairs: list[tuple[int, int]],
        priority: int = 0,
        signal: int | None = None,
    ) -> BlockConnector:
        """Connect lanes `pairs` (index in source, index in target) of two roadblocks through a junction."""
        link = BlockConnector(self.new_id(), source.id, target.id, junction.id, [])
        for a, b in pairs:
            link.connectors.append(self._connector(link.id, source.lanes[a], target.lanes[b], priority, signal))
        junction.links.append(link)
        return link

    def _connector(self, block_id: int, source: Lane, target: Lane, priority: int, signal: int | None) -> LaneConnector:
        start, start_heading = end_pose(source.baseline, at_end=True)
        end, end_heading = end_pose(target.baseline, at_end=False)
        line = connect(start, start_heading, end, end_heading)
        half = np.linspace(source.width / 2, target.width / 2, len(line))
        turned = float(wrap(end_heading - start_heading))
        turn: Turn = "left" if turned > 0.6 else "right" if turned < -0.6 else "straight"
        limit = source.speed_limit
        return LaneConnector(
            id=self.new_id(),
            block_id=block_id,
            baseline=line,
            left=offset(line, half),
            right=offset(line, -half),
            left_id=self.new_id(),
            right_id=self.new_id(),
            baseline_id=self.new_id(),
            speed_limit=None if limit is None else limit if turn == "straight" else round(0.7 * limit, 2),
            from_lane=source.id,
            to_lane=target.id,
            polygon_id=self.new_id(),
            turn=turn,
            priority=priority,
            signal=signal,
        )

    def add_crosswalk(self, block: Block, at_end: bool, other: Block | None = None, depth: float = 3.0) -> None:
        """Stripes across a roadblock's end (and over `other`, the opposite direction, when given)."""
        lane_left, lane_right = (block.left, block.right)
        index = -1 if at_end else 0
        direction = tangents(block.left)[index] * (-1 if at_end else 1)
        near = lane_left[index] if other is None else other.right[0 if at_end else -1]
        far = lane_right[index]
        a, b = near + direction * 1.0, far + direction * 1.0
        self.crosswalks.append(Crosswalk(self.new_id(), np.array([a, a + direction * depth, b + direction * depth, b])))

    def lanes(self) -> list[Lane]:
        return [lane for block in self.blocks.values() for lane in block.lanes]

    def links(self) -> list[BlockConnector]:
        return [link for junction in self.junctions for link in junction.links]

    def connectors(self) -> list[LaneConnector]:
        return [connector for link in self.links() for connector in link.connectors]

    def place(self, origin: Array, rotation: float) -> None:
        """Rotate about the local origin and move to `origin` (in the city's projected metres)."""
        c, s = np.cos(rotation), np.sin(rotation)
        matrix = np.array([[c, s], [-s, c]])
        moved: dict[int, Array] = {}  # shared borders stay one array

        def move(points: Array) -> Array:
            if id(points) not in moved:
                moved[id(points)] = points @ matrix + origin
            return moved[id(points)]

        originals = []
        for edge in [*self.lanes(), *self.connectors()]:
            originals += [edge.baseline, edge.left, edge.right]  # kept alive: `moved` is keyed by identity
            edge.baseline, edge.left, edge.right = move(edge.baseline), move(edge.left), move(edge.right)
        for crosswalk in self.crosswalks:
            crosswalk.corners = crosswalk.corners @ matrix + origin
        for park in self.car_parks:
            park.ring, park.heading = park.ring @ matrix + origin, float(wrap(park.heading + rotation))
