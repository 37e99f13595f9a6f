"""`navsim-adapter vocabulary`: what `Scorer.score` gives for the same poses, however the work was cut or killed."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from navsim_adapter.foundation.files import MANIFEST, verify
from navsim_adapter.scoring import vocabulary
from navsim_adapter.scoring.scorer import Scorer, columns_of
from tests.navsim_adapter.score_world import TOKENS, broken_world, run, write_world

SIZE = 70  # more than are simulated side by side


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_world(tmp_path_factory.mktemp("world"))
    assert run("cache", "--data", root, "--split", "mini", "--workers", 1, "--out", root / "cache") == 0
    np.save(root / "v.npy", poses())
    return root


def poses(count: int = SIZE, steps: int = 40) -> np.ndarray:
    """Speeds from 0 to 14 m/s, each turning a little more than the one before."""
    heading = np.linspace(-0.2, 0.2, count)[:, None] * np.linspace(0, 1, steps)
    along = np.linspace(0, 14, count)[:, None] * 4 / steps * np.arange(1, steps + 1)
    return np.stack([along * np.cos(heading), along * np.sin(heading), heading], axis=2).astype(np.float32)


def score(world: Path, out: Path, *more: Any, file: Path | None = None) -> int:
    return run("vocabulary", "--cache", world / "cache", "--vocabulary", file or world / "v.npy", "--out", out, *more)


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a result by name."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    assert score(world, out) == 0
    return out


@pytest.mark.parametrize("metric", ["pdms", "epdms", "epdms-v2.2-before-2025-09-29"])
def test_the_table_is_what_the_scorer_gives(world: Path, tmp_path: Path, metric: str) -> None:
    assert score(world, tmp_path / "out", "--metric", metric) == 0
    verify(tmp_path / "out")
    expected = Scorer(world / "cache", metric).score(
        TOKENS, np.broadcast_to(poses(), (len(TOKENS), SIZE, 40, 3)), interval=0.1
    )
    table = pq.read_table(tmp_path / "out" / "logs")
    assert sorted(table["token"].to_pylist()) == TOKENS
    assert table.column_names == ["token", *columns_of(metric)]
    order = [table["token"].to_pylist().index(token) for token in TOKENS]
    for name in columns_of(metric):
        found = table[name].combine_chunks().flatten().to_numpy().reshape(-1, SIZE)[order]
        np.testing.assert_array_equal(found, expected[name].astype(np.float32))
    assert len(np.unique(expected.score)) > 2, "the plans must differ"
    assert pq.ParquetFile(tmp_path / "out" / "logs" / "log-0.parquet").num_row_groups == 2, "a scene can be read alone"


def test_thousands_of_plans_cost_the_memory_of_one_scene(world: Path) -> None:
    scorer, many = Scorer(world / "cache"), np.broadcast_to(poses(4000), (len(TOKENS), 4000, 40, 3))
    scorer.score(TOKENS, many[:, :1], interval=0.1)  # reads the scenes
    done: list[tuple[int, int]] = []
    tracemalloc.start()
    table = scorer.score(TOKENS, many, interval=0.1, progress=lambda *now: done.append(now)).table
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert done == [(scene, len(TOKENS)) for scene in range(1, len(TOKENS) + 1)]
    assert peak < table.nbytes + 3 * many[0].size * 8, "all scenes' poses at once are six times as much"


def test_a_killed_run_goes_on_to_the_same_bytes(
    world: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[str] = []
    row = vocabulary.Run._row

    def noted(self: vocabulary.Run, token: str, scorer: Scorer) -> pa.Table:
        if len(scored) == 3:  # in the middle of the second log
            raise KeyboardInterrupt
        scored.append(token)
        return row(self, token, scorer)

    monkeypatch.setattr(vocabulary.Run, "_row", noted)
    assert score(world, tmp_path / "out") == 130
    assert not (tmp_path / "out" / MANIFEST).exists()
    assert [path.name for path in (tmp_path / "out" / "logs").glob("*.parquet")] == ["log-0.parquet"]
    monkeypatch.setattr(vocabulary.Run, "_row", row)
    assert score(world, tmp_path / "out") == 0
    assert content(tmp_path / "out") == content(whole)


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_shards_in_any_order_are_the_whole(
    world: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], order: tuple[int, int]
) -> None:
    first, last = order
    assert score(world, tmp_path / "out", "--shard", f"{first}/2") == 0
    assert "other shards still have logs" in capsys.readouterr().out
    assert not (tmp_path / "out" / MANIFEST).exists()
    assert score(world, tmp_path / "out", "--shard", f"{last}/2") == 0
    assert content(tmp_path / "out") == content(whole)


def test_a_finished_table_is_left_alone_and_never_mixed_with_another(
    world: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    monkeypatch.setattr(vocabulary.Run, "_row", None)  # scores nothing
    assert score(world, out) == 0
    np.save(tmp_path / "other.npy", poses()[:-1])
    for more, words in (
        ({"file": tmp_path / "other.npy"}, "vocabulary"),
        ({}, "metric"),
    ):
        assert score(world, out, *(["--metric", "epdms"] if words == "metric" else []), **more) == 2
        assert f"{words}: this folder was made with" in capsys.readouterr().err
    assert content(out) == content(whole)


def test_its_size_is_said_first_and_must_fit(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert score(world, tmp_path / "out", "--shard", "1/2") == 0
    assert capsys.readouterr().out.startswith(f"4 scenes x {SIZE} trajectories x 7 figures x 4 bytes = 0.0 MB")
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(vocabulary.shutil, "disk_usage", lambda folder: usage(6 * SIZE * 7 * 4))
    assert score(world, tmp_path / "small") == 2
    assert f"6 scenes x {SIZE} trajectories x 7 figures" in capsys.readouterr().err
    assert not (tmp_path / "small" / "logs").exists()


def test_a_scene_without_cache_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = broken_world(tmp_path)
    np.save(root / "v.npy", poses(3, 8))
    assert run("cache", "--data", root, "--split", "mini", "--workers", 1, "--out", root / "cache") == 0
    assert score(root, tmp_path / "out") == 0
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("not scored: ")]
    assert [line.split()[3] for line in lines] == TOKENS[2:4]
    table = json.loads((tmp_path / "out" / vocabulary.TABLE).read_text())
    assert (table["scenes"], table["trajectories"], table["interval"]) == (2, 3, 0.5)
    assert list(table["not_scored"]) == TOKENS[2:4]


def bad(step: int, value: float) -> np.ndarray:
    plans = poses(5)
    plans[3, step, 1] = value
    return plans


@pytest.mark.parametrize(
    ("array", "more", "words"),
    [
        (poses(5)[:0], (), "shape (0, 40, 3)"),
        (poses(5)[:, :0], (), "shape (5, 0, 3)"),
        (poses(5)[0], (), "shape (40, 3)"),
        (poses(5)[..., :2], (), "shape (5, 40, 2)"),
        (bad(7, np.nan), (), "trajectory 3 has NaN, infinite or absurd poses at step 7"),
        (bad(8, np.inf), (), "trajectory 3 has NaN, infinite or absurd poses at step 8"),
        (bad(9, 1e30), (), "trajectory 3 has NaN, infinite or absurd poses at step 9"),
        (np.concatenate([np.zeros((5, 1, 3)), poses(5)], axis=1), ("--interval", 0.1), "t = 0"),
        (poses(5, 10), (), "--interval: not given"),
        (poses(5), ("--interval", 0), "--interval: must be"),
        (poses(5), ("--interval", "nan"), "--interval: must be"),
        (poses(5).astype(str), (), "expected numbers"),
        (poses(5).astype(object), (), "cannot be read as a plain array"),
    ],
)
def test_what_is_no_vocabulary_is_one_line(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], array: np.ndarray, more: tuple, words: str
) -> None:
    np.save(tmp_path / "v.npy", array, allow_pickle=True)
    assert score(world, tmp_path / "out", *more, file=tmp_path / "v.npy") == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_is_no_file_of_numpy_is_one_line(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "two.npz", a=poses(5), b=poses(5))
    for name in ("text.npy", "text.npz", "torn.npy"):
        (tmp_path / name).write_bytes((world / "v.npy").read_bytes()[:1000] if name == "torn.npy" else b"poses")
    for name in ("two.npz", "text.npy", "text.npz", "torn.npy", "missing.npy", ""):
        assert score(world, tmp_path / "out", file=tmp_path / name) == 2
        error = capsys.readouterr().err
        assert str(tmp_path / name) in error
        assert error.count("\n") == 1


def test_an_archive_of_one_array_is_read_too(world: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", whatever=poses())
    read = [vocabulary.read_vocabulary(path) for path in (tmp_path / "v.npz", world / "v.npy")]
    np.testing.assert_array_equal(read[0].poses, read[1].poses)
    assert read[0].interval == read[1].interval == 0.1
