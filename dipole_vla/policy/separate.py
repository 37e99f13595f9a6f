"""The pair as two full copies of the head (or of the backbone) instead of two adapters: the paper's RL choice.

For small models: three heads in memory, every weight of two of them trained. Same face as `AdapterPair`, so that
losses, sampling and policy folders do not know which they have. `PAIRS` names both; `load_pair` tells them apart on
disk.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from threading import get_ident
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from dipole_vla.backbones import weights
from dipole_vla.backbones.base import Backbone, Context, Observation
from dipole_vla.guidance import SIGNS, Role
from dipole_vla.objective import Denoise
from dipole_vla.policy.adapters import SIDECAR, AdapterPair, matched_modules, pass_the_base
from navsim_adapter.foundation.errors import InputError, did_you_mean

PairKind = Literal["lora", "separate"]

WEIGHTS = "model.safetensors"
_FACTS = ("role", "family", "base_fingerprint", "scope")
M = TypeVar("M", bound=nn.Module)


class SeparatePair:
    """Owns a positive and a negative copy of a part of the backbone, which it freezes for good.

    A fresh pair is the base policy for every omega: both copies start as the base.

    backbone: stays itself; each sign has a view of it, in which its copy is the part, and all else is shared.
    scope: "head" copies all but the encoder, so both signs share one encoding; any other scope copies the whole
        backbone. Of somebody else's network the outermost modules are copied that the scope's expression matches.
    """

    def __init__(self, backbone: Backbone, scope: str = "head") -> None:
        if scope not in backbone.lora_scopes:
            hint = did_you_mean(scope, list(backbone.lora_scopes))
            raise InputError(f"scope: {scope!r} is not one of {', '.join(backbone.lora_scopes)}{hint}")
        self.backbone, self.scope = backbone, scope
        self.base_fingerprint = backbone.fingerprint()
        self.paths = _copied(backbone, scope)
        own = [backbone.network.get_submodule(path) for path in self.paths]
        self.copies = nn.ModuleDict({role: nn.ModuleList(copy.deepcopy(own)) for role in SIGNS})
        backbone.freeze()
        self.copies.requires_grad_(True).eval()
        self.views: dict[Role, Backbone] = {None: backbone}
        within = backbone.network_name and f"{backbone.network_name}."
        for role in SIGNS:
            copies: Any = self.copies[role]
            parts = {f"{within}{path}": part for path, part in zip(self.paths, copies)}
            self.views[role] = _with_parts(backbone, parts)
        self._has_encoded = False

    @property
    def shares_context(self) -> bool:
        return self.scope == "head"

    def encode(self, observation: Observation, roles: Sequence[Role] = SIGNS) -> dict[Role, Context]:
        """The scenes' context under each role; one and the same, encoded once, if `shares_context`."""
        if self.shares_context:
            with nullcontext() if self._has_encoded else self._untouched():
                context = self.backbone.encode(observation)
            self._has_encoded = True
            return dict.fromkeys(roles, context)
        return {role: self.views[role].encode(observation) for role in roles}

    @contextmanager
    def _untouched(self) -> Iterator[None]:
        """InputError where this thread runs a copied part within the block, which is the encoding all roles share."""
        thread = get_ident()

        def refuse(path: str, module: nn.Module, inputs: Any) -> None:
            if get_ident() == thread:
                advice = 'leave it out, or use scope="all"'
                raise InputError(f"scope 'head': encode runs {path}, of which each sign has a copy; {advice}")

        parts = {path: self.backbone.network.get_submodule(path) for path in self.paths}
        hooks = [part.register_forward_pre_hook(partial(refuse, path)) for path, part in parts.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def prepare(self, context: Context, role: Role) -> Context:
        """The head's work on the context alone, under `role`: valid for that role's `denoise` only."""
        return self.views[role].prepare(context)

    def denoise(self, context: Context, x_t: Tensor, t: Tensor, role: Role) -> Tensor:
        """Native prediction of one role, float32, shape of x_t (B*G, horizon, dim); see `Backbone.denoise`."""
        return self.views[role].denoise(context, x_t, t)

    def denoiser(self, contexts: Mapping[Role, Context], group: int = 1) -> Denoise:
        """What `objective.dichotomous_loss` calls, for a batch of `group` actions per scene of the contexts."""

        def denoise(role: Role, x_t: Tensor, t: Tensor, rows: Tensor | None) -> Tensor:
            context = contexts[role] if rows is None else contexts[role].serving(rows // group)
            return self.denoise(context, x_t, t, role)

        return denoise

    def parameters(self, role: Role = None) -> Iterator[nn.Parameter]:
        """All that trains: both copies, or one sign's."""
        return (parameter for _, parameter in self.named_parameters(role))

    def named_parameters(self, role: Role = None) -> Iterator[tuple[str, nn.Parameter]]:
        return (self.copies[role] if role else self.copies).named_parameters()

    def state(self, role: str) -> dict[str, Tensor]:
        """Tensors of one sign under the backbone's own names."""
        copies: Any = self.copies[role]
        return {
            f"{path}.{name}": tensor
            for path, module in zip(self.paths, copies)
            for name, tensor in module.state_dict().items()
        }

    def save(self, folder: str | Path) -> None:
        """Write `folder/positive` and `folder/negative`: weights, and a sidecar of role and base."""
        for role in SIGNS:
            weights.write_tensors(Path(folder) / role / WEIGHTS, self.state(role))
            weights.write_json(Path(folder) / role / SIDECAR, self._sidecar(role))

    def load(self, folder: str | Path) -> None:
        """Read what `save` wrote into this pair; InputError (nothing changed) unless role, base and names all match."""
        states = {role: self._read(Path(folder) / role, role) for role in SIGNS}
        with torch.no_grad():
            for role, state in states.items():
                for name, tensor in self.state(role).items():
                    tensor.copy_(state[name])

    @classmethod
    def from_pretrained(cls, backbone: Backbone, folder: str | Path) -> SeparatePair:
        """A pair of the saved scope on `backbone`, with the saved weights."""
        pair = cls(backbone, weights.read_record(Path(folder) / "positive" / SIDECAR, _FACTS)["scope"])
        pair.load(folder)
        return pair

    def _sidecar(self, role: str) -> dict[str, Any]:
        facts = (role, self.backbone.family, self.base_fingerprint, self.scope)
        return dict(zip(_FACTS, facts))

    def _read(self, folder: Path, role: str) -> dict[str, Tensor]:
        found, own = weights.read_record(folder / SIDECAR, _FACTS), self._sidecar(role)
        for fact in _FACTS:
            if found[fact] != own[fact]:
                name = "base" if fact == "base_fingerprint" else fact
                raise InputError(
                    f"{folder}: {name} is {str(found[fact])[:12]}, this pair's is {str(own[fact])[:12]}; "
                    + ("put each folder under its role's name" if fact == "role" else pass_the_base(self.backbone))
                )
        state = weights.read_tensors(folder / WEIGHTS)
        weights.check_names(state, self.state(role), str(folder / WEIGHTS))
        return state


Pair = AdapterPair | SeparatePair


def make_pair(
    kind: PairKind,
    backbone: Backbone,
    scope: str = "head",
    rank: int = 32,
    alpha: float | None = None,
    seed: int = 0,
    trained: Sequence[Role] = SIGNS,
) -> Pair:
    """A fresh pair of that kind; rank, alpha and seed are the adapters' only. trained: roles that require gradients."""
    if kind not in get_args(PairKind):
        raise InputError(f"pair: must be one of {', '.join(get_args(PairKind))}, got {kind!r}")
    made: Pair = (
        SeparatePair(backbone, scope) if kind == "separate" else AdapterPair(backbone, scope, rank, alpha, seed)
    )
    for role in SIGNS:
        for parameter in made.parameters(role):
            parameter.requires_grad_(role in trained)
    return made


def load_pair(backbone: Backbone, folder: str | Path) -> Pair:
    """The pair of a policy folder, of the kind that was saved there."""
    kind = SeparatePair if (Path(folder) / "positive" / WEIGHTS).is_file() else AdapterPair
    return kind.from_pretrained(backbone, folder)


def _with_parts(module: M, parts: Mapping[str, nn.Module]) -> M:
    """A view of the module with other ones at these paths: all else, weights and settings, is shared with it."""
    view = copy.copy(module)
    view._modules = dict(module._modules)
    inside: dict[str, dict[str, nn.Module]] = {}
    for path, part in parts.items():
        name, _, rest = path.partition(".")
        if rest:
            inside.setdefault(name, {})[rest] = part
        else:
            view._modules[name] = part
    for name, deeper in inside.items():
        view._modules[name] = _with_parts(module.get_submodule(name), deeper)
    return view


def _copied(backbone: Backbone, scope: str) -> list[str]:
    """Paths in the network of the modules that each sign has a copy of."""
    if not backbone.network_name:
        return _head_of(backbone) if scope == "head" else [name for name, _ in backbone.named_children()]
    matched = matched_modules(backbone, scope)
    if "" in matched:
        raise InputError(f"adapt: {backbone.lora_scopes[scope]!r} matches the network itself; name parts of it")
    paths = [path for path in matched if not any(path.startswith(f"{outer}.") for outer in matched)]
    bare = [path for path in paths if not any(True for _ in backbone.network.get_submodule(path).parameters())]
    if bare:
        raise InputError(f"adapt: {bare[0]} has no weights, so a copy of it learns nothing; leave it out")
    return paths


def _head_of(backbone: Backbone) -> list[str]:
    """Paths of the largest modules that hold nothing of the encoder: together all that is not the encoder."""
    encoder = tuple(name.rstrip(".") + "." for name in backbone.encoder_names)

    def largest(module: nn.Module, path: str) -> Iterator[str]:
        for name, child in module.named_children():
            inside = f"{path}{name}."
            if inside.startswith(encoder) or not any(True for _ in child.parameters()):
                continue
            if any(part.startswith(inside) for part in encoder):
                yield from largest(child, inside)
            else:
                yield inside.rstrip(".")

    return list(largest(backbone, ""))
