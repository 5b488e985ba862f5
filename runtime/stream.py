"""The stream of asynchronous work: one worker thread that runs jobs in order, and buffers whose data arrive later.

`async_eval` hands a job over and returns; generated code and most of NumPy run without the GIL, so Python goes on at
the same time. An error of a job is raised where its results are read, and once by `synchronize`.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol

from . import forks
from .buffers import Buffer
from .dtypes import Dtype
from .jobs import Job


class Source(Protocol):
    """Where late buffers come from: a job, or a run of a GPU."""

    def wait(self) -> list[Buffer]:
        """The buffers with their data. Raises what the work raised."""


class LateBuffer(Buffer):
    """Buffer `number` of those that `source` will give: shape and dtype are known, whatever else is read waits."""

    __slots__ = ("number", "source")

    def __init__(self, source: Source, number: int, shape: tuple[int, ...], dtype: Dtype):
        # The other slots stay empty, so that reading one gets to __getattr__.
        self.source, self.number, self.shape, self.dtype = source, number, shape, dtype

    def ready(self) -> Buffer:
        """The buffer with the data, once they are there. Raises what the work raised."""
        return self.source.wait()[self.number]

    def numpy(self) -> Any:
        return self.ready().numpy()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ready(), name)


class Worker:
    """Runs jobs one after the other on a thread of its own, which starts with the first job.

    Where no thread can be started any more, and once the interpreter has shut this one down, whoever submits a job runs
    it. A fork waits for all jobs, since their thread is not in the child.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # reentrant: a collection inside may run a destructor that submits work
        self._ended = False
        self._failed: Job | None = None  # the first since `synchronize`
        self._reset()
        atexit.register(self._finish)
        forks.waited_for(self)
        forks.in_child(self._reset)

    def _reset(self) -> None:
        """A forked child has no worker thread; it starts one when it needs one."""
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._last: threading.Event | None = None  # that the latest job is done

    def acquire(self) -> None:
        """Keep out work and wait until there is none (for `forks`)."""
        self._lock.acquire()
        if self._last is not None and threading.current_thread() is not self._thread:
            self._last.wait()

    def release(self) -> None:
        """Admit work again."""
        self._lock.release()

    def submit(self, work: Callable[[], list[Buffer]]) -> Job:
        """Hand over work; it begins when all earlier jobs are done."""
        job = Job(work)
        with self._lock:
            if self._works() and threading.current_thread() is not self._thread:  # (a destructor may be called there)
                self._last = job.done
                self._queue.put(job)
                return job
        self._run(job)
        return job

    def _works(self) -> bool:
        """Whether there is a thread, started now if need be."""
        if self._thread is None and not self._ended:
            # A daemon, so that an exiting interpreter does not wait for it twice; `_finish` waits.
            thread = threading.Thread(target=self._loop, args=(self._queue,), daemon=True, name="mlxir")
            with contextlib.suppress(RuntimeError):  # the system has no more threads, or the interpreter shuts down
                thread.start()
                self._thread = thread
        return self._thread is not None

    def _loop(self, queue: SimpleQueue) -> None:
        while (job := queue.get()) is not None:
            self._run(job)
            del job  # its results belong to who asked for them

    def _run(self, job: Job) -> None:
        job.run()
        if job.error is not None and self._failed is None:
            self._failed = job

    def _finish(self) -> None:
        with self._lock:
            thread, self._thread, self._ended = self._thread, None, True
            self._queue.put(None)
        if thread is not None:
            thread.join()

    def synchronize(self) -> None:
        """Wait for all jobs. Raises the first error since the last call."""
        last = self._last
        if last is not None:
            last.wait()
        failed, self._failed = self._failed, None
        if failed is not None and failed.error is not None:
            raise failed.error


worker = Worker()
