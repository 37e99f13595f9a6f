"""Rows of trajectories scored in a chosen traffic: the Python way in where log replay is not the only choice.

    scores = score_rows(open_cache("cache/navtest"), trajectories, "epdms", "idm")
    scores["ego_progress"], scores.metric, scores.traffic, scores.failures

Under log replay this is `Scorer.score_rows`. In simulated traffic every trajectory has a traffic of its own; where the
official simulation stops with an assertion, the row has a reason instead of figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import numpy as np

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.parallel import in_threads
from navsim_adapter.metric import engine, two_frame
from navsim_adapter.metric.aggregate import epdms
from navsim_adapter.metric.history import history_problem
from navsim_adapter.metric.scene_index import Metric
from navsim_adapter.scene_cache import EPDMS, PDMS, SceneCache
from navsim_adapter.scoring.scorer import VERSIONS, MetricName, Scorer, Scores, basis_of, family_of
from navsim_adapter.traffic.constant_velocity import constant_velocity
from navsim_adapter.traffic.idm import idm
from navsim_adapter.traffic.log_replay import log_replay
from navsim_adapter.traffic.objects import TrafficObjects, TrafficPolicy
from navsim_adapter.traffic.scene import read_traffic_scene
from navsim_adapter.traffic.score import score_in_traffic
from navsim_adapter.trajectories import Trajectories, check_poses
from navsim_adapter.vehicle import STATES

Traffic = Literal["log-replay", "constant-velocity", "idm"]
POLICIES: dict[str, TrafficPolicy] = {
    "log-replay": log_replay,
    "constant-velocity": constant_velocity,
    "idm": idm,
}


@dataclass(frozen=True)
class RowScores:
    """Figures of M rows by name, in their order; NaN in rows that have none, and then `failures` says why.

    metric: the basis, as `Scores` has it.  table: (M, engine.COLUMNS).
    """

    metric: str
    traffic: str
    table: np.ndarray
    failures: Mapping[int, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> np.ndarray:
        return Scores(self.metric, self.table)[name]

    @property
    def sub_scores(self) -> dict[str, np.ndarray]:
        """In the official order."""
        return Scores(self.metric, self.table).sub_scores

    @property
    def score(self) -> np.ndarray:
        return Scores(self.metric, self.table).score

    @property
    def figures(self) -> np.ndarray:
        """(M, F) in the order of `columns_of`."""
        return Scores(self.metric, self.table).figures


@dataclass(frozen=True)
class SceneScores:
    """Trajectories (N) of one scene in traffic: engine table (N, COLUMNS), simulated states (N, 41, 11), and why the
    rows that have no figures have none."""

    table: np.ndarray
    states: np.ndarray
    failures: Mapping[int, str]


def check_traffic(metric: str, traffic: str) -> None:
    """Raises InputError for a policy that there is not, and for PDMS in anything but log replay."""
    if traffic not in POLICIES:
        raise InputError(f"--traffic: must be one of {', '.join(POLICIES)}, got {traffic!r}")
    if metric == "pdms" and traffic != "log-replay":
        raise InputError(f"--traffic {traffic}: PDMS v1.1 knows log-replay only; choose it or --metric epdms")


def score_rows(
    scenes: Mapping[str, SceneCache],
    trajectories: Trajectories,
    metric: str = "pdms",
    traffic: Traffic = "log-replay",
    *,
    threads: int = 1,
    missing: Mapping[str, str] | None = None,
) -> RowScores:
    """Score every row; rows of one name are one planner, whose plans of neighbouring frames are compared (metric 6.12).

    scenes: token -> its cache, as `open_cache` gives it.
    trajectories: as `read_trajectories` gives them.
    metric: "pdms", "epdms" or a basis, as `Scorer` takes it.
    traffic: how other road users move; anything but "log-replay" is for EPDMS.
    threads: scenes at a time.  missing: token -> why the scene has no cache; its rows have no figures.
    Raises InputError for a token that is in neither `scenes` nor `missing`, and for poses that are no numbers.
    """
    family = family_of(metric)
    check_traffic(family, traffic)
    reasons = dict(missing or {})
    reasons |= unfit_scenes(scenes, [token for token in trajectories.tokens if token not in reasons], family)
    failures = {row: reasons[token] for row, token in enumerate(trajectories.tokens) if token in reasons}
    kept = [row for row in range(len(trajectories)) if row not in failures]
    table = np.full((len(trajectories), engine.COLUMNS), np.nan)
    if kept:
        chosen = trajectories.take(kept)
        check_poses(chosen)
        if traffic == "log-replay":
            scorer = Scorer(scenes, cast(MetricName, metric), threads=threads)  # a name that is none is refused there
            table[kept] = scorer.score_rows(chosen.tokens, chosen.names, chosen.poses, chosen.interval).table
        else:
            table[kept], found = _score_in_traffic(scenes, chosen, traffic, threads)
            failures |= {kept[row]: reason for row, reason in found.items()}
    for row in np.flatnonzero(~np.isfinite(table[:, engine.SCORE])).tolist():
        failures.setdefault(row, f"scene {trajectories.tokens[row]}: its score is no number; report this as a defect")
    table[list(failures)] = np.nan
    return RowScores(basis_of(metric), traffic, table, dict(sorted(failures.items())))


def score_scene(scene: SceneCache, poses: np.ndarray, interval: float, traffic: str) -> SceneScores:
    """EPDMS of poses (N, T, 3) of one scene in traffic, two-frame comfort left out.

    Raises InputError where the scene's cache has no traffic arrays; a trajectory on which the official simulation
    fails has NaN and a reason, and so have all where it fails on the human of the penalty filter.
    """
    problem = history_problem(scene.past_states, scene.past_time_us)
    if problem:
        return SceneScores(
            np.full((len(poses), engine.COLUMNS), np.nan),
            np.full((len(poses), STATES, 11), np.nan),
            dict.fromkeys(range(len(poses)), f"scene {scene.token}: {problem}"),
        )
    if traffic != "log-replay":
        read_traffic_scene(scene)
    policy = _RecordFailures(POLICIES[traffic])
    table, states = score_in_traffic(scene, poses, interval, policy)
    has_human = scene.human_future is not None and not scene.is_synthetic
    reasons = policy.reasons[has_human:]
    if has_human and policy.reasons[0]:
        reasons = [f"{policy.reasons[0]} (with the human, whom the penalty filter needs)"] * len(poses)
    failures = {row: reason for row, reason in enumerate(reasons) if reason}
    table[list(failures)] = np.nan
    return SceneScores(table, states, failures)


class _RecordFailures:
    """Records a policy's failure for one row instead of aborting the scene: the reason of each call, or None.

    Calls come in the order of `score_in_traffic`: the human's, if there is one, then one per trajectory.
    """

    def __init__(self, policy: TrafficPolicy):
        self._policy = policy
        self.reasons: list[str | None] = []

    def __call__(self, scene: SceneCache, states: np.ndarray) -> TrafficObjects:
        try:
            objects = self._policy(scene, states)
        except InputError as problem:
            self.reasons.append(str(problem))
            return log_replay(scene)  # anything; its figures are dropped
        self.reasons.append(None)
        return objects


def _score_in_traffic(
    scenes: Mapping[str, SceneCache], rows: Trajectories, traffic: str, threads: int
) -> tuple[np.ndarray, dict[int, str]]:
    """The table (M, engine.COLUMNS) and why some rows have no figures."""
    if threads < 1:
        raise InputError(f"--threads: must be at least 1, got {threads}")
    failures: dict[int, str] = {}
    table = np.full((len(rows), engine.COLUMNS), np.nan)
    traces = np.empty((len(rows), 2, STATES))
    frames: dict[str, tuple[str, int] | None] = {}
    groups: dict[str, dict[tuple[int, float], list[int]]] = {}
    for row, token in enumerate(rows.tokens):
        sampling = (len(rows.poses[row]), float(rows.interval[row]))
        groups.setdefault(token, {}).setdefault(sampling, []).append(row)

    def one(token: str) -> None:
        scene = scenes[token]
        frames[token] = None if scene.is_synthetic else (scene.log_name, int(scene.time_us))
        for (_, interval), chosen in groups[token].items():
            poses = np.array([rows.poses[row] for row in chosen], np.float64)
            found = score_scene(scene, poses, interval, traffic)
            table[chosen], traces[chosen] = found.table, two_frame.traces_of(found.states)
            failures.update({chosen[place]: reason for place, reason in found.failures.items()})

    in_threads(one, groups, threads)
    own = [None if row in failures else frames[token] for row, token in enumerate(rows.tokens)]
    for row, value in zip(*two_frame.paired_comfort(rows.names, own, traces)):
        table[row, engine.TWO_FRAME] = value
        table[row, engine.SCORE] = epdms(*[*table[row, : engine.TWO_FRAME].tolist(), float(value)])
    return table, failures


def unfit_scenes(scenes: Mapping[str, SceneCache], tokens: Sequence[str], metric: Metric) -> dict[str, str]:
    """Token -> why the scene's cache does not serve this metric; empty where all do."""
    needed, other = (PDMS, VERSIONS["epdms"]) if metric == "pdms" else (EPDMS, VERSIONS["pdms"])
    unfit = {}
    for token in dict.fromkeys(tokens):
        try:
            scene = scenes[token]
        except KeyError:
            raise InputError(f"scene {token}: not among the scenes to score; leave the token out") from None
        problem = None if metric == "pdms" else history_problem(scene.past_states, scene.past_time_us)
        if problem:
            unfit[token] = f"scene {token}: {problem}"
        elif not scene.versions & needed:
            if scene.is_synthetic:
                why = f"a rendered scene has {other} alone; choose that metric"
            else:
                why = (
                    f"its cache serves {other} alone; import the devkit's other version with --other, or cache it with "
                    "more recorded future"
                )
            unfit[token] = f"scene {token}: {why}"
    return unfit
