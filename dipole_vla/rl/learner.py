"""What one update trains: an IQL critic and every policy head, for every seed, on the same batch.

All methods share the critic, the data order, the noise and the budget, so they differ by their weighting rule alone.
Where asked (`weigh_n_step`), the critic that judges candidates and the one that weighs the samples are two.
The policies are flows with the driving code's path, target and loss; an action is a plan of horizon one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dipole_vla.objective import per_sample_loss
from dipole_vla.paths import LinearFlow, Prediction, interpolate, target
from dipole_vla.rl.config import LearnerConfig
from dipole_vla.rl.heads import Head, heads_named, weights
from dipole_vla.rl.iql import IQLCritic
from dipole_vla.rl.stack import StackedMLP
from dipole_vla.rl.transitions import RETURNS, WEIGHING

SCHEDULE = LinearFlow(noise_at=0)
PREDICTION: Prediction = "velocity"


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
        self,
        observation: Tensor,
        action: Tensor,
        advantage: Tensor,
        noise: Tensor,
        t: Tensor,
        beta: float,
        shift: float = 0.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted losses of every head (Eq. 9 for the dichotomous pair), summed over seeds and heads."""
        weight = weights(self.heads, advantage, beta, shift)
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
        sizes = observation_dim, action_dim, seeds, config.hidden, config.layers, config.ensemble
        self.critic, *others = (
            IQLCritic(*sizes, config.expectile, config.polyak, precision)
            for _ in range(1 if config.weigh_n_step is None else 2)
        )
        self.weigher = others[0] if others else None
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
        critic_loss, advantage, scalars = self._critic_loss(self.critic, batch, observation)
        if self.weigher is not None:
            loss, advantage, of_weigher = self._critic_loss(self.weigher, batch, observation, WEIGHING)
            critic_loss, scalars = critic_loss + loss, scalars | {f"{WEIGHING}{k}": v for k, v in of_weigher.items()}
        scaled = advantage / self._spread(advantage)
        if not self.policies.heads:
            return critic_loss, scalars
        beta, shift = self.config.beta, self.config.shift
        policy_loss, of_heads = self.policies.loss(observation, batch["action"], scaled, noise, t, beta, shift)
        return critic_loss + policy_loss, {**scalars, "advantage_std": self.advantage_std, **of_heads}

    def _critic_loss(
        self, critic: IQLCritic, batch: dict[str, Tensor], observation: Tensor, prefix: str = ""
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        returns = {name: batch[prefix + name] for name in RETURNS}
        following = self.standardise(returns["next_observation"])
        return critic.loss({**batch, **returns, "observation": observation, "next_observation": following})

    def after_step(self) -> None:
        for critic in filter(None, (self.critic, self.weigher)):
            critic.update_targets()

    @torch.no_grad()
    def _spread(self, advantage: Tensor) -> Tensor:
        """(seeds, 1) running standard deviation of the advantage (about 100 updates); 1 where not asked for."""
        std = advantage.std(1, correction=0).clamp_min(1e-3)
        self.advantage_std.copy_(torch.where(self.advantage_std == 0, std, self.advantage_std.lerp(std, 0.01)))
        return self.advantage_std[:, None] if self.config.scale_advantage else torch.ones_like(std)[:, None]
