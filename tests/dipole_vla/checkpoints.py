"""Training checkpoints compared to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

STATE = ("state_dict", "optimizer_states", "lr_schedulers", "global_step")


def same_state(first: Path, second: Path) -> bool:
    """Whether two checkpoints hold equal weights, optimiser, schedule and step."""
    one, two = (torch.load(path, weights_only=True) for path in (first, second))
    return all(same(one[key], two[key]) for key in STATE)


def same(one: Any, two: Any) -> bool:
    """Equality of nested containers, of tensors to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two)
