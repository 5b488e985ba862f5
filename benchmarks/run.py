"""Time the same work in mlxir and its peers, in one interleaved run.

    python benchmarks/run.py                                        everything
    python benchmarks/run.py --implementations mlxir,jax --workloads softmax,matmul

Every implementation runs in a process of its own (worker.py). The rounds go over the implementations in turn, so that
whatever else happens on the machine meets all of them. Before a number counts, the results are compared with NumPy's in
float64. README.md says what the columns mean.
"""

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from machine import MAIN_MEMORY, Machine
from workloads import WORKLOADS

HERE = Path(__file__).resolve().parent
SUBJECT = "mlxir"
PEERS = ("jax", "torch", "mlx", "numba", "numpy")
TIMEOUT = 300  # seconds for one answer of a worker; compiling takes the longest
CALLS = (3, 500)  # at least and at most, in a burst
SEED = 0
MALLOC_VARIABLES = ("LD_PRELOAD", "GLIBC_TUNABLES", "MALLOC_")  # everyone runs on the default malloc


class WorkerError(Exception):
    """A worker failed at a command, died or did not answer."""


class Worker:
    """The process of one implementation; started at its first command, and again after it died.

    Between commands it is stopped (SIGSTOP): thread pools that spin for work would run into the others' times.
    """

    def __init__(self, name, python):
        self.name, self.python = name, python
        self.process = None

    def start(self):
        environment = {k: v for k, v in os.environ.items() if not k.startswith(MALLOC_VARIABLES)}
        command = [self.python, str(HERE / "worker.py"), self.name]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True, bufsize=1
        )

    def ask(self, command, **arguments):
        if self.process is None or self.process.poll() is not None:
            self.start()
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


def relative_error(got, want):
    """The largest max |a - b| / max |b| over the outputs; inf where a shape, a count or a value is off altogether."""
    if len(got) != len(want):
        return math.inf
    worst = 0.0
    for a, b in zip(got, want, strict=True):
        if a.shape != b.shape or not np.all(np.isfinite(a)):
            return math.inf
        worst = max(worst, float(np.max(np.abs(a - b))) / max(float(np.max(np.abs(b))), 1e-30))
    return worst


def burst_length(seconds, burst):
    return int(min(max(burst / max(seconds, 1e-9), CALLS[0]), CALLS[1]))


def measure(name, workers, machine, folder, rounds, burst):
    """Time one workload in all workers; returns (results by implementation, the least seconds the machine allows)."""
    workload = WORKLOADS[name]
    inputs = workload.inputs(np.random.default_rng(SEED))
    want = workload.reference(*[a.astype(np.float64) if a.dtype == np.float32 else a for a in inputs])
    inputs_path, outputs_path = folder / "inputs.npz", folder / "outputs.npz"
    np.savez(inputs_path, *inputs)
    read, written = sum(a.nbytes for a in inputs), sum(np.asarray(b).size * 4 for b in want)

    results, calls = {}, {}
    for worker in workers:
        try:
            reply = worker.ask("prepare", workload=name, inputs=str(inputs_path), outputs=str(outputs_path))
            if "unsupported" in reply:
                continue
            with np.load(outputs_path) as stored:
                error = relative_error([stored[key] for key in stored.files], want)
            results[worker] = {
                "first_call": reply["first_call"],
                "relative_error": error,
                "agrees": error <= workload.tolerance,
                "seconds": [],
            }
            trial = worker.ask("run", times=CALLS[0])["seconds"]
            calls[worker] = burst_length(statistics.median(trial), burst)
        except WorkerError as problem:
            results[worker] = {"error": str(problem)}

    for turn in range(rounds):
        machine.sample(read + written)
        order = workers[turn % len(workers) :] + workers[: turn % len(workers)]
        for worker in order:
            if worker in results and "error" not in results[worker]:
                try:
                    results[worker]["seconds"] += worker.ask("run", times=calls[worker])["seconds"]
                except WorkerError as problem:
                    results[worker]["error"] = str(problem)
    for worker in workers:
        if worker in calls and "error" not in results[worker]:
            worker.ask("release")

    for result in results.values():
        if seconds := result.pop("seconds", None):
            low, median, high = np.quantile(seconds, (0.1, 0.5, 0.9))
            result |= {"calls": len(seconds), "median": median, "decile": low, "ninth_decile": high}
    limit = machine.least_seconds(read, written, workload.flops)
    return {worker.name: result for worker, result in results.items()}, limit


def is_good(result):
    return "error" not in result and result["agrees"]


def row(name, results, limit, implementations):
    """The printed line: milliseconds of each (with what is wrong with it), best peer / subject, share of the limit."""
    cells = [f"{name:16}"]
    for implementation in implementations:
        result = results.get(implementation)
        if result is None:
            cells.append(f"{'-':>9} ")
        elif "error" in result:
            cells.append(f"{'failed':>9} ")
        else:
            cells.append(f"{result['median'] * 1e3:9.3f}{' ' if result['agrees'] else '!'}")
    good = {implementation: r["median"] for implementation, r in results.items() if is_good(r)}
    peers = {implementation: median for implementation, median in good.items() if implementation != SUBJECT}
    best = min(peers, key=peers.get) if peers else None
    if SUBJECT in good:
        cells.append(f"{peers[best] / good[SUBJECT]:6.2f} {best:6}" if best else " " * 13)
        cells.append(f"{limit / good[SUBJECT]:6.0%}")
    elif best:
        cells.append(f"{'':6} {best:6}{limit / peers[best]:6.0%}")
    return " ".join(cells)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--implementations", default=",".join((SUBJECT, *PEERS)), help="comma-separated (%(default)s)")
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="comma-separated (%(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="times that every implementation has its turn")
    parser.add_argument("--burst", type=float, default=0.2, help="seconds that one turn lasts, about")
    parser.add_argument("--cores", type=int, help="use the first N cores only (Linux)")
    parser.add_argument("--peak", type=float, help="GFLOP/s of the machine, in place of measuring them")
    parser.add_argument("--python", default=sys.executable, help=f"the interpreter that has {SUBJECT}")
    parser.add_argument(
        "--peers-python", default=str(HERE.parent / ".venv-peers/bin/python"), help="the interpreter that has the peers"
    )
    parser.add_argument("--results", type=Path, default=HERE / "results", help="the folder for the JSON file")
    arguments = parser.parse_args()
    arguments.implementations = arguments.implementations.split(",")
    arguments.workloads = arguments.workloads.split(",")
    for given, known in ((arguments.implementations, (SUBJECT, *PEERS)), (arguments.workloads, WORKLOADS)):
        if unknown := set(given) - set(known):
            parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    return arguments


def run(workers, machine, arguments, report):
    """Time all workloads, print the table and fill `report`; returns what went wrong, a line each."""
    for worker in workers:
        try:
            report["versions"][worker.name] = worker.ask("info")["version"]
        except WorkerError as problem:
            sys.exit(f"{worker.name} cannot start: {problem}")

    problems = []
    names = [worker.name for worker in workers]
    print(" ".join([f"{'ms (median)':16}", *[f"{name:>9} " for name in names], f"{'best peer':13}", " limit"]))
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.workloads:
            results, limit = measure(name, workers, machine, Path(folder), arguments.rounds, arguments.burst)
            report["workloads"][name] = {"limit": limit, "results": results}
            print(row(name, results, limit, names), flush=True)
            for implementation, result in results.items():
                if "error" in result:
                    problems.append(f"{name}, {implementation}: {result['error']}")
                elif not result["agrees"]:
                    problems.append(f"{name}, {implementation}: off by {result['relative_error']:.1e} of the largest")
    return problems


def main():
    arguments = parse_arguments()
    if arguments.cores:
        os.sched_setaffinity(0, range(arguments.cores))  # for the limits, and inherited by the workers
    machine = Machine(arguments.peak)
    report = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": None}
    workers = [
        Worker(name, arguments.python if name == SUBJECT else arguments.peers_python)
        for name in arguments.implementations
    ]
    report |= {"versions": {}, "workloads": {}, "rounds": arguments.rounds, "burst": arguments.burst}
    try:
        problems = run(workers, machine, arguments, report)
    finally:
        for worker in workers:
            worker.stop()

    machine.sample(MAIN_MEMORY)
    about = report["machine"] = machine.describe()
    print(f"\n{about['cpu']}, {about['cores']} cores: {about['peak_gflops']:.0f} GFLOP/s,", end=" ")
    print(f"{about['copy_gbytes']:.1f} GB/s copying and {about['read_gbytes']:.1f} reading {MAIN_MEMORY >> 20} MiB")
    arguments.results.mkdir(parents=True, exist_ok=True)
    path = arguments.results / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(path)
    if problems:
        sys.exit("\n".join(["", *problems]))


if __name__ == "__main__":
    main()
