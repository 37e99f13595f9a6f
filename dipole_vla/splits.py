"""The one rule about splits: no reinforcement learning on scenes that are later evaluated.

NAVSIM's evaluation splits are known by name; any other overlap is found by the tokens a policy was trained on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from navsim_adapter.errors import InputError

EVALUATION_SPLITS = frozenset(
    {"test", "navtest", "private_test_hard", "navhard_two_stage", "warmup_two_stage", "private_test_hard_two_stage"}
)

RL_TOKENS = "rl_tokens.json"


@dataclass(frozen=True)
class SeenByRL:
    """Scenes whose scores shaped some weights, and the splits they are of; `|` joins what several stages saw."""

    splits: frozenset[str]
    tokens: frozenset[str]
    allow_eval_split: bool = False

    @classmethod
    def recorded(cls, tokens: Iterable[str], provenance: Mapping[str, Any]) -> SeenByRL:
        """From what a policy or a critic keeps on disk."""
        allowed = bool(provenance.get("allow_eval_split"))
        return cls(_names(provenance.get("rl_split")), frozenset(tokens), allowed)

    def provenance(self) -> dict[str, Any]:
        """What to keep beside the tokens. Several splits are one text, as in "mini, trainval"."""
        return {"rl_split": ", ".join(sorted(self.splits)), "allow_eval_split": self.allow_eval_split}

    def __or__(self, other: SeenByRL) -> SeenByRL:
        allowed = self.allow_eval_split or other.allow_eval_split
        return SeenByRL(self.splits | other.splits, self.tokens | other.tokens, allowed)


def refuse_collection(split: str, allow_eval_split: bool) -> None:
    """Raise when candidates are to be scored for RL on an evaluation split."""
    if split in EVALUATION_SPLITS and not allow_eval_split:
        raise InputError(
            f"split {split!r}: this is an evaluation split, and RL on it is not a result; collect on a training split, "
            "or pass --allow-eval-split and every report will say so in red"
        )


def refuse_evaluation(
    split: str, tokens: Sequence[str], rl_split: str, rl_tokens: Collection[str], allow_eval_split: bool
) -> bool:
    """Whether RL ran on scenes to be evaluated; raises unless that was allowed."""
    shared = [token for token in tokens if token in rl_tokens]
    leaks = bool(shared) or split in _names(rl_split)
    if leaks and not allow_eval_split:
        raise InputError(
            f"split {split!r}: {len(shared)} of {len(tokens)} scenes were used for RL (rl_split {rl_split!r}); "
            "evaluate on other scenes, or pass --allow-eval-split and the report will say so in red"
        )
    return leaks


def _names(rl_split: str | None) -> frozenset[str]:
    return frozenset(name for name in (rl_split or "").split(", ") if name)
