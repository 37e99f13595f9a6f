"""Writing that survives a kill: aside, synced, renamed; folders end with a manifest written last.

Every output folder of every command holds `manifest.json`: what made it (versions, command, inputs) and the
size and SHA-256 of each file. A folder without it is unfinished. `making` opens one: it skips what is finished, refuses
what other inputs made, and takes over what holds nothing yet. A single file of no such record is `write_once`.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from navsim_adapter.foundation.errors import InputError

MANIFEST = "manifest.json"
STARTED = "stage.json"
RECIPE = "recipe.yaml"
LOCK = ".lock"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary sibling of `path` to write to; it replaces `path` when the block ends well, else it is removed.

    A full disk is an InputError that names `path`; what was there before is untouched.
    """
    path = Path(path)
    held = aside = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held, aside = _open_aside(path)
        yield aside
        with open(aside, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(aside, 0o644)
        os.replace(aside, path)
        sync_folder(path.parent)
    except Exception as problem:
        reason = _no_room(problem)
        if reason is None:
            raise
        raise InputError(f"{path}: {reason}; make room and run the same command again") from problem
    finally:
        if aside is not None:
            aside.unlink(missing_ok=True)
        if held is not None:
            os.close(held)


def _open_aside(path: Path) -> tuple[int, Path]:
    """A new temporary file beside `path`, and the handle whose lock says that its writer lives."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        with suppress(OSError):  # without locks nothing is ever swept away
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.exists(name):
            return handle, Path(name)
        os.close(handle)  # swept away between the two


def sweep(parts: Iterable[Path]) -> None:
    """Remove temporary files whose writer was killed; those being written are left alone."""
    for part in parts:
        with suppress(OSError), part.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()


@contextmanager
def only_writer(folder: str | Path, shard: str | None = None, wait: bool = False) -> Iterator[None]:
    """Hold `folder` against a second run until the block ends or this process dies, however it dies.

    The locks belong to the process (POSIX record locks): children do not inherit them, NFS and Lustre carry them to
    other machines. Their files stay and mean nothing by themselves.

    shard: several runs share the folder, each a shard of its own.  wait: for the others, instead of an InputError.
    """
    with ExitStack() as held:
        _lock(held, Path(folder), shard, wait)
        yield


def _lock(held: ExitStack, folder: Path, shard: str | None, wait: bool) -> IO[str]:
    """Take the locks of `only_writer`; returns the file of the folder's own."""
    own = _locked(held, folder / LOCK, fcntl.LOCK_SH if shard else fcntl.LOCK_EX, wait)
    if shard:
        _locked(held, folder / f"{LOCK}-{shard.replace('/', '-')}", fcntl.LOCK_EX, wait)
    else:
        sweep(folder.rglob("*.part"))
    return own


def _locked(held: ExitStack, path: Path, kind: int, wait: bool) -> IO[str]:
    """The open lock file at `path`; one that its last holder removed meanwhile locks nobody out, and is left."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            file = held.enter_context(path.open("a+"))
            _take(file, kind, wait)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file


def _take(file: IO[str], kind: int, wait: bool = False) -> None:
    path = Path(file.name)
    try:
        fcntl.lockf(file, kind if wait else kind | fcntl.LOCK_NB)
    except OSError as problem:
        if problem.errno not in (errno.EACCES, errno.EAGAIN):
            reason = f"this file system has no locks ({problem.strerror}); mount it with them, or use another"
            raise InputError(f"{path}: {reason}") from problem
        file.seek(0)
        who = file.read(200).strip() or "another process"
        raise InputError(f"{path.parent}: {who} is writing here; wait for it or choose another --out") from problem
    if kind == fcntl.LOCK_EX:
        file.truncate(0)
        file.write(f"{socket.gethostname()}, process {os.getpid()}")
        file.flush()


def write_bytes(path: str | Path, content: bytes) -> None:
    with atomic_path(path) as aside:
        aside.write_bytes(content)


def write_once(path: str | Path, content: bytes) -> None:
    """Write a file that does not say what made it; raises InputError where one of other content is there."""
    path = Path(path)
    if path.exists():
        if not path.is_file() or path.read_bytes() != content:
            raise InputError(f"{path}: is there and holds something else; remove it or choose another output")
        return
    write_bytes(path, content)


def write_text(path: str | Path, content: str) -> None:
    write_bytes(path, content.encode())


def write_json(path: str | Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError, RecursionError) as problem:
        raise InputError(f"{path}: cannot be read as JSON ({problem}); make it again") from problem


def sync_folder(folder: str | Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_stamps(paths: Iterable[str | Path]) -> str:
    """A short hash of what the files are: names, sizes, times of change; their content is not read."""
    facts = [[str(path), os.stat(path).st_size, os.stat(path).st_mtime_ns] for path in sorted(map(str, paths))]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


@contextmanager
def making(
    folder: str | Path,
    made_by: Mapping[str, Any],
    found: Mapping[str, Any] | None = None,
    *,
    shard: str | None = None,
    wait: bool = False,
    passing: Collection[str] = (),
) -> Iterator[bool]:
    """Hold an output folder for the stage that makes it; False, and nothing is held, where it is finished already.

    Raises InputError as `is_made` and `only_writer` do. The stamp is read and written under the lock, so no run takes
    a folder over while another, which has made nothing yet, is about to write there.

    found, passing: as in `is_made`.  shard, wait: as in `only_writer`.
    """
    folder = Path(folder)
    if is_made(folder, made_by, found, passing):
        yield False
        return
    with ExitStack() as held:
        with ExitStack() as stamping:
            if shard:  # one at a time: of two that share the lock, neither could have it alone
                _locked(stamping, folder / f"{LOCK}-stamp", fcntl.LOCK_EX, wait=True)
            lock = _lock(held, folder, shard, wait)
            is_new = _stamp_of(folder) != _plain(made_by)
            if shard and is_new:
                is_made(folder, made_by, found, passing)
                _take(lock, fcntl.LOCK_EX)
            is_open = begin(folder, made_by, found, passing)
            if shard and is_new:
                _take(lock, fcntl.LOCK_SH)
        yield is_open


def is_made(
    folder: str | Path,
    made_by: Mapping[str, Any],
    found: Mapping[str, Any] | None = None,
    passing: Collection[str] = (),
    option: str = "--out",
) -> bool:
    """Whether the same stage already finished an output folder. Nothing is written.

    Raises InputError for a folder in which other inputs have made something, so that one output never mixes two runs.
    A folder that holds nothing but a stamp is free: its run was refused, or killed before it had made anything.

    found: what the inputs were found to be (`file_stamps`). It may change: a finished folder is then made again.
        `finish` must be given both together.
    passing: top-level entries that are no result; they do not keep a folder for the run that left them.
    option: what names the folder.
    """
    folder, wanted = Path(folder), _plain(made_by)
    began = _stamp_of(folder)
    if began is None:
        if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise InputError(f"{folder}: holds files of something else; choose an empty folder for --out")
        return False
    if began == wanted:
        return is_complete(folder, {**wanted, **_plain(found or {})})
    if _holds_results(folder, passing):
        raise InputError(f"{folder}: {differs('this folder', began, wanted)}; remove it or choose another {option}")
    return False


def begin(
    folder: str | Path,
    made_by: Mapping[str, Any],
    found: Mapping[str, Any] | None = None,
    passing: Collection[str] = (),
) -> bool:
    """Stamp an output folder that the caller holds (`making`); False when the same stage already finished it."""
    folder = Path(folder)
    if is_made(folder, made_by, found, passing):
        return False
    if _stamp_of(folder) != _plain(made_by):
        if (folder / STARTED).is_file():
            for name in passing:  # of the run that left nothing else
                _remove(folder / name)
        write_json(folder / STARTED, _plain(made_by))
    (folder / MANIFEST).unlink(missing_ok=True)  # while it is made again it is unfinished
    return True


def _stamp_of(folder: Path) -> Any:
    return read_json(folder / STARTED) if (folder / STARTED).is_file() else None


def _holds_results(folder: Path, passing: Collection[str]) -> bool:
    """Whether a stamped folder holds more than stamp, locks and unfinished files."""
    return any(
        not path.is_dir()
        and not path.name.startswith(".")
        and path.relative_to(folder).parts[0] not in (STARTED, *passing)
        for path in folder.rglob("*")
    )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def finish(folder: str | Path, made_by: Mapping[str, Any], exclude: Collection[str] = ()) -> None:
    """Write the manifest of a finished folder; `made_by` says what made it (command, inputs, versions).

    exclude: names of top-level entries that are not part of the result (checkpoints, logs).
    """
    folder = Path(folder)
    sweep(folder.rglob("*.part"))
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.name not in (MANIFEST, STARTED)
        and not path.name.startswith(LOCK)
        and not path.name.endswith(".part")
        and path.relative_to(folder).parts[0] not in exclude
    }
    write_json(folder / MANIFEST, {"made_by": _plain(made_by), "files": files})


def is_complete(folder: str | Path, made_by: Mapping[str, Any] | None = None) -> bool:
    """Whether a stage finished this folder: manifest there, files of the recorded size, and made by the same inputs."""
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        return False
    manifest = read_json(folder / MANIFEST)
    if made_by is not None and manifest.get("made_by") != _plain(made_by):
        return False
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == facts["bytes"]
        for name, facts in manifest["files"].items()
    )


def verify(folder: str | Path) -> None:
    """Check every recorded checksum of a finished folder; raises InputError naming the first file that differs."""
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder}: not finished ({MANIFEST} is missing); run the command that makes it again")
    for name, facts in read_json(folder / MANIFEST)["files"].items():
        path = folder / name
        if not path.is_file() or sha256(path) != facts["sha256"]:
            raise InputError(f"{path}: missing or changed since it was written; make the folder {folder} again")


def stamp(folder: str | Path) -> str:
    """A short hash of a finished folder's manifest: names the exact input of the next stage."""
    verify_listed(folder)
    return sha256(Path(folder) / MANIFEST)[:16]


def verify_listed(folder: str | Path) -> None:
    """Cheap form of `verify`: the manifest is there and every file has its recorded size."""
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder; run the command that makes it first")
    if not is_complete(folder):
        raise InputError(f"{folder}: not finished or damaged ({MANIFEST}); run the command that makes it again")


def _no_room(problem: BaseException | None) -> str | None:
    """Why a write had no room, however deeply a writer has wrapped the system's answer; None for other problems."""
    while problem is not None:
        if isinstance(problem, OSError) and problem.errno in _FULL:
            return os.strerror(problem.errno).lower()
        problem = problem.__cause__ or problem.__context__
    return None


def _plain(made_by: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(made_by), default=str))


def differs(what: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first thing in which two records of inputs differ: `model.seed: this folder was made with 0, now 1`."""
    key, old, new = _first_difference(found, wanted)
    return f"{key}: {what} was made with {old!r}, now {new!r}"


def _first_difference(found: Any, wanted: Any, key: str = "") -> tuple[str, Any, Any]:
    """What both have comes first: another `format` explains a key that only one of them has."""
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        in_both = found.keys() & wanted.keys()
        for name in sorted(found.keys() | wanted.keys(), key=lambda name: (name not in in_both, name)):
            if found.get(name) != wanted.get(name):
                return _first_difference(found.get(name), wanted.get(name), f"{key}.{name}" if key else name)
    return key, found, wanted
