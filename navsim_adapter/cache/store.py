"""Scene caches on disk: a folder with one file per log (`log_file`), an index of tokens, and a manifest.

Opening a folder reads the index only.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from navsim_adapter.cache.log_file import FORMAT, LogFile, check_format
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import MANIFEST, atomic_path, finish, read_json, write_json
from navsim_adapter.scene_cache import SceneCache

INDEX = "index.npz"
SCENES = "scenes.json"
LOGS = "logs"
SUFFIX = ".cache"
_OPEN_FILES = 32


def log_path(folder: str | Path, log_name: str) -> Path:
    return Path(folder) / LOGS / (log_name + SUFFIX)


def write_index(folder: str | Path, logs: Mapping[str, Sequence[str]]) -> None:
    """Write the folder's index: log name -> tokens in the order of its file. Raises InputError on repeated tokens."""
    names = sorted(logs)
    tokens = np.array([token.encode() for name in names for token in logs[name]] or [b""])
    file = np.repeat(np.arange(len(names), dtype=np.int32), [len(logs[name]) for name in names])
    row = np.concatenate([np.arange(len(logs[name]), dtype=np.int32) for name in names] or [np.empty(0, np.int32)])
    order = np.argsort(tokens[: len(row)], kind="stable")
    ordered = tokens[order]
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if len(repeated):
        some = ", ".join(token.decode() for token in repeated[:3])
        raise InputError(f"{folder}: {len(repeated)} tokens occur in more than one scene ({some}); remove the copies")
    sizes = np.array([log_path(folder, name).stat().st_size for name in names], np.int64)
    with atomic_path(Path(folder) / INDEX) as aside, open(aside, "wb") as target:
        np.savez(
            target,
            format=np.array(FORMAT),
            tokens=ordered,
            log=file[order],
            row=row[order],
            names=np.array([name.encode() for name in names] or [b""])[: len(names)],
            bytes=sizes,
        )


def finish_cache(
    folder: Path, logs: Mapping[str, Sequence[str]], facts: Mapping[str, Any], made_by: Mapping[str, Any]
) -> dict[str, Any]:
    """Index, `scenes.json` and manifest, written last; files of logs that no longer belong are removed.

    logs: log name -> tokens.  facts: what else `scenes.json` says; its content is returned.
    """
    for path in (folder / LOGS).glob("*" + SUFFIX):
        if path.name.removesuffix(SUFFIX) not in logs:
            path.unlink()
    write_index(folder, logs)
    content = {**facts, "count": sum(map(len, logs.values())), "logs": len(logs)}
    write_json(folder / SCENES, content)
    finish(folder, made_by)
    return content


def read_scenes(folder: str | Path) -> dict[str, Any]:
    """What `scenes.json` says of a finished cache folder: split, data root, skipped scenes and more."""
    content = read_json(Path(folder) / SCENES)
    try:
        _ = content["split"], content["data_root"], [(item["token"], item["reason"]) for item in content["skipped"]]
    except (KeyError, TypeError) as problem:
        raise InputError(
            f"{Path(folder) / SCENES}: lacks its split, data_root or skipped scenes; make the cache again"
        ) from problem
    return dict(content)


def open_cache(folder: str | Path) -> CacheFolder:
    """A finished cache folder as a mapping token -> SceneCache; scenes are read when asked for.

    Raises InputError for a folder that `navsim-adapter cache` did not finish and for a damaged file.
    """
    return CacheFolder(folder)


class CacheFolder(Mapping[str, SceneCache]):
    """Lazy, read-only and safe to share between threads and to pickle into workers. Iterates in token order."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        index = _read_index(self.folder)
        self._tokens: np.ndarray = index["tokens"]
        self._file, self._row, self._bytes = index["log"], index["row"], index["bytes"]
        self._names = [name.decode() for name in index["names"]]
        self._open: OrderedDict[int, LogFile] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._tokens)

    def __iter__(self) -> Iterator[str]:
        return (token.decode() for token in self._tokens)

    def __contains__(self, token: object) -> bool:
        return isinstance(token, str) and self._find(token) is not None

    def __getitem__(self, token: str) -> SceneCache:
        place = self._find(token)
        if place is None:
            raise KeyError(token)
        return self._log(int(self._file[place])).scene(int(self._row[place]))

    def log_of(self, token: str) -> str:
        """Name of the log that holds a token."""
        place = self._find(token)
        if place is None:
            raise KeyError(token)
        return self._names[int(self._file[place])]

    @property
    def logs(self) -> Sequence[str]:
        return self._names

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]

    def _find(self, token: str) -> int | None:
        wanted = token.encode()
        place = int(np.searchsorted(self._tokens, wanted))
        return place if place < len(self._tokens) and self._tokens[place] == wanted else None

    def _log(self, file: int) -> LogFile:
        """The open file; the oldest of many is closed, since scenes are copies and need it no longer."""
        with self._lock:
            found = self._open.pop(file, None)
            if found is None:
                found = LogFile(log_path(self.folder, self._names[file]), int(self._bytes[file]))
            self._open[file] = found
            if len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)
            return found


def _read_index(folder: Path) -> dict[str, np.ndarray]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; build it with navsim-adapter cache")
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder}: cache is not finished ({MANIFEST} is missing); run navsim-adapter cache again")
    path = folder / INDEX
    try:
        with np.load(path, allow_pickle=False) as content:
            index = {name: content[name] for name in content.files}
        version = int(index["format"])
        parts = (index["tokens"], index["log"], index["row"], index["names"], index["bytes"])
    except Exception as problem:  # numpy and zipfile raise what they like on damaged files
        reason = " ".join(str(problem).split())[:120]
        raise InputError(f"{path}: index cannot be read ({reason}); run navsim-adapter cache again") from problem
    check_format(path, version)
    if len({len(part) for part in parts[:3]}) > 1 or len(parts[3]) != len(parts[4]):
        raise InputError(f"{path}: index is inconsistent; run navsim-adapter cache again")
    return index
