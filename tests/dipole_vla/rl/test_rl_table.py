"""The summary of a result table: settings are chosen on the other seeds."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[3]))

from benchmarks import rl_table


def test_a_seed_does_not_choose_its_own_setting() -> None:
    settings = {
        (1.0, 1): {0: 90.0, 1: 10.0, 2: 10.0},  # best for seed 0 only
        (2.0, 1): {0: 20.0, 1: 40.0, 2: 40.0},
        (2.0, 8): {0: 99.0, 1: 99.0, 2: 99.0},
    }
    assert rl_table.chosen(settings, [0, 1, 2], False) == [(20.0, (2.0, 1)), (10.0, (1.0, 1)), (10.0, (1.0, 1))]
    assert [value for value, _ in rl_table.chosen(settings, [0, 1, 2], True)] == [99.0] * 3


def test_the_interval_has_the_width_of_independent_episodes() -> None:
    low, high = rl_table.interval(np.full(4, 50.0), np.full(4, 30.0), 50)
    error = 100 * np.sqrt((0.5 * 0.5 + 0.3 * 0.7) / 200)
    assert (low + high) / 2 == pytest.approx(20.0, abs=0.5)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.05)
    assert rl_table.interval(np.array([0.0, 100.0]), np.zeros(2), 50)[0] == 0.0  # seeds that disagree


def test_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["task,method,seed,omega,candidates,return,episodes,updates,commit"]
    for seed in (0, 1):
        for updates in (10, 20):
            lines.append(f"t,bc,{seed},0,1,0,50,{updates},x")
            lines.append(f"t,bc,{seed},0,8,10,50,{updates},x")
            lines.append(f"t,dipole,{seed},1,1,{30 + seed},50,{updates},x")
            lines.append(f"t,dipole,{seed},1,8,40,50,{updates},x")
    (tmp_path / "results.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(sys, "argv", ["rl_table.py", str(tmp_path / "results.csv")])
    rl_table.main()
    page = capsys.readouterr().out
    assert "| dipole | one | 30.5 | 30 (1, 1), 31 (1, 1) | +30.5 [" in page
    assert "| dipole | best of N | 40.0 |" in page
    assert "| dipole, 1, 8 | 40 |" in page
    assert "| method, omega | N = 1 | N = 8 |" in page
    assert "| dipole, 1 | 30.5 | 40.0 |" in page
