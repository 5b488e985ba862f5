"""The cache of executables: in memory by the program's structure, bounded, least recently used first out; on disk by a
digest of it.

A hit in either loads no MLIR. The digest covers the compiler's own sources and the host's processor, so a changed
compiler or another machine
never meets stale code.
"""

from __future__ import annotations

import functools
import hashlib
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numpy as np

from mlxir import dialects
from mlxir.compiler.program import Program
from mlxir.compiler.reference import compute
from mlxir.dialects.mx import RECORDS, Aval
from mlxir.runtime import store
from mlxir.runtime.knobs import knobs
from mlxir.runtime.launch import Executable, Schedule


@dataclass
class CacheInfo:
    """What the compiler's cache has done since the process began (`mx.compile_cache_info()`)."""

    hits: int = 0
    misses: int = 0
    disk_hits: int = 0
    compilations: int = 0
    compile_seconds: float = 0.0
    code_bytes: int = 0
    entries: int = 0


_lock = threading.RLock()
_info = CacheInfo()
_executables: OrderedDict[tuple, Executable] = OrderedDict()


def info() -> CacheInfo:
    """A snapshot of the counters."""
    with _lock:
        return replace(_info, entries=len(_executables))


def clear() -> None:
    """Forget all executables in memory; the disk keeps its own."""
    with _lock:
        _executables.clear()


@functools.cache
def _fingerprint() -> bytes:
    """Of the compiler's sources, of llvmlite and of the host."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for folder in (root, Path(dialects.__file__).parent):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    features = sorted(f"{k}{v}" for k, v in llvm.get_host_cpu_features().items())
    digest.update(repr((llvmlite.__version__, llvm.get_host_cpu_name(), features)).encode())
    return digest.digest()


def executable(program: Program) -> Executable:
    """The executable of a program: from memory, from disk, or compiled now."""
    key = program.key
    with _lock:
        found = _executables.get(key)
        if found is not None:
            _executables.move_to_end(key)
            _info.hits += 1
            return found
        _info.misses += 1
        made = _from_disk_or_compiled(program)
        _executables[key] = made
        while len(_executables) > knobs.cache_entries:
            _executables.popitem(last=False)
        return made


def _from_disk_or_compiled(program: Program) -> Executable:
    digest = hashlib.sha256(_fingerprint() + repr(program.key).encode()).hexdigest()
    entry = None if knobs.dump or knobs.debug >= 3 else store.load(digest)
    if entry is not None:
        text, code = entry
        _info.disk_hits += 1
        return Executable(code, Schedule.from_json(text), library_step)
    from mlxir.compiler import pipeline  # lazy: it loads MLIR, which a hit on disk does not need

    start = time.perf_counter()
    code, schedule = pipeline.compile_program(program)
    made = Executable(code, schedule, library_step)
    _info.compilations += 1
    _info.compile_seconds += time.perf_counter() - start
    _info.code_bytes += len(code)
    store.save(digest, schedule.to_json(), code)
    return made


def library_step(primitive: str, attrs: dict[str, Any], operands: list[np.ndarray], specs: list) -> list[np.ndarray]:
    """A step that the host computes: the record's own implementation on NumPy."""
    return compute(RECORDS[primitive], operands, attrs, [Aval(shape, dtype) for shape, dtype in specs])
