"""Time the same work in mlxir and its peers, in one interleaved run.

    mlxir bench                                                            everything
    mlxir bench --suite softmax,products --peers jax,torch --rounds 3      some workloads (or families), some peers
    mlxir bench --md docs/performance.md --malloc both                     rewrite the tables of the document
    mlxir bench --profile FILE.py:FUNCTION --arg SPEC                      the kernels of one compiled function
    mlxir bench --profile WORKLOAD                                         those of a workload

Every framework runs in a process of its own (worker.py), all with the same number of threads. The rounds go over the
frameworks in turn, so that whatever else happens on the machine meets all of them. Before a number counts, the results
are compared with NumPy's in float64. README.md says what the columns mean.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import report
from frameworks import ADAPTERS
from machine import MAIN_MEMORY, Machine
from suite import HERE, REFEREES, leaves, load
from workers import Worker, WorkerError, environment

SUBJECT = "mlxir"
PEERS = ("mlx", "jax", "torch", "numba", "numpy")
SAMPLES = (3, 500)  # at least and at most, in a burst
SHORT = 5e-5  # seconds: shorter calls are timed several at a time, so that reading the clock does not count
SEED = 0


def relative_error(got, want):
    """The largest max |a - b| / max |b| over the outputs; inf where a shape, a count or a value is off altogether."""
    if len(got) != len(want):
        return math.inf
    worst = 0.0
    for a, b in zip(got, want, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if a.shape != b.shape or not np.all(np.isfinite(a)):
            return math.inf
        if a.size:
            worst = max(worst, float(np.max(np.abs(a - b))) / max(float(np.max(np.abs(b))), 1e-30))
    return worst


def reference(workload, inputs):
    """The leaves of the results by NumPy in float64; None where the referee is agreement."""
    if "numpy" not in workload.functions:
        return None
    wide = [a.astype(np.float64) if a.dtype == np.float32 else a for a in inputs]
    return leaves(workload.functions["numpy"](np, *workload.tree(*wide)))


def prepare(workload, workers, inputs, folder):
    """Call the workload once in every worker: results by worker, with whether they agree with the referee's."""
    inputs_path = folder / "inputs.npz"
    np.savez(inputs_path, *inputs)
    results, arrays = {}, {}
    for worker in workers:
        outputs = folder / "outputs.npz"
        try:
            reply = worker.ask("prepare", workload=workload.name, inputs=str(inputs_path), outputs=str(outputs))
        except WorkerError as problem:
            results[worker] = {"error": str(problem)}
            continue
        if "unsupported" not in reply:
            results[worker] = {"first_call": reply["first_call"], "first_peak": reply["peak_bytes"], "seconds": []}
            with np.load(outputs) as stored:
                arrays[worker] = [stored[key] for key in stored.files]

    want, referee = reference(workload, inputs), "numpy"
    if want is None:  # agreement: the first of the referees that ran
        by_name = {worker.name: arrays[worker] for worker in arrays}
        referee = next((name for name in REFEREES if name in by_name), SUBJECT)
        want = by_name.get(referee)
    for worker, got in arrays.items():
        error = relative_error(got, want)
        results[worker] |= {"relative_error": error, "agrees": error <= workload.tolerance, "referee": referee}
    return results, want


def burst_plan(seconds, burst):
    """(samples of a burst, calls in each) for calls of about this many seconds."""
    calls = max(1, int(SHORT / max(seconds, 1e-9)))
    return int(min(max(burst / max(seconds * calls, 1e-9), SAMPLES[0]), SAMPLES[1])), calls


def measure(workload, workers, machine, folder, rounds, burst):
    """Time one workload in all workers; returns (results by framework, the least seconds the machine allows)."""
    inputs = workload.inputs(np.random.default_rng(SEED))
    results, want = prepare(workload, workers, inputs, folder)
    read = sum(a.nbytes for a in inputs) if workload.read is None else workload.read
    written = sum(np.asarray(b).size * 4 for b in want or ())

    def attempt(worker, command, **arguments):
        """The reply, or None after a failure, which is entered."""
        try:
            return worker.ask(command, **arguments)
        except WorkerError as problem:
            results[worker]["error"] = str(problem)
            return None

    plans = {}
    for worker in [worker for worker in workers if worker in results and "error" not in results[worker]]:
        if reply := attempt(worker, "run", times=SAMPLES[0], calls=1):
            plans[worker] = burst_plan(statistics.median(reply["seconds"]), burst)
    for turn in range(rounds):
        machine.sample(read + written)
        for worker in workers[turn % len(workers) :] + workers[: turn % len(workers)]:
            if worker in plans and "error" not in results[worker]:
                times, calls = plans[worker]
                if reply := attempt(worker, "run", times=times, calls=calls):
                    results[worker]["seconds"] += reply["seconds"]
    for worker in plans:
        if "error" not in results[worker] and (reply := attempt(worker, "release")):
            results[worker]["peak"] = reply["peak_bytes"]

    for result in results.values():
        if seconds := result.pop("seconds", None):
            low, median, high = np.quantile(seconds, (0.1, 0.5, 0.9))
            result |= {"samples": len(seconds), "median": median, "decile": low, "ninth_decile": high}
    limit = machine.least_seconds(read, written, workload.flops)
    return {worker.name: result for worker, result in results.items()}, limit


def parse_arguments(workloads):
    parser = argparse.ArgumentParser(
        "mlxir bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    suites = sorted({workload.suite for workload in workloads.values()})
    option = parser.add_argument
    option("--suite", default="", help=f"comma-separated workloads or families ({', '.join(suites)}); default: all")
    option("--peers", default=",".join(PEERS), help="comma-separated (%(default)s); absent ones are left out")
    option("--rounds", type=int, default=7, help="times that every framework has its turn")
    option("--burst", type=float, default=0.2, help="seconds that one turn lasts, about")
    option("--cores", type=int, help="use the first N cores only (Linux)")
    option("--malloc", choices=("default", "tuned", "both"), default="default", help="the workers' malloc")
    option("--fresh", action="store_true", help="new processes for each workload: memory of that one alone; slower")
    option("--caches", type=Path, help="keep the frameworks' compile caches in this folder (first calls not cold)")
    option("--json", type=Path, metavar="FILE", help="all figures")
    option("--md", type=Path, metavar="FILE", help="tables and a plot; in an existing file, between its bench markers")
    option("--html", type=Path, metavar="FILE", help="the same as a page of its own")
    option("--peak", type=float, help="GFLOP/s of the machine, in place of measuring them")
    option("--python", default=sys.executable, help=f"the interpreter that has {SUBJECT}")
    peers = HERE.parent / ".venv-peers/bin/python"
    option("--peers-python", default=str(peers if peers.exists() else sys.executable), help="(default: %(default)s)")
    arguments = parser.parse_args()
    if shutil.which(arguments.peers_python) is None:
        parser.error(f"there is no interpreter {arguments.peers_python}; benchmarks/setup_peers.sh makes one")
    arguments.peers = [peer for peer in arguments.peers.split(",") if peer]
    asked = [name for name in arguments.suite.split(",") if name]
    for given, known in ((arguments.peers, PEERS), (asked, [*suites, *workloads])):
        if unknown := set(given) - set(known):
            parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    arguments.workloads = [w for w in workloads.values() if not asked or w.name in asked or w.suite in asked]
    return arguments


def present(peers, python):
    """Those of the peers that the interpreter has."""
    packages = {peer: ADAPTERS[peer].modules.split(".")[0] for peer in peers}
    code = "import sys, importlib.util; print(*[importlib.util.find_spec(m) is not None for m in sys.argv[1:]])"
    done = subprocess.run([python, "-c", code, *packages.values()], capture_output=True, text=True, check=True, cwd="/")
    return [peer for peer, there in zip(packages, done.stdout.split(), strict=True) if there == "True"]


def run(arguments, machine, malloc, folder, versions):
    """Time all workloads under one malloc, printing the table; (figures by workload, what went wrong by line)."""
    caches = arguments.caches or folder / "caches"
    around = environment(machine.cores, caches.resolve(), malloc)
    names = [SUBJECT, *arguments.peers]
    workers = [Worker(n, arguments.python if n == SUBJECT else arguments.peers_python, around) for n in names]
    table, problems = {}, []
    try:
        for worker in workers:
            versions[worker.name] = worker.ask("info")["version"]
        print(f"malloc: {malloc}\n{report.header(names)}")
        for workload in arguments.workloads:
            if arguments.fresh:
                for worker in workers:
                    worker.stop()
            results, limit = measure(workload, workers, machine, folder, arguments.rounds, arguments.burst)
            table[workload.name] = {"suite": workload.suite, "limit": limit, "results": results}
            print(report.row(workload.name, table[workload.name], names), flush=True)
            problems += [f"{workload.name}, {name}: {line}" for name, line in report.problems(results)]
    finally:
        for worker in workers:
            worker.stop()
    print(report.summary(table))
    return table, problems


def main():
    arguments = parse_arguments(load())
    if arguments.cores:
        os.sched_setaffinity(0, range(arguments.cores))  # for the limits, and inherited by the workers
    there = present(arguments.peers, arguments.peers_python)
    absent = [peer for peer in arguments.peers if peer not in there]
    if absent:
        print(f"not installed for {arguments.peers_python}, left out: {', '.join(absent)}")
    arguments.peers = there
    machine = Machine(arguments.peak)
    figures = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "rounds": arguments.rounds, "burst": arguments.burst,
        "fresh": arguments.fresh, "cold": arguments.caches is None, "absent": absent, "versions": {}, "runs": {},
    }  # fmt: skip
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        for malloc in ("default", "tuned") if arguments.malloc == "both" else (arguments.malloc,):
            table, failed = run(arguments, machine, malloc, Path(folder), figures["versions"])
            figures["runs"][malloc] = table
            problems += failed
    machine.sample(MAIN_MEMORY)
    figures["machine"] = machine.describe()
    figures["load"] = os.getloadavg()
    print(report.about(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    if arguments.md:
        report.write_markdown(figures, arguments.md)
    if arguments.html:
        report.write_html(figures, arguments.html)
    if problems:
        sys.exit("\n".join(["", *problems]))


if __name__ == "__main__":
    main()
