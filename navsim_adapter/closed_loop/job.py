"""A driver in the logs of a split: one file per drive, so that a killed run resumes, then the table and the summary.

A drive's file holds the car's states and what it was made to follow; the others need not be stored, since the same
world gives the same answer to the same car.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from navsim_adapter import __version__
from navsim_adapter.closed_loop.course import Course, set_course
from navsim_adapter.closed_loop.drive import Drive, Manner, play
from navsim_adapter.closed_loop.drivers import BUILT_IN, Driver
from navsim_adapter.closed_loop.film import film
from navsim_adapter.closed_loop.judge import judge, progress, share
from navsim_adapter.closed_loop.page import page_of
from navsim_adapter.closed_loop.summary import summary_of
from navsim_adapter.closed_loop.worlds import WorldFolder, remake
from navsim_adapter.foundation.files import (
    atomic_path,
    finish,
    making,
    read_json,
    stamp,
    write_bytes,
    write_json,
    write_text,
)
from navsim_adapter.foundation.foreign import check_archive
from navsim_adapter.foundation.parallel import in_processes
from navsim_adapter.nuplan.maps import load_map
from navsim_adapter.synthetic.synthesize import Job as PlaceJob

DRIVES, FILMS, TABLE, SUMMARY, PAGE = "drives", "films", "drives.parquet", "summary.json", "index.html"
FILMED = 2  # of the worst, and of the best
FULL = "human", "pdm_closed"  # whose progress the others' is relative to


@dataclass(frozen=True)
class Run:
    """What is driven, by whom and how.

    seeds: of the sensors' noise and of what a served driver draws, a drive each.  scenes: the first so many logs alone.
    """

    world: str
    split: str
    driver: Driver
    out: str
    manner: Manner = field(default_factory=Manner)
    seeds: tuple[int, ...] = (0,)
    scenes: int | None = None

    def made_by(self) -> dict[str, Any]:
        """What decides the result. Where a served driver listens does not."""
        return {
            "command": "navsim-adapter closed-loop",
            "version": __version__,
            "world": stamp(self.world),
            "split": self.split,
            "driver": self.driver.name,
            **asdict(self.manner),
            "seeds": list(self.seeds),
            "scenes": self.scenes,
        }

    def logs(self) -> list[tuple[PlaceJob, int]]:
        logs = WorldFolder.open(self.world).logs(self.split)
        return logs[: self.scenes]

    def file(self, log: str, seed: int) -> Path:
        return Path(self.out) / DRIVES / f"{log}_{seed}.npz"

    def files(self) -> list[Path]:
        """Of all drives, log after log."""
        folder = WorldFolder.open(self.world)
        return [self.file(folder.info(*log).name, seed) for log in self.logs() for seed in self.seeds]


def run_closed_loop(
    run: Run, workers: int = 1, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Drive everything that has not been driven; returns the content of `summary.json`.

    workers: processes, a log each.  progress: logs done, and all.  Raises InputError for a folder of other inputs, a
    world that cannot be rendered, and a served driver that fails; what was driven before is kept.
    """
    logs = run.logs()
    with making(run.out, run.made_by()) as is_open:
        if not is_open:
            return dict(read_json(Path(run.out) / SUMMARY))
        for done, _ in enumerate(in_processes(partial(drive_log, run), logs, workers), 1):
            progress(done, len(logs))
        rows = [read_drive(path)[1] for path in run.files()]
        with atomic_path(Path(run.out) / TABLE) as aside:
            pq.write_table(pa.Table.from_pylist(rows), aside)
        content = {**run.made_by(), **summary_of(rows)}
        write_json(Path(run.out) / SUMMARY, content)
        write_text(Path(run.out) / PAGE, page_of(content, rows, _films(run, rows)))
        finish(run.out, run.made_by())
    return content


def drive_log(run: Run, log: tuple[PlaceJob, int]) -> None:
    """All seeds of one log that are not there yet."""
    name = WorldFolder.open(run.world).info(*log).name
    missing = [seed for seed in run.seeds if not run.file(name, seed).is_file()]
    if not missing:
        return
    course = course_of(run, log)
    metres = [progress(course, BUILT_IN[who].drive(course, run.manner, 0).states[:, :3]) for who in FULL]
    for seed in missing:
        found = run.driver.drive(course, run.manner, seed)
        row = {"log": name, **_circumstances(course), "driver": run.driver.name, "seed": seed}
        row |= _figures(course, run.manner, found, dict(zip(FULL, metres)))
        with atomic_path(run.file(name, seed)) as aside, open(aside, "wb") as file:
            np.savez(file, states=found.states, paths=found.paths, row=json.dumps(row))


def course_of(run: Run, log: tuple[PlaceJob, int]) -> Course:
    folder = WorldFolder.open(run.world)
    made = remake(folder, *log)
    return set_course(made, load_map(str(folder.path / "maps"), made.info.city), run.manner.steps)


def read_drive(path: Path) -> tuple[Drive, dict[str, Any]]:
    """A drive and its row."""
    check_archive(path)
    with np.load(path, allow_pickle=False) as file:
        row = json.loads(str(file["row"]))
        return Drive(file["states"], file["paths"], row["held"]), row


def _films(run: Run, rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, Path]]:
    """The two worst and the two best drives, of different logs: (caption, file)."""
    logs = {WorldFolder.open(run.world).info(*log).name: log for log in run.logs()}
    order = sorted(rows, key=lambda row: (row["score"], row["progress"], row["metres"]))
    each = list({row["log"]: row for row in reversed(order)}.values())[::-1]  # the worst drive of each log
    films = []
    for kind, row in [*(("worst", row) for row in each[:FILMED]), *(("best", row) for row in each[FILMED:][-FILMED:])]:
        path = Path(run.out) / FILMS / f"{kind}_{row['log']}_{row['seed']}.webp"
        caption = f"{kind}: {row['layout']}, {row['situation']}, score {100 * row['score']:.0f}"
        if not path.is_file():
            found, _ = read_drive(run.file(row["log"], row["seed"]))
            shown = film(course_of(run, logs[row["log"]]), run.manner, [(run.driver.name, found)])
            write_bytes(path, shown)
        films.append((f"{caption} ({row['log']}, seed {row['seed']})", path))
    return films


def _circumstances(course: Course) -> dict[str, str]:
    setting = course.log.recording.setting
    return {"map": course.log.info.city, "layout": setting.site.net.layout, "situation": setting.situation}


def _figures(course: Course, manner: Manner, found: Drive, metres: Mapping[str, float]) -> dict[str, Any]:
    """score: the challenge's, 0 after an at-fault collision or off the road, else progress relative to the human."""
    verdict = judge(course, play(course, manner.traffic, found.states), found.states)
    own = progress(course, found.states[:, :3])
    relative = {who: share(own, metres[who]) for who in FULL}
    return {
        "seconds": round(0.1 * (len(found.states) - 1), 1),
        "score": 0.0 if verdict.is_over else relative["human"],
        **asdict(verdict),
        "progress": relative["human"],
        "progress_pdm_closed": relative["pdm_closed"],
        "metres": own,
        **{f"metres_{who}": metres[who] for who in FULL},
        "held": found.held,
    }
