"""Numbers and sentences of the report: headline, score table, what each sub-score won and lost.

Scores are shown ×100 ("points"). Differences are against the reference policy, scene by scene; intervals resample
whole logs (`evaluation.statistics`). Pictures are in `scenes`, curves in `charts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dipole_vla.evaluation.report.inputs import Evaluation, Key
from dipole_vla.evaluation.report.metrics import metric_title, sub_score

GRADED_STEP = 0.05  # a graded sub-score counts as changed from here on
SAME = 1e-9
POLICY_ORDER = ("human", "reference", "dipole", "oracle")


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
    candidates: int
    score: Cell
    gain: Cell
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
    return f"{100 * value:.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 1) -> str:
    return f"{100 * value:+.{digits}f}".replace("-", "−")


def plural(count: int, word: str) -> str:
    return f"{count} {word}" + ("" if count == 1 else "s")


def headline(evaluation: Evaluation) -> dict[str, Any]:
    """The one number, its interval, what may be concluded, and what must be known before believing it."""
    summary, chosen = evaluation.summary, evaluation.chosen
    row = evaluation.summary_row(chosen)
    base = evaluation.summary_row(evaluation.reference)
    low, high = row.get("gain_ci95") or (0.0, 0.0)
    has_interval = bool(row.get("gain_ci95"))
    if not has_interval:
        verdict = "no interval was recorded"
    elif low > 0:
        verdict = "better beyond chance: the interval of the gain excludes zero"
    elif high < 0:
        verdict = "worse beyond chance: the interval of the gain excludes zero"
    else:
        verdict = "not distinguishable: the interval of the gain includes zero"
    on, is_biased = summary["chosen"]["on"], summary["chosen"]["on_these_scenes"]
    return {
        "metric": metric_title(summary["metric"]),
        "split": summary["split"],
        "rl_split": summary.get("rl_split"),
        "scenes": plural(int(summary["scenes"]), "scene"),
        "logs": plural(int(summary["logs"]), "log") if summary.get("logs") else "",
        "chosen": f"ω = {chosen.omega:g}, N = {chosen.candidates}".replace("-", "−"),
        "score": points(row["score"]),
        "reference": points(base["score"]),
        "gain": signed(row.get("gain") or 0.0),
        "interval": f"{signed(low)} to {signed(high)}" if has_interval else "",
        "verdict": verdict,
        "sign": int(low > 0) - int(high < 0),
        "is_leaked": bool(summary.get("rl_on_eval_split")),
        "choice": f"ω and N were chosen on these very scenes ({on}): the gain is optimistic."
        if is_biased
        else f"ω and N were chosen on other scenes ({on}), before these were looked at.",
        "is_choice_biased": is_biased,
        "shares": _shares(evaluation),
    }


def _shares(evaluation: Evaluation) -> str:
    """How much of the gain is the choice among N and how much the two adapters."""
    chosen, base = evaluation.chosen, evaluation.reference
    middle = Key("reference", None, chosen.candidates)
    if chosen.candidates == base.candidates or not evaluation.has(middle):
        return ""
    adapters = evaluation.gain(chosen, middle)
    choice = evaluation.gain(middle, base)
    return (
        f"The same critic choosing among {chosen.candidates} plans of the reference gains {signed(choice[0])} points "
        f"[{signed(choice[1])}, {signed(choice[2])}]; the two adapters add {signed(adapters[0])} "
        f"[{signed(adapters[1])}, {signed(adapters[2])}] to that."
    )


def score_table(evaluation: Evaluation) -> list[TableRow]:
    rows = sorted(
        evaluation.summary["rows"],
        key=lambda r: (
            POLICY_ORDER.index(r["policy"]) if r["policy"] in POLICY_ORDER else len(POLICY_ORDER),
            r["candidates"],
            -np.inf if r.get("omega") is None else r["omega"],
        ),
    )
    return [_table_row(evaluation, row) for row in rows]


def _table_row(evaluation: Evaluation, row: dict[str, Any]) -> TableRow:
    key = Key(row["policy"], row.get("omega"), int(row["candidates"]))
    base = evaluation.summary_row(evaluation.reference)
    is_base = key == evaluation.reference
    low, high = row["ci95"]
    gain = Cell("–")
    if not is_base and row.get("gain") is not None:
        interval = row.get("gain_ci95")
        note = f"{signed(interval[0])} to {signed(interval[1])}" if interval else ""
        certain = 0 if not interval else int(interval[0] > 0) - int(interval[1] < 0)
        gain = Cell(signed(row["gain"]), note, certain)
    parts = []
    for name in evaluation.sub_scores:
        value, usual = row.get(name), base.get(name)
        if value is None:
            parts.append(Cell("–"))
            continue
        if is_base or usual is None or abs(value - usual) < 5e-4:
            parts.append(Cell(points(value)))
        else:
            parts.append(Cell(points(value), signed(value - usual), _certain_sign(evaluation, key, name)))
    return TableRow(
        policy=row["policy"],
        explanation=_explanation(key),
        omega="" if key.omega is None else f"{key.omega:g}".replace("-", "−"),
        candidates=key.candidates,
        score=Cell(points(row["score"]), f"{points(low)} to {points(high)}"),
        gain=gain,
        parts=parts,
        is_chosen=key == evaluation.chosen,
        is_oracle=key.policy == "oracle",
    )


def _certain_sign(evaluation: Evaluation, key: Key, name: str) -> int:
    """Direction of a sub-score's paired difference to the reference; 0 when its interval includes zero."""
    first, second = evaluation.paired(key, evaluation.reference)
    difference = first[name] - second[name]
    if difference.isna().any():
        return 0
    _, low, high = evaluation.mean_interval(difference)
    return int(low > 0) - int(high < 0)


def _explanation(key: Key) -> str:
    many = key.candidates > 1
    if key.policy == "human":
        return "as driven in the log"
    if key.policy == "reference":
        return "imitation policy" + (", critic chooses" if many else "")
    if key.policy == "oracle":
        return "upper bound: the simulator chooses, it sees the future"
    if key.omega == -1:
        return "negative policy" + (", critic chooses" if many else "")
    if key.omega == 0:
        return "positive policy" + (", critic chooses" if many else "")
    return "guided" + (", critic chooses" if many else "")


def changes(evaluation: Evaluation) -> list[Change]:
    """Per sub-score: scenes fixed and broken by the chosen policy, largest movement first kept in metric order."""
    after, before = evaluation.paired(evaluation.chosen, evaluation.reference)
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
    of_all = f"{better} of {plural(len(differences), 'scene')}"
    sentence = f"{of_all} score higher than with the reference, {worse} lower, {same} the same."
    if better and worse:
        gained, lost = differences[differences > SAME].mean(), -differences[differences < -SAME].mean()
        sentence += f" A gain is {points(gained, 0)} points on average, a loss {points(lost, 0)}."
    return sentence


def curve_sentence(evaluation: Evaluation) -> str:
    """What the ω curve shows, from its numbers."""
    rows = [row for row in evaluation.summary["rows"] if row["policy"] == "dipole"]
    count = evaluation.chosen.candidates
    line = sorted((row for row in rows if row["candidates"] == count), key=lambda row: row["omega"])
    best, last = max(line, key=lambda row: row["score"]), line[-1]
    at = {row["omega"]: row["score"] for row in line}
    sentence = f"With N = {count} the score "
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
