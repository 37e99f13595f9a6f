"""The (omega, N) that an evaluation of other scenes chose, read and checked before anything is scored here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import MANIFEST, read_json


def choice_of(
    folder: Path,
    tokens: Sequence[str],
    policy: str,
    scorer: Mapping[str, Any],
    omegas: Sequence[float],
    counts: Sequence[int],
) -> dict[str, Any]:
    """`chosen` of the summary to come; raises InputError where the choice would be no fair one, or none of this sweep.

    folder: a finished evaluation. tokens: scenes to be evaluated. policy: its fingerprint. scorer: its identity.
    """
    made_by = read_json(folder / MANIFEST)["made_by"]
    if made_by.get("command") != "evaluate":
        raise InputError(f"choose_on: {folder}: no evaluation; give a folder that `dipole-vla evaluate` wrote")
    summary = read_json(folder / "summary.json")
    omega, candidates = summary["chosen"]["omega"], summary["chosen"]["candidates"]
    metric, own_metric = _metric(made_by.get("scorer") or {}), _metric(scorer)
    of_policy = summary["provenance"]["policy_fingerprint"]
    seen = set(pq.read_table(folder / "rows.parquet", columns=["token"])["token"].to_pylist())
    shared = sum(token in seen for token in tokens)
    for is_wrong, reason in (
        (shared, f"holds {shared} of these {len(tokens)} scenes; choose on scenes that are not evaluated here"),
        (made_by.get("choose_on"), "reports what another evaluation chose; give that one"),
        (of_policy != policy, f"is of policy {of_policy[:12]}…, this one is {policy[:12]}…; evaluate this one there"),
        (metric != own_metric, f"is by the metric {metric}, this one by {own_metric}; choose by the same"),
        (
            omega not in omegas or candidates not in counts,
            f"chose omega {omega:g}, N {candidates}, which is not in this sweep; add it to omega and candidates",
        ),
    ):
        if is_wrong:
            raise InputError(f"choose_on: {folder}: {reason}")
    return {"omega": omega, "candidates": candidates, "on": summary["split"], "on_these_scenes": False}


def _metric(scorer: Mapping[str, Any]) -> str | None:
    """By what it scores; a scorer that names no metric of its own is one."""
    return scorer.get("metric") or scorer.get("class")
