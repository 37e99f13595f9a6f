"""What docs/your-data.md shows, run as it stands: foreign scenes and a foreign scorer, from collect to the report."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import load_from_disk

from dipole_vla.cli import main
from navsim_adapter.foundation.files import read_json

PAGE = Path(__file__).resolve().parents[1] / "docs" / "your-data.md"


@pytest.fixture
def place(loop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `scenes`, `driven` and `my_scorer.py`, made by the page's two blocks of Python."""
    converter, scorer = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "my_scorer.py").write_text(scorer)
    monkeypatch.syspath_prepend(tmp_path)
    names: dict = {}
    exec(compile(converter, str(PAGE), "exec"), names)
    for ours, theirs in (("scenes", "train"), ("driven", "test")):
        rows = load_from_disk(str(loop / "scenes" / theirs)).to_list()
        sensors = read_json(loop / "scenes" / theirs / "scenes.json")["sensors"]
        names["write_scenes"](rows, tmp_path / ours, f"my {ours}", sensors)
    return tmp_path


def recipe(place: Path, **keys) -> list[str]:
    scorer = {"class_path": "my_scorer.MyScorer", "init_args": {"reach": 30}}
    path = place / "recipe.yaml"
    path.write_text(yaml.safe_dump({**{key: str(value) for key, value in keys.items()}, "scorer": scorer}))
    return ["--config", str(path)]


def test_foreign_scenes_are_collected_and_evaluated_with_a_foreign_scorer(loop: Path, place: Path, capsys) -> None:
    keys = {"policy": loop / "imitation", "scenes": place / "scenes", "out": place / "candidates"}
    arguments = ["collect", *recipe(place, **keys), "--candidates", "2"]
    assert main(arguments) == 2
    assert "--allow-import my_scorer" in capsys.readouterr().err
    assert main([*arguments, "--allow-import", "my_scorer"]) == 0
    table = load_from_disk(str(place / "candidates"))
    ends = np.array([poses[-1][0] for poses in table["poses"]])
    np.testing.assert_allclose(table["score"], np.clip(ends / 30, 0, 1))
    assert read_json(place / "candidates" / "candidates.json")["metric"] == "mine-v1"

    keys = {"policy": loop / "dipole", "scenes": place / "driven", "out": place / "evaluation"}
    arguments = ["evaluate", *recipe(place, **keys), "--omega", "[0]", "--candidates", "[1]"]
    assert main([*arguments, "--allow-import", "my_scorer"]) == 0
    assert main(["report", str(place / "evaluation"), "--out", str(place / "report")]) == 0
    page = (place / "report" / "index.html").read_text()
    assert "MINE v1" in page
    assert "No bird's-eye pictures" in page


def test_the_pages_recipes_run_without_a_critic(loop: Path, place: Path, capsys) -> None:
    recipes = re.findall(r"^```yaml\n# (\w+\.yaml)[^\n]*\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    folders = {"checkpoints/mine": loop / "imitation", "runs/mine/scenes/train": place / "scenes"}
    folders |= {"runs/mine/scenes/validation": loop / "scenes/validation", "runs/mine/scenes/test": place / "driven"}
    for name, text in recipes:
        for shown, real in {**folders, "runs/mine": place / "mine"}.items():
            text = text.replace(shown, str(real))
        (place / name).write_text(text)
    fewer = {
        "collect.yaml": ["--candidates", "2"],
        "dipole.yaml": ["--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--data.batch_size", "4"],
        "validate.yaml": ["--omega", "[0, 1]"],
        "evaluate.yaml": ["--omega", "[0, 1]"],
    }
    commands = re.findall(r"^dipole-vla (\w+) +--config (\w+\.yaml)(.*)$", PAGE.read_text(), re.MULTILINE)
    assert [name for _, name, _ in commands] == [name for name, _ in recipes] == list(fewer)
    for command, name, more in commands:
        assert main([command, "--config", str(place / name), *more.split(), *fewer[name]]) == 0, capsys.readouterr().err
    summary = read_json(place / "mine" / "evaluation" / "summary.json")
    assert summary["chosen"]["candidates"] == 1
    assert {row["candidates"] for row in summary["rows"]} == {1}
    assert main(["report", str(place / "mine" / "evaluation"), "--out", str(place / "mine" / "report")]) == 0
