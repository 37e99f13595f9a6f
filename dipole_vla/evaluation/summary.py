"""From plans to rows and a summary: which candidate the critic kept, means, intervals, the chosen (omega, N).

Every drawn candidate counts: with 8 drawn, N = 1 is averaged over 8 single drives and N = 8 is one choice among 8.
`rows.parquet` keeps the first group only, the plan that would have been driven.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from dipole_vla.evaluation.statistics import LogBootstrap

PLAN_COLUMNS = ("token", "log_name", "policy", "omega", "index", "q", "poses")

Setting = tuple[str, float | None, int, str]
"""(policy, omega, N, column by which the best of N is kept)."""


def summarise(
    plans: pa.Table,
    omegas: Sequence[float],
    counts: Sequence[int],
    facts: Mapping[str, Any],
    chosen: dict[str, Any] | None,
) -> tuple[pa.Table, dict[str, Any]]:
    """Rows (one per token, policy, omega, N) and the summary.

    chosen: the (omega, N) to report, as `choice.choice_of` gives it; None marks the best of these very scenes.
    """
    frame = plans.to_pandas()
    sub_scores = [name for name in frame.columns if name not in PLAN_COLUMNS and name != "score"]
    settings: list[Setting] = [("human", None, 1, "q")]
    settings += [("reference", None, n, "q") for n in counts]
    settings += [("dipole", omega, n, "q") for omega in omegas for n in counts]
    scenes = {setting: _per_scene(frame, setting, sub_scores) for setting in settings}
    chosen = chosen or _best(scenes, facts["split"])
    oracle: Setting = ("oracle", chosen["omega"], max(counts), "score")
    scenes[oracle] = _per_scene(frame, oracle, sub_scores)

    logs = frame.drop_duplicates("token").set_index("token").log_name
    bootstrap = LogBootstrap(logs.loc[scenes[oracle].index].tolist())
    reference = scenes["reference", None, counts[0], "q"]
    rows = [_row(setting, table, reference, sub_scores, bootstrap) for setting, table in scenes.items()]
    kept = [_first_group(frame, setting) for setting in scenes]
    summary = {
        **{key: facts[key] for key in ("metric", "split", "rl_split", "rl_on_eval_split")},
        "scenes": len(reference),
        "logs": bootstrap.logs,
        "sub_scores": sub_scores,
        "rows": rows,
        "chosen": chosen,
        "provenance": facts["provenance"],
        "inputs": facts["inputs"],
    }
    return pa.Table.from_pandas(pd.concat(kept, ignore_index=True), preserve_index=False), summary


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


def _per_scene(plans: pd.DataFrame, setting: Setting, sub_scores: Sequence[str]) -> pd.DataFrame:
    """Score and sub-scores by token, averaged over the groups: N = 1 of 8 drawn candidates averages 8 drives."""
    return _chosen_of_groups(plans, setting).groupby("token")[[*sub_scores, "score"]].mean()


def _first_group(plans: pd.DataFrame, setting: Setting) -> pd.DataFrame:
    """One plan per scene, the one that would have been driven first; rows of `rows.parquet`."""
    policy, omega, candidates, _ = setting
    kept = _chosen_of_groups(plans, setting).query("group == 0").drop(columns="group")
    kept = kept.assign(policy=policy, candidates=candidates, omega=np.nan if omega is None else omega)
    return kept.sort_values("token", ignore_index=True)


def _row(
    setting: Setting, scenes: pd.DataFrame, reference: pd.DataFrame, sub_scores: Sequence[str], bootstrap: LogBootstrap
) -> dict[str, Any]:
    policy, omega, candidates, _ = setting
    difference = (scenes.score - reference.score).to_numpy()
    is_reference = scenes is reference
    return {
        "policy": policy,
        "omega": omega,
        "candidates": candidates,
        "score": float(scenes.score.mean()),
        "ci95": list(bootstrap.interval(scenes.score.to_numpy())),
        "gain": None if is_reference else float(difference.mean()),
        "gain_ci95": None if is_reference else list(bootstrap.interval(difference)),
        **{name: float(scenes[name].mean()) for name in sub_scores},
    }


def _best(scenes: Mapping[Setting, pd.DataFrame], split: str) -> dict[str, Any]:
    dipole = {setting: table.score.mean() for setting, table in scenes.items() if setting[0] == "dipole"}
    _, omega, candidates, _ = max(dipole, key=lambda setting: dipole[setting])
    return {"omega": omega, "candidates": candidates, "on": split, "on_these_scenes": True}
