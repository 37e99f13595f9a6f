"""Implicit Q-learning for many seeds at once: V is an expectile of Q, Q bootstraps on V, no policy in the loop.

The multi-step sibling of `policy.critic`, with the same G = least Q - V and the same expectile loss. Returns over n
steps come from the data (`dipole_vla.rl.transitions`): a batch carries the discount of its own bootstrap.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dipole_vla.policy.critic import expectile_loss
from dipole_vla.rl.stack import StackedMLP
from navsim_adapter.foundation.errors import InputError


class IQLCritic(nn.Module):
    """An ensemble of Q networks with slow targets, and a V network, per seed; layer norm in all."""

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        seeds: Sequence[int],
        hidden: int = 256,
        layers: int = 3,
        ensemble: int = 2,
        expectile: float = 0.9,
        polyak: float = 0.005,
        precision: torch.dtype = torch.float32,
    ):
        super().__init__()
        if not 0 < expectile < 1:
            raise InputError(f"learner.expectile: must be in (0, 1), got {expectile}; 0.5 is the mean")
        if not 0 < polyak <= 1:
            raise InputError(f"learner.polyak: must be in (0, 1], got {polyak}; 0.005 is usual")
        self.seeds, self.ensemble, self.expectile, self.polyak = len(seeds), ensemble, expectile, polyak
        q_seeds = [_seed(seed, 1 + member) for seed in seeds for member in range(ensemble)]
        q_sizes = [observation_dim + action_dim, *[hidden] * layers, 1]
        v_sizes = [observation_dim, *[hidden] * layers, 1]
        self.q = StackedMLP(q_sizes, q_seeds, True, precision)
        self.target_q = StackedMLP(q_sizes, q_seeds, True, precision).requires_grad_(False)
        self.v = StackedMLP(v_sizes, [_seed(seed, 0) for seed in seeds], True, precision)

    def q_values(self, networks: StackedMLP, observation: Tensor, action: Tensor) -> Tensor:
        """(seeds, ensemble, rows) from observation (seeds, rows, d) and action (seeds, rows, a)."""
        values = networks(torch.cat([observation, action], -1)).squeeze(-1)
        return values.unflatten(0, (self.seeds, self.ensemble))

    def least_q(self, observation: Tensor, action: Tensor) -> Tensor:
        """(seeds, rows) least target Q: what candidates are ranked by."""
        return self.q_values(self.target_q, observation, action).amin(1)

    def value(self, observation: Tensor) -> Tensor:
        """(seeds, rows)."""
        return self.v(observation).squeeze(-1)

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(loss summed over seeds and networks, advantage (seeds, rows) without gradient, scalars (seeds,)).

        batch: observation, next_observation (seeds, rows, d); action (seeds, rows, a); reward, discount (seeds,
        rows), the discount of the bootstrap: gamma^n, 0 after a terminal state.
        """
        with torch.no_grad():
            wanted = batch["reward"] + batch["discount"] * self.value(batch["next_observation"])
            least = self.least_q(batch["observation"], batch["action"])
        q = self.q_values(self.q, batch["observation"], batch["action"])
        v = self.value(batch["observation"])
        q_loss = (q - wanted[:, None]).pow(2).mean(-1)
        v_loss = expectile_loss(least - v, self.expectile).mean(-1)
        advantage = least - v.detach()
        scalars = {"loss_q": q_loss.detach().mean(1), "loss_v": v_loss.detach(), "v": v.detach().mean(1)}
        return q_loss.sum() + v_loss.sum(), advantage, scalars

    @torch.no_grad()
    def update_targets(self) -> None:
        """Move the target networks by `polyak` towards the networks."""
        torch._foreach_lerp_(list(self.target_q.parameters()), list(self.q.parameters()), self.polyak)


def _seed(seed: int, network: int) -> int:
    return seed * 1_000_003 + 101 * network + 7
