"""A pair distilled into one network that takes omega as an input: guidance without the second pass.

The layer's update is (1 + w) D+ - w D- + w (1 + w) C(w), where D+ and D- are the pair's own updates, kept as they
are, and only the low-rank correction C is trained. At w = 0 and w = -1 it is therefore the positive and the negative
policy, whatever the training did. Without C it is the arithmetic merge of the two adapters, which is guidance to
first order in the updates; the second-order error of that merge is w (1 + w) / 2 times the network's curvature along
D+ - D-, hence the factor before C. Training is in `dipole_vla.export.distil`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.functional import linear

from dipole_vla.backbones import weights as checkpoint
from dipole_vla.backbones.base import Context
from dipole_vla.guidance import SIGNS, Role
from dipole_vla.policy.adapters import AdapterPair, pass_the_base
from dipole_vla.policy.mixed_rows import frozen, matrices, routed
from navsim_adapter.foundation.errors import InputError

FOLDER = "distilled"
_KEYS = ("base_fingerprint", "highest", "rank", "negative")


class DistilledPair:
    """The correction C of every adapted layer, and the single pass that uses it.

    pair: of scope "head"; frozen here. highest: the largest omega that training covers. rank: of C, default twice the
    pair's. negative: who takes the negative place in guidance; None (the base) for rules without a negative adapter.
    A fresh one is the arithmetic merge, since the second matrix of C starts at zero.
    """

    def __init__(
        self, pair: AdapterPair, highest: float = 4.0, rank: int | None = None, negative: Role = "negative"
    ) -> None:
        if not pair.shares_context:
            raise InputError("distil: the pair's scope is 'all'; only adapters of scope 'head' can be distilled")
        if not highest > 0:
            raise InputError(f"distil: the highest omega must be > 0, got {highest}")
        self.pair, self.highest, self.negative = pair, float(highest), negative
        self.rank = 2 * pair.rank if rank is None else rank
        names = {module: name for name, module in pair.backbone.named_modules()}
        self.names = [names[layer] for layer in pair.layers]
        self.corrections = nn.ModuleList(
            _Correction(layer, self.rank, index) for index, layer in enumerate(pair.layers)
        )
        self._folded: tuple[float, list[Tensor]] | None = None

    def parameters(self) -> Iterator[nn.Parameter]:
        """All that distillation trains."""
        return self.corrections.parameters()

    def fold(self, omega: float) -> None:
        """Add the updates of this one omega to copies of the layers' weights: it then costs what the backbone costs.

        Other omegas still work, at LoRA's price. The copies take the memory of the adapted layers once more.
        """
        with torch.no_grad():
            weights = []
            for layer, stack in zip(self.pair.layers, self._stacks()):
                base = frozen(layer).weight
                down, up, _ = stack
                gate = self._gate(stack, torch.tensor([omega], device=base.device))[0]
                weights.append(base + (up * gate @ down).to(base.dtype))
        self._folded = (float(omega), weights)

    def unfold(self) -> None:
        self._folded = None

    def at(self, omega: float | Tensor) -> AtOmega:
        """The network at one omega, or at one per scene (B,); matrices are put together once, with gradients to C."""
        folded = self._folded  # read once: another thread may fold
        if folded is not None and not isinstance(omega, Tensor) and folded[0] == float(omega):
            weights = folded[1]
            return AtOmega(self.pair, [_plain(layer, weight) for layer, weight in zip(self.pair.layers, weights)])
        forwards = []
        for layer, stack in zip(self.pair.layers, self._stacks()):
            values = torch.as_tensor(omega, dtype=torch.float32, device=stack[0].device).reshape(-1)
            forwards.append(_conditioned(layer, stack[0], stack[1], self._gate(stack, values)))
        return AtOmega(self.pair, forwards)

    def _stacks(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Per layer: (R, in) and (out, R) matrices of D+, D- and C on top of each other, and C's bend."""
        roles: Sequence[Role] = ("positive", self.negative)
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for layer, correction in zip(self.pair.layers, self.corrections):
            assert isinstance(correction, _Correction)
            own = [matrices(layer, role) for role in roles if role]
            down = torch.cat([*[first for first, _, _ in own], correction.down])
            up = torch.cat([*[second * scaling for _, second, scaling in own], correction.up], dim=1)
            found.append((down, up, correction.bend))
        return found

    def _gate(self, stack: tuple[Tensor, Tensor, Tensor], omega: Tensor) -> Tensor:
        """(n, R) factors between the two matrices for omegas (n,)."""
        omega, rank = omega[:, None].to(stack[0].dtype), self.pair.rank
        parts = [(1 + omega).expand(-1, rank)]
        if self.negative:
            parts.append((-omega).expand(-1, rank))
        curve = omega * (1 + omega) / (self.highest * (1 + self.highest))
        parts.append(curve * (1 + stack[2] * omega / self.highest))
        return torch.cat(parts, dim=1)

    def state(self) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": tensor.detach()
            for name, correction in zip(self.names, self.corrections)
            for key, tensor in correction.named_parameters()
        }

    def load_state(self, state: Mapping[str, Tensor], where: str) -> None:
        """Strictly; nothing changes unless every key and shape fits."""
        own = {
            f"{name}.{key}": tensor
            for name, correction in zip(self.names, self.corrections)
            for key, tensor in correction.named_parameters()
        }
        checkpoint.check_names(state, own, where)
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state[name])
        self.unfold()

    def save(self, folder: str | Path) -> None:
        """Write `folder/distilled`; the pair's own folders lie beside it."""
        target = Path(folder) / FOLDER
        checkpoint.write_tensors(target / "correction.safetensors", self.state())
        facts = (self.pair.base_fingerprint, self.highest, self.rank, self.negative)
        checkpoint.write_json(target / "distilled.json", dict(zip(_KEYS, facts)))

    @classmethod
    def from_pretrained(cls, pair: AdapterPair, folder: str | Path) -> DistilledPair:
        target = Path(folder) / FOLDER
        facts = checkpoint.read_record(target / "distilled.json", _KEYS)
        if facts["base_fingerprint"] != pair.base_fingerprint:
            raise InputError(
                f"{target}: distilled on base {facts['base_fingerprint'][:12]}…, this pair's is "
                f"{pair.base_fingerprint[:12]}…; {pass_the_base(pair.backbone)}"
            )
        found = cls(pair, facts["highest"], facts["rank"], facts["negative"])
        path = target / "correction.safetensors"
        found.load_state(checkpoint.read_tensors(path), str(path))
        return found


class AtOmega:
    """The distilled network at fixed omegas: `prepare` and `denoise` as a backbone's."""

    def __init__(self, pair: AdapterPair, forwards: Sequence[Callable[[Tensor], Tensor]]) -> None:
        self._pair, self._forwards = pair, dict[LoraLayer, Callable[[Tensor], Tensor]](zip(pair.layers, forwards))

    def prepare(self, context: Context) -> Context:
        with routed(self._route):
            return self._pair.backbone.prepare(context)

    def denoise(self, context: Context, x_t: Tensor, t: Tensor) -> Tensor:
        """The guided native prediction in one pass; context of this object's own `prepare`."""
        with routed(self._route):
            return self._pair.backbone.denoise(context, x_t, t)

    def _route(self, layer: LoraLayer, x: Tensor) -> Tensor:
        return self._forwards[layer](x)


def _plain(layer: LoraLayer, weight: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: linear(x, weight, frozen(layer).bias)


def _conditioned(layer: LoraLayer, down: Tensor, up: Tensor, gate: Tensor) -> Callable[[Tensor], Tensor]:
    """The layer with the update up @ diag(gate) @ down; gate (n, R), where each of n scenes owns as many rows of x."""

    def forward(x: Tensor) -> Tensor:
        scale = gate.repeat_interleave(x.shape[0] // len(gate), 0) if len(gate) > 1 else gate
        hidden = linear(x, down) * scale.reshape(-1, *[1] * (x.dim() - 2), scale.shape[-1])
        return frozen(layer)(x) + linear(hidden, up)

    return forward


class _Correction(nn.Module):
    """C of one layer: up (out, k) @ diag(gate) @ down (k, in), where k is its rank.

    `down` starts along the pair's own first matrices, which are the directions guidance bends; `up` at zero.
    """

    def __init__(self, layer: LoraLayer, rank: int, index: int) -> None:
        super().__init__()
        base = frozen(layer)
        own = torch.cat([matrices(layer, role)[0].detach() for role in SIGNS])
        generator = torch.Generator().manual_seed(index)
        extra = torch.rand(max(rank - len(own), 0), base.in_features, generator=generator, device="cpu") * 2 - 1
        start = torch.cat([own[:rank], (extra / base.in_features**0.5).to(own)])
        self.down = nn.Parameter(start.clone())
        self.up = nn.Parameter(torch.zeros(base.out_features, rank, dtype=own.dtype, device=own.device))
        self.bend = nn.Parameter(torch.zeros(rank, dtype=own.dtype, device=own.device))
