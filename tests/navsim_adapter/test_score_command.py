"""`navsim-adapter score` and `merge` on a tiny world: traffic, shards, resuming, layouts, what has no score."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from navsim_adapter.cli import main
from navsim_adapter.scoring import units
from navsim_adapter.scoring.units import LogUnit
from tests.navsim_adapter.tiny import frame, write_frames, write_log, write_maps

LOGS = ("log-0", "log-1", "log-2")
TOKENS = [f"{log}{index:015d}" for log in (0, 1, 2) for index in (3, 4)]
SUB_SCORES = 9  # of EPDMS


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three logs of two scenes half a second apart, and 24 trajectories of four planners."""
    root = tmp_path_factory.mktemp("world")
    write_maps(root)
    for log in LOGS:
        write_log(root, log)
    write_table(root / "t.npz")
    return root


def write_table(path: Path, tokens: list[str] = TOKENS, **changes: Any) -> Path:
    speeds = {"slow": 3.0, "steady": 10.0, "swerve": 9.0, "stop": 0.0}
    rows = [(token, name) for name in speeds for token in tokens]
    poses = np.zeros((len(rows), 8, 3))
    for row, (token, name) in enumerate(rows):
        poses[row, :, 0] = 0.5 * np.arange(1, 9) * speeds[name]
        if name == "swerve":
            poses[row, :, 1] = 0.4 * np.arange(1, 9) * (1 if token.endswith("3") else -1)
    content = {"token": np.array([token for token, _ in rows]), "name": np.array([name for _, name in rows])}
    np.savez(path, **{**content, "poses": poses, **changes})
    return path


def run(*arguments: Any) -> int:
    return main([str(argument) for argument in arguments])


def score(data: Path, out: Path | str, *more: Any, table: Path | None = None) -> int:
    table = table or data / "t.npz"
    return run("score", "--data", data, "--split", "mini", "--trajectories", table, "--out", out, *more)


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def facts_of(path: Path) -> dict[str, Any]:
    return json.loads(Path(f"{path}.json").read_text())


# -- what a result says ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("traffic", ["log-replay", "constant-velocity", "idm"])
def test_every_traffic_scores_every_row_and_says_so(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], traffic: str
) -> None:
    out = tmp_path / "s.csv"
    assert score(data, out, "--metric", "epdms", "--traffic", traffic) == 0
    assert f"24 of 24 trajectories scored with epdms in {out} (epdms-v2.2, {traffic})" in capsys.readouterr().out
    rows = rows_of(out)
    with np.load(data / "t.npz") as table:
        wanted = list(zip(table["token"].tolist(), table["name"].tolist()))
    assert [(row["token"], row["name"]) for row in rows] == wanted
    for row in rows:  # the second scene of a log has the first before it
        assert (row["two_frame_extended_comfort"] == "") == row["token"].endswith("3")
        assert 0 <= float(row["score"]) <= 1
    swerves = [row["two_frame_extended_comfort"] for row in rows if row["name"] == "swerve"]
    assert swerves == ["", "0.0"] * 3
    facts = facts_of(out)
    assert (facts["metric"], facts["traffic"], facts["human_filter"]) == ("epdms-v2.2", traffic, True)
    assert (facts["split"], facts["data_root"]) == ("mini", str(data.resolve()))
    assert (facts["scenes"], facts["rows"], facts["scored"], facts["not_scored"]) == (6, 24, 24, [])


def test_the_means_are_those_of_the_rows(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "s.csv"
    assert score(data, out, "--metric", "epdms") == 0
    shown = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if " scenes " in line}
    assert list(shown) == ["slow", "steady", "swerve", "stop"]
    for name, (_, count, _, mean, *_, comfort) in shown.items():
        rows = [row for row in rows_of(out) if row["name"] == name]
        assert (int(count), float(mean)) == (6, round(100 * np.mean([float(row["score"]) for row in rows]), 1))
        paired = [float(row["two_frame_extended_comfort"]) for row in rows if row["two_frame_extended_comfort"]]
        assert float(comfort) == round(100 * np.mean(paired), 1)


def test_plans_that_end_too_early_are_remarked_on(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(tmp_path / "t.npz", poses=np.ones((24, 3, 3)))
    assert score(data, tmp_path / "s.csv", table=table) == 0
    assert "24 of 24 trajectories" in (said := capsys.readouterr().err)
    assert "1.5 s" in said


# -- what is there already ---------------------------------------------------------------------------------------------


def others(data: Path, tmp_path: Path) -> dict[str, tuple[list[Any], str]]:
    """Option changes of another run -> arguments, and what differs."""
    slow = np.zeros((24, 8, 3))
    other = write_table(tmp_path / "other.npz", poses=slow)
    assert run("cache", "--data", data, "--split", "mini", "--out", tmp_path / "cache", "--workers", 1) == 0
    cached = ["score", "--cache", tmp_path / "cache", "--trajectories", data / "t.npz"]
    plain = ["score", "--data", data, "--split", "mini", "--trajectories", data / "t.npz"]
    return {
        "table": ([*plain[:-1], other], "trajectories: this table was made with"),
        "metric": ([*plain, "--metric", "epdms"], "metric: this table was made with 'pdms-v1.1', now 'epdms-v2.2'"),
        "cache": (cached, "cache: this table was made with None"),
        "shard": ([*plain, "--shard", "2/3"], "shard: this table was made with None, now '2/3'"),
        "layout": ([*plain, "--format", "official"], "format: this table was made with 'rows', now 'official'"),
    }


def test_a_finished_table_is_not_replaced_by_another(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = others(data, tmp_path)
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "s.csv"
    same = write_table(tmp_path / "copy.npz")  # its content decides, not its name
    for table in (None, same):
        assert score(data, out, table=table) == 0
    before = {path.name: path.read_bytes() for path in out.parent.iterdir()}
    for arguments, told in changes.values():
        assert run(*arguments, "--out", out) == 2
        assert f"{told}" in capsys.readouterr().err
        assert {path.name: path.read_bytes() for path in out.parent.iterdir()} == before
    out.unlink()  # the remedy that was told
    assert run(*changes["metric"][0], "--out", out) == 0


def test_two_shards_do_not_share_a_table(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "s.csv"
    assert score(data, out, "--shard", "1/3") == 0
    before = out.read_bytes()
    assert score(data, out, "--shard", "2/3") == 2
    assert "shard: this table was made with '1/3', now '2/3'" in capsys.readouterr().err
    with units.Parts(tmp_path / "t.csv", "").held(), ProcessPoolExecutor(1, get_context("spawn")) as pool:
        argv = ("--data", data, "--split", "mini", "--trajectories", data / "t.npz", "--out", tmp_path / "t.csv")
        assert pool.submit(run, "score", *argv).result() == 2
    assert out.read_bytes() == before
    assert not (tmp_path / "t.csv").exists()
    assert not (tmp_path / "t.csv.parts").exists()


@pytest.mark.parametrize("command", ["score", "merge", "baseline"])
def test_a_file_of_nobody_knows_what_is_not_replaced(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    out = tmp_path / "mine.csv"
    out.write_text("precious")
    if command == "score":
        line: list[Any] = ["score", "--data", data, "--split", "mini", "--trajectories", data / "t.npz", "--out", out]
    elif command == "merge":
        assert score(data, tmp_path / "1.csv", "--shard", "1/1") == 0
        line = ["merge", out, tmp_path / "1.csv"]
    else:
        assert run("cache", "--data", data, "--split", "mini", "--out", tmp_path / "c", "--workers", 1) == 0
        line = ["baseline", "stopped", "--cache", tmp_path / "c", "--out", out]
    assert run(*line) == 2
    assert f"{out}: is there" in capsys.readouterr().err
    assert out.read_text() == "precious"
    out.unlink()
    for _ in range(2):
        assert run(*line) == 0


def test_a_run_killed_between_its_table_and_its_json_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("navsim_adapter.scoring.result.write_json", killed)
        assert score(data, tmp_path / "s.csv") == 130
    assert (tmp_path / "s.csv").exists()
    assert score(data, tmp_path / "s.csv", "--metric", "epdms") == 2
    assert score(data, tmp_path / "s.csv") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.csv", "s.csv.json"]


def test_pdms_knows_one_traffic(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score(data, tmp_path / "s.csv", "--traffic", "idm") == 2
    assert "--traffic idm: PDMS v1.1 knows log-replay only" in capsys.readouterr().err
    assert score(data, tmp_path / "s.csv", "--traffic", "log-replay") == 0
    assert facts_of(tmp_path / "s.csv")["human_filter"] is False


def test_caches_workers_and_threads_change_nothing(data: Path, tmp_path: Path) -> None:
    assert run("cache", "--data", data, "--split", "mini", "--out", tmp_path / "cache", "--workers", 1) == 0
    plain, cached, many = (tmp_path / f"{name}.csv" for name in ("plain", "cached", "many"))
    arguments = ("--metric", "epdms", "--traffic", "idm")
    assert score(data, plain, *arguments) == 0
    trajectories = ("--trajectories", data / "t.npz", *arguments)
    assert run("score", "--cache", tmp_path / "cache", *trajectories, "--out", cached) == 0
    assert run("score", "--cache", tmp_path / "cache", *trajectories, "--out", many, "--threads", 3) == 0
    assert plain.read_bytes() == cached.read_bytes() == many.read_bytes()


# -- what has no score -------------------------------------------------------------------------------------------------


def _broken_world(root: Path) -> Path:
    """A log whose route the map lacks, beside a good one."""
    write_maps(root)
    write_log(root, "log-0")
    write_frames(root, [frame(index, "log-1", roadblock_ids=["77"]) for index in range(15)], "log-1")
    return root


def test_a_scene_without_cache_is_a_line_and_empty_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, tokens = _broken_world(tmp_path), TOKENS[:4]
    table = write_table(tmp_path / "t.npz", tokens)
    assert score(root, tmp_path / "s.csv", "--metric", "epdms", table=table) == 0
    captured = capsys.readouterr()
    assert "8 of 16 trajectories scored" in captured.out
    lines = [line for line in captured.err.splitlines() if line.startswith("not scored: ")]
    assert [line.split()[3] for line in lines] == tokens[2:]
    for row in rows_of(tmp_path / "s.csv"):
        has_score = row["token"].startswith("0")
        assert (row["score"] != "") == has_score
        assert (list(row.values())[2:] == [""] * (SUB_SCORES + 1)) == (not has_score)
    facts = facts_of(tmp_path / "s.csv")
    assert facts["scored"] == 8
    assert [item["names"] for item in facts["not_scored"]] == [["slow", "steady", "swerve", "stop"]] * 2
    assert sorted(row for item in facts["not_scored"] for row in item["rows"]) == [2, 3, 6, 7, 10, 11, 14, 15]


def test_poses_without_numbers_are_refused_where_there_is_something_to_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, poses = _broken_world(tmp_path), np.zeros((16, 8, 3))
    poses[2, 5, 1] = np.nan  # a scene without cache: nothing is scored anyway
    assert score(root, tmp_path / "s.csv", table=write_table(tmp_path / "t.npz", TOKENS[:4], poses=poses)) == 0
    poses[0, 5, 1] = np.inf
    capsys.readouterr()
    assert score(root, tmp_path / "u.csv", table=write_table(tmp_path / "u.npz", TOKENS[:4], poses=poses)) == 2
    error = capsys.readouterr().err
    assert f"trajectory 'slow' of scene {TOKENS[0]}: poses contain NaN or infinity at step 5" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "u.csv").exists()


def test_a_failing_traffic_costs_its_own_row(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from navsim_adapter.foundation.errors import InputError
    from navsim_adapter.scoring import rows as row_scores
    from navsim_adapter.traffic.idm import idm

    def stumbling(scene: Any, states: np.ndarray) -> Any:
        if scene.token == TOKENS[1] and np.hypot(*(states[-1, :2] - states[0, :2])) < 25:  # who brakes
            raise InputError(f"scene {scene.token}: an assertion")
        return idm(scene, states)

    monkeypatch.setitem(row_scores.POLICIES, "idm", stumbling)
    assert score(data, tmp_path / "s.csv", "--metric", "epdms", "--traffic", "idm") == 0
    assert f"not scored: scene {TOKENS[1]}: an assertion (slow, stop)" in capsys.readouterr().err
    empty = [(row["token"], row["name"]) for row in rows_of(tmp_path / "s.csv") if row["score"] == ""]
    assert empty == [(TOKENS[1], "slow"), (TOKENS[1], "stop")]

    monkeypatch.setitem(row_scores.POLICIES, "idm", lambda scene, states: _fail())
    assert score(data, tmp_path / "s.csv", "--metric", "epdms", "--traffic", "idm") == 2
    error = capsys.readouterr().err
    assert "with the human, whom the penalty filter needs" in error
    assert f"{tmp_path / 's.csv'}: written, but none of its 24 rows has a score" in error
    assert all(row["score"] == "" for row in rows_of(tmp_path / "s.csv"))


def test_an_import_of_one_version_says_so_where_the_other_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = Path(__file__).parents[1] / "data" / "official_cache" / "v2"
    token = next(tree.rglob("metric_cache.pkl")).parent.name
    table, out = write_table(tmp_path / "t.npz", [token]), tmp_path / "s.csv"
    assert run("import", tree, "--out", tmp_path / "c", "--workers", 1) == 0
    assert run("score", "--cache", tmp_path / "c", "--metric", "pdms", "--trajectories", table, "--out", out) == 2
    reason = f"scene {token}: its cache serves epdms-v2.2 alone; import the devkit's other version with --other"
    assert f"not scored: {reason}" in capsys.readouterr().err
    assert [row["score"] for row in rows_of(out)] == [""] * 4


def _fail() -> Any:
    from navsim_adapter.foundation.errors import InputError

    raise InputError("scene: an assertion")


TWO_STAGES = ["--two-stage", "f", "--second-stage-trajectories", "t"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--traffic", "log-replay", "--mapping", "m"], "--mapping: belongs to a two-stage run; add --two-stage"),
        (["--two-stage", "f"], "--two-stage: needs --second-stage-trajectories"),
        ([*TWO_STAGES, "--metric", "pdms"], "the two-stage score is EPDMS"),
        (TWO_STAGES, "f: no such file or folder"),
        (["--threads", "0"], "--threads: must be at least 1, got 0"),
        (["--workers", "0"], "--workers: must be at least 1, got 0"),
        (["--shard", "4/3"], "--shard: must be i/n with 1 <= i <= n"),
        (["--shard", "one"], "--shard: must be i/n"),
        (["--shard", "1/3", "--format", "official"], "--format official: needs all rows"),
        (["--split", "minni"], "no such split (did you mean 'mini'?)"),
        (["--cache", "c"], "--split: the cache holds the scenes; leave --split or --cache out"),
        ([*TWO_STAGES, "--threads", "2"], "--threads: has no effect in two stages; use --workers"),
        (["--ray", "auto", "--workers", "2"], "--workers: the cluster decides how many there are"),
    ],
)
def test_mistakes_are_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert score(data, tmp_path / "s.csv", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nowhere: no such folder"),
        (["--data", "d"], "--data: everything is read from caches; leave --data or --cache out"),
        (["--data", "d", *TWO_STAGES, "--second-stage-cache", "s"], "--data: everything is read from caches"),
        (["--data", "d", *TWO_STAGES], "d: has no folder navsim_logs"),
    ],
)
def test_mistakes_beside_a_cache_are_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    source = ("--cache", "nowhere", "--trajectories", data / "t.npz")
    assert run("score", *source, "--out", tmp_path / "s.csv", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_token_that_is_nowhere_is_named(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_table(tmp_path / "t.npz", [*TOKENS, "f" * 16])
    assert score(data, tmp_path / "s.csv", table=table) == 2
    assert f"1 of 7 tokens are no scene of split mini (first: {'f' * 16})" in capsys.readouterr().err
    assert not (tmp_path / "s.csv").exists()


# -- shards ------------------------------------------------------------------------------------------------------------


def test_merged_shards_are_the_whole_bit_for_bit(data: Path, tmp_path: Path) -> None:
    arguments = ("--metric", "epdms", "--traffic", "idm")
    (tmp_path / "whole").mkdir()
    whole, merged = tmp_path / "whole" / "s.csv", tmp_path / "s.csv"
    assert score(data, whole, *arguments) == 0
    shards = [tmp_path / f"part{index}.csv" for index in (1, 2)]
    for index, path in enumerate(shards, 1):
        assert score(data, path, *arguments, "--shard", f"{index}/2") == 0
    logs = [{row["token"][0] for row in rows_of(path)} for path in shards]
    assert logs == [{"0", "2"}, {"1"}]  # whole logs, so that neighbouring frames stay together
    assert run("merge", merged, shards[1], shards[0]) == 0
    assert merged.read_bytes() == whole.read_bytes()
    assert Path(f"{merged}.json").read_bytes() == Path(f"{whole}.json").read_bytes()


def test_shards_that_do_not_belong_together_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, other, whole = (tmp_path / f"{name}.csv" for name in ("one", "two", "other", "whole"))
    for path, more in ((one, ["1/2"]), (two, ["2/2"]), (other, ["2/2", "--metric", "epdms"])):
        assert score(data, path, "--shard", *more) == 0
    assert score(data, whole) == 0

    def refused(*paths: Path) -> str:
        capsys.readouterr()
        assert run("merge", tmp_path / "out.csv", *paths) == 2
        assert not (tmp_path / "out.csv").exists()
        return capsys.readouterr().err

    assert "shards 2 of 2 are not given" in refused(one)
    assert "is shard 1/2, and so is" in refused(one, _copy(one, tmp_path / "again.csv"))
    assert "was made of other inputs" in refused(one, other)
    assert "is a whole table, not a shard" in refused(whole)
    two.write_text(two.read_text().replace("1.0", "0.5", 1))
    assert "missing or changed since it was written" in refused(one, two)
    Path(f"{two}.json").unlink()
    assert "the shard is unfinished, run it again" in refused(one, two)


def _copy(path: Path, other: Path) -> Path:
    other.write_bytes(path.read_bytes())
    facts = facts_of(path)
    facts["files"] = {other.name: facts["files"][path.name]}
    Path(f"{other}.json").write_text(json.dumps(facts))
    return other


def test_an_input_is_never_the_output(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, shards = write_table(tmp_path / "t.npz"), [tmp_path / f"{index}.csv" for index in (1, 2)]
    before = table.read_bytes()
    assert score(data, f"{tmp_path}/../{tmp_path.name}/t.npz", table=table) == 2
    assert "is an input of this command and would be overwritten" in capsys.readouterr().err
    assert table.read_bytes() == before
    for index, path in enumerate(shards, 1):
        assert score(data, path, "--shard", f"{index}/2") == 0
    before = shards[0].read_bytes()
    assert run("merge", shards[0], *shards) == 2
    assert f"{shards[0]}: is an input of this command" in capsys.readouterr().err
    assert shards[0].read_bytes() == before


def test_a_token_in_no_shard_is_found_when_merging(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(tmp_path / "t.npz", [*TOKENS, "f" * 16])
    shards = [tmp_path / f"{index}.csv" for index in (1, 2)]
    for index, path in enumerate(shards, 1):
        assert score(data, path, "--shard", f"{index}/2", table=table) == 0
    assert run("merge", tmp_path / "s.csv", *shards) == 2
    assert "4 of 28 rows are in no shard (first: row 6 of the trajectories)" in capsys.readouterr().err


# -- interruptions -----------------------------------------------------------------------------------------------------


@pytest.fixture
def scored_logs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the logs that are scored while a test runs."""
    names: list[str] = []
    original: Callable[[LogUnit], Any] = LogUnit.score

    def noted(unit: LogUnit) -> Any:
        names.append(unit.name)
        return original(unit)

    monkeypatch.setattr(LogUnit, "score", noted)
    return names


def test_a_killed_run_goes_on_where_it_was(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scored_logs: list[str]
) -> None:
    (tmp_path / "whole").mkdir()
    assert score(data, tmp_path / "whole" / "s.csv") == 0
    keep = units.Parts.keep

    def killed(self: Any, unit: Any, part: Any) -> None:
        keep(self, unit, part)
        if unit.name == "log-1":
            raise KeyboardInterrupt

    monkeypatch.setattr(units.Parts, "keep", killed)
    out = tmp_path / "s.csv"
    assert score(data, out) == 130
    assert not out.exists()
    monkeypatch.setattr(units.Parts, "keep", keep)
    (tmp_path / "s.csv.parts" / "log-0.npz").write_bytes(b"torn")
    scored_logs.clear()
    assert score(data, out) == 0
    assert scored_logs == ["log-0", "log-2"]
    assert out.read_bytes() == (tmp_path / "whole" / "s.csv").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.csv", "s.csv.json", "whole"]


def test_parts_of_other_inputs_are_not_taken_up(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scored_logs: list[str]
) -> None:
    monkeypatch.setattr(units.Parts, "clear", lambda self: None)
    out = tmp_path / "s.csv"
    assert score(data, out) == 0
    assert score(data, out) == 0
    assert scored_logs == list(LOGS)
    out.unlink()
    assert score(data, out, "--metric", "epdms") == 0
    assert scored_logs == [*LOGS, *LOGS]


def test_parts_of_changed_logs_or_maps_are_not_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scored_logs: list[str]
) -> None:
    monkeypatch.setattr(units.Parts, "clear", lambda self: None)
    write_maps(tmp_path)
    for log in LOGS[:2]:
        write_log(tmp_path, log)
    table = write_table(tmp_path / "t.npz", TOKENS[:4])
    assert score(tmp_path, tmp_path / "s.csv", table=table) == 0
    log = tmp_path / "navsim_logs" / "mini" / "log-1.pkl"
    os.utime(log, ns=(0, 0))
    assert score(tmp_path, tmp_path / "s.csv", table=table) == 0
    assert scored_logs == ["log-0", "log-1", "log-1"]
    os.utime(next((tmp_path / "maps").glob("*/*/map.gpkg")), ns=(0, 0))
    assert score(tmp_path, tmp_path / "s.csv", table=table) == 0
    assert scored_logs[3:] == ["log-0", "log-1"]


def test_epdms_needs_eight_frames_after_and_pdms_ten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place, frames in (("long", 14), ("short", 12)):
        write_maps(tmp_path / place)
        write_log(tmp_path / place, "log-0", frames=frames)
    table = write_table(tmp_path / "t.npz", [f"0{3:015d}"])
    for place in ("long", "short"):
        assert score(tmp_path / place, tmp_path / f"{place}.csv", "--metric", "epdms", table=table) == 0
    assert rows_of(tmp_path / "short.csv") == rows_of(tmp_path / "long.csv")
    assert score(tmp_path / "short", tmp_path / "p.csv", table=table) == 2
    assert "needs 3 frames before, 10 after (8 for EPDMS)" in capsys.readouterr().err


def test_two_writers_leave_one_whole_result(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.csv"
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: score(data, out), range(2))) == [0, 0]
    assert len(rows_of(out)) == 24
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.csv", "s.csv.json"]


# -- layouts -----------------------------------------------------------------------------------------------------------


def test_official_layout_of_one_planner_is_one_file(tmp_path: Path) -> None:
    root, out = _broken_world(tmp_path), tmp_path / "s.csv"
    names = np.full(16, "planner")
    tokens = np.array(TOKENS[:4])
    table = write_table(tmp_path / "t.npz", TOKENS[:4], token=tokens, name=names[:4], poses=_steady(4))
    assert score(root, out, "--format", "official", table=table) == 0
    header, *lines = csv.reader(out.open())
    assert header == [
        "", "token", "valid", "no_at_fault_collisions", "drivable_area_compliance", "ego_progress",
        "time_to_collision_within_bound", "comfort", "driving_direction_compliance", "score",
    ]  # fmt: skip
    assert [line[:3] for line in lines] == [
        *([str(place), token, str(place < 2)] for place, token in enumerate(TOKENS[:4])),
        ["4", "average", "False"],
    ]
    assert all(cell == "" for line in lines[2:4] for cell in line[3:])
    figures = np.array([[float(cell) for cell in line[3:]] for line in (lines[0], lines[1], lines[4])])
    np.testing.assert_allclose(figures[2], figures[:2].mean(axis=0), rtol=1e-15)


def test_official_layout_of_several_planners_is_a_file_each(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.csv"
    assert score(data, out, "--metric", "epdms", "--format", "official") == 0
    names = [f"s_{name}.csv" for name in ("slow", "steady", "swerve", "stop")]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "s.csv.json"])
    header, *lines = csv.reader((tmp_path / "s_slow.csv").open())
    assert header[3:6] == ["no_at_fault_collisions", "drivable_area_compliance", "driving_direction_compliance"]
    assert header[-2:] == ["two_frame_extended_comfort", "score"]
    assert lines[-1][1:3] == ["average_all_frames", "True"]
    comfort = [float(line[-2]) for line in lines[:-1] if line[-2]]
    assert len(comfort) == 3
    assert float(lines[-1][-2]) == pytest.approx(np.mean(comfort))
    assert set(facts_of(out)["files"]) == set(names)


def _steady(count: int) -> np.ndarray:
    poses = np.zeros((count, 8, 3))
    poses[:, :, 0] = 5.0 * np.arange(1, 9)
    return poses


# -- Ray ---------------------------------------------------------------------------------------------------------------


def test_a_missing_ray_names_the_extra(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert score(data, tmp_path / "s.csv", "--ray", "auto") == 2
    assert "--ray: ray is not installed; pip install 'dipole-vla[ray]'" in capsys.readouterr().err


class _TaskError(Exception):
    def __init__(self, cause: Exception):
        self.cause = cause


class _Ray(SimpleNamespace):
    """The five calls of Ray that are used, done at once."""

    exceptions = SimpleNamespace(RayTaskError=_TaskError)
    is_up = False

    def is_initialized(self) -> bool:
        return self.is_up

    def init(self, address: str, **_more: Any) -> None:
        if address == "10.0.0.1:6379":
            raise ConnectionError("Could not find any running Ray instance")
        self.is_up = True

    def shutdown(self) -> None:
        self.is_up = False

    def remote(self, function: Callable[..., Any]) -> Any:
        return SimpleNamespace(remote=lambda unit: _Task(function, unit))

    def wait(self, tasks: list[Any]) -> tuple[list[Any], list[Any]]:
        return tasks[-1:], tasks[:-1]  # last come, first served

    def get(self, task: _Task) -> Any:
        try:
            return task.function(task.unit)
        except Exception as problem:
            raise _TaskError(problem) from problem


class _Task:
    def __init__(self, function: Callable[..., Any], unit: Any):
        self.function, self.unit = function, unit


def test_a_cluster_gives_the_same_table(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ray = _Ray()
    monkeypatch.setitem(sys.modules, "ray", ray)
    here, there = tmp_path / "here.csv", tmp_path / "there.csv"
    assert score(data, here) == 0
    assert score(data, there, "--ray", "auto") == 0
    assert here.read_bytes() == there.read_bytes()
    assert not ray.is_up
    capsys.readouterr()
    assert score(data, there, "--ray", "10.0.0.1:6379") == 2
    assert "--ray 10.0.0.1:6379: no cluster there" in capsys.readouterr().err
    poses = np.full((24, 8, 3), np.nan)
    assert score(data, tmp_path / "nan.csv", "--ray", "auto", table=write_table(tmp_path / "t.npz", poses=poses)) == 2
    assert "poses contain NaN or infinity at step 0" in capsys.readouterr().err
