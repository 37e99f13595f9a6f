"""A driver in the logs of a split: a file per drive, so that a killed run resumes, then table, summary, page."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from navsim_adapter.closed_loop.page import page_of
from navsim_adapter.closed_loop.run import Run, drive_file, drive_log, read_drive
from navsim_adapter.closed_loop.show import films_of
from navsim_adapter.closed_loop.summary import Rows, summary_of
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import (
    atomic_path,
    finish,
    making,
    read_json,
    verify_listed,
    write_json,
    write_text,
)
from navsim_adapter.foundation.parallel import in_processes

TABLE, SUMMARY, PAGE = "drives.parquet", "summary.json", "index.html"
_ALIKE = ("command", "world", "split", "steps", "replan", "traffic")  # what two runs of the same drives share


def run_closed_loop(
    run: Run, workers: int = 1, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Drive everything that has not been driven; returns the content of `summary.json`.

    workers: processes, a log each.  progress: logs done, and all.  Raises InputError for a folder of other inputs, a
    world that cannot be rendered, and a served driver that fails; what was driven before is kept.
    """
    logs, made_by = list(run.logs), run.made_by()
    if run.beside:
        _check_beside(run, run.beside, made_by)
    with making(run.out, made_by) as is_open:
        if not is_open:
            return dict(read_json(Path(run.out) / SUMMARY))
        for done, _ in enumerate(in_processes(partial(drive_log, run), logs, workers), 1):
            progress(done, len(logs))
        content = _write(run, made_by)
        finish(run.out, made_by)
    return content


def _write(run: Run, made_by: dict[str, Any]) -> dict[str, Any]:
    rows = _rows(run, run.out)
    others = _rows(run, run.beside) if run.beside else None
    with atomic_path(Path(run.out) / TABLE) as aside:
        pq.write_table(pa.Table.from_pylist(rows), aside)
    content = {**made_by, **summary_of(rows, others)}
    write_json(Path(run.out) / SUMMARY, content)
    write_text(Path(run.out) / PAGE, page_of(content, rows, films_of(run, rows, others)))
    return content


def _rows(run: Run, out: str) -> Rows:
    return [read_drive(file)[1] for file in _files(run, out)]


def _files(run: Run, out: str) -> list[Path]:
    """Of all drives, log after log."""
    return [drive_file(out, log, seed) for log in run.logs for seed in run.seeds]


def _check_beside(run: Run, folder: str, made_by: dict[str, Any]) -> None:
    verify_listed(folder)
    other = read_json(Path(folder) / SUMMARY)
    for key in _ALIKE:
        if other.get(key) != made_by[key]:
            raise InputError(
                f"--beside {folder}: {key}: it was driven with {other.get(key)!r}, this run with {made_by[key]!r}; "
                "drives are paired only where everything but the driver is alike"
            )
    for file in _files(run, folder):
        if not file.is_file():
            raise InputError(f"{file}: missing; --beside must hold every drive of this run: the same logs and seeds")
