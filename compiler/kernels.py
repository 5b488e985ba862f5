"""Kernels by content: equal kernels are compiled once, whatever program they belong to.

    func.func @mx_sum_2(%x: tensor<8xf32>) ...   ->  key: a digest of this text without the name, of how the kernel is
                                                     lowered, of the compiler and of the processor
    key  ->  its steps (names, iterations, work, buffers, symbols), its temporaries, and the object that defines them

Equal layers share their code, and a program that was edited compiles only the kernels that changed: they are kept in
memory and on disk. So are routines, by their symbol. The caller sees to it that one thread compiles at a time.
"""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

from mlxir.compiler import objects
from mlxir.compiler.lower.routines import Routine
from mlxir.compiler.lower.steps import Lowered, Step
from mlxir.dialects.mlir import Function
from mlxir.dialects.mx import Aval
from mlxir.runtime import store
from mlxir.runtime.launch import Object, decode, encode


class Kernel(NamedTuple):
    """A compiled kernel. Its steps are named by what follows the kernel's name (see `unnamed`)."""

    lowered: Lowered
    code: Object

    def unnamed(self, name: str) -> Kernel:
        """This kernel, whose steps' names still begin with `name`."""
        steps = [s._replace(name=s.name[len(name) :]) for s in self.lowered.steps]
        return self._replace(lowered=self.lowered._replace(steps=steps))

    def named(self, name: str) -> Lowered:
        """The kernel as a program knows it."""
        return self.lowered._replace(steps=[s._replace(name=name + s.name) for s in self.lowered.steps])


def key_of(function: Function, kind: str) -> str:
    """What a kernel is found by."""
    text = function.operation.get_asm(assume_verified=True).replace(f"@{function.name}(", "@kernel(", 1)
    return hashlib.sha256(objects.fingerprint() + f"{kind}\n{text}".encode()).hexdigest()


def symbols(lowered: Lowered, key: str) -> Lowered:
    """The steps with symbols that are theirs alone in all programs."""
    return lowered._replace(steps=[s._replace(symbol=f"mlxir_{key[:32]}_{n}") for n, s in enumerate(lowered.steps)])


def recall(key: str) -> Kernel | None:
    """A kernel that was kept, by this process or an earlier one."""
    found: Kernel | None = objects.kernels.recall(key)
    if found is None and (entry := store.load(key)) is not None:
        steps, temporaries, routines, digest = decode(json.loads(entry[0]))
        code = objects.recall(digest)
        if code is not None:
            lowered = Lowered(
                [Step(*s) for s in steps], [Aval(*a) for a in temporaries], tuple([Routine(*r) for r in routines])
            )
            found = Kernel(lowered, code)
            objects.kernels.keep(key, found)
    return found


def keep(key: str, kernel: Kernel) -> Kernel:
    """Keep a compiled kernel."""
    objects.kernels.keep(key, kernel)
    objects.keep(kernel.code)
    store.save(key, json.dumps(encode((*kernel.lowered, kernel.code.digest))), b"")
    return kernel


def _routine_key(routine: Routine) -> str:
    return hashlib.sha256(objects.fingerprint() + routine.symbol.encode()).hexdigest()


def recall_routine(routine: Routine) -> Object | None:
    """The object of a routine that was kept, by this process or an earlier one."""
    return objects.recall(_routine_key(routine))


def keep_routine(routine: Routine, code: bytes) -> Object:
    """Keep the object code of a routine."""
    made = Object(_routine_key(routine), (routine.symbol,), code)
    objects.keep(made)
    return made
