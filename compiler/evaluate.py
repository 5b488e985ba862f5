"""Evaluation of lazy values in two tiers (DESIGN section 4).

A graph that is seen for the first time runs at once on the reference evaluator; one that keeps coming back is compiled.
The decision
depends on counts alone, so a program's results can be reproduced. MLIR is loaded only when a graph holds a transform or
is compiled.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from mlxir.compiler.graph import Node, NumberTrace, Value, cut, resolve, running
from mlxir.compiler.program import Program
from mlxir.compiler.specialise import pinned
from mlxir.runtime.bounded import Bounded
from mlxir.runtime.buffers import Buffer
from mlxir.runtime.errors import CompileError, at
from mlxir.runtime.knobs import knobs
from mlxir.runtime.stream import LateBuffer, worker

_SEEN_BOUND = 4096
MOST_VARIANTS = 8  # compiled graphs of one structure

_counts = Bounded(_SEEN_BOUND)
_expanded = Bounded(_SEEN_BOUND)
_variants = Bounded(_SEEN_BOUND)  # structure -> keys of its compiled graphs
_stays: set[Any] = set()  # keys of graphs that the compiled tier refused
_lock = threading.RLock()
_state = threading.local()


class ValueTracing:
    """While a grad/vjp/jvp trace runs on this thread, what is evaluated keeps its graph: derivatives still need it."""

    def __enter__(self) -> ValueTracing:
        _state.depth = getattr(_state, "depth", 0) + 1
        running.depth += 1
        return self

    def __exit__(self, *exc: object) -> None:
        running.depth -= 1
        _state.depth -= 1
        if not _state.depth:
            for value in getattr(_state, "kept", ()):
                value.node = None
            _state.kept = []


def value_tracing() -> bool:
    """Whether a grad/vjp/jvp trace is running on this thread."""
    return getattr(_state, "depth", 0) > 0


def pipeline() -> Any:
    """The compiler proper, from the first use on."""
    from mlxir.compiler import pipeline as loaded  # lazy: it loads MLIR and LLVM, 0.25 s

    return loaded


def executable(program: Program) -> Any:
    """The executable of a program, from the cache or compiled now."""
    from mlxir.compiler import cache  # lazy: it loads llvmlite, 50 ms

    return cache.executable(program)


def evaluate(values: Iterable[Value]) -> None:
    """Give every value its data. Raises for placeholders, active or leaked, and what an asynchronous evaluation raised."""
    asked = list(values)
    wanted = [v for v in map(resolve, asked) if v.buffer is None]
    if wanted:
        _evaluate(wanted)
    for value in asked:
        buffer = resolve(value).buffer
        value.buffer = buffer.ready() if isinstance(buffer, LateBuffer) else buffer


def start(values: Iterable[Value]) -> None:
    """Begin to give every value its data, on the worker thread. The values must depend on no running transform.

    Raises for leaked placeholders; what the evaluation raises is raised where the data are read.
    """
    wanted = list({id(v): v for v in map(resolve, values) if v.buffer is None}.values())
    if not wanted:
        return
    program, _, arguments = _problem(wanted)
    job = worker.submit(lambda: _run(program, arguments))
    for number, value in enumerate(wanted):
        value.buffer = LateBuffer(job, number, value.shape, value.dtype)
        value.node = None


def _problem(wanted: list[Value]) -> tuple[Program, list[Node], list[Buffer]]:
    """(the program that computes these values, its nodes, its arguments)."""
    piece = cut(wanted, is_leaf=_concrete, see=resolve)
    for leaf in piece.parameters:
        if leaf.buffer is None:
            if not isinstance(leaf.trace, NumberTrace):
                raise _placeholder_error(leaf)
            leaf.buffer = leaf.trace.data(leaf.trace.number.value())
    program = pinned(piece.program) if running.symbolic else piece.program
    return program, piece.nodes, [leaf.buffer for leaf in piece.parameters if leaf.buffer is not None]


def _evaluate(wanted: list[Value]) -> None:
    program, nodes, arguments = _problem(wanted)
    buffers = _run(program, arguments)
    traced = _through_tracers(nodes) if value_tracing() else set()
    for value, buffer in zip(wanted, buffers, strict=True):
        value.buffer = buffer
        if id(value.node) in traced:
            _state.kept = [*getattr(_state, "kept", ()), value]
        else:
            value.node = None


def _concrete(value: Value) -> bool:
    return value.buffer is not None


def _through_tracers(nodes: list[Node]) -> set[int]:
    """Which of the evaluated nodes depend on a tracer: directly, or through a value evaluated before with its graph
    kept.
    """
    traced: set[int] = set()
    for node in nodes:
        if any(v.alias is not None or id(v.node) in traced or (v.buffer is not None and v.node) for v in node.inputs):
            traced.add(id(node))
    return traced


def _run(program: Program, arguments: list[Buffer]) -> list[Buffer]:
    if knobs.tier == "compiled":
        return executable(program).run(arguments)
    if knobs.tier == "auto" and _comes_back(program):
        try:
            return executable(program).run(arguments)
        except CompileError:
            # The compiled tier lacks something (`mx.compile` would say so); plain evaluation goes on as it began.
            _stays.add(program.key)
    if program.has_transforms:
        with _lock:
            expanded: Program | None = _expanded.recall(program.key)
            if expanded is None:
                expanded = pipeline().transformed_program(program)
                _expanded.keep(program.key, expanded)
        program = expanded
    return [Buffer.from_numpy(a) for a in program.run_reference([b.numpy() for b in arguments])]


def _comes_back(program: Program) -> bool:
    """Whether this evaluation of an equal graph is the one from which on it runs compiled.

    Graphs that differ in shapes or constants only are variants of one structure, of which few are compiled: a cache
    that grows by one each step
    must not compile at each step.
    """
    key = program.key
    with _lock:
        count = (_counts.recall(key) or 0) + 1
        _counts.keep(key, count)
        if count < knobs.tier_up or key in _stays:
            return False
        structure = _structure(program)
        variants = _variants.recall(structure) or set()
        _variants.keep(structure, variants)
        if key not in variants and len(variants) < MOST_VARIANTS:
            variants.add(key)
        return key in variants


def _structure(program: Program) -> int:
    return hash(tuple([(i.record.name, i.operands) for i in program.instructions]))


def _placeholder_error(value: Value) -> Exception:
    trace = value.trace
    if trace is not None and trace.active:
        return ValueError(
            f"[eval] not allowed during {trace.kind}: {trace.name}{at(trace.where)} is being traced, so its arrays have"
            " a shape but no data. Attempting to eval an array during function transformations like compile or vmap is"
            " not allowed."
        )
    made = f" It was made while {trace.kind} traced {trace.name}{at(trace.where)}." if trace is not None else ""
    return RuntimeError(
        f"[eval] Attempting to eval an array without a primitive.{made} If you are using compile, make sure that all"
        " inputs and outputs are captured (inputs=, outputs=) or returned."
    )
