"""What the networks predict for encoded scenes: under one role, under both in one pass, distilled at one omega."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from dipole_vla.backbones.base import Backbone
from dipole_vla.guidance import Omega, Predict, PredictBoth, PredictGuided, Role
from dipole_vla.policy.adapters import AdapterPair
from dipole_vla.policy.distilled import DistilledPair
from dipole_vla.policy.scenes import EncodedScenes
from dipole_vla.policy.separate import Pair
from dipole_vla.progress import console

TELLING = 1e-3  # least difference of two roles, as a share of their size, that is told from rounding


def under_one(backbone: Backbone, pair: Pair | None, scenes: EncodedScenes) -> Predict:
    def predict(x_t: Tensor, t: Tensor, role: Role) -> Tensor:
        context = scenes.prepared(role)
        if pair is None:
            return backbone.denoise(context, x_t, t)
        return pair.denoise(context, x_t, t, role)

    return predict


def under_both(pair: Pair | None, roles: tuple[Role, Role], scenes: EncodedScenes) -> PredictBoth | None:
    """Both roles' predictions in one batch; what depends on the scenes alone is prepared at the first call."""
    if not isinstance(pair, AdapterPair):
        return None

    def together(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return pair.denoise_both(scenes.prepared_both(roles), x_t, t, roles)

    def apart(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        first, second = (pair.denoise(scenes.prepared(role), x_t, t, role) for role in roles)
        return first, second

    def predict(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        if pair.mixes_rows is not None:
            return (together if pair.mixes_rows else apart)(x_t, t)
        outputs = apart(x_t, t)
        pair.mixes_rows = _same_together(partial(together, x_t, t), outputs)
        if pair.mixes_rows is False:
            console.print("adapters: a layer does not see rows first; each sampling step takes two passes")
        return outputs

    return predict


def distilled_prediction(
    distilled: DistilledPair | None, scenes: EncodedScenes, omega: Omega, count: int
) -> PredictGuided | None:
    """The guided prediction of the distilled network; omega: a number, or one per plan (B*N,)."""
    if omega is None or distilled is None:
        return None
    if not isinstance(omega, Tensor):
        value, network = float(omega), distilled.at(float(omega))
        return lambda x_t, t: network.denoise(scenes.prepared_at(value, network), x_t, t)
    table, context = omega.reshape(-1, count), scenes.encoded(None)
    if (table == table[:, :1]).all():
        network = distilled.at(table[:, 0])
    else:  # keys and values depend on omega: one context row for each plan
        context = context.rows(torch.arange(len(table), device=omega.device).repeat_interleave(count))
        network = distilled.at(omega)
    prepared = network.prepare(context)
    return lambda x_t, t: network.denoise(prepared, x_t, t)


def _same_together(together: Callable[[], tuple[Tensor, Tensor]], apart: tuple[Tensor, Tensor]) -> bool | None:
    """Whether one pass of both roles gives what two gave; None where the roles are too alike to tell.

    A layer whose first axis is not the rows gives rows of one role the other's adapter: an error of the size of their
    difference, next to which rounding must be small.
    """
    between, size = (apart[0] - apart[1]).abs().max(), torch.stack(apart).abs().max()
    if not between > TELLING * size:
        return None
    try:
        found = together()
    except (RuntimeError, ValueError, IndexError, TypeError):  # shapes that only rows of one role have
        return False
    return bool((torch.stack(found) - torch.stack(apart)).abs().max() < 0.05 * between)
