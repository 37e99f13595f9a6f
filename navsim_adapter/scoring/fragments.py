"""Compiles inner functions for their callers only: half of the time that numba takes otherwise.

Numba optimises every function with all that it calls and makes machine code of it, again at each level. A function
that is never called from Python needs neither: it is linked into the entry points, and optimised there, once.
"""

from __future__ import annotations

import gc
from typing import Any

from numba import _dynfunc  # type: ignore[attr-defined]
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering


class _Fragment(JITCodeLibrary):
    """Intermediate code alone, together with what it calls."""

    def finalize(self) -> None:
        for library in dict.fromkeys(self._linking_libraries):
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class _LowerFragment(NativeLowering):
    """Numba's own lowering into a `_Fragment`, with a stand-in for the address that the function will not have."""

    _name = "fragment_lowering"

    def run_pass(self, state: Any) -> bool:
        library = state.library = _Fragment(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)
        lowered = state["cr"]
        name = lowered.fndesc.qualname
        stand_in = _dynfunc.make_function(lowered.fndesc.lookup_module(), name, name, 0, lowered.env, (library,))
        state.targetctx.insert_user_function(stand_in, lowered.fndesc, [library])
        state["cr"] = lowered._replace(cfunc=stand_in)
        return True


class FragmentCompiler(CompilerBase):
    """Numba's pipeline for nopython functions with the lowering above."""

    def define_pipelines(self) -> list[Any]:
        pipeline = DefaultPassBuilder.define_nopython_pipeline(self.state)
        pipeline.passes = [(_LowerFragment if step is NativeLowering else step, why) for step, why in pipeline.passes]
        pipeline.finalize()
        return [pipeline]


class EntryCompiler(CompilerBase):
    """Numba's pipeline for nopython functions without pauses for garbage: a sixth of the time goes there."""

    def define_pipelines(self) -> list[Any]:
        return [DefaultPassBuilder.define_nopython_pipeline(self.state)]

    def compile_extra(self, function: Any) -> Any:
        is_collecting = gc.isenabled()
        gc.disable()
        try:
            return super().compile_extra(function)
        finally:
            if is_collecting:
                gc.enable()
