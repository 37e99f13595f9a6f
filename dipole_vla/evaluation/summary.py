"""From plans to rows and a summary: which candidate the critic kept, means, intervals, the chosen (omega, N)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from dipole_vla.evaluation.statistics import LogBootstrap

PLAN_COLUMNS = ("token", "log_name", "policy", "omega", "index", "q", "poses")


def summarise(
    plans: pa.Table,
    omegas: Sequence[float],
    counts: Sequence[int],
    facts: Mapping[str, Any],
    validation: Mapping[str, Any] | None,
) -> tuple[pa.Table, dict[str, Any]]:
    """Rows (one per token, policy, omega, N) and the summary; `validation` is the summary that chooses (omega, N)."""
    frame = plans.to_pandas()
    sub_scores = [name for name in frame.columns if name not in PLAN_COLUMNS and name != "score"]
    kept = [_keep(frame[frame.policy == "human"], "human", None, 1)]
    kept += [_keep(frame[frame.policy == "reference"], "reference", None, n) for n in counts]
    for omega in omegas:
        kept += [_keep(frame[(frame.policy == "dipole") & (frame.omega == omega)], "dipole", omega, n) for n in counts]
    chosen = dict(validation["chosen"], on="validation") if validation else _best(kept, facts["split"])
    candidates_of_chosen = frame[(frame.policy == "dipole") & (frame.omega == chosen["omega"])]
    kept.append(_keep(candidates_of_chosen, "oracle", chosen["omega"], max(counts), by="score"))

    bootstrap = LogBootstrap(kept[0].log_name.tolist())
    reference = next(k for k in kept if k.policy.iloc[0] == "reference" and k.candidates.iloc[0] == counts[0])
    rows = [_row(k, reference, sub_scores, bootstrap) for k in kept]
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


def _keep(plans: pd.DataFrame, policy: str, omega: float | None, candidates: int, by: str = "q") -> pd.DataFrame:
    """Of each scene's first N candidates the one with the greatest `by`; order of scenes as in `plans`."""
    pool = plans[plans["index"] < candidates].reset_index(drop=True)
    best = pool.groupby("token", sort=False)[by].idxmax() if candidates > 1 else pool.index
    kept = pool.loc[best].reset_index(drop=True).assign(policy=policy, candidates=candidates)
    kept["omega"] = np.nan if omega is None else omega
    return kept.sort_values("token", ignore_index=True)


def _row(
    kept: pd.DataFrame, reference: pd.DataFrame, sub_scores: Sequence[str], bootstrap: LogBootstrap
) -> dict[str, Any]:
    omega = kept.omega.iloc[0]
    difference = kept.score.to_numpy() - reference.score.to_numpy()
    is_reference = kept is reference
    return {
        "policy": kept.policy.iloc[0],
        "omega": None if np.isnan(omega) else float(omega),
        "candidates": int(kept.candidates.iloc[0]),
        "score": float(kept.score.mean()),
        "ci95": list(bootstrap.interval(kept.score.to_numpy())),
        "gain": None if is_reference else float(difference.mean()),
        "gain_ci95": None if is_reference else list(bootstrap.interval(difference)),
        **{name: float(kept[name].mean()) for name in sub_scores},
    }


def _best(kept: Sequence[pd.DataFrame], split: str) -> dict[str, Any]:
    dipole = [k for k in kept if k.policy.iloc[0] == "dipole"]
    best = max(dipole, key=lambda k: k.score.mean())
    return {"omega": float(best.omega.iloc[0]), "candidates": int(best.candidates.iloc[0]), "on": split}
