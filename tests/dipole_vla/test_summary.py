"""Which candidate is kept, what the rows say, and who chooses omega and N."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from dipole_vla.evaluation.settings import MEAN
from dipole_vla.evaluation.summary import headline, summarise
from dipole_vla.evaluation.sweep import Sweep
from dipole_vla.solvers import SolverSpec

FACTS = {
    "metric": "pdms-v1.1",
    "split": "test",
    "rl_split": "trainval",
    "rl_on_eval_split": False,
    "provenance": {},
    "inputs": {},
}


def settings(omegas, counts, starts=(1.0,), samples=None):
    """Of a sweep, without the mean of the reference's plans."""
    sweep = Sweep.of(omegas, counts, starts, None, samples, SolverSpec())
    return [setting for setting in sweep.settings if setting.policy != MEAN]


def plans(
    scores: dict[tuple[str, float | None], list[list[float]]], q: dict | None = None, per_log: int = 2
) -> pa.Table:
    """scores: (policy, omega) -> per scene, per candidate."""
    rows = []
    for (policy, omega), table in scores.items():
        for scene, values in enumerate(table):
            for index, score in enumerate(values):
                value = (q or {}).get((policy, omega), table)[scene][index]
                rows.append(
                    {
                        "token": f"scene{scene}",
                        "log_name": f"log{scene // per_log}",
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
    _, summary = summarise(sweep, settings([0.0, 1.0], [1, 2]), FACTS, {"omega": 1.0, "candidates": 2})
    assert row(summary, "dipole", 0.0, 2)["score"] == pytest.approx(0.9)
    assert row(summary, "dipole", 1.0, 2)["score"] == pytest.approx(0.2), "the critic's mistake is reported as it is"
    assert row(summary, "oracle", 1.0, 2)["score"] == pytest.approx(0.7)


def test_every_drawn_candidate_counts_and_gains_are_paired_with_single_drives_of_the_reference(sweep):
    rows, summary = summarise(sweep, settings([0.0, 1.0], [1, 2]), FACTS, None)
    assert row(summary, "reference")["score"] == pytest.approx(0.55)
    assert row(summary, "dipole", 1.0, 1)["gain"] == pytest.approx(0.45 - 0.55)
    assert row(summary, "dipole", 1.0, 2)["gain"] == pytest.approx(0.2 - 0.55)
    assert row(summary, "reference")["gain"] is None
    assert row(summary, "human")["gain"] == pytest.approx(0.75 - 0.55)
    first = rows.to_pandas().query("policy == 'dipole' and omega == 1 and candidates == 1")
    assert (first.score == 0.7).all(), "rows keep the first group: one plan per scene"


def test_gains_at_equal_n_compare_with_the_reference_that_has_the_same_critic(sweep):
    _, summary = summarise(sweep, settings([0.0, 1.0], [1, 2]), FACTS, None)
    assert row(summary, "dipole", 0.0, 2)["equal_n_gain"] == pytest.approx(0.9 - 0.6)
    assert row(summary, "dipole", 0.0, 1)["equal_n_gain"] == row(summary, "dipole", 0.0, 1)["gain"]
    assert row(summary, "reference", None, 2)["gain"] == pytest.approx(0.6 - 0.55)
    assert row(summary, "reference", None, 2)["equal_n_gain"] is None
    assert row(summary, "oracle", 0.0, 2)["equal_n_gain"] == pytest.approx(0.9 - 0.6)


def test_two_logs_are_too_few_for_any_interval(sweep):
    _, summary = summarise(sweep, settings([0.0, 1.0], [1, 2]), FACTS, None)
    names = ("ci95", "gain_ci95", "equal_n_gain_ci95")
    assert all(entry[name] is None for entry in summary["rows"] for name in names)
    first, optimistic, second, human = headline(summary)
    assert first.startswith(
        "omega 0, N 2 (chosen on test): 90.0, +30.0 [too few logs to tell] against the reference at"
    )
    assert first.endswith(": too few logs to tell")
    assert optimistic.startswith("chosen on these very scenes")
    assert "among 2 gains +5.0 [" in second
    assert human.startswith("human 75.0: chosen minus human +15.0 [")


def test_more_logs_have_intervals_and_a_verdict():
    scores = {("human", None): [[0.9]] * 8, ("reference", None): [[0.5]] * 8}
    scores["dipole", 0.0] = [[0.7 + 0.01 * scene] for scene in range(8)]
    _, summary = summarise(plans(scores, per_log=1), settings([0.0], [1]), FACTS, None)
    low, high = row(summary, "dipole", 0.0)["gain_ci95"]
    assert 0.2 < low < 0.235 < high < 0.27
    assert headline(summary)[0].endswith("better beyond chance")


def test_a_sub_score_that_no_scene_has_is_null_not_nan(sweep):
    at = sweep.schema.get_field_index("comfort")
    _, summary = summarise(
        sweep.set_column(at, "comfort", pa.array([np.nan] * len(sweep))), settings([0.0], [1]), FACTS, None
    )
    assert all(entry["comfort"] is None for entry in summary["rows"])


class PairingScorer:
    """Plans of a drive score a tenth less than alone, and remember who drove."""

    pairs_frames = True

    def __init__(self):
        self.drives: dict[str, list[str]] = {}

    def score_rows(self, tokens, planners, poses):
        for token, planner in zip(tokens, planners):
            self.drives.setdefault(planner, []).append(token)
        score = np.array([plan[0, 0] for plan in poses]) - 0.1
        return SimpleNamespace(score=score, sub_scores={"comfort": np.full(len(score), 0.5)})


def test_kept_plans_are_scored_as_drives_of_their_setting(sweep):
    frame = sweep.to_pandas()
    frame["poses"] = [[[score, 0.0, 0.0]] for score in frame.score]
    scorer = PairingScorer()
    rows, summary = summarise(pa.Table.from_pandas(frame), settings([0.0, 1.0], [1, 2]), FACTS, None, scorer)
    assert len(scorer.drives) == (1 + 2 + 1) + 2 * (2 + 1), (
        "each group of a setting is a planner; the oracle's is asked for last"
    )
    assert all(tokens[:4] == [f"scene{scene}" for scene in range(4)] for tokens in scorer.drives.values())
    assert row(summary, "dipole", 0.0, 2)["score"] == pytest.approx(0.8)
    assert row(summary, "oracle", 0.0, 2)["score"] == pytest.approx(0.8)
    assert (rows.to_pandas().comfort == 0.5).all()


def test_omega_and_n_are_those_given_or_the_best_here(sweep):
    _, here = summarise(sweep, settings([0.0, 1.0], [1, 2]), FACTS, None)
    assert {name: here["chosen"][name] for name in ("omega", "candidates", "on", "on_these_scenes")} == {
        "omega": 0.0,
        "candidates": 2,
        "on": "test",
        "on_these_scenes": True,
    }
    equal = plans(
        {("human", None): [[0.9]], ("reference", None): [[0.5]], **{("dipole", w): [[0.6]] for w in (0.0, 1.0)}}
    )
    assert summarise(equal, settings([0.0, 1.0], [1]), FACTS, None)[1]["chosen"]["omega"] == 0.0, (
        "of equal means the smaller"
    )
    given = {"omega": 1.0, "candidates": 1, "on": "mini", "on_these_scenes": False}
    assert summarise(sweep, settings([0.0, 1.0], [1, 2]), FACTS, given)[1]["chosen"].items() >= given.items()


def test_one_row_per_token_policy_omega_and_n(sweep):
    rows, summary = summarise(sweep, settings([0.0, 1.0], [1, 2]), FACTS, None)
    frame = rows.to_pandas()
    assert (summary["scenes"], summary["logs"]) == (4, 2)
    assert len(frame) == 4 * (1 + 2 + 4 + 1)
    assert not frame.duplicated(["token", "policy", "omega", "candidates"]).any()
