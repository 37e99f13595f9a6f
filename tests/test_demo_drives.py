"""The demo's end: reference and chosen policy at the wheel, and the page that says what became of the gain."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dipole_vla import demo, demo_drives
from dipole_vla.report import closed_loop
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import read_json

GAIN = {1: (0.01, 0.2), 0: (-0.1, 0.1), -1: (-0.2, -0.01)}


@pytest.fixture(scope="module")
def driven(loop: Path) -> Path:
    """One log, by the loop's reference and by its pair."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_drives, "LOGS", 1)
        found = demo_drives.drive_both(loop, loop / "world", demo.run_step)
    assert found == loop / "closed_loop" / "chosen"
    return found


def test_both_drive_the_same_log_and_the_second_time_nobody_is_served(driven, loop, monkeypatch):
    content = read_json(driven / "summary.json")
    assert (content["driver"], content["other"]["driver"]) == ("chosen", "reference")
    assert content["drives"] == 1
    monkeypatch.setattr(demo_drives, "_drive", lambda *_: pytest.fail("drives again"))
    assert demo_drives.drive_both(loop, loop / "world", demo.run_step) == driven


def test_terminal_and_page_say_both_gains_side_by_side(driven, loop, tmp_path):
    row = {"fairest_gain": 0.05, "fairest_gain_ci95": [0.01, 0.09]}
    words = demo_drives.words_of(driven, row)
    assert "+5.0 [+1.0, +9.0]" in words
    assert words.endswith("too few logs to tell")  # one log
    demo.run_step(["dipole-vla", "report", str(loop / "evaluation"), "--out", str(tmp_path / "page"),
                   "--closed_loop", str(driven)])  # fmt: skip
    page = (tmp_path / "page" / "index.html").read_text()
    section = page[page.index("In closed loop") : page.index("What made this")]
    gain = 100 * read_json(driven / "summary.json")["other"]["gain"]["score"]["mean"]
    assert f"closed loop {gain:+.1f}" in section
    assert re.search(r"<h2>7 · What made this", page)


def test_without_the_extra_the_demo_says_so_and_goes_on(loop, monkeypatch, capsys):
    monkeypatch.setattr(demo_drives, "EXTRA", "no_such_package")
    assert demo_drives.drive_both(loop, loop / "world", demo.run_step) is None
    assert "dipole-vla[drive]" in capsys.readouterr().out


def test_a_run_without_another_beside_it_is_refused(driven):
    with pytest.raises(InputError, match="--beside"):
        closed_loop.read_closed_loop(driven.parent / "reference")


@pytest.mark.parametrize("open_loop", GAIN)
@pytest.mark.parametrize("closed", GAIN)
def test_a_gain_survives_only_where_both_loops_show_it(open_loop, closed):
    content = {"other": {"gain": {"score": {"mean": 0, "ci95": list(GAIN[closed])}}}}
    words = closed_loop.survival(GAIN[open_loop], content)
    assert ("gain survives" in words and "whether" not in words) == (open_loop == closed == 1)
    assert ("worse beyond chance" in words) == (closed == -1)


def test_few_logs_tell_nothing():
    content = json.loads('{"other": {"gain": {"score": {"mean": 0.5, "ci95": null}}}}')
    assert "too few" in closed_loop.survival(GAIN[1], content)
