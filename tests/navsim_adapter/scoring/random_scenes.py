"""Small random worlds straight as SceneCaches: roads, lanes, a junction, holes, parts, cars, cones and red lights."""

from __future__ import annotations

import numpy as np

from navsim_adapter.scene_cache import EPDMS, PDMS, STEPS, AreaType, ObjectType, Polygons, SceneCache


def random_scene(seed: int) -> SceneCache:
    rng = np.random.default_rng(seed)
    origin, turn = np.array([580_000.0, 4_200_000.0]) + rng.uniform(-50, 50, 2), rng.uniform(-np.pi, np.pi)
    speed = rng.choice([0.0, 0.03, rng.uniform(1, 14)])
    areas, kinds, routed = _roads(rng)
    centerline = np.column_stack([np.linspace(-30, 120, 100), 2.0 * np.sin(np.linspace(0, 2, 100)) * rng.integers(2)])
    ego = np.array([0.0, rng.normal(0, 0.4), rng.normal(0, 0.05)])
    poses, sizes, types, velocities, versions = _objects(rng)
    lights = [_rectangle(rng.uniform(10, 40), rng.uniform(-3, 3), rng.uniform(3, 20), 3.5, rng.uniform(-1, 1), 9)]
    lights = lights[: rng.integers(2)]
    reference = np.column_stack([np.arange(41) * 0.1 * rng.uniform(0, 12), np.zeros(41), np.zeros(41)])
    human = np.column_stack([np.arange(1, 9) * 0.5 * rng.uniform(0, 12), rng.normal(0, 0.3, 8), rng.normal(0, 0.02, 8)])
    past = np.zeros((4, 11))
    past[:, 2] = turn + rng.normal(0, 0.02, 4)
    past[:, 5:7] = rng.normal(0, 1.0, (4, 2))
    state = np.zeros(11)
    state[:3] = _placed(ego, origin, turn)
    state[3:7] = speed, 0.0, *rng.normal(0, 0.5, 2).astype(np.float32)
    moved = [
        [[_point(ring, origin, turn) for ring in rings] for rings in group]
        for group in ([*areas], [[x] for x in lights])
    ]
    return SceneCache(
        token=f"random{seed:010d}",
        log_name="random",
        map_name="nowhere",
        time_us=1_600_000_000_123_456 + int(rng.integers(1_000_000)),
        is_synthetic=bool(rng.integers(2)),
        ego_state=state,
        centerline=_placed(np.column_stack([centerline, np.zeros(100)]), origin, turn),
        route_lane_ids=(),
        areas=_flat(moved[0]),
        area_type=np.array(kinds, np.int8),
        area_on_route=np.array(routed, bool),
        area_ids=tuple(str(i) for i in range(len(kinds))),
        object_tokens=tuple(str(i) for i in range(len(types))),
        object_type=types,
        object_versions=versions,
        object_size=sizes,
        object_pose=_placed(poses, origin, turn),
        object_velocity=velocities,
        lights=_flat(moved[1]),
        light_red=rng.random((len(lights), 41)) < 0.7,
        light_ids=tuple(str(i) for i in range(len(lights))),
        human_future=human,
        past_states=past,
        past_time_us=state_times(rng),
        reference_pdms=_placed(reference, origin, turn),
        reference_epdms=_placed(reference, origin, turn),
    )


def random_plans(seed: int, count: int) -> np.ndarray:
    """(count, 8, 3) ego-frame plans, from sensible to wild."""
    rng = np.random.default_rng(seed + 1)
    time = np.arange(1, 9) * 0.5
    speed, bend = rng.uniform(-1, 14, (count, 1)), rng.normal(0, 0.1, (count, 1)) * rng.integers(0, 2, (count, 1))
    heading = bend * time
    step = np.diff(np.concatenate([np.zeros((count, 1)), speed * time], axis=1), axis=1)
    plans = np.stack([np.cumsum(step * np.cos(heading), 1), np.cumsum(step * np.sin(heading), 1), heading], axis=2)
    return plans + rng.normal(0, 0.05, plans.shape) * rng.integers(0, 2, (count, 1, 1))


def state_times(rng: np.random.Generator) -> np.ndarray:
    return 1_600_000_000_000_000 + np.cumsum([0, *(500_000 + rng.integers(-300, 300, 3))]).astype(np.int64)


def _roads(rng: np.random.Generator) -> tuple[list[list[np.ndarray]], list[int], list[bool]]:
    areas, kinds, routed = [], [], []

    def add(kind: AreaType, rings: list[np.ndarray], on_route: bool = False) -> None:
        areas.append(rings)
        kinds.append(int(kind))
        routed.append(on_route)

    for k, across in enumerate((0.0, 7.0)):  # the ego's carriageway and the other one
        add(AreaType.ROADBLOCK, [_rectangle(45, across, 150, 7.0, 0.0, 40)])
        for lane in (-1.75, 1.75):
            add(AreaType.LANE, [_rectangle(45, across + lane, 150, 3.5, 0.0, 60)], k == 0 and rng.random() < 0.8)
    corner = [_rectangle(30, 3.5, 22, 22, 0.1, 5)]
    if rng.random() < 0.5:
        corner.append(_rectangle(32, 5.0, 4, 3, 0.5, 3))  # a hole
    add(AreaType.INTERSECTION, corner)
    for angle in rng.uniform(-0.6, 0.6, rng.integers(0, 4)):
        add(AreaType.LANE_CONNECTOR, [_rectangle(30, rng.uniform(-2, 4), 25, 3.5, angle, 20)], bool(rng.random() < 0.5))
    park = [_rectangle(10, -7.5, 20, 8, 0.0, 4), _rectangle(40, -8.0, 12, 6, 0.2, 3)]  # two parts
    add(AreaType.CARPARK_AREA, park)
    return areas, kinds, routed


def _objects(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    count = int(rng.integers(0, 9))
    start = np.column_stack(
        [rng.uniform(-12, 45, count), rng.uniform(-6, 10, count), rng.uniform(-np.pi, np.pi, count)]
    )
    types = rng.integers(0, len(ObjectType), count).astype(np.int8)
    speed = rng.uniform(0, 9, count) * (types <= 2) * rng.integers(0, 2, count)
    poses = np.repeat(start[:, None], STEPS, axis=1)
    time = np.arange(STEPS) * 0.1
    poses[:, :, 0] += (speed * np.cos(start[:, 2]))[:, None] * time
    poses[:, :, 1] += (speed * np.sin(start[:, 2]))[:, None] * time
    for m in np.flatnonzero(rng.random(count) < 0.2):
        poses[m, rng.integers(1, STEPS) :] = np.nan
    sizes = np.column_stack([rng.uniform(0.4, 6, count), rng.uniform(0.4, 2.4, count)])
    velocities = np.column_stack([speed, np.zeros(count)])
    return poses, sizes, types, velocities, rng.choice([PDMS, EPDMS, PDMS | EPDMS], count).astype(np.uint8)


def _rectangle(x: float, y: float, length: float, width: float, angle: float, pieces: int) -> np.ndarray:
    """A closed ring with extra vertices on its long sides."""
    along = np.linspace(length / 2, -length / 2, pieces)
    ring = np.concatenate(
        [
            np.column_stack([along, np.full(pieces, width / 2)]),
            np.column_stack([along[::-1], np.full(pieces, -width / 2)]),
        ]
    )
    ring = np.concatenate([ring, ring[:1]]) @ [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
    return ring + np.array([x, y])


def _point(points: np.ndarray, origin: np.ndarray, turn: float) -> np.ndarray:
    return points @ [[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]] + origin


def _placed(poses: np.ndarray, origin: np.ndarray, turn: float) -> np.ndarray:
    placed = np.empty_like(poses)
    placed[..., :2] = _point(poses[..., :2], origin, turn)
    placed[..., 2] = np.mod(poses[..., 2] + turn + np.pi, 2 * np.pi) - np.pi
    return placed


def _flat(polygons: list[list[np.ndarray]]) -> Polygons:
    rings = [ring for group in polygons for ring in group]
    return Polygons(
        np.concatenate([np.empty((0, 2)), *rings]),
        np.concatenate([[0], np.cumsum([len(ring) for ring in rings])]).astype(np.int64),
        np.concatenate([[0], np.cumsum([len(group) for group in polygons])]).astype(np.int64),
    )
