"""G, the advantage of a candidate, from scored returns: each against the other candidates of its scene, and as the
recipe's `data.advantage` asks (`forming`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dipole_vla.forming import HOW, Advantage, Normalise, Reward
from navsim_adapter.foundation.errors import InputError, did_you_mean

TOLERANCE = 1e-6  # spread of returns, scores or G within a scene that is no preference: numbers between 0 and 1
NOT_TERMS = ("token", "index", "source", "poses", "return", "advantage", "sign")  # columns that are no sub-scores


def group_relative(returns: Tensor, normalise: Normalise = "std") -> Tensor:
    """Advantages (S, K) of K candidates per scene from their returns (S, K).

    normalise: std = (return - mean) / (std + 1e-6) over the scene; mean = return - mean; none = the return itself.

    Scenes that tell nothing apart (see `informative`) get 0 throughout; leave them out of training, where
    they would be plain imitation of the policy's own samples.
    """
    if normalise not in HOW:
        raise InputError(f"normalise: must be one of {', '.join(HOW)}, got {normalise!r}")
    if returns.dim() != 2 or returns.shape[1] < 2:
        raise InputError(
            f"returns: must be (scenes, candidates) with at least 2 candidates, got {tuple(returns.shape)}"
        )
    finite = returns.isfinite()
    if not finite.all():
        scene = int((~finite).any(1).nonzero()[0])
        raise InputError(f"returns: not finite in scene row {scene}; score the candidates again")
    advantages = returns if normalise == "none" else returns - returns.mean(1, keepdim=True)
    if normalise == "std":
        advantages = advantages / (returns.std(1, correction=0, keepdim=True) + 1e-6)
    kept = torch.from_numpy(informative(returns.cpu().numpy())).to(returns.device)
    return torch.where(kept[:, None], advantages, torch.zeros_like(advantages))


def informative(values: np.ndarray) -> np.ndarray:
    """(S,) bool of returns, scores or advantages (S, K): scenes whose candidates differ.

    The one rule: what gets no advantage, what training leaves out, what `collect` and the report count. Group-relative
    advantages of scenes that differ are some tenths apart, so it finds the same scenes in them as in the returns.
    """
    return np.ptp(values, axis=1) > TOLERANCE


@dataclass(frozen=True)
class Formed:
    """Arrays (scenes, K), in the order of the table.

    returns: what G is formed of.  kept: (scenes,) bool, those that are trained on.  sign: 1 or -1 where a row is one
    policy's alone, 0 elsewhere; None where no row is.  weight: what a row counts in the loss; None where all count 1.
    """

    advantage: np.ndarray
    returns: np.ndarray
    kept: np.ndarray
    sign: np.ndarray | None
    weight: np.ndarray | None


def formed(how: Advantage, columns: Mapping[str, np.ndarray], folder: Path, is_critics: bool = False) -> Formed:
    """columns: of the table, each (scenes, K).  folder: of it, for messages.  is_critics: its G is a critic's.

    A scene is kept if its G tells candidates apart or a row of it has a fixed sign; in a scene that is kept for such
    rows alone, the others count 0. InputError names a column that is wanted and not there, and what is wrong in one.
    """
    if is_critics and not how.is_recorded:
        key = "reward" if how.reward.names else "normalise"
        raise InputError(
            f"data.advantage.{key}: {folder} holds a critic's G, not one of returns; give the candidates that "
            "`collect` wrote, or leave the key out"
        )
    returns = returns_of(how.reward, columns, folder)
    advantage = columns["advantage"]
    if not how.is_recorded:
        advantage = group_relative(torch.tensor(returns), how.normalise).numpy()  # a copy: the table is read-only
    apart = informative(advantage)
    if how.quantile is not None:
        advantage = advantage - np.quantile(advantage, how.quantile, axis=1, method="higher", keepdims=True)
    sign = _sign(how, columns, folder)
    fixed = np.zeros(advantage.shape, bool) if sign is None else sign != 0
    kept = apart | fixed.any(1)
    weight = np.where(apart[:, None] | fixed, _weight(how, columns, folder), 0.0)
    if how.reference_below is not None:
        kept &= _reference(columns, returns, folder) < how.reference_below
        if not kept.any():
            raise InputError(
                f"data.advantage.reference_below: {how.reference_below} leaves no scene of {folder}; raise it"
            )
    return Formed(advantage, returns, kept, sign, None if (weight[kept] == 1).all() else weight)


def returns_of(reward: Reward, columns: Mapping[str, np.ndarray], folder: Path) -> np.ndarray:
    """(scenes, K) float64: the metric's own, or the product of the gates and the weighted mean of the other terms."""
    if not reward.names:
        return columns["return"]
    known = [name for name in columns if name not in NOT_TERMS]
    for name in reward.names:
        if name not in known:
            near = did_you_mean(name, known)
            raise InputError(
                f"data.advantage.reward: {folder} has no sub-score {name!r}{near}; there are {', '.join(known)}"
            )
    found = np.ones(columns["return"].shape)
    for name in reward.gates:
        found = found * columns[name]
    if reward.weights:
        total = sum(reward.weights.values())
        found = found * sum(weight * columns[name] for name, weight in reward.weights.items()) / total
    return found


def _sign(how: Advantage, columns: Mapping[str, np.ndarray], folder: Path) -> np.ndarray | None:
    """The column `sign`, where there is one, and the human's by its key."""
    sign = columns["sign"] if "sign" in columns else np.zeros(columns["return"].shape)
    wrong = ~np.isin(sign, (-1, 0, 1))
    if wrong.any():
        token, value = columns["token"][wrong][0], sign[wrong][0]
        raise InputError(
            f"{folder}: scene {token}: column sign holds {value:g}; write 1 (positive policy only), -1 (negative "
            "only) or 0 (as G says)"
        )
    if how.human_sign:
        sign = np.where(_is_human(columns, folder, "human_sign"), how.human_sign, sign)
    return sign if sign.any() else None


def _weight(how: Advantage, columns: Mapping[str, np.ndarray], folder: Path) -> np.ndarray:
    if how.human_weight == 1:
        return np.ones(columns["return"].shape)
    return np.where(_is_human(columns, folder, "human_weight"), how.human_weight, 1.0)


def _is_human(columns: Mapping[str, np.ndarray], folder: Path, key: str) -> np.ndarray:
    found = columns["source"] == "human"
    if not found.any():
        raise InputError(f"data.advantage.{key}: {folder} has no row of source human; collect with_human, or drop it")
    return found


def _reference(columns: Mapping[str, np.ndarray], returns: np.ndarray, folder: Path) -> np.ndarray:
    """(scenes,) mean return of the reference's own plans; infinity where a scene has none."""
    rows = columns["source"] == "reference"
    if not rows.any():
        raise InputError(
            f"data.advantage.reference_below: {folder} has no row of source reference; collect with omega null, or "
            "leave the key out"
        )
    count = rows.sum(1)
    return np.where(count > 0, (returns * rows).sum(1) / np.maximum(count, 1), np.inf)
