"""What the training side knows of a scorer: a protocol. `navsim_adapter.scoring.scorer.Scorer` is the usual one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from dipole_vla.progress import bar
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import stamp


class Scores(Protocol):
    metric: str
    score: np.ndarray
    sub_scores: Mapping[str, np.ndarray]


class Scorer(Protocol):
    def score(self, tokens: Sequence[str], trajectories: np.ndarray) -> Any:
        """`Scores` of S tokens with unrelated trajectories (S, N, T, 3), ego-frame poses; raises rather than guesses.

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
            f"scene {missing[0]}: not in the scoring cache, like {len(missing)} of {len(tokens)} scenes; give the "
            "cache of these scenes (scorer.init_args.cache), or leave them out"
        )


def pairs_frames(scorer: Scorer) -> bool:
    """Whether a plan in a drive scores otherwise than alone, as under EPDMS."""
    return bool(getattr(scorer, "pairs_frames", False))


def drive_columns(
    scorer: Any, logs: Sequence[str], tokens: Sequence[str], planners: Sequence[str], poses: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """`columns` and `hidden` (M,) of M plans in their drives: a planner's plans of neighbouring scenes are compared.

    logs, tokens, planners, poses (T, 3): one per plan, whole logs of them, since neighbours are of one log.
    """
    found: dict[str, np.ndarray] = {}
    kinds, of_log = np.unique(np.asarray(logs), return_inverse=True)
    with bar("neighbouring plans", len(kinds)) as progress:
        for log in range(len(kinds)):
            own = np.flatnonzero(of_log == log).tolist()
            scores = scorer.score_rows([tokens[i] for i in own], [planners[i] for i in own], [poses[i] for i in own])
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
