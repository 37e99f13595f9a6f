"""The kernels' machine code: one object file, named by the sources it was made of and the processor it is for.

It lies in the package, where `make install` or the wheel put it. Where it does not, it is made on first use, which
takes twenty seconds, and kept there or, if the package cannot be written, in the user's cache folder. It is trusted as
the package itself is; LLVM loads it, so nothing here needs a linker.

    python -m navsim_adapter.metric.machine_code       # make it now
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import only_writer, write_bytes

FOLDER = "NAVSIM_ADAPTER_KERNELS"  # of the environment: the only folder to look in
_PACKAGE = Path(__file__).resolve().parent
_SOURCES = (
    *sorted(_PACKAGE.glob("*.py")),
    *sorted((_PACKAGE.parent / "pdm_closed").glob("*.py")),
    _PACKAGE.parent / "vehicle.py",
)
_LEVEL = ("avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe")  # what makes an x86-64 an x86-64-v3
_DIGEST = 32  # bytes before the object code: its SHA-256
_MAKE = f"import sys; from {__package__}.compiler import object_code; sys.stdout.buffer.write(object_code())"
_loading = threading.Lock()


def function(name: str) -> Callable[[bytes], int]:
    """An entry point by name; runs without Python's lock."""
    with _loading:
        address = _engine().get_function_address(name)
    if not address:
        raise LookupError(f"{name}: not among the compiled kernels")
    return ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_char_p)(address)


@cache
def _engine() -> Any:
    """The loaded object, for as long as the process lives."""
    code = _object_code()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine


def _object_code() -> bytes:
    """From the first folder that has it; else made, and kept in the first that can be written."""
    for folder in _folders():
        code = _read(folder / file_name())
        if code is not None:
            return code
    for folder in _folders():
        with suppress(OSError, InputError):
            return make(folder)
    with tempfile.TemporaryDirectory() as nowhere:
        return make(Path(nowhere))


def _folders() -> list[Path]:
    chosen = os.environ.get(FOLDER)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [Path(chosen)] if chosen else [_PACKAGE / "compiled", home / "navsim_adapter" / "kernels"]


@cache
def file_name() -> str:
    sources = hashlib.sha256(b"".join(path.read_bytes() for path in _SOURCES)).hexdigest()
    return f"{llvm.get_process_triple()}-{processor()}-{sources[:16]}.o"


def processor() -> str:
    """What the kernels are compiled for here. The wider registers that some have beyond x86-64-v3 gain nothing."""
    if not llvm.get_process_triple().startswith("x86_64"):
        return "generic"
    has = llvm.get_host_cpu_features()
    return "x86-64-v3" if all(has.get(feature) for feature in _LEVEL) else "x86-64"


def _read(path: Path) -> bytes | None:
    """The object code of a file; None where it is absent or torn."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    code = content[_DIGEST:]
    return code if hashlib.sha256(code).digest() == content[:_DIGEST] else None


def make(folder: Path) -> bytes:
    """Compile into a folder, unless it is done, in a process of its own; others wait for the first."""
    path = folder / file_name()
    with only_writer(folder, wait=True):
        code = _read(path)
        if code is None:
            tree = os.pathsep.join([str(_PACKAGE.parents[1]), os.environ.get("PYTHONPATH", "")])
            chosen = {"NUMBA_CPU_NAME": processor(), "NUMBA_CPU_FEATURES": "", "PYTHONPATH": tree}
            line = [sys.executable, "-c", _MAKE]
            code = subprocess.run(line, env={**os.environ, **chosen}, stdout=subprocess.PIPE, check=True).stdout
            write_bytes(path, hashlib.sha256(code).digest() + code)
    return code


if __name__ == "__main__":
    _object_code()
