"""How the kernels are compiled, and how Python calls the few that are entry points.

A kernel is plain Python and can be called as such. What Python calls is machine code of all entry points together,
which numba made ahead of time (`compiler.py`) and `machine_code.py` finds: numba is not even imported for it. Kernels
allocate nothing and count no references: what they write to is the caller's.

No fast-math anywhere, not even fused multiply-add: a candidate's result is the same bit for bit whether it falls in
a vector lane or in the loop's remainder, alone or among others, and on every processor.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from functools import cached_property, update_wrapper
from typing import Any

import numpy as np

_HEAD = object.__basicsize__  # bytes of a Python object before what numpy has in its arrays
_ARGUMENT = re.compile(r"([if]8|b1)(\[[:,1]+\])?")
_CODES = {"i8": "q", "f8": "d", "b1": "q"}  # of eight bytes each
_TYPES = {"i8": np.dtype(np.int64), "f8": np.dtype(np.float64)}


class Kernel:
    """A function that other kernels call: compiled code to numba, to Python what it says."""

    def __init__(self, function: Callable[..., Any], kind: str):
        update_wrapper(self, function)
        self.py_func, self._kind = function, kind

    def __call__(self, *arguments: Any) -> Any:
        return self.py_func(*arguments)

    @property
    def _numba_type_(self) -> Any:  # numba asks for it where a function names a kernel
        return self._compiled[1]

    @cached_property
    def _compiled(self) -> tuple[Any, Any]:
        """Numba's own function, and its type, which alone would not keep it alive."""
        from navsim_adapter.metric import compiler

        return getattr(compiler, self._kind)(self.py_func)


def inner(function: Callable[..., Any]) -> Any:
    """A function that only other kernels call."""
    return Kernel(function, "fragment")


def inlined(function: Callable[..., Any]) -> Any:
    """`inner`, and part of its callers' code whatever LLVM thinks: for small functions asked at every step.

    A call costs as much as what they do, and an array among its arguments is nine numbers.
    """
    return Kernel(function, "inlined_fragment")


def lanes(function: Callable[..., Any]) -> Any:
    """`inner`, and in its innermost loops no turn touches memory that another turn writes.

    So they are made side by side without first asking where each array lies, however many there are: loops over
    candidates, or over a candidate's states.
    """
    return Kernel(function, "lanes_fragment")


def reader(function: Callable[..., Any]) -> Any:
    """A number at a position of a block: of `packed.py`."""
    return Kernel(function, "memory_reader")


def view(function: Callable[..., Any]) -> Any:
    """An array over memory: of `packed.py`."""
    return Kernel(function, "memory_view")


def bit_finder(function: Callable[..., Any]) -> Any:
    """The number of a bit: of `packed.py`."""
    return Kernel(function, "bit_number")


def entry(signature: str) -> Callable[[Callable[..., Any]], Any]:
    """A kernel that Python calls, as machine code.

    signature: as numba writes it: i8, f8, b1 and C-contiguous arrays of them, like ``i8(f8, f8[:,::1])``.
    """
    return lambda function: Entry(function, signature)


class Entry(Kernel):
    """Its arguments go over as eight bytes each, an array as where numpy keeps its address and its shape."""

    def __init__(self, function: Callable[..., Any], signature: str):
        super().__init__(function, "fragment")
        self.result, arguments = signature.rstrip(")").split("(")
        found = _ARGUMENT.findall(arguments)
        self.arguments = [(kind, axes.count(",") + bool(axes)) for kind, axes in found]  # 0 axes: a number
        self._arrays = [(at, _TYPES[kind], axes) for at, (kind, axes) in enumerate(self.arguments) if axes]
        self._numbers = struct.Struct("".join("q" if axes else _CODES[kind] for kind, axes in self.arguments))

    def __call__(self, *arguments: Any) -> Any:
        numbers = list(arguments)
        for at, kind, axes in self._arrays:
            array = arguments[at]
            if (array.dtype is not kind and array.dtype != kind) or array.ndim != axes or not array.flags.c_contiguous:
                found = f"{array.dtype} {array.shape}, contiguous: {array.flags.c_contiguous}"
                raise TypeError(f"{self.py_func.__name__}: takes {kind} in {axes} contiguous axes, got {found}")
            numbers[at] = id(array) + _HEAD
        return self._machine_code(self._numbers.pack(*numbers))

    @cached_property
    def _machine_code(self) -> Callable[[bytes], int]:
        from navsim_adapter.metric import machine_code

        return machine_code.function(self.py_func.__name__)
