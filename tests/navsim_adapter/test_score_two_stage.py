"""Rows and summaries of two stages from made-up results: entries apart sum up to what they do together."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.scoring.official_table import write_official
from navsim_adapter.scoring.result import Facts, Result, check_layout, report
from navsim_adapter.scoring.scorer import BEFORE_FIX
from navsim_adapter.scoring.table import ScoreTable, write_table
from navsim_adapter.scoring.two_stage import COLUMNS, STAGES, Entry, Pair, SceneResult, combine
from navsim_adapter.scoring.two_stage_table import (
    FIGURES,
    SUMMED,
    entry_figures,
    find_mapping,
    summarise,
    write_summaries,
)
from navsim_adapter.scoring.units import EntryUnit, Plan

ENTRIES = [
    Entry(Pair("a", "b"), (Pair("a1", "b1"), Pair("a2", "b2"))),
    Entry(Pair("c", "d"), (Pair("c1", "d1"),)),
]


def _results() -> dict[str, SceneResult]:
    random, results = np.random.default_rng(0), {}
    for entry in ENTRIES:
        for place, token in enumerate(entry.tokens):
            sub_scores = random.choice([0.0, 0.5, 1.0], 8, p=[0.1, 0.1, 0.8])
            states = np.zeros((41, 11))
            time_us = 1_000_000 - 500_000 * (place % 2)
            results[token] = SceneResult(time_us, sub_scores, random.normal(0, 0.3, 2), np.zeros(2), states)
    return results


def _table(results: dict[str, SceneResult], name: str = "planner") -> ScoreTable:
    figures = {}
    for entry in ENTRIES:
        figures |= entry_figures(entry, {token: results[token] for token in entry.tokens if token in results})
    tokens = [token for entry in ENTRIES for token in entry.tokens]
    kinds = ["original" if len(token) == 1 else "synthetic" for token in tokens]
    labels = {"token": tokens, "name": [name] * len(tokens), "frame_type": kinds}
    blank = np.full(len(FIGURES), np.nan)
    return ScoreTable(labels, FIGURES, np.array([figures.get(token, blank) for token in tokens]))


def test_entries_apart_sum_up_to_what_they_do_together() -> None:
    results = _results()
    together, table = combine(ENTRIES, results), _table(results)
    assert together.tokens == tuple(table.tokens)
    np.testing.assert_array_equal(
        table.figures, np.column_stack([together.weight, together.table, together.unfiltered])
    )
    [summary] = summarise(ENTRIES, table)
    np.testing.assert_allclose(summary.figures[:, :-1], [together.summary[stage] for stage in STAGES], rtol=1e-14)


def test_before_the_fix_a_recorded_scene_scores_what_it_had_before_the_filter() -> None:
    results = _results()
    token = ENTRIES[0].first.now
    hidden = results[token].sub_scores.copy()
    hidden[:7] = 1.0, 1.0, 1.0, 1.0, 0.5, 0.0, 1.0
    results[token] = replace(results[token], sub_scores=np.ones(8), unfiltered=hidden)
    before, after = (combine(ENTRIES, results, basis=basis) for basis in (BEFORE_FIX, "epdms-v2.2"))
    row = before.tokens.index(token)
    comfort, rest = after.table[row, 8], 2.5 + 0.0 + 2.0 + 2.0 * hidden[7]
    assert before.table[row, -1] == after.unfiltered[row, 0] == pytest.approx((rest + 2.0 * comfort) / 16)
    assert after.table[row, -1] == pytest.approx((14.0 + 2.0 * comfort) / 16)
    np.testing.assert_array_equal(before.table[:, :-1], after.table[:, :-1])
    assert before.summary["combined"][-1] < after.summary["combined"][-1]


def test_a_missing_result_leaves_the_entry_and_the_summary_without_score(tmp_path: Path) -> None:
    results = _results()
    del results["a2"]
    table = _table(results)
    scored = [token for token, is_scored in zip(table.tokens, table.is_scored) if is_scored]
    assert scored == ENTRIES[1].tokens
    kept = table.figures[list(table.tokens).index("a1")]
    np.testing.assert_array_equal(kept[1:9], results["a1"].sub_scores)
    assert np.isnan(kept[[0, 9, 10]]).all()
    summaries = summarise(ENTRIES, table)
    assert np.isnan(summaries[0].figures).all()
    write_summaries(tmp_path / "s.csv", summaries)
    lines = list(csv.reader((tmp_path / "s.csv").open()))
    assert lines == [["name", "stage", *SUMMED], *(["planner", stage] + [""] * 11 for stage in STAGES)]
    write_official(tmp_path / "o.csv", table, "epdms", summaries)
    official = list(csv.DictReader((tmp_path / "o.csv").open()))
    assert [row["valid"] for row in official] == ["False"] * 6 + ["True"] * 4 + ["False"] * 3


def test_a_planner_that_drove_some_entries_only_is_reported() -> None:
    whole, some = _table(_results(), "whole"), _table(_results(), "some")
    own = [row for row, token in enumerate(some.tokens) if token in ENTRIES[1].tokens]
    names = [*whole.names, *(some.names[row] for row in own)]
    labels = {"token": [*whole.tokens, *ENTRIES[1].tokens], "name": names}
    table = ScoreTable(labels, FIGURES, np.concatenate([whole.figures, some.figures[own]]))
    assert [(each.name, each.entries) for each in summarise(ENTRIES, table)] == [("whole", 2), ("some", 1)]
    facts = Facts("epdms-v2.2", "log-replay", {}, "", len(names), ENTRIES)
    [line] = report(Result(facts, table))
    assert line.startswith("summary: some has trajectories for 1 of 2 entries")


def test_the_official_table_has_a_block_of_columns_for_each_stage(tmp_path: Path) -> None:
    table = _table(_results())
    [summary] = summarise(ENTRIES, table)
    write_official(tmp_path / "o.csv", table, "epdms", [summary])
    header, *lines = csv.reader((tmp_path / "o.csv").open())
    assert header[:3] + header[-1:] == ["", "token", "valid", "score"]
    assert header[3:21] == [f"{name}_{stage}" for stage in STAGES[:2] for name in COLUMNS[:-1]]
    assert [line[1] for line in lines[-3:]] == [f"extended_pdm_score_{stage}" for stage in STAGES]
    assert lines[0][12:21] == lines[2][3:12] == [""] * 9
    assert "" not in lines[0][3:12] + lines[2][12:] + lines[-1]
    np.testing.assert_array_equal([float(cell) for cell in lines[-1][3:12]], summary.figures[0, :9])
    np.testing.assert_array_equal(
        [float(cell) for cell in lines[-1][12:]], [*summary.figures[1, :9], summary.figures[2, 9]]
    )


def test_a_planner_whose_official_table_would_be_the_summary_is_refused(tmp_path: Path) -> None:
    def check(is_two_stage: bool, *names: str) -> None:
        entries = ENTRIES if is_two_stage else None
        check_layout(tmp_path / "s.csv", "official", names, Facts("epdms-v2.2", "idm", {}, "", 1, entries))

    with pytest.raises(InputError, match=r"s_summary\.csv: would be the run's summary and .* rename the planner"):
        check(True, "planner", "summary")
    check(True, "summary")
    check(False, "planner", "summary")


def test_a_table_holds_every_figure_to_its_last_bit(tmp_path: Path) -> None:
    table = _table(_results(), name='with, "commas"')
    write_table(tmp_path / "t.csv", table)
    with open(tmp_path / "t.csv", newline="") as file:
        header, *lines = csv.reader(file)
    assert header == [*table.labels, *table.columns]
    labels = len(table.labels)
    assert [tuple(line[:labels]) for line in lines] == list(zip(*table.labels.values()))
    read = np.array([[float(text or "nan") for text in line[labels:]] for line in lines])
    np.testing.assert_array_equal(read, table.figures)


def test_the_mapping_lies_in_the_folder_or_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has 0 mappings of the two stages"):
        find_mapping(tmp_path)
    split = tmp_path / "split.yaml"
    split.write_text("reactive_all_mapping:\n- [a, b, [[a1, b1], [a2, b2]]]\n- [c, d, [[c1, d1]]]\n")
    assert find_mapping(tmp_path) == find_mapping(split) == (split, ENTRIES)
    mapping = tmp_path / "mapping.json"
    mapping.write_text(json.dumps([["a", "b", [["a1", "b1"]]], ["c", "b", [["c1", "d1"]]]]))
    with pytest.raises(InputError, match="token b occurs twice"):
        find_mapping(tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
        find_mapping(tmp_path / "none.yaml")


def test_a_scene_of_which_there_is_no_plan_leaves_the_entry_without_score() -> None:
    entry = Entry(Pair("a", "b"), (Pair("c", "d"),))
    plans = {"c": [Plan(0, "planner", np.zeros((8, 3)), 0.5)]}
    part = EntryUnit("entry", entry, {}, {"c": "no cache"}, plans, "idm").score()
    assert part.reasons == {0: "no cache"}
    assert np.isnan(part.figures).all()
