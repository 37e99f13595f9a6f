"""docs/own-loop.md is run as it stands, and its module is that of the example."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "own-loop.md").read_text(), re.MULTILINE | re.DOTALL)
EXAMPLE = (ROOT / "examples" / "own_network.py").read_text()


def test_the_pages_code_trains_resumes_and_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page: dict[str, Any] = {"__name__": "own_loop"}
    exec(compile(EXAMPLE, "own_network.py", "exec"), page)  # for its network; the page's own code comes after it
    for block in BLOCKS:
        exec(compile(block, "own-loop.md", "exec"), page)
    draw = torch.Generator().manual_seed(0)
    goal, action = torch.randn(8, 7, generator=draw), torch.randn(8, 3, 8, 7, generator=draw)
    data = DataLoader(TensorDataset(goal, action, -page["distance"](goal, action)), batch_size=4, shuffle=True)
    monkeypatch.chdir(tmp_path)  # Lightning's own logs and checkpoints
    module = page["MyTraining"](page["Arm"](width=16))
    page["train"](module, data, tmp_path, epochs=11)
    again = page["MyTraining"](page["Arm"](width=16))
    again.load_state_dict(module.state_dict())
    assert page["train"](again, data, tmp_path, epochs=11).newest.name == "step=00000022.ckpt"
    rate = lambda observation, plans: -page["distance"](observation["goal"], plans)  # noqa: E731
    plans, best, reference = page["use"](module.dipole, {"goal": goal}, tmp_path / "adapters", rate)
    assert (plans.shape, best.shape, reference.shape) == ((8, 8, 8, 7), (8, 8, 7), (8, 1, 8, 7))


def test_the_page_shows_the_module_of_the_example() -> None:
    shown = BLOCKS[0][BLOCKS[0].index("class MyTraining") :]
    assert shown in re.sub(r"  # dipole$", "", EXAMPLE, flags=re.MULTILINE)
