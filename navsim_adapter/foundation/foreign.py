"""Files of unknown origin, looked at before their readers see them: what would fill memory, hang, or reach elsewhere.

Each check raises InputError with one line, or returns nothing. Pickles have a reader of their own (`unpickle`),
safetensors and JPEG have readers that are safe by themselves.
"""

from __future__ import annotations

import codecs
import sqlite3
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from navsim_adapter.foundation.errors import InputError

MEMBERS, GROWTH, FREE_GROWTH = 100_000, 200, 2**28  # of archives: entries, unpacked/packed, bytes that never matter
YAML_BYTES, ALIASES, DEPTH = 2**20, 100, 40  # of recipes
MAP_BYTES = 2**33


_BEGINNINGS = (
    (b"\x1f\x8b", "a gzip file; unpack it"),
    (b"PK\x03\x04", "a zip archive; unpack it"),
    (b"\xfd7zXZ\x00", "an xz file; unpack it"),
    (b"\x5d\x00\x00", "an LZMA file; unpack it"),
    (b"BZh", "a bzip2 file; unpack it"),
    (b"\x28\xb5\x2f\xfd", "a zstd file; unpack it"),
    (b"\x00\x05\x16\x07", "macOS file attributes, no data"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file itself with git lfs pull"),
    (b"<!doctype html", "an HTML page, as a failed download leaves it"),
    (b"<html", "an HTML page, as a failed download leaves it"),
    (b"<?xml", "an XML page, as a failed download leaves it"),
)


def what_it_is(content: bytes) -> str | None:
    """What a file that its reader does not understand is instead, from its beginning; None if that is not known."""
    if not content:
        return "an empty file"
    if not content.strip(b"\0"):
        return "nothing but zeros, as an interrupted copy leaves it"
    if content[257:262] == b"ustar":
        return "a tar archive; unpack it"
    start = content[:64].removeprefix(codecs.BOM_UTF8).lstrip(b" \t\r\n").lower()
    for raw, name in _BEGINNINGS:
        if content.startswith(raw) or start.startswith(raw):
            return name
    return None


def read_text(path: str | Path) -> str:
    """A text file in UTF-8, or UTF-16 with its mark; a byte order mark is no part of the text.

    Raises OSError and UnicodeDecodeError.
    """
    content = Path(path).read_bytes()
    is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if is_wide else "utf-8-sig")


def data_files(folder: Path, pattern: str) -> list[Path]:
    """Files of a folder in order; hidden ones, such as macOS's `._name`, are no data."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def check_archive(path: str | Path) -> None:
    """A zip (.npz, checkpoint) with plain members of plausible size."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as problem:  # zipfile raises what it likes on damaged files
        reason = " ".join(str(problem).split())[:120] or type(problem).__name__
        raise InputError(f"{path}: not a readable archive ({reason}); copy or make it again") from problem
    if len(members) > MEMBERS:
        raise InputError(f"{path}: {len(members)} entries, at most {MEMBERS} are read; make it again")
    for member in members:
        place = PurePosixPath(member.filename)
        if place.is_absolute() or ".." in place.parts or (member.external_attr >> 16) & 0o170000 == 0o120000:
            raise InputError(f"{path}: entry {member.filename[:80]!r} points outside the archive; do not use this file")
    packed, unpacked = sum(m.compress_size for m in members), sum(m.file_size for m in members)
    if unpacked > FREE_GROWTH and unpacked > GROWTH * packed:
        raise InputError(f"{path}: {packed} bytes would unpack to {unpacked}; do not use this file")


def check_geopackage(path: str | Path, layers: Iterable[str]) -> None:
    """A SQLite file whose layers are plain tables: a view or a virtual table can run for ever, or code of its own."""
    path = Path(path)
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            magic = file.read(16)
        if magic != b"SQLite format 3\0" or size > MAP_BYTES:
            raise InputError(f"{path}: not a GeoPackage of at most {MAP_BYTES >> 30} GiB; replace the map")
        with sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True) as connection:
            tables = dict(
                connection.execute("select lower(name), type || ' ' || lower(coalesce(sql, '')) from sqlite_master")
            )
    except (OSError, sqlite3.Error) as problem:
        raise InputError(f"{path}: cannot be read as a map ({' '.join(str(problem).split())}); replace it") from problem
    for layer in layers:
        kind = tables.get(layer.lower(), "")
        if kind and not kind.startswith("table create table"):
            raise InputError(f"{path}: layer {layer} is no plain table ({kind[:40]!r}); do not use this map")


def check_yaml(path: str | Path) -> None:
    """A recipe of human size: no flood of aliases (they multiply when it is written out again), no endless nesting, and
    no key twice in one mapping, of which YAML would keep the last without a word."""
    path = Path(path)
    try:
        if path.stat().st_size > YAML_BYTES:
            raise InputError(f"{path}: {path.stat().st_size} bytes; a recipe has at most {YAML_BYTES}")
        aliases = depth = 0
        text = path.read_text()
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            aliases += isinstance(event, yaml.AliasEvent)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if aliases > ALIASES or depth > DEPTH:
                raise InputError(f"{path}: more than {ALIASES} aliases or {DEPTH} levels; write the recipe out")
        _check_keys(path, yaml.compose(text, Loader=yaml.SafeLoader), set())
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError) as problem:
        reason = " ".join(str(problem).split())[:200] or type(problem).__name__
        raise InputError(f"{path}: cannot be read as YAML ({reason}); correct it") from problem


def plain_yaml(text: str) -> Any:
    """YAML as plain data, by libyaml where it is installed: a list of 100,000 tokens takes a second, not eight.

    Raises yaml.YAMLError.
    """
    try:
        return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    except RecursionError as problem:
        raise yaml.YAMLError("nested too deeply") from problem


def _check_keys(path: Path, node: yaml.Node | None, looked_at: set[int]) -> None:
    """looked_at: nodes by identity; an alias is the node it stands for."""
    if node is None or id(node) in looked_at:
        return
    looked_at.add(id(node))
    lines: dict[str, int] = {}
    for item in node.value if isinstance(node, yaml.CollectionNode) else ():
        key, value = item if isinstance(node, yaml.MappingNode) else (None, item)
        if isinstance(key, yaml.ScalarNode):
            line = key.start_mark.line + 1
            if key.value in lines:
                raise InputError(f"{path}: key {key.value!r} stands in lines {lines[key.value]} and {line}; keep one")
            lines[key.value] = line
        _check_keys(path, value, looked_at)
