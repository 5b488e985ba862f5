"""The cache of executables: in memory by the program's structure, bounded, least recently used first out; on disk by a
digest of it.

A hit in either loads no MLIR. The digest covers the compiler's own sources and the host's processor, so a changed
compiler or another machine
never meets stale code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mlxir.compiler import evaluate, objects
from mlxir.compiler.program import Program
from mlxir.compiler.reference import compute
from mlxir.compiler.target.launcher import prepare
from mlxir.dialects.mx import RECORDS, Aval
from mlxir.runtime import pages, store
from mlxir.runtime.forks import guarded
from mlxir.runtime.jobs import Threads
from mlxir.runtime.knobs import knobs
from mlxir.runtime.launch import Executable, Schedule
from mlxir.runtime.metal.device import Device
from mlxir.runtime.metal.executable import Executable as MetalExecutable

LONG = 0.2  # seconds; giving the pages back and reading them again takes 7 ms
SWITCH = 1e-4  # seconds


@dataclass
class CacheInfo:
    """What the compiler's cache has done since the process began (`mx.compile_cache_info()`)."""

    hits: int = 0
    misses: int = 0
    disk_hits: int = 0
    compilations: int = 0
    compile_seconds: float = 0.0
    code_bytes: int = 0  # of the executables that it holds
    entries: int = 0


# Reentrant: a collection inside may run a destructor of the user's that computes something.
_lock = guarded(threading.RLock())  # of the table and the counters
compiling = guarded(threading.RLock())  # one compilation at a time; a hit does not wait for it
_info = CacheInfo()
_executables: OrderedDict[tuple, Executable | MetalExecutable] = OrderedDict()


def info() -> CacheInfo:
    """A snapshot of the counters."""
    with _lock:
        held = sum(e.code_bytes for e in _executables.values())
        return replace(_info, entries=len(_executables), code_bytes=held)


def clear() -> None:
    """Forget all executables in memory; the disk keeps its own."""
    with _lock:
        dropped = list(_executables.values())
        _executables.clear()
        objects.clear()
        evaluate.forget()
    del dropped  # without the lock: LLVM unloads their code


def executable(program: Program, device: Device | None = None) -> Executable | MetalExecutable:
    """The executable of a program for the CPU, or for a Metal device: from memory, from disk, or compiled now."""
    key = (program.key, device)
    found = _recall(key)
    if found is not None:
        return found
    with compiling:
        found = _recall(key)  # another thread may have made it meanwhile
        if found is not None:
            return found
        made = _from_disk_or_compiled(program) if device is None else _metal(program, device)
        with _lock:
            _info.misses += 1
            _executables[key] = made
            while len(_executables) > knobs.cache_entries:
                _executables.popitem(last=False)
        return made


def count(seconds: float) -> None:
    """Count a compilation; a long one can spare the time that it takes to give back what it read of the libraries."""
    with _lock:
        _info.compilations += 1
        _info.compile_seconds += seconds
    if seconds > LONG:
        pages.release()


@contextlib.contextmanager
def switching() -> Iterator[None]:
    """While kernels are lowered here and LLVM compiles others on threads, threads take turns at running Python often.

    Such a thread needs Python's lock behind each of its forty calls of LLVM, and would wait 5 ms each time.
    """
    interval = sys.getswitchinterval()
    sys.setswitchinterval(min(interval, SWITCH))
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def _recall(key: tuple) -> Executable | MetalExecutable | None:
    with _lock:
        found = _executables.get(key)
        if found is not None:
            _executables.move_to_end(key)
            _info.hits += 1
        return found


def _from_disk_or_compiled(program: Program) -> Executable:
    digest = hashlib.sha256(objects.fingerprint() + repr(program.key).encode()).hexdigest()
    found = None if knobs.dump or knobs.debug >= 3 else _from_disk(digest)
    if found is not None:
        with _lock:
            _info.disk_hits += 1
        return found
    start = time.perf_counter()
    with switching(), Threads(1) as beside:
        beside.submit(prepare)  # while MLIR loads
        from mlxir.compiler import pipeline  # lazy: it loads MLIR, which a hit on disk does not need

        code, schedule = pipeline.compile_program(program)
    made = Executable(code, schedule, library_step)
    count(time.perf_counter() - start)
    for one in code:
        objects.keep(one)
    store.save(digest, json.dumps([schedule.to_json(), [one.digest for one in code]]), b"")
    return made


def _metal(program: Program, device: Device) -> MetalExecutable:
    digest = hashlib.sha256(objects.fingerprint() + b"metal" + repr(program.key).encode()).hexdigest()
    found = None if knobs.dump or knobs.debug >= 3 else store.load(digest)
    if found is not None:
        with _lock:
            _info.disk_hits += 1
        text, schedule = json.loads(found[0])
        return MetalExecutable(device, text, schedule, library_step)
    from mlxir.compiler import pipeline  # lazy: it loads MLIR, which a hit on disk does not need

    start = time.perf_counter()
    text, schedule = pipeline.compile_metal(program)
    made = MetalExecutable(device, text, schedule, library_step)
    count(time.perf_counter() - start)
    store.save(digest, json.dumps([text, schedule]), b"")
    return made


def _from_disk(digest: str) -> Executable | None:
    """The executable of an entry all of whose objects are there."""
    entry = store.load(digest)
    if entry is None:
        return None
    schedule, digests = json.loads(entry[0])
    code = [found for d in digests if (found := objects.recall(d)) is not None]
    return Executable(code, Schedule.from_json(schedule), library_step) if len(code) == len(digests) else None


def library_step(primitive: str, attrs: dict[str, Any], operands: list[np.ndarray], specs: list) -> list[np.ndarray]:
    """A step that the host computes: the record's own implementation on NumPy."""
    return compute(RECORDS[primitive], operands, attrs, [Aval(shape, dtype) for shape, dtype in specs])
