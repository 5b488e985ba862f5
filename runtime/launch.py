"""Loading and launching executables: object code plus a schedule, plain data that needs no compiler.

llvmlite links the object code into the process (50 ms to import, at the first executable). The launcher's code brings
the threads that share parallel loops (compiler/target/pool.py).
"""

from __future__ import annotations

import copy
import ctypes
import itertools
import json
import os
import struct
import threading
import weakref
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numpy as np

from . import dtypes, pages
from .buffers import Buffer, Spare, allocator, pool
from .dtypes import Dtype
from .forks import guarded, in_child
from .knobs import knobs

Spec = tuple[tuple[int, ...], Dtype]
Library = Callable[[str, dict, list[np.ndarray], list[Spec]], list[np.ndarray]]


class Object(NamedTuple):
    """Linkable object code, which programs may share: what identifies it, the functions it defines, its bytes, and the
    functions of other objects that it calls.
    """

    digest: str
    symbols: tuple[str, ...]
    code: bytes
    imports: tuple[str, ...] = ()


class Launch(NamedTuple):
    """One kernel of a program. A place is an offset in the arena (>= 0) or the complement of an entry of the table."""

    symbol: str
    extent: int  # iterations
    align: int  # a thread's share of them is a multiple of it
    useful: int  # threads that the work pays for
    places: tuple[int, ...]


class Segment(NamedTuple):
    """Either a run of kernels or one step that the host computes."""

    launches: tuple[Launch, ...] = ()  # none for a library step
    primitive: str = ""
    attrs: dict | None = None
    operands: tuple = ()  # (kind, at, shape, dtype) each
    results: tuple = ()


class Schedule(NamedTuple):
    """How an executable is called. `outputs[j]` is the table entry of result j: parameters first, then `results`.

    The first launches copy a parameter to a result each, and nothing reads the parameter after them: `copies` has the
    entries. Without its copy such a launch list runs in place, for a result that lies where the parameter does.
    """

    parameters: list[Spec]
    results: list[Spec]
    outputs: list[int]
    arena: int
    segments: list[Segment]
    kernels: int  # number of kernels, for the cache's statistics
    copies: list[tuple[int, int]] = []  # noqa: RUF012 (never written to)

    def to_json(self) -> str:
        return json.dumps(encode(tuple(self)))

    @staticmethod
    def from_json(text: str) -> Schedule:
        fields = list(decode(json.loads(text)))
        fields[0], fields[1] = ([(tuple(s), d) for s, d in f] for f in fields[:2])
        fields[4] = [Segment(tuple([Launch(*k) for k in f[0]]), *f[1:]) for f in fields[4]]
        fields[2], fields[6] = list(fields[2]), list(fields[6])
        return Schedule(*fields)


def encode(value: Any) -> Any:
    """As tagged JSON: keeps tuples, dtypes, complex numbers and non-finite floats."""
    if isinstance(value, (tuple, list)):
        return {"t": [encode(v) for v in value]}
    if isinstance(value, Dtype):
        return {"d": value.name}
    if isinstance(value, dict):
        return {"m": {k: encode(v) for k, v in value.items()}}
    if isinstance(value, complex):
        return {"c": [value.real, value.imag]}
    return value


def decode(value: Any) -> Any:
    """The inverse of `encode`; lists come back as tuples."""
    if not isinstance(value, dict):
        return value
    ((tag, inner),) = value.items()
    if tag == "t":
        return tuple(decode(v) for v in inner)
    if tag == "d":
        return dtypes.from_name(inner)
    if tag == "m":
        return {k: decode(v) for k, v in inner.items()}
    return complex(*inner)


if (_llvmlite_lock := getattr(getattr(llvm.ffi.lib, "_lock", None), "_lock", None)) is not None:
    guarded(_llvmlite_lock)
_jit: Any = None
_starting = guarded(threading.RLock())


def linker() -> Any:
    """LLVM's linker."""
    global _jit
    with _starting:
        if _jit is None:
            llvm.initialize_native_target()
            llvm.initialize_native_asmprinter()
            _jit = _new_linker()
            pages.release()
        return _jit


def _new_linker() -> Any:
    target = llvm.Target.from_default_triple()
    return llvm.create_lljit_compiler(target.create_target_machine(jit=True, codemodel="jitdefault", reloc="pic"))


_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def thread_count() -> int:
    """Threads of a parallel kernel: the knob, else the cores this process may use."""
    return knobs.threads or _CORES


LAUNCHER_SYMBOLS = ("mlxir_run", "mlxir_call", "mlxir_forked", "__truncdfhf2", "__truncdfbf2")
"""What the launcher's object defines: the functions that run a program, and what LLVM's code for kernels may call."""


class _Linked:
    """An object in this process. Executables hold it; when the last one goes, LLVM unloads the code."""

    __slots__ = ("__weakref__", "addresses", "tracker")

    def __init__(self, addresses: dict[str, int], tracker: Any):
        self.addresses, self.tracker = addresses, tracker


_linked: weakref.WeakValueDictionary[str, _Linked] = weakref.WeakValueDictionary()
_linking = guarded(threading.RLock())
_libraries = itertools.count(1)
PER_LINKER = 64  # libraries: of one that is unloaded LLVM keeps 9 KB, until all code of its linker is unloaded


def _link(objects: Sequence[Object], imports: dict[str, int]) -> list[_Linked]:
    """The objects in this process; those that are not linked yet become one library."""
    global _jit
    with _linking:
        found = {o.digest: _linked.get(o.digest) for o in objects}
        new = [o for o in objects if found[o.digest] is None]
        if new:
            builder = llvm.JITLibraryBuilder()
            for o in new:
                builder.add_object_img(o.code)
                for symbol in o.symbols:
                    builder.export_symbol(symbol)
            for symbol, address in imports.items():
                builder.import_symbol(symbol, address)
            number = next(_libraries)
            tracker = builder.add_current_process().link(linker(), f"mlxir_{number}")
            if number % PER_LINKER == 0:
                _jit = _new_linker()  # the other goes with its last library
            for o in new:
                found[o.digest] = _linked[o.digest] = _Linked({s: tracker[s] for s in o.symbols}, tracker)
        return [linked for o in objects if (linked := found[o.digest]) is not None]


_NO_ARENA: Any = (0, None)
_RUN = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint)
_UNDECLARED = ctypes.CFUNCTYPE(None)  # called with a `bytes`: ctypes converts what is not declared in half the time
_launchers: list[_Linked] = []  # never unloaded: the threads of their pools run in them


def _link_launcher(launcher: Object) -> _Linked:
    """The launcher in this process."""
    with _linking:
        (linked,) = _link([launcher], {})
        if linked not in _launchers:
            _launchers.append(linked)
            in_child(_UNDECLARED(linked.addresses["mlxir_forked"]))
    return linked


class Executable:
    """Linked object code with its schedule. `run` is safe to call from several threads.

    `objects` are the launcher, first, and all objects that define a kernel of the schedule or a routine of one.
    """

    def __init__(self, objects: Sequence[Object], schedule: Schedule, library: Library):
        self._library = library
        self.code_bytes = sum(len(o.code) for o in objects)
        self._addresses = addresses = dict[str, int]()
        self.launcher = 0  # the launcher's function, for native dispatch
        if any(s.launches for s in schedule.segments):
            linker()
            runtime = _link_launcher(objects[0])
            routines = _link([o for o in objects[1:] if not o.imports], runtime.addresses)
            for linked in routines:
                addresses |= linked.addresses
            kernels = _link([o for o in objects[1:] if o.imports], runtime.addresses | addresses)
            self._code = [runtime, *routines, *kernels]
            self._call = _RUN(runtime.addresses["mlxir_run"])
            self._call_block = _UNDECLARED(runtime.addresses["mlxir_call"])
            for linked in self._code:
                addresses |= linked.addresses
            self.launcher = runtime.addresses["mlxir_run"]
        self._follow(schedule)

    def resized(self, schedule: Schedule) -> Executable:
        """The same code with another schedule of its kernels."""
        other = copy.copy(self)
        other._follow(schedule)
        return other

    def _follow(self, schedule: Schedule) -> None:
        """Make what `run` needs of a schedule."""
        self.schedule, self._outputs, addresses = schedule, schedule.outputs, self._addresses
        segments = [s.launches for s in schedule.segments if s.launches]
        self._words = [_words(launches, addresses) for launches in segments]
        self._only = ctypes.addressof(self._words[0]) if len(segments) == 1 == len(schedule.segments) else 0
        self._pack = struct.Struct(f"{len(schedule.parameters) + len(schedule.results)}Q").pack
        self._pack_block = struct.Struct(f"3Q{len(schedule.parameters) + len(schedule.results)}Q").pack
        self._results = allocator(schedule.results)
        first = len(schedule.parameters)
        self._in_order = schedule.outputs == list(range(first, first + len(schedule.results)))
        self._arena = pool.size_class(schedule.arena) if schedule.arena else 0
        # For native dispatch: what the launcher runs (copies apart), the size class of scratch memory.
        self.program, self.arena, self.copies = self._only, self._arena, []
        if schedule.copies and self._only:
            first = len(schedule.copies)
            parts = [segments[0][first:], *[(one,) for one in segments[0][:first]]]
            self._apart = [_words(launches, addresses) for launches in parts]
            self.program, *self.copies = [ctypes.addressof(words) for words in self._apart]
        self._simple = bool(self._only and self._in_order and not self._arena)

    def run(self, arguments: list[Buffer]) -> list[Buffer]:
        """The results for concrete arguments, which must have the parameters' shapes and dtypes (the caller's key says
        so).
        """
        results = self._results()
        if self.copies:
            return self._run_in_place(arguments, results)
        buffers = arguments + results
        if self._simple:
            addresses = [b.address or b.pointer for b in buffers]
            self._call_block(self._pack_block(self._only, 0, knobs.threads or _CORES, *addresses))
            return results
        arena = pool.take(self._arena) if self._arena else _NO_ARENA
        try:
            if self._only:
                threads = knobs.threads or _CORES
                addresses = [b.address or b.pointer for b in buffers]
                self._call_block(self._pack_block(self._only, arena[0], threads, *addresses))
            else:
                self._run_segments(self._pack(*[b.address or b.pointer for b in buffers]), arena[0], buffers)
        finally:
            if self._arena:
                pool.give(self._arena, arena)
        return results if self._in_order else [buffers[i] for i in self._outputs]

    def _run_in_place(self, arguments: list[Buffer], results: list[Buffer]) -> list[Buffer]:
        """`run` where results begin as copies of arguments; those of arguments that are `Spare` take their memory."""
        copies, first = [], len(arguments)
        for (parameter, result), words in zip(self.schedule.copies, self.copies, strict=True):
            argument = arguments[parameter]
            if isinstance(argument, Spare):
                results[result - first] = argument.taken()
            else:
                copies.append(words)
        buffers = arguments + results
        addresses = [b.address or b.pointer for b in buffers]
        arena = pool.take(self._arena) if self._arena else _NO_ARENA
        try:
            for words in (*copies, self.program):
                self._call_block(self._pack_block(words, arena[0], thread_count(), *addresses))
        finally:
            if self._arena:
                pool.give(self._arena, arena)
        return [buffers[i] for i in self._outputs]

    def call(self, table: Any, arena: int, threads: int) -> None:
        """Run all kernels on the addresses in `table`, for a schedule without library steps."""
        for words in self._words:
            self._call(ctypes.addressof(words), table, arena, threads)

    def _run_segments(self, table: bytes, arena: int, buffers: list[Buffer]) -> None:
        words = iter(self._words)
        for segment in self.schedule.segments:
            if segment.launches:
                self._call(ctypes.addressof(next(words)), table, arena, thread_count())
                continue
            operands = [_view(p, arena, buffers) for p in segment.operands]
            specs = [(tuple(shape), dtype) for _, _, shape, dtype in segment.results]
            results = self._library(segment.primitive, segment.attrs or {}, operands, specs)
            for place, value in zip(segment.results, results, strict=True):
                _view(place, arena, buffers)[...] = value


def _words(launches: Sequence[Launch], addresses: dict[str, int]) -> Any:
    """A run of kernels as the launcher reads it (compiler/target/cpu.py)."""
    words = [max([len(k.places) for k in launches], default=0)]
    for k in launches:
        words += [addresses[k.symbol], k.extent, k.align, k.useful, len(k.places), *k.places]
    return (ctypes.c_int64 * (len(words) + 1))(*words, 0)


def _view(place: tuple, arena: int, buffers: list[Buffer]) -> np.ndarray:
    """The NumPy view of a value in the caller's table or in the arena."""
    kind, at, shape, dtype = place
    if kind == "table":
        return buffers[at].numpy()
    count = prod(shape)
    raw = (ctypes.c_uint8 * max(count * dtype.size, 1)).from_address(arena + at)
    return np.frombuffer(raw, dtype.numpy, count).reshape(shape)
