"""From a scene and its map to what the scorer needs (metric 3, 4). Whole splits are in `folder`."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import shapely

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.metric.history import HISTORY, history_problem
from navsim_adapter.nuplan import objects, route
from navsim_adapter.nuplan.boxes import ego_center, ego_corners
from navsim_adapter.nuplan.logs import Frame
from navsim_adapter.nuplan.maps import Map, flatten
from navsim_adapter.nuplan.scenes import Moment, Scene
from navsim_adapter.scene_cache import EPDMS, PDMS, AreaType, ObjectType, Polygons, SceneCache

RADIUS = 100.0  # of the drivable map (half side of a square) and of the planner's forecast (circle), m
HUMAN_POSES = 8
_FORECAST_CAPS = {ObjectType.VEHICLE: 50, ObjectType.PEDESTRIAN: 25, ObjectType.BICYCLE: 10}


def build_scene(scene: Scene, city: Map, memory: set[str] | None = None) -> SceneCache:
    """The cache of one scene; raises InputError, naming the scene, where the official code has none.

    memory: of PDM-Closed, None for none (metric 10.3).
    """
    try:
        return _build(scene, city, memory)
    except (InputError, shapely.errors.GEOSException) as problem:
        raise InputError(f"scene {scene.token} of {scene.now.log_name}: {problem}") from problem


def _build(scene: Scene, city: Map, memory: set[str] | None) -> SceneCache:
    now = scene.now
    if scene.problem:
        raise InputError(scene.problem)
    versions = metrics_of(scene)
    past_states = np.array([ego_state(frame) for frame in scene.past[-HISTORY:]])
    past_time_us = np.array([frame.time_us for frame in scene.past[-HISTORY:]], np.int64)
    problem = history_problem(past_states, past_time_us)
    if problem:  # PDMS reads no history
        versions &= ~EPDMS
        if not versions:
            raise InputError(problem)
    moments = scene.moments(objects.PDMS_FRAMES if versions & PDMS else objects.EPDMS_FRAMES)
    frames = [moment.objects for moment in moments]
    _check_objects(frames, now)
    center = ego_center(now.ego_pose)
    near = city.drivable(center[0], center[1], RADIUS)
    if not near:
        raise InputError(
            f"map {city.name}: has nothing within {RADIUS:g} m of the ego at {center[0]:.0f}, {center[1]:.0f} m; check "
            f"that the poses are global and the map's projection ({city.crs}) is theirs"
        )
    plan = route.plan_route(city, now.roadblock_ids, now.ego_pose, center, ego_corners(now.ego_pose), near)
    lanes = plan.lanes
    tracks = objects.track_objects(frames)
    light_ids, light_red = objects.red_lights([moment.lights for moment in moments], plan.logged_lanes)
    rows = np.array([area for _, _, area in near], np.int64)
    types = np.array([kind for _, kind, _ in near], np.int8)
    is_lane = (types == AreaType.LANE) | (types == AreaType.LANE_CONNECTOR)
    on_route = np.array([area_id in lanes for area_id, _, _ in near], bool)
    cache = SceneCache(
        token=scene.token,
        log_name=now.log_name,
        map_name=now.map_name,
        time_us=now.time_us,
        is_synthetic=scene.is_synthetic,
        ego_state=ego_state(now),
        centerline=plan.centerline,
        route_lane_ids=tuple(lanes),
        areas=city.areas.take(rows),
        area_type=types,
        area_on_route=is_lane & on_route,
        area_ids=tuple(area_id for area_id, _, _ in near),
        object_tokens=tracks.tokens,
        object_type=tracks.type,
        object_versions=tracks.versions,
        object_size=tracks.size,
        object_pose=objects.resample(tracks.knots),
        object_velocity=tracks.velocity,
        lights=_light_polygons(city, light_ids),
        light_red=light_red,
        light_ids=light_ids,
        human_future=human_future(scene),
        past_states=past_states,
        past_time_us=past_time_us,
        reference_pdms=np.full((41, 3), np.nan),
        reference_epdms=np.full((41, 3), np.nan),
        object_knots=tracks.knots,
        versions=versions,
    )
    return _with_reference(_with_traffic(cache, moments[0], city), plan, moments[0], city, memory)


def _with_traffic(cache: SceneCache, now: Moment, city: Map) -> SceneCache:
    """Add where simulated traffic starts, which only the map knows (metric 8.3)."""
    if not cache.versions & EPDMS:
        return cache
    from navsim_adapter.traffic.scene import traffic_scene  # brings the compiled scorer

    extras = traffic_scene(city, cache.ego_state[:3], now.objects).arrays()
    return replace(cache, extras={**cache.extras, **extras})


def _with_reference(
    cache: SceneCache, plan: route.Route, now: Moment, city: Map, memory: set[str] | None
) -> SceneCache:
    """Add PDM-Closed's plans, which know the current frame and its lights on the corrected route (metric 4.4)."""
    from navsim_adapter.pdm_closed import plan_references  # brings the compiled scorer

    limit = plan.start.speed_limit
    if limit == 0.0:  # the planner divides by it
        raise InputError(f"map {city.name}: lane {plan.start.id} under the ego has a speed limit of 0; repair the map")
    red = [connector for connector, is_red in now.lights if is_red and connector in plan.lanes]
    lights = [(connector, _light_polygon(city, connector)) for connector in red]
    plans = plan_references(cache, limit, now.objects, lights, memory)
    pdms, epdms = plans.get("pdms", cache.reference_pdms), plans.get("epdms", cache.reference_epdms)
    return replace(cache, reference_pdms=pdms, reference_epdms=epdms)


def metrics_of(scene: Scene) -> int:
    """Which metrics the recorded future suffices for: PDMS needs 10 frames (5 s), EPDMS 8."""
    if scene.recorded_ahead >= objects.PDMS_FRAMES - 1:
        return PDMS | EPDMS
    if scene.recorded_ahead >= objects.EPDMS_FRAMES - 1:
        return EPDMS
    raise InputError(f"has {scene.recorded_ahead} future frames, at least {objects.EPDMS_FRAMES - 1} are needed")


def ego_state(frame: Frame) -> np.ndarray:
    """(11,) rear-axle state; steering and yaw rates are unknown in logs and count as zero (metric 5.2)."""
    return np.concatenate([frame.ego_pose, frame.velocity, frame.acceleration, np.zeros(4)]).astype(np.float64)


def human_future(scene: Scene, poses: int = HUMAN_POSES) -> np.ndarray | None:
    """(poses, 3) logged poses at 0.5 s steps in the current ego frame (metric 4.5), None for second-stage scenes."""
    if scene.is_synthetic or len(scene.future) < poses:
        return None
    return relative_poses(scene.now.ego_pose, np.array([frame.ego_pose for frame in scene.future[:poses]]))


def relative_poses(origin: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """(n, 3) global poses in the frame of `origin`, by 3x3 transforms as officially."""
    inverse = np.linalg.inv(_transform(origin))
    moved = np.array([inverse @ _transform(pose) for pose in poses])
    return np.column_stack([moved[:, 0, 2], moved[:, 1, 2], np.arctan2(moved[:, 1, 0], moved[:, 0, 0])])


def _transform(pose: np.ndarray) -> np.ndarray:
    cosine, sine = np.cos(pose[2]), np.sin(pose[2])
    return np.array([[cosine, -sine, pose[0]], [sine, cosine, pose[1]], [0.0, 0.0, 1.0]])


def _check_objects(frames: list[objects.FrameObjects], now: Frame) -> None:
    """Objects that the official code stops at: a box with NaN, a forecast road user without velocity (metric 7.4), two
    of one token (its interpolation would divide by no time)."""
    for frame in frames:
        bad = ~np.isfinite(np.column_stack([frame.pose, frame.size])).all(axis=1)
        if bad.any():
            raise InputError(f"object {frame.tokens[int(bad.argmax())]} has a box with NaN or infinity")
    current = frames[0]
    _check_tokens(frames)
    distance = np.linalg.norm(current.pose[:, :2] - ego_center(now.ego_pose), axis=1)
    for kind, cap in _FORECAST_CAPS.items():
        rows = np.flatnonzero((current.type == kind) & (distance <= RADIUS))
        for row in rows[np.argsort(distance[rows])][:cap]:
            if not np.isfinite(current.velocity[row]).all():
                raise InputError(f"object {current.tokens[row]} has a velocity with NaN now")


def _check_tokens(frames: list[objects.FrameObjects]) -> None:
    """Two objects of one token in the current frame, or where that token is first seen of several times."""
    sightings = Counter(token for frame in frames for token in set(frame.tokens))
    known: set[str] = set()
    for step, frame in enumerate(frames):
        for token, count in Counter(frame.tokens).items():
            if count > 1 and token not in known and (step == 0 or sightings[token] > 1):
                when = f"{0.5 * step:g} s after now" if step else "of the current frame"
                raise InputError(f"{count} objects {when} share the track token {token}; repair the log")
        known.update(frame.tokens)


def _light_polygons(city: Map, light_ids: tuple[str, ...]) -> Polygons:
    return flatten(np.array([_light_polygon(city, light_id) for light_id in light_ids], dtype=object))


def _light_polygon(city: Map, light_id: str) -> shapely.Geometry:
    lane = city.lane_connectors.get(light_id)
    if lane is None or lane.polygon is None:
        raise InputError(f"map {city.name}: has no polygon of lane connector {light_id}, which has a red light")
    return lane.polygon
