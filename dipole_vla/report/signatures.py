"""The known ways in which a dichotomous policy fails, each checked against the evaluation's own numbers.

A check gives a verdict (`ok`, `look`, `not measured`), the number behind it, and what to do about it in words.
Signs that need the networks (the distance between the two adapters' predictions, gradients, losses) cannot be read
from an evaluation; they are listed as not measured rather than left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch

from dipole_vla.advantage import TOLERANCE, formed
from dipole_vla.data.tables import rows_per_scene
from dipole_vla.evaluation.settings import Setting
from dipole_vla.forming import Advantage
from dipole_vla.objective import effective_fraction, positive_weight, rule_named
from dipole_vla.report.inputs import Evaluation
from navsim_adapter.foundation.statistics import TOO_FEW, Interval, certain_sign
from navsim_adapter.foundation.words import counted

Verdict = Literal["ok", "look", "not measured"]

MEAN_WEIGHT_RANGE = (0.1, 0.9)
INERT = 0.02  # nearer to the weight of G = 0, as a part of it, is no preference
SATURATED_RANGE = (0.02, 0.98)
INERT_SHARE, SATURATED_SHARE = 0.9, 0.5
GREED_LIMIT = 5.0  # beta (1 + omega) std(G): of `dipole-vla experiment region`, a bandit; a warning, not a limit
ROAD_LOSS = 0.02  # share of scenes
SPREAD_RATIO = 0.5
EQUAL_GROUPS = 0.5
SPREAD_SCENES = 400  # how many scenes the spread of candidates is measured on


@dataclass(frozen=True)
class Signature:
    """One row of the table. sign: what is looked for. number: what was found. remedy: what to do if it is there."""

    sign: str
    verdict: Verdict
    number: str
    remedy: str


@dataclass(frozen=True)
class Weights:
    """What training weighed: the n candidates of scenes whose candidates differ, by the rule it used.

    advantage: (n,) G. left_out: scenes whose candidates have equal scores. sign: (n,) fixed signs, None without any.
    """

    advantage: np.ndarray
    beta: float
    rule: str = "dichotomous"
    left_out: int = 0
    shift: float = 0.0
    sign: np.ndarray | None = None

    @cached_property
    def by_role(self) -> dict[str, torch.Tensor]:
        """(n,) weights in the loss of each policy that has one."""
        sign = None if self.sign is None else torch.from_numpy(self.sign)
        found = rule_named(self.rule).weights(torch.from_numpy(self.advantage), self.beta, self.shift, sign)
        return {str(role): weight for role, weight in found.items()}

    @property
    def positive(self) -> np.ndarray:
        return self.by_role["positive"].numpy()

    @property
    def neutral(self) -> float:
        """The positive weight of a candidate no better and no worse than its scene's others."""
        return float(rule_named(self.rule).positive(torch.zeros(()), self.beta, self.shift))

    @property
    def is_sigmoid(self) -> bool:
        """The positive weight is a share of one, the rest of which is the negative one's."""
        return rule_named(self.rule).positive is positive_weight

    @property
    def effective_fraction(self) -> dict[str, float]:
        """Effective sample size over n."""
        return {role: float(effective_fraction(weight)) for role, weight in self.by_role.items()}


def read_weights(evaluation: Evaluation) -> Weights | None:
    """Weights of the candidates RL learned from; None when the table or beta is not known."""
    table = evaluation.candidates
    if table is None or evaluation.beta is None:
        return None
    folder = evaluation.summary["inputs"]["candidates"]
    group = rows_per_scene(table["token"].to_numpy(), folder)
    columns = {name: table[name].to_numpy().reshape(-1, group) for name in table.columns}
    found = formed(Advantage.of(evaluation.provenance.get("formed")), columns, Path(folder))
    return Weights(
        found.advantage[found.kept].ravel().astype(np.float64),
        evaluation.beta,
        evaluation.rule,
        int((~found.kept).sum()),
        evaluation.shift,
        None if found.sign is None else found.sign[found.kept].ravel(),
    )


def check_all(evaluation: Evaluation) -> list[Signature]:
    """Every sign in the order in which they are worth fixing: data, weights, adapters, guidance, critic."""
    checks: tuple[Callable[[Evaluation], Signature], ...] = (
        leaked_split,
        equal_groups,
        off_centre_weights,
        inert_weights,
        saturated_weights,
        weak_positive,
        adapters_alike,
        adapter_distance,
        greed_beyond_support,
        road_departures,
        narrowed_samples,
        flattered_critic,
    )
    return [check(evaluation) for check in checks]


def leaked_split(evaluation: Evaluation) -> Signature:
    sign = "RL saw the evaluated scenes"
    remedy = "Evaluate on scenes never scored for training: a gain on trained scenes says nothing about new ones."
    rl_split, split = evaluation.summary.get("rl_split"), evaluation.summary["split"]
    is_leaked = bool(evaluation.summary.get("rl_on_eval_split"))
    if evaluation.candidates is None:
        number = f"RL on {rl_split}, evaluated on {split}; scene by scene not checked (no candidates table)"
        return Signature(sign, "look" if is_leaked else "ok", number, remedy)
    evaluated = set(evaluation.table(evaluation.reference).index)
    shared = len(evaluated & set(evaluation.candidates["token"]))
    number = (
        f"{shared} of {counted(len(evaluated), 'scene')} of {split} are among the candidates; RL ran on "
        f"{rl_split} in all rounds"
    )
    return Signature(sign, "look" if shared or is_leaked else "ok", number, remedy)


def equal_groups(evaluation: Evaluation) -> Signature:
    sign = "All candidates of a scene score the same"
    remedy = "Such scenes teach nothing and are left out of training: sample more, or with more spread."
    table = evaluation.candidates
    if table is None:
        return _unmeasured(sign, evaluation.missing.get("candidates", ""), remedy)
    spread = table.groupby("token", sort=True)["score"].agg(np.ptp)
    share = float((spread <= TOLERANCE).mean())
    number = f"{share:.0%} of {counted(len(spread), 'scene')}"
    return Signature(sign, "look" if share > EQUAL_GROUPS else "ok", number, remedy)


def off_centre_weights(evaluation: Evaluation) -> Signature:
    sign = "Mean weight σ(βG) far from ½"
    remedy = "Centre and normalise G (group mean); with a learned critic, move the expectile towards 0.5."
    weights = read_weights(evaluation)
    if weights is None:
        return _unmeasured(sign, _why_no_weights(evaluation), remedy)
    if not weights.is_sigmoid:
        return _unmeasured(sign, f"rule {weights.rule}: its weights are no shares", remedy)
    mean = float(weights.positive.mean())
    is_centred = MEAN_WEIGHT_RANGE[0] <= mean <= MEAN_WEIGHT_RANGE[1]
    return Signature(sign, "ok" if is_centred else "look", f"mean {mean:.3f} (limits 0.1 and 0.9)", remedy)


def inert_weights(evaluation: Evaluation) -> Signature:
    sign = "Weights all as for G = 0: guidance has nothing to amplify"
    remedy = "Scale β by 1 / std(G), or train the critic longer."
    weights = read_weights(evaluation)
    if weights is None:
        return _unmeasured(sign, _why_no_weights(evaluation), remedy)
    share = float((np.abs(weights.positive / weights.neutral - 1) <= INERT).mean())
    scale = weights.beta * weights.advantage.std()
    number = (
        f"{share:.0%} of weights are within {INERT:.0%} of {weights.neutral:g}; βG has standard deviation {scale:.2f}"
    )
    return Signature(sign, "look" if share > INERT_SHARE else "ok", number, remedy)


def saturated_weights(evaluation: Evaluation) -> Signature:
    sign = "Weights all 0 or 1: more β changes nothing"
    remedy = "Lower β and raise ω; the negative adapter sees too few samples."
    weights = read_weights(evaluation)
    if weights is None:
        return _unmeasured(sign, _why_no_weights(evaluation), remedy)
    if not weights.is_sigmoid:
        return _unmeasured(sign, f"rule {weights.rule}: its weights are no shares", remedy)
    share = float(((weights.positive < SATURATED_RANGE[0]) | (weights.positive > SATURATED_RANGE[1])).mean())
    number = f"{share:.0%} of weights below 0.02 or above 0.98"
    return Signature(sign, "look" if share > SATURATED_SHARE else "ok", number, remedy)


def weak_positive(evaluation: Evaluation) -> Signature:
    sign = "Positive policy (ω = 0) worse than the reference"
    remedy = "Train longer: each adapter spends only half of an imitation loss. Check that the right adapter is active."
    base = evaluation.reference
    positive = replace(base, policy="dipole", omega=0.0)
    if not evaluation.has(positive):
        return _unmeasured(sign, "ω = 0 was not swept", remedy)
    mean, interval = evaluation.gain(positive, base)
    number = f"{_points(mean, interval)} at N = {base.candidates}"
    return _judged(sign, interval, certain_sign(interval) >= 0, number, remedy)


def adapters_alike(evaluation: Evaluation) -> Signature:
    sign = "Swapping the two adapters makes no difference"
    remedy = "Both adapters learned the same: look for gradients that reach only one, a shared seed or a shared tensor."
    positive, negative = (replace(evaluation.reference, policy="dipole", omega=omega) for omega in (0.0, -1.0))
    if not (evaluation.has(positive) and evaluation.has(negative)):
        return _unmeasured(sign, "ω = 0 and ω = −1 were not both swept", remedy)
    mean, interval = evaluation.gain(positive, negative)
    number = f"positive minus negative policy: {_points(mean, interval)}"
    return _judged(sign, interval, certain_sign(interval) > 0, number, remedy)


def adapter_distance(evaluation: Evaluation) -> Signature:
    return _unmeasured(
        "Distance ‖ε⁺ − ε⁻‖ grows where neither adapter was trained",
        "needs the networks; greed and road departures show its consequences",
        "Clip the combined clean action, guide only the noisier half of the steps, lower ω or β.",
    )


def greed_beyond_support(evaluation: Evaluation) -> Signature:
    sign = f"Greed β(1+ω)·std(G) above {GREED_LIMIT:g}: plans may leave the data"
    remedy = "A warning, not a limit: look at road departures and worst losses. Lower ω or β, or clip, if they are bad."
    weights = read_weights(evaluation)
    if weights is None:
        return _unmeasured(sign, _why_no_weights(evaluation), remedy)
    if weights.rule == "indicator":
        return _unmeasured(sign, "rule indicator: its weights do not depend on β", remedy)
    omega, times = evaluation.chosen_omega, rule_named(weights.rule).greed  # a mirrored negative doubles omega
    spread = weights.beta * float(weights.advantage.std())
    greed, limit = spread * (1 + times * omega), (GREED_LIMIT / (spread or np.inf) - 1) / times
    doubled = f", which rule {weights.rule} doubles" if times == 2 else ""
    number = f"{greed:.1f} at the chosen ω = {omega:g}{doubled}; ω above {limit:.1f} would pass {GREED_LIMIT:g}"
    return Signature(sign, "look" if greed > GREED_LIMIT else "ok", number, remedy)


def road_departures(evaluation: Evaluation) -> Signature:
    sign = "Trajectories leave the road for ω ≥ 2"
    remedy = "Do not drive with such ω: lower ω or β, clip, guide only the noisier steps, or lean on the critic."
    name, base = "drivable_area_compliance", evaluation.reference
    greedy = [
        setting
        for setting in evaluation.settings
        if setting == replace(base, policy="dipole", omega=setting.omega) and (setting.omega or 0.0) >= 2
    ]
    if not greedy or name not in evaluation.sub_scores:
        return _unmeasured(sign, "no ω ≥ 2 was swept", remedy)
    left = {key.omega or 0.0: float((evaluation.table(key)[name] < 1).mean()) for key in greedy}
    usual = float((evaluation.table(base)[name] < 1).mean())
    parts = ", ".join(f"{share:.0%} at ω = {omega:g}" for omega, share in sorted(left.items()))
    number = f"off the drivable area: {parts}; reference {usual:.0%} (N = {base.candidates})"
    if max(left.values()) > usual + ROAD_LOSS and evaluation.chosen_omega < min(left):
        number += "; the chosen ω is below these"
    return Signature(sign, "look" if max(left.values()) > usual + ROAD_LOSS else "ok", number, remedy)


def narrowed_samples(evaluation: Evaluation) -> Signature:
    sign = "Guided samples all alike"
    remedy = "Lower ω or widen the start noise; best-of-N needs candidates that differ."
    if evaluation.plans is None:
        return _unmeasured(sign, evaluation.missing["plans"], remedy)
    tokens = sorted(set(evaluation.plans["token"]))[:: max(1, len(set(evaluation.plans["token"])) // SPREAD_SCENES)]
    plans = evaluation.with_poses("plans", tokens)
    guided, base = end_spread(plans, evaluation.chosen), end_spread(plans, evaluation.same_n(evaluation.chosen))
    if guided is None or base is None:
        return _unmeasured(sign, "the evaluation kept one candidate per scene", remedy)
    where = f"at ω = {evaluation.chosen_omega:g}, {base:.2f} m for the reference"
    number = f"end points spread by {guided:.2f} m {where} (median scene)"
    return Signature(sign, "look" if guided < SPREAD_RATIO * base else "ok", number, remedy)


def flattered_critic(evaluation: Evaluation) -> Signature:
    sign = "Critic's value up, score flat: it flatters its own choice"
    remedy = "Use the lower of two critics, fewer candidates, or train the critic on guided samples too."
    plans = evaluation.plans_of(evaluation.chosen)
    if "q" not in plans or plans["q"].isna().all():
        return _unmeasured(sign, "the evaluation holds no critic values", remedy)
    if plans.groupby("token").size().min() < 2:
        return _unmeasured(sign, "the evaluation kept one candidate per scene", remedy)
    groups = plans.sort_values(["token", "index"]).groupby("token", sort=True)
    picked = plans.loc[groups["q"].idxmax()].set_index("token")["score"].sort_index()
    gain, interval = evaluation.mean_interval(picked - groups["score"].mean())
    possible = float((groups["score"].max() - groups["score"].mean()).mean())
    if possible < 1e-9:
        return _unmeasured(sign, "the candidates of every scene score the same", remedy)
    share = f"{gain / possible:.0%} of what perfect foresight would give".replace("-", "−")
    best = f"best of {int(groups.size().max())} by the critic"
    number = f"{best} beats a random one by {_points(gain, interval)}, {share}"
    return _judged(sign, interval, certain_sign(interval) > 0, number, remedy)


def end_spread(plans: pd.DataFrame, setting: Setting) -> float | None:
    """Median over scenes of the root-mean-square distance in metres of end points from their mean."""
    spreads = []
    for _, group in plans[setting.of_plans(plans)].groupby("token", sort=True):
        if len(group) > 1:
            ends = np.array([list(poses)[-1][:2] for poses in group["poses"]], dtype=np.float64)
            spreads.append(float(np.sqrt(((ends - ends.mean(axis=0)) ** 2).sum(axis=1).mean())))
    return float(np.median(spreads)) if spreads else None


def _points(mean: float, interval: Interval | None) -> str:
    inside = TOO_FEW if interval is None else f"{100 * interval[0]:+z.1f}, {100 * interval[1]:+z.1f}"
    return f"{100 * mean:+z.1f} points [{inside}]".replace("-", "−")


def _judged(sign: str, interval: Interval | None, is_ok: bool, number: str, remedy: str) -> Signature:
    """The verdict of a sign read from an interval; without one there is no verdict."""
    return Signature(sign, "not measured" if interval is None else "ok" if is_ok else "look", number, remedy)


def _why_no_weights(evaluation: Evaluation) -> str:
    return evaluation.missing.get("candidates") or evaluation.missing.get("beta", "")


def _unmeasured(sign: str, why: str, remedy: str) -> Signature:
    return Signature(sign, "not measured", why, remedy)
