"""The one seam between DIPOLE and a model family: what every backbone must offer, and the records it is described by.

A backbone owns what it encodes once per scene, its native prediction, its schedule and its units. It does not
own losses, solvers, guidance or adapters (`dipole_vla.objective`, `.solvers`, `.guidance`, `.policy.adapters`).
A new family is one class derived from `Backbone`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from dipole_vla.backbones import weights
from dipole_vla.backbones.action import ActionSpec
from dipole_vla.paths import Prediction, Schedule
from dipole_vla.solvers import SolverSpec
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.sampling import Sampling

if TYPE_CHECKING:
    from PIL.Image import Image

Observation = dict[str, Tensor]


@dataclass(frozen=True)
class Context:
    """What a backbone knows about a batch of scenes before any action is looked at: named tensors of B rows.

    serves: for each row of x_t the scene it belongs to, int64; None when scene i serves rows [i*G, (i+1)*G).
    rounds: how often the rows of x_t go through the scenes: 2 where rows of two roles, one after the other, share them.
        `serves` then counts the second role's scenes on from B, and what was prepared for each role has 2 B rows.
    """

    tensors: Mapping[str, Tensor]
    serves: Tensor | None = None
    rounds: int = 1

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __len__(self) -> int:
        """Number of scenes B."""
        return next(iter(self.tensors.values())).shape[0]

    def rows(self, index: Tensor) -> Context:
        """The context of scenes `index` (int64; repeats allowed), in that order."""
        return Context({name: tensor.index_select(0, index) for name, tensor in self.tensors.items()})

    def serving(self, scenes: Tensor) -> Context:
        """For noisy actions whose row j belongs to scene scenes[j] (int64), only the scenes needed kept.

        Where most are needed all are kept, as the same tensors: work on them can then be shared between the signs.
        """
        needed, serves = torch.unique(scenes, return_inverse=True)
        if 4 * len(needed) > 3 * len(self):
            return replace(self, serves=scenes)
        return replace(self.rows(needed), serves=serves)

    def part(self, start: int, length: int) -> Context:
        """`length` rows from `start`, uncopied."""
        return Context({name: tensor.narrow(0, start, length) for name, tensor in self.tensors.items()})

    def stacked(self, other: Context) -> Context:
        """The rows of this context, then those of another of the same names; one row each serves as many actions."""
        assert self.serves is None
        assert other.serves is None
        return Context({name: _stacked(tensor, other[name]) for name, tensor in self.tensors.items()})

    def joined(self, other: Context) -> Context:
        """As `stacked`, but what both have as one tensor stays as it is, for the rows of two roles."""
        shared = {name: tensor for name, tensor in self.tensors.items() if tensor is other[name]}
        own = {name: _stacked(tensor, other[name]) for name, tensor in self.tensors.items() if name not in shared}
        return Context(shared | own, rounds=2)

    def detach(self) -> Context:
        return replace(self, tensors={name: tensor.detach() for name, tensor in self.tensors.items()})

    def to(self, *target: Any, **options: Any) -> Context:
        """Every tensor moved or cast, as `Tensor.to`."""
        return replace(self, tensors={name: tensor.to(*target, **options) for name, tensor in self.tensors.items()})

    def extended(self, tensors: Mapping[str, Tensor]) -> Context:
        """This context with more tensors of the same B rows."""
        return replace(self, tensors={**self.tensors, **tensors})


def _stacked(first: Tensor, second: Tensor) -> Tensor:
    """Concatenated along the first axis, in the memory order of `first`, which its producer and reader like best."""
    strides = first.stride()
    order = sorted(range(first.dim()), key=lambda axis: (axis > 0, -strides[axis]))
    back = [order.index(axis) for axis in range(first.dim())]
    return torch.cat([first.permute(order), second.permute(order)]).permute(back)


class Processor(Protocol):
    """Turns one scene into the tensors `Backbone.encode` takes. Picklable, holds no weights, opens no files."""

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names in the scene row's `cameras` struct whose pictures are wanted, e.g. ("CAM_F0",)."""
        ...

    def __call__(self, scene: Mapping[str, Any], images: Mapping[str, Image]) -> Observation:
        """One row of the scenes table and its RGB pictures by camera name -> tensors without batch axis, stackable."""
        ...


@runtime_checkable
class Showing(Processor, Protocol):
    """A processor that takes each picture for itself, so that a server can have it done as pictures come."""

    def shown(self, image: Image) -> Tensor:
        """What the network takes of one RGB picture."""
        ...

    def __call__(self, scene: Mapping[str, Any], images: Mapping[str, Image | Tensor]) -> Observation:
        """As `Processor`; a tensor is what `shown` has made of a picture."""
        ...


class JoinedSizes:
    """A configuration that joins the sizes of several networks: a dataclass derived from theirs."""

    def part(self, sizes: type[Any]) -> Any:
        """The fields of this configuration that the dataclass `sizes` has."""
        return sizes(**{field.name: getattr(self, field.name) for field in fields(sizes)})


class Backbone(nn.Module, ABC):
    """A pretrained model that denoises actions: its encoding of a scene, its prediction, its schedule and its units.

    Losses, solvers, guidance and adapters are not its own. Shapes: B scenes, G noisy actions for each.

    config: the family's frozen dataclass of sizes.
    action, solver: what its numbers mean, and how it is sampled.
    """

    family: ClassVar[str]
    config_class: ClassVar[type]
    action_class: ClassVar[type] = ActionSpec
    """The kind of action that its config.json holds; others are in `dipole_vla.backbones.action`."""
    lora_scopes: ClassVar[Mapping[str, str]]
    """{"head": regex, "all": regex} over module names; "head" must leave `encode` untouched."""
    encoder_names: ClassVar[tuple[str, ...]] = ("encoder.",)
    """How the names of the pretrained encoder's parameters begin: imitation may train them slower, or not at all."""
    reads_blocks: ClassVar[bool] = False
    """Whether `encode` calls parts of its encoder's blocks, never the blocks: FSDP2 then gathers the encoder whole."""
    adapts_rows_only: ClassVar[bool] = False
    """Whether `denoise` shows adapted layers rows of x_t alone, and heeds `Context.rounds`: roles then share what
    `prepare` leaves as it is."""
    network_name: ClassVar[str] = ""
    """Attribute with the network whose names adapters carry, where that is somebody else's; empty: the backbone."""

    def __init__(self, config: Any, action: ActionSpec, solver: SolverSpec) -> None:
        super().__init__()
        self.config = config
        self.action = action
        self.solver = solver
        self.is_frozen = False

    @property
    @abstractmethod
    def schedule(self) -> Schedule:
        """The path from data to noise the network was trained on, with its own time convention."""

    @property
    @abstractmethod
    def prediction(self) -> Prediction:
        """What `denoise` returns: "noise", "sample" (the clean action) or "velocity"."""

    @abstractmethod
    def processor(self) -> Processor: ...

    @abstractmethod
    def encode(self, observation: Observation) -> Context:
        """All that does not depend on the noisy action, once per scene; observation tensors have B rows."""

    @abstractmethod
    def denoise(self, context: Context, x_t: Tensor, t: Tensor) -> Tensor:
        """Native prediction, float32, for noisy actions x_t (B*G, horizon, dim) at times t (B*G,) of `schedule`.

        Row i of the context (B rows) serves rows [i*G, (i+1)*G) of x_t, unless `context.serves` says otherwise.
        """

    @abstractmethod
    def features(self, context: Context) -> Tensor:
        """(B, d) pooled features of the scenes, for a critic."""

    def prepare(self, context: Context) -> Context:
        """Do, under the adapter active now, the head's work that depends neither on x_t nor on t.

        Optional; `denoise` takes prepared and unprepared contexts. A prepared context must not be used under
        another adapter.
        """
        return context

    def to_action(self, raw: Tensor, context: Callable[[], Context]) -> Tensor:
        """Raw actions (B, K, *raw shape) as the network has them.

        context: gives the B scenes, for a kind of action that starts from what the scene says; called only then.
        """
        return self.action.encode(raw)

    def to_raw(self, action: Tensor, context: Callable[[], Context]) -> Tensor:
        """Inverse of `to_action`: (B, K, *shape) -> raw actions (B, K, *raw shape)."""
        return self.action.decode(action)

    def save_assets(self, folder: Path) -> None:
        """Write what is neither configuration nor weights (a tokenizer). Default: nothing."""

    def load_assets(self, folder: Path) -> None:
        """Read what `save_assets` wrote."""

    @property
    def network(self) -> nn.Module:
        """The module that carries the adapters; `lora_scopes` and saved adapters speak of its names."""
        return self.get_submodule(self.network_name)

    @property
    def sampling(self) -> Sampling:
        """When its plans, ego poses, have poses."""
        return Sampling(self.action.horizon, self.action.interval)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def freeze(self) -> None:
        """No gradients, and evaluation mode for good: else dropout would show the roles different noise."""
        self.is_frozen = True
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`, but a frozen backbone stays in evaluation mode."""
        return super().train(mode and not self.is_frozen)

    def fingerprint(self) -> str:
        """SHA-256 over names, shapes and values of the base weights and the action's meaning; adapters left out."""
        return weights.fingerprint(weights.base_state(self.network), {"action": self.action.meaning()})

    def save_pretrained(self, folder: str | Path, max_shard_bytes: int = weights.MAX_SHARD_BYTES) -> None:
        """Write config.json, model.safetensors (without adapters; in shards above `max_shard_bytes`) and assets."""
        folder = Path(folder)
        weights.write_shards(folder / "model.safetensors", weights.base_state(self), max_shard_bytes)
        self.save_assets(folder)
        description = {
            "family": self.family,
            "config": asdict(self.config),
            "action": asdict(self.action),
            "solver": asdict(self.solver),
        }
        weights.write_json(folder / "config.json", description)

    @classmethod
    def from_config(cls, folder: str | Path) -> Self:
        """The network that config.json describes, on the meta device: names, shapes and counts without weights."""
        folder = Path(folder)
        raw = weights.read_record(folder / "config.json", ("family", "config", "action", "solver"))
        if raw["family"] != cls.family:
            raise InputError(
                f"{folder}: holds a {raw['family']!r} model, {cls.family!r} was wanted; "
                "use dipole_vla.backbones.load_backbone or pass the matching checkpoint"
            )
        where = f"{folder / 'config.json'}: "
        with torch.device("meta"):
            return cls(
                weights.record_from(cls.config_class, raw["config"], where + "config"),
                cls.action_class.from_record(raw["action"], where + "action"),  # type: ignore[attr-defined]
                weights.record_from(SolverSpec, raw["solver"], where + "solver"),
            )

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device = "cpu") -> Self:
        """Read a folder written by `save_pretrained`, strictly; InputError names the first thing that does not fit.

        The network is built on the meta device, so the weights are in memory once.
        """
        folder, model = Path(folder), cls.from_config(folder)
        weights.load_strict(model, folder / "model.safetensors", device)
        model.load_assets(folder)
        return model.eval()
