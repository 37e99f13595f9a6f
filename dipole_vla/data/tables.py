"""The two Arrow tables that flow between stages, opened and checked: scenes and scored candidates.

`navsim_adapter.dataset` writes scenes, `dipole_vla.commands.collect` writes candidates. The columns are in
docs/formats.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from PIL import Image

from dipole_vla.advantage import Formed, formed
from dipole_vla.data.columns import VARIANT, Names, column, column_of_text, is_list, numbers, views
from dipole_vla.data.pictures import checksums, read_picture
from dipole_vla.data.splits import SeenByRL
from dipole_vla.forming import Advantage
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import MANIFEST, read_json, stamp, verify_listed
from navsim_adapter.foundation.words import counted
from navsim_adapter.sampling import Sampling, resampled, unlike
from navsim_adapter.trajectories import DEFAULT_INTERVAL

SCENE_COLUMNS = ("token", "log_name", "history", "velocity", "acceleration", "command", "cameras", "future")
MOTION = {"history": (4, 3), "velocity": (2,), "acceleration": (2,)}  # numbers of a row
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
        """folder: as written by `navsim-adapter convert`. sensors: root of the camera paths; default as recorded.

        InputError names a scene that is there twice, one whose motion is not all numbers, and one without command.
        """
        self.folder = Path(folder)
        self.table = open_table(self.folder, SCENE_COLUMNS)
        about = read_json(self.folder / "scenes.json")
        self.split: str = about["split"]
        self.interval = interval_of(about, self.folder / "scenes.json")
        self.sensors = Path(sensors or about["sensors"])
        self.tokens = column_of_text(self.table, "token", self.folder)
        self.log_names = column_of_text(self.table, "log_name", self.folder)
        _refuse_twice(self.tokens, self.folder, "convert again")
        names = Names(self.folder, self.tokens, "correct its log or leave the token out")
        for name, shape in MOTION.items():
            found = numbers(self.table, name, names)[0].shape[1:]
            if found != shape:
                raise InputError(
                    f"{self.folder}: column {name} has rows of shape {found}, {shape} was wanted; make it again"
                )
        no_command = column(self.table, "command").is_null().to_numpy()
        if no_command.any():
            raise names.wrong(int(no_command.argmax()), "column command is null")

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
            relative = (row["cameras"] or {}).get(camera)
            if not relative:
                named = ", ".join(name for name, path in (row["cameras"] or {}).items() if path) or "none"
                raise InputError(
                    f"scene {row['token']}: its log or scene file names no picture of camera {camera} (there are: "
                    f"{named}); convert with --cameras {camera} where the log has it, or use a backbone without it"
                )
            pictures[camera] = read_picture(self.sensors / relative, f"picture of scene {row['token']}")
        return pictures

    @cached_property
    def pictures(self) -> dict[str, str | None]:
        """Checksums by camera of a sample of the pictures, see `data.pictures`."""
        return checksums(self.sensors, self.tokens, lambda chosen: self.table.select(chosen)[:]["cameras"])

    def futures(self, positions: Sequence[int] | None = None) -> np.ndarray:
        """Human futures (scenes, T, 3) float64 as recorded, of all scenes or of these.

        InputError names a scene that has no future, or an unusable one.
        """
        rows = self.table if positions is None else self.table.select(positions)
        tokens = self.tokens if positions is None else [self.tokens[i] for i in positions]
        is_null = column(rows, "future").is_null().to_numpy()
        if is_null.any():
            raise InputError(
                f"{self.folder}: scene {tokens[int(is_null.argmax())]} has no human future; filter with "
                "num_future_frames >= 8, and leave rendered scenes, which have none, to `dipole-vla drive`"
            )
        names = Names(self.folder, tokens, "correct its log or leave the token out")
        futures = np.concatenate(numbers(rows, "future", names)).astype(np.float64)
        _refuse_shape(futures.shape[1:], self.folder, "future")
        return futures

    def futures_at(self, wanted: Sampling, positions: Sequence[int] | None = None) -> np.ndarray:
        """The same at `wanted` times; InputError where the record ends before."""
        futures = self.futures() if positions is None else self.futures(positions)
        recorded = Sampling(futures.shape[1], self.interval)
        if not recorded.lasts(wanted.reach):
            there, asked = unlike(recorded, wanted)
            raise InputError(
                f"{self.folder}: human futures have {there}, the backbone's plans have {asked}; convert with --future "
                f"{wanted.reach:g}, or use a backbone whose plans end at {recorded.reach:g} s or before"
            )
        return resampled(futures, self.interval, wanted)


class CandidateTable:
    """Scored candidates grouped by scene: (scenes, K) arrays in the order of `tokens`."""

    def __init__(self, folder: str | Path, with_variants: bool = False):
        """with_variants: also rows of source variant, which are for a critic: a pair fitted to them would drive so.

        InputError names the scene whose rows are not as those of the others, or hold no finite numbers.
        """
        self.folder = Path(folder)
        table = open_table(self.folder, CANDIDATE_COLUMNS)
        if not with_variants:
            table = _without_variants(table, self.folder)
        self.about: dict[str, Any] = read_json(self.folder / "candidates.json")
        self.interval = interval_of(self.about, self.folder / "candidates.json")
        tokens = np.array(column_of_text(table, "token", self.folder), dtype=object)
        group = rows_per_scene(tokens, self.folder)
        self.tokens: list[str] = tokens[::group].tolist()
        names = Names(self.folder, self.tokens, "collect again", group)
        index = np.sort(np.concatenate(numbers(table, "index", names)).reshape(-1, group))
        is_twice = (index[:, 1:] == index[:, :-1]).any(1)
        if is_twice.any():
            raise names.wrong(int(is_twice.argmax()) * group, "a candidate is there twice (column index)")
        row = numbers(table, "poses", names)[0].shape[1:]
        _refuse_shape(row, self.folder, "poses")
        self.poses = ScenePoses(table.select_columns(["poses"]), (len(self.tokens), group, *row))
        self.columns = CandidateColumns(table, names)
        self.score, self.returns, self.advantage = (self.columns[name] for name in ("score", "return", "advantage"))

    def __iter__(self) -> Iterator[str]:
        return iter(self.tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def sampling(self) -> Sampling:
        """When its plans have poses."""
        return Sampling(self.poses.shape[2], self.interval)

    def refuse_other_sampling(self, own: Sampling) -> None:
        """InputError where they are not as long as the backbone's plans, or have their poses at other times."""
        if self.sampling != own:
            found, wanted = unlike(self.sampling, own)
            raise InputError(
                f"{self.folder}: candidates have {found}, the backbone's plans have {wanted}; use the backbone that "
                "drove them, or collect with this one"
            )

    @property
    def seen(self) -> SeenByRL:
        """What a training on these scores sees."""
        logs = self.about.get("logs")
        noted = None if logs is None else frozenset(logs)
        return SeenByRL(frozenset({self.about["split"]}), frozenset(self.tokens), noted, self.about["allow_eval_split"])

    @property
    def metric(self) -> str | None:
        """By which they were scored, with its version."""
        return self.about.get("metric")

    def formed(self, how: Advantage) -> Formed:
        """G, and which rows count how much, as a training weighs them."""
        return formed(how, self.columns, self.folder, is_critics="critic" in self.about)

    def refuse_other_base(self, base: str) -> str | None:
        """InputError where another base than this one drove as the reference; a remark where the base did not drive,
        or nobody noted who did.

        base: fingerprint of the backbone that is trained.
        """
        omega, driver = self.about.get("omega"), self.about.get("policy_fingerprint")
        drove = self.about.get("base_fingerprint", driver if omega is None else None)
        if omega is not None:
            whose = "" if drove in (None, base) else " of another base"
            return f"{self.folder}: was driven with omega {omega:g} by a guided policy{whose}, not by the base"
        if drove is None:
            return f"{self.folder}: does not say which policy drove; it counts as this base's own"
        if drove != base:
            raise InputError(
                f"{self.folder}: was driven by base {drove[:12]}…, this training's is {base[:12]}…; collect with this "
                "backbone, or train the one that drove"
            )
        return None

    def remark_on_pictures(self, scenes: SceneTable) -> str | None:
        """Where the policy that drove saw other pictures of these very scenes, which is allowed."""
        made_by = read_json(self.folder / MANIFEST)["made_by"]
        saw = made_by.get("pictures") or {}
        others = [name for name, known in saw.items() if known and scenes.pictures.get(name) not in (None, known)]
        if not others or made_by.get("scenes") != stamp(scenes.folder):
            return None
        return f"{self.folder}: who drove saw other pictures of {', '.join(others)} than {scenes.sensors} holds"


class CandidateColumns(Mapping[str, np.ndarray]):
    """Columns of a candidates table that have one value a row, as arrays (scenes, K) of text or float64, read and
    checked when they are first asked for."""

    def __init__(self, table: Any, names: Names):
        self._table, self._names = table, names
        self._read: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._read:
            self._read[name] = self._column(name).reshape(-1, self._names.group)
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        kinds = self._table.data.schema
        return (name for name in kinds.names if not is_list(kinds.field(name).type))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in list(iter(self))

    def _column(self, name: str) -> np.ndarray:
        if name in ("token", "source"):
            return np.array(column_of_text(self._table, name, self._names.folder), dtype=object)
        return np.concatenate(numbers(self._table, name, self._names)).astype(np.float64)


class ScenePoses:
    """Poses (scenes, K, horizon, 3) float32 of a candidates table, read from the mapped file when they are asked for.

    A loader process that gets a copy gets the path of the file.
    """

    def __init__(self, table: Any, shape: tuple[int, ...]):
        """shape: of the whole, of a table whose rows were checked."""
        self.table, self.shape = table, shape
        self._chunks = views(table, "poses", shape[2:])
        self._ends = np.cumsum([len(chunk) for chunk in self._chunks])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        """(K, horizon, 3) of a scene, (scenes, K, horizon, 3) of a slice; other keys read everything first."""
        if isinstance(key, slice) and key.step in (None, 1):
            start, stop, _ = key.indices(len(self))
            return self._read(start, max(start, stop))
        if isinstance(key, int):
            scene = range(len(self))[key]
            return self._read(scene, scene + 1)[0]
        return self._read(0, len(self))[key]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._read(0, len(self)).astype(dtype or np.float32, copy=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return ScenePoses, (self.table, self.shape)

    def _read(self, start: int, stop: int) -> np.ndarray:
        first, last = start * self.shape[1], stop * self.shape[1]
        rows = np.empty((last - first, *self.shape[2:]), np.float32)
        index, done = int(np.searchsorted(self._ends, first, side="right")), 0
        while done < len(rows):
            chunk = self._chunks[index]
            part = chunk[first + done - (self._ends[index] - len(chunk)) :][: len(rows) - done]
            rows[done : done + len(part)] = part
            index, done = index + 1, done + len(part)
        return rows.reshape(stop - start, *self.shape[1:])


def _without_variants(table: Any, folder: Path) -> Any:
    """The rows of another source; the table itself where all are."""
    from datasets import Dataset

    is_variant = pc.fill_null(pc.equal(column(table, "source"), VARIANT), False)
    if not pc.any(is_variant).as_py():
        return table
    kept = table.with_format("arrow")[:].filter(pc.invert(is_variant))
    if not len(kept):
        raise InputError(f"{folder}: every row is of source variant; collect the plans beside them")
    return Dataset(kept)


def rows_per_scene(tokens: np.ndarray, folder: str | Path) -> int:
    """K of a candidates table with these tokens; InputError names the scene whose rows are not K, one after another."""
    starts = np.concatenate([[0], np.flatnonzero(tokens[1:] != tokens[:-1]) + 1])
    sizes = np.diff(starts, append=len(tokens))
    group = int(sizes[0])
    _refuse_twice(tokens[starts].tolist(), Path(folder), "collect again")
    if (sizes != group).any():
        scene = int((sizes != group).argmax())
        raise InputError(
            f"{folder}: scene {tokens[starts[scene]]} has {counted(sizes[scene], 'row')}, the first scene "
            f"{group}; collect again"
        )
    return group


def interval_of(about: Mapping[str, Any], where: Path) -> float:
    """Seconds between poses that the file `where` states; one that does not, as of before it was stated, has the
    benchmark's."""
    interval = about.get("interval", DEFAULT_INTERVAL)
    if not isinstance(interval, int | float) or not 0 < interval < np.inf:
        raise InputError(f"{where}: interval: must be seconds between poses, got {interval!r}; correct the file")
    return float(interval)


def _refuse_shape(shape: tuple[int, ...], folder: Path, name: str) -> None:
    if len(shape) != 2 or shape[1] != 3 or not shape[0]:
        raise InputError(f"{folder}: column {name} has rows of shape {shape}, (poses, 3) was wanted; make it again")


def _refuse_twice(tokens: Sequence[str], folder: Path, remedy: str) -> None:
    """tokens: of scenes; in a candidates table one for each run of its rows."""
    if len(set(tokens)) == len(tokens):
        return
    seen: set[str] = set()
    twice = next(token for token in tokens if token in seen or seen.add(token))  # type: ignore[func-returns-value]
    raise InputError(f"{folder}: scene {twice} is there twice, or its rows are not together; {remedy}")
