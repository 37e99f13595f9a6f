"""What the training side knows of a scorer: a protocol. `navsim_adapter.scoring.scorer.Scorer` is the usual one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from dipole_vla.progress import bar
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import stamp
from navsim_adapter.foundation.words import counted
from navsim_adapter.sampling import Sampling
from navsim_adapter.trajectories import DEFAULT_INTERVAL


class Scores(Protocol):
    metric: str
    score: np.ndarray
    sub_scores: Mapping[str, np.ndarray]


class Scorer(Protocol):
    def score(self, tokens: Sequence[str], trajectories: np.ndarray) -> Any:
        """`Scores` of S tokens with unrelated trajectories (S, N, T, 3), ego-frame poses; raises rather than guesses.

        Poses are 0.5 s apart; plans of another interval come with it, as the keyword `interval`, to a scorer whose
        `score` has one. One that looks a certain time ahead says how far, `seconds_ahead`; shorter plans are refused.
        A score must not depend on what else is in the call. Where a planner's plan of the frame before counts as well
        (EPDMS), the scorer has `pairs_frames` = True and `score_rows(tokens, planners, poses)`: see `drive_columns`.
        Declared as Any because recipes compare return types by identity, and a scorer has its own class of scores.
        """


def identity(scorer: Scorer) -> dict[str, Any]:
    """What decides a scorer's figures, for the record of what made a folder: its class, and metric and cache if any.

    A cache counts by its content, so a copy of it is the same and one built again is another.
    """
    cache = getattr(getattr(scorer, "cache", None), "folder", None)
    pairing = {"pairs": "plans of one planner"} if pairs_frames(scorer) else {}  # not so in folders of before
    return {
        "class": f"{type(scorer).__module__}.{type(scorer).__qualname__}",
        "metric": getattr(scorer, "metric", None),
        "cache": stamp(cache) if cache else None,
        **pairing,
    }


def require_scenes(scorer: Scorer, tokens: Sequence[str]) -> None:
    """Raises InputError, before the first scene is driven, for scenes that the scorer's cache lacks, if it has one."""
    cache = getattr(scorer, "cache", None)
    missing = [token for token in tokens if token not in cache] if isinstance(cache, Mapping) else []
    if missing:
        raise InputError(
            f"scene {missing[0]}: not in the scoring cache, like {len(missing)} of "
            f"{counted(len(tokens), 'scene')}; give the "
            "cache of these scenes (scorer.init_args.cache), or leave them out"
        )


def require_sampling(scorer: Scorer, sampling: Sampling) -> None:
    """Raises InputError, before the first scene is driven, for plans that the scorer cannot read as they are meant."""
    ahead = getattr(scorer, "seconds_ahead", None)
    if ahead is not None and not sampling.lasts(ahead):
        raise InputError(
            f"plans: {sampling} end {sampling.reach:g} s from now, the scorer looks {ahead:g} s ahead and nothing is "
            "extrapolated; use a backbone of longer plans, or a scorer of your own"
        )
    if sampling.interval != DEFAULT_INTERVAL and not _takes_interval(scorer):
        raise InputError(
            f"scorer: {type(scorer).__name__}.score takes no `interval`, and these plans have {sampling}; give it one"
        )


def seen_of(scorer: Scorer, sampling: Sampling) -> Sampling:
    """The part of such plans that the scorer looks at, as far as it says: what a human beside them must have driven."""
    ahead = getattr(scorer, "seconds_ahead", None)
    return sampling if ahead is None else sampling.within(ahead)


def score_plans(scorer: Scorer, tokens: Sequence[str], plans: np.ndarray, interval: float) -> Any:
    """`Scores` of unrelated plans (S, N, T, 3), poses `interval` seconds apart."""
    return scorer.score(tokens, plans, **_keyword(interval))


def _takes_interval(scorer: Scorer) -> bool:
    taken = inspect.signature(scorer.score).parameters.values()
    return any(one.name == "interval" or one.kind is one.VAR_KEYWORD for one in taken)


def _keyword(interval: float) -> dict[str, float]:
    return {} if interval == DEFAULT_INTERVAL else {"interval": interval}


def pairs_frames(scorer: Scorer) -> bool:
    """Whether a plan in a drive scores otherwise than alone, as under EPDMS."""
    return bool(getattr(scorer, "pairs_frames", False))


def drive_columns(
    scorer: Any,
    logs: Sequence[str],
    tokens: Sequence[str],
    planners: Sequence[str],
    poses: Sequence[np.ndarray],
    interval: float = DEFAULT_INTERVAL,
) -> dict[str, np.ndarray]:
    """`columns` and `hidden` (M,) of M plans in their drives: a planner's plans of neighbouring scenes are compared.

    logs, tokens, planners, poses (T, 3): one per plan, whole logs of them, since neighbours are of one log.
    interval: seconds between poses.
    """
    found: dict[str, np.ndarray] = {}
    kinds, of_log = np.unique(np.asarray(logs), return_inverse=True)
    with bar("neighbouring plans", len(kinds)) as progress:
        for log in range(len(kinds)):
            own = np.flatnonzero(of_log == log).tolist()
            rows = ([of_all[i] for i in own] for of_all in (tokens, planners, poses))
            scores = scorer.score_rows(*rows, **_keyword(interval))
            for name, values in {**columns(scores), **hidden(scores)}.items():
                found.setdefault(name, np.empty(len(of_log)))[own] = values
            progress.advance()
    return found


def columns(scores: Scores) -> dict[str, np.ndarray]:
    """Sub-scores in their official order, then `score`."""
    return {**scores.sub_scores, "score": scores.score}


UNFILTERED, OVERWRITTEN = "score_unfiltered", "overwritten_"


def hidden(scores: Any) -> dict[str, np.ndarray]:
    """What NAVSIM's human filter hides, of a scorer that says so: the score without it, and per sub-score 1 where it
    wrote full marks over a failure."""
    overwritten = getattr(scores, "overwritten", None) or {}
    counts = {OVERWRITTEN + name: np.asarray(own, np.float64) for name, own in overwritten.items()}
    return {UNFILTERED: scores.score_unfiltered, **counts} if counts else {}
