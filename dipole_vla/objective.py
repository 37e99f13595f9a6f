"""DIPOLE's training objective (paper Eq. 7-9): sigmoid weights on the backbone's own denoising loss.

`dichotomous_loss` is the entry; `RULES` holds the weighting rules it is compared with. Where the advantage G comes
from is decided upstream (`dipole_vla.critic`); here it is a constant. Combination at inference: `guidance`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Literal

import torch
from torch import Tensor

from dipole_vla.guidance import Role
from dipole_vla.paths import Prediction, Schedule, interpolate, target
from navsim_adapter.foundation.errors import InputError, did_you_mean

Routing = Literal["both", "bernoulli"]

Denoise = Callable[[Role, Tensor, Tensor, Tensor | None], Tensor]
"""(role, x_t, t, rows) -> native prediction, shape of x_t.

rows: indices (int64) of x_t's rows in the batch, or None when x_t is the whole batch.
"""

DenoiseRouted = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x_t, t, is_positive) -> native prediction of each row under the sign it is routed to."""

OnRoleLoss = Callable[[Role, Tensor], Tensor]
"""Hook called with each role and its loss as soon as that is known; returns the term to sum.

Used to run backward early, which frees one policy's activations before the next one runs.
"""


def positive_weight(advantage: Tensor, beta: float, shift: float = 0.0) -> Tensor:
    """sigma(beta G + k), in (0, 1): weight of a sample in the positive policy's loss (Eq. 7, where k is 0)."""
    return torch.sigmoid(beta * advantage + shift)


def negative_weight(advantage: Tensor, beta: float, shift: float = 0.0) -> Tensor:
    """1 - sigma(beta G + k): weight in the negative policy's loss (Eq. 8), without cancellation at large G."""
    return torch.sigmoid(-beta * advantage - shift)


def _exponential(advantage: Tensor, beta: float, shift: float = 0.0) -> Tensor:
    return (beta * advantage + shift).exp().clamp(max=MAX_EXPONENTIAL_WEIGHT)


def _indicator(advantage: Tensor, beta: float, shift: float = 0.0) -> Tensor:
    return (beta * advantage + shift >= 0).to(advantage.dtype)


@dataclass(frozen=True)
class Rule:
    """How an advantage weighs a sample for each policy: functions of (advantage, beta, shift), of beta G + shift.

    negative None: no negative policy is trained, and the base model takes its place in guidance.
    is_mirrored: the negative policy is no network of its own but the mirror image of the positive one in the base,
        2 base - positive. Its coefficients sum to one, so this holds for every prediction.
    """

    positive: Callable[..., Tensor]
    negative: Callable[..., Tensor] | None = None
    is_mirrored: bool = False

    @property
    def trained(self) -> tuple[Role, ...]:
        """Roles with an adapter of their own."""
        return ("positive",) if self.negative is None or self.is_mirrored else ("positive", "negative")

    @property
    def negative_role(self) -> Role:
        """Who takes the negative place at inference."""
        return "negative" if "negative" in self.trained else None

    @property
    def greed(self) -> float:
        """What omega is multiplied by between the roles that act.

        (1 + w) positive - w (2 base - positive) = (1 + 2 w) positive - 2 w base: a mirrored negative doubles it.
        """
        return 2.0 if self.is_mirrored else 1.0

    def weights(
        self, advantage: Tensor, beta: float, shift: float = 0.0, sign: Tensor | None = None
    ) -> dict[Role, Tensor]:
        """Weight of each sample in the loss of each policy that has one.

        sign: shape of `advantage`; where it is 1 or -1 the sample is the positive or the negative policy's alone, at
        weight 1 there and 0 on the other side, whatever its advantage.
        """
        found: dict[Role, Tensor] = {"positive": self.positive(advantage, beta, shift)}
        if self.negative is not None:
            found["negative"] = self.negative(advantage, beta, shift)
        if sign is None:
            return found
        own: dict[Role, Tensor] = {"positive": sign > 0, "negative": sign < 0}
        return {role: torch.where(sign == 0, weight, own[role].to(weight)) for role, weight in found.items()}


MAX_EXPONENTIAL_WEIGHT = 100.0  # the clip of the AWR/IQL code line

RULES: dict[str, Rule] = {
    # DIPOLE
    "dichotomous": Rule(positive_weight, negative_weight),
    # advantage-weighted regression, the unstable ancestor (Eq. 4)
    "exponential": Rule(_exponential),
    # CFGRL: imitate what is at least average, guide away from the base
    "indicator": Rule(_indicator),
    # is the negative policy needed? the sigmoid half alone
    "positive_only": Rule(positive_weight),
    # DiffusionNFT at strength one: both of our losses, one network; what is bad pushes it to the other side of the base
    "implicit": Rule(positive_weight, negative_weight, is_mirrored=True),
}


GROUP = "dipole_vla.rules"
"""Entry points of other packages: name of a rule = "module:RULE". Read where a rule is not one of `RULES`."""


def rule_named(name: str, routing: Routing = "both", where: str = "rule") -> Rule:
    """The rule of that name, if it can be trained by that routing; InputError with the near one.

    where: who asks, for the message.
    """
    rule = RULES.get(name) if isinstance(name, str) else None
    rule = rule or _offered(name, where)
    if routing == "bernoulli" and len(rule.trained) != 2:
        raise InputError(f"routing: bernoulli needs two policies, rule {name!r} trains one; use routing both")
    return rule


def _offered(name: str, where: str) -> Rule:
    """The rule that another package offers under that name."""
    offers = entry_points(group=GROUP)
    point = next((point for point in offers if point.name == name), None)
    if point is None:
        known = [*RULES, *sorted(offers.names)]
        raise InputError(f"{where}: must be one of {', '.join(known)}, got {name!r}{did_you_mean(str(name), known)}")
    try:
        found = point.load()
    except Exception as problem:  # whatever the module of another package does when it is imported
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise InputError(
            f"rule: {name!r}: {point.value} cannot be imported ({reason}); repair its package"
        ) from problem
    if not isinstance(found, Rule):
        raise InputError(
            f"rule: {name!r}: {point.value} must be a dipole_vla.objective.Rule, is a {type(found).__name__}"
        )
    return found


def per_sample_loss(output: Tensor, wanted: Tensor, mask: Tensor | None = None) -> Tensor:
    """(rows,) mean squared error over horizon and channels, in float32 at least.

    output, wanted: (rows, horizon, dim), native parameterisation. mask: (horizon, dim) or (rows, horizon, dim), 1
    where a pose and channel count.
    """
    error = (output.to(wanted.dtype) - wanted) ** 2
    if mask is None:
        return error.flatten(1).mean(1)
    mask = mask.to(error).expand_as(error)
    return (error * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp_min(1)


def effective_fraction(weight: Tensor) -> Tensor:
    """Effective sample size of the weights over their number, in (0, 1]; 1 when all are equal."""
    return weight.sum() ** 2 / (weight.numel() * (weight**2).sum()).clamp_min(torch.finfo(weight.dtype).tiny)


def dichotomous_loss(
    denoise: Denoise,
    schedule: Schedule,
    prediction: Prediction,
    x0: Tensor,
    advantage: Tensor,
    noise: Tensor,
    t: Tensor,
    beta: float = 1.0,
    routing: Routing = "both",
    *,
    rule: str = "dichotomous",
    shift: float = 0.0,
    sign: Tensor | None = None,
    generator: torch.Generator | None = None,
    sample_weight: Tensor | None = None,
    mask: Tensor | None = None,
    on_role_loss: OnRoleLoss = lambda role, loss: loss,
    denoise_routed: DenoiseRouted | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted denoising loss of both policies on one batch (Eq. 9) and scalars to log (detached).

    Both policies see the same noise and time. The weights of a sample sum to one, so the loss is bounded by the
    plain imitation loss for any beta.

    x0, noise: (rows, horizon, dim); advantage, t: (rows,); `generator` draws the routes of "bernoulli".
    routing: "both" shows every sample to both adapters; "bernoulli" sends it to one, the positive with probability
        sigma(beta G): the same gradient in expectation for half the work.
    shift: k in sigma(beta G + k): the larger, the more of the batch counts as good.
    sign: (rows,), 1 or -1 where a row is one policy's alone, 0 where G weighs it; see `Rule.weights`.
    sample_weight: (rows,), e.g. 0 for scenes whose candidates have equal scores; the loss is the mean by this weight.
    on_role_loss: see `OnRoleLoss`; not called where the two parts share one pass: mirrored rules, `denoise_routed`.
    denoise_routed: for "bernoulli", both parts of the batch in one pass instead of one pass each.
    """
    x_t, wanted = interpolate(schedule, x0, noise, t), target(prediction, schedule, x0, noise, t)
    chosen = rule_named(rule, routing)
    weights = chosen.weights(advantage.detach().to(x0.dtype), beta, shift, sign)
    share = _shares(sample_weight, x0)
    terms: dict[Role, Tensor] = {}
    if chosen.is_mirrored:
        terms, scalars = _mirrored_losses(denoise, weights, share, x_t, wanted, t, mask)
    elif routing == "both":
        outputs: dict[Role, Tensor] = {}
        for role, weight in weights.items():
            terms[role], outputs[role] = _role_loss(on_role_loss, denoise, role, share * weight, x_t, wanted, t, mask)
        scalars = _distance(outputs)
    else:
        is_positive = _routes(weights["positive"], generator)
        parts: dict[Role, Tensor] = {"positive": is_positive, "negative": ~is_positive}
        scalars = {"fraction_positive": is_positive.double().mean()}
        if denoise_routed is not None:
            loss_of_rows = share * per_sample_loss(denoise_routed(x_t, t, is_positive), wanted, mask)
            terms = {role: (loss_of_rows * rows).sum() for role, rows in parts.items()}
        else:
            for role, rows in parts.items():
                terms[role] = on_role_loss(role, (share * _part_loss(denoise, role, rows, x_t, wanted, t, mask)).sum())
    loss = torch.stack(list(terms.values())).sum()
    for role, weight in weights.items():
        scalars[f"loss_{role}"] = terms[role].detach()
        scalars[f"weight_{role}"] = (share * weight).sum()
        scalars[f"ess_{role}"] = effective_fraction(weight * (share > 0))
    return loss, {"loss": loss.detach(), **scalars}


def base_distance(positive: Tensor, negative: Tensor, base: Tensor) -> Tensor:
    """How far the base's prediction is from the nearest mixture of the two signs', root mean square over rows.

    Ideal policies have base = m positive + (1 - m) negative with an m in [0, 1] of its own at every (x_t, t), since
    the base is their mixture; the nearest m is taken for each row. 0 for a fresh pair. Compare it with
    `sign_distance`: the distance between the two ends.

    positive, negative, base: (rows, horizon, dim), at the same noise and time.
    """
    span, offset = (positive - negative).flatten(1).float(), (base - negative).flatten(1).float()
    m = (span * offset).sum(1) / (span**2).sum(1).clamp_min(torch.finfo(torch.float32).tiny)
    return _rms(offset - m.clamp(0, 1)[:, None] * span)


def sign_distance(positive: Tensor, negative: Tensor) -> Tensor:
    """Root mean square difference between the signs' predictions; grows where neither was trained."""
    return _rms(positive - negative)


def _role_loss(
    on_role_loss: OnRoleLoss,
    denoise: Denoise,
    role: Role,
    weight: Tensor,
    x_t: Tensor,
    wanted: Tensor,
    t: Tensor,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One policy's part of the loss on the whole batch, and its prediction; nothing here outlives `on_role_loss`."""
    output = denoise(role, x_t, t, None)
    return on_role_loss(role, (weight * per_sample_loss(output, wanted, mask)).sum()), output.detach()


def _mirrored_losses(
    denoise: Denoise,
    weights: dict[Role, Tensor],
    share: Tensor,
    x_t: Tensor,
    wanted: Tensor,
    t: Tensor,
    mask: Tensor | None,
) -> tuple[dict[Role, Tensor], dict[str, Tensor]]:
    """Both parts of the loss from one trained pass and one of the base: negative = 2 base - positive."""
    with torch.no_grad():
        base = denoise(None, x_t, t, None)
    positive = denoise("positive", x_t, t, None)
    outputs: dict[Role, Tensor] = {"positive": positive, "negative": 2 * base - positive}
    losses = {role: per_sample_loss(output, wanted, mask) for role, output in outputs.items()}
    return {role: (share * weights[role] * loss).sum() for role, loss in losses.items()}, _distance(outputs)


def _shares(sample_weight: Tensor | None, x0: Tensor) -> Tensor:
    """(rows,) each sample's part of the mean; all zero if no sample counts."""
    if sample_weight is None:
        return torch.full((x0.shape[0],), 1 / x0.shape[0], dtype=x0.dtype, device=x0.device)
    weight = sample_weight.to(x0)
    return weight / weight.sum().clamp_min(torch.finfo(x0.dtype).tiny)


def _routes(probability: Tensor, generator: torch.Generator | None) -> Tensor:
    """(rows,) booleans, each true with its own probability."""
    device = generator.device if generator is not None else probability.device
    draw = torch.rand(probability.shape, generator=generator, dtype=probability.dtype, device=device)
    return draw.to(probability.device) < probability


def _part_loss(
    denoise: Denoise, role: Role, chosen: Tensor, x_t: Tensor, wanted: Tensor, t: Tensor, mask: Tensor | None
) -> Tensor:
    """(rows,) losses of the chosen rows, zero elsewhere.

    With none chosen, the first row runs at weight zero: every parameter then has a gradient at every step, which
    distributed reducers wait for.
    """
    rows = chosen.nonzero().squeeze(1)
    rows = rows if len(rows) else torch.zeros(1, dtype=torch.int64, device=x_t.device)
    row_mask = mask[rows] if mask is not None and mask.dim() == 3 else mask
    loss = per_sample_loss(denoise(role, x_t[rows], t[rows], rows), wanted[rows], row_mask)
    return torch.zeros_like(chosen, dtype=loss.dtype).index_put((rows,), loss * chosen[rows])


def _distance(outputs: dict[Role, Tensor]) -> dict[str, Tensor]:
    if len(outputs) < 2:
        return {}
    return {"sign_distance": sign_distance(outputs["positive"].detach(), outputs["negative"].detach())}


def _rms(difference: Tensor) -> Tensor:
    return difference.float().pow(2).mean().sqrt()
