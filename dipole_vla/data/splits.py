"""The one rule about splits: no reinforcement learning on scenes that are later evaluated.

NAVSIM's evaluation splits are known by name; any other overlap is found by the tokens and logs a policy was trained on:
scenes of one log are half a second apart, so a log is either for training or for evaluation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.words import counted
from navsim_adapter.nuplan.second_stage import SPLIT as SECOND_STAGE

EVALUATION_SPLITS = frozenset(
    {
        "test",
        "navtest",
        "private_test_hard",
        "navhard_two_stage",
        "warmup_two_stage",
        "private_test_hard_two_stage",
        SECOND_STAGE,  # all that were published belong to evaluation splits
    }
)

RL_TOKENS = "rl_tokens.json"


@dataclass(frozen=True)
class SeenByRL:
    """Scenes whose scores shaped some weights, and the splits they are of; `|` joins what several stages saw.

    logs: of these scenes. None if unknown (older policies): the whole splits then count as seen.
    """

    splits: frozenset[str] = frozenset()
    tokens: frozenset[str] = frozenset()
    logs: frozenset[str] | None = frozenset()
    allow_eval_split: bool = False

    @classmethod
    def recorded(cls, tokens: Iterable[str], provenance: Mapping[str, Any]) -> SeenByRL:
        """From what a policy or a critic keeps on disk."""
        splits = frozenset(name for name in (provenance.get("rl_split") or "").split(", ") if name)
        logs, seen = provenance.get("rl_logs"), frozenset(tokens)
        known = frozenset(logs) if logs is not None else None if splits or seen else frozenset()
        return cls(splits, seen, known, bool(provenance.get("allow_eval_split")))

    def provenance(self) -> dict[str, Any]:
        """What to keep beside the tokens. Several splits are one text, as in "mini, trainval"."""
        logs = None if self.logs is None else sorted(self.logs)
        return {"rl_split": ", ".join(sorted(self.splits)), "rl_logs": logs, "allow_eval_split": self.allow_eval_split}

    def __or__(self, other: SeenByRL) -> SeenByRL:
        logs = None if self.logs is None or other.logs is None else self.logs | other.logs
        allowed = self.allow_eval_split or other.allow_eval_split
        return SeenByRL(self.splits | other.splits, self.tokens | other.tokens, logs, allowed)


def refuse_collection(split: str, allow_eval_split: bool) -> None:
    """Raise when candidates are to be scored for RL on an evaluation split."""
    if _plain(split) in EVALUATION_SPLITS and not allow_eval_split:
        raise InputError(
            f"split {split!r}: this is an evaluation split, and RL on it is not a result; collect on a training split, "
            "or pass --allow-eval-split and every report will say so in red"
        )


def _plain(split: str) -> str:
    """The name alone: tables of older versions keep it as it was typed, `test/` or `./test`."""
    return PurePosixPath(split.strip()).name.lower()


def check_not_trained_on(
    split: str, tokens: Sequence[str], logs: Sequence[str], seen: SeenByRL, allow_eval_split: bool
) -> bool:
    """True if RL saw these scenes or others of their logs and that was allowed, False if not; else InputError.

    tokens, logs: of the scenes to be evaluated. Logs that RL left out may be evaluated though they are of its split.
    """
    shared = sum(token in seen.tokens for token in tokens)
    if seen.logs is None:
        others, leaks = "of logs that nobody noted", bool(shared) or _plain(split) in map(_plain, seen.splits)
    else:
        alike = len(set(logs) & seen.logs)
        others, leaks = f"{alike} of their {counted(len(set(logs)), 'log')}", bool(shared or alike)
    if leaks and not allow_eval_split:
        raise InputError(
            f"split {split!r}: {shared} of {counted(len(tokens), 'scene')}, {others}, were used for RL (rl_split "
            f"{', '.join(sorted(seen.splits))!r}); evaluate on other logs, or pass --allow-eval-split and the report "
            "will say so in red"
        )
    return leaks
