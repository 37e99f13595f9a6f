"""Progress in a log file: a line a minute, with the time that is left at the speed so far."""

from __future__ import annotations

import pytest

from dipole_vla.progress import bar
from navsim_adapter.foundation import progress
from navsim_adapter.foundation.progress import Lines, span


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_a_minute_and_none_for_what_ends_sooner(clock) -> None:
    said: list[str] = []
    lines = Lines("logs", said.append)
    for done in range(11):  # ten seconds each
        lines.show(done, 20)
        clock[0] += 10
    assert said == ["logs: 6 of 20, about 2 min to go"]
    clock[0] += 50
    lines.show(20, 20, "loss 0.5")
    assert said[1:] == ["logs: 20 of 20, about 0 s to go, loss 0.5"]


def test_the_speed_of_a_resumed_run_is_its_own(clock) -> None:
    said: list[str] = []
    lines = Lines("steps", said.append)
    lines.show(900, 1000)
    clock[0] += 60
    lines.show(910, 1000)
    assert said == ["steps: 910 of 1000, about 9 min to go"]
    clock[0] += 60
    lines.show(920, None)
    assert said[1:] == ["steps: 920"]


def test_spans_are_read_at_a_glance() -> None:
    assert [span(s) for s in (0, 89, 91, 3600, 5399, 11100)] == [
        "0 s",
        "89 s",
        "2 min",
        "60 min",
        "1 h 30 min",
        "3 h 05 min",
    ]


def test_a_stage_without_a_terminal_writes_lines(clock, capsys: pytest.CaptureFixture[str]) -> None:
    with bar("evaluate at 80000", 88) as stage:
        stage.advance(0)
        clock[0] += 61
        stage.advance(22, "loss 0.1")
        stage.advance(66)
    assert capsys.readouterr().out == "evaluate at 80000: 22 of 88, about 3 min to go, loss 0.1\n"
