"""What a user may choose about a backbone, because published files do not say it: cameras, seconds between poses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch

from dipole_vla.backbones.base import ActionSpec, Backbone
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.words import counted


def choose_interval(model: Backbone, interval: float) -> None:
    """Put the poses of its plans `interval` seconds apart; InputError where the family's own numbers fix it."""
    if not isinstance(model.action, ActionSpec):
        raise InputError(f"interval: plans of family {model.family} have their own; leave it out")
    model.action = replace(model.action, interval=interval)


def choose_cameras(model: Backbone, cameras: Sequence[str]) -> None:
    """Show it these cameras' pictures as its views, in this order; InputError where its weights are for other views."""
    names = {field.name for field in fields(model.config)}
    shown: dict[str, Any] = {"cameras": tuple(cameras)} if "cameras" in names else {"camera": cameras[0]}
    if not shown.keys() <= names or ("camera" in shown and len(cameras) > 1):
        raise InputError(f"cameras: family {model.family} is shown one picture or none, got {', '.join(cameras)}")
    config = replace(model.config, **shown)
    with torch.device("meta"):
        other = type(model)(config, model.action, model.solver)
    if _shapes(other) != _shapes(model):
        raise InputError(
            f"cameras: these weights do not fit {counted(len(cameras), 'picture')}; name as many as they "
            "were trained with"
        )
    model.config = config


def _shapes(model: Backbone) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}
