"""Scores trajectories of many scenes: the Python way into the engine.

    scores = Scorer("cache/navtest", metric="epdms").score(tokens, trajectories)      # (S, N, T, 3)
    scores.score, scores["ego_progress"], scores.metric

Input is checked here and trusted below: whatever cannot be scored raises InputError with the scene's token.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from navsim_adapter.foundation.errors import InputError, did_you_mean
from navsim_adapter.foundation.parallel import in_threads
from navsim_adapter.metric import engine, two_frame
from navsim_adapter.metric.aggregate import epdms
from navsim_adapter.metric.scene_index import Metric, SceneIndex, build_index, run
from navsim_adapter.sampling import SIMULATED
from navsim_adapter.scene_cache import SceneCache
from navsim_adapter.vehicle import FARTHEST, LONGEST_INTERVAL, SHORTEST_INTERVAL, STATES

VERSIONS = {"pdms": "pdms-v1.1", "epdms": "epdms-v2.2"}
MetricName = Literal["pdms", "epdms", "pdms-v1.1", "epdms-v2.2", "epdms-v2.2-before-2025-09-29"]
BEFORE_FIX = "epdms-v2.2-before-2025-09-29"  # the score of the sub-scores before the human filter (metric 7.1)
METRICS: tuple[str, ...] = get_args(MetricName)  # what callers may ask for
SUB_SCORES: dict[str, dict[str, int]] = {
    "pdms": {
        "no_at_fault_collisions": engine.NC,
        "drivable_area_compliance": engine.DAC,
        "ego_progress": engine.EP,
        "time_to_collision_within_bound": engine.TTC,
        "comfort": engine.COMFORT,
        "driving_direction_compliance": engine.DDC,
    },
    "epdms": {
        "no_at_fault_collisions": engine.NC,
        "drivable_area_compliance": engine.DAC,
        "driving_direction_compliance": engine.DDC,
        "traffic_light_compliance": engine.TLC,
        "ego_progress": engine.EP,
        "time_to_collision_within_bound": engine.TTC,
        "lane_keeping": engine.LK,
        "history_comfort": engine.COMFORT,
        "two_frame_extended_comfort": engine.TWO_FRAME,
    },
}
UNFILTERED = "unfiltered_"
SCORE_UNFILTERED = "score_unfiltered"
_DIAGNOSTICS = dict(zip(engine.DIAGNOSTICS, range(engine.UNFILTERED_SCORE + 1, engine.COLUMNS)))
_KEPT_SCENES = 256  # indexes kept in memory, about half a megabyte each


def family_of(metric: str) -> Metric:
    """ "pdms" or "epdms", of a short name or of a basis; raises InputError for anything else."""
    if metric not in METRICS:
        raise InputError(
            f"metric: must be one of {', '.join(METRICS)}, got {metric!r}{did_you_mean(str(metric), list(METRICS))}"
        )
    return "pdms" if metric.startswith("pdms") else "epdms"


def basis_of(metric: str) -> str:
    """What the figures are called: a version, and on which side of the human filter's fix (metric 7.1)."""
    return VERSIONS.get(metric, metric)


def columns_of(metric: str) -> tuple[str, ...]:
    """Columns of a score table: sub-scores in the official order, the score, and of EPDMS what the human filter hid."""
    own = SUB_SCORES[family_of(metric)]
    if family_of(metric) == "pdms":
        return (*own, "score")
    return (*own, "score", SCORE_UNFILTERED, *(UNFILTERED + name for name in _filtered(own)))


def _filtered(own: Mapping[str, int]) -> list[str]:
    """The sub-scores that the human filter may overwrite."""
    return [name for name, column in own.items() if column < engine.TWO_FRAME]


@dataclass(frozen=True)
class Scores:
    """Named figures of trajectories, each of the shape of the call: (S, N), or (M,) for rows.

    metric: the basis, "pdms-v1.1", "epdms-v2.2" or "epdms-v2.2-before-2025-09-29".  table: (..., engine.COLUMNS).
    EPDMS sub-scores are after the human filter; `unfiltered_<name>`, `score_unfiltered` and `pdm_score` (without
    two-frame comfort) are the ones before it, and before the fix the score is that of the latter (metric 6.13, 7.1).
    Where there is no earlier frame, two_frame_extended_comfort is NaN and out of the score.
    """

    metric: str
    table: np.ndarray

    @property
    def score(self) -> np.ndarray:
        return self.score_unfiltered if self.metric == BEFORE_FIX else self.table[..., engine.SCORE]

    @property
    def score_unfiltered(self) -> np.ndarray:
        """The score with the human filter off; that of PDMS, which has none."""
        score = self.table[..., engine.SCORE].copy()
        for at in zip(*np.nonzero(self._is_overwritten.any(axis=-1))):
            row = self.table[at].tolist()
            score[at] = epdms(*[*row[engine.RAW : engine.RAW + engine.TWO_FRAME], row[engine.TWO_FRAME]])
        return score

    @property
    def overwritten(self) -> dict[str, np.ndarray]:
        """Sub-score -> bool: where the human filter wrote 1 over something less."""
        own = SUB_SCORES[self._family]
        return {name: self._is_overwritten[..., own[name]] for name in _filtered(own)}

    @property
    def _is_overwritten(self) -> np.ndarray:
        """(..., engine.TWO_FRAME) bool; a row without figures has none."""
        final, raw = self.table[..., : engine.TWO_FRAME], self.table[..., engine.RAW : engine.RAW + engine.TWO_FRAME]
        return final > raw

    @property
    def figures(self) -> np.ndarray:
        """(..., F) in the order of `columns_of`."""
        return np.stack([self[name] for name in columns_of(self.metric)], axis=-1)

    @property
    def sub_scores(self) -> dict[str, np.ndarray]:
        """In the official order."""
        return {name: self.table[..., column] for name, column in SUB_SCORES[self._family].items()}

    @property
    def diagnostics(self) -> dict[str, np.ndarray]:
        """Raw progress (m), times of the first collision and time-to-collision infraction (s, inf if none), and, of a
        thorough call, how many of the 41 states were over several lanes, off the drivable area, off the route."""
        return {name: self.table[..., column] for name, column in _DIAGNOSTICS.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        if name in ("score", SCORE_UNFILTERED):
            return self.score if name == "score" else self.score_unfiltered
        return self.table[..., self._columns()[name]]

    @property
    def _family(self) -> Metric:
        return family_of(self.metric)

    def _columns(self) -> dict[str, int]:
        own = SUB_SCORES[self._family]
        raw = {UNFILTERED + name: engine.RAW + own[name] for name in _filtered(own)}
        return {**own, "pdm_score": engine.UNFILTERED_SCORE, **raw, **_DIAGNOSTICS}


class Scorer:
    """Scores under one metric; keeps the indexes of the scenes it met last.

    cache: a folder written by `navsim-adapter cache`, or a mapping token -> SceneCache.
    metric: "pdms" (PDMS v1.1), "epdms" (EPDMS v2.2 after the fix of the human filter), or a basis by its whole name.
    threads: scenes scored at a time; the kernels run without Python's lock. The figures do not depend on it.
    May be pickled and used in worker processes, forked ones too.
    """

    seconds_ahead = SIMULATED.reach
    """How much of a plan is simulated; of one that ends before, the last pose is held, as officially."""

    def __init__(self, cache: str | Path | Mapping[str, SceneCache], metric: MetricName = "pdms", *, threads: int = 1):
        family = family_of(metric)
        if threads < 1:
            raise InputError(f"threads: must be at least 1, got {threads}")
        if not isinstance(cache, Mapping):
            from navsim_adapter.cache.store import open_cache

            cache = open_cache(cache)
        self.cache: Mapping[str, SceneCache] = cache
        self.basis = basis_of(metric)
        self.metric = family if self.basis == VERSIONS[family] else self.basis  # what records of a run say
        self._family: Metric = family
        self.threads = threads
        self._indexes: OrderedDict[str, SceneIndex] = OrderedDict()
        self._lock = threading.Lock()

    def score(
        self,
        tokens: Sequence[str],
        trajectories: np.ndarray,
        interval: float = 0.5,
        *,
        thorough: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Scores:
        """Score N unrelated trajectories for each of S scenes; figures come as (S, N).

        tokens: S of them.
        trajectories: (S, N, T, 3) ego-frame x, y (m), heading (rad) every `interval` seconds, without t = 0.
            They are not copied: `np.broadcast_to(vocabulary, (S, N, T, 3))` costs the memory of one scene.
        thorough: also count the steps in each kind of area.
        progress: called after each scene with the number done and the number of all.
        Plans of neighbouring scenes are not compared: under EPDMS two-frame comfort is NaN and out of the score.
        `score_rows` knows which planner a plan is of, and compares.
        Raises InputError for a wrong shape, NaN or infinite poses, or a token that the cache lacks.
        """
        poses = _checked(tokens, trajectories, interval)
        table = np.empty((*poses.shape[:2], engine.COLUMNS))

        done = itertools.count(1)

        def one(scene: int) -> None:
            run(self.index(tokens[scene]), _numbers(poses[scene]), interval, is_thorough=thorough, table=table[scene])
            if progress is not None:
                progress(next(done), len(tokens))

        in_threads(one, range(len(tokens)), self.threads)
        return Scores(self.basis, table)

    @property
    def pairs_frames(self) -> bool:
        """Whether a score also depends on the same planner's plan of the frame before, as EPDMS does."""
        return self._family == "epdms"

    def score_rows(
        self,
        tokens: Sequence[str],
        names: Sequence[str],
        poses: Sequence[np.ndarray],
        interval: Sequence[float] | np.ndarray | float = 0.5,
        *,
        thorough: bool = False,
    ) -> Scores:
        """Score M rows of any samplings; figures come as (M,) in the order of the rows.

        names: rows of one name are one planner's, whose plans of neighbouring scenes two-frame comfort compares.
        poses: M arrays (T_i, 3): ego-frame x, y (m), heading (rad), without t = 0.
        interval: seconds between poses, one for all or one per row.
        thorough: also count the steps in each kind of area.
        Raises InputError as `score` does, and for unequal numbers of tokens, names and poses.
        """
        intervals = np.broadcast_to(np.asarray(interval, np.float64), (len(tokens),))
        if not len(tokens) == len(names) == len(poses):
            raise InputError(
                f"rows: {len(tokens)} tokens, {len(names)} names, {len(poses)} trajectories; give one of each per row"
            )
        checked = [
            _checked((token,), _numbers(row)[None, None], float(step))[0, 0]
            for token, row, step in zip(tokens, poses, intervals)
        ]
        table = self._score_rows(list(zip(tokens, names)), checked, intervals.tolist(), thorough)
        return Scores(self.basis, table)

    def simulate(self, token: str, trajectories: np.ndarray, interval: float = 0.5) -> np.ndarray:
        """What the ego does with trajectories (N, T, 3) of a scene: (N, 41, 11) states at 0.1 s (metric 5.2)."""
        poses = _checked((token,), _numbers(trajectories)[None], interval)[0]
        states = np.empty((len(poses), STATES, 11))
        run(self.index(token), poses, interval, states=states)
        return states

    def index(self, token: str) -> SceneIndex:
        """The scene, ready to be scored; built on first use."""
        with self._lock:
            known = self._indexes.get(token)
            if known is not None:
                self._indexes.move_to_end(token)
                return known
        try:
            scene = self.cache[token]
        except KeyError:
            raise InputError(
                f"scene {token}: not in the scoring cache; convert its log or leave the token out"
            ) from None
        built = build_index(scene, self._family)
        with self._lock:
            self._indexes[token] = built
            if len(self._indexes) > _KEPT_SCENES:
                self._indexes.popitem(last=False)
        return built

    def _score_rows(
        self, rows: Sequence[tuple[str, str]], poses: Sequence[np.ndarray], intervals: Sequence[float], thorough: bool
    ) -> np.ndarray:
        """The table (M, engine.COLUMNS) of (token, name) rows, two-frame comfort included."""
        table = np.empty((len(rows), engine.COLUMNS))
        traces = np.empty((len(rows), 2, STATES)) if self._family == "epdms" else None
        frames: dict[str, tuple[str, int] | None] = {}
        bars: dict[str, tuple[float, np.ndarray]] = {}  # what a row of the scene is measured against
        groups: dict[str, dict[tuple[int, float], list[int]]] = {}
        for row, (token, _) in enumerate(rows):
            groups.setdefault(token, {}).setdefault((len(poses[row]), intervals[row]), []).append(row)

        def one(token: str) -> None:
            index = self.index(token)
            frames[token] = None if index.is_synthetic else (index.log_name, index.time_us)
            bars[token] = index.reference_best, index.human
            for (_, interval), chosen in groups[token].items():
                states = None if traces is None else np.empty((len(chosen), STATES, 11))
                stacked = np.stack([poses[row] for row in chosen])
                table[chosen] = run(index, stacked, interval, is_thorough=thorough, states=states)
                if traces is not None and states is not None:
                    traces[chosen] = two_frame.traces_of(states)

        in_threads(one, groups, self.threads)
        if traces is not None:  # rows whose planner also has the frame before (metric 6.12)
            names, own = [name for _, name in rows], [frames[token] for token, _ in rows]
            for row, value in zip(*two_frame.paired_comfort(names, own, traces)):
                engine.combine_rows(table[row : row + 1], True, *bars[rows[row][0]], np.array([value]))
        return table

    def __getstate__(self) -> dict[str, Any]:
        return {"cache": self.cache, "metric": self.basis, "threads": self.threads}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["cache"], state["metric"], threads=state["threads"])  # type: ignore[misc]


def _numbers(poses: Any) -> np.ndarray:
    """As the engine takes them."""
    return np.ascontiguousarray(poses, np.float64)


def _checked(tokens: Sequence[str], trajectories: np.ndarray, interval: float) -> np.ndarray:
    """The poses as (S, N, T, 3), as they were given, or InputError naming the scene."""
    poses = np.asarray(trajectories)
    if poses.ndim != 4 or len(poses) != len(tokens) or poses.shape[3] != 3 or 0 in poses.shape[1:3]:
        where = f"scene {tokens[0]}: " if len(tokens) == 1 else ""
        raise InputError(
            f"{where}trajectories: shape {np.shape(trajectories)} for {len(tokens)} tokens; "
            "expected (scenes, candidates, poses, 3): x, y, heading"
        )
    if not SHORTEST_INTERVAL <= interval <= LONGEST_INTERVAL:
        raise InputError(f"interval: must be {SHORTEST_INTERVAL} to {LONGEST_INTERVAL} seconds, got {interval}")
    for scene, token in enumerate(tokens):  # one by one: the whole may be a view of something far smaller
        _check_places(token, _numbers(poses[scene]))
    return poses


def _check_places(token: str, poses: np.ndarray) -> None:
    if not np.maximum.reduce(np.abs(poses), axis=None) <= FARTHEST:  # also true of NaN
        candidate, step = (int(at[0]) for at in np.nonzero(~(np.abs(poses) <= FARTHEST).all(axis=2)))
        raise InputError(
            f"scene {token}: trajectory {candidate} has NaN, infinite or absurd poses at step {step} "
            f"({poses[candidate, step].tolist()}); repair it or leave it out"
        )
