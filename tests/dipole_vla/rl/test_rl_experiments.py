"""Every experiment runs, writes a page that needs nothing else, and its numbers; the bandit is what it says."""

from __future__ import annotations

import json

import pytest
import torch

from dipole_vla.cli import main
from dipole_vla.commands.experiment import EXPERIMENTS
from dipole_vla.rl.experiments import bandit


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_an_experiment_writes_its_page_and_numbers(name, tmp_path):
    out = tmp_path / name
    assert main(["experiment", name, "--out", str(out), "--updates", "12"]) == 0
    page = (out / "index.html").read_text()
    assert page.count("<svg") >= 1
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page
    assert f"dipole-vla experiment {name}" in page
    numbers = json.loads((out / "numbers.json").read_text())
    assert numbers["updates"] == 12


def test_an_unknown_experiment_says_which_are_known(capsys, tmp_path):
    assert main(["experiment", "omga", "--out", str(tmp_path / "x")]) == 2
    assert "did you mean 'omega'" in capsys.readouterr().err


def test_the_bandits_gain_has_mean_zero_and_the_stated_spread():
    data = bandit.draw(100_000, torch.Generator().manual_seed(0), noise=0.0)
    assert abs(float(data.gain.mean())) < 0.02
    assert float(data.gain.std()) == pytest.approx(0.8, abs=0.02)
    assert float((bandit.distance_to_data(data.action) > bandit.OFF_SUPPORT).double().mean()) < 0.01
    far = bandit.true_gain(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.0]]))
    assert float(far) == pytest.approx(bandit.AMPLITUDE - 3 * (2 - bandit.OFF_SUPPORT), abs=1e-5)


def test_behaviour_of_imitation_keeps_the_modes_and_the_mean():
    from dipole_vla.rl.heads import Head

    data = bandit.draw(8000, torch.Generator().manual_seed(0))
    training = bandit.train(data, [Head()], updates=1200)
    found = bandit.behaviour(training.policies, 0, draws=32)
    assert abs(found.gain) < 0.15
    assert found.modes_kept > 6
    assert found.off_support < 0.3
