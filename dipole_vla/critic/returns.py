"""G from scored returns alone: each candidate against the other candidates of its scene."""

from __future__ import annotations

import torch
from torch import Tensor

from navsim_adapter.errors import InputError


def group_relative(returns: Tensor, tolerance: float = 1e-6) -> Tensor:
    """Advantages (S, K) of K candidates per scene from their returns (S, K): (return - mean) / (std + 1e-6).

    Scenes that tell nothing apart (see `informative_groups`) get 0 throughout; leave them out of training, where
    they would be plain imitation of the policy's own samples.
    """
    if returns.dim() != 2 or returns.shape[1] < 2:
        raise InputError(
            f"returns: must be (scenes, candidates) with at least 2 candidates, got {tuple(returns.shape)}"
        )
    if not torch.isfinite(returns).all():
        scene = int((~torch.isfinite(returns)).any(1).nonzero()[0])
        raise InputError(f"returns: not finite in scene row {scene}; score the candidates again")
    centred = returns - returns.mean(1, keepdim=True)
    advantages = centred / (returns.std(1, correction=0, keepdim=True) + 1e-6)
    return torch.where(informative_groups(returns, tolerance)[:, None], advantages, torch.zeros_like(advantages))


def informative_groups(returns: Tensor, tolerance: float = 1e-6) -> Tensor:
    """(S,) whether a scene's candidates score differently at all (spread above `tolerance`)."""
    return returns.amax(1) - returns.amin(1) > tolerance
