"""The kernels of one compiled function: what each costs, and how far that is from the machine's limit.

    mlxir bench --profile FILE.py:FUNCTION --arg SPEC       a function of yours, arguments as for `mlxir dump`
    mlxir bench --profile gpt_step                          a workload of the harness

The compiled schedule runs step by step, as often as `--times` says, each step timed by itself (about a microsecond of
each is the call into it). Per kernel the table gives the median, the bytes of its operands and results, its arithmetic
(the operations of the fused group, one per element whatever they are; products as 2 per multiply-add), and the share of
the longer of the two times that the machine needs for these at best. Operands of which a kernel reads a part (the table
of a lookup) count in full.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from machine import MAIN_MEMORY, Machine
from report import markdown_table, replace_section
from suite import load

import mlxir as mx
from mlxir.cli import UsageError, load_function, parse_spec
from mlxir.compiler import pipeline
from mlxir.compiler.cache import library_step
from mlxir.dump import Spec, trace
from mlxir.runtime.launch import Executable, Segment, thread_count
from mlxir.runtime.trees import leaves, tree_map

SEED = 0


class Row(NamedTuple):
    """One kernel, or one step that the host computes."""

    name: str
    what: str  # its operations
    seconds: float
    steps: int
    read: int  # bytes
    written: int
    flops: int


class Stepper(Executable):
    """An executable that runs one kernel at a time and notes what each took."""

    def __init__(self, objects, schedule):
        apart = [one for segment in schedule.segments for one in split(segment)]
        super().__init__(objects, schedule._replace(segments=apart), library_step)
        self._only, self._simple = 0, False  # by segments, also where there is one
        self.seconds = [[] for _ in apart]

    def _run_segments(self, table, arena, buffers):
        whole, words = self.schedule, self._words
        native = iter(words)
        for segment, seconds in zip(whole.segments, self.seconds, strict=True):
            self.schedule = whole._replace(segments=[segment])
            self._words = [next(native)] if segment.launches else []
            start = time.perf_counter()
            super()._run_segments(table, arena, buffers)
            seconds.append(time.perf_counter() - start)
        self.schedule, self._words = whole, words


def split(segment):
    """A segment of its own for each kernel of one."""
    return [Segment((launch,)) for launch in segment.launches] or [segment]


def nbytes(avals):
    return sum(a.size * a.dtype.size for a in avals)


def rows_of(program, buffers, times):
    """The kernels of the program, run `times` times on the buffers of its parameters."""
    loops = pipeline.lowered(program, lambda stage, text: None)
    stepper = Stepper(*pipeline.compile_program(program))
    for _ in range(times):
        stepper.run(buffers)
    seconds = iter(map(statistics.median, stepper.seconds))
    rows = []
    for launch in loops.fused.launches:
        if launch.kind == "library":
            steps, ops = 1, [launch.op]
        else:
            steps = sum(step.extent > 0 for step in loops.kernels[launch.name].steps)
            ops = [op for op in loops.fused.module.find(launch.name).read()[0] if op.operands]  # no constants
        values = loops.fused.values
        row = Row(
            launch.name,
            " ".join([op.record.name for op in ops if op.record.kind != "structural"]) or "copy",
            sum(next(seconds) for _ in range(steps)),
            steps,
            nbytes([values[v] for v in launch.operands]),
            nbytes([values[v] for v in launch.results]),
            sum(op.record.flops([t.aval for t in op.operands], [t.aval for t in op.results], **op.attrs) for op in ops),
        )
        rows.append(row)
    return rows


def table(rows, machine):
    """(column names, rows of text), the longest first, and a total."""
    total = sum(row.seconds for row in rows)
    lines, least = [], 0.0
    for row in sorted(rows, key=lambda row: -row.seconds):
        machine.sample(row.read + row.written)
        limit = machine.least_seconds(row.read, row.written, row.flops)
        least += limit
        what = row.what if len(row.what) <= 60 else row.what[:57] + "..."
        lines.append([
            row.name, what, f"{row.seconds * 1e6:.1f}", f"{row.seconds / total:.0%}", str(row.steps),
            f"{row.read / 1e6:.2f} + {row.written / 1e6:.2f}", f"{row.flops / 1e6:.1f}",
            f"{row.flops / row.seconds / 1e9:.0f}", f"{(row.read + row.written) / row.seconds / 1e9:.0f}",
            f"{limit / row.seconds:.0%}",
        ])  # fmt: skip
    moved = f"{sum(r.read for r in rows) / 1e6:.2f} + {sum(r.written for r in rows) / 1e6:.2f}"
    flops = sum(row.flops for row in rows)
    lines.append([
        "all", "", f"{total * 1e6:.1f}", "100%", str(sum(row.steps for row in rows)), moved, f"{flops / 1e6:.1f}",
        f"{flops / total / 1e9:.0f}", "", f"{least / total:.0%}",
    ])  # fmt: skip
    columns = ["kernel", "operations", "us", "time", "steps", "MB in + out", "MFLOP", "GFLOP/s", "GB/s", "of the limit"]
    return columns, lines


def subject(options):
    """(name, function, arguments) of the profile."""
    workloads = load()
    if options.profile in workloads:
        workload = workloads[options.profile]
        arguments = workload.tree(*map(mx.array, workload.inputs(np.random.default_rng(SEED))))
        return workload.name, lambda *arguments: workload.functions["mlx"](mx, *arguments), tuple(arguments)
    if ":" not in options.profile:
        raise UsageError(f"{options.profile!r} is neither FILE.py:FUNCTION nor a workload: {', '.join(workloads)}")
    _, name, function, arguments = load_function(options.profile, options.arg)
    rng = np.random.default_rng(SEED)
    return name, function, tuple([tree_map(lambda leaf: filled(leaf, rng), argument) for argument in arguments])


def filled(leaf, rng):
    """An array of a spec: numbers in [0, 1), small integers; any other leaf as it is."""
    leaf = parse_spec(leaf) if isinstance(leaf, str) else leaf
    if not isinstance(leaf, Spec):
        return leaf
    return mx.array(rng.uniform(0, 2 if leaf.dtype.is_integer else 1, leaf.shape)).astype(leaf.dtype)


def main():
    parser = argparse.ArgumentParser(
        "mlxir bench --profile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("--profile", required=True, metavar="FILE.py:FUNCTION|WORKLOAD")
    option("--arg", action="append", metavar="SPEC", help="for each argument; default: the file's example_args")
    option("--times", type=int, default=30, help="runs of the schedule (%(default)s)")
    option("--peak", type=float, help="GFLOP/s of the machine, in place of measuring them")
    option("--md", type=Path, metavar="FILE", help="write the table between the markers profile-NAME of this file")
    options = parser.parse_args()
    try:
        name, function, arguments = subject(options)
    except UsageError as error:
        parser.exit(2, f"mlxir: {error}\n")
    program = trace(function, arguments, {})
    buffers = [x._value.buffer for x in leaves(arguments) if isinstance(x, mx.array)]
    if len(buffers) != len(program.parameters):
        parser.exit(2, f"mlxir: {name} reads arrays that are no arguments of it; pass them\n")
    machine = Machine(options.peak)
    machine.sample(MAIN_MEMORY)
    columns, lines = table(rows_of(program, buffers, options.times), machine)
    about = machine.describe()
    text = f"{name}: {about['cpu']}, {thread_count()} threads, {about['peak_gflops']:.0f} GFLOP/s, "
    text += f"{about['copy_gbytes']:.0f} GB/s copying main memory; medians of {options.times} runs"
    print(text)
    widths = [max(len(line[i]) for line in [columns, *lines]) for i in range(len(columns))]
    for line in [columns, *lines]:
        cells = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        print("  ".join(cells).rstrip())
    if options.md:
        replace_section(options.md, f"profile-{name}", f"{text}.\n\n{markdown_table(columns, lines)}")


if __name__ == "__main__":
    main()
