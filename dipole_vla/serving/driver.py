"""The policy as a `BaseDriver`: what it sees of a session, when it plans, and what it answers when it cannot.

A drive that lacks something holds: the plan before goes on while it lasts, and without one the answer is the contract's
empty trajectory, which a runtime takes as standing still. Each kind of lack is logged once a session.
"""

from __future__ import annotations

import io
import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from carla_driver_interface.driver import BaseDriver, DriveContext, DriveResult, SensorFrame, SessionState
from carla_driver_interface.geometry import Pose, Trajectory
from PIL import Image
from torch.utils.data import default_collate

from dipole_vla.backbones.base import Observation, Showing
from dipole_vla.backbones.example import example_observation
from dipole_vla.data.batches import start_noise
from dipole_vla.data.pictures import UNREADABLE, decoded
from dipole_vla.policy import GuidedPolicy
from dipole_vla.serving.batching import Batcher
from dipole_vla.serving.cameras import View
from dipole_vla.serving.observation import KEPT, KEPT_US, Past, scene_row
from dipole_vla.serving.plans import Kept, trajectory
from dipole_vla.serving.route import command
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.vehicle import FARTHEST

LATE_US = 1_000_000  # an older picture or pose says nothing of now
SLACK_US = 1_000  # of a runtime's clock
SOON = 1.0  # seconds after its pictures in which a session's drive is expected
WAYPOINTS = 4096  # of a route that are looked at

Seen = Image.Image | torch.Tensor  # a picture, or what the policy takes of it

log = logging.getLogger("dipole_vla.serve")


class Hold(Exception):
    """A drive lacks what a plan needs; `what` is the kind of lack, the text says more."""

    def __init__(self, what: str, text: str):
        super().__init__(text)
        self.what = what


@dataclass(frozen=True)
class Setting:
    """How a driver samples: omega (None is the reference), plans drawn, copies of each, standard deviation of the start
    noise (None is the policy's own), seed; replan: seconds for which a plan is kept; batch: sessions in a pass."""

    omega: float | None
    candidates: int = 1
    variants: int = 0
    start_scale: float | None = None
    seed: int = 1
    replan: float = 0.0
    batch: int = 16


@dataclass
class Drives:
    """What the driver knows of a session beyond what the contract keeps."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    kept: Kept | None = None
    made: int = 0
    latest_us: int = 0
    is_planning: bool = False
    pictured: float = -SOON  # monotonic seconds at which the latest picture was ready
    ready: dict[str, tuple[SensorFrame, Seen]] = field(default_factory=dict)  # of a view, made as they came
    told: set[str] = field(default_factory=set)

    def is_due(self, time_us: int, replan: float) -> bool:
        """Whether a drive at this time needs a new plan."""
        return self.kept is None or time_us - self.kept.made_us >= replan * 1e6 - SLACK_US

    def is_about_to_ask(self, cameras: int) -> bool:
        """It plans, or all its pictures have just come, and a runtime sends them when it wants to drive."""
        is_shown = len(self.ready) == cameras and time.monotonic() - self.pictured < SOON
        return self.is_planning or is_shown

    def tell(self, uuid: str, what: str, text: str) -> None:
        if what not in self.told:
            self.told.add(what)
            log.warning("session %s: %s (logged once)", uuid, text)


@dataclass(frozen=True)
class Ask:
    observation: Observation
    noise: torch.Tensor
    seed: int  # of what a stochastic solver draws on the way


class PolicyDriver(BaseDriver):
    """See the module docstring. Frames of cameras that the policy does not see are dropped as they come; those that the
    next plan will see are decoded and resized as they come, so that the drive does not wait for it.

    held: drives that lacked something.
    """

    def __init__(self, policy: GuidedPolicy, views: Sequence[View], setting: Setting):
        self.policy, self.views, self.setting = policy, tuple(views), setting
        self.name, self.processor = _name(policy, setting), policy.processor
        self.held = 0
        self._drives: dict[str, Drives] = {}
        self._sources = {view.source for view in views}
        solver = policy.backbone.solver
        alone = bool(solver.eta or solver.std_floor)  # its fresh noise would depend on who shares the pass
        self._passes: Batcher[Ask, np.ndarray] = Batcher(self._act, 1 if alone else setting.batch, self._expected)

    def warm_up(self) -> None:
        """Plan for made-up scenes, one and as many as a pass takes, so that the first drive is not the slowest.

        InputError where as many do not fit.
        """
        seen = {name: value[0] for name, value in example_observation(self.policy.backbone, 1).items()}
        for scenes in sorted({1, self.setting.batch}):
            try:
                self._act([Ask(seen, self._noise(f"warm-up/{i}"), 0) for i in range(scenes)])
            except torch.OutOfMemoryError as problem:
                raise InputError(
                    f"--batch: {scenes} sessions of {self.setting.candidates} candidates do not fit into one pass; "
                    "lower --batch or --candidates"
                ) from problem

    def on_session_start(self, session: SessionState) -> None:
        for view in self.views:
            view.check(session.cameras)
        self._drives[session.uuid] = Drives()

    def on_session_close(self, session: SessionState) -> None:
        self._drives.pop(session.uuid, None)

    def on_frame(self, session: SessionState, frame: SensorFrame) -> None:
        if frame.logical_id not in self._sources:
            with session.lock:
                session.frame_history[frame.logical_id] = []
            return
        drives = self._drives.get(session.uuid)
        if drives is not None and drives.is_due(frame.timestamp_us, self.setting.replan):
            for view in self.views:
                if view.source == frame.logical_id:
                    with suppress(*UNREADABLE):  # the drive will say so
                        drives.ready[view.name] = frame, self._shown(view, frame, session)
                        drives.pictured = time.monotonic()

    def on_egomotion(self, session: SessionState, new_poses: Trajectory) -> None:
        """Forget what no history reaches."""
        with session.lock:
            times = session.ego_trajectory.timestamps_us
            if times:
                old = max(int(np.searchsorted(times, times[-1] - KEPT_US)), len(times) - KEPT)
                for kept in (times, session.ego_trajectory.poses, session.dynamic_states):
                    del kept[:old]

    def on_route(self, session: SessionState) -> None:
        with session.lock:
            session.route_waypoints_in_rig = session.route_waypoints_in_rig[:WAYPOINTS].copy()

    def on_ground_truth(self, session: SessionState) -> None:
        session.ground_truth_in_rig = None  # not for a policy to see

    def drive(self, ctx: DriveContext) -> DriveResult:
        """InputError for a session that is closed, and for a time before that of the drive before."""
        session, drives = ctx.session, self._drives.get(ctx.session.uuid)
        if drives is None:
            raise InputError(f"session {session.uuid}: is closed; start another")
        with drives.lock:
            if ctx.time_now_us < drives.latest_us:
                raise InputError(
                    f"time_now_us: {ctx.time_now_us} is before the session's latest drive, {drives.latest_us}; time "
                    "goes forward within a session"
                )
            drives.latest_us = ctx.time_now_us
            return self._driven(ctx, drives)

    def _driven(self, ctx: DriveContext, drives: Drives) -> DriveResult:
        is_due = drives.is_due(ctx.time_now_us, self.setting.replan)
        if is_due:
            drives.is_planning = True
            try:
                drives.kept = Kept(ctx.time_now_us, *self._plan(ctx, drives))
                return DriveResult(drives.kept.ahead, debug_scalars={"planned": 1.0, "held": 0.0})
            except Hold as lack:
                self.held += 1
                drives.tell(ctx.session.uuid, lack.what, f"{lack}; holding")
            finally:
                drives.is_planning = False
        rig, ahead = ctx.session.latest_pose(), Trajectory.empty()
        if rig is not None and drives.kept is not None and drives.kept.covers(ctx.time_query_us):
            ahead = drives.kept.seen_from(rig, ctx.time_now_us)
        return DriveResult(ahead, debug_scalars={"planned": 0.0, "held": float(is_due)})

    def _driven_for(self, ctx: DriveContext) -> float:
        """Seconds that may pass before another plan comes, and one to spare."""
        return 1.0 + max(self.setting.replan, (ctx.time_query_us - ctx.time_now_us) * 1e-6)

    def _plan(self, ctx: DriveContext, drives: Drives) -> tuple[Pose, Trajectory]:
        """The latest pose, and a plan in its frame; Hold says what is missing."""
        session = ctx.session
        with session.lock:
            motion = session.ego_trajectory
            parts = list(motion.timestamps_us), list(motion.poses), list(session.dynamic_states)
            route, route_us = session.route_waypoints_in_rig, session.route_timestamp_us
            frames = {view.name: session.latest_frame(view.source) for view in self.views}
        if not parts[0]:
            raise Hold("egomotion", "no egomotion yet")
        if abs(parts[0][-1] - ctx.time_now_us) > LATE_US:
            raise Hold("late egomotion", f"the latest pose is of {parts[0][-1]} us, now is {ctx.time_now_us}")
        past = Past.of(*parts)
        ready, drives.ready = drives.ready, {}
        pictures = {
            view.name: self._seen(view, frames[view.name], ready.get(view.name), session, ctx.time_now_us)
            for view in self.views
        }
        row = scene_row(past, command(_route_now(past, route, route_us)), session.uuid)
        key = f"{session.seed}/{drives.made}"
        observation = self.processor(row, pictures)  # type: ignore[arg-type]  # tensors where it has made them
        try:
            plan = self._passes(Ask(observation, self._noise(key), drives.made))
        except (RuntimeError, InputError) as problem:  # out of memory is one of them
            raise Hold("pass", f"the policy failed ({' '.join(str(problem).split())[:200]})") from problem
        if not (np.abs(plan) <= FARTHEST).all():
            raise Hold("plan", "the plan holds NaN or no places; check the weights, or lower omega")
        drives.made += 1
        interval = self.policy.backbone.action.interval
        return parts[1][-1], trajectory(plan, interval, ctx.time_now_us, self._driven_for(ctx))

    def _seen(self, view: View, frame: Any, ready: Any, session: SessionState, now_us: int) -> Seen:
        """Of a camera. frame: its newest. ready: a frame that was prepared as it came, and what was made of it."""
        if frame is None:
            raise Hold(f"no {view.source}", f"no picture of {view.source} yet")
        if abs(now_us - frame.timestamp_us) > LATE_US:
            late = (now_us - frame.timestamp_us) * 1e-6
            raise Hold(f"late {view.source}", f"the latest picture of {view.source} is {late:.2f} s old")
        try:
            return ready[1] if ready and ready[0] is frame else self._shown(view, frame, session)
        except UNREADABLE as problem:
            raise Hold(f"broken {view.source}", f"a picture of {view.source} cannot be read ({problem})") from problem

    def _shown(self, view: View, frame: Any, session: SessionState) -> Seen:
        picture = view.show(decoded(io.BytesIO(frame.image_bytes)), session.cameras[view.source])
        return self.processor.shown(picture) if isinstance(self.processor, Showing) else picture

    def _noise(self, key: str) -> torch.Tensor:
        return start_noise([key], self.setting.candidates, self.policy.noise_shape, self.setting.seed)[0]

    def _expected(self) -> int:
        return sum(drives.is_about_to_ask(len(self.views)) for drives in list(self._drives.values()))

    def _act(self, asks: Sequence[Ask]) -> Sequence[np.ndarray]:
        policy, setting = self.policy, self.setting
        joined = default_collate([ask.observation for ask in asks])
        observation = {name: value.to(policy.device) for name, value in joined.items()}
        generator = torch.Generator(policy.device).manual_seed(asks[0].seed)
        with torch.inference_mode():
            plans = policy.act(
                observation,
                setting.omega,
                setting.candidates,
                torch.stack([ask.noise for ask in asks]),
                generator,
                start_scale=setting.start_scale,
                variants=setting.variants,
            )
        return list(plans.cpu().double().numpy())


def _name(policy: GuidedPolicy, setting: Setting) -> str:
    """What tells one policy and setting from another: a runtime that keeps results asks for it."""
    greed = "reference" if setting.omega is None else f"omega{setting.omega:g}"
    return f"dipole-vla-{policy.fingerprint[:12]}-{greed}-n{setting.candidates}"


def _route_now(past: Past, route: np.ndarray, route_us: int) -> np.ndarray:
    """A route given in the rig frame of its own instant, in that of the latest pose: (n, 2)."""
    x, y, turn = past.relative(np.array([route_us]))[0]
    c, s = np.cos(turn), np.sin(turn)
    return route[:, :2] @ np.array([[c, s], [-s, c]]) + (x, y)
