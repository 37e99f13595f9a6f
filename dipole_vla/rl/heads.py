"""Policy heads: which weighting rule trains which network, and which networks a method guides between.

The rules are `dipole_vla.objective.RULES`, the ones driving is trained with. A head is data; adding a method is a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dipole_vla.objective import RULES, Rule
from navsim_adapter.foundation.errors import InputError, did_you_mean


@dataclass(frozen=True)
class Head:
    """One flow policy. rule None: every sample counts the same (BC). scale: multiplies beta for this head."""

    rule: Rule | None = None
    sign: Literal["positive", "negative"] = "positive"
    scale: float = 1.0

    def weight(self, advantage: Tensor, beta: float, shift: float = 0.0) -> Tensor:
        """Weight of each sample in this head's loss, shape of `advantage`."""
        if self.rule is None:
            return torch.ones_like(advantage)
        function = self.rule.positive if self.sign == "positive" else self.rule.negative
        assert function is not None
        return function(advantage, self.scale * beta, shift)


HEADS: dict[str, Head] = {
    "bc": Head(),
    "exponential": Head(RULES["exponential"]),
    # the tilt DIPOLE reaches at omega = 2 and 9 is beta (1 + omega): what one exponential weight needs for it
    "exponential_x3": Head(RULES["exponential"], scale=3.0),
    "exponential_x10": Head(RULES["exponential"], scale=10.0),
    "indicator": Head(RULES["indicator"]),
    "positive": Head(RULES["dichotomous"]),
    "negative": Head(RULES["dichotomous"], "negative"),
}


@dataclass(frozen=True)
class Method:
    """A policy to evaluate: guidance away from `negative` towards `positive`; None: no dial, omega is 0."""

    positive: str
    negative: str | None = None


METHODS: dict[str, Method] = {
    "bc": Method("bc"),  # with candidates above 1 and the critic's choice: IFQL
    "exponential": Method("exponential"),  # AWR
    "exponential_x3": Method("exponential_x3"),
    "exponential_x10": Method("exponential_x10"),
    "indicator": Method("indicator", "bc"),  # CFGRL
    "positive_only": Method("positive"),  # RULES["positive_only"] has the positive head's very weight and loss
    "dipole": Method("positive", "negative"),
}


def heads_named(names: Sequence[str]) -> list[Head]:
    for name in names:
        if name not in HEADS:
            raise InputError(
                f"learner.heads: no head {name!r}{did_you_mean(name, list(HEADS))}; use {', '.join(HEADS)}"
            )
    return [HEADS[name] for name in names]


def method_named(name: str, heads: Sequence[str]) -> Method:
    """The method, if the heads it needs were trained."""
    if name not in METHODS:
        raise InputError(f"evaluation.methods: no method {name!r}{did_you_mean(name, list(METHODS))}")
    method = METHODS[name]
    missing = [head for head in (method.positive, method.negative) if head is not None and head not in heads]
    if missing:
        raise InputError(f"evaluation.methods: {name} needs head {missing[0]!r}; add it to learner.heads")
    return method


def weights(heads: Sequence[Head], advantage: Tensor, beta: float, shift: float = 0.0) -> Tensor:
    """(seeds, heads, rows) from advantages (seeds, rows)."""
    return torch.stack([head.weight(advantage, beta, shift) for head in heads], dim=1)
