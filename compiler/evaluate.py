"""Evaluation of lazy values in two tiers (DESIGN section 4).

A graph that is seen for the first time runs at once on the reference evaluator; one that keeps coming back is compiled.
The decision
depends on counts alone, so a program's results can be reproduced. MLIR is loaded only when a graph holds a transform or
is compiled.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from mlxir.compiler.donation import run_over, updated
from mlxir.compiler.graph import Cut, Node, NumberTrace, Results, Tape, Value, cut, first_uid, resolve, running
from mlxir.compiler.plans import Plan, SharedPlan, follow, places, route, shared_plan
from mlxir.compiler.program import Program
from mlxir.compiler.shared import Shared, Sharing, split
from mlxir.compiler.specialise import pinned
from mlxir.runtime import devices
from mlxir.runtime.bounded import Bounded
from mlxir.runtime.buffers import Buffer, Spare
from mlxir.runtime.errors import CompileError, at
from mlxir.runtime.forks import guarded
from mlxir.runtime.knobs import knobs
from mlxir.runtime.stream import LateBuffer, worker

Run = Callable[[list[Buffer]], list[Buffer]]

_SEEN_BOUND = 4096
MOST_VARIANTS = 8  # compiled graphs of one structure
SETTLED = 4  # times as often as otherwise must a program come back that shared code serves, to get code of its own
KEEPING = 64  # evaluations for which intermediate values are kept after one that reached behind the last

_counts = Bounded(_SEEN_BOUND)
_expanded = Bounded(256)  # some 30 KB each, for the few evaluations until a graph is compiled
_variants = Bounded(_SEEN_BOUND)  # structure -> keys of its compiled graphs
_sharings = Bounded(_SEEN_BOUND)  # exact structure -> the programs that were seen
_shared = Bounded(_SEEN_BOUND)  # structure -> code for programs that differ in numbers
_plans = Bounded(_SEEN_BOUND)
_shared_plans = Bounded(_SEEN_BOUND)  # length of the tape and places of what is wanted -> plans
_stays: set[Any] = set()  # keys of graphs that the compiled tier refused
_lock = guarded(threading.RLock())
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


def evaluations() -> int:
    """A number that grows with each evaluation of this thread that no plan served."""
    return getattr(_state, "since", 0)


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


def evaluate(values: Iterable[Value]) -> bool:
    """Give every value its data; says whether their graph had not been seen before, where that matters to anyone.

    Raises for placeholders, active or leaked, and what `start` left behind.
    """
    asked = list(values)
    _state.fresh = False
    if native.evaluated is not None and native.evaluated(asked):
        return False
    tape = running.tape
    if tape is not None and tape.open:
        running.tape = tape = Tape.of([v for v in asked if v.buffer is None])
        if native.evaluated is not None and native.evaluated(asked):
            return False
    if tape is not None and _replayed(tape, asked):
        return _state.fresh
    wanted = [v for v in map(resolve, asked) if v.buffer is None]
    if wanted:
        _evaluate(wanted)
    for value in asked:
        buffer = resolve(value).buffer
        value.buffer = buffer.ready() if isinstance(buffer, LateBuffer) else buffer
    return _state.fresh


def start(values: Iterable[Value]) -> None:
    """Begin to give every value its data, on the worker thread. The values must depend on no running transform.

    Raises for leaked placeholders; what the evaluation raises is raised where the data are read.
    """
    wanted = list({id(v): v for v in map(resolve, values) if v.buffer is None}.values())
    if not wanted:
        return
    work, kept = _work(wanted)
    if running.tape is not None:
        running.tape = Tape()
    job = worker.submit(devices.kept(work))
    with _lock:
        for number, value in enumerate([*wanted, *kept]):
            if value is not None:
                value.buffer = LateBuffer(job, number, value.shape, value.dtype)
                value.node = None


def _work(wanted: list[Value]) -> tuple[Callable[[], list[Buffer]], Sequence[Value | None]]:
    """What computes these values, and what it keeps behind them."""
    tape = running.tape
    if tape is not None and tape.open:
        running.tape = tape = Tape.of(wanted)
    found = _by_plan(tape, wanted, alone=False) if tape is not None else None
    if found is not None:
        run, arguments, kept = found
        return functools.partial(run, arguments), kept
    program, piece, arguments, inner = _problem(wanted)
    with _lock:
        served = _served(program) if knobs.tier == "auto" else None
    shared_run = None if served is None else served[0].run(served[1])
    if served is None or shared_run is None:
        return functools.partial(_run, program, arguments), inner
    if tape is not None:
        _remember_shared(tape, wanted, piece, inner, served[0])
    return functools.partial(shared_run, arguments), inner


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
    last one, what that one computed in passing is computed again, and would be at every step from then on. The same
    holds for other results of a transform, such as a loss that is read after its gradient.
    """
    since, _state.since = getattr(_state, "since", 0), first_uid()
    if value_tracing() or running.symbolic:
        return []
    inner, uses = _inner(piece)
    asked = {id(v) for v in wanted}
    results = [node.avals for node in piece.nodes if type(node.avals) is Results]
    beside = [v for v in _alive(results) if v.buffer is None]
    if any(r.computed for r in results):
        _state.beside = KEEPING
    elif getattr(_state, "beside", 0):
        _state.beside -= 1
    else:
        beside = []
    for r in results:
        r.computed = True
    beside = [v for v in beside if id(v) not in inner and id(v) not in asked]
    if any(v.uid < since for v in inner.values()):
        _state.keeping = KEEPING
    elif getattr(_state, "keeping", 0):
        _state.keeping -= 1
    else:
        return beside
    # Referred to by nodes of the piece, by `inner`, by this loop and by the call: what else there is, is the program's.
    return beside + [v for v in inner.values() if id(v) not in asked and sys.getrefcount(v) > uses[id(v)] + 3]


def _inner(piece: Cut) -> tuple[dict[int, Value], dict[int, int]]:
    """The values that nodes of a piece compute for others, by id, and how many inputs each is."""
    inner: dict[int, Value] = {}
    uses: dict[int, int] = {}
    for node in piece.nodes:
        for v in node.inputs:
            # (Constants are computed again: they cost nothing, and some are kept for all graphs.)
            if v.node is not None and v.node.inputs and v.buffer is None and v.alias is None:
                uses[id(v)] = uses.get(id(v), 0) + 1
                inner[id(v)] = v
    return inner, uses


def _alive(results: Iterable[Results]) -> Iterator[Value]:
    """The results that somebody still refers to."""
    for each in results:
        for reference in each.values:
            value = reference()
            if value is not None:
                yield value


def _evaluate(wanted: list[Value]) -> None:
    program, piece, arguments, kept = _problem(wanted)
    run, shared = _compiled(program)
    buffers = _run_over(program, piece, arguments, wanted, run) if running.tape is not None and not kept else None
    if buffers is None:
        buffers = run(arguments) if run is not None else _run_reference(program, arguments)
    if running.tape is not None:
        if shared is not None:
            _remember_shared(running.tape, wanted, piece, kept, shared)
        elif run is not None:
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


def _run_over(
    program: Program, piece: Cut, arguments: list[Buffer], wanted: list[Value], run: Run | None
) -> list[Buffer] | None:
    """The results, some of which may take the memory of arguments that nobody else sees; None if there are no such."""
    candidates = updated(program) if devices.gpu() is None and not program.has_transforms else []
    found = route(wanted, piece.parameters, []) if candidates else None
    if found is None:
        return None
    run = run or functools.partial(_run_reference, program)
    return run_over(run, arguments, candidates, wanted, found["walk"], found["leaves"], held=1)


# -- graphs that were compiled before, found by what this thread recorded ----------------------------------------------
class _Native:
    """What native code does of this (api/native), if it serves: `evaluated(*trees)` evaluates by plans and says whether
    it did, `words(plan)` makes a plan's words.
    """

    evaluated: Callable[..., bool] | None = None
    words: Callable[[Plan], tuple[Any, ...] | None] | None = None


native = _Native()


def _remember(tape: Tape, wanted: list[Value], parameters: list[Value], run: Callable, kept: list[Value]) -> None:
    """Keep a plan for equal tapes."""
    at = places(tape, wanted)
    found = route(wanted, parameters, kept) if at is not None else None
    if at is not None and found is not None:
        plan = Plan(run, **found)
        key = (*tape.key, *at)
        _plans.keep(key, plan if native.words is None or kept else plan._replace(words=native.words(plan)))


def _remember_shared(tape: Tape, wanted: list[Value], piece: Cut, kept: list[Value], shared: Shared) -> None:
    """Keep a plan for tapes that differ in numbers only."""
    at = places(tape, wanted)
    plan = shared_plan(tape, wanted, piece, kept, shared) if at is not None else None
    if plan is not None:
        key = len(tape.key), at
        _shared_plans.keep(key, [plan, *(_shared_plans.get(key) or ())][:MOST_VARIANTS])


def _replayed(tape: Tape, asked: list[Value]) -> bool:
    """Evaluate by a plan; False where there is none."""
    wanted = [v for v in asked if v.buffer is None]
    found = _by_plan(tape, wanted) if wanted else None
    if found is None:
        return False
    run, arguments, kept = found
    for value, buffer in zip([*wanted, *kept], run(arguments), strict=True):
        if value is not None:
            value.buffer = buffer
            value.node = None
    running.tape = Tape()
    return True


Planned = tuple[Run, list[Buffer], list[Value | None]]


def _by_plan(tape: Tape, wanted: list[Value], alone: bool = True) -> Planned | None:
    """What runs an evaluation, its arguments, and what it keeps; None where no plan serves it.

    It may write over arguments that nobody else sees if this thread is `alone` with its graph until it has run.
    """
    at = places(tape, wanted) if knobs.tier != "reference" else None
    if at is None:
        return None
    plan: Plan | None = _plans.get((*tape.key, *at))
    run, found = (plan.run, follow(plan, wanted)) if plan is not None else _by_shared_plan(tape, at, wanted, alone)
    return None if run is None or found is None else (run, *found)


def _by_shared_plan(tape: Tape, at: tuple[int, ...], wanted: list[Value], alone: bool) -> tuple[Run | None, Any]:
    """The same by a plan that several numbers share: what runs, and its arguments with what is kept."""
    if knobs.tier != "auto":
        return None, None
    for plan in _shared_plans.get((len(tape.key), at)) or ():
        numbers = plan.numbers(tape.key)
        if numbers is None:
            continue
        count = plan.shared.count(numbers)
        _state.fresh = count == 1
        if count != SETTLED * knobs.tier_up:  # code of its own is due
            run, found = plan.shared.run(numbers), follow(plan, wanted)
            if alone and plan.updated and run is not None and found is not None and not found[1]:
                return functools.partial(_over, plan, run, wanted), found
            return run, found
    return None, None


def _over(plan: SharedPlan, run: Run, wanted: list[Value], arguments: list[Buffer]) -> list[Buffer]:
    return run_over(run, arguments, plan.updated, wanted, plan.walk, plan.leaves, held=0)


def forget() -> None:
    """Let go of all executables."""
    _plans.clear()
    _shared_plans.clear()


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
    run, _ = _compiled(program)
    return run(arguments) if run is not None else _run_reference(program, arguments)


def _compiled(program: Program) -> tuple[Run | None, Shared | None]:
    """What runs this evaluation in the compiled tier, if it is to run there, and the shared code that it is."""
    if knobs.tier == "compiled":
        return executable(program).run, None
    if knobs.tier != "auto":
        return None, None
    with _lock:
        found = _served(program)
    run = None if found is None else found[0].run(found[1])
    with _lock:
        count = _count(program.key) if found is None or run is None else found[0].count(found[1])
        _state.fresh = count == 1
        own = count >= knobs.tier_up * (1 if run is None else SETTLED) and _is_variant(program)
    if own:
        try:
            return executable(program).run, None
        except CompileError:
            # The compiled tier lacks something (`mx.compile` would say so); plain evaluation goes on as it began.
            _stays.add(program.key)
    if found is None:
        with _lock:
            found = _guessed(program)
        run = None if found is None else found[0].run(found[1])
    return run, None if found is None or run is None else found[0]


def _served(program: Program) -> tuple[Shared, tuple] | None:
    """The code that programs of this structure share, and the numbers of this one, if that code may serve it."""
    for candidate in _shared.recall(_structure(program)) or ():
        numbers = candidate.numbers(program)
        if numbers is not None:
            return candidate, numbers
    return None


def _guessed(program: Program) -> tuple[Shared, tuple] | None:
    """The same, newly guessed, once programs of this structure have come often enough with other numbers."""
    if devices.gpu() is not None or not program.parameters:  # shaders are made for one size; constants cost nothing
        return None
    structure, instance = split(program)
    sharing = _sharings.recall(structure)
    if sharing is None:
        _sharings.keep(structure, sharing := Sharing())
    made = sharing.guess(program, instance, 2 * knobs.tier_up, family)
    if made is None:
        return None
    key = _structure(program)
    _shared.keep(key, [made, *(_shared.recall(key) or ())][:MOST_VARIANTS])
    return _served(program)


def _run_reference(program: Program, arguments: list[Buffer]) -> list[Buffer]:
    if program.has_transforms:
        program = expanded(program)
    arrays = [b.numpy() for b in arguments]
    spare = {n: b for n, b in enumerate(arguments) if isinstance(b, Spare)}
    results = program.run_reference(arrays, spare)
    taken = {id(arrays[n]): b for n, b in spare.items()}
    return [taken[id(a)].taken() if id(a) in taken else Buffer.from_numpy(a) for a in results]


def expanded(program: Program) -> Program:
    """The program of plain primitives that the transform passes make of one with transforms."""
    with _lock:
        found: Program | None = _expanded.recall(program.key)
        if found is None:
            found = pipeline().transformed_program(program)
            _expanded.keep(program.key, found)
    return found


def _count(key: tuple) -> int:
    """How often an equal graph has been evaluated, this time included."""
    count = (_counts.recall(key) or 0) + 1
    _counts.keep(key, count)
    return count


def _is_variant(program: Program) -> bool:
    """Whether a graph that keeps coming back is to run compiled.

    Graphs that differ in shapes or constants only are variants of one structure, of which few are compiled: a cache
    that grows by one each step must not compile at each step.
    """
    key = program.key
    if key in _stays:
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
