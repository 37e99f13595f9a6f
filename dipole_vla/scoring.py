"""What the training side knows of a scorer: a protocol. `navsim_adapter.scoring.scorer.Scorer` is the usual one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np


class Scores(Protocol):
    metric: str
    score: np.ndarray
    sub_scores: Mapping[str, np.ndarray]


class Scorer(Protocol):
    def score(self, tokens: Sequence[str], trajectories: np.ndarray) -> Scores:
        """tokens: S; trajectories (S, N, T, 3) ego-frame poses. Named (S, N) arrays; raises rather than guesses."""


def columns(scores: Scores) -> dict[str, np.ndarray]:
    """Sub-scores in their official order, then `score`."""
    return {**scores.sub_scores, "score": scores.score}
