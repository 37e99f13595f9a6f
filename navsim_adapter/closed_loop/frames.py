"""A world that went its own way, as the frames of a NAVSIM log: what the scorer and PDM-Closed read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from navsim_adapter.closed_loop.course import PER_FRAME, Course
from navsim_adapter.nuplan.logs import Annotations, Frame
from navsim_adapter.nuplan.scenes import Scene
from navsim_adapter.synthetic.log_writer import FUTURE, HISTORY, annotated, traffic_lights
from navsim_adapter.synthetic.world import EgoState, Instant

_LOOK_AHEAD = FUTURE - 2  # frames of 0.5 s that EPDMS looks ahead


def scene_at(course: Course, past: Sequence[Instant], step: int) -> Scene:
    """The scene whose current frame is `step`, with its four seconds to come."""
    last = step + PER_FRAME * _LOOK_AHEAD
    frames = [frame_at(course, past, at) for at in range(_first(step), last + 1, PER_FRAME)]
    return Scene(frames[HISTORY - 1].token, "closed loop", tuple(frames), HISTORY)


def scene_now(course: Course, past: Sequence[Instant], ego: EgoState) -> Scene:
    """The scene of the last instant as a driver knows it: the time to come is not known and shows the present.

    ego: the car as its sensors have it.
    """
    step = len(past) - 1
    frames = [frame_at(course, past, at) for at in range(_first(step), step, PER_FRAME)]
    now = frame_at(course, [*past[:-1], past[-1]._replace(ego=ego)], step)
    later = [replace(now, time_us=course.time_us(step + PER_FRAME * k)) for k in range(1, _LOOK_AHEAD + 1)]
    return Scene(now.token, "closed loop", (*frames, now, *later), HISTORY)


def _first(step: int) -> int:
    return step - PER_FRAME * (HISTORY - 1)


def frame_at(course: Course, past: Sequence[Instant], step: int) -> Frame:
    info, setting, now = course.log.info, course.log.recording.setting, past[step]
    ego, token = now.ego, f"{info.name} {step}"
    seen = annotated(info.name, token, ego, now.objects)
    return Frame(
        token=token,
        time_us=course.time_us(step),
        log_name=info.name,
        map_name=info.city,
        roadblock_ids=setting.path.blocks,
        ego_pose=np.array([ego.x, ego.y, ego.heading]),
        velocity=np.array(ego.velocity, np.float32),
        acceleration=np.array(ego.acceleration, np.float32),
        command="unknown",
        lights=tuple((str(connector), is_red) for connector, is_red in traffic_lights(now, setting.site.net)),
        annotations=Annotations(
            seen["gt_boxes"], tuple(seen["gt_names"]), seen["gt_velocity_3d"][:, :2], tuple(seen["track_tokens"])
        ),
        cameras={},
    )
