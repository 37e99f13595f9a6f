"""Only plain data comes out of a pickle, and nothing runs on the way."""

from __future__ import annotations

import collections
import gzip
import lzma
import os
import pickle
import pickletools
import struct
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import pytest

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.nuplan.unpickle import Record, loads, read_pickle
from tests.shared import SETS, SHARED, needs_shared

PLAIN = {
    "text": "a",
    "numbers": [1, 2.5, True, None, 10**30, -3],
    "nested": {"tuple": (1, ("x", b"y")), ("a", 1): {1, 2}, "frozen": frozenset({"k"})},
    "ordered": collections.OrderedDict([("z", 1), ("a", 2)]),
    "arrays": [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        np.array(["vehicle", "x"]),
        np.array([], np.int64),
        np.zeros((0, 7)),
        np.array([1, 2], ">i4"),
        np.array([True, False]),
        np.array(["a", None, 3], object),
    ],
    "scalars": [np.float32(0.1), np.int64(3), np.bool_(True), np.str_("s")],
    "path": PosixPath("a/b.jpg"),
}


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_and_arrays_come_back_as_they_were(protocol: int) -> None:
    _same(loads(pickle.dumps(PLAIN, protocol), "x"), PLAIN)


def test_old_numpy_names_are_read() -> None:
    content = pickle.dumps(np.arange(4.0), 2)
    assert b"numpy._core" in content
    _same(loads(content.replace(b"numpy._core", b"numpy.core"), "x"), np.arange(4.0))


def test_two_names_of_one_object_stay_one_object() -> None:
    shared = np.arange(3)
    first, second = loads(pickle.dumps([shared, shared]), "x")
    assert first is second


def test_classes_of_nuplan_become_records_with_attributes() -> None:
    stream = (
        b"\x80\x04\x8c\x1bnuplan.common.actor_state.x\x8c\x05Agent\x93)\x81}(\x8c\x05_size\x8c\x03big"
        b"\x8c\x05other\x8c\x0cnavsim.thing\x8c\x04Enum\x93K\x02\x85Rub."
    )
    record = loads(stream, "x")
    assert isinstance(record, Record)
    assert (record.kind, record._size) == ("nuplan.common.actor_state.x.Agent", "big")
    assert (record.other.kind, record.other.args) == ("navsim.thing.Enum", (2,))
    assert not callable(record)


def _copy_bomb() -> bytes:
    """A list of a thousand, copied a hundred thousand times."""
    start = b"\x80\x04](" + b"N" * 1000 + b"e\x94\x8c\x08builtins\x8c\x04list\x93\x94]("
    return start + b"h\x01h\x00\x85R" * 100_000 + b"e."


def _array_bomb(shape: tuple[int, ...], kind: str = "f8", content: Any = b"12345678") -> bytes:
    """The pickle of a small array with another shape in its state."""
    module, name = ("numpy._core.multiarray", "_reconstruct")

    class Kind:
        def __reduce__(self) -> Any:
            return np.dtype, (kind, False, True), (3, "|" if kind == "O8" else "<", None, None, None, -1, -1, 0)

    class Bomb:
        def __reduce__(self) -> Any:
            made = getattr(__import__(module, fromlist=[name]), name)
            return made, (np.ndarray, (0,), b"b"), (1, shape, Kind(), False, content)

    content_ = pickle.dumps(Bomb(), 4)
    assert any(op.name == "BUILD" for op, _, _ in pickletools.genops(content_))
    return content_


def _hostile(canary: str) -> dict[str, bytes]:
    """Streams that must be refused, by what they try."""
    touch = f"touch {canary}"

    class Call:
        def __init__(self, function: Any, *args: Any):
            self.content = (function, args)

        def __reduce__(self) -> Any:
            return self.content

    def text(value: str) -> bytes:
        return b"\x8c" + bytes([len(value)]) + value.encode()

    def named(module: str, name: str, args: bytes) -> bytes:
        return b"\x80\x04" + text(module) + text(name) + b"\x93" + args + b"R."

    calls: dict[str, Any] = {
        "os.system": Call(os.system, touch),
        "eval": Call(eval, "1"),
        "exec": Call(exec, f"open({canary!r}, 'w')"),
        "open": Call(open, canary, "w"),
        "import": Call(__import__, "os"),
        "getattr": Call(getattr, "text", "format"),
        "bytearray": Call(bytearray, 10),
        "print": Call(print, "x"),
        "nested call": [Call(list, [Call(os.system, touch)])],
        "call as key": {Call(os.getcwd): 1},
        "partial": Call(__import__("functools").partial, os.system, touch),
        "type": Call(type, "T", (), {}),
        "numpy loader": Call(np.load, "x.npy"),
        "dtype of fields": np.zeros(2, [("a", "O"), ("b", "i4")]),
    }
    streams = {name: pickle.dumps(value) for name, value in calls.items()}
    for name in ("system", "popen", "posix_spawn", "remove"):
        streams[f"os.{name}"] = named("os", name, text(touch) + b"\x85")
    for name in (
        "__import__",
        "eval",
        "exec",
        "getattr",
        "setattr",
        "open",
        "compile",
        "globals",
        "breakpoint",
        "object",
    ):
        streams[f"builtins.{name}"] = named("builtins", name, text("os") + b"\x85")
    streams |= {
        "dotted numpy name": named("numpy", "ndarray.__class__", b")"),
        "numpy.ndarray called": named("numpy", "ndarray", b"K\x0a\x85\x85"),
        "subprocess": named("subprocess", "Popen", text(touch) + b"\x85"),
        "looks like nuplan": named("nuplanx.y", "Agent", b")"),
        "copyreg": named("copyreg", "_reconstructor", b")"),
        "global opcode": b"cos\nsystem\n(S'" + touch.encode() + b"'\ntR.",
        "inst opcode": b"(S'" + touch.encode() + b"'\nios\nsystem\n.",
        "obj opcode": b"(cos\nsystem\nS'" + touch.encode() + b"'\no.",
        "persistent id": b"Pabc\n.",
        "extension": b"\x80\x02\x82\x01.",
        "state of a list": b"\x80\x04]}b.",
        "state of a dict": b"\x80\x04}}b.",
        "call of a string": b"\x80\x04" + text("abc") + b")R.",
        "call of a record": named("nuplan.a", "B", b")R)"),
        "items into a string": b"\x80\x04" + text("abc") + b"K\x01a.",
        "unhashable key": b"\x80\x04}]K\x01s.",
        "huge bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
        "huge text": b"\x80\x04\x8d" + struct.pack("<Q", 2**61) + b"x.",
        "huge bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b"x.",
        "huge frame": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"x.",
        "unknown opcode": b"\x80\x04\xff.",
        "stack underflow": b"\x80\x04R.",
        "empty": b"",
        "garbage": bytes(range(256)),
        "key of nested tuples": b"\x80\x04}" + b")" + b"\x85" * 200_000 + b"K\x01s.",
        "set of nested tuples": b"\x80\x04\x8f(" + b")" + b"\x85" * 200_000 + b"\x90.",
        "copies of copies": _copy_bomb(),
        "array larger than its content": _array_bomb((10**7, 10**7)),
        "array of negative size": _array_bomb((-5,)),
        "object array larger than its content": _array_bomb((10**12,), "O8", []),
    }
    return streams


CANARY = "canary"  # a file in the working directory
HOSTILE = _hostile(CANARY)


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_streams_are_refused_and_run_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "log.pkl"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(InputError, match=r"log\.pkl: ") as refused:
        read_pickle(path)
    assert "\n" not in str(refused.value)
    assert not Path(CANARY).exists()


def test_a_huge_memo_index_costs_nothing() -> None:
    assert loads(b"\x80\x04K\x07r" + struct.pack("<I", 2**32 - 1) + b".", "x") == 7


def test_deep_nesting_alone_is_harmless() -> None:
    value = loads(b"\x80\x04]" + b"]" * 50_000 + b"a" * 50_000 + b".", "x")
    depth = 0
    while value:
        value, depth = value[0], depth + 1
    assert depth == 50_000


def test_truncated_files_are_refused_or_nothing(tmp_path: Path) -> None:
    content = pickle.dumps(PLAIN, 4)
    for size in range(0, len(content), 37):
        with pytest.raises(InputError):
            loads(content[:size], "x")


def test_flipped_bits_end_in_data_or_an_input_error() -> None:
    content = pickle.dumps({"a": np.arange(20.0), "names": ["x", "y"] * 5}, 4)
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(content)
        damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        try:
            loads(bytes(damaged), "x")
        except InputError:
            continue


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.pkl: cannot be read"):
        read_pickle(tmp_path / "none.pkl")


@needs_shared
def test_all_logs_and_second_stage_scenes_are_read_as_pickle_reads_them() -> None:
    assert SHARED is not None
    for path in [next((SHARED / name / "navsim_logs" / "mini").glob("*.pkl")) for name in SETS]:
        trusted = pickle.loads(path.read_bytes())  # noqa: S301  the data set is ours
        _same(read_pickle(path), trusted)
    for path in (SHARED / "navsim_dev" / "two_stage" / "synthetic_scene_pickles").glob("*.pkl"):
        scene = read_pickle(path)
        assert scene["extended_detections_tracks"][0].kind.endswith(".DetectionsTracks")


def _same(left: Any, right: Any) -> None:
    if isinstance(right, np.ndarray):
        assert type(left) is np.ndarray
        assert left.dtype.newbyteorder("=") == right.dtype.newbyteorder("=")  # numpy itself may swap
        assert np.array_equal(left, right, equal_nan=right.dtype.kind == "f")
    elif isinstance(right, dict):
        assert type(left) is type(right)
        assert list(left) == list(right)
        for key in right:
            _same(left[key], right[key])
    elif isinstance(right, list | tuple):
        assert type(left) is type(right)
        assert len(left) == len(right)
        for one, other in zip(left, right):
            _same(one, other)
    elif isinstance(right, PosixPath):
        assert str(left) == str(right)
    else:
        assert type(left) is type(right)
        assert left == right or (left != left and right != right)


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local", "pathlib._abc"])
@pytest.mark.parametrize("name", ["PosixPath", "PureWindowsPath", "WindowsPath"])
def test_paths_of_every_python_are_read(module: str, name: str) -> None:
    content = f"c{module}\n{name}\n(Va\nVb\ntR.".encode()
    assert loads(content, "x").parts == ("a", "b")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "an empty file"),
        (bytes(64), "nothing but zeros"),
        (gzip.compress(b"x"), "a gzip file"),
        (lzma.compress(b"x"), "an xz file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "an HTML page"),
        (b"<HTML><body>", "an HTML page"),
        (b"<?xml version='1.0'?><Error>", "an XML page"),
        (b"\x00\x05\x16\x07\x00\x02", "macOS file attributes"),
        (b"PK\x03\x04....", "a zip archive"),
    ],
    ids=range(10),  # a gzip file holds the time it was made
)
def test_what_is_no_pickle_is_named(content: bytes, what: str) -> None:
    with pytest.raises(InputError, match=f"not a readable pickle .{what}"):
        loads(content, "x")
