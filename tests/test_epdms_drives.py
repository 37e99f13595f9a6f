"""EPDMS compares a planner's plans half a second apart: who is a planner in `collect`, `evaluate` and `score`.

Candidates are planners of their own, so nothing is compared. A setting of a sweep is one planner over the whole split.
Neither depends on the parts, shards and batches in which the scenes are worked through, nor do scores under PDMS. The
truth is `navsim-adapter score`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import load_from_disk

from dipole_vla.cli import main
from dipole_vla.commands import parts
from dipole_vla.demo import shipped_recipes
from dipole_vla.policy import load_policy
from navsim_adapter.cli import main as adapter
from navsim_adapter.foundation.files import finish, read_json
from tests.dipole_vla.small_backbone import spread_adapters

EC = "two_frame_extended_comfort"
PARTS = (1, 4, 128)  # 4 cuts logs


def run(command: str, recipe: str, metric: str = "epdms", **options: object) -> None:
    line = [command, "--config", shipped_recipes() / recipe, "--scorer.metric", metric]
    for name, value in options.items():
        line += [f"--{name.replace('__', '.')}", value]
    assert main([str(word) for word in line]) == 0


def scored(folder: Path, cache: Path, rows: pd.DataFrame, metric: str = "epdms") -> pd.DataFrame:
    """`navsim-adapter score` of rows (token, name, poses), by (token, name)."""
    folder.mkdir(exist_ok=True)
    poses = np.array([np.stack(list(plan)) for plan in rows.poses])
    np.savez(folder / "T.npz", token=rows.token.to_numpy(str), name=rows.name.to_numpy(str), poses=poses)
    line = ["score", "--cache", cache, "--trajectories", folder / "T.npz", "--metric", metric]
    assert adapter([str(word) for word in [*line, "--out", folder / "S.csv"]]) == 0
    return pd.read_csv(folder / "S.csv").set_index(["token", "name"])


def assert_same(rows: pd.DataFrame, expected: pd.DataFrame) -> None:
    """In what both have: a score table also says what the human filter hid."""
    expected = expected[[name for name in expected.columns if "unfiltered" not in name]]
    found = rows.set_index(["token", "name"]).loc[expected.index, expected.columns]
    pd.testing.assert_frame_equal(found, expected, check_dtype=False, rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def policy(loop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The loop's with random adapters, since the few steps of its own move no plan."""
    folder = tmp_path_factory.mktemp("spread") / "policy"
    made = load_policy(loop / "dipole", device="cpu")
    spread_adapters(made.pair, scale=0.3)
    made.save_pretrained(folder, loop / "imitation")
    finish(folder, {"command": "test"})
    return folder


def test_candidates_are_planners_of_their_own(
    loop: Path, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = []
    for size in PARTS:
        monkeypatch.setattr(parts, "PART", size)
        folders = {"scenes": loop / "scenes" / "train", "scorer__cache": loop / "cache" / "train"}
        run("collect", "collect.yaml", policy=policy, candidates=3, omega=1, out=tmp_path / str(size), **folders)
        tables.append(load_from_disk(str(tmp_path / str(size))).to_pandas())
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0])
    rows = tables[0].assign(name=[f"{token} {index}" for token, index in zip(tables[0].token, tables[0]["index"])])
    assert rows[EC].isna().all()
    assert_same(rows, scored(tmp_path, loop / "cache" / "train", rows))


def test_a_setting_is_one_planner_over_the_whole_split(
    loop: Path, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {"scenes": loop / "scenes" / "test", "scorer__cache": loop / "cache" / "test"}
    sweep = {"omega": [0, 2], "candidates": [1, 2], "start_scale": [1], "samples": 2, "choose_on": "null"}
    for size in PARTS:
        monkeypatch.setattr(parts, "PART", size)
        run("evaluate", "evaluate.yaml", policy=policy, out=tmp_path / str(size), **sweep, **folders)
    for name in ("rows.parquet", "plans.parquet"):
        tables = [pd.read_parquet(tmp_path / str(size) / name) for size in PARTS]
        for table in tables[1:]:  # float32 sums in batches of another size: a critic's value near 0 has fewer digits
            pd.testing.assert_frame_equal(table, tables[0], atol=1e-6)
    summaries = [read_json(tmp_path / str(size) / "summary.json")["rows"] for size in PARTS]
    for summary in summaries[1:]:  # batches of another size may round a last digit of a plan
        pd.testing.assert_frame_equal(pd.DataFrame(summary), pd.DataFrame(summaries[0]))

    plans, rows = (pd.read_parquet(tmp_path / "1" / name) for name in ("plans.parquet", "rows.parquet"))
    assert plans[EC].isna().all(), "single plans have no plan of the frame before"
    assert 0 < rows[EC].notna().mean() < 1
    assert rows[EC].nunique() == 2
    rows = rows.assign(name=[f"{p} {w} {n}" for p, w, n in zip(rows.policy, rows.omega, rows.candidates)])
    assert_same(rows, scored(tmp_path, loop / "cache" / "test", rows))

    single = plans[plans.policy == "reference"].assign(name=lambda own: own["index"].astype(str))
    off = scored(tmp_path / "single", loop / "cache" / "test", single)
    mean = off.score.mean()
    reference = next(row for row in summaries[0] if (row["policy"], row["candidates"]) == ("reference", 1))
    assert reference["score_unfiltered"] == pytest.approx(off.score_unfiltered.mean())
    for name, share in reference["overwritten"].items():
        assert share == pytest.approx((off[name] > off[f"unfiltered_{name}"]).mean())
    assert reference["score"] == pytest.approx(mean), "N = 1 is the mean over as many planners as plans were drawn"


@pytest.mark.parametrize("metric", ["pdms", "epdms"])
@pytest.mark.parametrize("command", ["collect", "evaluate"])
def test_shards_batches_and_order_change_no_score(
    loop: Path, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, metric: str
) -> None:
    """Parts of two scenes, by shards in another order, in batches that end within a part; scored in a third order."""
    monkeypatch.setattr(parts, "PART", 2)
    split, out = ("train" if command == "collect" else "test"), tmp_path / "out"
    folders = {"scenes": loop / "scenes" / split, "scorer__cache": loop / "cache" / split}
    asked = {
        "collect": {"candidates": 2, "omega": 1},
        "evaluate": {"omega": [2], "candidates": [1], "start_scale": [1], "samples": 1, "choose_on": "null"},
    }[command]
    for shard, batch_size in (("2/2", 3), ("1/2", 1)):
        more = {"shard": shard, "batch_size": batch_size}
        run(command, f"{command}.yaml", metric, policy=policy, out=out, **asked, **folders, **more)
    if command == "collect":
        rows = load_from_disk(str(out)).to_pandas()
        rows = rows.assign(name=[f"{token} {index}" for token, index in zip(rows.token, rows["index"])])
    else:
        rows = pd.read_parquet(out / "rows.parquet")
        rows = rows.assign(name=[f"{p} {w} {n}" for p, w, n in zip(rows.policy, rows.omega, rows.candidates)])
    assert rows.score.nunique() > 2
    assert_same(rows, scored(tmp_path, loop / "cache" / split, rows.sample(frac=1, random_state=0), metric))
