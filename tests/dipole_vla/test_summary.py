"""Which candidate is kept, what the rows say, and who chooses omega and N."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from dipole_vla.evaluation.summary import summarise

FACTS = {
    "metric": "pdms-v1.1",
    "split": "test",
    "rl_split": "trainval",
    "rl_on_eval_split": False,
    "provenance": {},
    "inputs": {},
}


def plans(scores: dict[tuple[str, float | None], list[list[float]]], q: dict | None = None) -> pa.Table:
    """scores: (policy, omega) -> per scene, per candidate."""
    rows = []
    for (policy, omega), table in scores.items():
        for scene, values in enumerate(table):
            for index, score in enumerate(values):
                value = (q or {}).get((policy, omega), table)[scene][index]
                rows.append(
                    {
                        "token": f"scene{scene}",
                        "log_name": f"log{scene // 2}",
                        "policy": policy,
                        "omega": np.nan if omega is None else omega,
                        "index": index,
                        "q": value,
                        "poses": [[0.0, 0.0, 0.0]],
                        "comfort": 1.0,
                        "score": score,
                    }
                )
    return pa.Table.from_pandas(pd.DataFrame(rows), preserve_index=False)


@pytest.fixture
def sweep() -> pa.Table:
    scores = {
        ("human", None): [[0.9], [0.8], [0.7], [0.6]],
        ("reference", None): [[0.5, 0.6]] * 4,
        ("dipole", 0.0): [[0.6, 0.9]] * 4,
        ("dipole", 1.0): [[0.7, 0.2]] * 4,
    }
    critic = {("dipole", 0.0): [[0.0, 1.0]] * 4, ("dipole", 1.0): [[0.0, 1.0]] * 4}  # prefers the second, wrongly at 1
    return plans(scores, critic)


def row(summary, policy, omega=None, candidates=1):
    return next(r for r in summary["rows"] if (r["policy"], r["omega"], r["candidates"]) == (policy, omega, candidates))


def test_the_critic_keeps_and_only_the_oracle_looks_at_scores(sweep):
    _, summary = summarise(sweep, [0.0, 1.0], [1, 2], FACTS, {"omega": 1.0, "candidates": 2})
    assert row(summary, "dipole", 0.0, 2)["score"] == pytest.approx(0.9)
    assert row(summary, "dipole", 1.0, 2)["score"] == pytest.approx(0.2), "the critic's mistake is reported as it is"
    assert row(summary, "oracle", 1.0, 2)["score"] == pytest.approx(0.7)


def test_every_drawn_candidate_counts_and_gains_are_paired_with_single_drives_of_the_reference(sweep):
    rows, summary = summarise(sweep, [0.0, 1.0], [1, 2], FACTS, None)
    assert row(summary, "reference")["score"] == pytest.approx(0.55)
    assert row(summary, "dipole", 1.0, 1)["gain"] == pytest.approx(0.45 - 0.55)
    assert row(summary, "dipole", 1.0, 1)["gain_ci95"] == pytest.approx([-0.1, -0.1])
    assert row(summary, "reference")["gain"] is None
    assert row(summary, "human")["gain"] == pytest.approx(0.75 - 0.55)
    first = rows.to_pandas().query("policy == 'dipole' and omega == 1 and candidates == 1")
    assert (first.score == 0.7).all(), "rows keep the first group: one plan per scene"


def test_omega_and_n_are_those_given_or_the_best_here(sweep):
    _, here = summarise(sweep, [0.0, 1.0], [1, 2], FACTS, None)
    assert here["chosen"] == {"omega": 0.0, "candidates": 2, "on": "test", "on_these_scenes": True}
    given = {"omega": 1.0, "candidates": 1, "on": "mini", "on_these_scenes": False}
    assert summarise(sweep, [0.0, 1.0], [1, 2], FACTS, given)[1]["chosen"] == given


def test_one_row_per_token_policy_omega_and_n(sweep):
    rows, summary = summarise(sweep, [0.0, 1.0], [1, 2], FACTS, None)
    frame = rows.to_pandas()
    assert (summary["scenes"], summary["logs"]) == (4, 2)
    assert len(frame) == 4 * (1 + 2 + 4 + 1)
    assert not frame.duplicated(["token", "policy", "omega", "candidates"]).any()
