"""What this machine can do at best: fused multiply-adds and memory traffic on all its cores, by code of llvmlite's.

Measured, not looked up: the results of the benchmarks are given as shares of these limits.
"""

import ctypes
import os
import platform
import threading
import time
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np

ACCUMULATORS = 12  # more than latency x issue width of any current core, and they fit in 16 registers
UNROLL = 4  # vectors per turn of the memory loops
SECONDS = 0.1  # per sample
MAIN_MEMORY = 1 << 28  # bytes: a working set beyond the caches


def vector_width():
    """Floats in the widest vector of the host."""
    features = llvm.get_host_cpu_features()
    return 16 if features.get("avx512f") else 8 if features.get("avx") else 4


def assembly(width):
    """LLVM IR of three functions: fma(turns, data), copy(turns, n, to, from), add(turns, n, data, sums)."""
    vec = f"<{width} x float>"
    lanes = range(ACCUMULATORS)
    step = width * UNROLL
    load = f"load {vec}, ptr"

    def address(base, i):
        return f"  %{base}.{i} = getelementptr float, ptr %{base}, i64 %at.{i}"

    offsets = [f"  %at.{i} = add i64 %j, {i * width}" for i in range(UNROLL)]
    fma = [f"  %n{i} = call {vec} @llvm.fma({vec} %a{i}, {vec} %scale, {vec} %shift)" for i in lanes]
    total = [f"  %s{i + 1} = fadd {vec} %s{i}, %n{i}" for i in lanes]
    return "\n".join(
        [
            f"declare {vec} @llvm.fma({vec}, {vec}, {vec})",
            "define void @fma(i64 %turns, ptr %data) {",
            "entry:",
            f"  %shift.at = getelementptr float, ptr %data, i64 {width}",
            f"  %scale = {load} %data, align 4",
            f"  %shift = {load} %shift.at, align 4",
            "  br label %loop",
            "loop:",
            "  %t = phi i64 [0, %entry], [%t1, %loop]",
            *[f"  %a{i} = phi {vec} [zeroinitializer, %entry], [%n{i}, %loop]" for i in lanes],
            *fma,
            "  %t1 = add i64 %t, 1",
            "  %go = icmp ult i64 %t1, %turns",
            "  br i1 %go, label %loop, label %done",
            "done:",
            f"  %s0 = fadd {vec} zeroinitializer, zeroinitializer",
            *total,
            f"  store {vec} %s{ACCUMULATORS}, ptr %data, align 4",
            "  ret void",
            "}",
            "define void @copy(i64 %turns, i64 %n, ptr %to, ptr %from) {",
            *memory_loop(
                step,
                [],
                [
                    *offsets,
                    *[address("from", i) for i in range(UNROLL)],
                    *[address("to", i) for i in range(UNROLL)],
                    *[f"  %v{i} = {load} %from.{i}, align 4" for i in range(UNROLL)],
                    *[f"  store {vec} %v{i}, ptr %to.{i}, align 4" for i in range(UNROLL)],
                ],
                [],
            ),
            "define void @add(i64 %turns, i64 %n, ptr %data, ptr %sums) {",
            *memory_loop(
                step,
                [f"  %acc{i} = phi {vec} [zeroinitializer, %outer], [%new{i}, %inner]" for i in range(UNROLL)],
                [
                    *offsets,
                    *[address("data", i) for i in range(UNROLL)],
                    *[f"  %v{i} = {load} %data.{i}, align 4" for i in range(UNROLL)],
                    *[f"  %new{i} = fadd {vec} %acc{i}, %v{i}" for i in range(UNROLL)],
                ],
                # Volatile: no turn may be taken for the repetition of the one before.
                [f"  store volatile {vec} %new{i}, ptr %sums, align 4" for i in range(UNROLL)],
            ),
        ]
    )


def memory_loop(step, phis, body, after):
    """`turns` times: j from 0 to n by `step`, then `after`."""
    return [
        "entry:",
        "  br label %outer",
        "outer:",
        "  %t = phi i64 [0, %entry], [%t1, %next]",
        "  br label %inner",
        "inner:",
        "  %j = phi i64 [0, %outer], [%j1, %inner]",
        *phis,
        *body,
        f"  %j1 = add i64 %j, {step}",
        "  %more = icmp ult i64 %j1, %n",
        "  br i1 %more, label %inner, label %next",
        "next:",
        *after,
        "  %t1 = add i64 %t, 1",
        "  %go = icmp ult i64 %t1, %turns",
        "  br i1 %go, label %outer, label %done",
        "done:",
        "  ret void",
        "}",
    ]


class Rate:
    """Work per second of native loops on all cores: the best of all samples. `tasks(turns)` gives one task per core,
    and one turn of all of them does `work`."""

    def __init__(self, work, tasks):
        self.work, self.tasks = work, tasks
        self.turns = 1
        self.best = 0.0

    def sample(self):
        """One measurement of about SECONDS; the first finds out how many turns that takes."""
        while (seconds := wall_time(self.tasks(self.turns))) < SECONDS / 2:
            self.turns = max(2 * self.turns, int(self.turns * SECONDS / max(seconds, 1e-6) * 0.9))
        self.best = max(self.best, self.work * self.turns / seconds)


def wall_time(tasks):
    """Seconds from the first start to the last end of the tasks, each on a thread of its own, started together."""
    times = []
    barrier = threading.Barrier(len(tasks))

    def run(task):
        barrier.wait()
        start = time.perf_counter()
        task()
        times.append((start, time.perf_counter()))

    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return max(end for _, end in times) - min(start for start, _ in times)


class Machine:
    """The host's limits: the best of what `sample` saw."""

    def __init__(self, peak_gflops=None):
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        self.cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self.width = vector_width()
        self.given_peak = peak_gflops and peak_gflops * 1e9
        target = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2
        )
        module = llvm.parse_assembly(assembly(self.width))
        module.verify()
        self._engine = llvm.create_mcjit_compiler(module, target)  # owns the code
        self._engine.finalize_object()
        self._multiply_add = self._arithmetic_rate()
        self._memory = {}  # bytes of a working set -> (rates of copying, rate of reading)

    def _function(self, name, arguments):
        return ctypes.CFUNCTYPE(None, *arguments)(self._engine.get_function_address(name))

    def _arithmetic_rate(self):
        fma = self._function("fma", [ctypes.c_int64, ctypes.c_void_p])
        data = [np.full(2 * self.width, 0.5, np.float32) for _ in range(self.cores)]
        work = 2 * self.width * ACCUMULATORS * self.cores  # a fused multiply-add is two operations
        return Rate(work, lambda turns: [lambda d=d: fma(turns, d.ctypes.data) for d in data])

    def _memory_rates(self, nbytes):
        """Copying (by vector loads and stores, and by libc's memmove) and reading, over about `nbytes` in all."""
        step = self.width * UNROLL
        n = max(nbytes // 4 // self.cores // step, 2) * step  # floats per core
        half = max(n // 2 // step, 1) * step
        data = [(np.ones(n, np.float32), np.zeros(step, np.float32)) for _ in range(self.cores)]
        pairs = [(np.ones(half, np.float32), np.ones(half, np.float32)) for _ in range(self.cores)]
        copy = self._function("copy", [ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p])
        add = self._function("add", [ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p])

        def move(turns, to, source):
            for _ in range(turns):
                ctypes.memmove(to.ctypes.data, source.ctypes.data, 4 * half)

        copied, read = 2 * 4 * half * self.cores, 4 * n * self.cores
        copies = (
            Rate(
                copied,
                lambda turns: [lambda a=a, b=b: copy(turns, half, a.ctypes.data, b.ctypes.data) for a, b in pairs],
            ),
            Rate(copied, lambda turns: [lambda a=a, b=b: move(turns, a, b) for a, b in pairs]),
        )
        return copies, Rate(
            read, lambda turns: [lambda d=d, s=s: add(turns, n, d.ctypes.data, s.ctypes.data) for d, s in data]
        )

    def sample(self, nbytes):
        """Measure the arithmetic, and the traffic over a working set of this size, once more."""
        if nbytes not in self._memory:
            self._memory[nbytes] = self._memory_rates(nbytes)
        copies, read = self._memory[nbytes]
        for rate in (self._multiply_add, *copies, read):
            rate.sample()

    def flops(self):
        """Single-precision operations per second on all cores."""
        return self.given_peak or self._multiply_add.best

    def bandwidth(self, nbytes):
        """(copying, reading) in bytes per second over a working set of this size; a copied byte counts twice."""
        copies, read = self._memory[nbytes]
        return max(rate.best for rate in copies), read.best

    def least_seconds(self, read, written, flops):
        """The time that moving these bytes once, or doing these operations, takes at best, whichever is longer."""
        copying, reading = self.bandwidth(read + written)
        both = min(read, written)
        traffic = (2 * both + (written - both)) / copying + (read - both) / max(copying, reading)
        return max(traffic, flops / self.flops())

    def describe(self):
        """The processor and the limits so far; the traffic over MAIN_MEMORY bytes."""
        cpuinfo = Path("/proc/cpuinfo")
        lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        copying, reading = self.bandwidth(MAIN_MEMORY)
        return {
            "cpu": names[0] if names else platform.processor(),
            "llvm_cpu": llvm.get_host_cpu_name(),
            "cores": self.cores,
            "system": platform.platform(),
            "peak_gflops": self.flops() / 1e9,
            "copy_gbytes": copying / 1e9,
            "read_gbytes": reading / 1e9,
        }
