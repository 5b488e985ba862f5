"""LLVM IR text -> object code, through llvmlite; several modules at once.

llvmlite lets one thread at a time into LLVM. Each module here has a context of its own and each compilation a target
machine of its own, which is all that LLVM asks for, so the two calls that take long go past that lock.
"""

from __future__ import annotations

import ctypes
from typing import Any

import llvmlite.binding as llvm
from llvmlite.binding import ffi

from mlxir.runtime import pages

LEVEL = 1  # of optimisation, in LLVM's count: 2 and 3 make none of our kernels faster
LARGE = 100_000  # characters, which take LLVM 0.2 s: 4 ms for giving back its pages are not much beside them
_machines: list[Any] = []  # target machines that nobody uses now; making one takes 2 ms


def _past_the_lock(name: str) -> Any:
    """A function of llvmlite's library, called without its lock where this llvmlite keeps the plain one at hand."""
    function = getattr(ffi.lib, name)
    return getattr(function, "_cfn", function)


def _machine() -> Any:
    try:
        return _machines.pop()
    except IndexError:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        features = llvm.get_host_cpu_features().flatten()
        return llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=features, opt=LEVEL, reloc="pic", codemodel="jitdefault", jit=True
        )


def compiled(text: str, assembly: bool = False, optimised: bool = True) -> bytes:
    """Object code (or assembly text) of a module. Raises RuntimeError for text that LLVM refuses.

    Loops of vectors in registers, written as they should be, need no vectoriser and few of the other passes: without
    `optimised` they get those that tidy up.
    """
    context, machine = llvm.create_context(), _machine()
    module = llvm.parse_assembly(text, context)
    try:
        module.triple, module.data_layout = machine.triple, str(machine.target_data)
        (_optimise if optimised else _tidy)(module, machine)
        if len(text) > LARGE:
            pages.release()  # the passes, before code generation takes as much
        return _emit(module, machine, assembly)
    finally:
        module.close()
        context.close()
        _machines.append(machine)
        if len(text) > LARGE:
            pages.release()


def _optimise(module: Any, machine: Any) -> None:
    options = llvm.create_pipeline_tuning_options(speed_level=LEVEL)
    # Interleaving is the vectoriser's; further unrolling and SLP cost compile time and gain nothing on these loops.
    options.loop_vectorization, options.slp_vectorization, options.loop_unrolling = True, False, False
    builder = llvm.create_pass_builder(machine, options)
    _run(builder.getModulePassManager(), module, builder)


def _tidy(module: Any, machine: Any) -> None:
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=LEVEL))
    passes = llvm.create_new_module_pass_manager()
    passes.add_sroa_pass()
    passes.add_instruction_combine_pass()
    _run(passes, module, builder)


def _run(passes: Any, module: Any, builder: Any) -> None:
    """Run passes, then free them: llvmlite 0.50 has a `_dispose` for them that it never finds."""
    _past_the_lock("LLVMPY_RunNewModulePassManager")(passes, module, builder)
    ffi.lib.LLVMPY_DisposeNewModulePassManger(passes)
    passes.detach()


def _emit(module: Any, machine: Any, assembly: bool) -> bytes:
    with ffi.OutputString() as error:
        memory = _past_the_lock("LLVMPY_TargetMachineEmitToMemory")(machine, module, int(not assembly), error)
        if not memory:
            raise RuntimeError(str(error))
    try:
        start, size = ffi.lib.LLVMPY_GetBufferStart(memory), ffi.lib.LLVMPY_GetBufferSize(memory)
        return ctypes.string_at(start, size)
    finally:
        ffi.lib.LLVMPY_DisposeMemoryBuffer(memory)
