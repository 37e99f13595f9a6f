"""docs/own-rules.md is run as it stands, on the arm of examples/own_network.py."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from dipole_vla import backbones
from dipole_vla.objective import RULES
from dipole_vla.paths import LinearFlow
from dipole_vla.plugin import Dipole
from navsim_adapter.foundation.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "own-rules.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(backbones, "_registered", {})
    monkeypatch.setitem(RULES, "ramp", None)  # taken out again after the test
    names: dict[str, Any] = {"__name__": "own_rules"}
    example = (ROOT / "examples" / "own_network.py").read_text()
    exec(compile(example, "own_network.py", "exec"), names)
    for block in BLOCKS:
        exec(compile(block, "own-rules.md", "exec", dont_inherit=True), names)
    return names


def arm(page: dict[str, Any], rule: str) -> Dipole:
    return Dipole(
        page["Arm"](width=16),
        encode=lambda net, observation: {"token": net.state(observation["goal"])},
        denoise=lambda net, context, x_t, t: net.velocity(context["token"], x_t, t),
        schedule=LinearFlow(noise_at=1), prediction="velocity", adapt=r"blocks\.\d+\.fc[12]", shape=(8, 7), rule=rule,
    )  # fmt: skip


def test_ranks_and_a_ramp_train_and_the_smoothest_action_is_chosen(page: dict[str, Any]) -> None:
    returns = torch.tensor([[3.0, 1.0, 2.0]])
    assert page["rank_advantage"](returns).tolist() == [[1.0, -1.0, 0.0]]
    weights = RULES["ramp"].weights(torch.tensor([-9.0, 0.0, 9.0]), 1.0)
    assert {role: weight.tolist() for role, weight in weights.items()} == {
        "positive": [0.0, 0.5, 1.0],
        "negative": [1.0, 0.5, 0.0],
    }
    dipole, goal = arm(page, "ramp"), torch.zeros(2, 7)
    loss, _ = page["step"](dipole, goal, torch.randn(2, 3, 8, 7), returns.repeat(2, 1))
    loss.backward()
    assert any(weight.grad is not None and weight.grad.any() for weight in dipole.parameters())
    still = torch.zeros(1, 2, 8, 7)
    still[0, 1, ::2] = 1
    assert page["smooth"](None, still).argmax(1).tolist() == [0]
    assert page["drive"](dipole, goal).shape == (2, 8, 7)
    assert page["best_of"](still, torch.tensor([[0.0, 1.0]])).equal(still[:, 1])


def test_a_candidates_folder_gets_another_advantage(page: dict[str, Any], tmp_path: Path) -> None:
    rows = {"token": ["a", "b", "a", "a"], "return": [1.0, 5.0, 2.0, 6.0], "advantage": [0.0] * 4}
    Dataset.from_dict(rows).save_to_disk(str(tmp_path / "candidates"))
    write_json(tmp_path / "candidates" / "candidates.json", {"metric": "mine-v1"})
    page["with_my_advantage"](tmp_path / "candidates", tmp_path / "out")
    assert Dataset.load_from_disk(str(tmp_path / "out"))["advantage"][:] == [-1.0, 0.0, 0.0, 4.0]
    assert read_json(tmp_path / "out" / "candidates.json")["metric"] == "mine-v1"
    assert (tmp_path / "out" / "manifest.json").is_file()


def test_a_scorer_around_another_takes_points_off_for_going_sideways(page: dict[str, Any]) -> None:
    inner = SimpleNamespace(score=lambda tokens, plans: SimpleNamespace(
        metric="m-v1", score=np.ones(plans.shape[:2]), sub_scores={}))  # fmt: skip
    plans = np.zeros((1, 2, 8, 3))
    plans[0, 1, 3, 1] = -10
    scores = page["Straighter"](inner).score(["a"], plans)
    np.testing.assert_allclose(scores.score, [[1.0, 0.8]])
    assert scores.metric == "straighter-v1(m-v1)"


def test_the_family_is_known(page: dict[str, Any]) -> None:
    assert backbones._registered == {"my_vla": "my_vla_plugin:MyVLA"}
