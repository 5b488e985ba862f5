"""The threads that share steps (compiler/target/pool.py), by handwritten kernels.

What may hang or end the process runs in one of its own, with a time limit.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from mlxir.compiler.target.codegen import compiled
from mlxir.compiler.target.launcher import launcher
from mlxir.runtime.launch import Executable, Launch, Object, Schedule, Segment

KERNELS = """
declare i32 @usleep(i32)

define void @test.count(i64 %lo, i64 %hi, ptr %buffers) {
entry:
  %counts = load ptr, ptr %buffers
  br label %loop
loop:
  %i = phi i64 [ %lo, %entry ], [ %i1, %loop ]
  %at = getelementptr i64, ptr %counts, i64 %i
  %before = atomicrmw add ptr %at, i64 1 monotonic
  %i1 = add i64 %i, 1
  %more = icmp ult i64 %i1, %hi
  br i1 %more, label %loop, label %end
end:
  ret void
}

; As many milliseconds as iterations.
define void @test.nap(i64 %lo, i64 %hi, ptr %buffers) {
  %n = sub i64 %hi, %lo
  %ms = trunc i64 %n to i32
  %us = mul i32 %ms, 1000
  %e = call i32 @usleep(i32 %us)
  call void @test.count(i64 %lo, i64 %hi, ptr %buffers)
  ret void
}
"""


def executable(*launches: Launch) -> Executable:
    """Runs kernels above, on a table of one array."""
    kernels = Object("tests of the pool", ("test.count", "test.nap"), compiled(KERNELS))
    return Executable([launcher(), kernels], Schedule([], [], [], 0, [Segment(launches)], 1), lambda *_: [])


def counted(program: Executable, extent: int, threads: int) -> list[int]:
    """How often each iteration of a program has run."""
    counts = np.zeros(extent, np.int64)
    table = np.array([counts.ctypes.data], np.int64)
    program.call(table.ctypes.data, 0, threads)
    return counts.tolist()


@pytest.mark.parametrize("extent, align", [(1, 1), (2, 1), (3, 2), (7, 1), (64, 1), (1000, 16), (9000, 64), (130, 64)])
def test_each_iteration_runs_once(extent: int, align: int) -> None:
    program = executable(*[Launch("test.count", extent, align, useful, (~0,)) for useful in (1, 2, 3, 8, 9)])
    for threads in (1, 2, 3, 5, 12):
        assert counted(program, extent, threads) == [5] * extent


def test_a_caller_waits_for_pieces_that_helpers_have_begun() -> None:
    program = executable(*[Launch("test.nap", 2, 1, 2, (~0,))] * 10)
    assert counted(program, 2, 2) == [10, 10]


PRELUDE = """
import ctypes, os, resource, signal, sys, threading, time
sys.path.insert(0, TESTS)
from mlxir.runtime.launch import Launch
from test_pool import counted, executable

program = executable(*[Launch("test.count", 4096, 1, 1000, (~0,))] * 20)

def right(threads=4):
    return counted(program, 4096, threads) == [20] * 4096

def tasks():
    return set(map(int, os.listdir("/proc/self/task")))
"""
STRESS = """
failed, stop = [], threading.Event()

def work():
    while not stop.is_set():
        if not right():
            failed.append("a thread")

threads = [threading.Thread(target=work) for _ in range(6)]  # more than may share helpers at a time
for t in threads:
    t.start()
for _ in range(10):
    time.sleep(0.02)
    child = os.fork()
    if child == 0:
        alone = len(tasks()) == 1
        os._exit(0 if alone and all(right() for _ in range(20)) and len(tasks()) == 4 else 1)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        failed.append("a child")
stop.set()
for t in threads:
    t.join()
assert right(threads=1000)
sys.exit(str(failed) if failed else 0)  # with helpers that still look for work
"""
# The helpers are made to sleep 64 s, in a signal's handler, while they have nothing to do.
ABSENT = """
before = tasks()
assert right() and len(tasks() - before) == 3
time.sleep(0.3)
libc = ctypes.CDLL(None)
libc.signal(signal.SIGRTMAX, ctypes.cast(libc.sleep, ctypes.c_void_p))
assert signal.SIGRTMAX == 64
for helper in tasks() - before:
    assert libc.tgkill(os.getpid(), helper, signal.SIGRTMAX) == 0
time.sleep(0.1)
start = time.monotonic()
assert all(right() for _ in range(20))
assert time.monotonic() - start < 30
"""
# No memory for the stacks of threads.
REFUSED = """
assert right(threads=1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 20), resource.RLIM_INFINITY))
before = tasks()
assert all(right() for _ in range(20))
assert tasks() == before
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("script", [STRESS, ABSENT, REFUSED], ids=["stress", "absent", "refused"])
def test_in_a_process_of_its_own(script: str, request: pytest.FixtureRequest) -> None:
    code = f"TESTS = {str(request.path.parent)!r}\n" + PRELUDE + script
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
