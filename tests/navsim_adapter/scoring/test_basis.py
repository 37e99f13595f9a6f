"""The two bases of EPDMS: official code before and after the fix of its human filter (metric 7.1)."""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.scoring.means import mean_lines
from navsim_adapter.scoring.official_table import write_official
from navsim_adapter.scoring.result import Facts, Result
from navsim_adapter.scoring.scorer import BEFORE_FIX, Scorer, Scores, columns_of
from navsim_adapter.scoring.table import ScoreTable
from tests.navsim_adapter.scoring.official import read_table
from tests.navsim_adapter.scoring.scenes import scenes_of, trajectories_of
from tests.shared import SHARED, needs_shared

DEV = (SHARED or Path()) / "navsim_dev"


@cache
def scored(metric: str) -> tuple[list[dict[str, str]], Scores]:
    table = "scores_v2" + ("_before_fix" if metric == BEFORE_FIX else "")
    rows, plans = read_table(DEV / f"{table}.csv"), trajectories_of(DEV)
    poses = [plans[row["token"], row["name"]][0] for row in rows]
    scorer = Scorer(scenes_of(DEV), metric)
    return rows, scorer.score_rows([row["token"] for row in rows], [row["name"] for row in rows], poses)


@needs_shared
def test_after_the_fix_the_unfiltered_score_is_kept_beside() -> None:
    (_, before), (_, after) = scored(BEFORE_FIX), scored("epdms")
    assert (before.metric, after.metric) == (BEFORE_FIX, "epdms-v2.2")
    np.testing.assert_array_equal(after.score_unfiltered, before.score)
    assert (after.score > before.score + 1e-6).sum() == 507  # as the set's page says
    for name, own in after.overwritten.items():
        np.testing.assert_array_equal(own, after[name] > after[f"unfiltered_{name}"])
    kept = ~np.any(list(after.overwritten.values()), axis=0)
    np.testing.assert_array_equal(after.score[kept], after.score_unfiltered[kept])


def test_an_unknown_basis_is_refused() -> None:
    with pytest.raises(InputError, match="metric: must be one of"):
        Scorer({}, "epdms-v2.3")


def test_a_scorer_keeps_its_basis_in_a_worker() -> None:
    import copy

    scorer = copy.copy(Scorer({}, BEFORE_FIX))  # as workers get it: __getstate__ and __setstate__
    assert (scorer.basis, scorer.metric, scorer.pairs_frames) == (BEFORE_FIX, BEFORE_FIX, True)
    assert (Scorer({}, "epdms").metric, Scorer({}, "epdms-v2.2").metric) == ("epdms", "epdms")


def _result() -> Result:
    """Two planners in one scene whose human fails TTC; the first fails it too."""
    columns = columns_of("epdms")
    figures = np.ones((2, len(columns)))
    figures[0, columns.index("unfiltered_time_to_collision_within_bound")] = 0.0
    figures[0, columns.index("score_unfiltered")] = 9 / 14
    table = ScoreTable({"token": ["t", "t"], "name": ["a", "b"]}, columns, figures)
    return Result(Facts("epdms-v2.2", "log-replay", {}, "", 2), table)


def test_a_result_counts_what_the_filter_hid() -> None:
    result = _result()
    assert {name: own["time_to_collision_within_bound"] for name, own in result.overwritten().items()} == {
        "a": 1,
        "b": 0,
    }
    assert result.unfiltered_means() == {"a": pytest.approx(9 / 14), "b": 1.0}
    head, first, *_, closing = mean_lines(result)
    assert head.split()[2:5] == ["score", "filter", "off"]
    assert first.split()[3:5] == ["100.0", "64.3"]
    assert closing.endswith("of 2 rows: TTC 1")
    json.dumps(result.overwritten())


def test_the_devkit_s_layout_has_the_devkit_s_columns(tmp_path: Path) -> None:
    first, _ = write_official(tmp_path / "o.csv", _result().table, "epdms")
    header, *_ = csv.reader(first.open())
    assert header[-2:] == ["two_frame_extended_comfort", "score"]
    assert len(header) == 13
