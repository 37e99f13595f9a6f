"""Bird's-eye pictures of a scene: map, traffic and plans around the ego, which sits at the origin heading up.

Reads a `SceneCache` and ego-frame poses; gives PNG bytes, the same for the same inputs. No scoring happens here:
what a plan is worth is decided in `scoring`, and why it failed by the caller, who knows both plans.
matplotlib is imported inside the functions, because the rest of the package must start without it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from navsim_adapter.scene_cache import AreaType, ObjectType, Polygons, SceneCache
from navsim_adapter.vehicle import AXLE_TO_CENTER, HALF_LENGTH, HALF_WIDTH

INK, PAPER = "#23272e", "#f6f5f1"
ROAD, INTERSECTION, CARPARK, ROUTE, LANE_EDGE = "#dcdbd6", "#cfcdc6", "#e6e0d0", "#c9dcc4", "#ffffff"
RED_LIGHT, ALARM = "#d8362a", "#c1121f"
OBJECT_COLORS = {
    ObjectType.VEHICLE: "#7c8aa5",
    ObjectType.PEDESTRIAN: "#b5477e",
    ObjectType.BICYCLE: "#8b5fbf",
    ObjectType.TRAFFIC_CONE: "#e08a1e",
    ObjectType.BARRIER: "#8c6d46",
    ObjectType.CZONE_SIGN: "#e08a1e",
    ObjectType.GENERIC_OBJECT: "#77736b",
}
GHOST_STEPS = (10, 20, 30, 40)  # 1 to 4 s
MIN_VIEW, VIEW_MARGIN = 34.0, 7.0  # metres


@dataclass(frozen=True)
class Style:
    """How a plan is drawn. Colour, dash and marker differ between the three kinds: greyscale keeps them apart."""

    color: str
    dash: Any
    marker: str
    width: float


HUMAN = Style("#23272e", (0, (1, 1.6)), "x", 1.6)
REFERENCE = Style("#c2410c", (0, (4.5, 2)), "s", 2.0)
CHOSEN = Style("#0b5cad", "solid", "o", 2.6)


@dataclass(frozen=True)
class Plan:
    """poses: (T, 3) x, y, heading in the ego frame at 0.5 s steps, t = 0 excluded."""

    label: str
    poses: np.ndarray
    style: Style = CHOSEN


@dataclass(frozen=True)
class Moment:
    """A plan's ego box at one instant, with the object it meets there.

    pose: (3,) rear axle, ego frame now. step: index at 0.1 s. object_index: row of the cache's objects, or None.
    """

    pose: np.ndarray
    step: int
    label: str
    style: Style = CHOSEN
    object_index: int | None = None


def picture(
    cache: SceneCache,
    plans: Sequence[Plan],
    candidates: np.ndarray | None = None,
    candidate_scores: np.ndarray | None = None,
    moments: Sequence[Moment] = (),
    size: tuple[float, float] = (4.6, 5.6),
    dpi: int = 130,
    legend: bool = True,
) -> bytes:
    """One scene from above as PNG, the ego vehicle heading up.

    cache: the scene, of `open_cache`.
    plans: drawn in this order, with their labels; `Plan` holds (T, 3) x, y (m), heading (rad) at 0.5 s steps.
    moments: ego boxes drawn at one instant, such as that of a collision.
    candidates: (N, T, 3) drawn thin; candidate_scores: (N,) in [0, 1] colour them (dark = low, light = high).
    size: width and height in inches; text and lines keep their size in points.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=dpi, facecolor=PAPER)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_facecolor(PAPER)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal")

    _draw_map(axes, cache)
    _draw_objects(axes, cache, {moment.object_index for moment in moments})
    if candidates is not None and len(candidates):
        _draw_candidates(axes, candidates, candidate_scores)
    for plan in plans:
        _draw_plan(axes, plan)
    _draw_box(axes, np.zeros(3), facecolor=INK, edgecolor="white", linewidth=0.8, zorder=20)
    view = _view(plans, candidates, moments, size[0] / size[1])
    for moment in moments:
        _draw_moment(axes, cache, moment, view)
    axes.set_xlim(view[0], view[1])
    axes.set_ylim(view[2], view[3])
    _draw_scale_bar(axes, view)
    if legend and plans:
        axes.legend(loc="upper left", fontsize=7, frameon=True, framealpha=0.85, edgecolor="none", handlelength=3)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor=PAPER, metadata={"Software": None})
    return stream.getvalue()


def seen_by(cache: SceneCache, version: int) -> SceneCache:
    """The scene with only the objects that one metric version uses (`PDMS` or `EPDMS`), so that none is drawn twice."""
    rows = np.flatnonzero(cache.object_versions & version)
    names = ("object_type", "object_versions", "object_size", "object_pose", "object_velocity")
    fields: dict[str, Any] = {name: getattr(cache, name)[rows] for name in names}
    tokens = tuple(cache.object_tokens[row] for row in rows)
    knots = None if cache.object_knots is None else cache.object_knots[rows]
    return replace(cache, object_tokens=tokens, object_knots=knots, **fields)


def to_ego(points: np.ndarray, ego_pose: np.ndarray) -> np.ndarray:
    """Points (..., 2) or poses (..., 3) from the global frame to the frame of `ego_pose` (x, y, heading)."""
    cosine, sine = np.cos(ego_pose[2]), np.sin(ego_pose[2])
    delta = points[..., :2] - ego_pose[:2]
    local = np.stack(
        [delta[..., 0] * cosine + delta[..., 1] * sine, delta[..., 1] * cosine - delta[..., 0] * sine], axis=-1
    )
    if points.shape[-1] == 2:
        return local
    return np.concatenate([local, points[..., 2:3] - ego_pose[2]], axis=-1)


def box_corners(center_poses: np.ndarray, length: float, width: float) -> np.ndarray:
    """Corners (..., 4, 2) of boxes given by their centers (..., 3): front left, rear left, rear right, front right."""
    x, y, heading = center_poses[..., 0:1], center_poses[..., 1:2], center_poses[..., 2:3]
    along = np.array([0.5, -0.5, -0.5, 0.5]) * length
    across = np.array([0.5, 0.5, -0.5, -0.5]) * width
    cosine, sine = np.cos(heading), np.sin(heading)
    return np.stack([x + along * cosine - across * sine, y + along * sine + across * cosine], axis=-1)


def ego_corners(poses: np.ndarray) -> np.ndarray:
    """Corners (..., 4, 2) of the ego body for rear-axle poses (..., 3)."""
    centers = poses.copy()
    centers[..., 0] += AXLE_TO_CENTER * np.cos(poses[..., 2])
    centers[..., 1] += AXLE_TO_CENTER * np.sin(poses[..., 2])
    return box_corners(centers, 2 * HALF_LENGTH, 2 * HALF_WIDTH)


def _screen(points: np.ndarray) -> np.ndarray:
    """Ego frame (x forward, y left) to picture (right, up)."""
    return np.stack([-points[..., 1], points[..., 0]], axis=-1)


def _draw_map(axes: Any, cache: SceneCache) -> None:
    from matplotlib.collections import PathCollection

    def fill(rows: np.ndarray, zorder: float, **style: Any) -> None:
        paths = [_area_path(cache.areas, int(row), cache.ego_state) for row in rows]
        axes.add_collection(PathCollection(paths, zorder=zorder, **style), autolim=False)

    kind = cache.area_type
    lanes = np.isin(kind, (AreaType.LANE, AreaType.LANE_CONNECTOR))
    fill(np.flatnonzero(kind == AreaType.CARPARK_AREA), 1, facecolor=CARPARK, edgecolor=CARPARK, linewidth=0.6)
    fill(np.flatnonzero(kind == AreaType.ROADBLOCK), 2, facecolor=ROAD, edgecolor=ROAD, linewidth=0.6)
    fill(
        np.flatnonzero(kind == AreaType.INTERSECTION), 3, facecolor=INTERSECTION, edgecolor=INTERSECTION, linewidth=0.6
    )
    fill(np.flatnonzero(lanes & cache.area_on_route), 4, facecolor=ROUTE, edgecolor="none", alpha=0.75)
    fill(np.flatnonzero(kind == AreaType.LANE), 5, facecolor="none", edgecolor=LANE_EDGE, linewidth=0.9)
    red = np.flatnonzero(cache.light_red[:, 0]) if len(cache.lights) else np.zeros(0, dtype=int)
    paths = [_area_path(cache.lights, int(row), cache.ego_state) for row in red]
    axes.add_collection(
        PathCollection(paths, zorder=5.5, facecolor=RED_LIGHT, edgecolor=RED_LIGHT, alpha=0.28, hatch="////"),
        autolim=False,
    )
    line = _screen(to_ego(cache.centerline[:, :2], cache.ego_state))
    axes.plot(line[:, 0], line[:, 1], color="#5f7f58", linewidth=0.9, dashes=(6, 4), zorder=6)


def _area_path(polygons: Polygons, row: int, ego_state: np.ndarray) -> Any:
    """One compound path in picture coordinates; rings inside an odd number of others are wound as holes."""
    from matplotlib.path import Path as Outline

    first, last = polygons.polygon_start[row], polygons.polygon_start[row + 1]
    rings = [
        Outline(
            _screen(to_ego(polygons.vertices[polygons.ring_start[r] : polygons.ring_start[r + 1]], ego_state)),
            closed=True,
        )
        for r in range(first, last)
    ]
    if len(rings) == 1:
        return rings[0]
    wound = []
    for ring in rings:
        corners = np.asarray(ring.vertices)
        depth = sum(other is not ring and other.contains_point(corners[0]) for other in rings)
        x, y = corners[:, 0], corners[:, 1]
        is_left_wound = float(x[:-1] @ y[1:] - x[1:] @ y[:-1]) > 0
        keep = is_left_wound == (depth % 2 == 0)
        wound.append(Outline(corners if keep else corners[::-1], closed=True))
    return Outline.make_compound_path(*wound)


def _draw_objects(axes: Any, cache: SceneCache, met: set[int | None]) -> None:
    from matplotlib.collections import PolyCollection

    for row in range(len(cache.object_tokens)):
        kind = ObjectType(int(cache.object_type[row]))
        color, size = OBJECT_COLORS[kind], cache.object_size[row]
        poses = to_ego(cache.object_pose[row], cache.ego_state)
        present = ~np.isnan(poses[:, 0])
        if not present.any():
            continue
        now = int(np.argmax(present))
        travelled = float(np.nanmax(np.hypot(*(poses[present, :2] - poses[now, :2]).T)))
        if travelled > 0.5:
            track = _screen(poses[present, :2])
            axes.plot(track[:, 0], track[:, 1], color=color, linewidth=0.7, alpha=0.6, zorder=8)
            for step in (s for s in GHOST_STEPS if present[s]):
                corners = _screen(box_corners(poses[step], size[0], size[1]))
                fade = 0.6 - 0.1 * step / 10
                style: dict[str, Any] = {"facecolor": "none", "edgecolor": color, "linewidth": 0.7, "alpha": fade}
                axes.add_collection(PolyCollection([corners], zorder=8, **style), autolim=False)
        if not present[0]:
            continue
        edge = ALARM if row in met else "white"
        corners = _screen(box_corners(poses[0], size[0], size[1]))
        axes.add_collection(
            PolyCollection([corners], facecolor=color, edgecolor=edge, linewidth=0.8, zorder=9), autolim=False
        )
        if kind in (ObjectType.VEHICLE, ObjectType.BICYCLE):  # a tick from center to nose: where it points
            nose = poses[0, :2] + 0.5 * size[0] * np.array([np.cos(poses[0, 2]), np.sin(poses[0, 2])])
            tick = _screen(np.stack([poses[0, :2], nose]))
            axes.plot(tick[:, 0], tick[:, 1], color="white", linewidth=1.0, zorder=9.5)


def _draw_candidates(axes: Any, candidates: np.ndarray, scores: np.ndarray | None) -> None:
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection

    paths = [_screen(np.vstack([[0.0, 0.0], poses[:, :2]])) for poses in candidates]
    colors: Any = "#6b6f76"
    if scores is not None:
        colors = colormaps["plasma"](0.05 + 0.8 * np.clip(np.nan_to_num(scores), 0, 1))
    axes.add_collection(LineCollection(paths, colors=colors, linewidths=1.0, alpha=0.85, zorder=11), autolim=False)


def _draw_plan(axes: Any, plan: Plan) -> None:
    from matplotlib.patheffects import Normal, Stroke

    points = _screen(np.vstack([[0.0, 0.0], plan.poses[:, :2]]))
    style = plan.style
    (line,) = axes.plot(
        points[:, 0],
        points[:, 1],
        color=style.color,
        linewidth=style.width,
        linestyle=style.dash,
        marker=style.marker,
        markersize=3.6,
        markevery=(2, 2),  # one marker a second
        label=plan.label,
        zorder=14,
    )
    line.set_path_effects([Stroke(linewidth=style.width + 1.6, foreground="white"), Normal()])


def _draw_box(axes: Any, pose: np.ndarray, **style: Any) -> None:
    from matplotlib.collections import PolyCollection

    axes.add_collection(PolyCollection([_screen(ego_corners(pose))], **style), autolim=False)
    nose = _screen(np.array([pose[:2] + reach * np.array([np.cos(pose[2]), np.sin(pose[2])]) for reach in (1.4, 3.6)]))
    axes.plot(nose[:, 0], nose[:, 1], color=style["edgecolor"], linewidth=1.2, zorder=style["zorder"] + 0.1)


def _draw_moment(axes: Any, cache: SceneCache, moment: Moment, view: tuple[float, float, float, float]) -> None:
    from matplotlib.collections import PolyCollection

    _draw_box(axes, moment.pose, facecolor="none", edgecolor=moment.style.color, linewidth=1.5, zorder=16)
    if moment.object_index is not None:
        pose = to_ego(cache.object_pose[moment.object_index, moment.step], cache.ego_state)
        corners = _screen(box_corners(pose, *cache.object_size[moment.object_index]))
        axes.add_collection(
            PolyCollection([corners], facecolor=ALARM, edgecolor=ALARM, alpha=0.45, linewidth=1.2, zorder=15),
            autolim=False,
        )
    spot = _screen(moment.pose[:2])
    is_right = spot[0] <= (view[0] + view[1]) / 2
    axes.annotate(
        moment.label,
        spot,
        xytext=(22 if is_right else -22, 0),
        textcoords="offset points",
        ha="left" if is_right else "right",
        va="center",
        fontsize=8,
        color=ALARM,
        zorder=22,
        bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
        arrowprops={"arrowstyle": "-", "color": ALARM, "linewidth": 0.8},
    )


def _view(
    plans: Sequence[Plan], candidates: np.ndarray | None, moments: Sequence[Moment], aspect: float
) -> tuple[float, float, float, float]:
    """left, right, bottom, top in metres: ego and plans with a margin, widened to the picture's aspect."""
    points = [np.zeros((1, 2)), *(plan.poses[:, :2] for plan in plans), *(m.pose[None, :2] for m in moments)]
    if candidates is not None and len(candidates):  # the odd one that flies off must not shrink the picture
        points.append(np.percentile(candidates[..., :2].reshape(-1, 2), (5, 95), axis=0))
    spots = _screen(np.concatenate(points))
    low, high = spots.min(axis=0) - VIEW_MARGIN, spots.max(axis=0) + VIEW_MARGIN
    low[1] = min(low[1], -9.0)
    height = max(high[1] - low[1], (high[0] - low[0]) / aspect, MIN_VIEW)
    middle = (low[0] + high[0]) / 2
    top = low[1] + height
    return middle - height * aspect / 2, middle + height * aspect / 2, low[1], top


def _draw_scale_bar(axes: Any, view: tuple[float, float, float, float]) -> None:
    width, height = view[1] - view[0], view[3] - view[2]
    x, y = view[1] - 0.04 * width, view[2] + 0.03 * height
    axes.plot([x - 10, x], [y, y], color=INK, linewidth=2, solid_capstyle="butt", zorder=25)
    axes.text(x - 5, y + 0.008 * height, "10 m", ha="center", va="bottom", fontsize=7, color=INK, zorder=25)
