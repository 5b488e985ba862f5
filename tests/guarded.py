"""Kernels of one contraction, lowered, compiled and run on guarded memory.

Every buffer, temporaries included, lies against an inaccessible page (behind it, then before it): an access out of
bounds ends the process. Outputs and temporaries are filled with other bytes before each run, so that a value which
nobody wrote shows.
"""

import ctypes
import math
import mmap

import numpy as np

from mlxir.compiler.lower.gemm import lower_matmul
from mlxir.compiler.lower.gemm_schedule import ceil_div
from mlxir.compiler.lower.plan import NativeLaunch, Place
from mlxir.compiler.pipeline import launcher, routine_code
from mlxir.compiler.schedule import launch_of
from mlxir.compiler.target import cpu
from mlxir.dialects.mlir import Module, context, ir
from mlxir.runtime.launch import Executable, Schedule, Segment

PAGE = mmap.PAGESIZE
LIBC = ctypes.CDLL(None)


class Guarded:
    """An array against an inaccessible page: the one behind it, or the one before it."""

    def __init__(self, shape, dtype, behind):
        size = math.prod(shape) * dtype.size
        self.size, span = size, max(ceil_div(size, PAGE), 1) * PAGE
        self.memory = mmap.mmap(-1, span + 2 * PAGE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        for page in (base, base + PAGE + span):
            assert LIBC.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), 0) == 0
        offset = PAGE + span - size if behind else PAGE
        self.address = base + offset
        raw = np.frombuffer(self.memory, np.uint8, size, offset) if size else np.zeros(0, np.uint8)
        self.array = raw.view(dtype.numpy).reshape(shape)

    def fill(self, byte):
        self.array.reshape(-1).view(np.uint8)[:] = byte


class Kernel:
    """A compiled kernel of one contraction; `build(m, *tensors)` makes its operations, `lower` its loops."""

    def __init__(self, build, avals, lower=lower_matmul, **options):
        module = Module()
        function = module.add_function("mx_contraction", avals)
        m = function.builder_at_end()
        for argument in function.arguments:
            argument.m = m
        results = build(m, *function.arguments)
        function.returns(results if isinstance(results, (list, tuple)) else [results])
        self.inputs, self.outputs = list(avals), function.result_avals
        with context, ir.Location.unknown():
            loops = ir.Module.create()
        steps, self.temporaries, self.routines = lower(function, loops.body, **options)
        self.steps = [s._replace(symbol=f"{s.name}.thunk") for s in steps]
        loops.operation.verify()
        self.operations = self._count(loops)
        self.buffers = [*self.inputs, *self.outputs, *self.temporaries]
        launches = [NativeLaunch(s, [Place("table", b) for b in s.buffers]) for s in self.steps]
        code = []
        if self.steps:
            imports = [r.symbol for r in self.routines]
            kernel = cpu.code_of(cpu.llvm_text(loops, self.steps), self.steps, imports)
            code = [launcher(), *map(routine_code, self.routines), kernel]
        specs = [[(a.shape, a.dtype) for a in self.inputs], [(a.shape, a.dtype) for a in self.outputs]]
        segments = [Segment(tuple([launch_of(k) for k in launches]))] if launches else []
        self.executable = Executable(code, Schedule(*specs, [], 0, segments, 1), None)

    @staticmethod
    def _count(loops):
        """Operations of the module; each function must have one top-level parallel loop."""
        total = 0
        for view in loops.body.operations:
            if not view.operation.regions[0].blocks:
                continue  # the declaration of a routine
            block = view.operation.regions[0].blocks[0]
            assert [o.operation.name for o in block.operations].count("scf.parallel") == 1

        def visit(_):
            nonlocal total
            total += 1
            return ir.WalkResult.ADVANCE

        loops.operation.walk(visit)
        return total

    def __call__(self, *arrays, threads=1, behind=True, fill=0xFF):
        buffers = [Guarded(a.shape, a.dtype, behind) for a in self.buffers]
        for buffer, array in zip(buffers, arrays, strict=False):
            buffer.array[...] = array
        for buffer in buffers[len(arrays) :]:
            buffer.fill(fill)
        table = (ctypes.c_void_p * len(buffers))(*[b.address for b in buffers])
        self.executable.call(table, 0, threads)
        for buffer, array in zip(buffers, arrays, strict=False):
            assert buffer.array.tobytes() == np.asarray(array).tobytes(), "an operand was written"
        return [b.array.copy() for b in buffers[len(arrays) : len(arrays) + len(self.outputs)]]


def run(kernel, arrays):
    """The results, the same on either side of the guard pages, on one thread and on several, whatever memory held."""
    first = kernel(*arrays)
    for threads, behind, fill in ((2, False, 0x00), (3, True, 0xAA)):
        again = kernel(*arrays, threads=threads, behind=behind, fill=fill)
        assert [x.tobytes() for x in first] == [x.tobytes() for x in again]
    return first
