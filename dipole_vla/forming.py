"""The keys of `data.advantage`: how a training forms G, the advantage of a candidate, of what a table of candidates
records.

It is formed when a training begins, so another choice asks for no new collection. `advantage` does it; nothing heavy is
imported here, for help and mistakes are told before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from navsim_adapter.foundation.errors import InputError, did_you_mean
from navsim_adapter.foundation.option_checks import check_range

Normalise = Literal["std", "mean", "none"]
HOW: dict[Normalise, str] = {
    "std": "group-relative: (return - group mean) / (group std + 1e-6)",  # GRPO's; what `collect` writes
    "mean": "group-relative: return - group mean",  # Dr. GRPO (2503.20783), NoRD (2602.21172)
    "none": "the return itself",
}


@dataclass(frozen=True)
class Reward:
    """A return of one's own from the recorded sub-scores; without weights and gates it is the metric's own score.

    Args:
        weights: {sub-score: weight}; the return is their weighted mean, or 1 without any.
        gates: sub-scores that it is multiplied with, as the metrics do with collisions and the drivable area.
    """

    weights: dict[str, float] = field(default_factory=dict)
    gates: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not isinstance(self.weights, Mapping):
            raise InputError(f"data.advantage.reward.weights: must be {{sub-score: weight}}, got {self.weights!r}")
        if isinstance(self.gates, str) or not all(isinstance(name, str) for name in self.gates):
            raise InputError(f"data.advantage.reward.gates: must be a list of sub-scores, got {self.gates!r}")
        for name, weight in self.weights.items():
            check_range(f"data.advantage.reward.weights.{name}", weight, 0)
        if self.weights and not sum(self.weights.values()):
            raise InputError("data.advantage.reward.weights: are all 0; give one that counts, or gates alone")
        twice = {name for name in self.gates if self.gates.count(name) > 1 or name in self.weights}
        if twice:
            raise InputError(f"data.advantage.reward: {min(twice)} is there twice; name it as a gate or with a weight")

    @property
    def names(self) -> list[str]:
        """Sub-scores it is made of."""
        return [*self.gates, *self.weights]

    def __str__(self) -> str:
        terms = " + ".join(f"{weight:g} {name}" for name, weight in self.weights.items())
        mean = [f"({terms}) / {sum(self.weights.values()):g}"] if terms else []
        return " x ".join([*self.gates, *mean])


@dataclass(frozen=True)
class Advantage:
    """How G is formed, and which rows count how much; the defaults take what the table records.

    Args:
        normalise: std = G as the table has it: over the standard deviation of the scene's returns, or a critic's;
            mean = the return minus the scene's mean, so that scenes with little spread say little; none = the return.
        quantile: G is counted from this quantile of the scene's, such as 0.7: with rule indicator the best 30 % are
            positive; null counts from where normalise leaves it.
        reference_below: train only on scenes where the reference's plans return less than this on average, such as 0.9.
        human_weight: what the human's rows count in the loss; other rows count 1.
        human_sign: 1 = the human's rows train the positive policy alone, -1 = the negative alone, 0 = as G says.
        reward: a return of one's own in place of the metric's score; the critic learns it, too.
    """

    normalise: Normalise = "std"
    quantile: float | None = None
    reference_below: float | None = None
    human_weight: float = 1.0
    human_sign: int = 0
    reward: Reward = field(default_factory=Reward)

    def __post_init__(self) -> None:
        if self.normalise not in tuple(HOW):
            known = ", ".join(HOW)
            raise InputError(f"data.advantage.normalise: must be one of {known}, got {self.normalise!r}")
        check_range("data.advantage.quantile", self.quantile, 0, 1)
        check_range("data.advantage.reference_below", self.reference_below)
        check_range("data.advantage.human_weight", self.human_weight, 0)
        if self.human_sign not in (-1, 0, 1):
            raise InputError(f"data.advantage.human_sign: must be 1, -1 or 0 (as G says), got {self.human_sign}")

    @classmethod
    def of(cls, keys: Mapping[str, Any] | None) -> Advantage:
        """From plain data, as a resolved recipe or the record of a policy has it; None is the defaults."""
        known = _keys_of(cls, keys, "data.advantage")
        return cls(**{**known, "reward": Reward(**_keys_of(Reward, known.get("reward"), "data.advantage.reward"))})

    @property
    def is_recorded(self) -> bool:
        """G is the table's own column."""
        return self.normalise == "std" and not self.reward.names

    @property
    def asked(self) -> list[str]:
        """Keys that ask for something."""
        return [each.name for each in fields(self) if getattr(self, each.name) != getattr(AS_RECORDED, each.name)]

    def refuse_unread(self, read: Sequence[str], who: str) -> None:
        """InputError for a key that asks `who` for something, and is not among those it reads."""
        unread = [name for name in self.asked if name not in read]
        if unread:
            raise InputError(f"data.advantage.{unread[0]}: means nothing to {who}; leave it out")

    def told(self, recorded: str) -> str:
        """How G is formed, for the record. recorded: how that of the table was."""
        text = recorded if self.is_recorded else HOW[self.normalise]
        parts = {
            "reward": f"return = {self.reward}",
            "quantile": f"counted from the scene's quantile {self.quantile}",
            "reference_below": f"scenes where the reference returns less than {self.reference_below}",
            "human_weight": f"human's rows count {self.human_weight:g}",
            "human_sign": f"human's rows {'positive' if self.human_sign > 0 else 'negative'} only",
        }
        return "; ".join([text, *(words for name, words in parts.items() if name in self.asked)])


def _keys_of(kind: type, given: Any, where: str) -> dict[str, Any]:
    """What a file says of a dataclass; InputError for what is no mapping of its keys."""
    names = [each.name for each in fields(kind)]
    if given is not None and not isinstance(given, Mapping):
        raise InputError(f"{where}: must be a mapping of {', '.join(names)}, got {given!r}")
    unknown = [name for name in given or {} if name not in names]
    if unknown:
        raise InputError(f"{where}: no key {unknown[0]!r}{did_you_mean(str(unknown[0]), names)}")
    return dict(given or {})


AS_RECORDED = Advantage()
