"""The policy that drives: backbone, adapter pair and critic, sampled with guidance; saved as one folder.

    policy.json   where the backbone is and its fingerprint, defaults of guidance, action, what made it
    positive/ negative/   plain PEFT adapters          critic/   picks the best of N
    distilled/   where there is one: guidance in a single pass (`dipole-vla export --format distilled`)
    rl_tokens.json   scenes whose scores shaped the adapters; no evaluation may use them

The backbone is referred to, not copied. Scoring candidates with a simulator is not done here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dipole_vla import backbones
from dipole_vla.backbones import weights  # backbones as a module: it imports this package in turn
from dipole_vla.backbones.base import Backbone, Context, Observation, Processor
from dipole_vla.data.pictures import refuse_other_cameras
from dipole_vla.data.splits import RL_TOKENS, SeenByRL
from dipole_vla.guidance import (
    LIMIT,
    SIGNS,
    Combination,
    Moment,
    Omega,
    PredictBoth,
    PredictGuided,
    Role,
    adjusted,
    are_numbers,
    as_omega,
    guided_denoiser,
    guided_estimator,
    roles_for,
)
from dipole_vla.objective import rule_named
from dipole_vla.policy.adapters import AdapterPair, pass_the_base
from dipole_vla.policy.arguments import (
    check_generator,
    check_noise,
    check_plans,
    per_row,
    whole,
)
from dipole_vla.policy.critic import Critic, load_critic, scene_features
from dipole_vla.policy.distilled import FOLDER as DISTILLED
from dipole_vla.policy.distilled import DistilledPair
from dipole_vla.policy.scenes import EncodedScenes, distilled_prediction
from dipole_vla.policy.separate import Pair, load_pair
from dipole_vla.progress import console
from dipole_vla.solvers import SolverSpec, solve
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.variants import spread, varied

POLICY = "policy.json"
TELLING = 1e-3  # least difference of two roles, as a share of their size, that is told from rounding
_KEYS = ("format", "family", "backbone", "backbone_fingerprint", "guidance", "action", "provenance")

Default = Literal["default"]


@dataclass(frozen=True, kw_only=True)
class Guidance(Combination):
    """How the pair is sampled when the caller does not say, and how its predictions are combined (`Combination`).

    omega: greed; 0 = positive policy alone. candidates: plans drawn per scene, of which the critic picks one.
    variants: of each plan, among which the critic picks, too (`navsim_adapter.variants`).
    rule: the weighting rule the pair was trained with (`objective.RULES`); says who takes the negative place.
    """

    omega: float = 1.0
    candidates: int = 1
    variants: int = 0
    rule: str = "dichotomous"

    def __post_init__(self) -> None:
        super().__post_init__()
        rule_named(self.rule, where="guidance.rule")
        if not are_numbers(self.omega) or not abs(self.omega) < LIMIT:
            raise InputError(f"guidance.omega: must be a finite number below {LIMIT:.3g} in size, got {self.omega!r}")
        whole("guidance.candidates", self.candidates)
        whole("guidance.variants", self.variants, 0)


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
        predict, both = self._predict(scenes), self._predict_both(scenes)
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
            self._predict(scenes),
            self.backbone.schedule,
            self.backbone.prediction,
            flat_omega,
            combination,
            self.roles[1],
            self._predict_both(scenes),
            self._predict_distilled(scenes, flat_omega, count),
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

    def _predict(self, scenes: EncodedScenes) -> Any:
        def predict(x_t: Tensor, t: Tensor, role: Role) -> Tensor:
            context = scenes.prepared(role)
            if self.pair is None:
                return self.backbone.denoise(context, x_t, t)
            return self.pair.denoise(context, x_t, t, role)

        return predict

    def _predict_both(self, scenes: EncodedScenes) -> PredictBoth | None:
        """Both roles' predictions in one batch; what depends on the scenes alone is prepared at the first call."""
        if not isinstance(self.pair, AdapterPair):
            return None
        pair, roles = self.pair, self.roles

        def together(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            return pair.denoise_both(scenes.prepared_both(roles), x_t, t, roles)

        def apart(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            first, second = (pair.denoise(scenes.prepared(role), x_t, t, role) for role in roles)
            return first, second

        def predict(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            if pair.mixes_rows is not None:
                return (together if pair.mixes_rows else apart)(x_t, t)
            outputs = apart(x_t, t)
            pair.mixes_rows = _same_together(partial(together, x_t, t), outputs)
            if pair.mixes_rows is False:
                console.print("adapters: a layer does not see rows first; each sampling step takes two passes")
            return outputs

        return predict

    def _predict_distilled(self, scenes: EncodedScenes, omega: Omega, count: int) -> PredictGuided | None:
        """The guided prediction of the distilled network; omega: a number, or one per plan (B*N,)."""
        if omega is None or self.distilled is None:
            return None
        return distilled_prediction(self.distilled, scenes, omega, count)

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
        folder = Path(folder)
        if self.pair is None:
            raise InputError(f"{folder}: a policy without adapters is its backbone; save that instead")
        chooser = self.critic if critic is None else load_critic(critic)
        self.pair.save(folder)
        if self.distilled is not None:
            self.distilled.save(folder)
        if chooser is not None:
            chooser.save_pretrained(folder / "critic")
        weights.write_json(folder / RL_TOKENS, sorted(self.rl_tokens if rl_tokens is None else rl_tokens))
        description = {
            "format": 1,
            "family": self.backbone.family,
            "backbone": os.path.relpath(Path(backbone).resolve(), folder.resolve()),
            "backbone_fingerprint": self.pair.base_fingerprint,
            "guidance": asdict(self.guidance),
            "action": asdict(self.backbone.action),
            "provenance": dict(self.provenance if provenance is None else provenance),
        }
        weights.write_json(folder / POLICY, description)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, backbone: str | Path | None = None, device: str | torch.device = "cpu"
    ) -> GuidedPolicy:
        """Read a policy folder, strictly. backbone: its folder, where it is no longer at the recorded place."""
        folder = Path(folder)
        raw = weights.read_record(folder / POLICY, _KEYS)
        where = Path(backbone) if backbone is not None else (folder / raw["backbone"]).resolve()
        if not where.is_dir():
            remedy = f"give its folder as --backbone (in Python `backbone=`), or link it there: ln -s FOLDER {where}"
            raise InputError(f"{folder / POLICY}: its backbone is not there, at {where}; {remedy}")
        base = backbones.load_backbone(where, device)
        pair = load_pair(base, folder)
        if raw["backbone_fingerprint"] != pair.base_fingerprint:
            raise InputError(
                f"{folder}: made on base {raw['backbone_fingerprint'][:12]}…, "
                f"{where} is {pair.base_fingerprint[:12]}…; {pass_the_base(base)}"
            )
        refuse_other_cameras(folder / POLICY, raw["provenance"], base.processor)
        critic = folder / "critic"
        return cls(
            base,
            pair,
            load_critic(critic, device) if critic.is_dir() else None,
            weights.record_from(Guidance, raw["guidance"], f"{folder / POLICY}: guidance"),
            raw["provenance"],
            tuple(weights.read_json(folder / RL_TOKENS)),
            _read_distilled(pair, folder) if (folder / DISTILLED).is_dir() else None,
        )


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


def _same_together(together: Callable[[], tuple[Tensor, Tensor]], apart: tuple[Tensor, Tensor]) -> bool | None:
    """Whether one pass of both roles gives what two gave; None where the roles are too alike to tell.

    A layer whose first axis is not the rows gives rows of one role the other's adapter: an error of the size of their
    difference, next to which rounding must be small.
    """
    between, size = (apart[0] - apart[1]).abs().max(), torch.stack(apart).abs().max()
    if not between > TELLING * size:
        return None
    try:
        found = together()
    except (RuntimeError, ValueError, IndexError, TypeError):  # shapes that only rows of one role have
        return False
    return bool((torch.stack(found) - torch.stack(apart)).abs().max() < 0.05 * between)


def _read_distilled(pair: Pair, folder: Path) -> DistilledPair:
    if not isinstance(pair, AdapterPair):
        raise InputError(f"{folder}: a distilled network needs a pair of adapters, this pair is of full copies")
    return DistilledPair.from_pretrained(pair, folder)
