"""One writer a folder, shards beside each other, nothing left of the killed, and a full disk in one line."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from navsim_adapter.foundation import files
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import (
    STARTED,
    atomic_path,
    finish,
    making,
    only_writer,
    read_json,
    sweep,
    write_text,
)

HOLD = """
import sys, time
from navsim_adapter.foundation.files import only_writer
with only_writer(sys.argv[1], sys.argv[2] or None):
    print("held", flush=True)
    sys.stdin.readline()
"""
MAKE = """
import json, sys
from navsim_adapter.foundation.files import making, write_text
folder, made_by, shard, part = sys.argv[1:]
with making(folder, json.loads(made_by), shard=shard or None):
    if part:
        write_text(f"{folder}/parts/{part}", "made")
    print("held", flush=True)
    sys.stdin.readline()
"""
WRITE = """
import sys
from navsim_adapter.foundation.files import atomic_path
with atomic_path(sys.argv[1]) as aside:
    aside.write_text("half")
    print(aside, flush=True)
    sys.stdin.readline()
"""


@contextmanager
def other(program: str, *arguments: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """Another process, which has said its first line and waits."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def test_a_second_writer_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    with other(HOLD, str(tmp_path), "") as (holder, _):
        with pytest.raises(InputError, match=rf"process {holder.pid} is writing here; wait"), only_writer(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with only_writer(tmp_path):
            pass


def test_shards_share_a_folder_each_shard_once(tmp_path: Path) -> None:
    with other(HOLD, str(tmp_path), "1/3"):
        with only_writer(tmp_path, "2/3"):
            pass
        with pytest.raises(InputError, match="is writing here"), only_writer(tmp_path, "1/3"):
            pass
        with pytest.raises(InputError, match="is writing here"), only_writer(tmp_path):
            pass


A, B = {"command": "x", "seed": 0}, {"command": "x", "seed": 1}


def make(folder: Path, made_by: dict, shard: str | None = None) -> bool:
    with making(folder, made_by, shard=shard) as is_open:
        return is_open


@pytest.mark.parametrize("shard", ["", "1/3"])
def test_a_folder_is_free_once_the_run_that_made_nothing_there_is_dead(tmp_path: Path, shard: str) -> None:
    """While it lives the folder is its own, whatever it has made: it is about to write there."""
    with other(MAKE, str(tmp_path / "o"), json.dumps(A), shard, "") as (holder, _):
        for own in (None, "2/3"):
            with pytest.raises(InputError, match="is writing here"):
                make(tmp_path / "o", B, own)
        if shard:
            assert make(tmp_path / "o", A, "2/3"), "a shard of the same run"
        assert read_json(tmp_path / "o" / STARTED) == A
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    for own in (None, "2/3"):
        assert make(tmp_path / "o", B, own)
        assert make(tmp_path / "o", A, own)
    assert read_json(tmp_path / "o" / STARTED) == A


@pytest.mark.parametrize("shard", ["", "1/3"])
def test_a_killed_run_that_had_made_something_keeps_its_folder(tmp_path: Path, shard: str) -> None:
    with other(MAKE, str(tmp_path / "o"), json.dumps(A), shard, "0") as (holder, _):
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    for own in (None, "2/3"):
        with pytest.raises(InputError, match="seed: this folder was made with 0, now 1"):
            make(tmp_path / "o", B, own)
        assert make(tmp_path / "o", A, own)
    assert (tmp_path / "o/parts/0").read_text() == "made"


def test_a_finished_folder_needs_no_lock_and_is_not_taken_over(tmp_path: Path) -> None:
    with making(tmp_path / "o", A) as is_open:
        assert is_open
        finish(tmp_path / "o", A)
    with other(HOLD, str(tmp_path / "o"), ""):
        assert not make(tmp_path / "o", A)
        with pytest.raises(InputError, match="seed: this folder was made with 0, now 1"):
            make(tmp_path / "o", B)


@pytest.mark.parametrize("one", [[A] * 4, [A, B, A, B]])
def test_shards_that_start_at_once_agree_on_one_run(tmp_path: Path, one: list[dict]) -> None:
    """Of two runs that want the same empty folder one gets it whole, and each of its shards does."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", MAKE, str(tmp_path / "o"), json.dumps(made_by), f"{place + 1}/4", str(place)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        for place, made_by in enumerate(one)
    ]  # fmt: skip
    said = [process.stdout.readline() for process in started if process.stdout]  # all are there now, or have failed
    for process in started:
        process.communicate("\n")
    winner = read_json(tmp_path / "o" / STARTED)
    assert [word == "held\n" for word in said] == [made_by == winner for made_by in one]
    assert {int(path.name) for path in (tmp_path / "o/parts").iterdir()} == {
        place for place, made_by in enumerate(one) if made_by == winner
    }


def test_a_lock_file_removed_by_its_last_holder_is_made_again(tmp_path: Path, monkeypatch) -> None:
    """A folder of parts goes with its lock; a run that had opened the file meanwhile must not hold a dead one."""
    take, calls = files._take, []

    def late(file, *arguments) -> None:
        if not calls:  # between opening the file and locking it
            shutil.rmtree(tmp_path / "o")
        calls.append(file)
        take(file, *arguments)

    monkeypatch.setattr(files, "_take", late)
    with only_writer(tmp_path / "o"):
        assert (tmp_path / "o/.lock").read_text().endswith(f"process {os.getpid()}")
    assert len(calls) == 2


def test_only_what_the_killed_left_is_swept_away(tmp_path: Path) -> None:
    with other(WRITE, str(tmp_path / "a")) as (writer, aside):
        sweep(tmp_path.glob("*.part"))
        sweep(tmp_path.glob(".*.part"))
        assert Path(aside).is_file()
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        assert Path(aside).is_file()
        with only_writer(tmp_path):
            assert not Path(aside).exists()
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_names_the_file_and_keeps_the_old_one(tmp_path: Path, number: int) -> None:
    write_text(tmp_path / "a", "old")

    def write() -> None:
        with atomic_path(tmp_path / "a") as aside:
            aside.write_text("half")
            try:
                raise OSError(number, os.strerror(number))
            except OSError as problem:
                raise RuntimeError("a writer's own words") from problem  # as torch and pyarrow wrap it

    with pytest.raises(InputError, match=rf"{tmp_path}/a: .*make room") as told:
        write()
    assert len(str(told.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"
