"""`convert --hold-out`: whole logs apart, the same ones for the same seed, as filters that convert takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from navsim_adapter.cli import main
from tests.navsim_adapter.tiny import write_log

LOGS = [f"log-{number}" for number in range(6)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six logs of two scenes, and one too short for any."""
    root = tmp_path_factory.mktemp("data")
    for log in LOGS:
        write_log(root, log)
    write_log(root, "log-short", frames=8)
    return root


def _convert(data: Path, out: Path, *arguments: Any) -> int:
    words = ["convert", "--data", data, "--split", "mini", "--out", out, *arguments]
    return main([str(word) for word in words])


def _logs(out: Path) -> tuple[set[str], set[str]]:
    parts = (yaml.safe_load((out / f"{name}.yaml").read_text()) for name in ("train", "held_out"))
    return tuple(set(part["log_names"]) for part in parts)  # type: ignore[return-value]


def test_two_filters_share_no_log_and_together_hold_every_scene(data: Path, tmp_path: Path, capsys: Any) -> None:
    assert _convert(data, tmp_path / "f", "--hold-out", 2) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "train.yaml 8 scenes of 4 logs" in said
    assert "held_out.yaml 4 scenes of 2 logs" in said
    train, held_out = _logs(tmp_path / "f")
    assert (len(held_out), train | held_out, train & held_out) == (2, set(LOGS), set())
    tokens = []
    for name in ("train", "held_out"):
        assert _convert(data, tmp_path / name, "--filter", tmp_path / "f" / f"{name}.yaml") == 0
        about = json.loads((tmp_path / name / "scenes.json").read_text())
        assert about["absent"] == {"log_names": [], "tokens": []}
        tokens.append(about["count"])
    assert tokens == [8, 4]


def test_the_seed_decides_and_a_smaller_number_is_part_of_a_larger(data: Path, tmp_path: Path) -> None:
    chosen = {}
    for name, number, seed in (("a", 3, 0), ("b", 3, 0), ("c", 2, 0), ("d", 3, 5)):
        assert _convert(data, tmp_path / name, "--hold-out", number, "--seed", seed) == 0
        chosen[name] = _logs(tmp_path / name)[1]
    assert (tmp_path / "a" / "held_out.yaml").read_bytes() == (tmp_path / "b" / "held_out.yaml").read_bytes()
    assert chosen["c"] < chosen["a"]
    assert chosen["a"] != chosen["d"]


def test_a_filter_s_keys_and_tokens_go_where_their_log_goes(data: Path, tmp_path: Path) -> None:
    listed = [f"{number}{frame:015d}" for number in range(4) for frame in (3, 4)]
    given = {"frame_interval": 1, "has_route": False, "tokens": [*listed, "f" * 16], "_target_": "x"}
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(given))
    assert _convert(data, tmp_path / "f", "--filter", tmp_path / "given.yaml", "--hold-out", 1) == 0
    train, held_out = (yaml.safe_load((tmp_path / "f" / f"{name}.yaml").read_text()) for name in ("train", "held_out"))
    assert sorted(train["tokens"] + held_out["tokens"]) == sorted(listed)
    assert {token[0] for token in held_out["tokens"]} == {name[-1] for name in held_out["log_names"]}
    assert (train["has_route"], train["num_future_frames"]) == (False, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hold-out", 6], "--hold-out: 6 of 6 logs"),
        (["--hold-out", 60], "--hold-out: 60 of 6 logs"),
        (["--hold-out", 0], "--hold-out: must be at least 1"),
        (["--seed", 3], "--seed: chooses the logs of --hold-out"),
        (["--hold-out", 2, "--two-stage", "x"], "--two-stage: rendered scenes have no logs"),
    ],
)
def test_mistakes_are_one_line(data: Path, tmp_path: Path, capsys: Any, arguments: list[Any], message: str) -> None:
    assert _convert(data, tmp_path / "f", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "f").exists()


def test_filters_of_another_seed_are_not_replaced(data: Path, tmp_path: Path, capsys: Any) -> None:
    assert _convert(data, tmp_path / "f", "--hold-out", 2) == 0
    before = (tmp_path / "f" / "train.yaml").read_bytes()
    assert _convert(data, tmp_path / "f", "--hold-out", 2) == 0
    assert _convert(data, tmp_path / "f", "--hold-out", 3) == 2
    assert "holds something else" in capsys.readouterr().err
    assert (tmp_path / "f" / "train.yaml").read_bytes() == before
