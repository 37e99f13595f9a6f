"""The pair: two PEFT LoRA adapters, "positive" and "negative", on one frozen backbone.

Switching and freezing live here and in `mixed_rows`, and nowhere else. PEFT's own `set_adapter` is a state of the
layers, and turns gradients off on the adapter it leaves; here a pass is routed (`mixed_rows.routed`), which no other
thread sees and no gradient flag. Two routed passes, one loss, one backward train both. Whoever checkpoints
activations must make the recomputation run under the same route. Two passes can also be one, of rows of either sign
(`prepare_both`, then `denoise_both` for guided sampling, `denoise_routed` for training): the frozen weights are then
read once.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dipole_vla.backbones import weights
from dipole_vla.backbones.base import Backbone, Context, Observation
from dipole_vla.guidance import SIGNS, Role
from dipole_vla.objective import Denoise
from dipole_vla.policy.mixed_rows import alone, mixed, routable, routed, sharing
from navsim_adapter.foundation.errors import InputError, did_you_mean

SIDECAR = "dipole.json"
_PEFT_PREFIX = "base_model.model."


class AdapterPair:
    """Owns both adapters of a backbone, which it freezes for good (no gradients, evaluation mode).

    A fresh pair is the base policy for every omega: the second LoRA matrix starts at zero; the first ones differ.

    backbone: changed in place; it may carry one pair only.
    scope: a key of `backbone.lora_scopes`; under "head" both signs and the base share one encoding of a scene.
    rank, alpha: LoRA's; the update is scaled by alpha / rank. alpha None means alpha = rank.
    seed: of the starting matrices; torch's global generator is neither read nor advanced.
    """

    def __init__(
        self, backbone: Backbone, scope: str = "head", rank: int = 32, alpha: float | None = None, seed: int = 0
    ) -> None:
        if scope not in backbone.lora_scopes:
            hint = did_you_mean(scope, list(backbone.lora_scopes))
            raise InputError(f"scope: {scope!r} is not one of {', '.join(backbone.lora_scopes)}{hint}")
        if rank < 1:
            raise InputError(f"rank: must be >= 1, got {rank}")
        if any(isinstance(module, BaseTunerLayer) for module in backbone.modules()):
            raise InputError("backbone: already carries adapters; load it afresh for another pair")
        self.backbone, self.scope, self.rank = backbone, scope, rank
        self.alpha = rank if alpha is None else alpha
        self.base_fingerprint = backbone.fingerprint()
        backbone.freeze()
        _check_targets(backbone, scope)
        self.layers = [routable(layer) for layer in _attach(backbone, self._lora_config())]
        self._uncalled = _watched(backbone)
        self.mixes_rows: bool | None = None if backbone.network_name else True
        """Whether `denoise_both` is right: every adapted layer sees rows first. None until somebody else's network
        has shown it (`GuidedPolicy`)."""
        self._initialise(seed)

    @property
    def shares_context(self) -> bool:
        """Whether one encoding serves every role, because no adapted module is part of it."""
        return self.scope == "head"

    def acting(self, role: Role) -> AbstractContextManager[None]:
        """Let `role` act in this thread's passes within the block; None leaves the base, as it is outside."""
        return routed(partial(alone, role=role))

    def encode(self, observation: Observation, roles: Sequence[Role] = SIGNS) -> dict[Role, Context]:
        """The scenes' context under each role; one and the same, encoded once, if `shares_context`."""
        if self.shares_context:
            with routed(self._outside):
                return dict.fromkeys(roles, self.backbone.encode(observation))
        contexts: dict[Role, Context] = {}
        for role in roles:
            with self.acting(role):
                contexts[role] = self.backbone.encode(observation)
        return contexts

    def _outside(self, layer: LoraLayer, x: Tensor) -> Tensor:
        """The route of an encoding that all roles share: none of the adapted layers may be part of it."""
        name = next(name for name, module in self.backbone.network.named_modules() if module is layer)
        raise InputError(f"scope 'head': encode runs {name}, which has adapters; leave it out, or use scope=\"all\"")

    def prepare(self, context: Context, role: Role) -> Context:
        """The head's work on the context alone, under `role`: valid for that role's `denoise` only."""
        with self.acting(role):
            return self.backbone.prepare(context)

    def denoise(self, context: Context, x_t: Tensor, t: Tensor, role: Role) -> Tensor:
        """Native prediction of one role, float32, shape of x_t (B*G, horizon, dim); see `Backbone.denoise`."""
        with self.acting(role):
            return self._checked(self.backbone.denoise(context, x_t, t))

    def prepare_both(self, contexts: Mapping[Role, Context], roles: tuple[Role, Role]) -> Context:
        """`prepare` under each of two roles, stacked, the first role's rows first; what they share stays once.

        Where both roles show a layer the very same input, as keys and values of one scene, its frozen part runs once.
        """
        prepared, seen = [], {}  # type: ignore[var-annotated]
        for role in roles:
            with routed(partial(sharing, role=role, seen=seen)):
                prepared.append(self.backbone.prepare(contexts[role]))
        first, second = prepared
        if self.backbone.adapts_rows_only and contexts[roles[0]] is contexts[roles[1]]:
            return first.joined(second)
        return first.stacked(second)

    def denoise_both(self, context: Context, x_t: Tensor, t: Tensor, roles: tuple[Role, Role]) -> tuple[Tensor, Tensor]:
        """`denoise` under both roles in one pass, for a context of `prepare_both`; no gradients.

        x_t (B*G, horizon, dim), t (B*G,), as for one role; row i of either half of the context serves G rows.
        """
        with torch.no_grad(), routed(partial(mixed, roles=roles)):
            output = self._checked(self.backbone.denoise(context, torch.cat([x_t, x_t]), torch.cat([t, t])))
        first, second = output.chunk(2)
        return first, second

    def denoise_routed(
        self, contexts: Mapping[Role, Context], x_t: Tensor, t: Tensor, is_positive: Tensor, group: int
    ) -> Tensor:
        """`denoise` of each row under the sign it is routed to, in one pass; gradients reach both adapters.

        contexts: the B scenes under either sign. x_t (B*group, horizon, dim), t and is_positive (B*group,), where
        scene i serves rows [i*group, (i+1)*group). group 2 is refused: see `mixed_rows.mixed`.
        """
        assert group != 2
        order = torch.argsort(~is_positive, stable=True)
        positives, scenes = int(is_positive.sum()), order // group
        context = self.prepare_both(contexts, SIGNS)
        serves = torch.cat([scenes[:positives], scenes[positives:] + len(contexts["positive"])])
        context = replace(context, serves=serves)
        with routed(partial(mixed, roles=SIGNS, rows=(positives, len(order) - positives))):
            output = self._checked(self.backbone.denoise(context, x_t[order], t[order]))
        return output[torch.argsort(order)]

    def _checked(self, output: Tensor) -> Tensor:
        """After the first pass: InputError naming adapted layers that it did not call, which would never train."""
        if self._uncalled:
            raise InputError(
                f"scope {self.scope!r}: the forward pass never calls {_some(list(self._uncalled))}, so adapters there "
                f"do nothing; leave them out of {_pattern_of(self.backbone)}, or call them as modules"
            )
        return output

    def denoiser(self, contexts: Mapping[Role, Context], group: int = 1) -> Denoise:
        """What `objective.dichotomous_loss` calls, for a batch of `group` actions per scene of the contexts.

        Rows routed to one adapter still share their scene's keys and values, uncopied.
        """

        def denoise(role: Role, x_t: Tensor, t: Tensor, rows: Tensor | None) -> Tensor:
            context = contexts[role] if rows is None else contexts[role].serving(rows // group)
            return self.denoise(context, x_t, t, role)

        return denoise

    def parameters(self, role: Role = None) -> Iterator[nn.Parameter]:
        """All that trains: both adapters, or those of one sign."""
        return (parameter for _, parameter in self.named_parameters(role))

    def named_parameters(self, role: Role = None) -> Iterator[tuple[str, nn.Parameter]]:
        wanted = (role,) if role else SIGNS
        for name, parameter in self.backbone.network.named_parameters():
            if any(f".{sign}." in name for sign in wanted) and "lora_" in name:
                yield name, parameter

    def state(self, role: str) -> dict[str, Tensor]:
        """Tensors of one sign under the names of a PEFT file."""
        return {_peft_name(name, role): parameter.detach() for name, parameter in self.named_parameters(_sign(role))}

    def save(self, folder: str | Path) -> None:
        """Write `folder/positive` and `folder/negative`: plain PEFT folders, each with our sidecar of role and base."""
        for role in SIGNS:
            target = Path(folder) / role
            weights.write_tensors(target / "adapter_model.safetensors", self.state(role))
            config = self._lora_config()
            config.inference_mode = True
            weights.write_json(target / "adapter_config.json", _plain(config.to_dict()))
            weights.write_json(target / SIDECAR, self._sidecar(role))

    def load(self, folder: str | Path) -> None:
        """Read what `save` wrote into this pair; InputError (nothing changed) unless role, base and sizes all match."""
        states = {role: self._read(Path(folder) / role, role) for role in SIGNS}
        with torch.no_grad():
            for role, state in states.items():
                for name, parameter in self.named_parameters(_sign(role)):
                    parameter.copy_(state[_peft_name(name, role)])

    @classmethod
    def from_pretrained(cls, backbone: Backbone, folder: str | Path) -> AdapterPair:
        """A pair of the saved scope, rank and alpha on `backbone`, with the saved weights."""
        facts = _read_sidecar(Path(folder) / "positive")
        pair = cls(backbone, facts["scope"], facts["rank"], facts["alpha"])
        pair.load(folder)
        return pair

    def _lora_config(self) -> LoraConfig:
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # PEFT divides by the rank; a float is as good
            target_modules=self.backbone.lora_scopes[self.scope],
            lora_dropout=0.0,
            bias="none",
        )

    def _initialise(self, seed: int) -> None:
        """Kaiming-uniform first matrices (PEFT's own choice) from a generator of ours, zero second ones."""
        if self.backbone.device.type == "meta":
            return
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if "lora_B" in name:
                    parameter.zero_()
                    continue
                bound = 1 / math.sqrt(parameter.shape[1])
                parameter.copy_(torch.rand(parameter.shape, generator=generator, device="cpu") * 2 * bound - bound)

    def _sidecar(self, role: str) -> dict[str, Any]:
        return {
            "role": role,
            "family": self.backbone.family,
            "base_fingerprint": self.base_fingerprint,
            "scope": self.scope,
            "rank": self.rank,
            "alpha": self.alpha,
        }

    def _read(self, folder: Path, role: str) -> dict[str, Tensor]:
        facts, own = _read_sidecar(folder), self._sidecar(role)
        remedies = {
            "role": "the folders were swapped or renamed; put each under its role's name",
            "family": "pass the matching checkpoint",
            "base_fingerprint": pass_the_base(self.backbone),
            "scope": "make the pair with this scope",
            "rank": "make the pair with this rank",
            "alpha": "make the pair with this alpha",
        }
        for fact, remedy in remedies.items():
            if facts[fact] != own[fact]:
                name = "base" if fact == "base_fingerprint" else fact
                raise InputError(
                    f"{folder}: {name} is {_short(facts[fact])}, this pair's is {_short(own[fact])}; {remedy}"
                )
        path = folder / "adapter_model.safetensors"
        state = weights.read_tensors(path)
        weights.check_names(state, self.state(role), str(path))
        return state


def _check_targets(backbone: Backbone, scope: str) -> None:
    """InputError unless the scope's expression matches modules, all of which can carry adapters and will be called."""
    where, pattern = f"scope {scope!r}: {_pattern_of(backbone)}", backbone.lora_scopes[scope]
    modules, matched = dict(backbone.network.named_modules()), matched_modules(backbone, scope)
    for name in matched:
        kinds = (nn.Linear, nn.Conv2d) if name.startswith(backbone.encoder_names) else (nn.Linear,)
        if not isinstance(modules[name], kinds):
            allowed = " or ".join(kind.__name__ for kind in kinds)
            raise InputError(
                f"{where}: {pattern!r} matches {name}, a {type(modules[name]).__name__}; only {allowed} can carry "
                "adapters there: narrow the expression"
            )
    dead = {name: owner for name in matched if (owner := _reads_alone(modules, name)) is not None}
    if dead:
        raise InputError(
            f"{where}: {_some(list(dead))} lie in torch's {next(iter(dead.values()))}, which reads their weights "
            "without calling them, so adapters there do nothing; leave them out or write that layer out"
        )


def matched_modules(backbone: Backbone, scope: str) -> list[str]:
    """Names of the network's modules that the scope's expression matches whole; InputError if there are none."""
    where, pattern = f"scope {scope!r}: {_pattern_of(backbone)}", backbone.lora_scopes[scope]
    modules = dict(backbone.network.named_modules())
    try:
        matched = [name for name in modules if re.fullmatch(pattern, name)]
    except re.error as problem:
        raise InputError(f"{where}: {pattern!r} is no regular expression ({problem}); correct it") from problem
    if not matched:
        linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
        raise InputError(f"{where}: {pattern!r} matches no module; linear layers are {_some(linear)}")
    return matched


def _pattern_of(backbone: Backbone) -> str:
    """What a user knows the expression as."""
    return "adapt" if backbone.network_name else f"lora_scopes of {backbone.family}"


def _reads_alone(modules: Mapping[str, nn.Module], name: str) -> str | None:
    """Class of torch above `name` that computes with its weights alone: always, or fused when no gradient flows."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        above: Any = modules[".".join(parts[:end])]
        if type(above).forward is nn.MultiheadAttention.forward:
            return nn.MultiheadAttention.__name__
        if type(above).forward is nn.TransformerEncoderLayer.forward and above.self_attn.batch_first:
            return nn.TransformerEncoderLayer.__name__
    return None


def _some(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _watched(backbone: Backbone) -> dict[str, RemovableHandle]:
    """Names of the adapted layers not called yet: each takes its own out, and its hook off, at its first call."""
    uncalled: dict[str, RemovableHandle] = {}
    for name, module in backbone.network.named_modules():
        if isinstance(module, LoraLayer) and isinstance(module, nn.Module):
            uncalled[name] = module.register_forward_pre_hook(partial(_called, uncalled, name))
    return uncalled


def _called(uncalled: dict[str, RemovableHandle], name: str, layer: nn.Module, inputs: Any) -> None:
    handle = uncalled.pop(name, None)
    if handle is not None:
        handle.remove()


def pass_the_base(backbone: Backbone) -> str:
    """What to do where the backbone is not the one: the fingerprint tells precisions apart, too."""
    kinds = {tensor.dtype for tensor in weights.base_state(backbone).values() if tensor.is_floating_point()}
    if kinds <= {torch.float32}:
        return "pass the matching checkpoint"
    here = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
    return f"pass the matching checkpoint in the precision it was saved in; this one is {here} now"


def _attach(backbone: Backbone, config: LoraConfig) -> list[LoraLayer]:
    """Inject both adapters, leave exactly them trainable, and give the layers that carry them."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # PEFT's own starting values are replaced
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        with torch.device("meta") if backbone.device.type == "meta" else nullcontext():
            for role in SIGNS:
                inject_adapter_in_model(config, backbone.network, adapter_name=role)
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_("lora_" in name)
    backbone.eval()  # injected modules arrive in training mode
    return [module for module in backbone.modules() if isinstance(module, LoraLayer)]


def _sign(role: str) -> Role:
    return "positive" if role == "positive" else "negative"


def _peft_name(name: str, role: str) -> str:
    """`decoder.x.lora_A.positive.weight` -> `base_model.model.decoder.x.lora_A.weight`."""
    return _PEFT_PREFIX + re.sub(rf"\.{role}\.", ".", name)


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """JSON-ready: PEFT's own saver turns sets into lists in the same way."""
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}


def _read_sidecar(folder: Path) -> dict[str, Any]:
    keys = ("role", "family", "base_fingerprint", "scope", "rank", "alpha")
    return weights.read_record(folder / SIDECAR, keys)


def _short(value: Any) -> Any:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else value
