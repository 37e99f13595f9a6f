"""Which setting to report and which reference to compare it with: found here, or on an evaluation of other scenes.

That evaluation is read and checked before anything is scored here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dipole_vla.evaluation.settings import MEAN, REFERENCE, Setting
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import MANIFEST, read_json
from navsim_adapter.foundation.words import counted


def choose(scores: Mapping[Setting, float]) -> Setting:
    """The guided setting to report, from the means of all.

    For each start noise and way of guidance omega is taken from the curve of the smallest N, which every drawn plan
    enters as a drive of its own; of these few the best mean decides over start noise, guidance and N. The argmax over
    the whole grid would pick the luckiest of many means that are alike (`benchmarks/choice.py` measures both).
    Of equal means the first in the order of `scores`, which is that of omega, then of N.
    """
    guided = [setting for setting in scores if setting.policy == "dipole"]
    curves: dict[tuple[float | None, str], list[Setting]] = {}
    for setting in guided:
        curves.setdefault((setting.start_scale, setting.guidance), []).append(setting)
    greed = {}
    for key, curve in curves.items():
        fewest = min(setting.candidates for setting in curve)
        greed[key] = max((s for s in curve if s.candidates == fewest), key=scores.__getitem__).omega
    few = [setting for setting in guided if setting.omega == greed[setting.start_scale, setting.guidance]]
    return max(few, key=scores.__getitem__)


def fairest(scores: Mapping[Setting, float], candidates: int) -> Setting:
    """The best of what needs no pair: the reference at each start noise with N candidates, and the mean of its plans.

    Where there is one plan only, as at start noise 0, it stands for every N.
    """
    most: dict[tuple[str, float | None], Setting] = {}
    for setting in scores:
        if setting.policy in (REFERENCE, MEAN) and setting.candidates <= candidates:
            key = (setting.policy, setting.start_scale)
            most[key] = max(most.get(key, setting), setting, key=lambda found: found.candidates)
    return max(most.values(), key=scores.__getitem__)


def choice_here(
    scores: Mapping[Setting, float], errors: Mapping[Setting, float | None], counts: Sequence[int], split: str
) -> dict[str, Any]:
    """`chosen` of a summary, from these very scenes. errors: standard errors of the means."""
    guided = [setting for setting in scores if setting.policy == "dipole"]
    best = max(guided, key=scores.__getitem__)
    error = errors[best]
    near = [setting for setting in guided if error is not None and scores[setting] >= scores[best] - error]
    near.sort(key=scores.__getitem__, reverse=True)
    return {
        **_named(choose(scores)),
        "on": split,
        "on_these_scenes": True,
        "references": {str(count): fairest(scores, count).facts() for count in counts},
        "standard_error": error,
        "within_one_error": [{**_named(setting), "score": scores[setting]} for setting in near],
        "settings": len(guided),
    }


def choice_of(
    folder: Path,
    tokens: Sequence[str],
    policy: str,
    scorer: Mapping[str, Any],
    settings: Sequence[Setting],
    variants: int = 0,
) -> dict[str, Any]:
    """`chosen` of the summary to come; raises InputError where the choice would be no fair one, or none of this sweep.

    folder: a finished evaluation. tokens: scenes to be evaluated. policy: its fingerprint. scorer: its identity.
    settings, variants: of this sweep.
    """
    made_by = read_json(folder / MANIFEST)["made_by"]
    if made_by.get("command") != "evaluate":
        raise InputError(f"choose_on: {folder}: no evaluation; give a folder that `dipole-vla evaluate` wrote")
    summary = read_json(folder / "summary.json")
    chosen = summary["chosen"]
    metric, own_metric = _metric(made_by.get("scorer") or {}), _metric(scorer)
    has = made_by.get("variants", 0)
    of_policy = summary["provenance"]["policy_fingerprint"]
    seen = set(pq.read_table(folder / "rows.parquet", columns=["token"])["token"].to_pylist())
    shared = sum(token in seen for token in tokens)
    for is_wrong, reason in (
        (
            shared,
            f"holds {shared} of these {counted(len(tokens), 'scene')}; choose on scenes that are not evaluated here",
        ),
        (made_by.get("choose_on"), "reports what another evaluation chose; give that one"),
        (of_policy != policy, f"is of policy {of_policy[:12]}…, this one is {policy[:12]}…; evaluate this one there"),
        (metric != own_metric, f"is by the metric {metric}, this one by {own_metric}; choose by the same"),
        (has != variants, f"rated {has} variants of each plan, this one {variants}; evaluate with as many"),
        ("references" not in chosen, "was made before start noise was swept; evaluate there again"),
    ):
        if is_wrong:
            raise InputError(f"choose_on: {folder}: {reason}")
    _require_swept(folder, chosen, settings)
    return {**chosen, "on": summary["split"], "on_these_scenes": False}


def _require_swept(folder: Path, chosen: Mapping[str, Any], settings: Sequence[Setting]) -> None:
    """InputError where the chosen setting, or the reference it is to be compared with, is not evaluated here."""
    own = Setting.of({"policy": "dipole", **chosen})
    wanted = [own, Setting.of(chosen["references"][str(own.candidates)])]
    for setting in wanted:
        if setting not in settings:
            name = setting.label.replace("ω = ", "omega ").replace("N = ", "N ")
            raise InputError(
                f"choose_on: {folder}: chose {name}, which is not in this sweep; add it to omega, start_scale, "
                "guidance and candidates"
            )


def _named(setting: Setting) -> dict[str, Any]:
    facts = setting.facts()
    return {name: facts[name] for name in ("omega", "candidates", "start_scale", "guidance")}


def _metric(scorer: Mapping[str, Any]) -> str | None:
    """By what it scores; a scorer that names no metric of its own is one."""
    return scorer.get("metric") or scorer.get("class")
