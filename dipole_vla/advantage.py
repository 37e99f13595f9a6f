"""G from scored returns alone: each candidate against the other candidates of its scene."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from navsim_adapter.foundation.errors import InputError

TOLERANCE = 1e-6  # spread of returns, scores or G within a scene that is no preference: numbers between 0 and 1


def group_relative(returns: Tensor) -> Tensor:
    """Advantages (S, K) of K candidates per scene from their returns (S, K): (return - mean) / (std + 1e-6).

    Scenes that tell nothing apart (see `informative`) get 0 throughout; leave them out of training, where
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
    kept = torch.from_numpy(informative(returns.cpu().numpy())).to(returns.device)
    return torch.where(kept[:, None], advantages, torch.zeros_like(advantages))


def informative(values: np.ndarray) -> np.ndarray:
    """(S,) bool of returns, scores or advantages (S, K): scenes whose candidates differ.

    The one rule: what gets no advantage, what training leaves out, what `collect` and the report count. Group-relative
    advantages of scenes that differ are some tenths apart, so it finds the same scenes in them as in the returns.
    """
    return np.ptp(values, axis=1) > TOLERANCE
