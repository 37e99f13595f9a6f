"""`navsim-adapter merge`: shards of a score run are the whole, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.navsim_adapter.score_world import (
    TOKENS,
    facts_of,
    rows_of,
    run,
    score,
    write_table,
    write_world,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize(
    "arguments", [("--metric", "pdms"), ("--metric", "epdms"), ("--metric", "epdms", "--traffic", "idm")]
)
def test_merged_shards_are_the_whole_bit_for_bit(data: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
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
