"""benchmarks/demo.py reads finished demos: its figures are the evaluation's own, its choice is of validation alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.demo import HUMAN, Demo, dial, gains
from dipole_vla.evaluation.settings import Setting


def rows_of(folder: Path) -> list[dict]:
    rows = json.loads((folder / "summary.json").read_text())["rows"]
    return [row for row in rows if row["policy"] != "oracle"]


def test_scores_are_those_of_the_evaluation(loop: Path) -> None:
    demo = Demo.read(loop)
    rows = rows_of(loop / "evaluation")
    assert {Setting.of(row) for row in rows} == set(demo.scores)
    for row in rows:
        assert demo.scores[Setting.of(row)].mean() == pytest.approx(row["score"])


def test_the_choice_is_made_on_validation_among_its_own_n(loop: Path) -> None:
    demo = Demo.read(loop)
    of = {Setting.of(row): row["score"] for row in rows_of(loop / "validation")}
    for count in (1, demo.most):
        own, reference = demo.chosen(count)
        assert own.candidates == count
        assert reference.candidates <= count
        assert of[reference] == max(
            score
            for s, score in of.items()
            if s.policy.startswith("reference")
            and (s.candidates == count or s.start_scale == 0 or s.policy != "reference")
        )


def test_the_tables_name_every_world_and_all(loop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demos = [Demo.read(loop), Demo.read(loop)]
    gains(demos, None, "as chosen")
    dial(demos)
    said = capsys.readouterr().out
    assert said.count(f"| {loop.name} |") == 4
    assert "| **all** |" in said
    human = 100 * demos[0].scores[HUMAN].mean()
    assert said.count(f"| {human:.1f} |") == 3
