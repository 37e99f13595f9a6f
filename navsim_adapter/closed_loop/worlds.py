"""A log of a synthetic root made once more from the root's record: the same world, ready to be driven otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from navsim_adapter.foundation.errors import InputError, did_you_mean
from navsim_adapter.foundation.files import read_json
from navsim_adapter.nuplan.logs import read_log
from navsim_adapter.synthetic.ground import Ground, paint
from navsim_adapter.synthetic.log_writer import LogInfo, Look, draw_log
from navsim_adapter.synthetic.setting import survey
from navsim_adapter.synthetic.synthesize import SETTINGS, VERSION, Job, info_of, jobs_of, look_seed, record_log
from navsim_adapter.synthetic.world import Recording

SAME = 1e-6  # m and rad between a log's poses and those that its seed gives


@dataclass(frozen=True)
class WorldFolder:
    """A finished root of `synth` and the settings it was made with."""

    path: Path
    settings: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> WorldFolder:
        """Raises InputError for a folder that is no synthetic world, or one of another version of the generator."""
        path = Path(path)
        if not (path / SETTINGS).is_file():
            raise InputError(
                f"{path}: has no {SETTINGS}, so nothing can be rendered again; give a world of navsim-adapter synth"
            )
        settings = read_json(path / SETTINGS)
        found = settings.get("version") if isinstance(settings, dict) else None
        if found != VERSION:
            raise InputError(
                f"{path / SETTINGS}: version: made by version {found!r} of the generator, this is {VERSION}; make the "
                "world again with navsim-adapter synth"
            )
        return cls(path, settings)

    def logs(self, split: str) -> list[tuple[Job, int]]:
        """The logs of a split, as (place's job, index), sorted by their names."""
        splits = self.settings["splits"]
        if split not in splits:
            raise InputError(f"--split: {self.path} has no split {split!r}{did_you_mean(split, list(splits))}")
        jobs = jobs_of(split, splits[split], self.settings["scenes_per_log"][split])
        found = [(job, index) for job in jobs for index in job.logs]
        return sorted(found, key=lambda log: self.info(*log).name)

    def info(self, job: Job, index: int) -> LogInfo:
        return info_of(self.settings["seed"], job.place, index, job.frames)


@dataclass(frozen=True)
class RemadeLog:
    """What a log was made from: its world, the ground that its cameras see, the look of its pictures."""

    info: LogInfo
    recording: Recording
    ground: Ground
    look: Look


def remake(folder: WorldFolder, job: Job, index: int) -> RemadeLog:
    """Make a log's world again; raises InputError where the log on disk is not the one that the record gives."""
    seed, info = folder.settings["seed"], folder.info(job, index)
    net = job.place.network(seed)
    recording = record_log(seed, job, index, survey(net), folder.settings["lapses"])
    frames, look = draw_log(info, recording, look_seed(seed, job.place, index))
    path = folder.path / "navsim_logs" / job.place.split / f"{info.name}.pkl"
    if not path.is_file():
        raise InputError(f"{path}: missing, though {SETTINGS} says it was made; make the world again")
    logged = np.array([frame.ego_pose[:2] for frame in read_log(path)])
    again = np.array([frame["ego2global_translation"][:2] for frame in frames])
    if logged.shape != again.shape or np.abs(logged - again).max() > SAME:
        raise InputError(
            f"{path}: is not the log that {SETTINGS} gives, so its world cannot be rendered; make it with "
            "navsim-adapter synth"
        )
    return RemadeLog(info, recording, paint(net), look)
