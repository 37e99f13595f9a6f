"""Compiles inner functions for their callers only: half of the time that numba takes otherwise.

Numba optimises every function with all that it calls and makes machine code of it, again at each level. A function
that is never called from Python needs neither: it is linked into what `compiler.py` makes, and optimised there, once.
Nor do these functions need numba's passes for closures, `with`, array expressions and the like.
Numba also keeps what it learnt of `min` or `np.empty` by the options of the function that asked, and compares these
at length, so all functions share one set of them and what sets them apart is said only when they are lowered.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

import llvmlite.binding as llvm
from numba import _dynfunc  # type: ignore[attr-defined]
from numba.core import cgutils
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder, Flags
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import (
    IRLegalization,
    NativeLowering,
    NoPythonBackend,
    NopythonTypeInference,
    PreLowerStripPhis,
)
from numba.core.untyped_passes import FixupArgs, IRProcessing, ReconstructSSA, TranslateByteCode

_NEEDED = (
    TranslateByteCode,
    FixupArgs,
    IRProcessing,
    ReconstructSSA,
    NopythonTypeInference,
    PreLowerStripPhis,
    IRLegalization,
    NativeLowering,
    NoPythonBackend,
)


class _SharedFlags(Flags):
    """Options that stay one object when they are copied: what is identical need not be compared."""

    __slots__ = ()
    _known: list[_SharedFlags] = []  # noqa: RUF012

    @classmethod
    def like(cls, flags: Flags) -> _SharedFlags:
        found = next((known for known in cls._known if known == flags), None)
        if found is None:
            found = cls(flags)
            cls._known.append(found)
        return found

    def copy(self) -> _SharedFlags:
        return self


class _Fragment(JITCodeLibrary):
    """Intermediate code alone, together with what it calls."""

    is_parallel = False  # whether its innermost loops are `jit.lanes`'s

    def add_ir_module(self, ir_module: Any) -> None:
        if not self.is_parallel:
            return super().add_ir_module(ir_module)
        text = _with_parallel_loops(cgutils.normalize_ir_text(str(ir_module)))
        module = llvm.parse_assembly(text)
        module.name = ir_module.name
        module.verify()
        self.add_llvm_module(module)

    def finalize(self) -> None:
        for library in dict.fromkeys(self._linking_libraries):
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class _LowerFragment(NativeLowering):
    """Numba's own lowering into a `_Fragment`, with a stand-in for the address that the function will not have."""

    _name = "fragment_lowering"
    _is_inlined = False
    _is_parallel = False

    def run_pass(self, state: Any) -> bool:
        library = state.library = _Fragment(state.targetctx.codegen(), state.func_id.func_qualname)
        library.is_parallel = self._is_parallel
        state.flags = Flags(state.flags)
        state.flags.no_compile = state.flags.no_cpython_wrapper = state.flags.no_cfunc_wrapper = True
        state.flags.forceinline = self._is_inlined
        super().run_pass(state)
        lowered = state["cr"]
        name = lowered.fndesc.qualname
        stand_in = _dynfunc.make_function(lowered.fndesc.lookup_module(), name, name, 0, lowered.env, (library,))
        state.targetctx.insert_user_function(stand_in, lowered.fndesc, [library])
        state["cr"] = lowered._replace(cfunc=stand_in)
        return True


@register_pass(mutates_CFG=True, analysis_only=False)
class _LowerInlined(_LowerFragment):
    _name = "inlined_fragment_lowering"
    _is_inlined = True


@register_pass(mutates_CFG=True, analysis_only=False)
class _LowerLanes(_LowerFragment):
    _name = "lanes_fragment_lowering"
    _is_parallel = True


class _Compiler(CompilerBase):
    """Numba's pipeline for nopython functions without the passes that are not needed."""

    _lowering: type[NativeLowering] = NativeLowering

    def __init__(self, typing: Any, target: Any, library: Any, arguments: Any, result: Any, flags: Flags, local: Any):
        super().__init__(typing, target, library, arguments, result, _SharedFlags.like(flags), local)

    def define_pipelines(self) -> list[Any]:
        pipeline = DefaultPassBuilder.define_nopython_pipeline(self.state)
        kept = [(step, why) for step, why in pipeline.passes if step in _NEEDED]
        pipeline.passes = [(self._lowering if step is NativeLowering else step, why) for step, why in kept]
        pipeline.finalize()
        return [pipeline]


class FragmentCompiler(_Compiler):
    _lowering = _LowerFragment


class InlinedCompiler(_Compiler):
    _lowering = _LowerInlined


class LanesCompiler(_Compiler):
    _lowering = _LowerLanes


def _with_parallel_loops(text: str) -> str:
    """The intermediate code with a note at each innermost loop that no turn of it needs another's memory.

    Numba calls a block by the position of its first instruction and a suffix: a jump back to an earlier one, or to
    the same, closes a loop.
    """
    numbers = itertools.count(1 + max(map(int, re.findall(r"^!(\d+) =", text, re.M)), default=-1))
    group, note, here = next(numbers), next(numbers), -1
    lines, jumps = text.splitlines(), {}  # line -> first and last position of the loop that it closes
    for at, line in enumerate(lines):
        if label := re.match(r"B(\d+)\S*:", line):
            here = int(label[1])
        elif re.match(r"\s+(%\S+ = load|store) ", line):
            lines[at] += f", !llvm.access.group !{group}"
        elif line.lstrip().startswith("br "):
            back = [int(start) for start in re.findall(r'label %"B(\d+)"', line) if int(start) <= here]
            if back:
                jumps[at] = back[0], here
    loops: dict[int, int] = {}  # where an innermost loop starts -> its note
    for at, (start, end) in jumps.items():
        if not any(start < other <= end for other, _ in jumps.values()):
            loops.setdefault(start, next(numbers))
            lines[at] += f", !llvm.loop !{loops[start]}"
    lines += [f"!{group} = distinct !{{}}", f'!{note} = !{{!"llvm.loop.parallel_accesses", !{group}}}']
    return "\n".join([*lines, *(f"!{loop} = distinct !{{!{loop}, !{note}}}" for loop in loops.values())])
