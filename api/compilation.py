"""`compile`: trace a function once per signature, run the optimised program from then on.

A call flattens its arguments in one walk into a key (structure, constants by type and value, shapes and dtypes) and a
list of values. On a hit the program runs on the values' buffers and the results are put in their places: nothing is
traced, built or evaluated. On a miss the function is called on placeholders; what it captured from outside becomes
extra arguments with the values of that moment.

A trace may serve more than one signature. With `shapeless=True` the axes of its placeholders have symbolic lengths, and
the program is written out anew for each size without Python running again. A Python number that has had
`PROMOTED_AFTER` values becomes a symbolic number: what is computed from it beside arrays is an input of the program,
evaluated by Python for each call. Either holds as long as what the trace assumed of sizes and numbers does
(`dialects/symbolic.py`); where it does not, the function is traced again.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from mlxir.compiler.evaluate import evaluate
from mlxir.compiler.graph import Node, NumberTrace, Trace, Value, close, constant, depends_on_trace, first_uid, running
from mlxir.compiler.program import Program
from mlxir.compiler.specialise import symbolic_trace
from mlxir.dialects.symbolic import Scope
from mlxir.runtime import forks
from mlxir.runtime.errors import at, user_frame
from mlxir.runtime.knobs import knobs
from mlxir.runtime.trees import leaves, tree_map, update

from .captured import Placeholders, Snapshot, written
from .entries import Assumed, Entry, Traced, replay
from .native import native_functions
from .native.form import JOINED_AFTER
from .native.functions import Function, native_function
from .ndarray import array, wrap_new
from .signatures import (
    KEYWORD,
    STATE,
    Description,
    Numbers,
    describe_call,
    difference,
    flatten_argument,
    flatten_state,
    with_inputs,
    without_numbers,
    without_sizes,
)
from .transforms import check_callable, describe

__all__ = [
    "clear_compile_cache", "compile", "compile_cache_info", "disable_compile", "enable_compile", "explain_recompiles",
]  # fmt: skip

PROMOTED_AFTER = 3  # values of a Python number for which a function is traced before the number becomes an input
MOST_PLANS = 4  # signatures of one function that native code looks for
MOST_ALTERNATIVES = 8  # traces of one signature that differ in what they assume of its numbers
EXPLAINED = 16  # earlier signatures that a new one is compared with


class SignatureInfo(NamedTuple):
    """Of one compiled function: calls that needed no trace, calls that traced, signatures kept, the time that tracing
    and compiling took, and the bytes of machine code of those signatures.
    """

    hits: int
    misses: int
    entries: int
    compile_seconds: float
    code_bytes: int


class _Spots:
    """What is known of the Python numbers of calls that differ in them (and in sizes) only.

    `inputs` are those that a trace takes as inputs, `fixed` those on whose values it depends.
    """

    def __init__(self, count: int):
        self.seen: list[set] = [set() for _ in range(count)]
        self.inputs: set[int] = set()
        self.fixed: set[int] = set()

    def traced(self, numbers: Numbers) -> None:
        """Count a trace; a number that has had enough values becomes an input."""
        for i, (_, x) in enumerate(numbers):
            if i not in self.fixed and i not in self.inputs:
                self.seen[i].add(repr(x))
                if len(self.seen[i]) > PROMOTED_AFTER:
                    self.inputs.add(i)

    def fix(self, numbers: Collection[int]) -> None:
        """The trace depends on the values of these."""
        self.inputs.difference_update(numbers)
        self.fixed.update(numbers)


class _Cache:
    """The entries of one compiled function. Looking up takes no lock; tracing does, one signature at a time."""

    def __init__(self, fun: Callable, inputs: Any, outputs: Any, shapeless: bool = False):
        self.fun, self.inputs, self.outputs, self.shapeless = fun, inputs, outputs, shapeless
        self.name, self.where = describe(fun)
        self.lock = threading.RLock()
        # Before all else, native code serves calls by the plans of the latest entries (native/calls.py).
        self.plans: list[tuple[Any, ...]] = []
        self.served = ctypes.c_uint64()  # calls
        self.late = ctypes.c_uint64()  # calls in a row whose arguments were graphs that were never seen before
        self.clear()

    def clear(self) -> None:
        """Forget all entries and counts."""
        self.entries: OrderedDict[tuple, Entry] = OrderedDict()
        self.traces: dict[tuple, list[Traced]] = {}  # shapeless ones, by their key without sizes
        self.spots: dict[tuple, _Spots] = {}  # by key without numbers
        self.shared_spots: dict[tuple, _Spots] = {}  # by key without sizes and numbers
        self.described: list[tuple[Description, Assumed]] = []
        # The last signature is compared before anything is hashed.
        self.last: tuple[list, Entry | None] = ([object()], None)
        self.plans.clear()
        self.served.value = self.late.value = 0
        self.hits = self.misses = 0
        self.seconds = 0.0

    def info(self) -> SignatureInfo:
        """Hits, misses, entries, seconds and bytes of this function."""
        entries = list(self.entries.values())
        hits, code_bytes = self.hits + self.served.value, sum([entry.code_bytes for entry in entries])
        return SignatureInfo(hits, self.misses, len(entries), self.seconds, code_bytes)

    # -- looking up ---------------------------------------------------------------------------------------------------
    def numbers_of(self, key: list, numbers: Numbers, values: list[Value]) -> _Spots:
        """What is known of the numbers of a signature, shared by all sizes."""
        short = tuple(without_numbers(key, numbers))
        found = self.spots.get(short)
        if found is None:
            if len(self.spots) >= knobs.cache_entries:
                self.spots.clear()
            if len(self.shared_spots) >= knobs.cache_entries:
                self.shared_spots.clear()
            found = self.shared_spots.setdefault(tuple(without_sizes(short, values)), _Spots(len(numbers)))
            self.spots[short] = found
        return found

    def find(self, key: list, numbers: Numbers, values: list[Value]) -> Entry | None:
        """The entry of a signature; what it computes from numbers is appended to the values."""
        spots = self.numbers_of(key, numbers, values) if numbers else None
        exact = tuple(with_inputs(key, numbers, spots.inputs) if spots is not None else key)
        entry = self.entries.get(exact)
        while entry is not None and entry.feed is not None and not entry.feed.accepts(numbers):
            entry = entry.next
        if entry is None:
            return None
        if entry.feed is None:
            self.last = (key, entry)
        else:
            values += entry.feed.values(numbers)
        with contextlib.suppress(KeyError):  # dropped by another thread
            self.entries.move_to_end(exact)
        return entry

    def keep(
        self, entry: Entry, key: list, numbers: Numbers, inputs: Collection[int], values: list[Value]
    ) -> None:
        """Add an entry; the least recently used ones are dropped."""
        exact = tuple(with_inputs(key, numbers, inputs))
        entry.inputs = frozenset(inputs)
        if entry.feed is not None:
            entry.next = self.entries.get(exact)
            entry.alternatives = 1 + (entry.next.alternatives if entry.next is not None else 0)
            if entry.alternatives > MOST_ALTERNATIVES:  # it branches on its numbers too often
                self.numbers_of(key, numbers, values).fix(inputs)
        self.entries[exact] = entry
        while len(self.entries) > knobs.cache_entries:
            self.entries.popitem(last=False)

    # -- calls --------------------------------------------------------------------------------------------------------
    def call(self, args: tuple, kwargs: dict) -> Any:
        """A call that no plan serves."""
        key: list = []
        values: list[Value] = []
        numbers: Numbers = []
        for x in args:
            flatten_argument(x, key, values, numbers)
        for name, x in kwargs.items():
            key.append(KEYWORD)
            key.append(name)
            flatten_argument(x, key, values, numbers)
        if knobs.disable_compile:
            return self.fun(*args, **kwargs)
        if self.inputs is not None:
            key.append(STATE)
            flatten_state(self.inputs, key, values)
        if running.depth and depends_on_trace(values):
            return self.fun(*args, **kwargs)
        last, entry = self.last
        count = len(values)
        if key != last:
            entry = self.find(key, numbers, values)
        if entry is None:
            return self.miss(key, numbers, args, kwargs, values)
        self.hits += 1
        buffers = [v.buffer for v in values]
        if not all(buffers) and self.joins(entry, values):  # a buffer is true
            return joined(entry, values, count)
        if entry.run is None:
            self.prepare(entry)
        if (plan := entry.planned(lambda e: self.plan(e, len(numbers), args, kwargs, count))) is not None:
            self.plans[:] = [plan, *[p for p in self.plans if p is not plan]][:MOST_PLANS]
        if not all(buffers):
            self.evaluate(values)
            buffers = [v.buffer for v in values]
        results = entry.run(buffers)  # type: ignore[arg-type, misc]
        if self.outputs is not None or not entry.plain:
            return entry.finish([constant(b) for b in results], values, self.outputs)
        return entry.rebuild(wrap_new(results))

    def plan(self, entry: Entry, numbers: int, args: tuple, kwargs: dict, count: int) -> tuple[Any, ...] | None:
        """The plan for calls like this one, which the entry serves; None where native code does not."""
        if native_functions() is None:
            return None
        from .native.plans import described  # lazy: it loads llvmlite

        return described(entry, args, kwargs, numbers, count, (self.inputs, self.outputs), self.served, self.late)

    def joins(self, entry: Entry, values: list[Value]) -> bool:
        """Whether a call becomes part of the lazy graph that its arguments are still.

        That is so once some calls in a row have evaluated graphs that were not seen before: where sizes change at every
        step all are new, and one that differs from those before in numbers only is better than many parts of it.
        """
        if not entry.small or self.outputs is not None or self.late.value < JOINED_AFTER:
            return False
        return any([v.buffer is None and v.node is not None and _pending(v.node) for v in values])

    def evaluate(self, values: list[Value]) -> None:
        """Evaluate the arguments of a call."""
        self.late.value = self.late.value + 1 if evaluate(values) else 0

    # -- misses -------------------------------------------------------------------------------------------------------
    def miss(self, key: list, numbers: Numbers, args: tuple, kwargs: dict, values: list[Value]) -> Any:
        """Trace, compile, keep and run."""
        nested = running.depth > 0
        # A thread that is tracing waits for no other trace: two could wait for each other.
        locked = self.lock.acquire(blocking=not nested)
        try:
            given = list(values)
            entry = self.find(key, numbers, values) or self.respecialised(key, numbers, values)
            if entry is None:
                entry = self.retrace(key, numbers, args, kwargs, values)
            else:
                self.hits += 1
        finally:
            if locked:
                self.lock.release()
        if entry.within or self.joins(entry, given):
            return joined(entry, values, len(given), self.outputs)
        if entry.run is None:
            self.prepare(entry)
        self.evaluate(values)
        results = entry.run([v.buffer for v in values])  # type: ignore[misc]
        return entry.finish([constant(b) for b in results], values, self.outputs)

    def respecialised(self, key: list, numbers: Numbers, values: list[Value]) -> Entry | None:
        """An entry for new sizes, made of a shapeless trace that serves them."""
        spots = self.numbers_of(key, numbers, values) if numbers else None
        inputs = set(spots.inputs) if spots is not None else set()
        for traced in self.traces.get(tuple(without_sizes(with_inputs(key, numbers, inputs), values)), ()):
            symbols = traced.symbols(values, numbers)
            if traced.serves(symbols):
                return self.kept(traced.entry(symbols), key, numbers, inputs, values)
        return None

    def prepare(self, entry: Entry) -> None:
        """Give the entry its executable."""
        start = time.perf_counter()
        entry.prepare()
        self.seconds += time.perf_counter() - start

    def kept(self, entry: Entry, key: list, numbers: Numbers, inputs: Collection[int], values: list[Value]) -> Entry:
        """The entry, kept; what it computes from numbers is appended to the values."""
        self.keep(entry, key, numbers, inputs, values)
        if entry.feed is None:
            self.last = (key, entry)
        else:
            values += entry.feed.values(numbers)
        return entry

    def retrace(self, key: list, numbers: Numbers, args: tuple, kwargs: dict, values: list[Value]) -> Entry:
        """The entry of a new trace; one that is part of a trace around this call is not kept and has no executable."""
        spots = self.numbers_of(key, numbers, values) if numbers else _Spots(0)
        spots.traced(numbers)
        snapshot = Snapshot(self.inputs, self.outputs)
        start = time.perf_counter()
        try:
            traced = self.trace(args, kwargs, values, spots.inputs)
            self.seconds += time.perf_counter() - start
            entry = traced.entry(traced.symbols(values, numbers))
            if running.depth and depends_on_trace(traced.outside()):
                # A closure over what a transform around this call is tracing: part of that trace, and valid only now.
                entry.within = True
                if entry.feed is not None:
                    values += entry.feed.values(numbers)
                return entry
            spots.fix([j for name, (i, j) in zip(traced.names, traced.sources, strict=True)
                       if i < 0 and name in traced.scope.pins])  # fmt: skip
            inputs = set(spots.inputs)
            self.prepare(entry)
            self.kept(entry, key, numbers, inputs, values)
        except BaseException:
            snapshot.restore()
            raise
        if self.shapeless:
            coarse = tuple(without_sizes(with_inputs(key, numbers, inputs), values))
            if len(self.traces) >= knobs.cache_entries:
                self.traces.pop(next(iter(self.traces)))
            self.traces[coarse] = [traced, *self.traces.get(coarse, ())][:MOST_ALTERNATIVES]
        self.misses += 1
        self.explain(args, kwargs, numbers, values, traced)
        return entry

    def trace(self, args: tuple, kwargs: dict, values: list[Value], inputs: Collection[int] = ()) -> Traced:
        """Call the function on placeholders and close what it recorded; the numbers listed in `inputs` are symbolic."""
        since = first_uid()
        scope = Scope()
        symbolic = self.shapeless or bool(inputs)
        with Trace("compile", self.name, self.where) as trace, symbolic_trace(scope, symbolic):
            stand_ins = Placeholders(trace, scope if symbolic else None, self.shapeless, inputs)
            inner_args, inner_kwargs = tree_map(stand_ins.argument, args), tree_map(stand_ins.argument, kwargs)
            update(stand_ins.insert, self.inputs)
            result = self.fun(*inner_args, **inner_kwargs)
            outputs = [*[x._value for x in leaves(result) if isinstance(x, array)], *written(self.outputs)]
            stand_ins.remove(self.inputs)
            number = {id(v): -1 - i for i, v in enumerate(stand_ins.made)}
            wanted: list[Value] = []
            places: list[int | Value] = []
            for value in outputs:
                leaf = value.node is None and value.alias is None and not isinstance(value.trace, NumberTrace)
                if value.uid < since or (leaf and id(value) not in number):
                    places.append(value)
                    continue
                if id(value) not in number:
                    number[id(value)] = len(wanted)
                    wanted.append(value)
                places.append(number[id(value)])
            program, captured = close(stand_ins.made, wanted, since, self.name)
            traced = Traced(program, captured, places, result, scope, stand_ins.sources)
        given = {id(v) for v in values}
        if any(id(v) in given for v in traced.outside()):
            raise ValueError(
                "[compile] Attempting to compile a function with uncaptured inputs is not allowed:"
                f" {self.name}{at(self.where)} uses an array from outside that is also an input of this call. Use the"
                " parameter, or the captured container, instead."
            )
        return traced

    # -- explanations -------------------------------------------------------------------------------------------------
    def explain(self, args: tuple, kwargs: dict, numbers: Numbers, values: list[Value], traced: Traced) -> None:
        """Say why a function was traced again, if that is asked for; remember this signature for the next time."""
        call = describe_call(self.fun, args, kwargs, self.inputs)
        if knobs.explain and self.described:
            old, before = min(reversed(self.described), key=lambda earlier: len(difference(call, earlier[0])))
            lines = difference(call, old) + before.broken(values, numbers, call)
            for name, (_, j) in zip(traced.names, traced.sources, strict=True):
                if name in traced.open:
                    lines.append(f"{call.numbers[j]} has had {PROMOTED_AFTER + 1} values: an input from now on")
            print(f"[mlxir] {self.name}{at(self.where)} is traced again, called{at(user_frame())}:", file=sys.stderr)
            for line in lines or ["nothing differs that a signature holds"]:
                print(f"[mlxir]   {line}", file=sys.stderr)
        self.described = [*self.described, (call, traced.assumed)][-EXPLAINED:]


def _pending(node: Node) -> bool:
    """Whether a node is no constant, nor a constant that is broadcast."""
    return any([x.buffer is not None or (x.node is not None and x.node.inputs) for x in node.inputs])


def joined(entry: Entry, values: list[Value], given: int, state: Any = None) -> Any:
    """The result of a call as part of the lazy graph, or of the trace around it; `given` arrays are the call's own."""
    captured = [v if isinstance(v, Value) else values[given + v] for v in entry.captured]
    return entry.finish(replay(entry.program, values[:given] + captured), values[:given], state)


# -- the public functions --------------------------------------------------------------------------------------------
_caches: weakref.WeakKeyDictionary[Callable, _Cache] = weakref.WeakKeyDictionary()  # by compiled function


def compile(  # noqa: A001 (MLX's name)
    fun: Callable, inputs: Any = None, outputs: Any = None, shapeless: bool = False
) -> Callable[..., Any]:
    """A function that computes what `fun` does, traced once per signature and run as one optimised program.

    Arguments are trees of arrays and constants (str, int, float, bool, None); a call with new shapes, dtypes, structure
    or constants traces again. An int or float that has had several values becomes an input, unless the trace depends
    on its value. `inputs` and `outputs` are trees of captured state: arrays in `inputs` are read at each call, arrays
    in `outputs` are overwritten after it; `random.state` may be among them. Other arrays from outside are constants,
    frozen when the function is traced. With `shapeless=True` one trace serves all sizes for which `fun` does the same:
    shapes that it reads are symbolic, and where it needs a number (`range(x.shape[0])`) it is traced again for another.

    `cache_info()` and `cache_clear()` of the returned function tell and forget its signatures. Raises TypeError if
    `fun` cannot be called; calls raise ValueError for other arguments, for evaluation of a traced array, and for
    closures over an array that is also an input.
    """
    check_callable("compile", fun)
    cache = _Cache(fun, inputs, outputs, shapeless)

    public: Any
    if inputs is None and outputs is None:

        @native_function("compiled_call", cache.plans)
        @functools.wraps(fun, updated=())
        def public(*args: Any, **kwargs: Any) -> Any:
            return cache.call(args, kwargs)

    else:

        @native_function("compiled_call_in_turn", cache.plans, cache.lock.acquire, cache.lock.release)
        @functools.wraps(fun, updated=())
        def public(*args: Any, **kwargs: Any) -> Any:
            with cache.lock:  # one call at a time: each reads the captured state and writes it
                return cache.call(args, kwargs)

    public.cache_info = cache.info
    public.cache_clear = cache.clear
    _caches[public] = cache
    return public


def _known_caches() -> list[_Cache]:
    """Those of all compiled functions. (`values()` would not stand another thread that makes one.)"""
    functions = [reference() for reference in _caches.keyrefs()]
    return [found for f in functions if f is not None and (found := _caches.get(f)) is not None]


@forks.in_child
def _free_locks() -> None:
    for cache in _known_caches():
        forks.freed(cache.lock)


def traced(fun: Callable, args: tuple, kwargs: dict) -> tuple[Program, list[Value]]:
    """The program that a call of `fun`, compiled or plain, is compiled to; its last parameters, the captured values.

    Nothing is evaluated, and captured state stays as it is. Raises what `compile` raises.
    """
    cache = (_caches.get(fun) if isinstance(fun, Function) else None) or _Cache(fun, None, None)
    cache = _Cache(cache.fun, cache.inputs, cache.outputs)
    snapshot = Snapshot(cache.inputs, cache.outputs)
    try:
        trace = cache.trace(args, kwargs, [x._value for x in leaves((args, kwargs)) if isinstance(x, array)])
        return trace.program, trace.captured
    finally:
        snapshot.restore()


def _compiler_cache() -> Any:
    from mlxir.compiler import cache  # lazy: it loads llvmlite, 50 ms

    return cache


def compile_cache_info() -> Any:
    """What the cache of executables has done in this process: hits, misses, disk hits, compilations and their time."""
    return _compiler_cache().info()


def clear_compile_cache() -> None:
    """Forget all signatures of compiled functions and all executables in memory; the disk cache keeps its own."""
    for cache in _known_caches():
        cache.clear()
    _compiler_cache().clear()


class _Switch(contextlib.ContextDecorator):
    """A knob that is set already; leaving a `with` block sets it back."""

    def __init__(self, knob: str, value: bool, words: tuple[str, str]):
        self.knob, self.value, self.words, self.before = knob, value, words, getattr(knobs, knob)
        setattr(knobs, knob, value)

    def __enter__(self) -> _Switch:
        setattr(knobs, self.knob, self.value)  # set again where the object decorates a function
        return self

    def __exit__(self, *exc: object) -> None:
        setattr(knobs, self.knob, self.before)

    def __repr__(self) -> str:
        return f"<compile {self.words[self.value]}; was {self.words[self.before]}>"


def disable_compile() -> contextlib.ContextDecorator:
    """Make all compiled functions of the process call their Python function. Also `with disable_compile(): ...`."""
    return _Switch("disable_compile", True, ("enabled", "disabled"))


def enable_compile() -> contextlib.ContextDecorator:
    """Undo `disable_compile` and the environment variable MLX_DISABLE_COMPILE. Also `with enable_compile(): ...`."""
    return _Switch("disable_compile", False, ("enabled", "disabled"))


def explain_recompiles(enabled: bool = True) -> contextlib.ContextDecorator:
    """Print to stderr, whenever a compiled function is traced again, what differs from the nearest earlier signature
    and which line called it (as the environment variable MLXIR_EXPLAIN does). Also `with explain_recompiles(): ...`.
    """
    return _Switch("explain", enabled, ("unexplained", "explained"))
