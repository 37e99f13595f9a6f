"""DIPOLE on a network of your own: two adapters, the loss, guided sampling and saving, in a training loop of your own.

    dipole = Dipole(net, encode=..., denoise=..., schedule=LinearFlow(noise_at=1), prediction="velocity",
                    adapt=r"blocks\\.\\d+\\.(qkv|proj)", shape=(8, 7), beta=2.0)
    loss, scalars = dipole.loss(observation, action, group_relative(returns))
    plans = dipole.sample(observation, omega=1.0, candidates=8)

What a user gives is checked in `plugin_arguments`; what is computed is in `objective`, `guidance`, `solvers` and
`policy`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from dipole_vla.backbones.action import Action
from dipole_vla.backbones.base import Backbone, Context
from dipole_vla.backbones.own_network import DenoiseOwn, Encode
from dipole_vla.backbones.weights import float32_by_default
from dipole_vla.guidance import SIGNS, Omega, Role
from dipole_vla.objective import DenoiseRouted, OnRoleLoss, Routing, dichotomous_loss, rule_named
from dipole_vla.paths import Prediction, Schedule
from dipole_vla.plugin_arguments import (
    action_of,
    candidates_of,
    finite,
    one_of,
    own_network,
    positive,
    refuse_given,
    require,
    sample_weights,
    signs,
)
from dipole_vla.policy import AdapterPair, EncodedScenes, Guidance, GuidedPolicy
from dipole_vla.policy.arguments import whole
from dipole_vla.policy.separate import PairKind, make_pair
from dipole_vla.solvers import SolverSpec
from navsim_adapter.foundation.errors import InputError


@dataclass(frozen=True)
class Noised:
    """Candidates at their noise levels, scene by scene, `group` rows of each: what one training step looks at.

    x0, noise: (rows, *shape), x0 as the network means it. t, advantage, weight, sign: (rows,).
    """

    x0: Tensor
    noise: Tensor
    t: Tensor
    advantage: Tensor
    weight: Tensor | None
    group: int
    sign: Tensor | None = None


class Dipole(nn.Module):
    """A positive and a negative policy on one frozen network, which itself is the reference.

    A fresh Dipole is the network for every omega. Only the adapters require gradients, so an optimiser may be given
    all of `parameters()`.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        denoise: DenoiseOwn | None = None,
        encode: Encode | None = None,
        schedule: Schedule | None = None,
        prediction: Prediction | None = None,
        adapt: str | None = None,
        shape: tuple[int, ...] | None = None,
        action: Action | None = None,
        solver: SolverSpec | None = None,
        scope: Literal["head", "all"] = "head",
        beta: float = 1.0,
        rule: str = "dichotomous",
        shift: float = 0.0,
        routing: Routing = "both",
        pair: PairKind = "lora",
        rank: int = 32,
        alpha: float | None = None,
        draws: int = 1,
        seed: int = 0,
    ) -> None:
        """
        Args:
            net: a pretrained network that denoises actions; changed in place, and frozen from now on. A `Backbone`
                brings denoise, encode, schedule, prediction, adapt, action and solver itself.
            denoise: (network, tensors, x_t, t) -> prediction of x_t's shape; see `own_network.DenoiseOwn`.
            encode: (network, observation) -> named tensors; see `own_network.Encode`. Without it the observation is
                named tensors already.
            schedule, prediction: how the network was trained; prediction is "noise", "sample" or "velocity".
            adapt: regular expression over the whole names of the linear layers that get adapters.
            shape: of one action, e.g. (8, 7); the same as action=Plain(shape).
            action: what the network's numbers mean: `Plain`, or `Poses` (x, y, heading of the ego vehicle).
            solver: how the network is sampled; by default the schedule's usual one, in 10 steps.
            scope: head = `encode` runs no adapted layer, so one encoding serves both policies; all = it does, and
                runs once for each.
            beta: inverse temperature of the weight sigma(beta * advantage); larger is closer to a hard split.
            rule: weighting rule, a name of `objective.RULES`.
            shift: k in the weight sigma(beta * advantage + k); above 0 more samples count as good.
            routing: both = every sample to both adapters; bernoulli = to one, drawn by its weight, at half the cost.
            pair: lora = two adapters; separate = two copies of the outermost modules that `adapt` matches.
            rank, alpha: of the adapters; alpha None is the rank.
            draws: noise levels per candidate and step.
            seed: of the adapters' first matrices.

        InputError names the argument that cannot be meant.
        """
        super().__init__()
        self.beta, self.draws = positive("beta", beta), whole("draws", draws)
        self.shift = finite("shift", shift)
        self.trained = rule_named(rule, routing).trained
        self.rule, self.routing = rule, one_of("routing", routing, get_args(Routing))
        own = {"denoise": denoise, "schedule": schedule, "prediction": prediction, "adapt": adapt}
        if isinstance(net, Backbone):
            rest = {"encode": encode, "shape": shape, "action": action, "solver": solver}
            refuse_given(net, {**own, **rest})
            self.backbone = net
        else:
            require("net", net, nn.Module)
            missing = [name for name, value in own.items() if value is None]
            if missing:
                raise InputError(f"{missing[0]}: is not given; a network of your own needs {', '.join(own)}")
            self.backbone = own_network(net, {**own, "encode": encode}, action_of(shape, action), solver, scope)
        alpha = alpha and positive("alpha", alpha)
        made = make_pair(pair, self.backbone, scope, whole("rank", rank), alpha, seed, self.trained)
        self.pair = made
        self.copies = None if isinstance(made, AdapterPair) else made.copies  # a module of this one, to move along

    def loss(
        self,
        observation: Any,
        action: Tensor,
        advantage: Tensor,
        *,
        sign: Tensor | None = None,
        sample_weight: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted denoising loss of both policies (paper Eq. 9), and detached scalars to log.

        action: (B, *shape), or (B, K, *shape) with K candidates per observation, in raw units.
        advantage: (B,) or (B, K), e.g. `group_relative(returns)`; a constant to the loss.
        sign: as advantage; 1 = this sample trains the positive policy alone, -1 = the negative alone, 0 = as the
            advantage says. A human's plan at a take-over is 1, the policy's plan there -1.
        sample_weight: as advantage, 0 or more; 0 leaves a sample out.
        generator: of noise, times and routes; None is torch's global one.
        """
        action, advantage = candidates_of(action, advantage, tuple(self.backbone.action.raw_shape))
        weight = None if sample_weight is None else sample_weights(sample_weight, advantage)
        fixed = None if sign is None else signs(sign, advantage)
        with float32_by_default():
            contexts = self.pair.encode(observation, self._roles)
            found = len(next(iter(contexts.values())))
            if found != len(action):
                raise InputError(f"action: is for {len(action)} observations, but encode gave {found} rows")
            noised = self.noised(action, advantage, contexts, weight, generator, fixed)
            loss, scalars = self.loss_of(noised, contexts, generator)
        if torch.is_grad_enabled() and not loss.requires_grad:
            raise InputError("denoise: its output does not depend on what trains; compute with the network it is given")
        return loss, scalars

    def noised(
        self,
        action: Tensor,
        advantage: Tensor,
        contexts: Mapping[Role, Context],
        sample_weight: Tensor | None = None,
        generator: torch.Generator | None = None,
        sign: Tensor | None = None,
    ) -> Noised:
        """Noise and times for every candidate, `draws` of each: the first half of `loss`, its arguments trusted.

        action: (B, K, *shape) in raw units. advantage, sample_weight, sign: (B, K). contexts: as of `loss_of`.
        """
        encoded = self.backbone.to_action(action, partial(contexts.__getitem__, self.trained[0]))
        x0 = encoded.repeat_interleave(self.draws, 1).flatten(0, 1)
        noise = _normal(x0.shape, generator, x0.device)
        t = self.backbone.schedule.sample_t(len(x0), generator=generator).to(x0.device)
        weight, fixed = (None if rows is None else self._drawn(rows) for rows in (sample_weight, sign))
        return Noised(x0, noise, t, self._drawn(advantage), weight, action.shape[1] * self.draws, fixed)

    def loss_of(
        self,
        noised: Noised,
        contexts: Mapping[Role, Context],
        generator: torch.Generator | None = None,
        on_role_loss: OnRoleLoss = lambda role, loss: loss,
        in_one_pass: bool = False,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The second half of `loss`: that of the noised candidates of encoded scenes.

        contexts: of the B scenes under each role that is asked for; a mapping may encode them then.
        generator: of routes. on_role_loss: see `objective.OnRoleLoss`.
        in_one_pass: routed rows of both signs share a pass, where the pair can do that.
        """
        return dichotomous_loss(
            self.pair.denoiser(contexts, noised.group),
            self.backbone.schedule,
            self.backbone.prediction,
            noised.x0,
            noised.advantage,
            noised.noise,
            noised.t,
            beta=self.beta,
            routing=self.routing,
            rule=self.rule,
            shift=self.shift,
            sign=noised.sign,
            generator=generator,
            sample_weight=noised.weight,
            mask=self.backbone.action.mask().to(noised.x0.device),
            on_role_loss=on_role_loss,
            denoise_routed=self._routed(contexts, noised.group) if in_one_pass else None,
        )

    def _routed(self, contexts: Mapping[Role, Context], group: int) -> DenoiseRouted | None:
        pair = self.pair
        if not isinstance(pair, AdapterPair) or not pair.mixes_rows or group == 2:
            return None
        return partial(pair.denoise_routed, contexts, group=group)

    def sample(
        self,
        observation: Any,
        omega: Omega = 1.0,
        candidates: int = 1,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        steps: int | None = None,
    ) -> Tensor:
        """Actions (B, N, *shape) in raw units, float32, without gradients.

        observation: as of `loss`, or what `encode` made of it.
        omega: greed: -1 is the negative policy, 0 the positive one, above 0 greedier; a number, (B,) or (B, N); None
            is the network without adapters.
        candidates: N.  noise: (B, N, *shape) standard normal, else drawn from `generator`.  steps: of the solver.
        """
        return self.policy.sample(observation, omega, candidates, noise, generator, steps)

    def act(
        self,
        observation: Any,
        critic: Callable[[Any, Tensor], Tensor],
        omega: Omega = 1.0,
        candidates: int = 8,
        **options: Any,
    ) -> Tensor:
        """One action per observation (B, *shape): of N candidates the one that `critic` rates best.

        critic: (observation, actions (B, N, *shape)) -> (B, N) ratings; any callable.  options: as of `sample`.
        """
        actions = self.sample(observation, omega, candidates, **options)
        ratings = critic(observation, actions)
        if not isinstance(ratings, Tensor) or ratings.shape != actions.shape[:2] or not ratings.isfinite().all():
            found = tuple(ratings.shape) if isinstance(ratings, Tensor) else type(ratings).__name__
            raise InputError(f"critic: must return finite ratings of shape {tuple(actions.shape[:2])}, got {found}")
        return actions[torch.arange(len(actions), device=actions.device), ratings.argmax(1).to(actions.device)]

    def encode(self, observation: Any) -> EncodedScenes:
        """The observation to `sample` from again and again, encoded once."""
        return self.policy.encode(observation)

    @property
    def policy(self) -> GuidedPolicy:
        """The same pair as the sampler that the commands use."""
        return GuidedPolicy(self.backbone, self.pair, guidance=Guidance(rule=self.rule))

    def save(self, folder: str | Path) -> None:
        """Write `folder/positive` and `folder/negative`: plain PEFT folders, or the weights of two copies."""
        self.pair.save(folder)

    def load(self, folder: str | Path) -> None:
        """Read what `save` wrote on the same network; InputError if it was another one, and nothing changed then."""
        self.pair.load(folder)

    def adapter_state(self) -> dict[str, Tensor]:
        """All that trains, by name: the state of this module without the frozen network."""
        return {f"{role}.{name}": tensor for role in SIGNS for name, tensor in self.pair.state(role).items()}

    @torch.no_grad()
    def load_adapter_state(self, state: Mapping[str, Tensor]) -> None:
        """Take in what `adapter_state` gave; InputError, and nothing changed, where names or shapes differ."""
        own = self.adapter_state()
        odd = sorted(own.keys() ^ state.keys()) or [name for name in own if own[name].shape != state[name].shape]
        if odd:
            raise InputError(f"adapter state: {odd[0]} is missing, unexpected or of another shape")
        for name, tensor in own.items():
            tensor.copy_(state[name])

    @property
    def _roles(self) -> tuple[Role, ...]:
        """Whose predictions the loss asks for."""
        return (*self.trained, None) if rule_named(self.rule).is_mirrored else self.trained

    def _drawn(self, values: Tensor) -> Tensor:
        """(B, K) -> (B*K*draws,), each value as often as its candidate is noised."""
        return values.repeat_interleave(self.draws, 1).flatten()


def _normal(shape: torch.Size, generator: torch.Generator | None, device: torch.device) -> Tensor:
    source = generator.device if generator is not None else device
    return torch.randn(shape, generator=generator, device=source, dtype=torch.float32).to(device)
