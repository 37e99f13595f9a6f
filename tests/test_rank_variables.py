"""Variables of ranks that are no numbers are named by every command, before Lightning reads them at its import."""

from __future__ import annotations

import pytest

from dipole_vla.cli import main


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "SLURM_PROCID", "WORLD_SIZE"])
@pytest.mark.parametrize("value", ["abc", "", "1.5"])
@pytest.mark.parametrize("command", ["fit", "evaluate", "report"])
def test_a_rank_that_is_no_number_is_one_line(name, value, command, monkeypatch, capsys) -> None:
    monkeypatch.setenv(name, value)
    assert main([command, "--out", "nowhere"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {name} in the environment")
    assert repr(value) in said
    assert said.count("\n") == 1
