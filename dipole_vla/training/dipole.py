"""DIPOLE: two adapters on one frozen backbone, weighted by sigma(beta G) and 1 - sigma(beta G) (paper Eq. 9)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dipole_vla.backbones import load_backbone
from dipole_vla.backbones.weights import float32_by_default
from dipole_vla.data.contexts import Encoder
from dipole_vla.data.module import DrivingDataset
from dipole_vla.data.pictures import refuse_other_cameras
from dipole_vla.data.splits import RL_TOKENS, SeenByRL
from dipole_vla.data.tables import CandidateTable
from dipole_vla.forming import Advantage
from dipole_vla.guidance import SIGNS, Role
from dipole_vla.objective import Routing, base_distance, rule_named, sign_distance
from dipole_vla.paths import interpolate
from dipole_vla.plugin import Dipole, Noised
from dipole_vla.policy import AdapterPair, Context
from dipole_vla.policy.critic import fitted_critic, refuse_other_metric
from dipole_vla.policy.folder import POLICY
from dipole_vla.policy.separate import PairKind
from dipole_vla.training.base import FineTuning, stored_context
from dipole_vla.training.memory import backward_early, recompute_blocks, recomputes, shared_base
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import read_json
from navsim_adapter.foundation.option_checks import check_range

PROBED = 16  # rows on which the signs and the base are compared


class DipoleModule(FineTuning):
    """A `Dipole` on a backbone's folder, fed by `DrivingData`. Sees only (observation, action, advantage)."""

    needs_candidates = "a pair"
    reads_of_advantage = tuple(field.name for field in fields(Advantage))
    dipole: Dipole

    def __init__(
        self,
        backbone: Path,
        critic: Path | None = None,
        start: Path | None = None,
        beta: float = 1.0,
        routing: Routing = "both",
        rule: str = "dichotomous",
        shift: float = 0.0,
        pair: PairKind = "lora",
        scope: Literal["head", "all"] = "head",
        rank: int = 32,
        alpha: float | None = None,
        draws: int = 1,
        checkpointing: bool = False,
        lr: float = 3e-4,
        warmup_steps: int = 50,
        weight_decay: float = 0.0,
        ema_decay: float = 0.0,
        seed: int = 0,
    ):
        """
        Args:
            backbone: folder of the reference policy; it stays frozen.
            critic: folder of a fitted critic, copied into the policy, where it picks the best of N.
            start: policy folder whose pair this training goes on from, as in a further round on what it drove; null
                starts from the backbone.
            beta: inverse temperature of the sigmoid weight on the advantage; larger is closer to a hard split.
            routing: both = every sample to both adapters; bernoulli = to one, drawn by its weight, at half the cost.
            rule: weighting rule, a name of dipole_vla.objective.RULES.
            shift: k in the weight sigma(beta G + k); above 0 more candidates count as good.
            pair: lora = two adapters; separate = two full copies of the head (scope all: of the backbone), for small
                models.
            scope: head = the encoder stays as it is and runs once for both policies; all = adapters there too.
            rank: LoRA rank.
            alpha: LoRA scale numerator; null is the rank (scale 1).
            draws: noise levels per candidate and step.
            checkpointing: keep no activations inside the trained blocks and compute them again for the gradients:
                less memory for about a third more time.
            lr: learning rate of both adapters.
            warmup_steps: steps of linear warm-up; then linear decay to zero at trainer.max_steps.
            weight_decay: AdamW, on the adapters.
            ema_decay: export the adapters' running mean (e.g. 0.99), kept in float32; 0 exports the last step's.
            seed: adapter initialisation, noise, times and routes.
        """
        super().__init__(lr, warmup_steps, weight_decay, seed, ema_decay)
        check_range("model.draws", draws, 1)
        if not beta > 0:
            raise InputError(f"model.beta: must be > 0, got {beta}; larger values are closer to a hard split")
        check_range("model.shift", shift)
        rule_named(rule, routing)  # refused before weights are read
        dipole = Dipole(
            load_backbone(backbone),
            scope=scope,
            beta=beta,
            rule=rule,
            shift=shift,
            routing=routing,
            pair=pair,
            rank=rank,
            alpha=alpha,
            draws=draws,
            seed=seed,
        )
        object.__setattr__(self, "dipole", dipole)  # no child: names in checkpoints are backbone.* and copies.*
        self.backbone, self.pair, self.copies = dipole.backbone, dipole.pair, dipole.copies
        self.backbone_folder, self.critic_folder = Path(backbone), critic
        self.seen_before = SeenByRL()
        self.start_folder, self.started, self.fitted = start, dict[str, Any](), dict[str, Any]()
        if start is not None:
            self.pair.load(start)
            self.started = read_json(Path(start) / POLICY)["provenance"]
            refuse_other_cameras(Path(start) / POLICY, self.started, self.backbone.processor)
            self.seen_before |= SeenByRL.recorded(read_json(Path(start) / RL_TOKENS), self.started)
        if critic is not None:
            _, self.fitted = fitted_critic(critic, backbone, self.pair.base_fingerprint, self.backbone)
            self.seen_before |= _seen_by_critic(Path(critic), self.fitted)
        if checkpointing:
            recompute_blocks(self.pair)
        self.scope, self.checkpointing = scope, checkpointing
        self.base_drove = True  # whether mu is the frozen backbone; the candidates tell

    def look_at(self, dataset: DrivingDataset) -> None:
        """Refuse candidates of another base, those that the base did not drive to a rule that tilts the base, and a
        critic of another metric."""
        super().look_at(dataset)
        candidates = self.candidates
        omega = candidates.about.get("omega")
        self.base_drove = omega is None
        rule = self.dipole.rule
        if rule_named(rule).negative_role is None and not self.base_drove:
            raise InputError(
                f"{candidates.folder}: was driven with omega {omega:g}, but model.rule {rule} trains no negative: "
                "the base has its place, and did not drive; collect with omega null, or use the dichotomous rule"
            )
        self.say(candidates.refuse_other_base(self.pair.base_fingerprint))
        if self.critic_folder is not None:
            self.say(refuse_other_metric(self.critic_folder, self.fitted, candidates.folder, candidates.metric))
        if self.start_folder is not None:
            self.say(self._other_metric(candidates))

    def _other_metric(self, candidates: CandidateTable) -> str | None:
        """A remark where the pair goes on by another metric than it began with, which is allowed."""
        before = self.started.get("metric")
        if before == candidates.metric:
            return None
        was = f"was trained on {before}" if before else "does not say by which metric it was trained"
        return f"{self.start_folder}: {was}, {candidates.folder} is scored by {candidates.metric}: goes on by that"

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [parameter for _, parameter in self.named_trained()]}]

    def named_trained(self) -> list[tuple[str, nn.Parameter]]:
        return [
            (f"{role}.{name}", parameter)
            for role in self.dipole.trained
            for name, parameter in self.pair.named_parameters(role)
        ]

    def named_exact(self) -> list[tuple[str, nn.Parameter]]:
        """Adapters, which add to a frozen layer's output in its own precision; a full copy has that of the head."""
        return list(self.pair.named_parameters()) if isinstance(self.pair, AdapterPair) else []

    def gradients(self) -> Mapping[str, Iterator[nn.Parameter]]:
        return {f"grad_norm_{role}": self.pair.parameters(role) for role in self.dipole.trained}

    def frozen_encoder(self, device: torch.device) -> Encoder | None:
        if not self.pair.shares_context:
            return None
        self.backbone.to(device)  # asked for before the trainer moves the module

        def encode(observation: dict[str, Tensor]) -> Context:
            return self.pair.encode(observation, (None,))[None]

        return Encoder(encode, self.backbone.processor(), self.pair.base_fingerprint, device)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        generator = self.step_generator()
        contexts = _Contexts(partial(self._contexts, batch))
        with float32_by_default(), shared_base(self.pair):
            noised = self.dipole.noised(
                batch["poses"], batch["advantage"], contexts, batch.get("weight"), generator, batch.get("sign")
            )
            in_one_pass = not self.checkpointing and not self._has_engine  # both ask for a pass of each sign
            loss, scalars = self.dipole.loss_of(noised, contexts, generator, self._on_role_loss, in_one_pass)
            if self.checkpointing and not recomputes(self.pair):
                raise InputError(
                    f"model.checkpointing: family {self.backbone.family} runs no trained block as a whole, so "
                    "nothing would be computed again; set it to false"
                )
            trainer: Any = self.trainer
            every = trainer.log_every_n_steps
            if every and (trainer.global_step + 1) % every == 0:
                scalars |= self._agreement(noised, contexts)
        self.log_dict(scalars)
        return self.checked(loss, batch)

    @property
    def _has_engine(self) -> bool:
        """DeepSpeed partitions parameters between passes and around modules."""
        return hasattr(self.trainer.strategy, "deepspeed_engine")

    def _contexts(self, batch: dict[str, Any], role: Role) -> dict[Role, Context]:
        everyone: tuple[Role, ...] = (*SIGNS, None)
        if "context" in batch:
            return dict.fromkeys(everyone, stored_context(self.backbone, batch))
        return self.pair.encode(batch["observation"], everyone if self.pair.shares_context else (role,))

    def _on_role_loss(self, role: Role, loss: Tensor) -> Tensor:
        """One sign's backward pass before the other's forward pass, where gradients can be taken early."""
        plugin = self.trainer.precision_plugin
        if getattr(plugin, "scaler", None) is not None or self._has_engine:
            return loss  # fp16 must scale first
        return backward_early(loss, list(self.pair.parameters(role)))

    @torch.no_grad()
    def _agreement(self, noised: Noised, contexts: Mapping[Role, Context]) -> dict[str, Tensor]:
        """What the signs and the base say of the same few rows."""
        x_t, t = interpolate(self.backbone.schedule, noised.x0, noised.noise, noised.t)[:PROBED], noised.t[:PROBED]
        rows = torch.arange(len(x_t), device=x_t.device)
        denoise = self.pair.denoiser(contexts, noised.group)
        outputs = {role: denoise(role, x_t, t, rows) for role in (*self.dipole.trained, None)}
        if "negative" not in outputs:
            return {"sign_distance": sign_distance(outputs["positive"], outputs[None])}
        signs = outputs["positive"], outputs["negative"]
        distances = {"sign_distance": sign_distance(*signs)}
        if self.base_drove:  # else the base is no mixture of the two
            distances["base_distance"] = base_distance(*signs, outputs[None])
        return distances

    def export(self, folder: Path, provenance: Mapping[str, Any]) -> None:
        """Write the policy folder: adapters in plain PEFT layout, critic, and what reinforcement learning saw."""
        assert self.dataset is not None
        scored = self.candidates
        seen = self.seen_before | scored.seen
        made = {
            **provenance,
            **seen.provenance(),
            "advantage": self.dataset.advantage_told,
            "formed": asdict(self.dataset.how),
            "cameras": list(self.dataset.processor.cameras),
            "metric": scored.metric,
            "start_metric": self._metrics_before(),
            "beta": self.dipole.beta,
            "routing": self.dipole.routing,
            "rule": self.dipole.rule,
            "shift": self.dipole.shift,
            "scope": self.scope,
            "candidates": str(scored.folder),
            "backbone": str(self.backbone_folder),
        }
        policy = self.dipole.policy
        with self.averaged():
            policy.save_pretrained(folder, self.backbone_folder, self.critic_folder, sorted(seen.tokens), made)

    def _metrics_before(self) -> str | None:
        """Of the rounds before this one, several as in "pdms-v1.1, epdms-v2.2"."""
        names = [*str(self.started.get("start_metric") or "").split(", "), self.started.get("metric")]
        return ", ".join(dict.fromkeys(name for name in names if name)) or None


def _seen_by_critic(folder: Path, provenance: Mapping[str, Any]) -> SeenByRL:
    """Nothing is known of a critic from before it kept this."""
    tokens = folder / RL_TOKENS
    return SeenByRL.recorded(read_json(tokens) if tokens.is_file() else (), provenance)


class _Contexts(dict[Role, Context]):
    """A batch's scenes under each role, encoded when first asked for: one sign's graph can end before the other's."""

    def __init__(self, contexts: Callable[[Role], Mapping[Role, Context]]):
        super().__init__()
        self.contexts = contexts

    def __missing__(self, role: Role) -> Context:
        self.update(self.contexts(role))
        return self[role]
