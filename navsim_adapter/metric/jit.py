"""How the kernels are compiled: one decorator for functions, one for the few entry points kept on disk.

Numba's disk cache looks only at the file of the function it stores, not at what that function calls or at module
constants. The entry points therefore carry a fingerprint of every kernel's source in a closure
variable, which is part of numba's key: edit any kernel and the stale machine code is never found.

No fast-math anywhere, not even fused multiply-add: a candidate's result is the same bit for bit whether it falls in
a vector lane or in the loop's remainder, alone or among others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

_njit: Any = numba.njit  # its stubs do not know every option
_ALIKE = {"error_model": "numpy", "nogil": True}  # IEEE division (no zero check), so that loops vectorise
_ENTRY: dict[str, Any] = {"cache": True}
_INNER: dict[str, Any] = {}
_INLINED: dict[str, Any] = {}

if numba.version_info.short <= (0, 68):  # the shorter way leans on numba's inside: only where it was tried
    from navsim_adapter.metric import fragments

    _ENTRY["pipeline_class"] = fragments.EntryCompiler
    _INNER["pipeline_class"] = fragments.FragmentCompiler
    _INLINED["pipeline_class"] = fragments.InlinedCompiler
else:
    _INLINED["forceinline"] = True


def inner(function: Callable[..., Any]) -> Any:
    """Compile a function that only other kernels call: calling it from Python crashes."""
    return _njit(**_ALIKE, **_INNER)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """`inner`, and part of its callers' code whatever LLVM thinks: for small functions asked at every step.

    A call costs as much as what they do, and an array among its arguments is nine numbers.
    """
    return _njit(**_ALIKE, **_INLINED)(function)


def entry(make: Callable[[int], Callable[..., Any]]) -> Any:
    """Compile an entry point and keep it on disk.

    make: takes the fingerprint and returns the function; the function must read it (``_ = fingerprint``), or it
    would not be a closure variable.
    """
    return _njit(**_ALIKE, **_ENTRY)(make(_source_fingerprint()))


def _source_fingerprint() -> int:
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for path in [*sorted(here.glob("*.py")), here.parent / "vehicle.py"]:
        digest.update(path.read_bytes())
    return int.from_bytes(digest.digest()[:7], "little")
