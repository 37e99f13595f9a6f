"""A running mean of what trains, in float32: steadier weights to export than those of the last step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from navsim_adapter.foundation.errors import InputError


class WeightMean:
    """Exponential moving average of named parameters.

    The n-th update keeps min(decay, (1 + n) / (10 + n)) of the mean, so that a short run is not all start values.
    """

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], decay: float):
        if not 0 < decay < 1:
            raise InputError(f"model.ema_decay: must be in (0, 1), or 0 for none, got {decay}")
        self.parameters = dict(named)
        if any(hasattr(parameter, "ds_id") for parameter in self.parameters.values()):
            raise InputError("model.ema_decay: DeepSpeed stage 3 keeps no whole weights to average; use stage 2 or 0")
        self.decay, self.updates = decay, 0
        self.mean = {name: parameter.detach().float().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters as they are now."""
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, parameter in self.parameters.items():
            self.mean[name].lerp_(parameter.float(), 1 - keep)

    def state(self) -> dict[str, Any]:
        return {"updates": self.updates, "mean": self.mean}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, to the bit."""
        found: Mapping[str, Tensor] = state["mean"]
        if found.keys() != self.mean.keys():
            raise InputError("checkpoint: its mean of the weights is of other parameters; start afresh")
        self.updates = state["updates"]
        for name, tensor in found.items():
            self.mean[name].copy_(tensor)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the parameters hold the mean within the block, in float32."""
        raw = {name: parameter.data for name, parameter in self.parameters.items()}
        try:
            for name, parameter in self.parameters.items():
                parameter.data = self.mean[name].to(parameter.device)
            yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.data = raw[name]
