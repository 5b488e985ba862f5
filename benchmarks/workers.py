"""The processes of the frameworks, as the run sees them."""

import json
import os
import signal
import subprocess
import threading
from pathlib import Path

HERE = Path(__file__).resolve().parent
TIMEOUT = 300  # seconds for one answer of a worker; compiling takes the longest
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "MLXIR_THREADS")
MALLOC_VARIABLES = ("LD_PRELOAD", "GLIBC_TUNABLES", "MALLOC_")
# glibc gives large blocks back to the kernel, and each page of the next one costs a fault: keep them, in huge pages.
TUNED_MALLOC = {
    "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_ARENA_MAX": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}  # fmt: skip


class WorkerError(Exception):
    """A worker failed at a command, died or did not answer."""


def environment(cores, caches, malloc):
    """What all workers run under: the same number of threads, the malloc "default" or "tuned", compile caches in the
    folder `caches`.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(MALLOC_VARIABLES)}
    kept |= dict.fromkeys(THREADS, str(cores))
    kept |= {"MLXIR_CACHE_DIR": str(caches / "mlxir"), "TORCHINDUCTOR_CACHE_DIR": str(caches / "torch")}
    return kept | (TUNED_MALLOC if malloc == "tuned" else {})


class Worker:
    """The process of one framework; started at its first command, and again after it died.

    Between commands it is stopped (SIGSTOP): thread pools that spin for work would run into the others' times.
    """

    def __init__(self, name, python, environment):
        self.name, self.python, self.environment = name, python, environment
        self.process = None

    def ask(self, command, **arguments):
        """The reply to a command. Raises WorkerError."""
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                [self.python, str(HERE / "worker.py"), self.name],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self.environment, text=True, bufsize=1,
            )  # fmt: skip
        self.process.send_signal(signal.SIGCONT)
        timer = threading.Timer(TIMEOUT, self.process.kill)
        timer.start()
        try:
            self.process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            timer.cancel()
        if not answer:
            raise WorkerError(f"the worker ended with status {self.process.wait()} at {command!r}")
        self.process.send_signal(signal.SIGSTOP)
        reply = json.loads(answer)
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply

    def stop(self):
        if self.process is not None:
            self.process.kill()  # a stopped process hears nothing else
            self.process.wait()
            self.process = None
