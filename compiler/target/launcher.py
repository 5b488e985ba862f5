"""The launcher: LLVM IR that runs a program, a list of launches, each over the threads if its work pays for them.

It is the same for all programs, and needs no MLIR: it is compiled, or found on disk, while MLIR loads.
"""

from __future__ import annotations

import functools
import hashlib
import threading

from mlxir.compiler import objects
from mlxir.compiler.target.codegen import compiled
from mlxir.runtime.launch import LAUNCHER_SYMBOLS, Object, linker

LAUNCHER = """
%mlxir.task = type { ptr, i64, i64, ptr, ptr }

declare void @GOMP_parallel(ptr, ptr, i32, i32)
declare i32 @omp_get_thread_num()
declare i32 @omp_get_num_threads()
declare i64 @llvm.umin.i64(i64, i64)
declare i64 @llvm.usub.sat.i64(i64, i64)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)

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

; One thread's part of a step. Iterations are shared out evenly. A thread takes a quarter of what is left of its own
; share (rounded up to `align`) until nothing is, then of what others have not begun, so that nobody waits for a thread
; that the system runs late or slowly, or whose iterations are longer. What each has taken is counted in a cache line of
; its own.
define internal void @mlxir.share(ptr %mlxir.task) {
entry:
  %fn = load ptr, ptr %mlxir.task
  %np = getelementptr %mlxir.task, ptr %mlxir.task, i32 0, i32 1
  %n = load i64, ptr %np
  %ap = getelementptr %mlxir.task, ptr %mlxir.task, i32 0, i32 2
  %align = load i64, ptr %ap
  %bp = getelementptr %mlxir.task, ptr %mlxir.task, i32 0, i32 3
  %buffers = load ptr, ptr %bp
  %kp = getelementptr %mlxir.task, ptr %mlxir.task, i32 0, i32 4
  %counters = load ptr, ptr %kp
  %t32 = call i32 @omp_get_thread_num()
  %T32 = call i32 @omp_get_num_threads()
  %t = zext i32 %t32 to i64
  %T = zext i32 %T32 to i64
  %n1 = add i64 %n, %T
  %n2 = sub i64 %n1, 1
  %even = udiv i64 %n2, %T
  %e1 = add i64 %even, %align
  %e2 = sub i64 %e1, 1
  %e3 = udiv i64 %e2, %align
  %share = mul i64 %e3, %align
  %quarter = mul i64 %align, 4
  %almost = sub i64 %quarter, 1
  br label %next
next:
  %v = phi i64 [ 0, %entry ], [ %v1, %done ]
  %whose0 = add i64 %t, %v
  %over = icmp uge i64 %whose0, %T
  %whose1 = sub i64 %whose0, %T
  %whose = select i1 %over, i64 %whose1, i64 %whose0
  %first = mul i64 %whose, %share
  %left = call i64 @llvm.usub.sat.i64(i64 %n, i64 %first)
  %length = call i64 @llvm.umin.i64(i64 %left, i64 %share)
  %counter = getelementptr [64 x i8], ptr %counters, i64 %whose
  br label %look
look:
  %taken = load atomic i64, ptr %counter monotonic, align 8
  %some = icmp ult i64 %taken, %length
  br i1 %some, label %take, label %done
take:
  %rest = sub i64 %length, %taken
  %p1 = add i64 %rest, %almost
  %p2 = udiv i64 %p1, %quarter
  %piece = mul i64 %p2, %align
  %to0 = add i64 %taken, %piece
  %swapped = cmpxchg ptr %counter, i64 %taken, i64 %to0 monotonic monotonic
  %mine = extractvalue { i64, i1 } %swapped, 1
  br i1 %mine, label %work, label %look
work:
  %to = call i64 @llvm.umin.i64(i64 %to0, i64 %length)
  %lo = add i64 %first, %taken
  %hi = add i64 %first, %to
  call void %fn(i64 %lo, i64 %hi, ptr %buffers)
  br label %look
done:
  %v1 = add i64 %v, 1
  %more = icmp ult i64 %v1, %T
  br i1 %more, label %next, label %end
end:
  ret void
}

define internal void @mlxir.launch(ptr %fn, i64 %n, i64 %align, i32 %useful, i32 %threads, ptr %buffers) {
  %less = icmp ult i32 %useful, %threads
  %T = select i1 %less, i32 %useful, i32 %threads
  %alone = icmp ule i32 %T, 1
  br i1 %alone, label %serial, label %fork
serial:
  call void %fn(i64 0, i64 %n, ptr %buffers)
  ret void
fork:
  %mlxir.task = alloca %mlxir.task
  store ptr %fn, ptr %mlxir.task
  %np = getelementptr %mlxir.task, ptr %mlxir.task, i32 0, i32 1
  store i64 %n, ptr %np
  %ap = getelementptr %mlxir.task, ptr %mlxir.task, i32 0, i32 2
  store i64 %align, ptr %ap
  %bp = getelementptr %mlxir.task, ptr %mlxir.task, i32 0, i32 3
  store ptr %buffers, ptr %bp
  %lines = zext i32 %T to i64
  %counters = alloca [64 x i8], i64 %lines, align 64
  %bytes = mul i64 %lines, 64
  call void @llvm.memset.p0.i64(ptr align 64 %counters, i8 0, i64 %bytes, i1 false)
  %kp = getelementptr %mlxir.task, ptr %mlxir.task, i32 0, i32 4
  store ptr %counters, ptr %kp
  call void @GOMP_parallel(ptr @mlxir.share, ptr %mlxir.task, i32 %T, i32 0)
  ret void
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

_making = threading.Lock()


def launcher() -> Object:
    """The object code of the launcher."""
    with _making:
        return _launcher()


@functools.cache
def _launcher() -> Object:
    digest = hashlib.sha256(objects.fingerprint() + b"launcher").hexdigest()
    found = objects.recall(digest)
    if found is None:
        found = Object(digest, LAUNCHER_SYMBOLS, compiled(LAUNCHER, optimised=False))
        objects.keep(found)
    return found


def prepare() -> None:
    """What the first executable needs of LLVM: the launcher and the linker."""
    launcher()
    linker()
