"""Work on other threads: a job, and threads that do some of it for the length of a `with` block.

    with Threads(2) as threads:
        job = threads.submit(compiled, text)
        ...
        code = job.wait()

Not those of concurrent.futures, which refuse work from the moment on at which the main thread has come to its end:
other threads of the program, and what `atexit` calls, may still compile.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any


class Job:
    """Work on another thread. `wait` returns what it gives, or raises what it raised: `error`, once `done` is set.

    Whoever keeps `done` alone keeps no results.
    """

    __slots__ = ("_result", "_work", "done", "error")

    def __init__(self, work: Callable[[], Any]):
        self._work: Callable[[], Any] | None = work
        self.done = threading.Event()
        self._result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            if self._work is not None:
                self._result = self._work()
        except BaseException as error:  # it belongs to whoever reads the result
            self.error = error
        self._work = None  # lets the arguments go
        self.done.set()

    def wait(self) -> Any:
        self.done.wait()
        if self.error is not None:
            try:
                raise self.error
            finally:
                del self  # which the error refers to, through its traceback, and which refers to the error
        return self._result


class Threads:
    """Up to `count` threads, which end when there is nothing to do. Leaving the block waits for all work; leaving it by
    an exception, for what has begun.
    """

    def __init__(self, count: int):
        self._count = count
        self._lock = threading.Lock()  # of the jobs and of how many threads look for more
        self._jobs: deque[Job] = deque()
        self._active = 0
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Threads:
        return self

    def submit(self, work: Callable[[], Any]) -> Job:
        """Hand over work. Where no thread can be started it is done at once."""
        job = Job(work)
        with self._lock:
            self._jobs.append(job)
            more = self._active < self._count
            self._active += more
        if more:
            thread = threading.Thread(target=self._loop, name="mlxir-compile")
            try:
                thread.start()
                self._threads.append(thread)
            except RuntimeError:  # the system has no more, or the interpreter shuts down
                self._loop()
        return job

    def _loop(self) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    self._active -= 1
                    return
                job = self._jobs.popleft()
            job.run()

    def __exit__(self, kind: object, *exc: object) -> None:
        if kind is not None:
            self._jobs.clear()
        for thread in self._threads:
            thread.join()
