"""What a recipe of `dipole-vla rl` sets. Apart from the rest, so that recipes are checked before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.option_checks import check_range


@dataclass(frozen=True)
class LearnerConfig:
    """Everything that changes the numbers of an update.

    Args:
        hidden: width of every network.
        layers: hidden layers of every network.
        heads: policy networks to train, names of dipole_vla.rl.heads.HEADS.
        beta: inverse temperature on the advantage after scaling; larger is closer to a hard split.
        scale_advantage: divide the advantage by its running standard deviation, so that beta keeps its meaning
            while the critic grows.
        shift: k of the weights, functions of beta G + k; above 0 more of the data count as good.
        expectile: V is this expectile of Q; 0.9 in the offline-RL code line, 0.5 the mean.
        discount: gamma.
        n_step: rewards summed before the bootstrap, by the critic that judges candidates.
        weigh_n_step: the same of a second critic, which weighs the samples; null: the one that judges weighs, too.
        polyak: part of the way the target networks move per update.
        ensemble: Q networks; the least one counts.
        lr: Adam's learning rate for every network.
        lr_decay: share of all updates, at the end of the run, over which lr falls linearly to zero.
        precision: of the matrix products while training, but for the critic's last layer. bfloat16 pays where the
            processor has it (AVX512_BF16, AMX, a GPU) and is slow elsewhere; weights, Adam and acting are float32.
    """

    hidden: int = 256
    layers: int = 3
    heads: list[str] = field(
        default_factory=lambda: ["bc", "exponential", "exponential_x3", "indicator", "positive", "negative"]
    )
    beta: float = 2.0
    scale_advantage: bool = True
    shift: float = 0.0
    expectile: float = 0.9
    discount: float = 0.99
    n_step: int = 1
    weigh_n_step: int | None = None
    polyak: float = 0.005
    ensemble: int = 2
    lr: float = 3e-4
    lr_decay: float = 0.0
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise InputError(f"learner.beta: must be > 0, got {self.beta}; larger values are closer to a hard split")
        if not 0 < self.discount <= 1:
            raise InputError(f"learner.discount: must be in (0, 1], got {self.discount}")
        for name, steps in (("n_step", self.n_step), ("weigh_n_step", self.weigh_n_step)):
            if steps is not None and steps < 1:
                raise InputError(f"learner.{name}: must be >= 1, got {steps}")
        check_range("learner.shift", self.shift)
        if not 0 <= self.lr_decay <= 1:
            raise InputError(f"learner.lr_decay: must be in [0, 1], got {self.lr_decay}; 0 keeps lr as it is")
        from dipole_vla.rl.heads import heads_named  # needs torch

        heads_named(self.heads)


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, and when.

    Args:
        every: updates between small evaluations, which show the learning curve; 0 for none.
        curve: cells of the small evaluations, as method:omega:candidates.
        curve_episodes: episodes per cell of a small evaluation.
        methods: methods of the full table at the end; names of dipole_vla.rl.heads.METHODS.
        omega: greed values, for methods that have the dial; the others are measured at 0.
        candidates: N values; the critic keeps the best of N.
        episodes: episodes per cell of the full table.
        fleet: environments stepped side by side; more than `episodes` of them serve several cells at once.
        seed: of the episodes and the start noise; the same for every method and training seed.
    """

    every: int = 0
    curve: list[str] = field(default_factory=lambda: ["bc:0:1", "bc:0:32", "dipole:1:32"])
    curve_episodes: int = 10
    methods: list[str] = field(default_factory=lambda: ["bc", "exponential", "indicator", "positive_only", "dipole"])
    omega: list[float] = field(default_factory=lambda: [0.0, 0.5, 1.0, 1.5, 2.0, 4.0])
    candidates: list[int] = field(default_factory=lambda: [1, 4, 32])
    episodes: int = 50
    fleet: int = 50
    seed: int = 0


@dataclass(frozen=True)
class OnlineConfig:
    """Rounds after the offline updates; 0 rounds is offline only.

    Args:
        rounds: number of rounds; each plays episodes with the current policy and then trains.
        episodes: episodes per round and seed.
        updates: updates per round.
        policy: who plays, as method:omega:candidates.
        window: rounds of replay kept in the batches, null for all. With the offline share it says what the reference
            policy mu is: the behaviour that the batches are drawn from.
        offline_share: part of each batch from the offline data; null: in proportion to the sizes.
    """

    rounds: int = 0
    episodes: int = 5
    updates: int = 1000
    policy: str = "dipole:1:32"
    window: int | None = None
    offline_share: float | None = None
