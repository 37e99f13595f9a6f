"""Scene tables of logs in the 123D layout, in the columns of NAVSIM's.

The instants are NAVSIM's: now, the three half seconds before it, and the human's drive after it. Now is always a frame,
with its own time, token and pictures: every half second from the log's first frame, or what the filter names. At the
other instants the frame no further than `SAME_INSTANT` away is taken; where there is none, as in logs of 12 or 15 Hz,
pose and motion lie on the straight line between the frames around it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from navsim_adapter import __version__
from navsim_adapter.cache.build import relative_poses
from navsim_adapter.cache.folder import describe
from navsim_adapter.dataset import DEFAULT, Contents, Found, write_table
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import write_bytes
from navsim_adapter.logs_123d import EGO, SAME_INSTANT, Log, find_logs, read_log
from navsim_adapter.metric.history import HISTORY
from navsim_adapter.nuplan.scenes import SceneFilter, absent
from navsim_adapter.trajectories import DEFAULT_INTERVAL

PICTURES = "pictures"
SCORERS = ("box_detections_se3", "traffic_light_detections")  # modalities that scoring would need


def convert_123d(
    root: str | Path,
    split: str,
    chosen: SceneFilter,
    out: str | Path,
    progress: Callable[[int], None] | None = None,
    contents: Contents = DEFAULT,
    sensors: str | Path | None = None,
) -> dict[str, Any]:
    """Write the scenes of `root/logs/split` as `dataset.convert` writes those of NAVSIM's logs.

    chosen: by NAVSIM's rules, but `has_route`, which these logs do not know. Tokens are the frames' own: nuPlan's where
        the log has them, else 123D's UUIDs.
    contents: its cameras are NAVSIM's names (CAM_F0 is pcam_f0, or ftcam_f0) or 123D's own; none for no pictures.
    sensors: what the paths of pictures are relative to; by default what py123d's environment says. Pictures inside
        the log are written to `out/pictures`.
    The content of `scenes.json` also has `lacks`, what a scorer would need and these logs do not have.
    """
    folders = find_logs(Path(root), split, chosen.log_names)
    logs = _Logs(folders, split, chosen, contents, Path(out))
    made_by = {
        "command": "navsim-adapter convert --format 123d",
        "version": __version__,
        "split": split,
        "filter": describe(chosen),
        "data_root": str(Path(root).resolve()),
        **contents.record(),
    }

    def about(tokens: set[str], names: set[str]) -> dict[str, Any]:
        known = {folder.name for folder in folders} | names
        return {
            "split": split,
            "data_root": made_by["data_root"],
            "sensors": logs.sensors(sensors),
            "filter": made_by["filter"],
            "absent": absent(chosen, known, tokens),
            "interval": contents.interval,
            "lacks": sorted({*logs.lacking, "roadblock route", "NAVSIM's map layers"}),
        }

    files = [path for folder in folders for path in (folder / "sync.arrow", folder / f"{EGO}.arrow") if path.is_file()]
    return write_table(Path(out), made_by, files, logs.scenes(), about, contents, progress, beside=(PICTURES,))


class _Logs:
    """Logs one after another, and what is found out about them on the way."""

    def __init__(self, folders: Sequence[Path], split: str, chosen: SceneFilter, contents: Contents, out: Path):
        self.folders, self.split, self.chosen, self.contents, self.out = folders, split, chosen, contents, out
        self.lacking: set[str] = set()
        self._kinds: dict[type, str] = {}  # of a picture's value -> the data set of the first such log

    def scenes(self) -> Iterator[Found]:
        count = 0
        for folder in self.folders:
            log = read_log(folder, self.contents.cameras)
            self.lacking |= {name for name in SCORERS if not (folder / f"{name}.arrow").is_file()}
            for frame in now_frames(log, self.chosen, self.contents):
                if self.chosen.max_scenes is not None and count >= self.chosen.max_scenes:
                    return
                count += 1
                yield self._found(log, frame)
        if not count:
            before = DEFAULT_INTERVAL * (self.chosen.num_history_frames - 1)
            raise InputError(
                f"{self.folders[0].parent}: no scene with {before:g} s before and "
                f"{seconds_ahead(self.chosen, self.contents):g} s after it; check --filter, --future and the logs"
            )

    def _found(self, log: Log, frame: int) -> Found:
        now = log.time_us[frame]
        past = now + np.arange(1 - HISTORY, 1) * round(DEFAULT_INTERVAL * 1e6)
        ahead = now + np.round(np.arange(1, self.contents.poses + 1) * self.contents.interval * 1e6).astype(np.int64)
        poses, motion, problem = log.at(np.concatenate([past, ahead]))
        token, source = log.tokens[frame], f"log {log.name}"
        return Found(source, token, log.name, problem, lambda: self._row(log, frame, poses, motion[:HISTORY]))

    def _row(self, log: Log, frame: int, poses: np.ndarray, motion: np.ndarray) -> dict[str, Any]:
        local = relative_poses(log.poses[frame], poses)
        history = local[:HISTORY]
        history[-1] = 0.0  # the current pose in its own frame, free of rounding
        return {
            "token": log.tokens[frame],
            "log_name": log.name,
            "map": log.place,
            "split": self.split,
            "timestamp_us": int(log.time_us[frame]),
            "command": log.command(frame),
            "velocity": motion[-1, :2],
            "acceleration": motion[-1, 2:],
            "history": history,
            "history_velocity": motion[:, :2],
            "history_acceleration": motion[:, 2:],
            "cameras": {name: self._picture(log, frame, name) for name in self.contents.columns},
            "future": local[HISTORY:],
        }

    def _picture(self, log: Log, frame: int, camera: str) -> str | None:
        """Path of a picture, which is written where the log holds the file itself."""
        content = log.pictures[camera](frame) if camera in log.pictures else None
        if content is None:
            return None
        self._kinds.setdefault(type(content), log.dataset)
        if isinstance(content, str):
            return content
        kind = "png" if content.startswith(b"\x89PNG") else "jpg"
        relative = f"{log.folder.name}/{camera}/{log.time_us[frame]}.{kind}"  # no words of the file: they may be a path
        write_bytes(self.out / PICTURES / relative, content)
        return relative

    def sensors(self, given: str | Path | None) -> str:
        """What the paths are relative to."""
        if len(self._kinds) > 1:
            raise InputError("cameras: some logs hold pictures and others paths; convert these splits apart")
        if str not in self._kinds:
            return str((self.out / PICTURES).resolve())
        if given is None:
            from py123d.common.runtime import get_dataset_paths

            given = get_dataset_paths().get_sensor_root(self._kinds[str])
        if given is None:
            raise InputError(
                f"--sensors: logs of {self._kinds[str]} name pictures by path; give the folder these are relative to"
            )
        return str(Path(given).resolve())


def seconds_ahead(chosen: SceneFilter, contents: Contents) -> float:
    """Of a log that a scene must have after it."""
    return max(chosen.num_future_frames * DEFAULT_INTERVAL, contents.poses * contents.interval)


def now_frames(log: Log, chosen: SceneFilter, contents: Contents) -> Iterator[int]:
    """Frames that are a scene's now: those of the filter's tokens, else every half second from the log's first."""
    half = round(DEFAULT_INTERVAL * 1e6)
    first = log.time_us[0] + max(chosen.num_history_frames, HISTORY) * half - half
    last = log.time_us[-1] - round(seconds_ahead(chosen, contents) * 1e6)
    if chosen.tokens is not None:
        frames = sorted(log.position[token] for token in chosen.tokens & log.position.keys())
    else:
        start = log.time_us[0] + (chosen.num_history_frames - 1) * half
        grid = np.arange(start, last + SAME_INSTANT + 1, chosen.interval * half)
        after = np.clip(np.searchsorted(log.time_us, grid), 1, len(log.time_us) - 1)
        is_nearer = grid - log.time_us[after - 1] < log.time_us[after] - grid
        frames = sorted(set(np.where(is_nearer, after - 1, after).tolist()))
    for frame in frames:
        if first - SAME_INSTANT <= log.time_us[frame] <= last + SAME_INSTANT:
            yield frame
