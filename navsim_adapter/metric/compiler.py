"""Numba as a compiler ahead of time: all entry points become one object file that needs nothing but the C library.

An entry point is compiled behind a shell that reads its arguments from memory: one address goes in, one number comes
out. `machine_code.py` asks for the object in a process of its own, with the processor in the environment.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from navsim_adapter.metric.jit import FAILED, Entry
from navsim_adapter.metric.packed import real, whole

MODULES = ("engine", "two_frame", "cells", "traffic_index", "driven")
_WORD, _BYTES = ir.IntType(64), ir.IntType(8).as_pointer()
_HEADER, _ALIGNED = 64, 64  # bytes
_njit: Any = numba.njit  # its stubs do not know every option
_ALIKE = {"error_model": "numpy", "nogil": True}  # IEEE division (no zero check), so that loops vectorise
_INNER: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_INLINED: dict[str, Any] = {**_INNER, "forceinline": True}

if numba.version_info.short <= (0, 68):  # the shorter way leans on numba's inside: only where it was tried
    from navsim_adapter.metric import fragments

    _INNER = {"pipeline_class": fragments.FragmentCompiler}
    _INLINED = {"pipeline_class": fragments.InlinedCompiler}


def fragment(function: Callable[..., Any]) -> tuple[Any, Any]:
    """A compiled function and its type."""
    return _typed(_compiled(function, _INNER))


def inlined_fragment(function: Callable[..., Any]) -> tuple[Any, Any]:
    return _typed(_compiled(function, _INLINED))


def memory_reader(function: Callable[..., Any]) -> tuple[Any, Any]:
    """`real` and `whole` of `packed.py`: one load from a block of memory, which nobody writes to."""
    kind, memory = {"real": (types.float64, ir.DoubleType()), "whole": (types.int64, _WORD)}[function.__name__]

    def read(typing_context: Any, block: Any, position: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            start = builder.inttoptr(arguments[0], memory.as_pointer())
            number = builder.load(builder.gep(start, [arguments[1]]))
            number.set_metadata("invariant.load", builder.module.add_metadata([]))  # may be read early, or once
            return number

        return kind(types.int64, types.int64), generate

    return _typed(intrinsic(read))


@intrinsic
def _pointer(typing_context: Any, address: Any) -> Any:
    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


_SHELL = {
    "real": real,
    "whole": whole,
    "pointer": _pointer,
    "array": numba.carray,
    "i8": np.int64,
    "f8": np.float64,
}


@global_compiler_lock
def object_code() -> bytes:
    """All entry points of MODULES, under their own names, for the processor that NUMBA_CPU_NAME names."""
    gc.disable()  # a sixth of the time would go there
    codegen = cpu_target.target_context.codegen()
    library = codegen.create_library("kernels")
    stubs = codegen._create_empty_module("stubs")
    _define_memory(stubs)
    modules = [importlib.import_module(f"{__package__}.{name}") for name in MODULES]
    entries = {value for module in modules for value in vars(module).values() if isinstance(value, Entry)}
    for entry in sorted(entries, key=lambda entry: entry.py_func.__name__):
        part, native = _shell(entry)
        library.add_linking_library(part)
        _define_entry(stubs, entry.py_func.__name__, native)
    library.add_ir_module(stubs)
    library.enable_object_caching()
    library.finalize()
    return bytes(library._get_compiled_object())


def _typed(callee: Any) -> tuple[Any, Any]:
    cpu_target.typing_context.refresh()  # takes note of new intrinsics
    return callee, cpu_target.typing_context.resolve_value_type(callee)


def _compiled(function: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    return _njit(**_ALIKE, **options)(function)


def _shell(entry: Entry) -> tuple[Any, str]:
    """Code that reads an entry's arguments from memory and calls it: its library and its name there."""
    arguments, at = [], 0
    for kind, axes in entry.arguments:
        arguments.append(_argument(kind, axes, at))
        at += 1 + axes
    call = f"entry({', '.join(arguments)})"
    result = f"{call}; return 0" if entry.result == "void" else f"return int({call})"
    space = {**_SHELL, "entry": entry}
    exec(f"def shell(memory): {result}", space)
    shell = _compiled(space["shell"], _INNER)
    shell.compile((types.int64,))
    found = shell.overloads[(types.int64,)]
    return found.library, found.fndesc.mangled_name


def _argument(kind: str, axes: int, at: int) -> str:
    """What reads an argument at a position of the memory."""
    if axes:
        shape = "".join(f"whole(memory, {at + 1 + axis}), " for axis in range(axes))
        return f"array(pointer(whole(memory, {at})), ({shape}), {kind})"
    return {"i8": f"whole(memory, {at})", "f8": f"real(memory, {at})", "b1": f"whole(memory, {at}) != 0"}[kind]


def _define_entry(module: ir.Module, name: str, native: str) -> None:
    """`int64 name(int64 address)` around numba's own calling convention: a status, the result through a pointer."""
    inside = ir.Function(
        module, ir.FunctionType(ir.IntType(32), [_WORD.as_pointer(), _BYTES.as_pointer(), _WORD]), native
    )
    function = ir.Function(module, ir.FunctionType(_WORD, [_WORD]), name)
    builder = ir.IRBuilder(function.append_basic_block())
    result = builder.alloca(_WORD)
    builder.store(ir.Constant(_WORD, 0), result)
    status = builder.call(inside, [result, builder.alloca(_BYTES), function.args[0]])
    has_failed = builder.icmp_signed("!=", status, ir.Constant(status.type, 0))
    builder.ret(builder.select(has_failed, ir.Constant(_WORD, FAILED), builder.load(result)))


def _define_memory(module: ir.Module) -> None:
    """What numba's arrays ask of its run-time library: memory behind a header that holds the count of references and,
    as its fourth number, the memory's address."""
    number, align = ir.IntType(64), ir.IntType(32)
    malloc = ir.Function(module, ir.FunctionType(_BYTES, [number]), "malloc")
    free = ir.Function(module, ir.FunctionType(ir.VoidType(), [_BYTES]), "free")
    allocate = ir.Function(module, ir.FunctionType(_BYTES, [number, align]), "NRT_MemInfo_alloc_aligned")
    builder = ir.IRBuilder(allocate.append_basic_block())
    start = builder.call(malloc, [builder.add(allocate.args[0], ir.Constant(number, _HEADER + _ALIGNED))])
    with builder.if_then(builder.icmp_unsigned("!=", start, ir.Constant(_BYTES, None))):
        header = builder.bitcast(start, number.as_pointer())
        beyond = builder.add(builder.ptrtoint(start, number), ir.Constant(number, _HEADER + _ALIGNED - 1))
        builder.store(ir.Constant(number, 1), header)
        builder.store(
            builder.and_(beyond, ir.Constant(number, -_ALIGNED)), builder.gep(header, [ir.Constant(align, 3)])
        )
    builder.ret(start)
    destroy = ir.Function(module, ir.FunctionType(ir.VoidType(), [_BYTES]), "NRT_MemInfo_call_dtor")
    builder = ir.IRBuilder(destroy.append_basic_block())
    builder.call(free, [destroy.args[0]])
    builder.ret_void()
