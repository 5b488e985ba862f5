"""Object code by digest, in memory and on disk: what programs and kernels refer to.

Loads no MLIR. `fingerprint` is part of every key on disk: it covers the compiler's own sources, llvmlite and the host's
processor, so that a changed compiler or another machine never meets stale code.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm

from mlxir import dialects
from mlxir.runtime import store
from mlxir.runtime.bounded import Bounded
from mlxir.runtime.caches import streaming_bytes
from mlxir.runtime.launch import Object

_objects = Bounded(256)
kernels = Bounded(4096)
"""The table of compiler/kernels.py, which loads MLIR: it lies here to be cleared without that."""


def fingerprint() -> bytes:
    """Of the compiler's sources, of llvmlite, of the host, and of what its caches decide."""
    return _of_sources() + b"%d" % streaming_bytes()


@functools.cache
def _of_sources() -> bytes:
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for folder in (root, Path(dialects.__file__).parent):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    features = sorted(f"{k}{v}" for k, v in llvm.get_host_cpu_features().items())
    digest.update(repr((llvmlite.__version__, llvm.get_host_cpu_name(), features)).encode())
    return digest.digest()


def recall(digest: str) -> Object | None:
    """An object that was kept, by this process or an earlier one."""
    found: Object | None = _objects.recall(digest)
    if found is None and (entry := store.load(digest)) is not None:
        symbols, imports = json.loads(entry[0])
        found = Object(digest, tuple(symbols), entry[1], tuple(imports))
        _objects.keep(digest, found)
    return found


def keep(code: Object) -> None:
    """Keep an object in memory and on disk, where a file that this process has neither read nor written may be damaged.
    """
    if recall(code.digest) is None or not store.holds(code.digest):
        store.save(code.digest, json.dumps([code.symbols, code.imports]), code.code)
    _objects.keep(code.digest, code)


def clear() -> None:
    """Forget the objects and kernels in memory."""
    _objects.clear()
    kernels.clear()
