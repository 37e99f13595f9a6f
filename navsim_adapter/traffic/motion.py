"""Compiled part of reactive traffic: states of the agents, their way along their paths, and what may be near it.

Everything about shapes is conservative: a circle test may say "near" of what is not, never the reverse.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from navsim_adapter.pdm_closed import path as paths
from navsim_adapter.vehicle import HALF_LENGTH, HALF_WIDTH

MIN_GAP, HEADWAY, MAX_ACCELERATION, MAX_DECELERATION, EXPONENT = 1.0, 1.5, 1.0, 2.0, 4
STEP_TIME = 0.1
CIRCLE_SPACING = 2.0  # m along the strip in front of an agent
SLACK = 0.2  # m: circles against the outside of bends
SURE = 0.05  # m inside a strip's edge, more than GEOS smooths it
TRIM_MARGIN = 10.0  # m of path kept beyond the last place where something is near
BODY_CIRCLES = 3
BODY_CENTER = 1  # the circle in the middle of the box

_interpolate = njit(cache=True)(paths.interpolate.py_func)


class AgentState(NamedTuple):
    """A agents, and the ego as one more that only occupies space.

    path: (P, 4) x, y, heading, progress; path_start: (A + 1,).  circles: (A + 1, C, 3) x, y, radius, together around
    what each occupies; circle_count: (A + 1,).  near: (A + 1,) what may be on the path of the agent in question, and
    is_met: (A + 1,) what surely is; near_until: (1,) progress on that path beyond which nothing is near.
    """

    path: np.ndarray
    path_start: np.ndarray
    progress: np.ndarray
    speed: np.ndarray
    target: np.ndarray
    size: np.ndarray
    pose: np.ndarray
    circles: np.ndarray
    circle_count: np.ndarray
    is_moved: np.ndarray
    near: np.ndarray
    is_met: np.ndarray
    near_until: np.ndarray


def start(
    path: np.ndarray,
    path_start: np.ndarray,
    progress: np.ndarray,
    speed: np.ndarray,
    target: np.ndarray,
    size: np.ndarray,
) -> AgentState:
    """Agents (A) at the beginning of their roll-out; the arrays given are copied where they change."""
    count = len(progress)
    longest = size[:, 0].max(initial=0.0) + HEADWAY * max(speed.max(initial=0.0), target.max(initial=0.0) + 1.0)
    capacity = BODY_CIRCLES + 2 + int(longest / CIRCLE_SPACING)
    state = AgentState(
        np.ascontiguousarray(path), np.asarray(path_start, np.int64), progress.copy(), speed.copy(), target,
        np.ascontiguousarray(size), np.empty((count, 3)), np.zeros((count + 1, capacity, 3)),
        np.zeros(count + 1, np.int64), np.zeros(count, np.bool_), np.zeros(count + 1, np.bool_),
        np.zeros(count + 1, np.bool_), np.zeros(1),
    )  # fmt: skip
    for agent in range(count):
        _place(state, agent)
    return state


@njit(cache=True)
def advance_alone(state, agent):
    """Move the agents from `agent` on until one has something near its path or is past its end; returns its index."""
    while agent < len(state.pose):
        if not np.isnan(state.pose[agent, 0]):
            if _find_near(state, agent) or is_past_end(state, agent):
                return agent
            follow_lane_end(state, agent)
        agent += 1
    return agent


@njit(cache=True)
def is_past_end(state, agent):
    """No vertex is left ahead: the path to go is the last segment, which may miss the agent."""
    return state.progress[agent] >= state.path[state.path_start[agent + 1] - 1, 3]


@njit(cache=True)
def follow_lane_end(state, agent):
    """A step on a free path: only the end of the lane is in the way."""
    gap = state.path[state.path_start[agent + 1] - 1, 3] - state.progress[agent]
    follow(state, agent, gap, 0.0, state.size[agent, 0] / 2)


@njit(cache=True)
def follow(state, agent, gap, lead_speed, lead_rear):
    """One intelligent-driver step: Euler with the old speed, which never becomes negative."""
    v = state.speed[agent]
    desired = MIN_GAP + HEADWAY * v + v * (v - lead_speed) / (2.0 * np.sqrt(MAX_ACCELERATION * MAX_DECELERATION))
    free_gap = max(gap - lead_rear, MIN_GAP)
    acceleration = MAX_ACCELERATION * (1.0 - (v / state.target[agent]) ** EXPONENT - (desired / free_gap) ** 2)
    acceleration = min(max(acceleration, -MAX_DECELERATION), MAX_ACCELERATION)
    state.progress[agent] += STEP_TIME * v
    state.speed[agent] = max(0.0, v + STEP_TIME * acceleration)
    state.is_moved[agent] = True
    _place(state, agent)


@njit(cache=True)
def cover_ego(state, ego):
    """Circles around the ego's body, centered on `ego` (11,) x, y, heading, ...."""
    last = len(state.pose)
    state.circle_count[last] = 0
    _cover_body(state, last, ego[0], ego[1], ego[2], HALF_LENGTH, HALF_WIDTH)


@njit(cache=True)
def path_to_go(state, agent, is_whole):
    """(n, 2) the agent's position and the vertices beyond it, as far as something is near; or the last two."""
    path = state.path[state.path_start[agent] : state.path_start[agent + 1]]
    first = np.searchsorted(path[:, 3], state.progress[agent], side="right")
    if first >= len(path):
        return path[-2:, :2].copy()
    last = len(path)
    if not is_whole:
        last = min(last, np.searchsorted(path[:, 3], state.near_until[0] + TRIM_MARGIN, side="right") + 1)
        last = max(last, first + 1)
    points = np.empty((last - first + 1, 2))
    points[0] = state.pose[agent, :2]
    points[1:] = path[first:last, :2]
    return points


@njit(cache=True)
def occupied_path(state, agent):
    """(n, 2) the path from the agent's tail to its headway in front, clamped to the path's ends."""
    path = state.path[state.path_start[agent] : state.path_start[agent + 1]]
    progress, half_length = state.progress[agent], state.size[agent, 0] / 2
    low, high = progress - half_length, progress + half_length + HEADWAY * state.speed[agent]
    first = np.searchsorted(path[:, 3], max(low, 0.0), side="right")
    last = max(first, np.searchsorted(path[:, 3], min(high, path[-1, 3]), side="left"))
    points = np.empty((last - first + 2, 2))
    points[0] = _pose_at(path, low)[:2]
    points[1:-1] = path[first:last, :2]
    points[-1] = _pose_at(path, high)[:2]
    return points


@njit(cache=True)
def corners(state, agent):
    """(4, 2) corners of the agent's box (metric 2.5)."""
    x, y, heading = state.pose[agent]
    points = np.empty((4, 2))
    for i, (along, across) in enumerate(((1.0, 1.0), (-1.0, 1.0), (-1.0, -1.0), (1.0, -1.0))):
        forward, left = along * state.size[agent, 0] / 2, across * state.size[agent, 1] / 2
        points[i, 0] = x + (left * np.cos(heading + np.pi / 2) + forward * np.cos(heading))
        points[i, 1] = y + (left * np.sin(heading + np.pi / 2) + forward * np.sin(heading))
    return points


@njit(cache=True)
def _place(state, agent):
    """Pose on the path, and circles around the box and the strip in front."""
    path = state.path[state.path_start[agent] : state.path_start[agent + 1]]
    length, width = state.size[agent]
    progress = state.progress[agent]
    state.pose[agent] = _pose_at(path, progress)
    state.circle_count[agent] = 0
    x, y, heading = state.pose[agent]
    _cover_body(state, agent, x, y, heading, length / 2, width / 2)
    radius = np.hypot(CIRCLE_SPACING / 2, width / 2) + SLACK
    at, end = progress - length / 2, progress + length / 2 + HEADWAY * state.speed[agent]
    while at < end:
        x, y, _ = _pose_at(path, min(at + CIRCLE_SPACING / 2, end))
        _add_circle(state, agent, x, y, radius)
        at += CIRCLE_SPACING


@njit(cache=True)
def _pose_at(path, progress):
    """(3,) x, y, heading of a path (P, 4) at a progress, clipped to its ends."""
    pose = np.empty(3)
    _interpolate(path[:, 3], path, progress, 0.0, pose)
    return pose


@njit(cache=True)
def _cover_body(state, agent, x, y, heading, half_length, half_width):
    radius = np.hypot(half_length / BODY_CIRCLES, half_width) + 1e-6
    for i in range(BODY_CIRCLES):
        along = half_length * (2.0 * i + 1.0 - BODY_CIRCLES) / BODY_CIRCLES
        _add_circle(state, agent, x + along * np.cos(heading), y + along * np.sin(heading), radius)


@njit(cache=True)
def _add_circle(state, agent, x, y, radius):
    place = state.circle_count[agent]
    state.circles[agent, place] = x, y, radius
    state.circle_count[agent] = place + 1


@njit(cache=True)
def _find_near(state, agent):
    """Mark what comes within reach of the agent's path to go; returns whether anything does."""
    is_any, until, reach = False, 0.0, state.size[agent, 1] / 2
    for other in range(len(state.near)):
        state.near[other] = state.is_met[other] = False
        if other == agent or (other < len(state.pose) and np.isnan(state.pose[other, 0])):
            continue
        for c in range(state.circle_count[other]):
            x, y, radius = state.circles[other, c]
            at, distance, is_beside = _nearest_to_go(state, agent, x, y, radius + reach)
            if distance <= radius + reach:
                state.near[other] = is_any = True
                until = max(until, at)
            if c == BODY_CENTER and is_beside and distance < reach - SURE:
                state.is_met[other] = True
    state.near_until[0] = until
    return is_any


@njit(cache=True)
def _nearest_to_go(state, agent, x, y, reach):
    """Of the path to go: progress at the end of the last segment within reach of a point, the least distance from
    the point, and whether that is beside the path, neither behind its start nor beyond its end."""
    first, last = state.path_start[agent], state.path_start[agent + 1]
    progress = state.progress[agent]
    start = first + np.searchsorted(state.path[first:last, 3], progress, side="right")
    is_past = start >= last
    if is_past:
        start = last - 1
        ax, ay = state.path[last - 2, 0], state.path[last - 2, 1]
    else:
        ax, ay = state.pose[agent, 0], state.pose[agent, 1]
    at, least, is_beside = 0.0, np.inf, False
    for j in range(start, last):
        bx, by = state.path[j, 0], state.path[j, 1]
        ux, uy = bx - ax, by - ay
        length = ux * ux + uy * uy
        along = 0.0 if length == 0.0 else (ux * (x - ax) + uy * (y - ay)) / length
        clipped = min(max(along, 0.0), 1.0)
        distance = (x - ax - clipped * ux) ** 2 + (y - ay - clipped * uy) ** 2
        if distance <= reach * reach:
            at = state.path[j, 3]
        if distance < least:
            least = distance
            is_beside = (along > 0.0 or j > start) and (along < 1.0 or j < last - 1)
        ax, ay = bx, by
    return at, np.sqrt(least), is_beside
