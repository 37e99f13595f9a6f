"""Every command that looks at pictures knows whether they are those it began with, wherever they lie."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from dipole_vla.cli import main
from navsim_adapter.foundation.files import read_json
from tests.small_loop import small_steps

SPLITS = {"train": "trainval", "validation": "mini", "test": "test"}


@pytest.fixture(scope="module")
def others(loop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """same/: the loop's pictures, moved.  other/: the same inverted."""
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("same", "other"):
        shutil.copytree(loop / "world" / "sensor_blobs", folder / name)
    for path in (folder / "other").rglob("*.jpg"):
        ImageOps.invert(Image.open(path)).save(path)
    return folder


def line_of(loop: Path, stage: str) -> list[str]:
    """The command that made a folder of the loop."""
    lines = [line[1:] for line in small_steps(loop) if line[0] == "dipole-vla" and "--out" in line]
    return next(line for line in lines if line[line.index("--out") + 1] == str(loop / stage))


@pytest.mark.parametrize(
    ("stage", "split", "option"),
    [
        ("imitation", "train", "--data.sensors"),
        ("candidates", "train", "--sensors"),
        ("dipole", "train", "--data.sensors"),
        ("evaluation", "test", "--sensors"),
    ],
)
def test_a_finished_stage_of_other_pictures_is_not_this_one(loop, others, capsys, stage, split, option) -> None:
    line = line_of(loop, stage)
    assert main([*line, option, str(others / "same" / SPLITS[split])]) == 0
    assert "already complete" in " ".join(capsys.readouterr().out.split())
    assert main([*line, option, str(others / "gone")]) == 0  # what was made of them is still there
    capsys.readouterr()
    assert main([*line, option, str(others / "other" / SPLITS[split])]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "pictures.CAM_" in said[0]
    assert "choose another --out" in said[0]


def test_contexts_advantage_drive_and_export_too(loop, others, tmp_path, capsys) -> None:
    train, test = ["--scenes", loop / "scenes/train"], ["--scenes", loop / "scenes/test"]
    base = ["--backbone", loop / "imitation"]
    steps = ["--steps", 1, "--format", "distilled"]
    lines = {
        "contexts": (["contexts", *base, *train], "train"),
        "advantage": (
            ["advantage", "--candidates", loop / "candidates", "--critic", loop / "critic", *train, *base],
            "train",
        ),
        "plans.npz": (["drive", "--policy", loop / "dipole", *test, "--candidates", 1], "test"),
        "distilled": (["export", loop / "dipole", *train, *steps], "train"),
    }
    for out, (line, split) in lines.items():
        words = [str(word) for word in (*line, "--out", tmp_path / out)]
        assert main(words) == 0, out
        capsys.readouterr()
        assert main([*words, "--sensors", str(others / "same" / SPLITS[split])]) == 0, out
        assert "already complete" in " ".join(capsys.readouterr().out.split()), out
        assert main([*words, "--sensors", str(others / "other" / SPLITS[split])]) == 2, out
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1, said
        assert "pictures" in said[0]
    about = read_json(tmp_path / "advantage" / "candidates.json")
    assert {"metric", "policy_fingerprint", "base_fingerprint"} <= about.keys()


def test_shards_with_two_roots_are_not_mixed(loop, others, tmp_path, capsys) -> None:
    line = [*line_of(loop, "candidates"), "--out", str(tmp_path / "c")]
    assert main([*line, "--shard", "1/2"]) == 0
    assert main([*line, "--shard", "2/2", "--sensors", str(others / "other" / "trainval")]) == 2
    assert "pictures.CAM_" in capsys.readouterr().err
    assert main([*line, "--shard", "2/2", "--sensors", str(others / "same" / "trainval")]) == 0


def test_a_run_goes_on_with_moved_pictures_and_not_with_others(loop, others, tmp_path, capsys) -> None:
    out = tmp_path / "dipole"
    shutil.copytree(loop / "dipole", out)
    (out / "manifest.json").unlink()
    (out / "checkpoints" / "step=00000004.ckpt").unlink()
    line = [*line_of(loop, "dipole"), "--out", str(out)]
    assert main([*line, "--data.sensors", str(others / "other" / "trainval")]) == 2
    assert "data.pictures.CAM_" in capsys.readouterr().err
    assert main([*line, "--data.sensors", str(others / "same" / "trainval"), "--data.workers", "1"]) == 0
    assert "resuming from" in capsys.readouterr().out


def test_training_on_other_pictures_than_who_drove_saw_is_said(loop, others, tmp_path, capsys) -> None:
    line = [*line_of(loop, "dipole"), "--out", str(tmp_path / "d"), "--trainer.max_steps", "1"]
    assert main([*line, "--data.sensors", str(others / "other" / "trainval")]) == 0
    assert "saw other pictures of CAM_" in " ".join(capsys.readouterr().out.split())


def test_an_evaluation_by_another_metric_says_both(loop, tmp_path, capsys) -> None:
    line = [*line_of(loop, "evaluation"), "--out", str(tmp_path / "e"), "--scorer.metric", "epdms"]
    assert main([*line, "--choose_on", "null"]) == 0
    assert "trained on pdms-v1.1, evaluated by epdms-v2.2" in " ".join(capsys.readouterr().out.split())
    summary = read_json(tmp_path / "e" / "summary.json")
    assert (summary["rl_metric"], summary["metric"]) == ("pdms-v1.1", "epdms-v2.2")
