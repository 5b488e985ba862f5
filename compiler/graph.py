"""The lazy trace: what operations on arrays record, before any MLIR exists.

A `Value` is one immutable array of the trace: concrete (it has data), the result of a `Node`, or a stand-in made by a
transform:
a *tracer* (`alias` is the primal it stands for, so it can be read) or a *placeholder* (`trace` set; shape and dtype
only).
`close` makes a `Program` of the nodes between the inputs and the outputs of a traced function; what they use from
outside is captured
and becomes extra operands of the transform that names the program: closures need no special case.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mlxir.compiler.program import Instruction, Program, attr_key
from mlxir.dialects.mx import Aval, Primitive
from mlxir.dialects.mx.record import OpBuilder, Operators, Shape
from mlxir.dialects.symbolic import SymFloat, SymInt
from mlxir.runtime.buffers import Buffer
from mlxir.runtime.dtypes import Dtype, float32, float64
from mlxir.runtime.errors import Where, at, user_frame
from mlxir.runtime.forks import in_child

_uids = itertools.count()
_new_tuple = tuple.__new__
_allocate = object.__new__


class _Node(NamedTuple):
    primitive: Primitive
    attrs: dict
    inputs: tuple[Value, ...]
    avals: Sequence[Aval]
    where: Where


class Node(_Node):
    """One application of a primitive; compared by identity. (A tuple, because one is made in half the time.)"""

    __slots__ = ()
    __hash__ = object.__hash__
    __eq__ = object.__eq__
    __ne__ = object.__ne__


class Turn:
    """Stands for the memory of arrays that a step is writing over, with its lock held: who reads them waits."""

    __slots__ = ("lock",)

    def __init__(self) -> None:
        self.lock = threading.RLock()


class Results(list):
    """The types of a node's several results, which of these there still are (`values[i]()` is the i-th, or None), and
    whether some have been computed.
    """

    __slots__ = ("computed", "values")
    computed: bool
    values: list[weakref.ref[Value]]


class Value:
    """One array of the trace; see the module's docstring for its four forms.

    Results of native code (api/native) have no buffer until someone asks for it: `owner` holds their block of the pool,
    in which they begin at `offset`. While a step writes over them, `owner` is a `Turn`.
    """

    __slots__ = (
        "__weakref__", "alias", "buffer", "dtype", "index", "mark", "node", "offset", "owner", "shape", "trace", "uid",
    )  # fmt: skip
    offset: int
    owner: Any

    def __init__(self, shape: Shape, dtype: Dtype, node: Node | None = None, index: int = 0):
        self.shape, self.dtype, self.node, self.index, self.uid = shape, dtype, node, index, next(_uids)
        self.buffer: Buffer | None = None
        self.alias: Value | None = None
        self.trace: Trace | None = None
        self.mark: tuple[Tape, int] | None = None

    def __getattr__(self, name: str) -> Any:
        """The buffer, when it is first asked for: slots that are empty get here."""
        if name != "buffer":
            raise AttributeError(f"a Value has no {name}")
        owner = self.owner
        if type(owner) is Turn:
            with owner.lock:
                pass
            return self.buffer
        self.buffer = Buffer(owner.block[0] + self.offset, self.shape, self.dtype, owner)
        return self.buffer

    @property
    def aval(self) -> Aval:
        return Aval(self.shape, self.dtype)


class Trace:
    """A running trace with placeholders or tracers: named so that a leaked placeholder can be explained.

    `within` are further traces that its placeholders depend on: the rules of a custom function are traced on stand-ins
    for values that do not exist yet. A vmap has its `size` and, by the uid of a placeholder, what it has `mapped`: the
    value and its axis.
    """

    __slots__ = ("active", "kind", "mapped", "name", "order", "size", "where", "within")

    def __init__(self, kind: str, name: str, where: Where, within: Iterable[Trace] = ()):
        self.kind, self.name, self.where, self.within, self.active = kind, name, where, frozenset(within), True
        self.order = next(_uids)
        self.size = 0
        self.mapped: dict[int, tuple[Value, int]] = {}

    def __enter__(self) -> Trace:
        running.enter()
        running.traces = (*running.traces, self)
        return self

    def __exit__(self, *exc: object) -> None:
        self.active = False
        running.leave()
        running.traces = running.traces[:-1]


_SCALARS: dict[Dtype, Any] = {float32: ctypes.c_float, float64: ctypes.c_double}


class NumberTrace(Trace):
    """Makes a value the input for a symbolic number of a trace. It has data after all: that of the number's hint."""

    __slots__ = ("dtype", "number")

    def __init__(self, number: SymInt | SymFloat, dtype: Dtype):
        super().__init__("compile", "a number", None)
        self.number, self.dtype = number, dtype

    def data(self, number: int | float) -> Buffer:
        return scalar_buffer(number, self.dtype)


def scalar_buffer(number: Any, dtype: Dtype) -> Buffer:
    """A number as data of a dtype: as a constant of that number would be."""
    if dtype in _SCALARS:
        scalar = _SCALARS[dtype](number)
        return Buffer(ctypes.addressof(scalar), (), dtype, scalar)
    kind: Any = {"b": bool, "f": float, "c": complex}.get(dtype.kind, int)
    return Buffer.from_numpy(np.array(kind(number), dtype.numpy))


class Tape:
    """What a thread has recorded since its last evaluation, as a key that grows with each operation.

        y = x * w + x      key: [f32[8], f32[8], (multiply, f32, 0, 1), (add, f32, 2, 0)]

    An operation is known by its primitive, attributes and operands; these by their places in the key, which they carry
    as `mark` (one attribute, so that threads cannot mix two tapes). What an operand from elsewhere is enters the key
    when it is first used. Equal keys thus mean equal graphs, leaf for leaf, but for a tape that is `open`: it uses what
    was recorded elsewhere (by another thread, in a trace, on the tape before) and is not evaluated. `of` makes one that
    is not. The tape keeps no value alive.
    """

    __slots__ = ("key", "open")
    LONGEST = 4096

    def __init__(self) -> None:
        self.key: list[Any] = []
        self.open = False

    def add(self, value: Value, primitive: Primitive, inputs: tuple[Value, ...], attrs: dict[str, Any]) -> None:
        """Append the operation whose first result is `value`."""
        if len(inputs) == 1:  # most operations with attributes
            mark = inputs[0].mark
            entry: tuple = (primitive, value.dtype, mark[1] if mark is not None and mark[0] is self
                            else self.leaf(inputs[0]))  # fmt: skip
        else:
            entry = (primitive, value.dtype)
            for x in inputs:
                mark = x.mark
                entry += (mark[1] if mark is not None and mark[0] is self else self.leaf(x),)
        if attrs:
            entry += (tuple([a if type(a) is tuple else attr_key(a) for a in attrs.values()]),)
        value.mark = (self, len(self.key))
        self.key.append(entry)
        if len(self.key) > Tape.LONGEST:
            running.tape = Tape()

    def leaf(self, x: Value) -> int:
        """The place of an operand that was not recorded here: data by their type, a constant by its attributes."""
        place, node = len(self.key), x.node
        x.mark = (self, place)
        if node is None or x.buffer is not None:
            self.key.append((x.shape, x.dtype))
        elif node.inputs:
            self.open = True
        else:
            self.key.append(Tape.entry(node))
        return place

    @staticmethod
    def entry(node: Node) -> tuple:
        """What stands for a constant in a key."""
        return node.primitive, tuple([attr_key(a) for a in node.attrs.values()])

    @staticmethod
    def of(values: Iterable[Value]) -> Tape:
        """A tape as if what these values are computed from had just been recorded, and nothing else.

        x = x + a * p;  r = r - a * (A @ p);  e = r @ r      e is evaluated; x is wanted after the loop
        p = r + (e / d) * p                                  the tape of the next `r @ r` is open: it uses p and x
                                                             here it begins with p's operations, and is without x's
        """
        tape = Tape()
        first: dict[int, int] = {}  # the place of a node's first result
        stack: list[Any] = [*values][::-1]
        while stack:
            item = stack.pop()
            if item.__class__ is tuple:
                value, node = item
                tape.add(value, node.primitive, node.inputs, node.attrs)
                place = first[id(node)] = value.mark[1]
                if len(node.avals) > 1:  # as `recorded` does
                    tape.key[place] = (node.primitive, node.avals[0].dtype, *tape.key[place][2:])
                    tape.key += [(*aval, i) for i, aval in enumerate(node.avals) if i]
                    value.mark = tape, place + value.index
                if place > Tape.LONGEST:
                    tape.open = True
                    break
                continue
            node = item.node
            if node is None or item.buffer is not None or not node.inputs:
                continue  # it enters the key with the operation that uses it
            if id(node) in first:
                item.mark = tape, first[id(node)] + item.index
            else:
                stack += ((item, node), *node.inputs[::-1])
        return tape


running_traces: list[None] = []
"""As many as traces run on all threads: where it is empty, nobody needs to look at his thread's `running`."""


class _Running(threading.local):
    depth = 0
    traces: tuple[Trace, ...] = ()
    symbolic = 0

    def __init__(self) -> None:
        self.tape: Tape | None = Tape()  # None while a trace runs

    def enter(self) -> None:
        self.depth += 1
        self.tape = None
        running_traces.append(None)

    def leave(self) -> None:
        self.depth -= 1
        running_traces.pop()
        if not self.depth:
            self.tape = Tape()


running = _Running()
"""`running.depth` is the number of traces, with placeholders or with tracers, that run on this thread,
`running.traces` are those that have a name, and `running.symbolic` is the number of those in which sizes or numbers
are symbolic.
"""


@in_child
def _only_this_thread() -> None:
    del running_traces[running.depth :]


def constant(data: np.ndarray | Buffer, shape: Shape | None = None, dtype: Dtype | None = None) -> Value:
    """A concrete value; `data` is taken over, not copied."""
    buffer = data if isinstance(data, Buffer) else Buffer.from_numpy(data)
    value = Value(buffer.shape, buffer.dtype)
    value.buffer = buffer
    return value


def tracer(primal: Value, trace: Trace | None = None) -> Value:
    """A stand-in for `primal` that can be read; new, so everything computed from it is known by a later uid."""
    value = Value(primal.shape, primal.dtype)
    value.alias, value.trace = primal, trace
    return value


def placeholder(shape: Shape, dtype: Dtype, trace: Trace) -> Value:
    """A stand-in without data."""
    value = Value(shape, dtype)
    value.trace = trace
    return value


def number_input(number: SymInt | SymFloat, dtype: Dtype) -> Value:
    """The rank-0 value of a symbolic number beside arrays: an input of the trace, one per expression and dtype."""
    known = number.scope.arrays
    value: Value | None = known.get((number.text, dtype.name))
    if value is None:
        value = known[number.text, dtype.name] = Value((), dtype)
        value.trace = NumberTrace(number, dtype)
    return value


def record(primitive: Primitive, inputs: tuple[Value, ...], attrs: dict[str, Any], shape: Shape, dtype: Dtype) -> Value:
    """Record one operation with one result whose type the caller knows."""
    avals = (_new_tuple(Aval, (shape, dtype)),)
    node = _new_tuple(Node, (primitive, attrs, inputs, avals, user_frame(3)))
    tape = running.tape
    if tape is None or len(inputs) != 2 or attrs:
        value = Value(shape, dtype, node)
        if tape is not None:
            tape.add(value, primitive, inputs, attrs)
        return value
    return taped(tape, node, shape, dtype)


def taped(tape: Tape, node: Node, shape: Shape, dtype: Dtype) -> Value:
    """The value of a node with two inputs and no attributes, appended to this thread's tape.

    What `Value` and `Tape.add` do, at once: most operations are such.
    """
    primitive, _, (a, b), _, _ = node
    key = tape.key
    mark = a.mark
    i = mark[1] if mark is not None and mark[0] is tape else tape.leaf(a)
    mark = b.mark
    j = mark[1] if mark is not None and mark[0] is tape else tape.leaf(b)
    value: Value = _allocate(Value)
    value.shape = shape  # one by one: a longer list of targets makes a tuple first
    value.dtype = dtype
    value.node = node
    value.index = 0
    value.uid = next(_uids)
    value.buffer = value.alias = value.trace = None
    place = len(key)
    value.mark = (tape, place)
    key.append((primitive, dtype, i, j))
    if place >= Tape.LONGEST:
        running.tape = Tape()
    return value


def apply(primitive: Primitive, inputs: Sequence[Value], attrs: dict[str, Any]) -> list[Value]:
    """Record one operation. Raises what its shape rule raises, with the user's line added."""
    try:
        avals = primitive.infer(*[Aval(v.shape, v.dtype) for v in inputs], **attrs)
    except (ValueError, TypeError) as error:
        raise with_place(error, user_frame(2)) from None
    if len(avals) == 1:
        return [record(primitive, tuple(inputs), attrs, *avals[0])]
    return recorded(Node(primitive, attrs, tuple(inputs), avals, user_frame(2)))


def apply_transform(primitive: Primitive, inputs: Sequence[Value], attrs: dict, avals: Sequence[Aval]) -> list[Value]:
    """Record a transform; its result types come from the program that it names."""
    return recorded(Node(primitive, attrs, tuple(inputs), avals, user_frame(2)))


def recorded(node: Node) -> list[Value]:
    """The values of a node, recorded on the tape."""
    avals = Results(node.avals)
    node = node._replace(avals=avals)
    values = [Value(a.shape, a.dtype, node, i) for i, a in enumerate(avals)]
    avals.values, avals.computed = [*map(weakref.ref, values)], False
    tape = running.tape
    if tape is not None and values:
        tape.add(values[0], node.primitive, node.inputs, node.attrs)
        for value in values[1:]:
            value.mark = (tape, len(tape.key))
            tape.key.append((value.shape, value.dtype, value.index))
    return values


def with_place(error: Exception, where: Where) -> Exception:
    """The same error with the user's file and line behind its message."""
    place = at(where)
    if place and error.args and place not in str(error.args[0]):
        error.args = (f"{error.args[0]}{place}", *error.args[1:])
    return error


class GraphHandle(Operators):
    """A value as rules see it, so that a composite may be traced by its decomposition."""

    __slots__ = ("dtype", "m", "shape", "value")

    def __init__(self, value: Value, m: GraphBuilder):
        self.value, self.shape, self.dtype, self.m = value, value.shape, value.dtype, m


class GraphBuilder(OpBuilder):
    """Records primitives into the graph: the tracer's side of the builder that rules are written against."""

    def emit(self, record: Primitive, operands: list[Any], attrs: dict) -> list[Any]:
        return [GraphHandle(v, self) for v in apply(record, [o.value for o in operands], attrs)]

    def handle(self, value: Value) -> GraphHandle:
        return GraphHandle(value, self)


def first_uid() -> int:
    """A bound: every value made from now on has this uid or a later one."""
    return next(_uids)


def resolve(value: Value) -> Value:
    """The value that a (chain of) tracers stands for."""
    while value.alias is not None:
        value = value.alias
    return value


def depends_on_trace(values: Iterable[Value]) -> bool:
    """Whether any value is a tracer or a placeholder or is computed from one."""
    stack = list(values)
    seen: set[int] = set()
    while stack:
        value = stack.pop()
        if value.alias is not None or value.trace is not None:
            return True
        node = value.node
        if node is not None and id(node) not in seen:
            seen.add(id(node))
            stack.extend(node.inputs)
    return False


def traces_behind(value: Value, blocked: Primitive | None = None) -> set[Trace]:
    """The traces on whose stand-ins a value depends, other than through a `blocked` primitive."""
    found: set[Trace] = set()
    stack = [value]
    seen: set[int] = set()
    while stack:
        value = stack.pop()
        if value.trace is not None:
            found.add(value.trace)
            found.update(value.trace.within)
            if value.uid in value.trace.mapped:
                stack.append(value.trace.mapped[value.uid][0])
        if value.alias is not None:
            stack.append(value.alias)
        node = value.node
        if node is not None and id(node) not in seen and node.primitive is not blocked:
            seen.add(id(node))
            stack.extend(node.inputs)
    return found


class Cut(NamedTuple):
    """A piece of the graph as a program, with the values that stand for its parameters."""

    program: Program
    parameters: list[Value]
    nodes: list[Node]


def cut(
    outputs: Sequence[Value],
    inputs: Sequence[Value] = (),
    name: str = "main",
    is_leaf: Callable[[Value], bool] = lambda v: v.node is None,
    see: Callable[[Value], Value] = lambda v: v,
) -> Cut:
    """The program that computes `outputs` from `inputs` and from the leaves met on the way, which become further
    parameters.

    `see` maps a value that stands for another to that one. Iterative, because traces are deep.
    """
    number = {id(v): i for i, v in enumerate(inputs)}  # slots of parameters
    parameters = [*inputs]
    first: dict[int, int] = {}
    found: list[tuple[Node, list[Value]]] = []
    total = 0
    stack: list[Any] = [v if v.alias is None else see(v) for v in reversed(outputs)]
    while stack:
        item = stack.pop()
        if item.__class__ is tuple:  # a node whose operands have been looked at
            node = item[0]
            found.append(item)
            first[id(node)] = total
            total += len(node[3])
            continue
        key = id(item)
        if key in number:
            continue
        node = item.node
        if node is None or is_leaf(item):
            number[key] = len(parameters)
            parameters.append(item)
        elif id(node) not in first:
            first[id(node)] = 0  # for now
            operands = [v if v.alias is None else see(v) for v in node[2]]
            stack.append((node, operands))
            if operands:
                stack += operands[::-1]
    base = len(parameters)

    def slot(value: Value) -> int:
        known = number.get(id(value))
        return known if known is not None else base + first[id(value.node)] + value.index

    instructions = []
    for node, operands in found:
        start = base + first[id(node)]
        primitive, attrs, _, avals, where = node
        slots = tuple([slot(v) for v in operands])
        results = (start,) if len(avals) == 1 else tuple(range(start, start + len(avals)))
        instructions.append(_new_tuple(Instruction, (primitive, attrs, slots, results, avals, where)))
    types = [_new_tuple(Aval, (v.shape, v.dtype)) for v in parameters]
    given = [slot(v if v.alias is None else see(v)) for v in outputs]
    return Cut(Program(types, instructions, given, name), parameters, [node for node, _ in found])


def close(inputs: Sequence[Value], outputs: Sequence[Value], since: int, name: str) -> tuple[Program, list[Value]]:
    """The function that was traced from `inputs` to `outputs`, and what it captured.

    Only values made after `since` (see `first_uid`) can depend on the inputs; older ones are captured. A tracer of a
    transform that ran inside
    stands for its primal: what leaked out of that transform still depends on the inputs.
    """
    given = {id(v) for v in inputs}

    def see(value: Value) -> Value:
        while value.alias is not None and value.uid >= since and id(value) not in given:
            value = value.alias
        return value

    piece = cut(outputs, inputs, name, lambda v: v.node is None or v.uid < since, see)
    return piece.program, piece.parameters[len(inputs) :]
