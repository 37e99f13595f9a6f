"""The pseudo closed-loop score of two stages: pairs of frames, weights of rendered scenes, summaries (metric 7.3).

Stage one is a pair of recorded scenes half a second apart; stage two are pairs rendered where a planner may be four
seconds later. A rendered scene counts by how near it starts to the end of the trajectory planned in stage one.
Single scenes are scored elsewhere; what is here starts from their sub-scores.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.foreign import plain_yaml, read_text
from navsim_adapter.metric.aggregate import epdms
from navsim_adapter.metric.two_frame import compared, gap_in_steps, traces_of
from navsim_adapter.scoring.scorer import BEFORE_FIX, SCORE_UNFILTERED, UNFILTERED, VERSIONS

SUB_SCORES = (
    "no_at_fault_collisions",
    "drivable_area_compliance",
    "driving_direction_compliance",
    "traffic_light_compliance",
    "ego_progress",
    "time_to_collision_within_bound",
    "lane_keeping",
    "history_comfort",
)
COLUMNS = (*SUB_SCORES, "two_frame_extended_comfort", "score")
UNFILTERED_COLUMNS = (SCORE_UNFILTERED, *(UNFILTERED + name for name in SUB_SCORES))
STAGES = ("stage_one", "stage_two", "combined")
KERNEL_VARIANCE = 0.1  # m2
MAPPING_KEY = "reactive_all_mapping"


@dataclass(frozen=True)
class Pair:
    """Tokens of two scenes half a second apart."""

    now: str
    previous: str


@dataclass(frozen=True)
class Entry:
    """One recorded pair and the rendered pairs that continue it."""

    first: Pair
    second: tuple[Pair, ...]

    @property
    def tokens(self) -> list[str]:
        """All tokens of the entry, recorded ones first."""
        return [token for pair in (self.first, *self.second) for token in (pair.now, pair.previous)]


@dataclass(frozen=True)
class SceneResult:
    """What aggregation needs of one scored trajectory.

    sub_scores: (8,) after the human filter, in the order of SUB_SCORES.  start: (2,) the ego's rear axle, map frame.
    end: (2,) the planned last pose, map frame, not simulated.  states: (41, 11) simulated.
    unfiltered: (8,) before the human filter; None where it changed nothing.
    """

    time_us: int
    sub_scores: np.ndarray
    start: np.ndarray
    end: np.ndarray
    states: np.ndarray
    unfiltered: np.ndarray | None = None


@dataclass(frozen=True)
class TwoStageScores:
    """tokens: every scene of the entries.  table: (T, 10) COLUMNS.  unfiltered: (T, 9) UNFILTERED_COLUMNS.
    weight: (T,) of a rendered scene in its group, 1 for recorded ones.  is_rendered: (T,) bool.
    summary: stage -> (10,) COLUMNS; "combined" is the mean of the groups' products of both stages.
    """

    tokens: tuple[str, ...]
    table: np.ndarray
    unfiltered: np.ndarray
    weight: np.ndarray
    is_rendered: np.ndarray
    summary: Mapping[str, np.ndarray]


def read_mapping(path: str | Path) -> list[Entry]:
    """Entries from a JSON list or from the devkit's split YAML (key ``reactive_all_mapping``)."""
    try:
        text = read_text(path)
        content = json.loads(text) if str(path).endswith(".json") else plain_yaml(text)
        rows = content[MAPPING_KEY] if isinstance(content, dict) else content
        entries = [Entry(Pair(now, before), tuple(Pair(*pair) for pair in pairs)) for now, before, pairs in rows]
        other = next((token for entry in entries for token in entry.tokens if not isinstance(token, str)), None)
        if other is not None:
            raise TypeError(f"token {other!r} is no text")
        return entries
    except (OSError, ValueError, TypeError, KeyError, RecursionError, yaml.YAMLError) as problem:
        reason = " ".join(str(problem).split())[:120]
        raise InputError(f"{path}: no list of [now, previous, pairs] ({reason}); pass a two-stage mapping") from problem


def two_frame_comfort(now: SceneResult, before: SceneResult) -> float:
    """1 or 0 (metric 6.12); NaN where the scenes are not about half a second apart."""
    steps = gap_in_steps(now.time_us, before.time_us)
    if not steps:
        return float("nan")
    return float(compared(traces_of(now.states[None]), traces_of(before.states[None]), np.array([steps]))[0])


def combine(
    mapping: Sequence[Entry],
    results: Mapping[str, SceneResult],
    comfort: Callable[[SceneResult, SceneResult], float] = two_frame_comfort,
    basis: str = VERSIONS["epdms"],
) -> TwoStageScores:
    """Score every scene with its partner and sum up.

    results: token -> result; entries of which neither recorded scene is there are left out, any other missing scene
    is an InputError, as officially.  comfort: of a pair (now, before).  basis: of the scores.
    """
    used = [entry for entry in mapping if entry.first.now in results or entry.first.previous in results]
    if not used:
        raise InputError("two-stage mapping: none of its recorded scenes has a result; pass the mapping of this split")
    missing = [token for entry in used for token in entry.tokens if token not in results]
    if missing:
        raise InputError(f"two-stage mapping: {len(missing)} scenes ({missing[0]}, …) have no result; score them too")
    tokens = tuple(token for entry in used for token in entry.tokens)
    row = {token: place for place, token in enumerate(tokens)}
    both = np.concatenate([_entry_table(entry, results, comfort) for entry in used])
    table, unfiltered = np.split(both, [len(COLUMNS)], axis=1)
    if basis == BEFORE_FIX:
        table[:, -1] = unfiltered[:, 0]
    weight, stage_one, stage_two = np.ones(len(tokens)), [], []
    for entry in used:
        for kind in ("now", "previous"):  # each half of the pair is a group of its own
            recorded = getattr(entry.first, kind)
            rendered = [row[getattr(pair, kind)] for pair in entry.second]
            starts = np.array([results[tokens[place]].start for place in rendered]).reshape(-1, 2)
            weight[rendered] = kernel_weights(results[recorded].end, starts)
            stage_one.append(table[row[recorded]])
            stage_two.append(weight[rendered] @ table[rendered] / weight[rendered].sum())
    one, two = np.mean(stage_one, axis=0), np.mean(stage_two, axis=0)
    both = np.mean(np.array(stage_one) * np.array(stage_two), axis=0)
    is_rendered = np.array([place > 1 for entry in used for place in range(len(entry.tokens))])
    return TwoStageScores(tokens, table, unfiltered, weight, is_rendered, dict(zip(STAGES, (one, two, both))))


def kernel_weights(end: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """(n,) weights of scenes that start at `starts` (n, 2) for a plan that ends at `end` (2,); they sum to 1.

    Equal weights where all scenes are so far away that the kernel vanishes.
    """
    if not len(starts):
        raise InputError("two-stage mapping: an entry has no rendered scenes; remove it from the mapping")
    weights = np.exp(-((starts - end) ** 2).sum(axis=1) / (2 * KERNEL_VARIANCE))
    total = weights.sum()
    if np.isnan(total) or abs(total) <= 1e-8:
        return np.full(len(starts), 1 / len(starts))
    return weights / total


def _entry_table(
    entry: Entry, results: Mapping[str, SceneResult], comfort: Callable[[SceneResult, SceneResult], float]
) -> np.ndarray:
    """(tokens, 19) COLUMNS and UNFILTERED_COLUMNS of an entry's scenes, in the order of `entry.tokens`."""
    rows = []
    for pair in (entry.first, *entry.second):
        now, before = results[pair.now], results[pair.previous]
        extended = comfort(now, before)
        if np.isnan(extended):
            gap = (now.time_us - before.time_us) * 1e-6
            raise InputError(
                f"two-stage mapping: scenes {pair.previous} and {pair.now} are {gap:.3f} s apart, expected about "
                "0.5 s; pass the mapping of this split"
            )
        for result in (now, before):
            values = [float(value) for value in result.sub_scores]
            raw = values if result.unfiltered is None else [float(value) for value in result.unfiltered]
            rows.append([*values, extended, epdms(*[*values, extended]), epdms(*[*raw, extended]), *raw])
    return np.array(rows)
