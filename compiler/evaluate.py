"""Evaluation of lazy values in two tiers (DESIGN section 4).

A graph that is seen for the first time runs at once on the reference evaluator; one that keeps coming back is compiled.
The decision
depends on counts alone, so a program's results can be reproduced. MLIR is loaded only when a graph holds a transform or
is compiled.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from mlxir.compiler.graph import Cut, Node, NumberTrace, Tape, Value, cut, first_uid, resolve, running
from mlxir.compiler.program import Program
from mlxir.compiler.specialise import pinned
from mlxir.runtime import devices
from mlxir.runtime.bounded import Bounded
from mlxir.runtime.buffers import Buffer
from mlxir.runtime.errors import CompileError, at
from mlxir.runtime.knobs import knobs
from mlxir.runtime.stream import LateBuffer, worker

_SEEN_BOUND = 4096
MOST_VARIANTS = 8  # compiled graphs of one structure
KEEPING = 64  # evaluations for which intermediate values are kept after one that reached behind the last

_counts = Bounded(_SEEN_BOUND)
_expanded = Bounded(_SEEN_BOUND)
_variants = Bounded(_SEEN_BOUND)  # structure -> keys of its compiled graphs
_plans = Bounded(_SEEN_BOUND)
_stays: set[Any] = set()  # keys of graphs that the compiled tier refused
_lock = threading.RLock()
_state = threading.local()


class ValueTracing:
    """While a grad/vjp/jvp trace runs on this thread, what is evaluated keeps its graph: derivatives still need it."""

    def __enter__(self) -> ValueTracing:
        _state.depth = getattr(_state, "depth", 0) + 1
        running.enter()
        return self

    def __exit__(self, *exc: object) -> None:
        running.leave()
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

    return cache.executable(program) if devices.gpu() is None else Routed(program, cache.executable)


class Routed:
    """The executables of a program where there is a GPU, too: a run takes that of the thread's default device."""

    def __init__(self, program: Program, make: Callable):
        self._program, self._make = program, make
        self._made: dict[bool, Any] = {}
        self.code_bytes = self._for(devices.on_gpu()).code_bytes

    def run(self, arguments: list[Buffer]) -> list[Buffer]:
        """The results for concrete arguments."""
        return self._for(devices.on_gpu()).run(arguments)

    def _for(self, on_gpu: bool) -> Any:
        made = self._made.get(on_gpu)
        if made is None:
            made = self._made[on_gpu] = self._make(self._program, devices.gpu() if on_gpu else None)
        return made


def family(program: Program, names: list[str], texts: list[str], known: Any) -> Any:
    """A program with the symbolic sizes `texts` over the symbols `names`, to be compiled for all sizes."""
    from mlxir.compiler import generic  # lazy: it loads llvmlite, 50 ms

    return generic.Family(program, names, texts, known)


def evaluate(values: Iterable[Value]) -> None:
    """Give every value its data. Raises for placeholders, active or leaked, and what `start` left behind."""
    asked = list(values)
    if native.evaluated is not None and native.evaluated(asked):
        return
    tape = running.tape
    if tape is not None and _replayed(tape, asked):
        return
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
    program, _, arguments, kept = _problem(wanted)
    wanted += kept
    if running.tape is not None:
        running.tape = Tape()
    job = worker.submit(devices.kept(lambda: _run(program, arguments)))
    with _lock:
        for number, value in enumerate(wanted):
            value.buffer = LateBuffer(job, number, value.shape, value.dtype)
            value.node = None


def _problem(wanted: list[Value]) -> tuple[Program, Cut, list[Buffer], list[Value]]:
    """The program that computes these values, the piece of the graph that it is, its arguments, and what it computes
    behind these values because it is to be kept.
    """
    with _lock:  # another thread may drop nodes of a graph that both evaluate
        piece = cut(wanted, is_leaf=_concrete, see=resolve)
        kept = _kept(piece, wanted)
        if kept:
            piece = cut([*wanted, *kept], is_leaf=_concrete, see=resolve)
    for leaf in piece.parameters:
        if leaf.buffer is None:
            if not isinstance(leaf.trace, NumberTrace):
                raise _placeholder_error(leaf)
            leaf.buffer = leaf.trace.data(leaf.trace.number.value())
    program = pinned(piece.program) if running.symbolic else piece.program
    return program, piece, [leaf.buffer for leaf in piece.parameters if leaf.buffer is not None], kept


def _kept(piece: Cut, wanted: list[Value]) -> list[Value]:
    """The intermediate values that a program still refers to, where it seems to count on their being evaluated.

        for _ in range(n):
            params = update(params, grad(loss)(params))     never evaluated, but for the loss
            print(loss(params))

    As a rule only what is asked for is kept, so that the rest may be fused. But once an evaluation reaches behind the
    last one, what that one computed in passing is computed again, and would be at every step from then on.
    """
    since, _state.since = getattr(_state, "since", 0), first_uid()
    if value_tracing() or running.symbolic:
        return []
    uses: dict[int, int] = {}
    inner: dict[int, Value] = {}
    for node in piece.nodes:
        for v in node.inputs:
            # (Constants are computed again: they cost nothing, and some are kept for all graphs.)
            if v.node is not None and v.node.inputs and v.buffer is None and v.alias is None:
                uses[id(v)] = uses.get(id(v), 0) + 1
                inner[id(v)] = v
    if any(v.uid < since for v in inner.values()):
        _state.keeping = KEEPING
    elif getattr(_state, "keeping", 0):
        _state.keeping -= 1
    else:
        return []
    for v in wanted:
        inner.pop(id(v), None)
    # Referred to by nodes of the piece, by `inner`, by the loop and by the call: what else there is, is the program's.
    return [v for v in inner.values() if sys.getrefcount(v) > uses[id(v)] + 3]


def _evaluate(wanted: list[Value]) -> None:
    program, piece, arguments, kept = _problem(wanted)
    run = _compiled(program)
    buffers = run(arguments) if run is not None else _run_reference(program, arguments)
    if running.tape is not None:
        if run is not None:
            _remember(running.tape, wanted, piece.parameters, run, kept)
        running.tape = Tape()
    traced = _through_tracers(piece.nodes) if value_tracing() else set()
    with _lock:
        for value, buffer in zip([*wanted, *kept], buffers, strict=True):
            value.buffer = buffer
            if id(value.node) in traced:
                _state.kept = [*getattr(_state, "kept", ()), value]
            else:
                value.node = None


# -- graphs that were compiled before, found by what this thread recorded ----------------------------------------------
class Plan(NamedTuple):
    """How an evaluation that was seen before is repeated: no graph is cut and no program is made.

    `walk`, `leaves` and `kept` are (node, input) pairs; the nodes are those of the wanted values, then those that
    `walk` leads to. The leaves are the arguments; what is kept are results behind the wanted ones.
    """

    run: Callable[[list[Buffer]], list[Buffer]]
    walk: list[tuple[int, int]]
    leaves: list[tuple[int, int]]
    words: tuple[Any, ...] | None = None  # the same for native code
    kept: Sequence[tuple[int, int]] = ()


class _Native:
    """What native code does of this (api/native), if it serves: `evaluated(*trees)` evaluates by plans and says whether
    it did, `words(plan)` makes a plan's words.
    """

    evaluated: Callable[..., bool] | None = None
    words: Callable[[Plan], tuple[Any, ...] | None] | None = None


native = _Native()


def _key(tape: Tape, wanted: list[Value]) -> tuple | None:
    """What a plan is found by, or None where a value was recorded elsewhere or depends on such values."""
    if tape.open:
        return None
    places = []
    for v in wanted:
        mark = v.mark
        if mark is None or mark[0] is not tape or v.node is None:
            return None
        places.append(mark[1])
    return (*tape.key, *places)


def _remember(tape: Tape, wanted: list[Value], parameters: list[Value], run: Callable, kept: list[Value]) -> None:
    key = _key(tape, wanted)
    if key is None:
        return
    nodes = [v.node for v in wanted if v.node is not None]
    spots = {id(n) for n in nodes}
    walk: list[tuple[int, int]] = []
    found: dict[int, tuple[int, int]] = {}
    sought = {id(v) for v in [*parameters, *kept]}
    for number, node in enumerate(nodes):  # it grows meanwhile
        for i, x in enumerate(node.inputs):
            if id(x) in sought:
                found.setdefault(id(x), (number, i))
            if x.node is not None and x.buffer is None and id(x.node) not in spots:
                spots.add(id(x.node))
                walk.append((number, i))
                nodes.append(x.node)
    if len(found) == len(sought):
        while walk and len(wanted) + len(walk) - 1 > max((number for number, _ in found.values()), default=-1):
            walk.pop()  # leads to no leaf
        plan = Plan(run, walk, [found[id(v)] for v in parameters], kept=[found[id(v)] for v in kept])
        _plans.keep(key, plan if native.words is None or kept else plan._replace(words=native.words(plan)))


def _replayed(tape: Tape, asked: list[Value]) -> bool:
    """Evaluate by a plan; False where there is none."""
    wanted = [v for v in asked if v.buffer is None]
    key = _key(tape, wanted) if wanted and knobs.tier != "reference" else None
    plan: Plan | None = _plans.get(key) if key is not None else None
    if plan is None:
        return False
    nodes: Any = [v.node for v in wanted]
    for number, i in plan.walk:
        node = nodes[number].inputs[i].node
        if node is None:  # evaluated meanwhile
            return False
        nodes.append(node)
    arguments = []
    for number, i in plan.leaves:
        buffer = nodes[number].inputs[i].buffer
        if buffer is None:
            return False
        arguments.append(buffer)
    wanted += [nodes[number].inputs[i] for number, i in plan.kept]
    for value, buffer in zip(wanted, plan.run(arguments), strict=True):
        value.buffer = buffer
        value.node = None
    running.tape = Tape()
    return True


def forget() -> None:
    """Let go of all executables."""
    _plans.clear()


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
    run = _compiled(program)
    return run(arguments) if run is not None else _run_reference(program, arguments)


def _compiled(program: Program) -> Callable[[list[Buffer]], list[Buffer]] | None:
    """What runs this evaluation in the compiled tier, if it is to run there."""
    if knobs.tier == "compiled":
        return executable(program).run
    if knobs.tier == "auto" and _comes_back(program):
        try:
            return executable(program).run
        except CompileError:
            # The compiled tier lacks something (`mx.compile` would say so); plain evaluation goes on as it began.
            _stays.add(program.key)
    return None


def _run_reference(program: Program, arguments: list[Buffer]) -> list[Buffer]:
    if program.has_transforms:
        program = expanded(program)
    return [Buffer.from_numpy(a) for a in program.run_reference([b.numpy() for b in arguments])]


def expanded(program: Program) -> Program:
    """The program of plain primitives that the transform passes make of one with transforms."""
    with _lock:
        found: Program | None = _expanded.recall(program.key)
        if found is None:
            found = pipeline().transformed_program(program)
            _expanded.keep(program.key, found)
    return found


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
