"""Any `nn.Module` that denoises actions, behind the seam of the model families: no scenes, no configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dipole_vla.backbones.action import Action
from dipole_vla.backbones.base import Backbone, Context, Processor
from dipole_vla.paths import Prediction, Schedule
from dipole_vla.solvers import SolverSpec
from navsim_adapter.foundation.errors import InputError

Encode = Callable[[nn.Module, Any], Mapping[str, Tensor]]
"""(network, observation) -> named tensors of B rows: all that does not depend on the noisy action."""

DenoiseOwn = Callable[[nn.Module, Mapping[str, Tensor], Tensor, Tensor], Tensor]
"""(network, tensors of `Encode`, x_t (rows, *shape), t (rows,)) -> native prediction of x_t's shape.

The tensors have one row for each row of x_t. x_t is float32; t is float32, or int64 where the schedule counts steps.
"""


class OwnNetwork(Backbone):
    """See the module docstring. Adapters carry the names of `net`, so that other programs load them into it.

    net: changed in place by a pair of adapters.
    lora_scopes: as of `Backbone`, over the names of `net`.
    """

    family = "own network"
    config_class = dict
    encoder_names: ClassVar[tuple[str, ...]] = ()
    network_name = "net"

    def __init__(
        self,
        net: nn.Module,
        encode: Encode,
        denoise: DenoiseOwn,
        schedule: Schedule,
        prediction: Prediction,
        action: Action,
        solver: SolverSpec,
        lora_scopes: Mapping[str, str],
    ) -> None:
        super().__init__({}, action, solver)  # type: ignore[arg-type]  # families are of poses; policies ask no more
        self.net = net
        self._encode, self._denoise = encode, denoise
        self._schedule, self._prediction = schedule, prediction
        self.lora_scopes = lora_scopes  # type: ignore[misc]

    @property
    def schedule(self) -> Schedule:
        return self._schedule

    @property
    def prediction(self) -> Prediction:
        return self._prediction

    def processor(self) -> Processor:
        raise InputError("own network: it has no processor of driving scenes; write a family (docs/add-a-backbone.md)")

    def features(self, context: Context) -> Tensor:
        raise InputError("own network: it has no features for a fitted critic; give `act` a critic of your own")

    def encode(self, observation: Any) -> Context:
        return Context(_checked(self._encode(self._steady(), observation)))

    def denoise(self, context: Context, x_t: Tensor, t: Tensor) -> Tensor:
        tensors = _per_row(context, len(x_t)).tensors
        output = self._denoise(self._steady(), tensors, x_t, self.schedule.network_time(t))
        if not isinstance(output, Tensor) or output.shape != x_t.shape or not output.is_floating_point():
            found = f"{output.dtype} {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise InputError(f"denoise: must return real numbers of x_t's shape {tuple(x_t.shape)}, got {found}")
        return output.float()

    def _steady(self) -> nn.Module:
        """The network in evaluation mode, which its owner may have left."""
        if self.is_frozen and self.net.training:
            self.net.eval()
        return self.net


def _checked(tensors: Any) -> dict[str, Tensor]:
    """What `encode` returned, as named tensors of one number of rows."""
    if not isinstance(tensors, Mapping) or not tensors or not all(_has_rows(tensor) for tensor in tensors.values()):
        raise InputError("encode: must return a mapping of names to tensors with one row per observation")
    rows = {str(name): len(tensor) for name, tensor in tensors.items()}
    if len(set(rows.values())) > 1 or 0 in rows.values():
        raise InputError(f"encode: its tensors must have one row per observation, at least one, got {rows}")
    return dict(tensors)


def _has_rows(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.dim() > 0


def _per_row(context: Context, rows: int) -> Context:
    """The context with one row for each row of x_t."""
    if context.serves is not None:
        return context.rows(context.serves)
    group = rows // len(context)
    if group == 1:
        return context
    return context.rows(torch.arange(rows, device=next(iter(context.tensors.values())).device) // group)
