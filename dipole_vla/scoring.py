"""What the training side knows of a scorer: a protocol. `navsim_adapter.scoring.scorer.Scorer` is the usual one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from navsim_adapter.errors import InputError
from navsim_adapter.files import stamp


class Scores(Protocol):
    metric: str
    score: np.ndarray
    sub_scores: Mapping[str, np.ndarray]


class Scorer(Protocol):
    def score(self, tokens: Sequence[str], trajectories: np.ndarray) -> Any:
        """`Scores` of S tokens with trajectories (S, N, T, 3), ego-frame poses; raises rather than guesses.

        Declared as Any because recipes compare return types by identity, and a scorer has its own class of scores.
        """


def identity(scorer: Scorer) -> dict[str, Any]:
    """What decides a scorer's figures, for the record of what made a folder: its class, and metric and cache if any.

    A cache counts by its content, so a copy of it is the same and one built again is another.
    """
    cache = getattr(getattr(scorer, "cache", None), "folder", None)
    return {
        "class": f"{type(scorer).__module__}.{type(scorer).__qualname__}",
        "metric": getattr(scorer, "metric", None),
        "cache": stamp(cache) if cache else None,
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


def columns(scores: Scores) -> dict[str, np.ndarray]:
    """Sub-scores in their official order, then `score`."""
    return {**scores.sub_scores, "score": scores.score}
