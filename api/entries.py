"""What a trace of a compiled function recorded, and the entries that it becomes: programs with their constants.

A trace may hold symbolic sizes and numbers (`dialects/symbolic.py`). An entry has numbers for all of them, except for
Python numbers that are inputs: `Feed` computes from those of a call what the program takes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

from mlxir.compiler.evaluate import evaluate, executable, family
from mlxir.compiler.graph import Node, NumberTrace, Value, constant, recorded, resolve
from mlxir.compiler.program import Program
from mlxir.compiler.specialise import numbers_in, substitute
from mlxir.dialects.symbolic import SYMBOLIC, Scope, function
from mlxir.runtime.buffers import Buffer
from mlxir.runtime.errors import Where, at
from mlxir.runtime.trees import children, container_kind, leaves, maker, tree_map

from .captured import write
from .ndarray import array, wrap
from .signatures import Description, Numbers


class Feed(NamedTuple):
    """What an entry computes from the Python numbers of a call: whether it serves them, and its inputs."""

    bound: list[int | float]  # of every symbol of the trace; those of `slots` change from call to call
    slots: list[tuple[int, int]]  # (symbol, number of the call)
    holds: Callable[..., bool]
    compute: Callable[..., tuple]
    traces: list[NumberTrace]

    def symbols(self, numbers: Numbers) -> list[int | float]:
        symbols = list(self.bound)
        for symbol, number in self.slots:
            symbols[symbol] = numbers[number][1]
        return symbols

    def accepts(self, numbers: Numbers) -> bool:
        try:
            return self.holds(*self.symbols(numbers))
        except ArithmeticError:
            return False

    def values(self, numbers: Numbers) -> list[Value]:
        found = self.compute(*self.symbols(numbers))
        return [constant(trace.data(x)) for trace, x in zip(self.traces, found, strict=True)]


_HOLE = object.__new__(array)  # stands for arrays of a tree
FEW, LIGHT = 16, 1 << 14  # operations of a small program, and elements of each result
PLANNED_FROM = 3  # hits after which an entry gets its plan: making one takes as long as some calls do


class Entry:
    """What one signature became: a program, what it captured, and where its results go.

    `captured[i]` is a value from outside, or j for input j of `feed`. `places` says for each array of the returned
    tree, then of the captured outputs, where it comes from: result j of the program (j >= 0), value i of the call
    (-1 - i), or a value from outside that is returned as it is. `next` serves the same signature for other numbers.
    `sized` is the family of programs that this one belongs to and its sizes (compiler/generic.py).
    """

    __slots__ = (
        "alternatives", "captured", "code_bytes", "extra", "feed", "hits", "inputs", "made", "next", "places", "plain",
        "plan", "program", "rebuild", "result", "returned", "run", "sized", "small", "within",
    )  # fmt: skip

    def __init__(
        self,
        program: Program,
        captured: Sequence[Value | int],
        places: list[int | Value],
        result: Any,
        feed: Feed | None = None,
        sized: tuple[Any, list[int]] | None = None,
    ):
        self.program, self.captured, self.places, self.feed = program, captured, places, feed
        self.sized = sized
        self.plain = places == list(range(len(places)))
        self.result = tree_map(lambda x: _HOLE if isinstance(x, array) else x, result)  # the arrays hold the trace
        self.returned, self.rebuild = _rebuilder(result)
        self.run: Callable[[list[Buffer]], list[Buffer]] | None = None
        self.next: Entry | None = None
        self.alternatives = 1
        self.code_bytes = 0
        self.made: Any = None  # the executable, and what it takes behind the arrays of a call
        self.extra: list[Buffer | int] = []
        self.inputs: frozenset[int] = frozenset()  # numbers of a call that are inputs, by the key it is kept under
        self.small = _small(program)
        self.within = False  # whether it is part of a trace around the call, and of no other use
        self.hits = 0  # while there are fewer than PLANNED_FROM
        self.plan: tuple[Any, ...] | None = None  # for native code (native/plans.py)

    def prepare(self) -> None:
        """Evaluate what was captured and get the executable."""
        evaluate([v for v in self.captured if isinstance(v, Value)])
        extra: list[Any] = [v if isinstance(v, int) else resolve(v).buffer for v in self.captured]
        if not self.program.outputs:
            self.run = lambda buffers: []
            return
        made = executable(self.program) if self.sized is None else self.sized[0].runner(self.sized[1])
        run, self.code_bytes, self.made, self.extra = made.run, made.code_bytes, made, extra
        if self.feed is not None:
            given = len(self.program.parameters) - len(extra)

            def with_feed(buffers: list[Buffer]) -> list[Buffer]:
                fed = buffers[given:]
                return run(buffers[:given] + [fed[x] if isinstance(x, int) else x for x in extra])

            self.run = with_feed
        else:
            self.run = (lambda buffers: run(buffers + extra)) if extra else run

    def planned(self, describe: Callable[[Entry], tuple[Any, ...] | None]) -> tuple[Any, ...] | None:
        """The plan of this entry, once it has come back a few times; `describe` makes it."""
        if self.hits < PLANNED_FROM:
            self.hits += 1
            if self.hits == PLANNED_FROM:
                self.plan = describe(self)
        return self.plan

    def feeder(self) -> Callable[[list], tuple[Buffer, ...] | None]:
        """What makes the buffers of a call from the values of its numbers that are inputs; None for values that this
        entry does not serve.
        """
        feed = self.feed
        if feed is None:
            return lambda given: ()
        among = {number: i for i, number in enumerate(sorted(self.inputs))}
        slots = [(symbol, among[number]) for symbol, number in feed.slots]
        holds, compute, makers = feed.holds, feed.compute, [trace.data for trace in feed.traces]

        def fed(given: list) -> tuple[Buffer, ...] | None:
            symbols = list(feed.bound)
            for symbol, i in slots:
                symbols[symbol] = given[i]
            try:
                if not holds(*symbols):
                    return None
            except ArithmeticError:
                return None
            buffers = tuple([make(x) for make, x in zip(makers, compute(*symbols), strict=True)])
            for buffer in buffers:
                if not (buffer.address or buffer.pointer):
                    return None
            return buffers

        return fed

    def finish(self, results: Sequence[Value], values: Sequence[Value], state: Any) -> Any:
        """The returned tree, after captured outputs were written."""
        if self.plain:
            found: Sequence[Value] = results
        else:
            found = [p if isinstance(p, Value) else results[p] if p >= 0 else values[-1 - p] for p in self.places]
        arrays = [wrap(v) for v in found]
        if state is not None:
            new = iter(arrays[self.returned :])
            try:
                write(state, new)
                exhausted = next(new, None) is None
            except StopIteration:
                exhausted = False
            if not exhausted:
                raise ValueError("[compile] The captured outputs hold another number of arrays than when traced.")
        return self.rebuild(arrays[: self.returned])


class Assumed(NamedTuple):
    """What a trace assumed of sizes and numbers, kept for explanations when the trace itself is gone."""

    names: list[str]
    sources: list[tuple[int, int]]
    conditions: dict[str, Where]

    def broken(self, values: Sequence[Value], numbers: Numbers, call: Description) -> list[str]:
        """What another call does not keep, a line each."""
        try:
            symbols = [values[i].shape[j] if i >= 0 else numbers[j][1] for i, j in self.sources]
        except IndexError:  # a call of another structure
            return []
        named = {name: f"{call.arrays[i]}.shape[{j}]" if i >= 0 else call.numbers[j]
                 for name, (i, j) in zip(self.names, self.sources, strict=True)}  # fmt: skip
        lines = []
        for text, where in self.conditions.items():
            if not function(self.names, [text], "and")(*symbols):
                shown = re.sub(r"\bs\d+\b", lambda found: named[found[0]], text)
                lines.append(f"the trace before assumed {shown}{at(where)}")
        return lines


class Traced:
    """What one trace recorded, symbolic sizes and numbers included; see `Entry` for `captured` and `places`."""

    def __init__(
        self,
        program: Program,
        captured: list[Value],
        places: list[int | Value],
        result: Any,
        scope: Scope,
        sources: list[tuple[int, int]],
    ):
        self.program, self.captured, self.places, self.result = program, captured, places, result
        self.scope, self.sources = scope, sources
        self.names = list(scope.hints)
        needed = {n.text: n for n in numbers_in(program)}
        self.inner = dict(needed)  # symbolic numbers in shapes, attributes and the result
        self.inner.update((x.text, x) for x in leaves(result) if type(x) in SYMBOLIC)
        # Only beside arrays can a number be an input; in an attribute or in the result it is a constant.
        values = {name for name, (array, _) in zip(self.names, sources, strict=True) if array < 0}
        for n in self.inner.values():
            scope.pin(n.symbols & values)
        self.open = values - scope.pins.keys()
        sizes = [name for name in self.names if name not in values]
        self.family = None
        if needed and not any(n.symbols & values for n in needed.values()):
            self.family = family(program, sizes, list(needed), scope.same_as)
        self.assumed = Assumed(self.names, sources, scope.assumptions())
        self.holds = function(self.names, self.assumed.conditions, "and")
        self.concrete = function(self.names, list(self.inner), ",")

    def own(self, value: Value) -> bool:
        """Whether a captured value is a symbolic number of this trace."""
        return isinstance(value.trace, NumberTrace) and value.trace.number.scope is self.scope

    def outside(self) -> list[Value]:
        """The values from outside that the trace used."""
        return [v for v in (*self.captured, *self.places) if isinstance(v, Value) and not self.own(v)]

    def symbols(self, values: Sequence[Value], numbers: Numbers) -> list[int | float]:
        """The numbers of a call that the symbols stand for."""
        return [values[i].shape[j] if i >= 0 else numbers[j][1] for i, j in self.sources]

    def serves(self, symbols: list[int | float]) -> bool:
        """Whether what the trace assumed holds for these numbers."""
        try:
            return self.holds(*symbols)
        except ArithmeticError:
            return False

    def entry(self, symbols: list[int | float]) -> Entry:
        """The trace with numbers for its symbols, but for those that are inputs."""
        if not self.names:
            return Entry(self.program, self.captured, self.places, self.result)
        known = dict(zip(self.inner, self.concrete(*symbols), strict=True))
        result = tree_map(lambda x: known[x.text] if type(x) in SYMBOLIC else x, self.result)
        program = substitute(self.program, lambda n: known[n.text]) if known else self.program
        own: list[Any] = [v.trace for v in self.captured if self.own(v)]
        fed = [t for t in own if t.number.symbols & self.open]
        fixed = [t for t in own if not t.number.symbols & self.open]
        numbers = function(self.names, [t.number.text for t in fixed], ",")(*symbols)
        made: dict[int, Value | int] = {id(t): constant(t.data(x)) for t, x in zip(fixed, numbers, strict=True)}
        made.update((id(t), i) for i, t in enumerate(fed))
        captured = [made[id(v.trace)] if self.own(v) else v for v in self.captured]
        feed = sized = None
        if self.family is not None:
            sized = self.family, [int(n) for n, (i, _) in zip(symbols, self.sources, strict=True) if i >= 0]
        if self.open:
            slots = [(k, j) for k, (i, j) in enumerate(self.sources) if i < 0 and self.names[k] in self.open]
            feed = Feed(symbols, slots, self.holds, function(self.names, [t.number.text for t in fed], ","), fed)
        return Entry(program, captured, self.places, result, feed, sized)


def _rebuilder(result: Any) -> tuple[int, Callable[[Sequence[array]], Any]]:
    """How many arrays a returned tree holds, and a function that makes the same tree with other arrays.

    The function is written out, which is faster than walking a structure: `a0, a1, a2, = a`, then
    `return [a0, {'w': a1, k0: a2}]`.
    """
    count, known = 0, []

    def name(x: Any) -> str:
        if type(x) is str:
            return repr(x)
        known.append(x)
        return f"k{len(known) - 1}"

    def text(tree: Any) -> str:
        nonlocal count
        kind = container_kind(tree)
        if kind is None:
            if not isinstance(tree, array):
                return name(tree)
            count += 1
            return f"a{count - 1}"
        if kind is dict:
            return "{" + ", ".join([f"{name(key)}: {text(item)}" for key, item in tree.items()]) + "}"
        items = "".join([text(item) + ", " for item in children(tree)])
        if kind is list:
            return f"[{items}]"
        return f"({items})" if type(tree) is tuple else f"{name(maker(tree))}([{items}])"

    made = text(result)
    names = "".join([f"a{i}, " for i in range(count)])
    scope = {f"k{i}": x for i, x in enumerate(known)}
    exec(f"def rebuild(a):\n    {names + '= a' if names else ''}\n    return {made}\n", scope)
    return count, scope["rebuild"]


def _small(program: Program) -> bool:
    """Whether a lazy graph may take in the operations of a program: evaluated op by op, as the graph may be at first,
    they take hardly longer than a call.
    """
    if len(program.instructions) > FEW or program.has_transforms:
        return False
    return all([prod(a.shape) <= LIGHT for i in program.instructions for a in i.avals])


def replay(program: Program, arguments: Sequence[Value]) -> list[Value]:
    """The program's operations recorded again, on other values."""
    known = list(arguments)
    for i in program.instructions:
        known += recorded(Node(i.record, i.attrs, tuple([known[s] for s in i.operands]), i.avals, i.where))
    return [known[s] for s in program.outputs]
