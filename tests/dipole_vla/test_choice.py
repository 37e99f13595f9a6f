"""Every N from the same M plans, the setting that is chosen, the reference it is compared with, and sweeps refused."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_summary import FACTS, plans, row, settings

from dipole_vla.evaluation.choice import choice_of, choose, fairest
from dipole_vla.evaluation.settings import MEAN, Setting, mean_plan
from dipole_vla.evaluation.subsets import best_of, best_of_weights
from dipole_vla.evaluation.summary import headline, summarise
from dipole_vla.evaluation.sweep import Sweep
from dipole_vla.solvers import SolverSpec
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import write_json


def brute_force(values: np.ndarray, by: np.ndarray, count: int) -> float:
    """Mean over all subsets of what is kept: the greatest `by`, of equal ones the first."""
    kept = [max(subset, key=lambda place: (by[place], -place)) for subset in combinations(range(len(by)), count)]
    return float(np.mean([values[place] for place in kept]))


@pytest.mark.parametrize("has_ties", [False, True])
def test_the_closed_form_is_the_mean_over_all_subsets(has_ties):
    rng = np.random.default_rng(0)
    for samples in (1, 2, 5, 9):
        values = rng.random((4, samples, 3))
        by = rng.integers(0, 3, (4, samples)).astype(float) if has_ties else rng.random((4, samples))
        for count in range(1, samples + 1):
            found = best_of(values, by, count)
            for scene in range(4):
                wanted = [brute_force(values[scene, :, column], by[scene], count) for column in range(3)]
                np.testing.assert_allclose(found[scene], wanted, rtol=1e-12)


def test_weights_are_a_mean_and_the_whole_of_the_best_where_n_is_all():
    np.testing.assert_allclose(best_of_weights(16, 1), np.full(16, 1 / 16))
    assert all(best_of_weights(16, count).sum() == pytest.approx(1) for count in range(1, 17))
    assert best_of_weights(16, 16).tolist() == [1.0]


def test_more_plans_than_n_enter_every_n_and_rows_keep_the_first():
    scores = {("human", None): [[1.0]], ("reference", None): [[0.1, 0.2, 0.4]], ("dipole", 0.0): [[0.1, 0.7, 0.4]]}
    rows, summary = summarise(plans(scores), settings([0.0], [1, 2], samples=3), FACTS, None)
    assert row(summary, "dipole", 0.0, 2)["score"] == pytest.approx((0.7 + 0.7 + 0.4) / 3)
    assert row(summary, "reference", None, 1)["score"] == pytest.approx(0.7 / 3)
    kept = rows.to_pandas().query("policy == 'reference' and candidates == 2")
    assert kept.score.tolist() == [0.2]
    assert (summary["best_of"], summary["samples"]) == ("subsets", 3)


def test_omega_is_chosen_by_single_plans_within_each_start_noise():
    at = {
        (0.0, 1, 1.0): 0.5,
        (2.0, 1, 1.0): 0.6,
        (0.0, 8, 1.0): 0.9,  # lucky
        (2.0, 8, 1.0): 0.8,
        (0.0, 1, 0.0): 0.7,
        (2.0, 1, 0.0): 0.65,
    }
    scores = {Setting("dipole", omega, count, start): score for (omega, count, start), score in at.items()}
    assert choose(scores) == Setting("dipole", 2.0, 8, 1.0)
    assert choose({**scores, Setting("dipole", 0.0, 1, 0.0): 0.85}) == Setting("dipole", 0.0, 1, 0.0)


def test_the_fairest_reference_has_that_n_or_one_plan_only():
    scores = {
        Setting("reference", None, 1, 0.0): 0.58,
        Setting("reference", None, 1, 1.0): 0.51,
        Setting("reference", None, 8, 1.0): 0.7,
        Setting(MEAN, None, 1, 1.0): 0.57,
    }
    assert fairest(scores, 1) == Setting("reference", None, 1, 0.0)
    assert fairest(scores, 8) == Setting("reference", None, 8, 1.0)
    assert fairest({**scores, Setting(MEAN, None, 1, 1.0): 0.8}, 8).policy == MEAN


def swept() -> pa.Table:
    """Twelve scenes of a log each: start noise 0 makes the reference 0.2 better, omega 1 adds 0.1 at either."""
    rows = []
    for scene in range(12):
        for start, count in ((0.0, 1), (1.0, 2)):
            for policy, omega, score in (("reference", None, 0.4), ("dipole", 0.0, 0.4), ("dipole", 1.0, 0.5)):
                for index in range(count):
                    score_here = score + 0.2 * (start == 0) + 0.01 * scene + 0.02 * index
                    rows.append([scene, policy, omega, start, index, 0.0, score_here])
        rows += [[scene, "human", None, None, 0, np.nan, 0.9], [scene, MEAN, None, 1.0, 0, np.nan, 0.45]]
    names = ["scene", "policy", "omega", "start_scale", "index", "q", "score"]
    frame = pd.DataFrame(rows, columns=names).astype({"omega": float, "start_scale": float})
    frame = frame.assign(token=[f"t{s:02}" for s in frame.scene], log_name=[f"l{s}" for s in frame.scene])
    frame = frame.assign(guidance="", poses=[[[0.0, 0.0, 0.0]]] * len(frame)).drop(columns="scene")
    return pa.Table.from_pandas(frame, preserve_index=False)


def test_the_headline_compares_with_the_fairest_reference_not_with_the_noisiest():
    sweep = Sweep.of([0, 1], [1, 2], [0, 1], None, None, SolverSpec())
    _, summary = summarise(swept(), sweep.settings, {**FACTS, "start_scale": 1.0}, None)
    own = next(r for r in summary["rows"] if (r["policy"], r["omega"], r["start_scale"]) == ("dipole", 1.0, 0.0))
    assert (own["candidates"], len(summary["rows"])) == (1, 1 + 3 + 1 + 2 * 3 + 1)
    assert own["fairest_gain"] == pytest.approx(0.1)
    assert own["equal_n_gain"] == pytest.approx(0.1)
    assert own["gain"] == pytest.approx(0.29)
    assert own["human_gain"] == pytest.approx(own["score"] - 0.9)
    first, *_, sure = headline(summary)
    assert "omega 1, start noise 0, N 1 (chosen on test)" in first
    assert "+10.0 [+10.0, +10.0] against the reference at start noise 0, N 1, the fairest on test" in first
    assert "of 6 settings were within it" in sure


def test_headings_are_averaged_on_the_circle():
    plan = np.zeros((1, 2, 1, 3))
    plan[0, :, 0] = [[1.0, 2.0, np.pi - 0.1], [3.0, 4.0, -np.pi + 0.3]]
    np.testing.assert_allclose(mean_plan(plan)[0, 0, 0], [2.0, 3.0, -np.pi + 0.1])


def test_one_plan_is_drawn_where_all_would_be_the_same():
    counts = {
        (draw.omega, draw.start_scale): draw.count
        for draw in Sweep.of([1], [1, 8], [0, 1], None, 16, SolverSpec()).draws
    }
    assert counts == {(None, 0.0): 1, (1.0, 0.0): 1, (None, 1.0): 16, (1.0, 1.0): 16}
    fresh = Sweep.of([1], [8], [0], None, None, SolverSpec("ddim", eta=1.0))
    assert {draw.count for draw in fresh.draws} == {8}, "fresh noise at every step makes plans differ"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("start_scale", [-0.1]),
        ("start_scale", [float("nan")]),
        ("start_scale", []),
        ("samples", 7),
        ("omega", []),
        ("candidates", [0]),
        ("guidance", []),
        ("guidance", [{"pwoer": 1}]),
        ("guidance", [{"omega": 1}]),
        ("guidance", [{"power": -1}]),
        ("guidance", ["power"]),
        ("guidance", [{}, {"clamp": [1, -1]}]),
    ],
)
def test_a_sweep_that_cannot_be_meant_is_refused_in_one_line(field, value):
    given = {"omega": [1], "candidates": [1, 8], "start_scale": None, "guidance": None, "samples": None, field: value}
    with pytest.raises(InputError, match=field) as refused:
        Sweep.of(**given, solver=SolverSpec())
    assert "\n" not in str(refused.value)


def test_an_evaluation_of_before_start_noise_was_swept_chooses_nothing(tmp_path):
    write_json(tmp_path / "manifest.json", {"made_by": {"command": "evaluate", "scorer": {"metric": "pdms"}}})
    chosen = {"omega": 1.0, "candidates": 1, "on": "mini", "on_these_scenes": True}
    old = {"chosen": chosen, "provenance": {"policy_fingerprint": "p"}, "split": "mini"}
    write_json(tmp_path / "summary.json", old)
    pq.write_table(pa.table({"token": ["other"]}), tmp_path / "rows.parquet")
    with pytest.raises(InputError, match="evaluate there again"):
        choice_of(tmp_path, ["t"], "p", {"metric": "pdms"}, settings([1.0], [1]))
    swept = {**chosen, "references": {"1": Setting("reference").facts()}, "start_scale": 1.0, "guidance": ""}
    write_json(tmp_path / "summary.json", {**old, "chosen": swept})
    found = choice_of(tmp_path, ["t"], "p", {"metric": "pdms"}, settings([1.0], [1]))
    assert (found["on"], found["on_these_scenes"]) == ("mini", False)
    for wanted in (settings([2.0], [1]), settings([1.0], [1], starts=(0.5,))):
        with pytest.raises(InputError, match="start_scale"):
            choice_of(tmp_path, ["t"], "p", {"metric": "pdms"}, wanted)
