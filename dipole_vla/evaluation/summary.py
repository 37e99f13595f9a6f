"""From plans to rows and a summary: which candidate the critic kept, means, intervals, the chosen setting.

Every drawn plan counts for every N: N = 1 is the mean over all that were drawn, a larger N the mean over all subsets
of N (`subsets`). `rows.parquet` keeps the first N only, the plan that would have been driven. Under a metric that
compares a plan with that of the frame before (EPDMS), subsets are no drives: the drawn plans fall into groups of N,
each a planner of its own that drives the whole split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from dipole_vla.evaluation.choice import choice_here
from dipole_vla.evaluation.settings import REFERENCE, Setting, fewest_of, several_starts
from dipole_vla.evaluation.subsets import best_of
from dipole_vla.scoring import OVERWRITTEN, UNFILTERED, Scorer, drive_columns, pairs_frames
from navsim_adapter.foundation.statistics import TOO_FEW, LogIntervals, verdict
from navsim_adapter.trajectories import DEFAULT_INTERVAL

PLAN_COLUMNS = ("token", "log_name", "policy", "omega", "start_scale", "guidance", "index", "q", "poses")
HUMAN = Setting("human", start_scale=None)
Drives = Callable[[Sequence[str], Sequence[str], Sequence[str], Sequence[np.ndarray]], dict[str, np.ndarray]]
"""Logs, tokens, planners, poses of plans -> their figures in the drives they make, see `drive_columns`."""


def summarise(
    plans: pa.Table,
    settings: Sequence[Setting],
    facts: Mapping[str, Any],
    chosen: dict[str, Any] | None,
    scorer: Scorer | None = None,
) -> tuple[pa.Table, dict[str, Any]]:
    """Rows (one per token and setting) and the summary.

    plans: scored one by one; the oracle picks by that score. settings: of the table, as `Sweep.settings`.
    chosen: what to report, as `choice.choice_of` gives it; None lets these very scenes choose.
    scorer: scores the kept plans as drives, where that makes a difference.
    """
    frame = plans.to_pandas()
    names = [name for name in frame.columns if name not in PLAN_COLUMNS]
    pairs = scorer is not None and pairs_frames(scorer)
    interval = facts.get("interval", DEFAULT_INTERVAL)
    drives = partial(drive_columns, scorer, interval=interval) if pairs else None
    scenes, first = _measured(frame, [HUMAN, *settings], names, drives)
    logs = frame.drop_duplicates("token").set_index("token").log_name
    intervals = LogIntervals(logs.loc[scenes[HUMAN].index].tolist())
    here = choice_here(
        {setting: float(table.score.mean()) for setting, table in scenes.items()},
        {setting: intervals.error(table.score.to_numpy()) for setting, table in scenes.items()},
        sorted({setting.candidates for setting in [HUMAN, *settings]}),
        facts["split"],
    )
    chosen = {**{name: here[name] for name in ("start_scale", "guidance", "references")}, **chosen} if chosen else here
    own = Setting.of({"policy": "dipole", **chosen})
    oracle = Setting("oracle", own.omega, max(s.candidates for s in settings if _alike(s, own)), *_start(own))
    more, best = _measured(frame, [oracle], names, drives)
    scenes, first = scenes | more, first + best

    base = _base(settings, facts.get("start_scale"))
    rows = [_row(setting, scenes, base, chosen["references"], names, intervals) for setting in scenes]
    summary = {
        **{key: facts[key] for key in ("metric", "split", "rl_split", "rl_on_eval_split")},
        "variants": facts.get("variants", 0),
        "scenes": len(logs),
        "logs": intervals.logs,
        "sub_scores": [name for name in names if name != "score"],
        "start_scale": base.start_scale,
        "interval": interval,
        "samples": int(frame["index"].max()) + 1,
        "best_of": "groups" if pairs else "subsets",
        "rows": rows,
        "chosen": chosen,
        "provenance": facts["provenance"],
        "inputs": facts["inputs"],
    }
    return pa.Table.from_pandas(pd.concat(first, ignore_index=True), preserve_index=False), summary


def headline(summary: Mapping[str, Any]) -> list[str]:
    """What the chosen setting gains, for the terminal: over the fairest reference, by the critic, beside the human."""
    rows = {Setting.of(row): row for row in summary["rows"]}
    chosen, many = summary["chosen"], several_starts(summary["rows"])
    own = Setting.of({"policy": "dipole", **chosen})
    reference = Setting.of(chosen["references"][str(own.candidates)])
    start = f", start noise {own.start_scale:g}" if many else ""
    way = f", {own.guidance}" if own.guidance else ""
    name = f"omega {own.omega:g}{way}{start}, N {own.candidates} (chosen on {chosen['on']})"
    gain, said = difference_words(rows[own], "fairest_gain"), verdict(rows[own]["fairest_gain_ci95"])
    against = f"the {_plain(reference.words(many))}" + (f", the fairest on {chosen['on']}" if many else "")
    lines = [f"{name}: {100 * rows[own]['score']:.1f}, {gain} against {against}: {said}"]
    if chosen["on_these_scenes"]:
        lines.append("chosen on these very scenes, and so was the reference: both are optimistic")
    lines += _shares(rows, own, summary["start_scale"], many)
    lines.append(
        f"human {100 * rows[HUMAN]['score']:.1f}: chosen minus human {difference_words(rows[own], 'human_gain')}"
    )
    if summary.get("variants"):
        lines.append(
            f"a plan, of the reference, too, is what the critic rates best of it and {summary['variants']} variants"
        )
    if chosen.get("standard_error") is not None:
        lines.append(
            f"on {chosen['on']} the best mean had a standard error of {100 * chosen['standard_error']:.1f}; "
            f"{len(chosen['within_one_error'])} of {chosen['settings']} settings were within it"
        )
    return lines


def _shares(rows: Mapping[Setting, Mapping[str, Any]], own: Setting, start: float | None, many: bool) -> list[str]:
    """What the reference gains by the chosen start noise or by the critic, and what all gain together."""
    same, base = Setting(REFERENCE, None, own.candidates, own.start_scale), _base(list(rows), start)
    if same == base or same not in rows or rows[same]["gain"] is None:
        return []
    words = f"sampled so, too, the reference gains {difference_words(rows[same], 'gain')}"
    if rows[same]["critic_gain"] is not None:
        gain = difference_words(rows[same], "critic_gain")
        words = f"the critic's choice among {own.candidates} gains {gain} for the reference"
        words += f" at start noise {own.start_scale:g}" if many else ""
    return [f"{words}; in all {difference_words(rows[own], 'gain')} over the {_plain(base.words(many))}"]


def _plain(words: str) -> str:
    """Without signs that a terminal may lack: "reference at start noise 0, N 1"."""
    first, *rest = words.replace("ω = ", "omega ").replace("N = ", "N ").split(", ")
    return " at ".join([first, ", ".join(rest)]) if rest else first


def difference_words(row: Mapping[str, Any], name: str) -> str:
    """A gain of a row and its interval, x 100: "+1.3 [-0.1, +2.6]"; of none, 0."""
    if row[name] is None:
        return "+0.0"
    interval = row[f"{name}_ci95"]
    inside = TOO_FEW if interval is None else f"{100 * interval[0]:+z.1f}, {100 * interval[1]:+z.1f}"
    return f"{100 * row[name]:+z.1f} [{inside}]"


def _alike(setting: Setting, own: Setting) -> bool:
    return (setting.policy, setting.omega, _start(setting)) == ("dipole", own.omega, _start(own))


def _start(setting: Setting) -> tuple[float | None, str]:
    return setting.start_scale, setting.guidance


def _base(settings: Sequence[Setting], start: float | None) -> Setting:
    """The reference as it is: its own start noise (else the most that was swept), the fewest candidates."""
    own = [setting for setting in settings if setting.policy == REFERENCE]
    starts = [setting.start_scale or 0.0 for setting in own]
    start = start if start in starts else max(starts)
    return min((setting for setting in own if setting.start_scale == start), key=lambda found: found.candidates)


def _measured(
    plans: pd.DataFrame, settings: Sequence[Setting], names: Sequence[str], drives: Drives | None
) -> tuple[dict[Setting, pd.DataFrame], list[pd.DataFrame]]:
    """Expected figures by token of each setting, and the rows of the plans that would have been driven.

    drives: only of a metric that compares neighbouring plans.
    """
    pools = {setting: plans[setting.of_plans(plans)].reset_index(drop=True) for setting in settings}
    if drives is None:
        kept = {setting: _groups(pool[pool["index"] < setting.candidates], setting) for setting, pool in pools.items()}
        scenes = {setting: _expected(pool, setting, names) for setting, pool in pools.items()}
    else:
        kept = _driven({setting: _groups(pool, setting) for setting, pool in pools.items()}, drives)
        scenes = {setting: table.groupby("token")[[*names, *_hidden(table)]].mean() for setting, table in kept.items()}
    return scenes, [_first_group(setting, table) for setting, table in kept.items()]


def _by(setting: Setting) -> str:
    """The column by which the best of N is kept."""
    return "score" if setting.policy == "oracle" else "q"


def _expected(pool: pd.DataFrame, setting: Setting, names: Sequence[str]) -> pd.DataFrame:
    """Figures by token of the best of N, over all subsets of N of the drawn plans; N = 1 is their mean."""
    if setting.candidates == 1:
        return pool.groupby("token")[list(names)].mean()
    pool = pool.sort_values(["token", "index"], kind="stable")
    tokens = pool["token"].unique()
    values = pool[list(names)].to_numpy(dtype=np.float64).reshape(len(tokens), -1, len(names))
    found = best_of(values, pool[_by(setting)].to_numpy().reshape(len(tokens), -1), setting.candidates)
    return pd.DataFrame(found, index=pd.Index(tokens, name="token"), columns=list(names))


def _groups(pool: pd.DataFrame, setting: Setting) -> pd.DataFrame:
    """The drawn plans fall into groups of N; of each group the one with the greatest `_by` is kept."""
    groups = (pool["index"].max() + 1) // setting.candidates
    pool = pool[pool["index"] < groups * setting.candidates]
    pool = pool.assign(group=pool["index"] // setting.candidates).reset_index(drop=True)
    if setting.candidates == 1:
        return pool
    return pool.loc[pool.groupby(["token", "group"], sort=False)[_by(setting)].idxmax()].reset_index(drop=True)


def _driven(kept: dict[Setting, pd.DataFrame], drives: Drives) -> dict[Setting, pd.DataFrame]:
    """The kept plans with the figures they have in the drive of their group."""
    together = pd.concat(list(kept.values()), keys=range(len(kept)))
    planners = [f"{setting} {group}" for setting, group in zip(together.index.get_level_values(0), together.group)]
    poses = [np.stack(list(plan)) for plan in together.poses]
    figures = drives(together.log_name.tolist(), together.token.tolist(), planners, poses)
    together = together.assign(**figures)
    return {setting: together.loc[place] for place, setting in enumerate(kept)}


def _hidden(kept: pd.DataFrame) -> list[str]:
    """Columns of what the human filter hides, where the scorer says it."""
    return [name for name in kept.columns if name == UNFILTERED or name.startswith(OVERWRITTEN)]


def _first_group(setting: Setting, kept: pd.DataFrame) -> pd.DataFrame:
    """One plan per scene, the one that would have been driven first; rows of `rows.parquet`."""
    facts = {name: np.nan if value is None else value for name, value in setting.facts().items()}
    first = kept.query("group == 0").drop(columns=["group", *_hidden(kept)]).assign(**facts)
    return first.sort_values("token", ignore_index=True)


def _row(
    setting: Setting,
    scenes: Mapping[Setting, pd.DataFrame],
    base: Setting,
    references: Mapping[str, Mapping[str, Any]],
    names: Sequence[str],
    intervals: LogIntervals,
) -> dict[str, Any]:
    """Means of a setting, and its differences to the references and to the human.

    gain: to `base`. equal_n_gain: to the reference with as many candidates and the same start noise. fairest_gain: to
    the fairest reference for that N. critic_gain: to itself with the fewest candidates.
    """
    own, fair = scenes[setting], references.get(str(setting.candidates))
    start = base.start_scale if setting == HUMAN else setting.start_scale

    def against(name: str, baseline: Setting | None) -> dict[str, Any]:
        if baseline is None or baseline == setting or baseline not in scenes:
            return {name: None, f"{name}_ci95": None}
        difference = (own.score - scenes[baseline].score).to_numpy()
        return {name: float(difference.mean()), f"{name}_ci95": _listed(intervals.interval(difference))}

    return {
        **setting.facts(),
        "score": float(own.score.mean()),
        "ci95": _listed(intervals.interval(own.score.to_numpy())),
        "standard_error": intervals.error(own.score.to_numpy()),
        **against("gain", base),
        **against("critic_gain", fewest_of(scenes, setting)),
        **against("equal_n_gain", Setting(REFERENCE, None, setting.candidates, start)),
        **against("fairest_gain", Setting.of(fair) if fair else None),
        **against("human_gain", HUMAN),
        **{name: None if own[name].isna().all() else float(own[name].mean()) for name in names if name != "score"},
        **_filter_facts(own),
    }


def _filter_facts(own: pd.DataFrame) -> dict[str, Any]:
    """The mean score with the human filter off, and the share of scenes in which it hid a failure, by sub-score."""
    if UNFILTERED not in own.columns:
        return {}
    shares = {name.removeprefix(OVERWRITTEN): float(own[name].mean()) for name in _hidden(own) if name != UNFILTERED}
    return {UNFILTERED: float(own[UNFILTERED].mean()), "overwritten": shares}


def _listed(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)
