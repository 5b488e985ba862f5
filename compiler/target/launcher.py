"""The launcher: LLVM IR that runs a program, a list of launches, each over the threads if its work pays for them.

It is the same for all programs, and needs no MLIR: it is compiled, or found on disk, while MLIR loads.
"""

from __future__ import annotations

import functools
import hashlib
import threading

from mlxir.compiler import objects
from mlxir.compiler.target.codegen import compiled
from mlxir.compiler.target.pool import POOL
from mlxir.runtime.forks import guarded
from mlxir.runtime.launch import LAUNCHER_SYMBOLS, Object, linker

LAUNCHER = """
; LLVM may fold double -> float -> half to one libcall, which lives in compiler-rt: kernels are linked with these.
define half @__truncdfhf2(double %d) {
  %slot = alloca float
  %f = fptrunc double %d to float
  store volatile float %f, ptr %slot
  %g = load volatile float, ptr %slot
  %h = fptrunc float %g to half
  ret half %h
}
define bfloat @__truncdfbf2(double %d) {
  %slot = alloca float
  %f = fptrunc double %d to float
  store volatile float %f, ptr %slot
  %g = load volatile float, ptr %slot
  %h = fptrunc float %g to bfloat
  ret bfloat %h
}

; A program is a list of 64-bit words: the most buffers of a launch, then the launches, then 0. A launch is its
; function, its iterations, `align`, the threads that pay, the number of its buffers, and these: offsets in the arena,
; or complements of entries of the table.
define void @mlxir_run(ptr %program, ptr %table, ptr %arena, i32 %threads) {
entry:
  %most = load i64, ptr %program
  %buffers = alloca ptr, i64 %most, align 16
  %first = getelementptr i64, ptr %program, i64 1
  br label %next
next:
  %at = phi ptr [ %first, %entry ], [ %after, %go ]
  %fn = load ptr, ptr %at
  %end = icmp eq ptr %fn, null
  br i1 %end, label %done, label %launch
launch:
  %np = getelementptr i64, ptr %at, i64 1
  %n = load i64, ptr %np
  %ap = getelementptr i64, ptr %at, i64 2
  %align = load i64, ptr %ap
  %up = getelementptr i64, ptr %at, i64 3
  %useful = load i32, ptr %up
  %cp = getelementptr i64, ptr %at, i64 4
  %count = load i64, ptr %cp
  %places = getelementptr i64, ptr %at, i64 5
  br label %more
more:
  %i = phi i64 [ 0, %launch ], [ %i1, %place ]
  %left = icmp ult i64 %i, %count
  br i1 %left, label %place, label %go
place:
  %pp = getelementptr i64, ptr %places, i64 %i
  %p = load i64, ptr %pp
  %inside = icmp sge i64 %p, 0
  %index = xor i64 %p, -1
  %offset = getelementptr i8, ptr %arena, i64 %p
  %entry_at = getelementptr ptr, ptr %table, i64 %index
  %from = select i1 %inside, ptr %program, ptr %entry_at
  %given = load ptr, ptr %from
  %b = select i1 %inside, ptr %offset, ptr %given
  %slot = getelementptr ptr, ptr %buffers, i64 %i
  store ptr %b, ptr %slot
  %i1 = add i64 %i, 1
  br label %more
go:
  call void @mlxir.launch(ptr %fn, i64 %n, i64 %align, i32 %useful, i32 %threads, ptr %buffers)
  %after = getelementptr i64, ptr %places, i64 %count
  br label %next
done:
  ret void
}

; The same with one argument, which Python passes faster: the program, the arena, the threads, then the table.
define void @mlxir_call(ptr %block) {
  %program = load ptr, ptr %block
  %ap = getelementptr i64, ptr %block, i64 1
  %arena = load ptr, ptr %ap
  %tp = getelementptr i64, ptr %block, i64 2
  %threads64 = load i64, ptr %tp
  %threads = trunc i64 %threads64 to i32
  %table = getelementptr i64, ptr %block, i64 3
  call void @mlxir_run(ptr %program, ptr %table, ptr %arena, i32 %threads)
  ret void
}
"""

_making = guarded(threading.RLock())


def launcher() -> Object:
    """The object code of the launcher."""
    with _making:
        return _launcher()


@functools.cache
def _launcher() -> Object:
    digest = hashlib.sha256(objects.fingerprint() + b"launcher").hexdigest()
    found = objects.recall(digest)
    if found is None:
        found = Object(digest, LAUNCHER_SYMBOLS, compiled(POOL + LAUNCHER, optimised=False))
        objects.keep(found)
    return found


def prepare() -> None:
    """What the first executable needs of LLVM: the launcher and the linker."""
    launcher()
    linker()
