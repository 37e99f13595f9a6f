"""The benchmark scripts of training: their arithmetic always, the whole of them with -m slow."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def rules():
    spec = importlib.util.spec_from_file_location("weighting_rules", BENCHMARKS / "weighting_rules.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_plans(folder: Path, gain: float) -> None:
    """Six logs of one scene, two plans each; scenes differ much, the gain over the reference is the same in all."""
    rng, rows = np.random.default_rng(0), []
    for scene in range(6):
        base = rng.uniform()
        for omega in (None, 0.0, 1.0):
            for plan in (0, 1):
                score = base + (0.1 if plan else -0.1) + (gain * omega if omega else 0)
                policy = "reference" if omega is None else "dipole"
                rows.append((f"s{scene}", f"log{scene}", policy, omega, score))
        rows.append((f"s{scene}", f"log{scene}", "human", None, 9.0))
    folder.mkdir()
    columns = ["token", "log_name", "policy", "omega", "score"]
    pd.DataFrame(rows, columns=columns).to_parquet(folder / "plans.parquet")


def test_differences_are_paired_by_scene(rules, tmp_path):
    write_plans(tmp_path / "a", 0.05)
    write_plans(tmp_path / "b", 0.03)
    found = {("dichotomous", "both"): rules.scores(tmp_path / "a")}
    found["dichotomous", "bernoulli"] = rules.scores(tmp_path / "b")
    rows = rules.differences(found, [0.0, 1.0])
    assert [row["gain"] for row in rows] == pytest.approx([0, 5, 0, 3])
    for row in rows:  # the scenes' own spread is gone
        assert row["ci95"] == pytest.approx((row["gain"], row["gain"]))
    assert [row["gain"] for row in rules.routing_difference(found, [0.0, 1.0])] == pytest.approx([0, -2])


def test_every_rule_and_both_routings_are_run(rules):
    from dipole_vla.objective import RULES

    assert {rule for rule, _ in rules.RUNS} == set(RULES)
    assert ("dichotomous", "bernoulli") in rules.RUNS


@pytest.mark.slow
def test_the_table_of_rules_on_a_small_world(rules, loop, capsys):
    words = ["--demo", str(loop), "--steps", "2", "--omega", "0", "1", "--plans", "2"]
    rules.main([*words, "--model.rank", "4", "--data.batch_size", "4"])
    assert "exponential" in capsys.readouterr().out
    table = json.loads((loop / "rules" / "table.json").read_text())
    assert len(table["rules"]) == 2 * len(rules.RUNS)
    assert {row["rule"] for row in table["training"]} == {rules.name_of(run) for run in rules.RUNS}


@pytest.mark.slow
def test_the_cost_table_at_tiny_sizes():
    line = [sys.executable, str(BENCHMARKS / "training.py"), "--quick", "--rounds", "1", "--steps", "1"]
    line += ["--scenes", "4", "--candidates", "4"]
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS.parent)}
    done = subprocess.run(line, capture_output=True, text=True, env=environment, check=True)
    assert "bernoulli" in done.stdout
    assert "x faster" in done.stdout
