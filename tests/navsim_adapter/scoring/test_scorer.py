"""What a caller may rely on: independence of the candidates, checks at the border, the shape of the answer."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.sampling import SIMULATED, Sampling, resampled
from navsim_adapter.scoring.scorer import Scorer
from tests.navsim_adapter.scoring.scenes import roots, scenes_of, trajectories_of

pytestmark = pytest.mark.skipif(not roots(), reason="no data with official figures beside or inside this clone")

METRICS = ("pdms", "epdms")


@pytest.fixture(scope="module")
def root() -> Path:
    return roots()[0]


@pytest.fixture(scope="module", params=METRICS)
def scorer(request: pytest.FixtureRequest, root: Path) -> Scorer:
    return Scorer(scenes_of(root), request.param)


def plans(root: Path, token: str) -> np.ndarray:
    return np.array([poses for (own, _), (poses, _) in trajectories_of(root).items() if own == token])


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(one, other, equal_nan=True)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_candidate_scores_the_same_alone_and_in_any_company(data: st.DataObject, root: Path, scorer: Scorer) -> None:
    token = data.draw(st.sampled_from(sorted(scenes_of(root))))
    poses = plans(root, token)
    chosen = data.draw(st.lists(st.integers(0, len(poses) - 1), min_size=1, max_size=70))
    together = scorer.score([token], poses[None]).table[0]
    assert same(scorer.score([token], poses[chosen][None]).table[0], together[chosen])


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_scenes_in_a_call_change_nothing(root: Path, scorer: Scorer, threads: int) -> None:
    tokens = sorted(scenes_of(root))[:6]
    poses = np.array([plans(root, token)[:20] for token in tokens])
    own = Scorer(scenes_of(root), scorer.metric, threads=threads).score(tokens, poses)
    for scene, token in enumerate(tokens):
        assert same(own.table[scene], scorer.score([token], poses[scene : scene + 1]).table[0])


def test_a_plan_of_any_sampling_scores_as_at_the_times_that_are_simulated(scorer: Scorer) -> None:
    """Official plans of other samplings, those that last long enough."""
    sampled = [root for root in roots() if (root / "trajectories_sampled.npz").is_file()]
    if not sampled:
        pytest.skip("no official plans of other samplings beside or inside this clone")
    cache = scenes_of(sampled[0])
    plans = {
        key: (poses, interval)
        for key, (poses, interval) in trajectories_of(sampled[0], "trajectories_sampled").items()
        if key[0] in cache and Sampling(len(poses), interval).lasts(SIMULATED.reach)
    }
    tokens, names = zip(*plans)
    own, (poses, intervals) = Scorer(cache, scorer.metric), zip(*plans.values())
    as_made = own.score_rows(tokens, names, poses, intervals)
    brought = [resampled(plan, interval, SIMULATED) for plan, interval in plans.values()]
    by_hand = own.score_rows(tokens, names, brought, SIMULATED.interval)
    assert len(set(map(len, poses))) > 4
    np.testing.assert_allclose(by_hand.figures, as_made.figures, atol=1e-6)


def test_rows_in_any_order_give_the_same_figures(root: Path, scorer: Scorer) -> None:
    keys = list(trajectories_of(root))[:300]
    rows = [trajectories_of(root)[key][0] for key in keys]
    straight = scorer.score_rows([t for t, _ in keys], [n for _, n in keys], rows).table
    order = np.random.default_rng(0).permutation(len(keys))
    shuffled = scorer.score_rows([keys[i][0] for i in order], [keys[i][1] for i in order], [rows[i] for i in order])
    assert same(shuffled.table, straight[order])


def test_a_pickled_scorer_gives_the_same_figures(root: Path, scorer: Scorer) -> None:
    token = sorted(scenes_of(root))[0]
    copy = pickle.loads(pickle.dumps(scorer))  # noqa: S301
    assert same(
        copy.score([token], plans(root, token)[None]).table, scorer.score([token], plans(root, token)[None]).table
    )


def test_columns_have_their_official_names_and_order(root: Path, scorer: Scorer) -> None:
    token = sorted(scenes_of(root))[0]
    scores = scorer.score([token], plans(root, token)[None, :3])
    expected = {
        "pdms": "no_at_fault_collisions drivable_area_compliance ego_progress time_to_collision_within_bound comfort "
        "driving_direction_compliance",
        "epdms": "no_at_fault_collisions drivable_area_compliance driving_direction_compliance "
        "traffic_light_compliance ego_progress time_to_collision_within_bound lane_keeping history_comfort "
        "two_frame_extended_comfort",
    }[scorer.metric]
    assert list(scores.sub_scores) == expected.split()
    assert all(column.shape == (1, 3) for column in scores.sub_scores.values())
    assert scores.metric == {"pdms": "pdms-v1.1", "epdms": "epdms-v2.2"}[scorer.metric]
    assert same(scores["score"], scores.score)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_poses_that_are_no_poses_are_refused_with_their_place(root: Path, scorer: Scorer, value: float) -> None:
    tokens = sorted(scenes_of(root))[:2]
    poses = np.zeros((2, 3, 8, 3))
    poses[1, 2, 4, 0] = value
    with pytest.raises(InputError, match=f"scene {tokens[1]}: trajectory 2 .* step 4"):
        scorer.score(tokens, poses)


@pytest.mark.parametrize("shape", [(8, 3), (1, 8, 3), (2, 1, 8, 3), (1, 1, 8, 2), (1, 0, 8, 3), (1, 1, 0, 3)])
def test_wrong_shapes_are_refused(root: Path, scorer: Scorer, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="shape"):
        scorer.score(sorted(scenes_of(root))[:1], np.zeros(shape))


def test_an_unknown_scene_is_refused(scorer: Scorer) -> None:
    with pytest.raises(InputError, match="scene nowhere: not in the scoring cache"):
        scorer.score(["nowhere"], np.zeros((1, 1, 8, 3)))


@pytest.mark.parametrize("interval", [0.0, -0.5, 1e-6, 500.0, np.nan, np.inf])
def test_an_impossible_interval_is_refused(root: Path, scorer: Scorer, interval: float) -> None:
    with pytest.raises(InputError, match="interval"):
        scorer.score(sorted(scenes_of(root))[:1], np.zeros((1, 1, 8, 3)), interval)


def test_unknown_metrics_and_thread_counts_are_refused() -> None:
    with pytest.raises(InputError, match="metric"):
        Scorer({}, "pdm")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="threads"):
        Scorer({}, "pdms", threads=0)


def test_candidates_are_planners_of_their_own(root: Path) -> None:
    scorer = Scorer(scenes_of(root), "epdms")
    tokens = sorted(scenes_of(root))
    poses = np.array([plans(root, token)[:2] for token in tokens])
    scores, rows = scorer.score(tokens, poses), [(token, plan) for token in tokens for plan in range(2)]
    names = [f"{token} {plan}" for token, plan in rows]
    assert np.isnan(scores["two_frame_extended_comfort"]).all()
    own = scorer.score_rows([token for token, _ in rows], names, list(poses.reshape(-1, *poses.shape[2:])))
    assert same(own.table, scores.table.reshape(own.table.shape))
    one = scorer.score_rows(tokens, ["one"] * len(tokens), list(poses[:, 0]))
    assert not np.isnan(one["two_frame_extended_comfort"]).all()
