"""One framework in a process of its own: worker.py FRAMEWORK; JSON lines on standard input and output.

    {"command": "info"}                                         -> {"version"}
    {"command": "prepare", "workload", "inputs", "outputs"}     -> {"first_call", "peak_bytes"}: reads the arrays of the
                                          .npz file `inputs`, calls once (compilation included), saves the results'
                                          leaves to `outputs`
    {"command": "run", "times", "calls"}                        -> {"seconds": [...]}: `times` samples, each the mean of
                                          `calls` calls, timed until their results are ready
    {"command": "release"}                                      -> {"peak_bytes"}: forgets the workload and its arrays

`peak_bytes` is the high-water mark of the resident memory since "prepare" (Linux; null elsewhere), all of the process:
at the first call, where compilers count, and at the end. A command that fails answers {"error": traceback}; a workload
that the framework has no function for answers {"unsupported": true}.
"""

import argparse
import gc
import json
import os
import sys
import time
import traceback
from pathlib import Path

import numpy as np
from frameworks import ADAPTERS
from suite import leaves, load

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak():
    if CLEAR.exists():
        CLEAR.write_text("5")  # the high-water mark starts again from the memory in use


def peak_bytes():
    if not STATUS.exists():
        return None
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def serve(adapter, requests, replies):
    workloads = load()
    call = None
    for line in requests:
        request = json.loads(line)
        command = request["command"]
        try:
            if command == "info":
                reply = {"version": adapter.version}
            elif command == "prepare" and adapter.functions not in workloads[request["workload"]].functions:
                reply = {"unsupported": True}
            elif command == "prepare":
                reset_peak()
                with np.load(request["inputs"]) as stored:
                    call = adapter.prepare(workloads[request["workload"]], [stored[key] for key in stored.files])
                start = time.perf_counter()
                results = call()
                reply = {"first_call": time.perf_counter() - start, "peak_bytes": peak_bytes()}
                np.savez(request["outputs"], *[adapter.to_numpy(result) for result in leaves(results)])
                del results
            elif command == "run":
                reply = {"seconds": timed(call, request["times"], request["calls"])}
            elif command == "release":
                reply = {"peak_bytes": peak_bytes()}
                call = None
                gc.collect()
            else:
                raise ValueError(f"unknown command {command!r}")
        except Exception:
            reply = {"error": traceback.format_exc()}
        print(json.dumps(reply), file=replies, flush=True)


def timed(call, times, calls):
    """Seconds of a call, `times` samples over `calls` each, after one that is not timed (the caches held another
    worker's data).
    """
    gc.disable()
    results = call()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        for _ in range(calls):
            results = call()  # the last results die here, in every framework alike
        seconds.append((time.perf_counter() - start) / calls)
    del results
    gc.enable()
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("framework", choices=list(ADAPTERS))
    framework = parser.parse_args().framework
    # Libraries may print: what they write to standard output goes to standard error, the replies to the real one.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(ADAPTERS[framework](), sys.stdin, replies)


if __name__ == "__main__":
    main()
