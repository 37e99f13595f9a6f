"""One driver in one log: what is driven and how, the drive, its figures, its file.

A drive's file holds the car's states and what it was made to follow; the others need not be stored, since the same
world gives the same answer to the same car.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from navsim_adapter import __version__
from navsim_adapter.closed_loop.course import Course, set_course
from navsim_adapter.closed_loop.drive import Drive, Manner, play
from navsim_adapter.closed_loop.drivers import BUILT_IN, Driver
from navsim_adapter.closed_loop.judge import judge, progress, share
from navsim_adapter.closed_loop.worlds import WorldFolder, remake
from navsim_adapter.foundation.files import atomic_path, stamp
from navsim_adapter.foundation.foreign import check_archive
from navsim_adapter.nuplan.maps import load_map
from navsim_adapter.synthetic.synthesize import Job

DRIVES = "drives"
MEASURES = ("human", "pdm_closed")  # whose progress the others' is relative to


@dataclass(frozen=True)
class Run:
    """What is driven, by whom and how.

    seeds: of the sensors' noise and of what a served driver draws, a drive each.  scenes: the first so many logs alone.
    beside: the folder of another driver's finished run of these drives.
    """

    world: str
    split: str
    driver: Driver
    out: str
    manner: Manner = field(default_factory=Manner)
    seeds: tuple[int, ...] = (0,)
    scenes: int | None = None
    beside: str | None = None

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
            "beside": stamp(self.beside) if self.beside else None,
        }

    @cached_property
    def folder(self) -> WorldFolder:
        return WorldFolder.open(self.world)

    @cached_property
    def logs(self) -> dict[str, tuple[Job, int]]:
        """By name."""
        return {self.folder.info(*log).name: log for log in self.folder.logs(self.split)[: self.scenes]}

    def course(self, log: str) -> Course:
        made = remake(self.folder, *self.logs[log])
        return set_course(made, load_map(str(self.folder.path / "maps"), made.info.city), self.manner.steps)


def drive_file(out: str, log: str, seed: int) -> Path:
    return Path(out) / DRIVES / f"{log}_{seed}.npz"


def drive_log(run: Run, log: str) -> None:
    """Drive one log with all the seeds whose files are not there yet."""
    missing = [seed for seed in run.seeds if not drive_file(run.out, log, seed).is_file()]
    if not missing:
        return
    course = run.course(log)
    measures = {who: _metres(course, BUILT_IN[who].drive(course, run.manner, 0)) for who in MEASURES}
    for seed in missing:
        found = run.driver.drive(course, run.manner, seed)
        row = {"log": log, **_circumstances(course), "driver": run.driver.name, "seed": seed}
        row |= _figures(course, run.manner, found, measures)
        with atomic_path(drive_file(run.out, log, seed)) as aside, open(aside, "wb") as file:
            np.savez(file, states=found.states, paths=found.paths, row=json.dumps(row))


def read_drive(path: Path) -> tuple[Drive, dict[str, Any]]:
    """A drive and its row."""
    check_archive(path)
    with np.load(path, allow_pickle=False) as file:
        row = json.loads(str(file["row"]))
        return Drive(file["states"], file["paths"], row["held"]), row


def _metres(course: Course, found: Drive) -> float:
    return progress(course, found.states[:, :3])


def _circumstances(course: Course) -> dict[str, str]:
    setting = course.log.recording.setting
    return {"map": course.log.info.city, "layout": setting.site.net.layout, "situation": setting.situation}


def _figures(course: Course, manner: Manner, found: Drive, measures: Mapping[str, float]) -> dict[str, Any]:
    """score: the challenge's, 0 after an at-fault collision or off the road, else progress relative to the human."""
    verdict = judge(course, play(course, manner.traffic, found.states), found.states)
    own = _metres(course, found)
    relative = {who: share(own, metres) for who, metres in measures.items()}
    return {
        "seconds": round(0.1 * (len(found.states) - 1), 1),
        "score": 0.0 if verdict.is_over else relative["human"],
        **asdict(verdict),
        "progress": relative["human"],
        "progress_pdm_closed": relative["pdm_closed"],
        "metres": own,
        **{f"metres_{who}": metres for who, metres in measures.items()},
        "held": found.held,
    }
