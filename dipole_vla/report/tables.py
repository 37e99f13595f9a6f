"""Numbers and sentences of the report: headline, score table, what each sub-score won and lost.

Scores are shown ×100 ("points"). Differences are against the fairest reference for as many candidates, scene by scene;
intervals respect logs (`foundation.statistics`). Pictures are in `scenes`, curves in `charts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from dipole_vla.evaluation.settings import MEAN, Setting, fewest_of
from dipole_vla.evaluation.summary import HUMAN
from dipole_vla.report.inputs import Evaluation
from dipole_vla.report.metrics import metric_title, sub_score
from navsim_adapter.foundation.statistics import TOO_FEW, certain_sign, verdict
from navsim_adapter.foundation.words import counted

GRADED_STEP = 0.05  # a graded sub-score counts as changed from here on
SAME = 1e-9
NEAR = 5  # settings within one standard error that are named
POLICY_ORDER = ("human", "reference", MEAN, "dipole", "oracle")


@dataclass(frozen=True)
class Cell:
    """A number ×100 with its interval or its difference, ready to print; `sign` is -1, 0 or 1 for the colour."""

    text: str
    note: str = ""
    sign: int = 0


@dataclass(frozen=True)
class TableRow:
    policy: str
    explanation: str
    omega: str
    start: str
    candidates: int
    score: Cell
    fair: Cell  # against the fairest reference for as many candidates
    gain: Cell  # against the one with the fewest
    parts: list[Cell]
    is_chosen: bool
    is_oracle: bool


@dataclass(frozen=True)
class Change:
    """One sub-score, chosen against reference. before, after: scenes that fall short, or means where it is graded."""

    short: str
    title: str
    before: str
    after: str
    fixed: int
    broken: int
    sentence: str
    fixed_share: float  # of the widest bar of the table
    broken_share: float


def points(value: float, digits: int = 1) -> str:
    return f"{100 * value:z.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 1) -> str:
    return f"{100 * value:+z.{digits}f}".replace("-", "−")


def headline(evaluation: Evaluation) -> dict[str, Any]:
    """The one number, its interval, what may be concluded, and what must be known before believing it."""
    summary, chosen = evaluation.summary, evaluation.chosen
    gain, interval = evaluation.gain(chosen, evaluation.baseline)
    trained_on = training_metric(evaluation)
    on, is_biased = summary["chosen"]["on"], summary["chosen"]["on_these_scenes"]
    return {
        "metric": metric_title(summary["metric"]),
        "split": summary["split"],
        "rl_split": summary.get("rl_split"),
        "scenes": counted(int(summary["scenes"]), "scene"),
        "logs": counted(int(summary["logs"]), "log") if summary.get("logs") else "",
        "chosen": chosen.words(evaluation.several_starts).removeprefix("dipole ").replace("-", "−"),
        "score": points(evaluation.summary_row(chosen)["score"]),
        "reference": points(evaluation.summary_row(evaluation.baseline)["score"]),
        "gain": signed(gain),
        "interval": f"95 % interval {_range(interval)}, paired" if interval else f"{TOO_FEW}: no interval",
        "verdict": verdict(interval),
        "sign": certain_sign(interval),
        "reference_label": _reference_label(evaluation),
        "same_critic": " with the same critic" if evaluation.baseline.candidates > 1 else "",
        "human": _human(evaluation),
        "near": _near(summary["chosen"]),
        "is_paired": "two_frame_extended_comfort" in evaluation.sub_scores,
        "trained_on": trained_on,
        "is_other_metric": trained_on not in ("unknown", metric_title(summary["metric"])),
        "is_leaked": bool(summary.get("rl_on_eval_split")),
        "choice": f"ω and N were chosen on these very scenes ({on}): the gain is optimistic. So was the reference."
        if is_biased
        else f"ω, N and the reference were chosen on other scenes ({on}), before these were looked at.",
        "is_choice_biased": is_biased,
        "shares": _shares(evaluation),
    }


def _reference_label(evaluation: Evaluation) -> str:
    """Of the baseline: "reference at N = 8", or at which start noise, too, where there are several."""
    baseline, many = evaluation.baseline, evaluation.several_starts
    words = baseline.words(many)
    label = words if baseline.policy == MEAN else words.replace("reference, ", "reference at ", 1)
    return f"{label} (the fairest on {evaluation.summary['chosen']['on']})" if many else label


def _shares(evaluation: Evaluation) -> str:
    """What the critic's choice among N (else the start noise) gains without the pair, and what all gain together."""
    chosen, base, middle = evaluation.chosen, evaluation.reference, evaluation.same_n(evaluation.chosen)
    if middle == base or not evaluation.has(middle):
        return ""
    below = fewest_of(evaluation.settings, middle) if middle.candidates > 1 else base
    what = "The critic's: choosing" if middle.candidates > 1 else "Less start noise does without it:"
    return (
        f"That number is what the pair adds. {what} {_few(middle, evaluation)} "
        f"gains {_difference(*evaluation.gain(middle, below))} over {_few(below, evaluation, with_score=True)}. "
        f"All together: {_difference(*evaluation.gain(chosen, base))} over {_few(base, evaluation, with_score=True)}."
    )


def _few(setting: Setting, evaluation: Evaluation, with_score: bool = False) -> str:
    """Plans of the reference, in words: "one plan of the reference at start noise 1 (51.9)"."""
    best = "the best of" if with_score else "among"
    words = (
        "one plan of the reference"
        if setting.candidates == 1
        else f"{best} {setting.candidates} plans of the reference"
    )
    words += f" at start noise {setting.start_scale:g}" if evaluation.several_starts else ""
    return f"{words} ({points(evaluation.summary_row(setting)['score'])})" if with_score else words


def _human(evaluation: Evaluation) -> str:
    if not evaluation.has(HUMAN):
        return ""
    gain = _difference(*evaluation.gain(evaluation.chosen, HUMAN))
    return f"The human scores {points(evaluation.summary_row(HUMAN)['score'])}; the chosen setting minus that: {gain}."


def _near(chosen: Mapping[str, Any]) -> str:
    """How sure the choice was, where the evaluation that chose says so."""
    error = chosen.get("standard_error")
    if error is None:
        return ""
    names = [
        Setting.of({"policy": "dipole", **found}).words(True).removeprefix("dipole ").replace("-", "−")
        for found in chosen["within_one_error"][:NEAR]
    ]
    best = "among them" if len(names) < len(chosen["within_one_error"]) else "namely"
    return (
        f"On {chosen['on']} the best mean has a standard error of {points(error)}; within one of it are "
        f"{len(chosen['within_one_error'])} of {chosen['settings']} settings, {best} {'; '.join(names)}."
    )


def training_metric(evaluation: Evaluation) -> str:
    """Of the candidates that the pair learned from."""
    metric = evaluation.provenance.get("metric")
    return metric_title(metric) if metric else "unknown"


def _range(interval: Sequence[float] | None) -> str:
    return TOO_FEW if interval is None else f"{signed(interval[0])} to {signed(interval[1])}"


def _difference(mean: float, interval: Sequence[float] | None) -> str:
    return f"{signed(mean)} points [{_range(interval)}]"


def score_table(evaluation: Evaluation) -> list[TableRow]:
    rows = sorted(
        evaluation.summary["rows"],
        key=lambda r: (
            POLICY_ORDER.index(r["policy"]) if r["policy"] in POLICY_ORDER else len(POLICY_ORDER),
            r["candidates"],
            r.get("guidance") or "",
            r.get("start_scale") or 0.0,
            -np.inf if r.get("omega") is None else r["omega"],
        ),
    )
    return [_table_row(evaluation, row) for row in rows]


def _table_row(evaluation: Evaluation, row: dict[str, Any]) -> TableRow:
    key = Setting.of(row)
    interval = row.get("ci95")
    note = "" if interval is None else f"{points(interval[0])} to {points(interval[1])}"
    return TableRow(
        policy=row["policy"],
        explanation=_explanation(key),
        omega="" if key.omega is None else f"{key.omega:g}".replace("-", "−"),
        start="" if key.start_scale is None else f"{key.start_scale:g}",
        candidates=key.candidates,
        score=Cell(points(row["score"]), note),
        fair=_gain_cell(evaluation, key, evaluation.fairest(key)),
        gain=_gain_cell(evaluation, key, evaluation.reference),
        parts=[_part_cell(evaluation, key, name) for name in evaluation.sub_scores],
        is_chosen=key == evaluation.chosen,
        is_oracle=key.policy == "oracle",
    )


def _gain_cell(evaluation: Evaluation, key: Setting, baseline: Setting) -> Cell:
    if key == baseline or not evaluation.has(baseline):
        return Cell("–")
    gain, interval = evaluation.gain(key, baseline)
    return Cell(signed(gain), _range(interval), certain_sign(interval))


def _part_cell(evaluation: Evaluation, key: Setting, name: str) -> Cell:
    """A sub-score's mean and its difference to the fairest reference for as many candidates."""
    base, value = evaluation.fairest(key), evaluation.summary_row(key).get(name)
    if value is None:
        return Cell("–")
    usual = evaluation.summary_row(base).get(name) if evaluation.has(base) else None
    if usual is None or abs(value - usual) < 5e-4:
        return Cell(points(value))
    return Cell(points(value), signed(value - usual), _certain_sign(evaluation, key, base, name))


def _certain_sign(evaluation: Evaluation, key: Setting, base: Setting, name: str) -> int:
    """Direction of a sub-score's paired difference; 0 when its interval includes zero."""
    first, second = evaluation.paired(key, base)
    difference = first[name] - second[name]
    return 0 if difference.isna().any() else certain_sign(evaluation.mean_interval(difference)[1])


def _explanation(key: Setting) -> str:
    many = key.candidates > 1
    if key.policy == "human":
        return "as driven in the log"
    if key.policy == "reference":
        return "imitation policy" + (", critic chooses" if many else "")
    if key.policy == MEAN:
        return "mean of all plans drawn, no critic"
    if key.policy == "oracle":
        return "upper bound: the simulator chooses, it sees the future"
    if key.guidance:
        return f"guided, {key.guidance}" + (", critic chooses" if many else "")
    if key.omega == -1:
        return "negative policy" + (", critic chooses" if many else "")
    if key.omega == 0:
        return "positive policy" + (", critic chooses" if many else "")
    return "guided" + (", critic chooses" if many else "")


def filter_sentence(evaluation: Evaluation) -> str:
    """What NAVSIM's human filter hides (metric 6.13); empty where the evaluation does not say it."""
    chosen, baseline = (evaluation.summary_row(key) for key in (evaluation.chosen, evaluation.baseline))
    if "overwritten" not in chosen or "score_unfiltered" not in baseline:
        return ""
    shares = {sub_score(name).short: share for name, share in chosen["overwritten"].items() if share > 0}
    hidden = ", ".join(f"{name} in {share:.1%} of scenes" for name, share in shares.items()) or "nowhere"
    scores = " against ".join(points(row["score_unfiltered"]) for row in (chosen, baseline))
    return f"With the human filter off: {scores}. It overwrote a failure of the chosen setting: {hidden}."


def changes(evaluation: Evaluation) -> list[Change]:
    """Per sub-score: scenes fixed and broken by the chosen policy, largest movement first kept in metric order."""
    after, before = evaluation.paired(evaluation.chosen, evaluation.baseline)
    counted = [(name, *_moved(name, before[name], after[name])) for name in evaluation.sub_scores]
    widest = max([1, *(max(fixed, broken) for _, fixed, broken in counted)])
    return [_change(name, before[name], after[name], fixed, broken, widest) for name, fixed, broken in counted]


def _moved(name: str, before: pd.Series, after: pd.Series) -> tuple[int, int]:
    """Scenes that the chosen policy brings to full marks and takes from them; graded: up and down by 5 points."""
    if sub_score(name).is_graded:
        return int((after - before >= GRADED_STEP).sum()), int((before - after >= GRADED_STEP).sum())
    was_short, is_short = before < 1 - SAME, after < 1 - SAME
    return int((was_short & ~is_short).sum()), int((~was_short & is_short).sum())


def _change(name: str, before: pd.Series, after: pd.Series, fixed: int, broken: int, widest: int) -> Change:
    words = sub_score(name)
    if words.is_graded:
        start, end = points(before.mean()), points(after.mean())
        sentence = f"mean {start} → {end}: up in {fixed}, down in {broken} (by 5 points or more)"
    else:
        start, end = str(int((before < 1 - SAME).sum())), str(int((after < 1 - SAME).sum()))
        sentence = f"{words.failure} {start} → {end}: fixed {fixed}, new {broken}"
    return Change(words.short, words.title, start, end, fixed, broken, sentence, fixed / widest, broken / widest)


def scene_counts(differences: np.ndarray) -> str:
    better, worse = int((differences > SAME).sum()), int((differences < -SAME).sum())
    same = len(differences) - better - worse
    of_all = f"{better} of {counted(len(differences), 'scene')}"
    sentence = f"{of_all} score higher than with the reference, {worse} lower, {same} the same."
    if better and worse:
        gained, lost = differences[differences > SAME].mean(), -differences[differences < -SAME].mean()
        sentence += f" A gain is {points(gained, 0)} points on average, a loss {points(lost, 0)}."
    return sentence


def curve_sentence(evaluation: Evaluation) -> str:
    """What the ω curve shows, from its numbers."""
    chosen, count = evaluation.chosen, evaluation.chosen.candidates
    curve = [(setting, row) for setting, row in zip(evaluation.settings, evaluation.summary["rows"])]
    rows = [row for setting, row in curve if replace(setting, candidates=count) == replace(chosen, omega=setting.omega)]
    line = sorted((row for row in rows if row["candidates"] == count), key=lambda row: row["omega"])
    best, last = max(line, key=lambda row: row["score"]), line[-1]
    at = {row["omega"]: row["score"] for row in line}
    start = f" at start noise {chosen.start_scale:g}" if evaluation.several_starts else ""
    sentence = f"With N = {count}{start} the score "
    if -1.0 in at and 0.0 in at:
        verb = "rises" if at[0.0] > at[-1.0] else "does not rise"
        start, end = points(at[-1.0]), points(at[0.0])
        sentence += f"{verb} from {start} at the negative policy to {end} at the positive one, and "
    sentence += f"is highest at ω = {best['omega']:g} with {points(best['score'])}.".replace("-", "−")
    if best["score"] - last["score"] > 0.01:
        fall = points(best["score"] - last["score"])
        sentence += f" It then falls, by {fall} points at ω = {last['omega']:g}: guidance extrapolates past the data."
    elif best is last:
        sentence += " That is the end of the sweep: a larger ω may be better still."
    return sentence + _choice_sentence(rows, evaluation.chosen.omega)


def _choice_sentence(rows: Sequence[dict[str, Any]], omega: float | None) -> str:
    at_omega = sorted((row for row in rows if row["omega"] == omega), key=lambda row: row["candidates"])
    if len(at_omega) < 2:
        return ""
    few, many = at_omega[0], at_omega[-1]
    gain = signed(many["score"] - few["score"])
    best_of = f"the critic's best of {many['candidates']}"
    return f" At ω = {omega:g} {best_of} changes the score by {gain} points over N = {few['candidates']}."
