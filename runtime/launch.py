"""Loading and launching executables: object code plus a schedule, plain data that needs no compiler.

llvmlite links the object code into the process (50 ms to import, at the first executable). Parallel loops fork and join
through the OpenMP
runtime found on the machine; without one they run on one thread, which is said once.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import glob
import json
import os
import site
import sys
import warnings
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numpy as np

from . import dtypes
from .buffers import Buffer, pool
from .dtypes import Dtype
from .knobs import knobs

Spec = tuple[tuple[int, ...], Dtype]
Library = Callable[[str, dict, list[np.ndarray], list[Spec]], list[np.ndarray]]


class Segment(NamedTuple):
    """Either a run of native steps (`entry` is its number) or one step that the host computes."""

    entry: int  # -1 for a library step
    primitive: str = ""
    attrs: dict | None = None
    operands: tuple = ()  # (kind, at, shape, dtype) each
    results: tuple = ()


class Schedule(NamedTuple):
    """How an executable is called. `outputs[j]` is the table entry of result j: parameters first, then `results`."""

    parameters: list[Spec]
    results: list[Spec]
    outputs: list[int]
    arena: int
    segments: list[Segment]
    kernels: int  # number of kernels, for the cache's statistics

    def to_json(self) -> str:
        return json.dumps(_encode(tuple(self)))

    @staticmethod
    def from_json(text: str) -> Schedule:
        fields = list(_decode(json.loads(text)))
        fields[0], fields[1] = ([(tuple(s), d) for s, d in f] for f in fields[:2])
        fields[4] = [Segment(*f) for f in fields[4]]
        fields[2] = list(fields[2])
        return Schedule(*fields)


def _encode(value: Any) -> Any:
    """Tagged JSON: keeps tuples, dtypes, complex numbers and non-finite floats."""
    if isinstance(value, (tuple, list)):
        return {"t": [_encode(v) for v in value]}
    if isinstance(value, Dtype):
        return {"d": value.name}
    if isinstance(value, dict):
        return {"m": {k: _encode(v) for k, v in value.items()}}
    if isinstance(value, complex):
        return {"c": [value.real, value.imag]}
    return value


def _decode(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((tag, inner),) = value.items()
    if tag == "t":
        return tuple(_decode(v) for v in inner)
    if tag == "d":
        return dtypes.from_name(inner)
    if tag == "m":
        return {k: _decode(v) for k, v in inner.items()}
    return complex(*inner)


# -- the OpenMP runtime ----------------------------------------------------------------------------------------------
_SYMBOLS = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
_keep: list[Any] = []  # callbacks and libraries that generated code refers to
_addresses: dict[str, int] = {}


def _candidates() -> list[str]:
    """OpenMP runtimes by name, then those that scientific wheels bundle."""
    names = ["libgomp.so.1", "libomp.so.5", "libomp.so", "libiomp5.so", "libomp.dylib"]
    found = ctypes.util.find_library("gomp") or ctypes.util.find_library("omp")
    bundled = [
        path
        for folder in [*site.getsitepackages(), *sys.path]
        for pattern in (
            "*.libs/libgomp*",
            "*/lib/libgomp*",
            "*.libs/libomp*",
            "*/lib/libomp*",
            "*/lib/libiomp5*",
            "*/.dylibs/libomp*",
        )
        for path in sorted(glob.glob(os.path.join(folder, pattern)))
    ]
    return names + ([found] if found else []) + bundled


def _sequential() -> None:
    """Stand-ins for the three functions of the ABI that run the body once, on the calling thread."""
    body_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    fork = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)(
        lambda fn, data, threads, flags: body_type(fn)(data)
    )
    number = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 0)
    count = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 1)
    for name, function in zip(_SYMBOLS, (fork, number, count), strict=True):
        _keep.append(function)
        _addresses[name] = ctypes.cast(function, ctypes.c_void_p).value or 0
    warnings.warn("mlxir: no OpenMP runtime (libgomp, libomp) was found; kernels run on one thread", stacklevel=2)


def _bind_openmp() -> None:
    for name in _candidates():
        try:
            library = ctypes.CDLL(name)
            found = {s: ctypes.cast(getattr(library, s), ctypes.c_void_p).value or 0 for s in _SYMBOLS}
        except (OSError, AttributeError):
            continue
        _keep.append(library)
        _addresses.update(found)
        return
    _sequential()


_jit: Any = None


def _linker() -> Any:
    global _jit
    if _jit is None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        _bind_openmp()
        machine = llvm.Target.from_default_triple().create_target_machine(jit=True, codemodel="jitdefault", reloc="pic")
        _jit = llvm.create_lljit_compiler(machine)
    return _jit


_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def thread_count() -> int:
    """Threads of a parallel kernel: the knob, else the cores this process may use."""
    return knobs.threads or _CORES


_NO_ARENA: Any = (0, None)


class Executable:
    """Linked object code with its schedule. `run` is safe to call from several threads."""

    _count = 0

    def __init__(self, code: bytes, schedule: Schedule, library: Library):
        self.schedule, self._library = schedule, library
        Executable._count += 1
        name = f"mlxir_{Executable._count}"
        entries = sum(s.entry >= 0 for s in schedule.segments)
        builder = llvm.JITLibraryBuilder().add_object_img(code).add_current_process()
        for n in range(entries):
            builder.export_symbol(f"mlxir_run_{n}")
        if entries:
            linker = _linker()
            for symbol, address in _addresses.items():
                builder.import_symbol(symbol, address)
            self._tracker = builder.link(linker, name)
        prototype = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint)
        self._entries = [prototype(self._tracker[f"mlxir_run_{n}"]) for n in range(entries)]
        self._table = ctypes.c_void_p * (len(schedule.parameters) + len(schedule.results))
        self._only = self._entries[0] if len(schedule.segments) == 1 and entries == 1 else None
        self._results = [(s, d, pool.size_class(prod(s) * d.size)) for s, d in schedule.results]
        self._arena = pool.size_class(schedule.arena) if schedule.arena else 0

    def run(self, arguments: Sequence[Buffer]) -> list[Buffer]:
        """The results for concrete arguments, which must have the parameters' shapes and dtypes (the caller's key says
        so).
        """
        buffers = [*arguments, *[Buffer.empty(shape, dtype, size) for shape, dtype, size in self._results]]
        table = self._table(*[b.address or b.pointer for b in buffers])
        arena = pool.take(self._arena) if self._arena else _NO_ARENA
        try:
            if self._only is not None:
                self._only(table, arena[0], knobs.threads or _CORES)
            else:
                self._run_segments(table, arena[0], buffers)
        finally:
            if self._arena:
                pool.give(self._arena, arena)
        return [buffers[i] for i in self.schedule.outputs]

    def _run_segments(self, table: Any, arena: int, buffers: list[Buffer]) -> None:
        for segment in self.schedule.segments:
            if segment.entry >= 0:
                self._entries[segment.entry](table, arena, thread_count())
                continue
            operands = [_view(p, arena, buffers) for p in segment.operands]
            specs = [(tuple(shape), dtype) for _, _, shape, dtype in segment.results]
            results = self._library(segment.primitive, segment.attrs or {}, operands, specs)
            for place, value in zip(segment.results, results, strict=True):
                _view(place, arena, buffers)[...] = value


def _view(place: tuple, arena: int, buffers: list[Buffer]) -> np.ndarray:
    """The NumPy view of a value in the caller's table or in the arena."""
    kind, at, shape, dtype = place
    if kind == "table":
        return buffers[at].numpy()
    count = prod(shape)
    raw = (ctypes.c_uint8 * max(count * dtype.size, 1)).from_address(arena + at)
    return np.frombuffer(raw, dtype.numpy, count).reshape(shape)
