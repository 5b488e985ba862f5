"""One implementation in a process of its own: worker.py IMPLEMENTATION; JSON lines on standard input and output.

    {"command": "info"}                                         -> {"version"}
    {"command": "prepare", "workload", "inputs", "outputs"}     -> {"first_call"}: reads the arrays of the .npz file
                                          `inputs`, calls once (compilation included), saves the results to `outputs`
    {"command": "run", "times"}                                 -> {"seconds": [...]}: each call timed until its results
                                          are ready
    {"command": "release"}                                      -> {}: forgets the workload and its arrays

A command that fails answers {"error": traceback}; an unknown workload answers {"unsupported": true}.
"""

import argparse
import gc
import importlib
import json
import os
import sys
import time
import traceback
from functools import partial
from importlib.metadata import version

import numpy as np

MLX_MODULES = {"mlxir": "mlxir", "mlx": "mlx.core"}


def load(implementation):
    """(version, functions by workload, prepare) of an implementation; mlxir and mlx share their functions."""
    if implementation in MLX_MODULES:
        mx = importlib.import_module(MLX_MODULES[implementation])
        module = importlib.import_module("with_mlx")
        return f"{implementation} {version(implementation)}", module.FUNCTIONS, partial(module.prepare, mx)
    module = importlib.import_module(f"with_{implementation}")
    return module.VERSION, module.FUNCTIONS, module.prepare


def serve(implementation, requests, replies):
    description, functions, prepare = load(implementation)
    call = None
    for line in requests:
        request = json.loads(line)
        command = request["command"]
        try:
            if command == "info":
                reply = {"version": description}
            elif command == "prepare" and request["workload"] not in functions:
                reply = {"unsupported": True}
            elif command == "prepare":
                with np.load(request["inputs"]) as stored:
                    call = prepare(request["workload"], [stored[key] for key in stored.files])
                start = time.perf_counter()
                results = call()
                reply = {"first_call": time.perf_counter() - start}
                np.savez(request["outputs"], *[np.asarray(result) for result in results])
                del results
            elif command == "run":
                reply = {"seconds": timed(call, request["times"])}
            elif command == "release":
                call = None
                gc.collect()
                reply = {}
            else:
                raise ValueError(f"unknown command {command!r}")
        except Exception:
            reply = {"error": traceback.format_exc()}
        print(json.dumps(reply), file=replies, flush=True)


def timed(call, times):
    """Seconds of each of `times` calls, after one that is not timed (the caches held another worker's data)."""
    gc.disable()
    results = call()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        results = call()  # the last results die here, in every implementation alike
        seconds.append(time.perf_counter() - start)
    del results
    gc.enable()
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("implementation")
    implementation = parser.parse_args().implementation
    # Libraries may print: what they write to standard output goes to standard error, the replies to the real one.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(implementation, sys.stdin, replies)


if __name__ == "__main__":
    main()
