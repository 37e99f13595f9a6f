"""The one rule about splits: no reinforcement learning on scenes that are later evaluated.

NAVSIM's evaluation splits are known by name; any other overlap is found by the tokens a policy was trained on.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from navsim_adapter.errors import InputError

EVALUATION_SPLITS = frozenset(
    {"test", "navtest", "private_test_hard", "navhard_two_stage", "warmup_two_stage", "private_test_hard_two_stage"}
)


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
    leaks = bool(shared) or split == rl_split
    if leaks and not allow_eval_split:
        raise InputError(
            f"split {split!r}: {len(shared)} of {len(tokens)} scenes were used for RL (rl_split {rl_split!r}); "
            "evaluate on other scenes, or pass --allow-eval-split and the report will say so in red"
        )
    return leaks
