"""The whole data root: maps, logs and pictures of every split, from one seed.

The same arguments give the same bytes, however many processes help. A complete root is left as it is; an
interrupted one resumes with the missing logs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from navsim_adapter.foundation.errors import InputError, did_you_mean
from navsim_adapter.foundation.files import finish, is_complete, making, write_json, write_text
from navsim_adapter.foundation.parallel import in_processes
from navsim_adapter.synthetic.ground import paint
from navsim_adapter.synthetic.log_writer import FUTURE, HISTORY, LogInfo, write_log
from navsim_adapter.synthetic.map_writer import write_maps
from navsim_adapter.synthetic.places import MOST_PLACES, Place, places
from navsim_adapter.synthetic.record import record
from navsim_adapter.synthetic.setting import Site, survey
from navsim_adapter.synthetic.world import Recording

VERSION = 1  # of the generator: raise it when the same seed gives something else
DEFAULT_SCENES = {"trainval": 840, "mini": 60, "test": 96}
SCENES_PER_LOG = {"trainval": 6, "mini": 3, "test": 2}
LAPSES = 2.4  # lapses of the human per ten seconds
FIRST_DAY_US = 1_620_000_000_000_000
SETTINGS = "synthetic.json"
README = """# Synthetic NAVSIM data

Made by `navsim-adapter synth`; `synthetic.json` holds the arguments. Formats are NAVSIM's: logs in `navsim_logs`,
pictures in `sensor_blobs`, maps in `maps`. The places of `mini` and `test` occur in no other split; `sg-one-north`
only in `test`. Everybody drives on the right, in every city.

Pictures exist for the frames that can be the current one of a scene with 4 history and 10 future frames, and for
CAM_F0, CAM_L0 and CAM_R0 only. There are no LiDAR files.
"""


@dataclass(frozen=True)
class Job:
    """The logs of one place: indices in the split."""

    place: Place
    logs: tuple[int, ...]
    frames: int


def synthesize(
    out: str | Path,
    seed: int = 0,
    splits: Mapping[str, int] = DEFAULT_SCENES,
    scenes_per_log: Mapping[str, int] = SCENES_PER_LOG,
    lapses: float = LAPSES,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Write an OPENSCENE_DATA_ROOT to `out`; False if it was complete already.

    splits: split -> number of scenes (at least; every log of a split has the same number).  lapses: how many
    lapses of the human to expect per ten seconds.  progress: called with (logs done, logs in all).
    """
    out = Path(out)
    unknown = [name for name in splits if name not in MOST_PLACES]
    if unknown:
        raise InputError(f"synth: no split called {unknown[0]!r}{did_you_mean(unknown[0], list(MOST_PLACES))}")
    made_by = _arguments(seed, splits, scenes_per_log, lapses)
    if is_complete(out, made_by):
        return False
    jobs = [job for name, scenes in splits.items() for job in jobs_of(name, scenes, scenes_per_log[name])]
    with making(out, made_by, passing=(SETTINGS,)) as is_open:
        if not is_open:
            return False
        write_json(out / SETTINGS, made_by)
        networks: dict[str, list[Any]] = {}
        for job in jobs:
            networks.setdefault(job.place.city.name, []).append(job.place.network(seed))
        write_maps(out / "maps", networks)
        total, done = sum(len(job.logs) for job in jobs), 0
        for _, count in in_processes(partial(_write_place, out, seed, lapses), jobs, workers):
            done += count
            if progress is not None:
                progress(done, total)
        write_text(out / "README.md", README)
        finish(out, made_by)
    return True


def _arguments(
    seed: int, splits: Mapping[str, int], scenes_per_log: Mapping[str, int], lapses: float
) -> dict[str, Any]:
    return {
        "command": "synth",
        "version": VERSION,
        "seed": seed,
        "splits": dict(splits),
        "scenes_per_log": {name: scenes_per_log[name] for name in splits},
        "lapses": lapses,
    }


def jobs_of(split: str, scenes: int, per_log: int) -> list[Job]:
    """The logs of a split, by place."""
    logs = -(-scenes // per_log)
    sites = places(split, logs)
    frames = HISTORY + FUTURE + per_log - 1
    return [Job(place, tuple(range(i, logs, len(sites))), frames) for i, place in enumerate(sites)]


def _write_place(out: Path, seed: int, lapses: float, job: Job) -> int:
    """Make the logs of one place that are not there yet; their number."""
    place, split = job.place, job.place.split
    folder, pictures = out / "navsim_logs" / split, out / "sensor_blobs" / split
    infos = {index: info_of(seed, place, index, job.frames) for index in job.logs}
    missing = {index: info for index, info in infos.items() if not (folder / f"{info.name}.pkl").is_file()}
    if missing:
        net = place.network(seed)
        site, ground = survey(net), paint(net)
        folder.mkdir(parents=True, exist_ok=True)
        pictures.mkdir(parents=True, exist_ok=True)
        for index, info in missing.items():
            recording = record_log(seed, job, index, site, lapses)
            write_log(folder, pictures, info, recording, ground, look_seed(seed, place, index))
    return len(job.logs)


def record_log(seed: int, job: Job, index: int, site: Site, lapses: float) -> Recording:
    current = range(HISTORY - 1, job.frames - FUTURE)
    return record([seed, 2, job.place.number, index], site, job.frames, current, lapses)


def look_seed(seed: int, place: Place, index: int) -> list[int]:
    """Of a log's sensor noise, weather and colours."""
    return [seed, 3, place.number, index]


def info_of(seed: int, place: Place, index: int, frames: int) -> LogInfo:
    """A nuPlan-like name: date, time, vehicle, first and last second."""
    rng = np.random.default_rng([seed, 4, place.number, index])
    second = (place.number * 200 + index) * 900 + int(rng.integers(0, 600))
    start_us = FIRST_DAY_US + second * 1_000_000 + int(rng.integers(0, 1_000_000))
    day = np.datetime64(start_us // 1_000_000, "s").astype(object)
    vehicle = f"veh-{int(rng.choice([12, 28, 35, 47, 53]))}"
    first = int(rng.integers(10, 900))
    name = f"{day:%Y.%m.%d.%H.%M.%S}_{vehicle}_{first:05d}_{first + frames // 2:05d}"
    return LogInfo(name, place.city.name, vehicle, start_us)
