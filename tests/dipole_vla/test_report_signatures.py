"""Each failure signature fires on data that has the failure, and stays quiet on data that does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_evaluation import write_evaluation

from dipole_vla.evaluation.settings import Setting
from dipole_vla.report import signatures
from dipole_vla.report.inputs import Evaluation, load_evaluation
from dipole_vla.report.page import render_page
from dipole_vla.report.signatures import check_all, end_spread, read_weights


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    write_evaluation(root)
    return root


@pytest.fixture
def evaluation(root: Path) -> Evaluation:
    return load_evaluation(root / "evaluation")


def _with_advantage(evaluation: Evaluation, advantage: np.ndarray, beta: float = 1.0) -> Evaluation:
    assert evaluation.candidates is not None
    evaluation.candidates["advantage"] = np.resize(advantage, len(evaluation.candidates))
    evaluation.summary["provenance"]["beta"] = beta
    return evaluation


def _set(evaluation: Evaluation, omega: float, column: str, value: float) -> None:
    rows = evaluation.rows
    rows.loc[(rows["policy"] == "dipole") & (rows["omega"] == omega), column] = value
    evaluation._tables.clear()


def test_every_sign_is_listed_and_what_cannot_be_read_is_not_measured(evaluation: Evaluation) -> None:
    found = check_all(evaluation)
    assert len({signature.sign for signature in found}) == len(found) == 12
    unmeasured = [signature.sign for signature in found if signature.verdict == "not measured"]
    critic = signatures.flattered_critic(evaluation)  # the candidates of this evaluation all score the same
    assert unmeasured == [signatures.adapter_distance(evaluation).sign, critic.sign]
    assert all(signature.number and signature.remedy for signature in found)


def test_weights_are_the_sigmoid_of_beta_times_advantage(evaluation: Evaluation) -> None:
    weights = read_weights(_with_advantage(evaluation, np.array([0.0, np.log(3), -np.log(3)]), beta=1.0))
    assert weights is not None
    np.testing.assert_allclose(weights.positive[:3], [0.5, 0.75, 0.25])


def test_huge_beta_does_not_overflow(evaluation: Evaluation) -> None:
    weights = read_weights(_with_advantage(evaluation, np.array([1.0, -1.0]), beta=1e6))
    assert weights is not None
    np.testing.assert_allclose(weights.positive[:2], [1.0, 0.0], atol=1e-12)


def test_weights_are_those_of_the_rule_that_trained_the_policy(evaluation: Evaluation) -> None:
    """exp(βG) clipped at 100, and no negative policy; what holds for shares of one only is not measured."""
    evaluation.summary["provenance"]["rule"] = "exponential"
    weights = read_weights(_with_advantage(evaluation, np.array([0.0, 1.0, -1.0, 10.0]), beta=2.0))
    assert weights is not None
    np.testing.assert_allclose(weights.positive[:4], [1, np.exp(2), np.exp(-2), 100])
    fraction = weights.positive.sum() ** 2 / (len(weights.positive) * (weights.positive**2).sum())
    assert weights.effective_fraction == pytest.approx({"positive": fraction})
    verdicts = [check(evaluation).verdict for check in (signatures.off_centre_weights, signatures.saturated_weights)]
    assert verdicts == ["not measured"] * 2
    assert signatures.inert_weights(evaluation).verdict == "ok"
    page = render_page(evaluation, 1)
    assert "rule exponential" in page
    assert "negative policy." not in page
    flat = read_weights(_with_advantage(evaluation, np.array([0.001, -0.001])))
    assert flat is not None
    assert signatures.inert_weights(evaluation).verdict == "look"


def test_a_mirrored_negative_doubles_the_greed(evaluation: Evaluation) -> None:
    """std(G) = 2 and ω = 1: 4 for a trained negative, 6 for the mirrored one of the implicit rule."""
    _with_advantage(evaluation, np.array([2.0, -2.0]))
    assert signatures.greed_beyond_support(evaluation).number.startswith("4.0 at")
    evaluation.summary["provenance"]["rule"] = "implicit"
    found = signatures.greed_beyond_support(evaluation)
    assert found.verdict == "look"
    assert found.number.startswith("6.0 at")
    evaluation.summary["provenance"]["rule"] = "indicator"
    assert signatures.greed_beyond_support(evaluation).verdict == "not measured"


def test_scenes_left_out_of_training_do_not_count(evaluation: Evaluation) -> None:
    """Half of the scenes with all candidates alike would halve the variance of G."""
    assert evaluation.candidates is not None
    table, tokens = evaluation.candidates, evaluation.candidates["token"].unique()
    _with_advantage(evaluation, np.array([1.0, -1.0]))
    table.loc[table["token"].isin(tokens[::2]), "advantage"] = 0.0
    weights = read_weights(evaluation)
    assert weights is not None
    assert weights.left_out == len(tokens[::2])
    assert weights.advantage.std() == pytest.approx(1.0)
    assert f"{weights.left_out} scenes whose candidates all score alike are left out" in render_page(evaluation, 1)


@pytest.mark.parametrize(
    ("check", "bad", "good"),
    [
        (signatures.off_centre_weights, np.array([4.0, 5.0]), np.array([4.0, -4.0])),
        (signatures.inert_weights, np.array([0.01, -0.01]), np.array([1.0, -1.0])),
        (signatures.saturated_weights, np.array([9.0, -9.0]), np.array([1.0, -1.0])),
        (signatures.greed_beyond_support, np.array([3.0, -3.0]), np.array([1.0, -1.0])),  # beta (1 + 1) std = 6, 2
    ],
)
def test_weight_signs(evaluation: Evaluation, check, bad: np.ndarray, good: np.ndarray) -> None:
    assert check(_with_advantage(evaluation, bad)).verdict == "look"
    assert check(_with_advantage(evaluation, good)).verdict == "ok"


def test_weight_signs_are_not_measured_without_candidates(evaluation: Evaluation) -> None:
    evaluation.candidates = None
    evaluation.missing["candidates"] = "gone"
    assert signatures.inert_weights(evaluation).verdict == "not measured"
    assert signatures.inert_weights(evaluation).number == "gone"


def test_equal_groups(evaluation: Evaluation) -> None:
    assert signatures.equal_groups(evaluation).number == "0% of 30 scenes"
    assert evaluation.candidates is not None
    evaluation.candidates["score"] = 1.0
    assert signatures.equal_groups(evaluation).verdict == "look"


def test_a_single_shared_scene_is_a_leak(evaluation: Evaluation) -> None:
    assert signatures.leaked_split(evaluation).verdict == "ok"
    assert evaluation.candidates is not None
    evaluation.candidates.loc[0, "token"] = evaluation.rows["token"].iloc[0]
    found = signatures.leaked_split(evaluation)
    assert found.verdict == "look"
    assert found.number.startswith("1 of 16 scenes")


def test_positive_policy_below_the_reference(evaluation: Evaluation) -> None:
    assert signatures.weak_positive(evaluation).verdict == "ok"
    row = evaluation.summary_row(Setting("dipole", 0.0, evaluation.reference.candidates))
    row["gain"], row["gain_ci95"] = -0.1, [-0.15, -0.05]
    assert signatures.weak_positive(evaluation).verdict == "look"


def test_adapters_that_do_the_same(evaluation: Evaluation) -> None:
    assert signatures.adapters_alike(evaluation).verdict == "ok"
    _set(evaluation, 0.0, "score", 0.5)
    _set(evaluation, -1.0, "score", 0.5)
    assert signatures.adapters_alike(evaluation).verdict == "look"


def test_road_departures_at_high_greed(evaluation: Evaluation) -> None:
    _set(evaluation, 4.0, "drivable_area_compliance", 1.0)
    assert signatures.road_departures(evaluation).verdict == "ok"
    _set(evaluation, 4.0, "drivable_area_compliance", 0.0)
    found = signatures.road_departures(evaluation)
    assert found.verdict == "look"
    assert "100% at ω = 4; reference 0%" in found.number


def test_narrowed_samples(evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    spreads = {None: 2.0, 1.0: 0.5}
    monkeypatch.setattr(signatures, "end_spread", lambda plans, setting: spreads[setting.omega])
    assert signatures.narrowed_samples(evaluation).verdict == "look"
    spreads[1.0] = 1.5
    assert signatures.narrowed_samples(evaluation).verdict == "ok"


def test_end_spread_is_the_distance_from_the_mean() -> None:
    ends = [(10.0, 3.0), (10.0, -3.0), (14.0, 0.0), (6.0, 0.0)]  # squares 9, 9, 16, 16: mean 12.5
    poses = [[[0.0, 0.0, 0.0], [x, y, 0.0]] for x, y in ends]
    plans = pd.DataFrame({"token": "t", "policy": "reference", "omega": np.nan, "poses": poses})
    assert end_spread(plans, Setting("reference")) == pytest.approx(12.5**0.5)
    assert end_spread(plans, Setting("dipole", 1.0)) is None


def test_critic_that_prefers_the_worst(evaluation: Evaluation) -> None:
    assert evaluation.plans is not None
    plans = evaluation.plans
    rng = np.random.default_rng(0)
    plans["score"] = rng.random(len(plans))
    plans["q"] = plans["score"]
    found = signatures.flattered_critic(evaluation)
    assert found.verdict == "ok"
    assert found.number.endswith("100% of what perfect foresight would give")
    plans["q"] = -plans["score"]
    assert signatures.flattered_critic(evaluation).verdict == "look"
