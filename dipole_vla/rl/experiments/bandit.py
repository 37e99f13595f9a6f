"""A contextual bandit with known gains, and the training of many flow policies on it at once.

State: two standard normals. Behaviour: one of eight modes on a ring, chosen uniformly, with a little spread. The gain
of an action is the cosine between its direction and the state's, less a penalty away from the modes. Its mean under the
behaviour is near zero and its standard deviation 0.8. What a policy does with it can be read off without a simulator:
mean gain, share of actions off the data's support, and how many modes it keeps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dipole_vla.objective import RULES, effective_fraction
from dipole_vla.rl.acting import sample
from dipole_vla.rl.heads import Head
from dipole_vla.rl.learner import Policies
from dipole_vla.rl.stack import per_network_norms
from dipole_vla.solvers import SolverSpec

MODES, RADIUS, SPREAD, AMPLITUDE = 8, 1.0, 0.1, 0.8 * math.sqrt(2)
OFF_SUPPORT = 0.35  # farther than this from every mode is off the data: 0.2 % of the behaviour itself
SOLVER = SolverSpec("euler", steps=16)
LR = 5e-3  # small networks; 1e-3 leaves imitation itself off the modes at this number of updates


@dataclass(frozen=True)
class BanditData:
    """state (n, 2), action (n, 2), gain (n,) as observed, with noise."""

    state: Tensor
    action: Tensor
    gain: Tensor


def modes() -> Tensor:
    """(8, 2) centres."""
    angle = torch.arange(MODES) * (2 * math.pi / MODES)
    return RADIUS * torch.stack([angle.cos(), angle.sin()], -1)


def draw(rows: int, generator: torch.Generator, noise: float = 0.3) -> BanditData:
    """Behaviour data; noise: standard deviation of what is added to the true gain."""
    state = torch.randn(rows, 2, generator=generator)
    centre = modes()[torch.randint(MODES, (rows,), generator=generator)]
    action = centre + SPREAD * torch.randn(rows, 2, generator=generator)
    return BanditData(state, action, true_gain(state, action) + noise * torch.randn(rows, generator=generator))


def true_gain(state: Tensor, action: Tensor) -> Tensor:
    """(n,) G(s, a)."""
    direction = torch.nn.functional.cosine_similarity(state, action, dim=-1)
    return AMPLITUDE * direction - 3 * (distance_to_data(action) - OFF_SUPPORT).clamp_min(0)


def distance_to_data(action: Tensor) -> Tensor:
    """(n,) distance to the nearest mode."""
    return torch.cdist(action, modes()).amin(-1)


def pairs(betas: Sequence[float]) -> list[Head]:
    """Positive and negative head of each beta, in turn."""
    rule = RULES["dichotomous"]
    return [head for beta in betas for head in (Head(rule, "positive", beta), Head(rule, "negative", beta))]


@dataclass
class Training:
    """What a training of several heads showed, one row per logged update: (updates, heads)."""

    policies: Policies
    loss: Tensor
    gradient_norm: Tensor
    effective: Tensor

    def settled(self, what: Tensor) -> Tensor:
        """The second half of a record, where the fit is past its start."""
        return what[len(what) // 2 :]


def train(
    data: BanditData, heads: Sequence[Head], updates: int = 4000, seed: int = 0, batch_size: int = 256, hidden: int = 64
) -> Training:
    """Fit all heads on the same batches, noise and times; beta is each head's own scale."""
    policies = Policies(2, 2, [seed], heads, hidden, layers=2)
    optimizer = torch.optim.Adam(policies.parameters(), lr=LR, fused=True)
    generator = torch.Generator().manual_seed(seed)
    losses, norms, effective = [], [], []
    for update in range(updates):
        index = torch.randint(len(data.gain), (batch_size,), generator=generator)
        noise = torch.randn(1, batch_size, 2, generator=generator)
        t = torch.rand(1, batch_size, generator=generator)
        state, action, gain = (column[index][None] for column in (data.state, data.action, data.gain))
        loss, scalars = policies.loss(state, action, gain, noise, t, beta=1.0)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in optimizer.param_groups:  # to zero at the end, for a fit that samples well
            group["lr"] = LR * (1 - update / updates)
        optimizer.step()
        losses.append(scalars["weighted"][0])
        norms.append(per_network_norms(policies.networks))
        effective.append(torch.stack([effective_fraction(weight) for weight in scalars["weight"][0].double()]))
    return Training(policies, torch.stack(losses), torch.stack(norms), torch.stack(effective))


@dataclass(frozen=True)
class Behaviour:
    """What a policy does over test states: means over all samples."""

    gain: float
    off_support: float  # share of actions farther than OFF_SUPPORT from every mode
    modes_kept: float  # exp of the entropy over modes, per state, averaged: 1 to 8
    is_finite: bool = True


def behaviour(
    policies: Policies,
    positive: int,
    negative: int | None = None,
    omega: float = 0.0,
    state: Tensor | None = None,
    draws: int = 16,
    seed: int = 7,
    interval: tuple[float, float] = (0.0, 1.0),
    choose_among: int = 1,
) -> Behaviour:
    """Sample head `positive` (guided away from head `negative`) on test states and measure against the truth.

    choose_among: keep the best of N by a gain with noise 0.3, as an imperfect critic would.
    """
    generator = torch.Generator().manual_seed(seed)
    state = torch.randn(128, 2, generator=generator) if state is None else state
    action = actions(policies, positive, negative, omega, state, draws * choose_among, generator, interval)
    if not torch.isfinite(action).all():
        return Behaviour(float("nan"), float("nan"), float("nan"), False)
    wide = state[:, None].expand(len(state), draws * choose_among, 2)
    if choose_among > 1:
        seen = true_gain(wide.reshape(-1, 2), action.reshape(-1, 2)).reshape(len(state), draws, choose_among)
        best = (seen + 0.3 * torch.randn(seen.shape, generator=generator)).argmax(-1)
        split = action.reshape(len(state), draws, choose_among, 2)
        action = split.gather(2, best[..., None, None].expand(len(state), draws, 1, 2))[:, :, 0]
        wide = wide[:, :draws]
    flat = action.reshape(-1, 2)
    nearest = torch.cdist(flat, modes()).argmin(-1).reshape(len(state), draws)
    share = torch.nn.functional.one_hot(nearest, MODES).double().mean(1)
    entropy = -(share * share.clamp_min(1e-12).log()).sum(-1)
    return Behaviour(
        float(true_gain(wide.reshape(-1, 2), flat).mean()),
        float((distance_to_data(flat) > OFF_SUPPORT).double().mean()),
        float(entropy.exp().mean()),
    )


@torch.no_grad()
def actions(
    policies: Policies,
    positive: int,
    negative: int | None,
    omega: float,
    state: Tensor,
    draws: int,
    generator: torch.Generator,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """(states, draws, 2) samples."""
    networks = {"positive": policies.networks.select([positive])}
    if negative is not None:
        networks["negative"] = policies.networks.select([negative])
    wide = state.repeat_interleave(draws, 0)[None]
    noise = torch.randn(len(state) * draws, 2, generator=generator)
    flat = sample(networks, wide, noise, omega, SOLVER, interval)  # type: ignore[arg-type]
    return flat.reshape(len(state), draws, 2)
