"""One writer a folder, shards beside each other, nothing left of the killed, and a full disk in one line."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from navsim_adapter.errors import InputError
from navsim_adapter.files import atomic_path, only_writer, sweep, write_text

HOLD = """
import sys, time
from navsim_adapter.files import only_writer
with only_writer(sys.argv[1], sys.argv[2] or None):
    print("held", flush=True)
    sys.stdin.readline()
"""
WRITE = """
import sys
from navsim_adapter.files import atomic_path
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
