"""What one update trains: an IQL critic and every policy head, for every seed, on the same batch.

All methods share the critic, the data order, the noise and the budget, so they differ by their weighting rule alone.
The policies are flows with the driving code's path, target and loss; an action is a plan of horizon one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from dipole_vla.objective import per_sample_loss
from dipole_vla.paths import LinearFlow, Prediction, interpolate, target
from dipole_vla.rl.heads import Head, heads_named, weights
from dipole_vla.rl.iql import IQLCritic
from dipole_vla.rl.stack import StackedMLP
from navsim_adapter.foundation.errors import InputError

SCHEDULE = LinearFlow(noise_at=0)
PREDICTION: Prediction = "velocity"


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
        expectile: V is this expectile of Q; 0.9 in the offline-RL code line, 0.5 the mean.
        discount: gamma.
        n_step: rewards summed before the bootstrap.
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
    expectile: float = 0.9
    discount: float = 0.99
    n_step: int = 1
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
        if self.n_step < 1:
            raise InputError(f"learner.n_step: must be >= 1, got {self.n_step}")
        if not 0 <= self.lr_decay <= 1:
            raise InputError(f"learner.lr_decay: must be in [0, 1], got {self.lr_decay}; 0 keeps lr as it is")
        heads_named(self.heads)


class Policies(nn.Module):
    """Flow policies of every seed and head: one stack, seed-major."""

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        seeds: Sequence[int],
        heads: Sequence[Head],
        hidden: int,
        layers: int,
        precision: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.heads = list(heads)
        each = [seed * 1_000_003 + 13 * number + 500_009 for seed in seeds for number in range(len(self.heads))]
        sizes = [observation_dim + action_dim + 1, *[hidden] * layers, action_dim]
        # velocities are of order one; the critic's returns of a hundred must not be rounded to halves
        self.networks = StackedMLP(sizes, each, precision=precision, output_precision=precision)

    def losses(self, observation: Tensor, action: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """(seeds, heads, rows) native loss of each sample; observation (seeds, rows, d), t (seeds, rows)."""
        seeds, rows = t.shape
        x0, noise, t = action.flatten(0, 1), noise.flatten(0, 1), t.flatten()
        x_t = interpolate(SCHEDULE, x0, noise, t)
        wanted = target(PREDICTION, SCHEDULE, x0, noise, t).unflatten(0, (seeds, 1, rows))
        inputs = torch.cat([observation.flatten(0, 1), x_t, t[:, None]], -1).unflatten(0, (seeds, rows))
        outputs = self.networks(inputs).unflatten(0, (seeds, len(self.heads)))
        wanted = wanted.expand_as(outputs)
        return per_sample_loss(outputs.flatten(0, 2), wanted.flatten(0, 2)).unflatten(0, outputs.shape[:3])

    def loss(
        self, observation: Tensor, action: Tensor, advantage: Tensor, noise: Tensor, t: Tensor, beta: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted losses of every head (Eq. 9 for the dichotomous pair), summed over seeds and heads."""
        weight = weights(self.heads, advantage, beta)
        weighted = (weight * self.losses(observation, action, noise, t)).mean(-1)
        return weighted.sum(), {"weighted": weighted.detach(), "weight": weight.detach()}


class Learner(nn.Module):
    """Critic and policies of all seeds, with the input statistics and the running spread of the advantage."""

    observation_mean: Tensor
    observation_std: Tensor
    advantage_std: Tensor

    def __init__(self, observation_dim: int, action_dim: int, seeds: Sequence[int], config: LearnerConfig):
        super().__init__()
        self.config, self.seeds, self.action_dim = config, list(seeds), action_dim
        precision = getattr(torch, config.precision)
        self.critic = IQLCritic(
            observation_dim,
            action_dim,
            seeds,
            config.hidden,
            config.layers,
            config.ensemble,
            config.expectile,
            config.polyak,
            precision,
        )
        heads = heads_named(config.heads)
        self.policies = Policies(observation_dim, action_dim, seeds, heads, config.hidden, config.layers, precision)
        self.register_buffer("observation_mean", torch.zeros(observation_dim))
        self.register_buffer("observation_std", torch.ones(observation_dim))
        self.register_buffer("advantage_std", torch.zeros(len(seeds)))

    @torch.no_grad()
    def fit_statistics(self, observation: Tensor) -> None:
        """Set the input standardisation from the training observations (rows, d)."""
        self.observation_mean.copy_(observation.mean(0))
        self.observation_std.copy_(observation.std(0, correction=0).clamp_min(1e-2))

    def standardise(self, observation: Tensor) -> Tensor:
        return (observation - self.observation_mean) / self.observation_std

    def loss(self, batch: dict[str, Tensor], noise: Tensor, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Everything one update descends; see `IQLCritic.loss` for the batch. noise: like action; t: (seeds, rows)."""
        observation = self.standardise(batch["observation"])
        standard = {
            **batch,
            "observation": observation,
            "next_observation": self.standardise(batch["next_observation"]),
        }
        critic_loss, advantage, scalars = self.critic.loss(standard)
        scaled = advantage / self._spread(advantage)
        if not self.policies.heads:
            return critic_loss, scalars
        policy_loss, of_heads = self.policies.loss(observation, batch["action"], scaled, noise, t, self.config.beta)
        return critic_loss + policy_loss, {**scalars, "advantage_std": self.advantage_std, **of_heads}

    def after_step(self) -> None:
        self.critic.update_targets()

    @torch.no_grad()
    def _spread(self, advantage: Tensor) -> Tensor:
        """(seeds, 1) running standard deviation of the advantage (about 100 updates); 1 where not asked for."""
        std = advantage.std(1, correction=0).clamp_min(1e-3)
        self.advantage_std.copy_(torch.where(self.advantage_std == 0, std, self.advantage_std.lerp(std, 0.01)))
        return self.advantage_std[:, None] if self.config.scale_advantage else torch.ones_like(std)[:, None]
