"""Collection and evaluation as the tasks of a job array: any order, any interruption, the same result as one run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from dipole_vla.cli import main
from dipole_vla.commands import parts
from dipole_vla.commands.fit import CHECKPOINTS
from navsim_adapter.foundation.files import MANIFEST, verify
from tests.small_loop import small_steps

COUNT = 3


@pytest.fixture(autouse=True)
def small_parts(monkeypatch) -> None:
    monkeypatch.setattr(parts, "PART", 2)


def shards(line: list[str], out: Path, order: list[int]) -> list[bool]:
    """Run the shards one after the other; after each, whether the whole is there."""
    finished = []
    for index in order:
        assert main([*line[1:], "--out", str(out), "--shard", f"{index}/{COUNT}"]) == 0
        finished.append((out / MANIFEST).is_file())
    return finished


def test_the_last_shard_of_a_collection_puts_it_together(loop: Path, tmp_path: Path) -> None:
    line = next(line for line in small_steps(loop) if line[1] == "collect")
    out = tmp_path / "candidates"
    assert shards(line, out, [2, 3, 1]) == [False, False, True]
    verify(out)
    assert not (out / "parts").exists()
    assert main([*line[1:], "--out", str(tmp_path / "whole")]) == 0
    one, two = (arrow_sums(path) for path in (out, tmp_path / "whole"))
    assert one
    assert one == two


def test_a_run_without_a_shard_makes_what_the_shards_left(loop: Path, tmp_path: Path) -> None:
    line = next(line for line in small_steps(loop) if line[1] == "evaluate" and str(loop / "validation") in line)
    out, whole = tmp_path / "validation", tmp_path / "whole"
    assert shards(line, out, [2]) == [False]
    for folder in (out, whole):
        assert main([*line[1:], "--out", str(folder)]) == 0
        verify(folder)
    for name in ("rows.parquet", "plans.parquet"):
        pd.testing.assert_frame_equal(pd.read_parquet(out / name), pd.read_parquet(whole / name))


@pytest.mark.parametrize("command", ["collect", "evaluate"])
def test_figures_of_another_scorer_are_not_mixed_in(loop: Path, tmp_path: Path, capsys, command: str) -> None:
    line = next(line for line in small_steps(loop) if line[1] == command)
    out = tmp_path / "out"
    assert shards(line, out, [1]) == [False]
    scored = sorted((out / "parts").iterdir())
    cache = Path(line[line.index("--scorer.cache") + 1])
    rebuilt, moved = tmp_path / "rebuilt", tmp_path / "moved"
    for copy in (rebuilt, moved):
        shutil.copytree(cache, copy)
    manifest = json.loads((rebuilt / MANIFEST).read_text())
    (rebuilt / MANIFEST).write_text(json.dumps({**manifest, "made_by": {"command": "cache", "again": True}}))
    for changed, key in ((["--scorer.metric", "epdms"], "metric"), (["--scorer.cache", str(rebuilt)], "cache")):
        assert main([*line[1:], "--out", str(out), "--shard", f"2/{COUNT}", *changed]) == 2
        assert f"scorer.{key}: this folder was made with" in capsys.readouterr().err
    assert sorted((out / "parts").iterdir()) == scored
    assert main([*line[1:], "--out", str(out), "--scorer.cache", str(moved)]) == 0  # the same cache elsewhere
    verify(out)
    assert main([*line[1:], "--out", str(out), "--scorer.metric", "epdms"]) == 2
    assert "scorer.metric" in capsys.readouterr().err


def test_a_shard_that_is_none_is_refused(loop: Path, tmp_path: Path, capsys) -> None:
    line = next(line for line in small_steps(loop) if line[1] == "collect")
    assert main([*line[1:], "--out", str(tmp_path / "c"), "--shard", "4/3"]) == 2
    assert "--shard: must be i/n" in capsys.readouterr().err


def test_an_unfinished_training_is_exported_by_consolidate(loop: Path, tmp_path: Path) -> None:
    """From the checkpoint of step 2 of 4: the adapters of that checkpoint, in plain PEFT folders."""
    import torch
    from safetensors.torch import load_file

    checkpoint = loop / "dipole" / CHECKPOINTS / "step=00000002.ckpt"
    assert (
        main(["consolidate", str(loop / "dipole"), "--out", str(tmp_path / "x"), "--checkpoint", str(checkpoint)]) == 0
    )
    verify(tmp_path / "x")
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    for sign in ("positive", "negative"):
        written = load_file(tmp_path / "x" / sign / "adapter_model.safetensors")
        for name, tensor in written.items():
            inner = name.removeprefix("base_model.model.").replace(".weight", f".{sign}.weight")
            assert torch.equal(tensor, saved[f"backbone.{inner}"])


def arrow_sums(folder: Path) -> dict[str, str]:
    files = json.loads((folder / MANIFEST).read_text())["files"]
    return {name: facts["sha256"] for name, facts in files.items() if name.endswith(".arrow")}
