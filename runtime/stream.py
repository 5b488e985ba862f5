"""The stream of asynchronous work: one worker thread that runs jobs in order, and buffers whose data arrive later.

`async_eval` hands a job over and returns; generated code and most of NumPy run without the GIL, so Python goes on at
the same time. An error of a job is raised where its results are read, and once by `synchronize`.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol

from .buffers import Buffer
from .dtypes import Dtype


class Job:
    """Work that gives a list of buffers. `wait` returns them or raises what the work raised."""

    __slots__ = ("_done", "_error", "_results", "_work")

    def __init__(self, work: Callable[[], list[Buffer]]):
        self._work: Callable[[], list[Buffer]] | None = work
        self._done = threading.Event()
        self._results: list[Buffer] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            if self._work is not None:
                self._results = self._work()
        except BaseException as error:  # it belongs to whoever reads the results
            self._error = error
        self._work = None  # lets the arguments go
        self._done.set()

    def wait(self) -> list[Buffer]:
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._results

    @property
    def error(self) -> BaseException | None:
        """What the finished work raised."""
        return self._error


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
    """Runs jobs one after the other on a thread of its own, which starts with the first job."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        """A forked child has no worker thread; it starts one when it needs one."""
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._last: Job | None = None
        self._failed: list[Job] = []

    def submit(self, work: Callable[[], list[Buffer]]) -> Job:
        """Hand over work; it begins when all earlier jobs are done."""
        job = Job(work)
        with self._lock:
            if self._thread is None:
                # A daemon, so that an exiting interpreter does not wait for it twice; `_finish` waits.
                self._thread = threading.Thread(target=self._loop, args=(self._queue,), daemon=True, name="mlxir")
                self._thread.start()
                atexit.register(self._finish)
            self._last = job
            self._queue.put(job)
        return job

    def _loop(self, queue: SimpleQueue) -> None:
        while (job := queue.get()) is not None:
            job.run()
            if job.error is not None:
                self._failed.append(job)
            del job  # its results belong to who asked for them

    def _finish(self) -> None:
        thread = self._thread
        if thread is not None:
            self._queue.put(None)
            thread.join()

    def synchronize(self) -> None:
        """Wait for all jobs. Raises the first error since the last call."""
        last = self._last
        if last is not None:
            last._done.wait()
        failed, self._failed = self._failed, []
        if failed and failed[0].error is not None:
            raise failed[0].error


worker = Worker()
