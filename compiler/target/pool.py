"""The threads that share a program's steps: LLVM IR of a pool, on POSIX threads.

A caller publishes a step as a job. Helpers that look for work enter it and take pieces, as the caller does itself; at
the end the caller waits for those inside, never for helpers that did not come. A thread that the system does not run
thus costs nothing but the piece it was at. Helpers look for work for SPIN ns after their last piece, then sleep.

    @mlxir.launch   publish, work, close, wait         @mlxir.helper   look for jobs, enter, work, leave; sleep
    @mlxir.work     take pieces until none is left     @mlxir.hire     start threads, when a step wants more

All of a job that helpers look at from outside is one word, its state: seats << 32 | ASLEEP | helpers inside. A helper
enters by one compare-and-swap that takes a seat and counts it in; without seats nobody enters. Nothing else of a job is
read from outside, so its memory may change as soon as it is closed (no seats) and empty.

- Entering (acquire) follows publishing (release): helpers see the job, its counters and what earlier steps wrote.
- Leaving (release) comes before the caller finds the job empty (acquire): it sees what helpers wrote.
- Pieces are taken by compare-and-swap without order: they carry no data.
- A helper counts itself as a sleeper, then looks for seats; a caller publishes seats, then looks for sleepers. Both are
  sequentially consistent, so one of them sees the other. A caller sets ASLEEP and looks at the count again in the same
  way, under the job's mutex, which who leaves last takes before it signals.

Several callers hold a job each; one that finds none free runs its step alone. A forked child has no helpers: as callers
wait for nobody who is not inside, all it needs is an empty pool (`mlxir_forked`). Where no thread can be started, steps
run alone. The code must stay in memory for as long as the process lives: helpers never end.
"""

from __future__ import annotations

import platform
import sys

SPIN = 50_000  # ns that an idle helper looks for work: from kernel to kernel; waking one takes as long
PATIENCE = 20_000  # ns that a caller looks whether the last helpers are done
JOBS = 4  # callers that share the helpers at a time
MOST = 256  # threads of a step
STACK = 8 << 20  # bytes of a helper's stack: kernels keep their blocks there
LOOKS = 64  # between two looks at the clock, about 1 us
SEAT, ASLEEP = 1 << 32, 1 << 16  # of a job's state
WITHOUT_SEATS = SEAT - 1

_PAUSES = {"x86_64": "x86.sse2.pause()", "aarch64": "aarch64.hint(i32 1)", "arm64": "aarch64.hint(i32 1)"}
_MONOTONIC = 6 if sys.platform == "darwin" else 1  # CLOCK_MONOTONIC
_PAUSE = _PAUSES.get(platform.machine(), "donothing()")

# Of the pool: sleepers, tickets (wakes that no sleeper has taken), helpers, most helpers asked for, whether somebody
# hires; mutex, condition. Of a job: state; function, iterations, share, align, threads, buffers, whether a caller has
# it; mutex, condition; how much of each share is taken, in a cache line of its own.
POOL = f"""
%mlxir.line = type [8 x i64]
%mlxir.job = type {{ %mlxir.line, {{ ptr, i64, i64, i64, i64, ptr, i64, i64 }}, %mlxir.line, %mlxir.line, \
[{MOST} x %mlxir.line] }}
%mlxir.pool = type {{ {{ i64, i64, i64, i64, i64, [3 x i64] }}, %mlxir.line, %mlxir.line }}

@mlxir.jobs = internal global [{JOBS} x %mlxir.job] zeroinitializer, align 64
@mlxir.pool = internal global %mlxir.pool zeroinitializer, align 64

declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_detach(ptr)
declare i32 @pthread_attr_init(ptr)
declare i32 @pthread_attr_setstacksize(ptr, i64)
declare i32 @pthread_attr_destroy(ptr)
declare i32 @pthread_mutex_init(ptr, ptr)
declare i32 @pthread_mutex_lock(ptr)
declare i32 @pthread_mutex_trylock(ptr)
declare i32 @pthread_mutex_unlock(ptr)
declare i32 @pthread_cond_init(ptr, ptr)
declare i32 @pthread_cond_wait(ptr, ptr)
declare i32 @pthread_cond_signal(ptr)
declare i32 @pthread_cond_broadcast(ptr)
declare i32 @sched_yield()
declare i32 @clock_gettime(i32, ptr)
declare void @llvm.{_PAUSE.replace(" 1", "")}
declare i64 @llvm.umin.i64(i64, i64)
declare i64 @llvm.usub.sat.i64(i64, i64)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)

define internal i64 @mlxir.now() {{
  %time = alloca {{ i64, i64 }}
  %done = call i32 @clock_gettime(i32 {_MONOTONIC}, ptr %time)
  %seconds = load i64, ptr %time
  %np = getelementptr {{ i64, i64 }}, ptr %time, i32 0, i32 1
  %ns = load i64, ptr %np
  %whole = mul i64 %seconds, 1000000000
  %now = add i64 %whole, %ns
  ret i64 %now
}}

; Take pieces of a job until none is left. Iterations are shared out evenly. A thread takes a quarter of what is left of
; its own share (rounded up to `align`) until nothing is, then of what others have not begun.
define internal void @mlxir.work(ptr %job, i64 %t) {{
entry:
  %fp = getelementptr %mlxir.job, ptr %job, i32 0, i32 1, i32 0
  %fn = load ptr, ptr %fp
  %np = getelementptr %mlxir.job, ptr %job, i32 0, i32 1, i32 1
  %n = load i64, ptr %np
  %sp = getelementptr %mlxir.job, ptr %job, i32 0, i32 1, i32 2
  %share = load i64, ptr %sp
  %ap = getelementptr %mlxir.job, ptr %job, i32 0, i32 1, i32 3
  %align = load i64, ptr %ap
  %tp = getelementptr %mlxir.job, ptr %job, i32 0, i32 1, i32 4
  %T = load i64, ptr %tp
  %bp = getelementptr %mlxir.job, ptr %job, i32 0, i32 1, i32 5
  %buffers = load ptr, ptr %bp
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
  %counter = getelementptr %mlxir.job, ptr %job, i32 0, i32 4, i64 %whose
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
  %mine = extractvalue {{ i64, i1 }} %swapped, 1
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
}}

; A job with seats, or null.
define internal ptr @mlxir.open() {{
entry:
  br label %look
look:
  %i = phi i64 [ 0, %entry ], [ %i1, %other ]
  %job = getelementptr [{JOBS} x %mlxir.job], ptr @mlxir.jobs, i64 0, i64 %i
  %state = load atomic i64, ptr %job seq_cst, align 8
  %free = icmp ugt i64 %state, {WITHOUT_SEATS}
  br i1 %free, label %found, label %other
other:
  %i1 = add i64 %i, 1
  %more = icmp ult i64 %i1, {JOBS}
  br i1 %more, label %look, label %nothing
found:
  ret ptr %job
nothing:
  ret ptr null
}}

; Enter an open job, work, leave. Helpers are 1, 2, ...
define internal i1 @mlxir.help(i64 %number) {{
entry:
  %job = call ptr @mlxir.open()
  %nothing = icmp eq ptr %job, null
  br i1 %nothing, label %late, label %look
look:
  %state = load atomic i64, ptr %job monotonic, align 8
  %free = icmp ugt i64 %state, {WITHOUT_SEATS}
  br i1 %free, label %enter, label %late
enter:
  %entered = sub i64 %state, {SEAT - 1}
  %swapped = cmpxchg ptr %job, i64 %state, i64 %entered acquire monotonic
  %inside = extractvalue {{ i64, i1 }} %swapped, 1
  br i1 %inside, label %work, label %late
late:
  ret i1 false
work:
  %tp = getelementptr %mlxir.job, ptr %job, i32 0, i32 1, i32 4
  %T = load i64, ptr %tp
  %others = sub i64 %T, 1
  %before = sub i64 %number, 1
  %which = urem i64 %before, %others
  %t = add i64 %which, 1
  call void @mlxir.work(ptr %job, i64 %t)
  %closed = atomicrmw and ptr %job, i64 {WITHOUT_SEATS} monotonic
  %was = atomicrmw sub ptr %job, i64 1 release
  %low = and i64 %was, {WITHOUT_SEATS}
  %last = icmp eq i64 %low, {ASLEEP + 1}
  br i1 %last, label %wake, label %done
wake:
  %mutex = getelementptr %mlxir.job, ptr %job, i32 0, i32 2
  %cond = getelementptr %mlxir.job, ptr %job, i32 0, i32 3
  %e0 = call i32 @pthread_mutex_lock(ptr %mutex)
  %e1 = call i32 @pthread_mutex_unlock(ptr %mutex)
  %e2 = call i32 @pthread_cond_signal(ptr %cond)
  br label %done
done:
  ret i1 true
}}

; A thread of the pool. It offers its core to others whenever it has looked for about a microsecond: whoever waits there
; may be the caller, and a helper that the system stops because its time is up is at a piece.
define internal ptr @mlxir.helper(ptr %argument) {{
entry:
  %number = ptrtoint ptr %argument to i64
  br label %fresh
fresh:
  %since = call i64 @mlxir.now()
  br label %look
look:
  %k = phi i64 [ 0, %fresh ], [ %k1, %idle ], [ 0, %late ]
  %worked = call i1 @mlxir.help(i64 %number)
  br i1 %worked, label %fresh, label %idle
idle:
  call void @llvm.{_PAUSE}
  %k1 = add i64 %k, 1
  %more = icmp ult i64 %k1, {LOOKS}
  br i1 %more, label %look, label %late
late:
  %e = call i32 @sched_yield()
  %now = call i64 @mlxir.now()
  %spent = sub i64 %now, %since
  %long = icmp ugt i64 %spent, {SPIN}
  br i1 %long, label %sleep, label %look
sleep:
  call void @mlxir.sleep()
  br label %fresh
}}

define internal void @mlxir.sleep() {{
entry:
  %mutex = getelementptr %mlxir.pool, ptr @mlxir.pool, i32 0, i32 1
  %cond = getelementptr %mlxir.pool, ptr @mlxir.pool, i32 0, i32 2
  %tickets = getelementptr %mlxir.pool, ptr @mlxir.pool, i32 0, i32 0, i32 1
  %e0 = call i32 @pthread_mutex_lock(ptr %mutex)
  %before = atomicrmw add ptr @mlxir.pool, i64 1 seq_cst
  %job = call ptr @mlxir.open()
  %nothing = icmp eq ptr %job, null
  br i1 %nothing, label %asleep, label %stay
stay:
  %again = atomicrmw sub ptr @mlxir.pool, i64 1 monotonic
  br label %end
asleep:
  %some = load i64, ptr %tickets
  %called = icmp ne i64 %some, 0
  br i1 %called, label %awake, label %wait
wait:
  %e1 = call i32 @pthread_cond_wait(ptr %cond, ptr %mutex)
  br label %asleep
awake:
  %rest = sub i64 %some, 1
  store i64 %rest, ptr %tickets
  br label %end
end:
  %e2 = call i32 @pthread_mutex_unlock(ptr %mutex)
  ret void
}}

; Wake up to `want` sleepers, unless the system has just stopped one that holds the mutex: the next step wakes it.
define internal void @mlxir.wake(i64 %want) {{
entry:
  %mutex = getelementptr %mlxir.pool, ptr @mlxir.pool, i32 0, i32 1
  %cond = getelementptr %mlxir.pool, ptr @mlxir.pool, i32 0, i32 2
  %tp = getelementptr %mlxir.pool, ptr @mlxir.pool, i32 0, i32 0, i32 1
  %e0 = call i32 @pthread_mutex_trylock(ptr %mutex)
  %free = icmp eq i32 %e0, 0
  br i1 %free, label %count, label %end
count:
  %sleepers = load atomic i64, ptr @mlxir.pool monotonic, align 8
  %called = call i64 @llvm.umin.i64(i64 %want, i64 %sleepers)
  %rest = sub i64 %sleepers, %called
  store atomic i64 %rest, ptr @mlxir.pool monotonic, align 8
  %tickets = load i64, ptr %tp
  %given = add i64 %tickets, %called
  store i64 %given, ptr %tp
  %e1 = call i32 @pthread_mutex_unlock(ptr %mutex)
  %all = icmp eq i64 %rest, 0
  br i1 %all, label %everybody, label %each
everybody:
  %e2 = call i32 @pthread_cond_broadcast(ptr %cond)
  ret void
each:
  %i = phi i64 [ 0, %count ], [ %i1, %each ]
  %e3 = call i32 @pthread_cond_signal(ptr %cond)
  %i1 = add i64 %i, 1
  %more = icmp ult i64 %i1, %called
  br i1 %more, label %each, label %end
end:
  ret void
}}

; Start helpers until there are `want`, unless somebody does already. It is not tried again for as many.
define internal void @mlxir.hire(i64 %want) {{
entry:
  %attributes = alloca [16 x i64], align 16
  %thread = alloca ptr
  %helpers = getelementptr %mlxir.pool, ptr @mlxir.pool, i32 0, i32 0, i32 2
  %asked = getelementptr %mlxir.pool, ptr @mlxir.pool, i32 0, i32 0, i32 3
  %hiring = getelementptr %mlxir.pool, ptr @mlxir.pool, i32 0, i32 0, i32 4
  %swapped = cmpxchg ptr %hiring, i64 0, i64 1 acquire monotonic
  %mine = extractvalue {{ i64, i1 }} %swapped, 1
  br i1 %mine, label %hire, label %end
hire:
  %have = load i64, ptr %helpers
  %e0 = call i32 @pthread_attr_init(ptr %attributes)
  %e1 = call i32 @pthread_attr_setstacksize(ptr %attributes, i64 {STACK})
  %none = icmp eq i64 %have, 0
  br i1 %none, label %first, label %more
first:
  %mutex = getelementptr %mlxir.pool, ptr @mlxir.pool, i32 0, i32 1
  %e2 = call i32 @pthread_mutex_init(ptr %mutex, ptr null)
  %cond = getelementptr %mlxir.pool, ptr @mlxir.pool, i32 0, i32 2
  %e3 = call i32 @pthread_cond_init(ptr %cond, ptr null)
  br label %job
job:
  %i = phi i64 [ 0, %first ], [ %i1, %job ]
  %jm = getelementptr [{JOBS} x %mlxir.job], ptr @mlxir.jobs, i64 0, i64 %i, i32 2
  %e4 = call i32 @pthread_mutex_init(ptr %jm, ptr null)
  %jc = getelementptr [{JOBS} x %mlxir.job], ptr @mlxir.jobs, i64 0, i64 %i, i32 3
  %e5 = call i32 @pthread_cond_init(ptr %jc, ptr null)
  %i1 = add i64 %i, 1
  %jobs = icmp ult i64 %i1, {JOBS}
  br i1 %jobs, label %job, label %more
more:
  %count = phi i64 [ %have, %hire ], [ 0, %job ], [ %number, %started ]
  %fewer = icmp ult i64 %count, %want
  br i1 %fewer, label %start, label %done
start:
  %number = add i64 %count, 1
  %argument = inttoptr i64 %number to ptr
  %failed = call i32 @pthread_create(ptr %thread, ptr %attributes, ptr @mlxir.helper, ptr %argument)
  %ok = icmp eq i32 %failed, 0
  br i1 %ok, label %started, label %done
started:
  %handle = load ptr, ptr %thread
  %e6 = call i32 @pthread_detach(ptr %handle)
  br label %more
done:
  %e7 = call i32 @pthread_attr_destroy(ptr %attributes)
  store atomic i64 %count, ptr %helpers monotonic, align 8
  store atomic i64 %want, ptr %asked monotonic, align 8
  store atomic i64 0, ptr %hiring release, align 8
  br label %end
end:
  ret void
}}

; Close a job, and wait until nobody is inside.
define internal void @mlxir.join(ptr %job) {{
entry:
  %closed = atomicrmw and ptr %job, i64 {WITHOUT_SEATS} acquire
  %stayed = and i64 %closed, {ASLEEP - 1}
  %nobody = icmp eq i64 %stayed, 0
  br i1 %nobody, label %end, label %wait
wait:
  %since = call i64 @mlxir.now()
  br label %look
look:
  %inside = load atomic i64, ptr %job acquire, align 8
  %empty = icmp eq i64 %inside, 0
  br i1 %empty, label %end, label %pause
pause:
  call void @llvm.{_PAUSE}
  %now = call i64 @mlxir.now()
  %spent = sub i64 %now, %since
  %long = icmp ugt i64 %spent, {PATIENCE}
  br i1 %long, label %sleep, label %look
sleep:
  %mutex = getelementptr %mlxir.job, ptr %job, i32 0, i32 2
  %cond = getelementptr %mlxir.job, ptr %job, i32 0, i32 3
  %e1 = call i32 @pthread_mutex_lock(ptr %mutex)
  %told = atomicrmw or ptr %job, i64 {ASLEEP} monotonic
  br label %asleep
asleep:
  %state = load atomic i64, ptr %job acquire, align 8
  %done = icmp eq i64 %state, {ASLEEP}
  br i1 %done, label %awake, label %still
still:
  %e2 = call i32 @pthread_cond_wait(ptr %cond, ptr %mutex)
  br label %asleep
awake:
  %e3 = call i32 @pthread_mutex_unlock(ptr %mutex)
  br label %end
end:
  ret void
}}

define internal void @mlxir.launch(ptr %fn, i64 %n, i64 %align, i32 %useful, i32 %threads, ptr %buffers) {{
entry:
  %less = icmp ult i32 %useful, %threads
  %T32 = select i1 %less, i32 %useful, i32 %threads
  %T64 = zext i32 %T32 to i64
  %T = call i64 @llvm.umin.i64(i64 %T64, i64 {MOST})
  %alone = icmp ule i64 %T, 1
  br i1 %alone, label %serial, label %shared
serial:
  call void %fn(i64 0, i64 %n, ptr %buffers)
  ret void
shared:
  %others = sub i64 %T, 1
  %ap = getelementptr %mlxir.pool, ptr @mlxir.pool, i32 0, i32 0, i32 3
  %asked = load atomic i64, ptr %ap monotonic, align 8
  %enough = icmp uge i64 %asked, %others
  br i1 %enough, label %find, label %hire
hire:
  call void @mlxir.hire(i64 %others)
  br label %find
find:
  %i = phi i64 [ 0, %shared ], [ 0, %hire ], [ %i1, %busy ]
  %job = getelementptr [{JOBS} x %mlxir.job], ptr @mlxir.jobs, i64 0, i64 %i
  %held = getelementptr %mlxir.job, ptr %job, i32 0, i32 1, i32 6
  %swapped = cmpxchg ptr %held, i64 0, i64 1 acquire monotonic
  %mine = extractvalue {{ i64, i1 }} %swapped, 1
  br i1 %mine, label %publish, label %busy
busy:
  %i1 = add i64 %i, 1
  %more = icmp ult i64 %i1, {JOBS}
  br i1 %more, label %find, label %serial
publish:
  %n1 = add i64 %n, %others
  %even = udiv i64 %n1, %T
  %e1 = add i64 %even, %align
  %e2 = sub i64 %e1, 1
  %e3 = udiv i64 %e2, %align
  %share = mul i64 %e3, %align
  %fp = getelementptr %mlxir.job, ptr %job, i32 0, i32 1, i32 0
  store ptr %fn, ptr %fp
  %np = getelementptr %mlxir.job, ptr %job, i32 0, i32 1, i32 1
  store i64 %n, ptr %np
  %sp = getelementptr %mlxir.job, ptr %job, i32 0, i32 1, i32 2
  store i64 %share, ptr %sp
  %lp = getelementptr %mlxir.job, ptr %job, i32 0, i32 1, i32 3
  store i64 %align, ptr %lp
  %tp = getelementptr %mlxir.job, ptr %job, i32 0, i32 1, i32 4
  store i64 %T, ptr %tp
  %bp = getelementptr %mlxir.job, ptr %job, i32 0, i32 1, i32 5
  store ptr %buffers, ptr %bp
  %counters = getelementptr %mlxir.job, ptr %job, i32 0, i32 4
  %bytes = mul i64 %T, 64
  call void @llvm.memset.p0.i64(ptr align 64 %counters, i8 0, i64 %bytes, i1 false)
  %state = shl i64 %others, 32
  %before = atomicrmw xchg ptr %job, i64 %state seq_cst
  %sleepers = load atomic i64, ptr @mlxir.pool seq_cst, align 8
  %hp = getelementptr %mlxir.pool, ptr @mlxir.pool, i32 0, i32 0, i32 2
  %helpers = load atomic i64, ptr %hp monotonic, align 8
  %awake = call i64 @llvm.usub.sat.i64(i64 %helpers, i64 %sleepers)
  %missing = call i64 @llvm.usub.sat.i64(i64 %others, i64 %awake)
  %wanted = call i64 @llvm.umin.i64(i64 %missing, i64 %sleepers)
  %none = icmp eq i64 %wanted, 0
  br i1 %none, label %work, label %wake
wake:
  call void @mlxir.wake(i64 %wanted)
  br label %work
work:
  call void @mlxir.work(ptr %job, i64 0)
  call void @mlxir.join(ptr %job)
  store atomic i64 0, ptr %held release, align 8
  ret void
}}

; In a forked child.
define void @mlxir_forked() {{
  call void @llvm.memset.p0.i64(ptr @mlxir.pool, i8 0, i64 ptrtoint \
(ptr getelementptr (%mlxir.pool, ptr null, i32 1) to i64), i1 false)
  call void @llvm.memset.p0.i64(ptr @mlxir.jobs, i8 0, i64 ptrtoint \
(ptr getelementptr ([{JOBS} x %mlxir.job], ptr null, i32 1) to i64), i1 false)
  ret void
}}
"""
