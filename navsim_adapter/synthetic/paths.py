"""Ways through a network, as evenly sampled lines that vehicles follow, and where two of them are in conflict."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from navsim_adapter.synthetic.geometry import headings, offset, resample
from navsim_adapter.synthetic.roads import Edge, Lane, LaneConnector, Network, Turn

Array = np.ndarray
STEP = 1.0  # metres between samples
DEFAULT_LIMIT = 10.0  # what drivers keep to where the map has no limit
CURVE_ACCELERATION = 2.0  # m/s^2 sideways that a calm driver accepts
CLOSE = 2.4  # centre lines nearer than this cannot be used at once


@dataclass(frozen=True)
class Path:
    """A lane-by-lane way through a network, sampled every STEP metres.

    points (N, 2); heading (N,) unwrapped; curvature (N,); speed (N,): comfortable speed, limits and bends considered.
    """

    points: Array
    heading: Array
    curvature: Array
    speed: Array
    edges: tuple[int, ...]  # lane and connector ids in order
    blocks: tuple[str, ...]  # roadblock and roadblock connector ids in order (the log's route)
    connector_spans: tuple[tuple[float, float], ...]  # where the connectors begin and end
    priorities: tuple[int, ...]
    turns: tuple[Turn, ...]
    signal: int | None  # signal group of the first connector with lights
    stop_s: float  # its stop line; inf without

    @property
    def length(self) -> float:
        return (len(self.points) - 1) * STEP

    @property
    def junction_s(self) -> float:
        """Start of the first turning connector, else of the first connector, else the middle."""
        for span, turn in zip(self.connector_spans, self.turns):
            if turn != "straight":
                return span[0]
        return self.connector_spans[0][0] if self.connector_spans else self.length / 2

    def at(self, s: Array | float) -> tuple[Array, Array, Array]:
        """x, y, heading at distance s."""
        grid = np.arange(len(self.points)) * STEP
        return (
            np.interp(s, grid, self.points[:, 0]),
            np.interp(s, grid, self.points[:, 1]),
            np.interp(s, grid, self.heading),
        )

    def shifted(self, sideways: Array) -> Path:
        """The same way, driven `sideways` (N,) metres to the left of it; keeps the sampling index."""
        points = offset(self.points, sideways)
        heading = headings(points)
        return replace(self, points=points, heading=heading)


def find_paths(net: Network, longest: int = 9) -> list[Path]:
    """Every way from a lane without predecessor to one without successor that visits no roadblock twice."""
    followers: dict[int, list[LaneConnector]] = {}
    entered = set()
    for connector in net.connectors():
        followers.setdefault(connector.from_lane, []).append(connector)
        entered.add(connector.to_lane)
    lanes = {lane.id: lane for lane in net.lanes()}
    paths: list[Path] = []

    def extend(edges: list[Edge], blocks: set[int]) -> None:
        last = edges[-1]
        following = followers.get(last.id, [])
        if not following or len(edges) > longest:
            paths.append(_make(edges))
            return
        for connector in following:
            target = lanes[connector.to_lane]
            if target.block_id not in blocks:
                extend([*edges, connector, target], blocks | {target.block_id})

    for lane in lanes.values():
        if lane.id not in entered:
            extend([lane], {lane.block_id})
    return paths


def conflict(p: Path, q: Path) -> tuple[float, float, int] | None:
    """Where p and q first come together after having been apart: distance along p, along q, who yields (1: p, 2: q)."""
    mine, theirs = p.points[::2], q.points[::2]
    apart = (mine[:, None, 0] - theirs[None, :, 0]) ** 2 + (mine[:, None, 1] - theirs[None, :, 1]) ** 2
    near = apart.min(axis=1) < CLOSE**2
    starts = np.flatnonzero(near[1:] & ~near[:-1]) + 1
    if not len(starts):
        return None
    s_p = 2 * STEP * float(starts[0])
    s_q = 2 * STEP * float(np.flatnonzero(apart[starts[0]] < CLOSE**2)[0])
    rank_p, rank_q = _priority(p, s_p), _priority(q, s_q)
    return s_p, s_q, 1 if rank_p < rank_q else 2 if rank_q < rank_p else 0


def _priority(path: Path, s: float) -> int:
    """Of the connector that leads to (or holds) the point at s."""
    nearest = [abs(s - min(max(s, a), b)) for a, b in path.connector_spans]
    return path.priorities[int(np.argmin(nearest))] if nearest else 0


def _make(edges: list[Edge]) -> Path:
    lines = [edge.baseline for edge in edges]
    points = resample(np.concatenate([lines[0], *[line[1:] for line in lines[1:]]]), STEP)
    heading = headings(points)
    curvature = np.convolve(np.pad(np.gradient(heading) / STEP, 3, mode="edge"), np.ones(7) / 7, mode="valid")
    ends = np.cumsum([np.hypot(*np.diff(line, axis=0).T).sum() for line in lines])
    ends *= (len(points) - 1) * STEP / ends[-1]
    starts = np.concatenate([[0.0], ends[:-1]])
    limit = np.full(len(points), DEFAULT_LIMIT)
    spans, priorities, turns, signal, stop_s = [], [], [], None, np.inf
    blocks: list[str] = []
    for edge, a, b in zip(edges, starts, ends):
        here = slice(int(a), int(b) + 2)
        if isinstance(edge, Lane) or (isinstance(edge, LaneConnector) and edge.turn == "straight"):
            limit[here] = edge.speed_limit or DEFAULT_LIMIT
        blocks.append(str(edge.block_id))
        if isinstance(edge, LaneConnector):
            spans.append((float(a), float(b)))
            priorities.append(edge.priority)
            turns.append(edge.turn)
            if edge.signal is not None and signal is None:
                signal, stop_s = edge.signal, float(a) - 1.0
    return Path(
        points=points,
        heading=heading,
        curvature=curvature,
        speed=_speed_profile(curvature, limit),
        edges=tuple(edge.id for edge in edges),
        blocks=tuple(blocks),
        connector_spans=tuple(spans),
        priorities=tuple(priorities),
        turns=tuple(turns),
        signal=signal,
        stop_s=stop_s,
    )


def _speed_profile(curvature: Array, limit: Array, braking: float = 1.3) -> Array:
    """The limit, lowered in bends, and early enough before them."""
    speed = np.minimum(limit, np.sqrt(CURVE_ACCELERATION / np.maximum(np.abs(curvature), 1e-4)))
    for i in range(len(speed) - 2, -1, -1):
        speed[i] = min(speed[i], np.sqrt(speed[i + 1] ** 2 + 2 * braking * STEP))
    return speed
