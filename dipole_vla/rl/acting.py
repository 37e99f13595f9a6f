"""Trained seeds as policies: guided sampling of N candidate actions, of which the critic keeps the best.

Guidance and solver are the driving code's. Start noise is drawn per (episode, step) for the largest N and cut, so
every method, omega and N sees the same noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dipole_vla.guidance import Combination, Role, guided_denoiser
from dipole_vla.rl.heads import Method
from dipole_vla.rl.learner import PREDICTION, SCHEDULE, Learner
from dipole_vla.rl.stack import StackedMLP
from dipole_vla.solvers import SolverSpec, solve

SOLVER = SolverSpec("euler", steps=10, clamp=(-1.0, 1.0))


def sample(
    networks: Mapping[Role, StackedMLP],
    observation: Tensor,
    noise: Tensor,
    omega: float | Tensor,
    solver: SolverSpec = SOLVER,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """(stack * rows, a) actions of every network of a stack on its own rows.

    networks: one stack per role that omega needs; any policy may take the negative place (CFGRL: bc).
    observation: (stack, rows, d), standardised. noise: (stack * rows, a). omega: a number or (stack * rows,).
    """
    shape = observation.shape[:2]

    def predict(x_t: Tensor, t: Tensor, role: Role) -> Tensor:
        inputs = torch.cat([observation, x_t.unflatten(0, shape), t.to(x_t.dtype).reshape(*shape, 1)], -1)
        return networks[role](inputs).flatten(0, 1)

    denoise = guided_denoiser(predict, SCHEDULE, PREDICTION, omega, Combination(*interval))
    return solve(solver, SCHEDULE, denoise, noise)


@dataclass(frozen=True)
class Player:
    """One row of a table at play: a training seed's networks, how they are combined, and among how many it chooses."""

    seed_number: int
    method: Method
    omega: float = 0.0
    candidates: int = 1


class Panel:
    """Players with the same number of candidates, acting together: one stack of their networks."""

    def __init__(self, learner: Learner, players: Sequence[Player], solver: SolverSpec = SOLVER):
        names, ensemble = learner.config.heads, learner.critic.ensemble
        stack = learner.policies.networks
        self.learner, self.solver, self.players = learner, solver, list(players)
        self.candidates = players[0].candidates
        self.omega = torch.tensor([player.omega for player in players])

        def chosen(heads: Sequence[str]) -> StackedMLP:
            return stack.select([p.seed_number * len(names) + names.index(head) for p, head in zip(players, heads)])

        self._networks: dict[Role, StackedMLP] = {
            "positive": chosen([player.method.positive for player in players]),
            "negative": chosen([player.method.negative or player.method.positive for player in players]),
        }
        members = [player.seed_number * ensemble + member for player in players for member in range(ensemble)]
        self._q = learner.critic.target_q.select(members)

    @torch.inference_mode()
    def act(self, observation: Tensor, noise: Tensor) -> Tensor:
        """(players, rows, a) from raw observation (players, rows, d) and noise (players, rows, N, a).

        The best of N by the least target Q.
        """
        players, rows, candidates, size = noise.shape
        observation = self.learner.standardise(observation).repeat_interleave(candidates, 1)
        omega = self.omega.repeat_interleave(rows * candidates)
        flat = sample(self._networks, observation, noise.reshape(-1, size), omega, self.solver)
        actions = flat.reshape(players, rows, candidates, size)
        if candidates == 1:
            return actions[:, :, 0]
        q = self._q(torch.cat([observation, actions.flatten(1, 2)], -1)).reshape(players, -1, rows, candidates)
        best = q.amin(1).argmax(-1)[..., None, None].expand(players, rows, 1, size)
        return actions.gather(2, best)[:, :, 0]


def start_noise(seed: int, episodes: np.ndarray, step: int, candidates: int, size: int, most: int) -> Tensor:
    """(players, rows, candidates, a): a function of (seed, episode, step), the first `candidates` of `most` draws."""
    drawn: dict[int, np.ndarray] = {}
    for episode in np.unique(episodes).tolist():
        generator = np.random.Generator(np.random.SFC64([seed, episode, step]))
        drawn[episode] = generator.standard_normal((most, size), dtype=np.float32)[:candidates]
    flat = np.stack([drawn[episode] for episode in episodes.reshape(-1).tolist()])
    return torch.from_numpy(flat.reshape(*episodes.shape, candidates, size))
