"""The two Arrow tables that flow between stages, opened and checked: scenes and scored candidates.

`navsim_adapter.dataset` writes scenes, `dipole_vla.collect` writes candidates. The columns are in docs/formats.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dipole_vla.splits import SeenByRL
from navsim_adapter.errors import InputError
from navsim_adapter.files import read_json, verify_listed

SCENE_COLUMNS = ("token", "log_name", "history", "velocity", "acceleration", "command", "cameras", "future")
CANDIDATE_COLUMNS = ("token", "index", "source", "poses", "score", "return", "advantage")


def open_table(folder: Path, columns: Sequence[str]):
    """A finished Arrow table (`datasets.Dataset`) that has `columns`; InputError says what is missing."""
    from datasets import load_from_disk

    verify_listed(folder)
    table = load_from_disk(str(folder))
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise InputError(f"{folder}: columns {missing} are missing, found {table.column_names}; make the table again")
    if not len(table):
        raise InputError(f"{folder}: the table is empty; check the split and the scene filter that made it")
    return table


class SceneTable:
    """The scenes of one split: what the driver knew (history, command, pictures) and what the human did."""

    def __init__(self, folder: str | Path, sensors: str | Path | None = None):
        """folder: as written by `navsim-adapter convert`. sensors: root of the camera paths; default as recorded."""
        self.folder = Path(folder)
        self.table = open_table(self.folder, SCENE_COLUMNS)
        about = read_json(self.folder / "scenes.json")
        self.split: str = about["split"]
        self.sensors = Path(sensors or about["sensors"])
        self.tokens: list[str] = list(self.table["token"])
        self.log_names: list[str] = list(self.table["log_name"])

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def position(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}

    def row(self, index: int) -> dict[str, Any]:
        return self.table[index]

    def images(self, row: Mapping[str, Any], cameras: Sequence[str]) -> dict[str, Image.Image]:
        """The current pictures of the named cameras; InputError names a file that is missing or cannot be decoded."""
        pictures = {}
        for camera in cameras:
            relative = row["cameras"].get(camera)
            if not relative:
                raise InputError(
                    f"scene {row['token']}: camera {camera} is not in the table; convert with its pictures"
                )
            path = self.sensors / relative
            try:
                with Image.open(path, formats=("JPEG", "PNG")) as picture:  # others run programs, EPS one
                    pictures[camera] = picture.convert("RGB")
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as problem:
                reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
                raise InputError(
                    f"{path}: picture of scene {row['token']} cannot be read ({reason}); "
                    "fetch the file again or leave the token out"
                ) from problem
        return pictures

    def futures(self, positions: Sequence[int] | None = None) -> np.ndarray:
        """Human futures (scenes, 8, 3) float64, of all scenes or of these; InputError names a scene that has none."""
        rows = self.table if positions is None else self.table.select(positions)
        futures = list(rows["future"])
        for token, future in zip(rows["token"], futures):
            if future is None:
                raise InputError(
                    f"{self.folder}: scene {token} has no human future; filter with num_future_frames >= 8, and leave "
                    "rendered scenes, which have none, to `dipole-vla drive`"
                )
        return np.asarray(futures, dtype=np.float64)


class CandidateTable:
    """Scored candidates grouped by scene: (scenes, K) arrays in the order of `tokens`."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        table = open_table(self.folder, CANDIDATE_COLUMNS).with_format("numpy")
        self.about: dict[str, Any] = read_json(self.folder / "candidates.json")
        tokens = np.asarray(table["token"])
        group = rows_per_scene(tokens, self.folder)
        self.tokens: list[str] = tokens[::group].tolist()
        self.poses = np.asarray(table["poses"], dtype=np.float32).reshape(len(self.tokens), group, -1, 3)
        self.score = np.asarray(table["score"], dtype=np.float64).reshape(-1, group)
        self.returns = np.asarray(table["return"], dtype=np.float64).reshape(-1, group)
        self.advantage = np.asarray(table["advantage"], dtype=np.float64).reshape(-1, group)
        for name in ("poses", "score", "advantage"):
            if not np.isfinite(getattr(self, name)).all():
                raise InputError(f"{self.folder}: column {name} holds NaN or infinity; collect again")

    def __iter__(self) -> Iterator[str]:
        return iter(self.tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def seen(self) -> SeenByRL:
        """What a training on these scores sees."""
        logs = self.about.get("logs")
        noted = None if logs is None else frozenset(logs)
        return SeenByRL(frozenset({self.about["split"]}), frozenset(self.tokens), noted, self.about["allow_eval_split"])

    @property
    def informative(self) -> np.ndarray:
        """(scenes,) bool: the groups that training sees."""
        return informative(self.advantage)


def rows_per_scene(tokens: np.ndarray, folder: str | Path) -> int:
    """K of a candidates table with these tokens; InputError where rows are not K per scene, scene after scene."""
    scenes = len(set(tokens.tolist()))
    group = len(tokens) // scenes
    if len(tokens) != group * scenes or (tokens.reshape(-1, group) != tokens[::group, None]).any():
        raise InputError(f"{folder}: rows are not {group} per scene in scene order; collect again")
    return group


def informative(advantage: np.ndarray) -> np.ndarray:
    """(scenes, K) -> (scenes,) bool: groups whose advantages differ. The others would only teach imitation of own
    samples (dipole.md 1.3)."""
    return np.ptp(advantage, axis=1) > 1e-9
