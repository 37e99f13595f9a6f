"""What lines for people say of numbers."""

from __future__ import annotations

import pytest

from dipole_vla import preemption
from dipole_vla.evaluation.summary import difference_words
from dipole_vla.report.tables import points, signed
from navsim_adapter.foundation.words import counted


def test_one_is_no_plural():
    assert [counted(n, "scene") for n in (0, 1, 2)] == ["0 scenes", "1 scene", "2 scenes"]
    assert counted(12345, "held-out scene", ",") == "12,345 held-out scenes"


def test_nothing_is_not_less_than_nothing():
    """A loss that rounds to nothing has no minus before it."""
    row = {"gain": -4e-4, "gain_ci95": (-2e-3, -1e-5)}
    assert difference_words(row, "gain") == "+0.0 [-0.2, +0.0]"
    assert (signed(-4e-4), points(-4e-4), signed(-6e-4)) == ("+0.0", "0.0", "−0.1")


@pytest.mark.parametrize("signals", [["SIGUSR1"], ["SIGTERM"]])
def test_a_task_of_an_array_is_not_the_array(signals, monkeypatch):
    """Slurm gives the last task the array's own number, by which a request would mean every task."""
    for name, value in (("JOB_ID", "70"), ("ARRAY_JOB_ID", "70"), ("ARRAY_TASK_ID", "3")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(preemption, "_noted", signals)
    assert "job 70_3" in preemption.requeue()
