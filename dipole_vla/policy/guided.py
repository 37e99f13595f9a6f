"""The policy that drives: backbone, adapter pair and critic, sampled with guidance; saved as one folder.

Scoring candidates with a simulator is not done here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dipole_vla import backbones
from dipole_vla.backbones import weights  # backbones as a module: it imports this package in turn
from dipole_vla.backbones.base import Backbone, Context, Observation, Processor
from dipole_vla.data.splits import SeenByRL
from dipole_vla.guidance import (
    SIGNS,
    Combination,
    Moment,
    Omega,
    PredictGuided,
    Role,
    adjusted,
    as_omega,
    guided_denoiser,
    guided_estimator,
    roles_for,
)
from dipole_vla.objective import rule_named
from dipole_vla.policy.arguments import Guidance, check_generator, check_noise, check_plans, per_row, whole
from dipole_vla.policy.critic import Critic, scene_features
from dipole_vla.policy.distilled import FOLDER as DISTILLED
from dipole_vla.policy.distilled import DistilledPair
from dipole_vla.policy.folder import POLICY, read_policy, write_policy
from dipole_vla.policy.predictions import distilled_prediction, under_both, under_one
from dipole_vla.policy.scenes import EncodedScenes
from dipole_vla.policy.separate import Pair
from dipole_vla.solvers import SolverSpec, solve
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.variants import spread, varied

Default = Literal["default"]


@dataclass
class GuidedPolicy:
    """See the module docstring. Without a pair it is the reference policy only (omega None).

    Several threads may encode, sample and choose at once: each gets the plans it would get alone. Changing what the
    policy holds (weights, guidance, device) meanwhile is the caller's to prevent.

    backbone: put into evaluation mode by the caller or frozen by its pair.
    rl_tokens: scenes whose scores shaped the adapters.
    distilled: takes the place of both passes wherever both signs would be asked.
    """

    backbone: Backbone
    pair: Pair | None = None
    critic: Critic | None = None
    guidance: Guidance = field(default_factory=Guidance)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    rl_tokens: Sequence[str] = ()
    distilled: DistilledPair | None = None

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @cached_property
    def processor(self) -> Processor:
        return self.backbone.processor()

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """(horizon, dim) of one plan's start noise; of other actions than ego poses the shape of one."""
        return self.backbone.action.shape

    @property
    def rl_split(self) -> str | None:
        """Split the adapters were trained on, several joined by commas; None for the reference policy."""
        return self.provenance.get("rl_split")

    @property
    def seen(self) -> SeenByRL:
        """What its training saw the scores of."""
        return SeenByRL.recorded(self.rl_tokens, self.provenance)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over base and adapters as they are at first use."""
        if self.pair is None:
            return self.backbone.fingerprint()
        state = {f"{role}.{name}": tensor for role in SIGNS for name, tensor in self.pair.state(role).items()}
        if self.distilled is not None:
            state |= {f"{DISTILLED}.{name}": tensor for name, tensor in self.distilled.state().items()}
        return weights.fingerprint(state, {"base": self.pair.base_fingerprint})

    def encode(self, observation: Observation) -> EncodedScenes:
        """Scenes to pass to `sample` and `act` again and again, for many omegas and candidates."""
        return EncodedScenes(self, observation)

    def encoded(self, context: Context | Mapping[Role, Context]) -> EncodedScenes:
        """The same from what `Backbone.encode` gave before: one context, or one for each role if none is shared."""
        contexts: dict[Role, Context] = {None: context} if isinstance(context, Context) else dict(context)
        assert self.pair is None or self.pair.shares_context is isinstance(context, Context)
        scenes = EncodedScenes(self, {}, len(next(iter(contexts.values()))))
        scenes._encoded.update(contexts)
        return scenes

    def estimator(
        self, scenes: EncodedScenes, omega: Tensor, combination: Combination, guided: PredictGuided | None
    ) -> Callable[[Tensor, Moment], Tensor]:
        """The clean estimate whatever omega (rows,) is, with no look at it: both roles are asked at every step.

        omega: times the rule's `greed`. guided: of the distilled network, instead of both.
        """
        predict = under_one(self.backbone, self.pair, scenes)
        both = under_both(self.pair, self.roles, scenes)
        return guided_estimator(predict, omega, self.roles, combination, both, guided)

    @property
    def roles(self) -> tuple[Role, Role]:
        """Whose predictions guidance combines."""
        return "positive", rule_named(self.guidance.rule).negative_role

    @torch.no_grad()
    def sample(
        self,
        observation: Observation | EncodedScenes,
        omega: Omega | Default = "default",
        candidates: int | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        steps: int | None = None,
        start_scale: float | None = None,
        guidance: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Plans (B, N, horizon, 3): x, y, heading in the ego frame, metres and radians, float32.

        omega: a number, one per scene (B,) or per plan (B, N), or None for the reference policy (adapters off).
        candidates: N. noise: (B, N, horizon, dim) standard normal, so that policies can be compared on the same
            numbers; else drawn from `generator`, else from torch's global one, which all threads share.
        steps: of the solver, default the backbone's own.
        start_scale: standard deviation of the start noise, default the backbone's own; 0 gives one plan N times.
        guidance: keys of `guidance.Combination` that differ from the policy's own.
        InputError names the argument that cannot be meant.
        """
        scenes = self._scenes(observation)
        combination = self.combination(guidance)
        spec = self.solver(combination, steps, start_scale)
        count = self.guidance.candidates if candidates is None else whole("candidates", candidates)
        omega = as_omega(self.guidance.omega if isinstance(omega, str) and omega == "default" else omega)
        omega = None if omega is None else omega * rule_named(self.guidance.rule).greed
        start = self._start(len(scenes), count, noise, generator)
        batch = len(scenes)
        flat_omega = per_row(omega, batch, count).to(start.device) if isinstance(omega, Tensor) else omega
        denoise = guided_denoiser(
            under_one(self.backbone, self.pair, scenes),
            self.backbone.schedule,
            self.backbone.prediction,
            flat_omega,
            combination,
            self.roles[1],
            under_both(self.pair, self.roles, scenes),
            distilled_prediction(self.distilled, scenes, flat_omega, count),
        )
        self._check_has_pair(flat_omega)
        with scenes.explaining():
            action = solve(spec, self.backbone.schedule, denoise, start.flatten(0, 1), generator)
        return self.backbone.to_raw(action.unflatten(0, (batch, count)), scenes.any_role)

    def act(
        self,
        observation: Observation | EncodedScenes,
        omega: Omega | Default = "default",
        candidates: int | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        steps: int | None = None,
        start_scale: float | None = None,
        guidance: Mapping[str, Any] | None = None,
        variants: int | None = None,
    ) -> Tensor:
        """One plan per scene (B, horizon, 3): the critic's choice among `candidates` and `variants` of each, which cost
        no pass of the denoiser; other arguments as `sample`."""
        scenes = self._scenes(observation)
        plans = self.sample(scenes, omega, candidates, noise, generator, steps, start_scale, guidance)
        plans, values = self._improved(scenes, plans, variants)
        return plans[torch.arange(len(plans)), values.argmax(1)]

    @torch.no_grad()
    def improved(
        self, observation: Observation | EncodedScenes, plans: Tensor, variants: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Of each plan and its variants the one the critic rates best (B, N, horizon, 3), and its rating (B, N).

        The best of N of these is the best of all. plans: as for `value`. variants: of each, default the policy's own;
        0 gives the plans back.
        """
        scenes = self._scenes(observation)
        check_plans(plans, len(scenes), self.noise_shape[0])
        return self._improved(scenes, plans, variants)

    @torch.no_grad()
    def choose(self, observation: Observation | EncodedScenes, plans: Tensor) -> Tensor:
        """(B,) index of the plan the critic rates best among plans (B, N, horizon, 3)."""
        return self.value(observation, plans).argmax(1)

    @torch.no_grad()
    def value(self, observation: Observation | EncodedScenes, plans: Tensor) -> Tensor:
        """(B, N) the critic's estimate of each plan's return; without a critic a single plan counts 0.

        plans: (B, N, horizon, 3) of these scenes, finite.
        """
        scenes = self._scenes(observation)
        check_plans(plans, len(scenes), self.noise_shape[0])
        return self._value(scenes, plans)

    @torch.no_grad()
    def _improved(self, scenes: EncodedScenes, plans: Tensor, variants: int | None) -> tuple[Tensor, Tensor]:
        count = self.guidance.variants if variants is None else whole("variants", variants, 0)
        if not count:
            return plans, self._value(scenes, plans)
        if self.critic is None:
            raise InputError(f"variants: {count} of each plan to choose from, but the policy has no critic; use 0")
        others = varied(plans[:, :, None].cpu().numpy(), spread(count))
        rated = torch.cat([plans[:, :, None], torch.from_numpy(others).to(plans)], dim=2)
        values, best = self._value(scenes, rated.flatten(1, 2)).unflatten(1, rated.shape[1:3]).max(2)
        rows, columns = torch.meshgrid(*map(torch.arange, plans.shape[:2]), indexing="ij")
        return rated[rows, columns, best.to(rows.device)], values

    @torch.no_grad()
    def _value(self, scenes: EncodedScenes, plans: Tensor) -> Tensor:
        if self.critic is None:
            if plans.shape[1] > 1:
                raise InputError(f"candidates: {plans.shape[1]} to choose from, but the policy has no critic; use 1")
            return plans.new_zeros(plans.shape[:2])
        with scenes.explaining():
            features = scene_features(self.backbone, scenes.encoded(None), self.critic.reads_tokens)
        return self.critic(features, plans.to(self.device))

    def _scenes(self, observation: Observation | EncodedScenes) -> EncodedScenes:
        if not isinstance(observation, EncodedScenes):
            return self.encode(observation)
        if observation._policy.pair is not self.pair or observation._policy.backbone is not self.backbone:
            raise InputError("observation: these scenes were encoded by another policy; encode them with this one")
        return observation

    def solver(self, combination: Combination, steps: int | None, start_scale: float | None = None) -> SolverSpec:
        """The backbone's own with what is given, and with the clamp of the guidance, where it has one."""
        spec = self.backbone.solver.with_steps(None if steps is None else whole("steps", steps))
        spec = spec if start_scale is None else spec.with_start(start_scale)
        return replace(spec, clamp=combination.clamp, clamp_at="estimate") if combination.clamp else spec

    def combination(self, given: Mapping[str, Any] | None) -> Combination:
        """The policy's own guidance with what is given; InputError where the distilled network cannot follow it."""
        found = self.guidance if given is None else adjusted(self.guidance, given)
        if self.distilled is not None and found.shaped:
            raise InputError(
                f"guidance.{found.shaped[0]}: needs both predictions at each step, the distilled network gives one; "
                "take the policy it was distilled from"
            )
        return found

    def _start(self, batch: int, count: int, noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
        shape = (batch, count, *self.noise_shape)
        check_generator(generator)
        if noise is None:
            device = generator.device if generator is not None else self.backbone.device
            noise = torch.randn(shape, generator=generator, device=device, dtype=torch.float32)
        check_noise(noise, shape)
        return noise.to(self.backbone.device, torch.float32)

    def _check_has_pair(self, omega: Omega) -> None:
        if self.pair is None and roles_for(omega) != (None,):
            raise InputError("omega: this policy has no adapters; pass omega=None for the reference policy")

    def save_pretrained(
        self,
        folder: str | Path,
        backbone: str | Path,
        critic: str | Path | None = None,
        rl_tokens: Sequence[str] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the policy folder. What is given here replaces what the policy holds.

        backbone: folder of the frozen base, whose relative path is kept. critic: folder of a fitted critic to copy.
        rl_tokens, provenance: see the class; provenance must be JSON.
        """
        write_policy(self, Path(folder), backbone, critic, rl_tokens, provenance)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, backbone: str | Path | None = None, device: str | torch.device = "cpu"
    ) -> GuidedPolicy:
        """Read a policy folder, strictly. backbone: its folder, where it is no longer at the recorded place."""
        return cls(**read_policy(Path(folder), backbone, device))


def load_policy(
    folder: str | Path,
    backbone: str | Path | None = None,
    device: str = "auto",
    guidance: Mapping[str, Any] | None = None,
) -> GuidedPolicy:
    """A policy folder as its guided policy, or a backbone folder as the reference policy without adapters.

    backbone: of a policy folder, where its backbone is no longer at the recorded place.
    device: as torch names it, or "auto": the GPU if there is one.
    guidance: keys of `guidance.Combination` that differ from the folder's own.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if (Path(folder) / POLICY).is_file():
        policy = GuidedPolicy.from_pretrained(folder, backbone, device)
        policy.guidance = adjusted(policy.guidance, guidance or {})
        return policy
    if guidance:
        raise InputError(f"guidance: {folder} is no policy folder, so nothing is guided; leave it out")
    if backbone is not None:
        raise InputError(f"--backbone: {folder} is no policy folder (it has no {POLICY}), so it has none; leave it out")
    return GuidedPolicy(backbones.load_backbone(folder, device))
