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
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

from navsim_adapter.metric.jit import Entry
from navsim_adapter.metric.packed import real, reals, whole, wholes

MODULES = (
    *(f"metric.{name}" for name in ("engine", "two_frame", "cells", "road", "driven")),
    *(f"pdm_closed.{name}" for name in ("path", "rollout")),
)
_WORD, _BYTES = ir.IntType(64), ir.IntType(8).as_pointer()
_MEMORY = {
    "real": (types.float64, ir.DoubleType()),
    "whole": (types.int64, _WORD),
    "small": (types.int32, ir.IntType(32)),
}
_VIEWS: dict[str, Any] = {
    "reals": types.float64,
    "wholes": types.int64,
    "singles": types.float32,
    "smalls": types.int32,
}
_njit: Any = numba.njit  # its stubs do not know every option
# IEEE division (no zero check), so that loops vectorise; no counting of references.
_ALIKE = {"error_model": "numpy", "nogil": True, "_nrt": False}
_INNER: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_INLINED: dict[str, Any] = {**_INNER, "forceinline": True}
_LANES: dict[str, Any] = _INNER

if numba.version_info.short <= (0, 68):  # the shorter way leans on numba's inside: only where it was tried
    from navsim_adapter.metric import fragments

    _INNER = {"pipeline_class": fragments.FragmentCompiler}
    _INLINED = {"pipeline_class": fragments.InlinedCompiler}
    _LANES = {"pipeline_class": fragments.LanesCompiler}


def fragment(function: Callable[..., Any]) -> tuple[Any, Any]:
    """A compiled function and its type."""
    return _typed(_compiled(function, _INNER))


def inlined_fragment(function: Callable[..., Any]) -> tuple[Any, Any]:
    return _typed(_compiled(function, _INLINED))


def lanes_fragment(function: Callable[..., Any]) -> tuple[Any, Any]:
    return _typed(_compiled(function, _LANES))


def memory_reader(function: Callable[..., Any]) -> tuple[Any, Any]:
    """`real`, `whole` and `small` of `packed.py`: one load from a block of memory, which nobody writes to."""
    kind, memory = _MEMORY[function.__name__]

    def read(typing_context: Any, block: Any, position: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            start = builder.inttoptr(arguments[0], memory.as_pointer())
            number = builder.load(builder.gep(start, [arguments[1]]))
            number.set_metadata("invariant.load", builder.module.add_metadata([]))  # may be read early, or once
            return number

        return kind(types.int64, types.int64), generate

    return _typed(intrinsic(read))


def memory_view(function: Callable[..., Any]) -> tuple[Any, Any]:
    """`reals`, `wholes`, `singles` and `smalls` of `packed.py`."""
    kind = _VIEWS[function.__name__]

    def view(typing_context: Any, address: Any, shape: Any) -> Any:
        array = types.Array(kind, len(shape), "C")

        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            shape, size = cgutils.unpack_tuple(builder, arguments[1]), ir.Constant(_WORD, kind.bitwidth // 8)
            strides = [size]
            for length in reversed(shape[1:]):
                strides.insert(0, builder.mul(strides[0], length))
            found = make_array(array)(context, builder)
            data = builder.inttoptr(arguments[0], context.get_data_type(kind).as_pointer())
            populate_array(found, data=data, shape=shape, strides=strides, itemsize=size, meminfo=None)
            return found._getvalue()

        return array(address, shape), generate

    return _typed(intrinsic(view))


def bit_number(function: Callable[..., Any]) -> tuple[Any, Any]:
    """`first_bit` and `last_bit` of `packed.py`."""
    is_first, never_zero = function.__name__ == "first_bit", ir.Constant(ir.IntType(1), 1)

    def find(typing_context: Any, bits: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            if is_first:
                return builder.cttz(arguments[0], never_zero)
            return builder.sub(ir.Constant(_WORD, 63), builder.ctlz(arguments[0], never_zero))

        return types.int64(types.int64), generate

    return _typed(intrinsic(find))


_SHELL = {"real": real, "whole": whole, "i8": wholes, "f8": reals}


@global_compiler_lock
def object_code() -> bytes:
    """All entry points of MODULES, under their own names, for the processor that NUMBA_CPU_NAME names."""
    gc.disable()  # a sixth of the time would go there
    codegen = cpu_target.target_context.codegen()
    library = codegen.create_library("kernels")
    stubs = codegen._create_empty_module("stubs")
    modules = [importlib.import_module(f"navsim_adapter.{name}") for name in MODULES]
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
    arguments = [_argument(kind, axes, at) for at, (kind, axes) in enumerate(entry.arguments)]
    call = f"entry({', '.join(arguments)})"
    result = f"{call}; return 0" if entry.result == "void" else f"return int({call})"
    space = {**_SHELL, "entry": entry}
    exec(f"def shell(memory): {result}", space)
    shell = _compiled(space["shell"], _INNER)
    shell.compile((types.int64,))
    found = shell.overloads[(types.int64,)]
    return found.library, found.fndesc.mangled_name


def _argument(kind: str, axes: int, at: int) -> str:
    """What reads an argument at a position of the memory; of an array numpy has the address, axes, shape, ..."""
    if axes:
        numpys = f"whole(memory, {at})"
        shape = "".join(f"whole(whole({numpys}, 2), {axis}), " for axis in range(axes))
        return f"{kind}(whole({numpys}, 0), ({shape}))"
    return {"i8": f"whole(memory, {at})", "f8": f"real(memory, {at})", "b1": f"whole(memory, {at}) != 0"}[kind]


def _define_entry(module: ir.Module, name: str, native: str) -> None:
    """`int64 name(int64 address)` around numba's own calling convention: a status, which is that nothing was raised,
    and the result through a pointer."""
    inside = ir.Function(
        module, ir.FunctionType(ir.IntType(32), [_WORD.as_pointer(), _BYTES.as_pointer(), _WORD]), native
    )
    function = ir.Function(module, ir.FunctionType(_WORD, [_WORD]), name)
    builder = ir.IRBuilder(function.append_basic_block())
    result = builder.alloca(_WORD)
    builder.call(inside, [result, builder.alloca(_BYTES), function.args[0]])
    builder.ret(builder.load(result))
