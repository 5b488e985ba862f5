"""A forked child can do whatever its parent could, whatever the parent's other threads did meanwhile; and what runs
when the interpreter shuts down can compile and evaluate.
"""

from __future__ import annotations

import os
import sys
import threading

import processes
import pytest

import mlxir as mx
from mlxir.runtime import forks
from mlxir.runtime.jobs import Job, Threads
from mlxir.runtime.stream import Worker


def run(script: str) -> str:
    """What a script prints, which needs compilations: there is no disk cache."""
    environment = {**os.environ, "MLXIR_CACHE_DIR": "", "MLXIR_DEVICE": "cpu", "MLXIR_THREADS": "2"}
    done = processes.run([sys.executable, "-c", script], env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


AMID_THREADS = """
import faulthandler, os, threading, time
import mlxir as mx

def in_child(work):
    pid = os.fork()
    if not pid:
        faulthandler.dump_traceback_later(120, exit=True)
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    print(os.waitpid(pid, 0)[1])

# Jobs of the worker, whose thread is not in the child.
x = mx.full((400, 400), 0.001); mx.eval(x)
late = x
for _ in range(30): late = late @ x
mx.async_eval(late)
in_child(lambda: late.tolist())

# Kernels on several threads, which are not in the child either.
wide = mx.compile(lambda x: mx.sum(mx.sin(x)))
big = mx.zeros((600, 600))
wide(big).item()
in_child(lambda: (wide(big).item(), mx.compile(lambda x: mx.exp(x) * 2)(big).tolist()))

# A thread that traces, and holds the lock of its function.
tracing, go_on = threading.Event(), threading.Event()
def slow(x):
    tracing.set()
    go_on.wait()
    return x + 1
compiled = mx.compile(slow)
thread = threading.Thread(target=compiled, args=(mx.ones(2),)); thread.start()
tracing.wait()
in_child(lambda: (go_on.set(), compiled(mx.ones(3)).tolist()))
go_on.set(); thread.join()

# Threads that compile, evaluate and differentiate.
stop = threading.Event()
def work(n):
    while not stop.is_set():
        n += 2
        mx.compile(lambda x: mx.softmax(mx.sin(x) * n) @ x)(mx.ones((9, 9)))
        mx.eval(mx.vmap(mx.grad(lambda row: mx.sum(mx.sin(row) * n)))(mx.ones((3, 4))))
threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
for thread in threads: thread.start()
def child():
    mx.compile(lambda x: mx.tanh(x) @ x * 0.5)(mx.ones((7, 7))).tolist()
    y = mx.vmap(lambda row: mx.cumsum(row) * 2)(mx.ones((5, 4)))
    mx.async_eval(y); y.tolist(); mx.synchronize()
for _ in range(3):
    time.sleep(0.05)
    in_child(child)
stop.set()
for thread in threads: thread.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks")
def test_a_child_computes_whatever_other_threads_did() -> None:
    assert run(AMID_THREADS) == "0\n" * 6


AT_THE_END = """
import atexit, threading

@atexit.register  # called after what mlxir registers
def last():
    y = mx.sin(mx.ones(2)) * 0
    mx.async_eval(y)
    print("last", y.tolist(), mx.compile(lambda x: mx.exp(x - 1))(mx.ones(2)).tolist(), flush=True)

import mlxir as mx

y = mx.cos(mx.zeros(2))
mx.async_eval(y)
y.tolist()

@atexit.register
def earlier():
    y = mx.cos(mx.zeros(2)) * 2
    mx.async_eval(y)
    print("earlier", y.tolist(), flush=True)

main = threading.current_thread()

def after_main():
    main.join()
    print("thread", mx.compile(lambda x: mx.sum(x * 2))(mx.ones((3, 3))).item(), flush=True)

threading.Thread(target=after_main).start()
"""


def test_the_end_of_the_interpreter_computes_too() -> None:
    """Threads that outlive the main one, and functions that `atexit` calls before and after mlxir's own."""
    assert run(AT_THE_END) == "thread 18.0\nearlier [2.0, 2.0]\nlast [0.0, 0.0] [1.0, 1.0]\n"


def test_the_child_frees_locks_of_threads_that_are_gone() -> None:
    lock, taken, leave = threading.RLock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            taken.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait(60)
    forks.freed(lock)  # as in a child, where the thread is gone
    assert lock.acquire(blocking=False)
    lock.release()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "excepthook", lambda args: None)  # of its release, which no child would see
        leave.set()
        thread.join(60)
    own = threading.RLock()
    with own:
        forks.freed(own)
        assert own._is_owned()


# -- threads for a while ----------------------------------------------------------------------------------------------
def refuse(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_threads_do_what_they_are_given() -> None:
    with Threads(2) as threads:
        jobs = [threads.submit(lambda n=n: (n, threading.current_thread().name)) for n in range(8)]  # type: ignore[misc]
        fails = threads.submit(lambda: 1 // 0)
        assert [job.wait()[0] for job in jobs] == list(range(8))
        assert {job.wait()[1] for job in jobs} == {"mlxir-compile"}
        with pytest.raises(ZeroDivisionError):
            fails.wait()
    assert not any(t.is_alive() for t in threads._threads)


def test_an_exception_leaves_undone_what_has_not_begun() -> None:
    begun, go_on = threading.Event(), threading.Event()
    with pytest.raises(KeyboardInterrupt), Threads(1) as threads:
        first = threads.submit(lambda: (begun.set(), go_on.wait(60)))
        second = threads.submit(lambda: None)
        begun.wait(60)
        threading.Timer(0.05, go_on.set).start()
        raise KeyboardInterrupt
    assert first.done.is_set() and not second.done.is_set()


def test_work_is_done_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with Threads(2) as threads:
        assert threads.submit(threading.current_thread).wait() is threading.current_thread()
    worker = Worker()
    assert worker.submit(lambda: []).wait() == []
    x = mx.array([1.0, 2.0])
    assert mx.compile(lambda x: x * 7.0625)(x).tolist() == [7.0625, 14.125]


def test_the_worker_keeps_the_first_error_and_no_results() -> None:
    worker, jobs = Worker(), []

    def fail(n: int) -> Job:
        return worker.submit(lambda: [][n])

    jobs = [fail(n) for n in range(3)]
    with pytest.raises(IndexError):
        worker.synchronize()
    worker.synchronize()
    assert all(job.error is not None for job in jobs)
    worker._finish()
    assert worker.submit(lambda: []).wait() == [], "done at once from now on"
