"""Command lines on the small world, and how a refused one must end."""

from __future__ import annotations

from pathlib import Path

import pytest

from dipole_vla.cli import main
from dipole_vla.demo import shipped_recipes


def refused(arguments: list, capsys: pytest.CaptureFixture[str], *words: str) -> None:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert "Traceback" not in lines[0]
    for word in words:
        assert word in lines[0], lines[0]


def fit(recipe: Path, loop: Path, out: Path, *more: str) -> list:
    return [
        "fit", "--config", recipe, "--out", out, "--model.backbone", loop / "imitation", "--data.scenes",
        loop / "scenes/train", "--data.candidates", loop / "candidates", "--trainer.max_steps", "2", *more,
    ]  # fmt: skip


def evaluate(loop: Path, out: Path, scenes: str, *more: str) -> list:
    return [
        "evaluate", "--config", shipped_recipes() / "evaluate.yaml", "--policy", loop / "dipole", "--scenes",
        loop / "scenes" / scenes, "--scorer.cache", loop / "cache" / scenes, "--out", out, "--choose_on", "null",
        "--omega", "[0]", "--candidates", "[1]", *more,
    ]  # fmt: skip


def line_of(command: str, loop: Path) -> list:
    """A command on the small world, without --out."""
    train, test = ["--scenes", loop / "scenes/train"], ["--scenes", loop / "scenes/test"]
    base = ["--backbone", loop / "imitation"]
    drives = ["--config", shipped_recipes() / f"{command}.yaml", "--policy"]
    given = {
        "collect": [*drives, loop / "imitation", *train, "--scorer.cache", loop / "cache/train"],
        "evaluate": [*drives, loop / "dipole", *test, "--scorer.cache", loop / "cache/test", "--choose_on", "null"],
        "contexts": [*base, *train],
        "export": [loop / "dipole", "--format", "distilled", *train],
        "report": [loop / "evaluation"],
        "advantage": ["--candidates", loop / "candidates", "--critic", loop / "critic", *base, *test],
        "consolidate": [loop / "dipole", "--checkpoint", loop / "dipole/positive/adapter_model.safetensors"],
    }
    return [command, *given[command]]
