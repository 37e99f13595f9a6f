"""Distillation: one network that answers, in one pass and for any omega of a range, as guidance does in two.

Each step: a batch of scenes, one omega for each, a run of the guided sampler from fresh noise; at every state that run
visits, the distilled network is regressed on the guided prediction, in the backbone's own parameterisation. No score
and no human future is read. What the network is, is in `dipole_vla.policy.distilled`.

Omegas here are the policy's; the network is asked at those between the roles that act (`_acting`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from dipole_vla.backbones import weights
from dipole_vla.data.batches import batches, start_noise
from dipole_vla.data.tables import SceneTable
from dipole_vla.guidance import Role, guide, guided_denoiser
from dipole_vla.objective import per_sample_loss, rule_named
from dipole_vla.policy import AdapterPair, Context, GuidedPolicy
from dipole_vla.policy.distilled import DistilledPair
from dipole_vla.progress import bar
from dipole_vla.scoring import Scorer, require_sampling, score_plans
from dipole_vla.solvers import solve
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.option_checks import check_range
from navsim_adapter.foundation.statistics import LogIntervals

PROGRESS = "progress.safetensors"
SAVE_EVERY = 50  # steps
KEEP_BYTES = 2e9  # encoded scenes kept in memory, at most
PLANS = 4  # per held-out scene, in the report

T = TypeVar("T", float, Tensor)


@dataclass(frozen=True)
class Distillation:
    """Numbers of the training; meanings as the options of `dipole-vla export`."""

    highest: float = 4.0
    rank: int | None = None
    steps: int = 400
    batch_size: int = 8
    lr: float = 1e-3
    held_out: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise InputError(f"--held_out: must be between 0 and 1, got {self.held_out}")
        check_range("--steps", self.steps, 1)
        check_range("--batch_size", self.batch_size, 1)
        check_range("--rank", self.rank, 1)
        for name, value in (("lr", self.lr), ("highest", self.highest)):
            if not 0 < value < math.inf:
                raise InputError(f"--{name}: must be > 0 and finite, got {value}")


def distil(
    policy: GuidedPolicy,
    pair: AdapterPair,
    out: Path,
    training: Distillation,
    scenes: Path,
    sensors: Path | None = None,
    scorer: Scorer | None = None,
) -> dict[str, Any]:
    """Give `policy` its distilled network; returns the report's numbers. Resumes an interrupted run."""
    if policy.guidance.shaped:
        raise InputError(
            f"distil: guidance.{policy.guidance.shaped[0]}: makes omega change from step to step, which one network "
            "for each omega cannot follow; distil a policy without it"
        )
    negative = rule_named(policy.guidance.rule).negative_role
    distilled = DistilledPair(pair, _acting(policy, training.highest), training.rank, negative)
    if scorer is not None:
        require_sampling(scorer, policy.backbone.sampling)
    table = SceneTable(scenes, sensors)
    inside, outside = held_out(table.tokens, training.held_out)
    encoded = _Encoded(policy, table)
    pair.backbone.requires_grad_(False)
    _train(policy, distilled, encoded, inside, training, out / PROGRESS)
    policy.distilled = None
    omegas = sorted({0.5, 1.0, 2.0, training.highest, policy.guidance.omega})
    omegas = [omega for omega in omegas if _acting(policy, omega) not in (0.0, -1.0)]  # the roles themselves
    fidelity = [_fidelity(policy, distilled, encoded, outside, omega, training.seed) for omega in omegas]
    about: dict[str, Any] = {"training": training.__dict__, "held_out_scenes": len(outside), "fidelity": fidelity}
    if scorer is not None:
        about["score"] = _score(policy, distilled, encoded, outside, scorer, training.seed)
    policy.distilled = distilled
    (out / PROGRESS).unlink(missing_ok=True)
    return about


def held_out(tokens: Sequence[str], share: float) -> tuple[list[int], list[int]]:
    """Positions to train on and positions to report on, decided by the token alone; both are non-empty."""
    draws = [int.from_bytes(hashlib.sha256(token.encode()).digest()[:4], "big") / 2**32 for token in tokens]
    order = sorted(range(len(tokens)), key=draws.__getitem__)
    count = max(1, round(share * len(tokens)))
    if count >= len(tokens):
        raise InputError(f"--scenes: {len(tokens)} scenes are too few to hold some out; give more")
    return sorted(order[count:]), sorted(order[:count])


def guided_states(
    policy: GuidedPolicy, encoded: Context, omega: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(x_t, t, guided prediction) at every guided step of one run, rows of a scene together.

    encoded: of B scenes. omega: (B,). noise: (B, horizon, dim). Returns (B*S, horizon, dim), (B*S,), (B*S, ...).
    """
    pair, backbone = policy.pair, policy.backbone
    assert isinstance(pair, AdapterPair)
    roles: tuple[Role, Role] = ("positive", rule_named(policy.guidance.rule).negative_role)
    omega = _acting(policy, omega)
    with torch.no_grad():
        prepared = pair.prepare_both(dict.fromkeys(roles, encoded), roles)
        alone = prepared.part(0, len(omega))
        visited: list[tuple[Tensor, Tensor, Tensor]] = []

        def predict_guided(x_t: Tensor, t: Tensor) -> Tensor:
            output = guide(*pair.denoise_both(prepared, x_t, t, roles), omega)
            visited.append((x_t, t, output))
            return output

        denoise = guided_denoiser(
            lambda x_t, t, role: pair.denoise(alone, x_t, t, "positive"),
            backbone.schedule,
            backbone.prediction,
            omega,
            policy.guidance,
            roles[1],
            predict_guided=predict_guided,
        )
        spec = backbone.solver
        spec = replace(spec, clamp=policy.guidance.clamp, clamp_at="estimate") if policy.guidance.clamp else spec
        solve(spec, backbone.schedule, denoise, noise)
    x_t, t, wanted = (torch.stack(parts, 1).flatten(0, 1) for parts in zip(*visited))
    return x_t, t, wanted


def _acting(policy: GuidedPolicy, omega: T) -> T:
    """The policy's omega between the roles that act: twice as much where the negative is a mirror image."""
    return omega * rule_named(policy.guidance.rule).greed


class _Encoded:
    """Scenes by position, encoded; kept in memory as long as they are small in all."""

    def __init__(self, policy: GuidedPolicy, table: SceneTable) -> None:
        self.policy, self.table = policy, table
        self._kept: dict[int, Context] = {}
        self._bytes = 0

    def __call__(self, positions: Sequence[int]) -> Context:
        found = {position: self._kept[position] for position in positions if position in self._kept}
        missing = [position for position in dict.fromkeys(positions) if position not in found]
        if missing:
            batch = next(batches(self.table, missing, self.policy.processor, len(missing), self.policy.device))
            with torch.no_grad():
                context = self.policy.encode(batch.observation).encoded(None)
            for index, position in enumerate(missing):
                found[position] = context.rows(torch.tensor([index], device=self.policy.device))
                size = sum(tensor.nbytes for tensor in found[position].tensors.values())
                if self._bytes + size <= KEEP_BYTES:
                    self._kept[position] = found[position]
                    self._bytes += size
        rows = [found[position].tensors for position in positions]
        return Context({name: torch.cat([row[name] for row in rows]) for name in rows[0]})


def _train(
    policy: GuidedPolicy,
    distilled: DistilledPair,
    encoded: _Encoded,
    positions: list[int],
    how: Distillation,
    saved: Path,
) -> None:
    distilled.corrections.requires_grad_(True)
    optimiser = torch.optim.AdamW(distilled.parameters(), lr=how.lr, weight_decay=0.0)
    first = _resume(distilled, optimiser, saved)
    mask = policy.backbone.action.mask().to(policy.device)
    with bar("distil", how.steps) as progress:
        progress.advance(first)
        for step in range(first, how.steps):
            generator = torch.Generator().manual_seed(how.seed * 1_000_003 + step)
            chosen = torch.randint(len(positions), (how.batch_size,), generator=generator).tolist()
            omega = (torch.rand(how.batch_size, generator=generator) * how.highest).to(policy.device)
            noise = torch.randn(how.batch_size, *policy.noise_shape, generator=generator).to(policy.device)
            context = encoded([positions[index] for index in chosen])
            x_t, t, wanted = guided_states(policy, context, omega, noise)
            network = distilled.at(_acting(policy, omega))
            loss = per_sample_loss(network.denoise(network.prepare(context), x_t, t), wanted, mask).mean()
            value = loss.item()
            if not math.isfinite(value):
                raise InputError(f"distil, step {step}: the loss is {value}; lower --lr or --highest")
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(distilled.parameters(), 1.0)
            for group in optimiser.param_groups:
                group["lr"] = how.lr * (1 - step / how.steps)
            optimiser.step()
            progress.advance(note=f"loss {value:.3g}")
            if (step + 1) % SAVE_EVERY == 0 and step + 1 < how.steps:
                _save(distilled, optimiser, step + 1, saved)
    distilled.corrections.requires_grad_(False)


def _save(distilled: DistilledPair, optimiser: torch.optim.Optimizer, step: int, path: Path) -> None:
    state = {"step": torch.tensor(step)} | {f"net.{name}": tensor for name, tensor in distilled.state().items()}
    for index, parameter in enumerate(distilled.parameters()):
        moments = optimiser.state[parameter]
        state |= {f"adam.{index}.{key}": moments[key] for key in ("exp_avg", "exp_avg_sq")}
    weights.write_tensors(path, state)


def _resume(distilled: DistilledPair, optimiser: torch.optim.Optimizer, path: Path) -> int:
    """Put back what `_save` wrote, if anything; returns the step to go on with."""
    if not path.is_file():
        return 0
    state = weights.read_tensors(path)
    step = int(state["step"])
    own = {name.removeprefix("net."): tensor for name, tensor in state.items() if name.startswith("net.")}
    distilled.load_state(own, str(path))
    for index, parameter in enumerate(distilled.parameters()):
        moments = {key: state[f"adam.{index}.{key}"].to(parameter) for key in ("exp_avg", "exp_avg_sq")}
        optimiser.state[parameter] = {"step": torch.tensor(float(step)), **moments}
    return step


def _fidelity(
    policy: GuidedPolicy, distilled: DistilledPair, encoded: _Encoded, positions: list[int], omega: float, seed: int
) -> dict[str, float]:
    """How near the distilled network, and the merge by arithmetic, are to guidance at one omega.

    Losses against the guided prediction at the states that guided sampling visits, and root mean square distances (m)
    of plans from the same noise; `moved` is the distance of the guided plans from the positive policy's.
    """
    merge = DistilledPair(distilled.pair, distilled.highest, 1, distilled.negative)  # without correction
    zero = DistilledPair(distilled.pair, distilled.highest, 1, distilled.negative)
    mask = policy.backbone.action.mask().to(policy.device)
    acting = _acting(policy, omega)
    sums: dict[str, float] = {}
    for start in range(0, len(positions), 32):
        some = positions[start : start + 32]
        context = encoded(some)
        noise = start_noise([encoded.table.tokens[i] for i in some], PLANS, policy.noise_shape, seed).to(policy.device)
        omegas = torch.full((len(some),), omega, device=policy.device)
        x_t, t, wanted = guided_states(policy, context, omegas, noise[:, 0])
        plans = {"guided": _plans(policy, None, context, omega, noise)}
        plans["positive"] = _plans(policy, None, context, 0.0, noise)
        networks = {"distilled": (distilled, acting), "arithmetic": (merge, acting), "positive": (zero, 0.0)}
        for name, (network, at) in networks.items():
            with torch.no_grad():
                fixed = network.at(at)
                output = fixed.denoise(fixed.prepare(context), x_t, t)
            loss = per_sample_loss(output, wanted, mask).unflatten(0, (len(some), -1)).mean(1).sum()
            sums[f"{name}_loss"] = sums.get(f"{name}_loss", 0.0) + float(loss)
            if name not in plans:
                plans[name] = _plans(policy, network, context, omega, noise)
            apart = (plans[name] - plans["guided"])[..., :2].pow(2).sum(-1).mean((1, 2)).sum()
            sums[f"{name}_m"] = sums.get(f"{name}_m", 0.0) + float(apart)
    means = {name: value / len(positions) for name, value in sums.items()}
    found = {name: math.sqrt(value) if name.endswith("_m") else value for name, value in means.items()}
    return {"omega": omega, **found, "moved_m": found["positive_m"]}


def _plans(
    policy: GuidedPolicy, network: DistilledPair | None, context: Context, omega: float, noise: Tensor
) -> Tensor:
    """(B, N, horizon, 3) for scenes encoded already."""
    actor = replace(policy, distilled=network)
    return actor.sample(actor.encoded(context), omega=omega, candidates=noise.shape[1], noise=noise)


def _score(
    policy: GuidedPolicy, distilled: DistilledPair, encoded: _Encoded, positions: list[int], scorer: Scorer, seed: int
) -> dict[str, Any]:
    """Mean score x 100 of guided and distilled plans from the same noise, and their paired difference by log."""
    omega, table = policy.guidance.omega, encoded.table
    drawn = []
    for start in range(0, len(positions), 32):
        some = positions[start : start + 32]
        noise = start_noise([table.tokens[i] for i in some], PLANS, policy.noise_shape, seed).to(policy.device)
        context = encoded(some)
        both = [_plans(policy, network, context, omega, noise) for network in (None, distilled)]
        drawn.append(torch.cat(both, dim=1).cpu().double().numpy())
    apart = policy.backbone.sampling.interval
    scores = score_plans(scorer, [table.tokens[i] for i in positions], np.concatenate(drawn), apart)
    points = 100 * np.asarray(scores.score)
    guided, alone = points[:, :PLANS].mean(1), points[:, PLANS:].mean(1)
    interval = LogIntervals([table.log_names[i] for i in positions]).interval(alone - guided)
    return {
        "metric": scores.metric,
        "omega": omega,
        "scenes": len(positions),
        "guided": float(guided.mean()),
        "distilled": float(alone.mean()),
        "difference": float((alone - guided).mean()),
        "difference_ci95": None if interval is None else list(interval),
    }
