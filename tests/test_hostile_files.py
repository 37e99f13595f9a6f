"""Files made to do harm, of every kind we read: refused in one line, no code run, memory bounded, soon."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import sqlite3
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from navsim_adapter.foundation.errors import InputError

MOST_MEMORY = 400 * 2**20  # what reading any one of them may add to the process


@pytest.fixture
def canary(tmp_path: Path, monkeypatch) -> Path:
    """A file that appears as soon as a payload runs `touch canary` or writes to it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "canary"


def refused(read: Callable[[], object], canary: Path, *words: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError) as told:
        read()
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_MEMORY
    text = str(told.value)
    assert len(text.splitlines()) == 1
    assert len(text) < 600
    for word in words:
        assert word in text
    assert not canary.exists()


# -- pickles -----------------------------------------------------------------------------------------------------------

CALLS = [
    "posix system", "os system", "os popen", "os execv", "subprocess Popen", "subprocess check_output",
    "subprocess run",
    "builtins eval", "builtins exec", "builtins compile", "builtins __import__", "builtins open", "builtins getattr",
    "builtins breakpoint", "builtins globals", "builtins type", "__builtin__ eval", "importlib import_module",
    "shutil rmtree", "runpy run_path", "pty spawn", "ctypes CDLL", "code interact", "operator attrgetter",
    "operator methodcaller", "functools partial", "types FunctionType", "types CodeType", "pickle loads",
    "marshal loads",
    "numpy load", "numpy.testing._private.utils runstring", "torch load", "torch.storage _load_from_bytes",
    "timeit timeit", "webbrowser open", "multiprocessing.util spawnv_passfds", "datetime timedelta",
]  # fmt: skip


def by_global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n(S'touch canary'\ntR.".encode()


def by_stack_global(module: str, name: str) -> bytes:
    words = b"".join(b"\x8c" + bytes([len(w)]) + w.encode() for w in (module, name))
    return b"\x80\x04" + words + b"\x93\x8c\x0ctouch canary\x85R."


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("write", [by_global, by_stack_global])
def test_pickles_that_call_functions(call: str, write, canary: Path) -> None:
    from navsim_adapter.nuplan.unpickle import read_pickle

    Path("x.pkl").write_bytes(write(*call.split()))
    refused(lambda: read_pickle("x.pkl"), canary, "x.pkl")


PICKLES = {
    "INST": b"(S'touch canary'\niposix\nsystem\n.",
    "OBJ": b"(cposix\nsystem\nS'touch canary'\no.",
    "NEWOBJ": b"\x80\x02cposix\nsystem\nS'touch canary'\n\x85\x81.",
    "extension registry": b"\x80\x02\x82\x01.",
    "persistent id": b"Pcanary\n.",
    "attribute chain": b"\x80\x04\x8c\x08builtins\x8c\x0beval.__self__\x93.",
    "string of 2^62 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x.",
    "frame of 2^63 bytes": b"\x80\x04\x95" + struct.pack("<Q", 2**63) + b"N.",
    "a million lists in each other": b"]" * 10**6 + b"a" * (10**6 - 1),
    "negative length": b"T\xff\xff\xff\xffx.",
    "no end": b"\x80\x04]\x94",
    "nothing": b"",
    "noise": bytes(range(256)),
    "array larger than its bytes": pickle.dumps(np.zeros(1)).replace(b"K\x01\x85", b"J\xff\xff\xff\x7f\x85"),
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_of_other_tricks(name: str, canary: Path) -> None:
    from navsim_adapter.nuplan.unpickle import read_pickle

    Path("x.pkl").write_bytes(PICKLES[name])
    refused(lambda: read_pickle("x.pkl"), canary, "x.pkl")


# -- archives: trajectory tables and training checkpoints --------------------------------------------------------------


class Touch:
    def __reduce__(self):
        return os.system, ("touch canary",)


def arrays(**content: np.ndarray) -> dict[str, bytes]:
    entries = {}
    for name, array in content.items():
        file = io.BytesIO()
        np.save(file, array, allow_pickle=True)
        entries[f"{name}.npy"] = file.getvalue()
    return entries


def zipped(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


def linked() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        link = zipfile.ZipInfo("token.npy")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    return file.getvalue()


PLAIN = arrays(token=np.array(["a"]), name=np.array(["b"]))
SHAPE = b"{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999999,), }"
HUGE = b"\x93NUMPY\x01\x00v\x00" + SHAPE.ljust(117) + b"\n"
TABLES = {
    "objects": lambda: zipped(arrays(token=np.array([Touch()], object))),
    "a pickle for an array": lambda: zipped({"token.npy": pickle.dumps(Touch())}),
    "larger than its bytes": lambda: zipped({"token.npy": HUGE}),
    "bomb": lambda: zipped({"token.npy": bytes(2**29)}, zipfile.ZIP_DEFLATED),
    "a path upwards": lambda: zipped({**PLAIN, "../../canary": b"x"}),
    "an absolute path": lambda: zipped({**PLAIN, "/tmp/canary": b"x"}),
    "a link": linked,
    "cut": lambda: zipped(PLAIN)[:-30],
    "a pickle": lambda: pickle.dumps(Touch()),
    "nothing": lambda: b"",
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_trajectory_tables(name: str, canary: Path) -> None:
    from navsim_adapter.trajectories import read_trajectories

    Path("x.npz").write_bytes(TABLES[name]())
    refused(lambda: read_trajectories("x.npz"), canary, "x.npz")


CHECKPOINTS = {
    "a call": lambda: zipped({"x/data.pkl": pickle.dumps(Touch(), 2), "x/version": b"3\n", "x/byteorder": b"little"}),
    "an old torch file": lambda: pickle.dumps(Touch(), 2),
    "a flipped bit": lambda: zipped({"x/data.pkl": b"\x80\x02}.", "x/version": b"3"}).replace(b"\x02}.", b"\x02].", 1),
    "a path upwards": lambda: zipped({"../data.pkl": b"\x80\x02}."}),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_training_checkpoints_are_skipped_with_a_word(name: str, canary: Path, capsys) -> None:
    from dipole_vla.training.checkpoints import newest_checkpoint

    Path("step=00000002.ckpt").write_bytes(CHECKPOINTS[name]())
    assert newest_checkpoint(Path()) is None
    assert "damaged" in capsys.readouterr().out
    assert not canary.exists()


# -- safetensors -------------------------------------------------------------------------------------------------------


def safetensors(header: bytes, body: bytes = bytes(8), length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def tensor(**changes) -> bytes:
    return json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}).encode()


TENSORS = {
    "header of 2^62 bytes": safetensors(b"{}", length=2**62),
    "header beyond the file": safetensors(tensor(), length=10**6),
    "no JSON": safetensors(b"import os"),
    "deep JSON": safetensors(b"[" * 10**5),
    "shape beyond the body": safetensors(tensor(shape=[2**40])),
    "product that overflows": safetensors(tensor(shape=[2**40, 2**40])),
    "negative shape": safetensors(tensor(shape=[-2])),
    "offsets beyond the body": safetensors(tensor(data_offsets=[0, 10**9])),
    "offsets backwards": safetensors(tensor(data_offsets=[8, 0])),
    "unknown dtype": safetensors(tensor(dtype="PY")),
    "a hole": safetensors(tensor(), bytes(64)),
    "a pickle": pickle.dumps(Touch()),
}


@pytest.mark.parametrize("name", TENSORS)
def test_safetensors_headers(name: str, canary: Path) -> None:
    from dipole_vla.backbones.weights import read_tensors

    Path("x.safetensors").write_bytes(TENSORS[name])
    refused(lambda: read_tensors(Path("x.safetensors")), canary, "x.safetensors")


# -- GeoPackages -------------------------------------------------------------------------------------------------------


def database(path: Path, *statements: str) -> None:
    path.unlink(missing_ok=True)
    with sqlite3.connect(path) as connection:
        for statement in statements:
            connection.execute(statement)


FOREVER = "with recursive n(i) as (select 1 union all select i + 1 from n) select i as key, i as value from n"
MAPS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("not a map"),
    "nothing": lambda path: path.write_bytes(b""),
    "magic only": lambda path: path.write_bytes(b"SQLite format 3\0" + bytes(100)),
    "magic and noise": lambda path: path.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 64),
    "no layers": lambda path: database(path, "create table x (y)"),
    "a view without end": lambda path: database(path, f"create view meta as {FOREVER}"),
    "a virtual table": lambda path: database(path, "create virtual table meta using fts5(key, value)"),
    "a pickle": lambda path: path.write_bytes(pickle.dumps(Touch())),
}


@pytest.mark.parametrize("name", MAPS)
def test_maps(name: str, canary: Path) -> None:
    from navsim_adapter.nuplan.maps import load_map
    from tests.navsim_adapter.tiny import CITY

    path = Path("maps") / CITY / "v1" / "map.gpkg"
    path.parent.mkdir(parents=True)
    (Path("maps") / "nuplan-maps-v1.0.json").write_text(json.dumps({CITY: {"version": "v1"}}))
    MAPS[name](path)
    refused(lambda: load_map(str(Path("maps").resolve()), CITY), canary, "map.gpkg")


# -- recipes -----------------------------------------------------------------------------------------------------------

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
RECIPES = {
    "apply": "model: !!python/object/apply:os.system ['touch canary']",
    "new": "model: !!python/object/new:subprocess.Popen [['touch', 'canary']]",
    "name": "model: !!python/name:os.system",
    "module": "model: !!python/module:os",
    "object": "!!python/object:os._wrap_close {}",
    "aliases that multiply": LAUGHS,
    "endless nesting": "[" * 5000,
    "too large": "a: " + "x" * 2**21,
    "not text": "\x00\x01\x02",
    "a list": "- model",
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(name: str, canary: Path) -> None:
    from dipole_vla.commands.recipe import raw_recipe

    Path("r.yaml").write_text(RECIPES[name])
    refused(lambda: raw_recipe(Path("r.yaml")), canary, "r.yaml")


@pytest.mark.parametrize("name", ["apply", "aliases that multiply", "endless nesting"])
def test_recipes_through_the_command_line(name: str, canary: Path, capsys) -> None:
    from dipole_vla.cli import main

    Path("r.yaml").write_text(RECIPES[name])
    assert main(["collect", "--config", "r.yaml"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not canary.exists()


# -- pictures ----------------------------------------------------------------------------------------------------------


def png(width: int, height: int, body: bytes = b"", *more: tuple[bytes, bytes]) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    chunks = b"".join(chunk(*one) for one in more)
    return b"\x89PNG\r\n\x1a\n" + head + chunks + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


PICTURES = {
    "60000 x 60000": png(60_000, 60_000),
    "no pixels": png(64, 64),
    "text that unpacks to a gigabyte": png(64, 64, b"", (b"zTXt", b"k\0\0" + zlib.compress(bytes(2**27), 9))),
    "a PostScript program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touch canary) (w) file\n",
    "vector graphics": b"<svg xmlns='http://www.w3.org/2000/svg'><script>x</script></svg>",
    "half a JPEG": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01",
    "nothing": b"",
    "a pickle": pickle.dumps(Touch()),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(name: str, canary: Path) -> None:
    from dipole_vla.data.tables import SceneTable

    Path("x.jpg").write_bytes(PICTURES[name])
    table = SceneTable.__new__(SceneTable)
    table.sensors = Path()
    row = {"token": "t", "cameras": {"cam_f0": "x.jpg"}}
    refused(lambda: table.images(row, ["cam_f0"]), canary, "x.jpg")


# -- manifests and caches ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["[" * 10**5, "{", "\x00", '{"files": NaN'])
def test_manifests(text: str, canary: Path) -> None:
    from navsim_adapter.foundation.files import read_json

    Path("manifest.json").write_text(text)
    refused(lambda: read_json("manifest.json"), canary, "manifest.json")


@pytest.mark.parametrize("content", [b"", b"x" * 100, pickle.dumps(Touch()), bytes(range(256)) * 40])
def test_scene_caches(content: bytes, canary: Path) -> None:
    from navsim_adapter.cache.log_file import read_facts

    Path("log.cache").write_bytes(content)
    refused(lambda: read_facts("log.cache"), canary, "log.cache")
