"""From plans to rows and a summary: which candidate the critic kept, means, intervals, the chosen (omega, N).

Every drawn candidate counts: with 8 drawn, N = 1 is averaged over 8 single drives and N = 8 is one choice among 8.
`rows.parquet` keeps the first group only, the plan that would have been driven. Each group of a setting is a planner of
its own that drives the whole split: under EPDMS its plans of neighbouring scenes are compared with each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from dipole_vla.evaluation.statistics import TOO_FEW, LogIntervals, verdict
from dipole_vla.scoring import Scorer, drive_columns, pairs_frames

PLAN_COLUMNS = ("token", "log_name", "policy", "omega", "index", "q", "poses")

Setting = tuple[str, float | None, int, str]
"""(policy, omega, N, column by which the best of N is kept)."""


def summarise(
    plans: pa.Table,
    omegas: Sequence[float],
    counts: Sequence[int],
    facts: Mapping[str, Any],
    chosen: dict[str, Any] | None,
    scorer: Scorer | None = None,
) -> tuple[pa.Table, dict[str, Any]]:
    """Rows (one per token, policy, omega, N) and the summary.

    plans: scored one by one; the oracle picks by that score.
    chosen: the (omega, N) to report, as `choice.choice_of` gives it; None marks the best mean of these very scenes.
    scorer: scores the kept plans as drives, where that makes a difference.
    """
    frame = plans.to_pandas()
    sub_scores = [name for name in frame.columns if name not in PLAN_COLUMNS and name != "score"]
    settings: list[Setting] = [("human", None, 1, "q")]
    settings += [("reference", None, n, "q") for n in counts]
    settings += [("dipole", omega, n, "q") for omega in omegas for n in counts]
    kept = _drives(frame, settings, scorer)
    chosen = chosen or _best(kept, facts["split"])
    kept |= _drives(frame, [("oracle", chosen["omega"], max(counts), "score")], scorer)

    scenes = {setting: _per_scene(table, sub_scores) for setting, table in kept.items()}
    logs = frame.drop_duplicates("token").set_index("token").log_name
    intervals = LogIntervals(logs.loc[scenes[settings[0]].index].tolist())
    rows = [_row(setting, scenes, counts[0], sub_scores, intervals) for setting in scenes]
    first = [_first_group(setting, table) for setting, table in kept.items()]
    summary = {
        **{key: facts[key] for key in ("metric", "split", "rl_split", "rl_on_eval_split")},
        "scenes": len(logs),
        "logs": intervals.logs,
        "sub_scores": sub_scores,
        "rows": rows,
        "chosen": chosen,
        "provenance": facts["provenance"],
        "inputs": facts["inputs"],
    }
    return pa.Table.from_pandas(pd.concat(first, ignore_index=True), preserve_index=False), summary


def headline(summary: Mapping[str, Any]) -> list[str]:
    """What the chosen setting gains, for the terminal: the adapters' part first, then the critic's."""
    chosen, rows = summary["chosen"], summary["rows"]
    count = chosen["candidates"]
    own = next(
        row
        for row in rows
        if row["policy"] == "dipole" and row["omega"] == chosen["omega"] and row["candidates"] == count
    )
    same = next(row for row in rows if row["policy"] == "reference" and row["candidates"] == count)
    name = f"omega {chosen['omega']:g}, N {count} (chosen on {chosen['on']})"
    gain, said = difference_words(own, "equal_n_gain"), verdict(own["equal_n_gain_ci95"])
    lines = [f"{name}: {100 * own['score']:.1f}, {gain} against the reference at N {count}: {said}"]
    if same["gain"] is not None:
        fewest = min(row["candidates"] for row in rows if row["policy"] == "reference")
        lines.append(
            f"the critic's choice among {count} gains {difference_words(same, 'gain')} for the reference; "
            f"in all {difference_words(own, 'gain')} over the reference at N {fewest}"
        )
    return lines


def difference_words(row: Mapping[str, Any], name: str) -> str:
    """A gain of a row and its interval, x 100: "+1.3 [-0.1, +2.6]"."""
    interval = row[f"{name}_ci95"]
    inside = TOO_FEW if interval is None else f"{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}"
    return f"{100 * row[name]:+.1f} [{inside}]"


def _drives(plans: pd.DataFrame, settings: Sequence[Setting], scorer: Scorer | None) -> dict[Setting, pd.DataFrame]:
    """The kept plans of each setting, with the figures they have in the drive of their group."""
    kept = {setting: _chosen_of_groups(plans, setting) for setting in settings}
    if scorer is None or not pairs_frames(scorer):
        return kept
    together = pd.concat(list(kept.values()), keys=range(len(kept)))
    planners = [f"{setting} {group}" for setting, group in zip(together.index.get_level_values(0), together.group)]
    poses = [np.stack(list(plan)) for plan in together.poses]
    figures = drive_columns(scorer, together.log_name.tolist(), together.token.tolist(), planners, poses)
    together = together.assign(**figures)
    return {setting: together.loc[place] for place, setting in enumerate(kept)}


def _pool(plans: pd.DataFrame, setting: Setting) -> pd.DataFrame:
    policy, omega, _, _ = setting
    policy = "dipole" if policy == "oracle" else policy
    return plans[(plans.policy == policy) & (True if omega is None else plans.omega == omega)]


def _chosen_of_groups(plans: pd.DataFrame, setting: Setting) -> pd.DataFrame:
    """The drawn candidates fall into groups of N; of each group the one with the greatest `by` is kept."""
    _, _, candidates, by = setting
    pool = _pool(plans, setting)
    groups = (pool["index"].max() + 1) // candidates
    pool = pool[pool["index"] < groups * candidates].assign(group=lambda frame: frame["index"] // candidates)
    pool = pool.reset_index(drop=True)
    if candidates == 1:
        return pool
    return pool.loc[pool.groupby(["token", "group"], sort=False)[by].idxmax()].reset_index(drop=True)


def _per_scene(kept: pd.DataFrame, sub_scores: Sequence[str]) -> pd.DataFrame:
    """Score and sub-scores by token, averaged over the groups: N = 1 of 8 drawn candidates averages 8 drives."""
    return kept.groupby("token")[[*sub_scores, "score"]].mean()


def _first_group(setting: Setting, kept: pd.DataFrame) -> pd.DataFrame:
    """One plan per scene, the one that would have been driven first; rows of `rows.parquet`."""
    policy, omega, candidates, _ = setting
    first = kept.query("group == 0").drop(columns="group")
    first = first.assign(policy=policy, candidates=candidates, omega=np.nan if omega is None else omega)
    return first.sort_values("token", ignore_index=True)


def _row(
    setting: Setting,
    scenes: Mapping[Setting, pd.DataFrame],
    fewest: int,
    sub_scores: Sequence[str],
    intervals: LogIntervals,
) -> dict[str, Any]:
    """Means of a setting, and its differences to the reference with the fewest candidates and with as many."""
    policy, omega, candidates, _ = setting
    own = scenes[setting]

    def against(count: int, name: str) -> dict[str, Any]:
        reference = scenes.get(("reference", None, count, "q"))
        if reference is None or reference is own:
            return {name: None, f"{name}_ci95": None}
        difference = (own.score - reference.score).to_numpy()
        return {name: float(difference.mean()), f"{name}_ci95": _listed(intervals.interval(difference))}

    return {
        "policy": policy,
        "omega": omega,
        "candidates": candidates,
        "score": float(own.score.mean()),
        "ci95": _listed(intervals.interval(own.score.to_numpy())),
        **against(fewest, "gain"),
        **against(candidates, "equal_n_gain"),
        **{name: None if own[name].isna().all() else float(own[name].mean()) for name in sub_scores},
    }


def _listed(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)


def _best(kept: Mapping[Setting, pd.DataFrame], split: str) -> dict[str, Any]:
    """The setting with the best mean; of equal ones the smaller omega, then the smaller N."""
    dipole = [setting for setting in kept if setting[0] == "dipole"]
    _, omega, candidates, _ = max(dipole, key=lambda setting: kept[setting].groupby("token").score.mean().mean())
    return {"omega": omega, "candidates": candidates, "on": split, "on_these_scenes": True}
