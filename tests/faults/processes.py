"""Real processes of the real commands, forked from one with the imports done, so that a fault costs seconds."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dipole_vla.commands.fit import CHECKPOINTS, LOGS
from navsim_adapter.foundation.files import LOCK

UNSTABLE = {CHECKPOINTS, LOGS}  # not part of a result: times of writing, rows since the last start
LIMIT = 240.0  # s, bounds hangs only


class Process:
    """A command in a process of its own. log: what it printed."""

    def __init__(self, line: Sequence[str | Path], log: Path, prepare: Callable[[], None] = lambda: None):
        self.log = log
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                _run_here([str(word) for word in line], log, prepare)
                code = 0
            except SystemExit as stop:
                code = int(stop.code or 0)
            finally:
                os._exit(code)

    def wait(self, limit: float = LIMIT) -> int:
        """Its exit code, negative for a signal; killed and failed after `limit`."""
        ends = time.monotonic() + limit
        while time.monotonic() < ends:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError(f"still running after {limit} s:\n{self.said()}")

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def said(self) -> str:
        return self.log.read_text() if self.log.is_file() else ""


def _run_here(line: list[str], log: Path, prepare: Callable[[], None]) -> None:
    from dipole_vla import provenance
    from dipole_vla.demo import run_step

    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    provenance.commit = lambda: "0" * 12  # the tree may change while the suite runs
    prepare()
    run_step(line)


def result(path: Path) -> dict[str, str]:
    """Checksums of all that belongs to a result: a file, or a folder without locks, logs and checkpoints."""
    files = [path] if path.is_file() else [p for p in sorted(path.rglob("*")) if p.is_file()]
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if not file.name.startswith(LOCK) and file.relative_to(path).parts[:1] not in {(name,) for name in UNSTABLE}
    }


def survives_kills(line: Sequence[str | Path], out: Path, kills: int, seed: int, clear: Callable[[], None]) -> int:
    """Kill the command at `kills` seeded moments of its run, each followed by a restart; returns how many hit.

    Asserts that every restart ends with the files of an undisturbed run. clear: removes what the command wrote.
    """
    log = out.parent / f"{out.name}.said"
    clear()
    started = time.monotonic()
    assert Process(line, log).wait() == 0, log.read_text()
    lasts, wanted = time.monotonic() - started, result(out)
    assert wanted
    draw, hit = random.Random(seed), 0
    for _ in range(kills):
        clear()
        process = Process(line, log)
        time.sleep(draw.uniform(0.02, 1) * lasts)
        process.signal(signal.SIGKILL)
        killed = process.wait() == -signal.SIGKILL
        hit += killed
        lasts *= 1.0 if killed else 0.7  # the undisturbed run was on a busier machine
        assert Process(line, log).wait() == 0, log.read_text()
        found = result(out)
        assert found == wanted, sorted(
            name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)
        )
        left = [path for path in out.parent.rglob("*.part") if path.is_relative_to(out)] if out.is_dir() else []
        assert not left, left
    return hit
