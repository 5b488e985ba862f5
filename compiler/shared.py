"""Programs that differ in numbers only, and the one code for all of them.

    concatenate(x: f32[4,17], y: f32[4,1])    full {value=17.0}     a token
    concatenate(x: f32[4,18], y: f32[4,1])    full {value=18.0}     the next one
 -> concatenate(x: f32[4,s0], y: f32[4,1])    v0: f32[]             both, with s0 and v0 read off their keys

`Sharing` collects programs of one structure: primitives, edges, dtypes and attributes, but for the integers in shapes
and attributes and the numbers of constants. Those that vary become symbols, or expressions of them, and constants that
vary become parameters (`Shared`). That is a guess from a few programs; a further one is served if its key is, to the
letter, what the guess says for its symbols. The shape rules run on the symbols, so that all other shapes follow.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

from mlxir.compiler.graph import scalar_buffer
from mlxir.compiler.program import Instruction, Program, attr_key
from mlxir.compiler.specialise import numbers_in
from mlxir.dialects.mx import RECORDS, Aval
from mlxir.dialects.symbolic import SYMBOLIC, Scope, function
from mlxir.runtime.bounded import Bounded
from mlxir.runtime.buffers import Buffer
from mlxir.runtime.dtypes import Dtype

MANY = 8  # programs of a structure from which its symbols are guessed
WORK = 1000  # units (`work_of`) that they must have taken: compiling takes far longer
ELEMENTS = 1 << 12  # of results that NumPy computes in a unit
MOST_SYMBOLS = 6
MOST_COUNTED = 256  # symbols and constants whose evaluations are counted
MOST_GUESSES = 4  # of one structure

_BROADCAST = RECORDS["broadcast_to"]


class Instance(NamedTuple):
    """The numbers of one program: the integers in the order of its key, then the constants, as keys."""

    integers: tuple[int, ...]
    constants: tuple[Any, ...]


class Hole(NamedTuple):
    """Stands for a constant that varies: which one, as a parameter of a dtype."""

    number: int


def split(program: Program) -> tuple[Any, Instance]:
    """The structure of a program, and its numbers."""
    integers: list[int] = []
    constants: list[Any] = []

    def without(value: Any) -> Any:
        kind = type(value)
        if kind is int:
            integers.append(value)
            return int
        if kind is tuple:
            return tuple([without(v) for v in value])
        return convert(value) if isinstance(value, Program) else attr_key(value)

    def instruction(i: Instruction) -> tuple:
        data = i.record.data
        if not data:
            return i.record.name, tuple([without(a) for a in i.attrs.values()]) if i.attrs else (), i.operands
        constants.append(attr_key(i.attrs[data]))
        return i.record.name, tuple([None if k == data else without(a) for k, a in i.attrs.items()]), i.operands

    def convert(p: Program) -> tuple:
        parameters = tuple([(without(a.shape), a.dtype.name) for a in p.parameters])
        return parameters, tuple([instruction(i) for i in p.instructions]), tuple(p.outputs)

    return convert(program), Instance(tuple(integers), tuple(constants))


class Sharing:
    """The programs of one structure that were evaluated without code of their own."""

    def __init__(self) -> None:
        self.seen: list[Instance] = []
        self.evaluations = self.work = 0
        self.guesses = 0

    def guess(self, program: Program, instance: Instance, wait: int, family: Callable[..., Any]) -> Shared | None:
        """Code for all programs like this one, after `wait` evaluations of many that differ and some work.

        Few programs get code of their own each, and what takes hardly any time need not take less.
        """
        self.evaluations += 1
        self.work += work_of(program)
        if instance not in self.seen:
            self.seen = [*self.seen, instance][-MANY:]
        if self.evaluations < wait or self.work < WORK or len(self.seen) < MANY or self.guesses >= MOST_GUESSES:
            return None
        self.guesses += 1
        self.evaluations = 0  # should the guess be wrong, the next one waits as long
        return shared(program, self.seen, instance, family)


def work_of(program: Program) -> int:
    """What an evaluation in the reference tier takes, in units of about 5 us."""
    inner = [i.attrs["callee"] for i in program.instructions if isinstance(i.attrs.get("callee"), Program)]
    elements = sum([prod(a.shape) for i in program.instructions for a in i.avals])
    return len(program.instructions) + elements // ELEMENTS + sum(map(work_of, inner))


class Column(NamedTuple):
    """One integer of the programs: `a * symbols[0] * ... + b`; without symbols it is constant."""

    symbols: tuple[int, ...]
    a: int
    b: int


def fit(instances: Sequence[tuple[int, ...]]) -> tuple[list[Column], list[int]] | None:
    """What each integer is in terms of symbols, and which integers are the symbols.

    >>> fit([(4, 17, 68, 18), (4, 18, 72, 19), (4, 20, 80, 21)])
    ([4, s0, 4 * s0, s0 + 1], [1])
    """
    roots: list[int] = []
    known: dict[tuple[int, ...], Column] = {}
    symbols: list[tuple[int, ...]] = []
    columns = []
    for place, values in enumerate(zip(*instances, strict=True)):
        column = known.get(values)
        if column is None:
            column = _explained(values, symbols)
            if column is None:
                if min(values) < 0 or len(symbols) == MOST_SYMBOLS:
                    return None
                column = Column((len(symbols),), 1, 0)
                symbols.append(values)
                roots.append(place)
            known[values] = column
        columns.append(column)
    return columns, roots


def _explained(values: tuple[int, ...], symbols: list[tuple[int, ...]]) -> Column | None:
    """An integer as a constant, or as a multiple of a symbol or of a product of two, plus a constant."""
    if len(set(values)) == 1:
        return Column((), 0, values[0])
    one = [((i,), s) for i, s in enumerate(symbols)]
    two = [((i, j), tuple([x * y for x, y in zip(symbols[i], symbols[j], strict=True)]))
           for i, j in itertools.combinations(range(len(symbols)), 2)]  # fmt: skip
    for which, x in [*one, *two]:
        k = next(k for k in range(1, len(x)) if x[k] != x[0]) if len(set(x)) > 1 else 0
        a, rest = divmod(values[k] - values[0], x[k] - x[0]) if k else (0, 1)
        b = values[0] - a * x[0]
        if not rest and all(v == a * n + b for v, n in zip(values, x, strict=True)):
            return Column(which, a, b)
    return None


class Shared:
    """All programs that are `program` for some symbols and constants: it has symbolic numbers, and a `Hole` where a
    constant varies.

    `paths` are the expressions that read the symbols, then those constants, off a key; `predicted` makes a key of them.
    """

    def __init__(self, program: Program, scope: Scope, paths: list[str], family: Callable[..., Any]):
        self.program, self.names, self.paths = program, list(scope.hints), paths
        self.arguments = [*self.names, *[f"v{n}" for n in range(len(paths) - len(self.names))]]
        self.holds = function(self.names, scope.assumptions(), "and")
        lifted, self.lifted = _lifted(program)
        texts = list({n.text: None for n in numbers_in(lifted)})
        self.family = family(lifted, self.names, texts, scope.same_as)
        writer = Writer()
        self.predicted = writer.function(self.arguments, writer.program(program))
        self.read = writer.function(["k"], "".join([f"k{path}, " for path in paths]))
        self.counts = Bounded(MOST_COUNTED)

    def numbers(self, program: Program) -> tuple | None:
        """The symbols and constants of a program, if it is one of these."""
        key = program.key
        try:
            found: tuple = self.read(key)
        except (IndexError, TypeError):  # another structure
            return None
        return found if self.serves(found) and self.predicted(*found) == key else None

    def serves(self, found: tuple) -> bool:
        """Whether these can be symbols and constants, and what was assumed of the symbols holds."""
        sizes = found[: len(self.names)]
        try:
            return all([type(n) is int and n >= 0 for n in sizes]) and self.holds(*sizes)
        except ArithmeticError:
            return False

    def count(self, found: tuple) -> int:
        """How often these have come, this time included."""
        count = (self.counts.recall(found) or 0) + 1
        self.counts.keep(found, count)
        return count

    def run(self, found: tuple) -> Callable[[list[Buffer]], list[Buffer]] | None:
        """What runs the program with these numbers, None where there is no code for them."""
        count = len(self.names)
        made = self.family.generic_runner(list(found[:count]))
        if made is None or not self.lifted:
            return None if made is None else made.run
        extra = [scalar_buffer(_number(found[count + n]), dtype) for n, dtype in self.lifted]
        return lambda buffers: made.run(buffers + extra)


def _number(key: Any) -> Any:
    """The number that a key (`attr_key`) stands for."""
    if type(key) is int:
        return key
    kind, text = key
    return text == "True" if kind == "bool" else {"float": float, "complex": complex}[kind](text)


class Writer:
    """Writes keys as Python expressions over symbols and constants."""

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}

    def function(self, arguments: list[str], text: str) -> Callable[..., Any]:
        return eval(f"lambda {', '.join(arguments)}: ({text})", {"__builtins__": {}, **self.known})

    def constant(self, value: Any) -> str:
        self.known[f"c{len(self.known)}"] = value
        return f"c{len(self.known) - 1}"

    def value(self, value: Any) -> str:
        """The key of an attribute."""
        kind = type(value)
        if kind in SYMBOLIC:
            return f"({value.text})"
        if kind is Hole:
            return f"v{value.number}"
        if kind is tuple:
            return self.tuple([self.value(v) for v in value])
        if kind is int:
            return f"({value})"
        return self.program(value) if isinstance(value, Program) else self.constant(attr_key(value))

    @staticmethod
    def tuple(items: list[str]) -> str:
        return "(" + "".join([f"{item}, " for item in items]) + ")"

    def attributes(self, i: Instruction) -> str:
        return self.tuple([self.value(a) for a in i.attrs.values()])

    def program(self, p: Program) -> str:
        """`Program.key`."""
        parameters = [self.tuple([self.value(a.shape), repr(a.dtype.name)]) for a in p.parameters]
        body = [self.tuple([repr(i.record.name), self.attributes(i), repr(i.operands)]) for i in p.instructions]
        return self.tuple([self.tuple(parameters), self.tuple(body), repr(tuple(p.outputs))])


class _Symbolic:
    """Makes a program symbolic; what it walks, it walks in the order of `split`."""

    def __init__(self, columns: list[Column], roots: list[int], holes: list[Hole | None], scope: Scope, hints: Any):
        self.symbols = [scope.size(hints[place]) for place in roots]
        self.integers = enumerate(columns)
        self.holes = iter(holes)
        self.roots = {place: n for n, place in enumerate(roots)}
        self.paths = [""] * len(roots)
        self.hole_paths: dict[Hole, str] = {}
        self.rules = 0  # programs around this one that are no callee

    def value(self, value: Any, path: str) -> Any:
        kind = type(value)
        if kind is int:
            place, (which, a, b) = next(self.integers)
            if place in self.roots:
                self.paths[self.roots[place]] = path
            product: Any = prod([self.symbols[i] for i in which])
            return product * a + b if which else b
        if kind is tuple:
            return tuple([self.value(v, f"{path}[{n}]") for n, v in enumerate(value)])
        return self.program(value, path) if isinstance(value, Program) else value

    def attributes(self, i: Instruction, path: str) -> dict[str, Any]:
        attrs: dict[str, Any] = {}
        for n, (name, value) in enumerate(i.attrs.items()):
            if name != i.record.data:
                self.rules += (rule := name != "callee")
                attrs[name] = self.value(value, f"{path}[1][{n}]")
                self.rules -= rule
                continue
            hole = next(self.holes)
            attrs[name] = value if hole is None else hole
            if hole is not None:
                if self.rules:
                    raise TypeError("a constant that varies inside a rule cannot become its parameter")
                self.hole_paths.setdefault(hole, f"{path}[1][{n}]")
        return attrs

    def program(self, p: Program, path: str = "") -> Program:
        slots = [Aval(self.value(a.shape, f"{path}[0][{n}][0]"), a.dtype) for n, a in enumerate(p.parameters)]
        parameters, instructions = list(slots), []
        for n, i in enumerate(p.instructions):
            attrs = self.attributes(i, f"{path}[1][{n}]") if i.attrs else i.attrs
            avals = i.record.infer(*[slots[s] for s in i.operands], **attrs)
            instructions.append(i._replace(attrs=attrs, avals=avals))
            slots += avals
        return Program(parameters, instructions, p.outputs, p.name)


def shared(
    program: Program, instances: Sequence[Instance], instance: Instance, family: Callable[..., Any]
) -> Shared | None:
    """What programs like `program`, one of these instances, have in common. None where that depends on their numbers.
    """
    fitted = fit([i.integers for i in instances])
    if fitted is None:
        return None
    varying: dict[tuple, Hole] = {}
    holes: list[Hole | None] = []
    for values in zip(*[i.constants for i in instances], strict=True):
        same = len(set(values)) == 1
        holes.append(None if same else varying.setdefault(values, Hole(len(varying))))
    scope = Scope()
    made = _Symbolic(*fitted, holes, scope, instance.integers)
    try:
        symbolic = made.program(program)
    except (ValueError, TypeError, ArithmeticError):  # a shape rule that wants numbers
        return None
    finally:
        scope.active = False
    if scope.pins:
        return None
    return Shared(symbolic, scope, [*made.paths, *made.hole_paths.values()], family)


def _lifted(program: Program) -> tuple[Program, list[tuple[int, Dtype]]]:
    """The program with a parameter for each hole and dtype, and which they are."""
    first = len(program.parameters)
    lifted: dict[tuple[int, Dtype], int] = {}
    callees: dict[int, tuple[Program, list[tuple[int, Dtype]]]] = {}
    for n, i in enumerate(program.instructions):
        if isinstance(callee := i.attrs.get("callee"), Program):
            callees[n] = _lifted(callee)
        for hole in callees[n][1] if n in callees else _hole(i):
            lifted.setdefault(hole, first + len(lifted))
    slots = list(range(first))
    total = first + len(lifted)
    instructions = []
    for n, i in enumerate(program.instructions):
        parameters = [lifted[hole] for hole in _hole(i)]
        if parameters and not i.attrs["shape"]:
            slots += parameters
            continue
        operands, attrs, record = tuple([slots[s] for s in i.operands]), i.attrs, i.record
        transform: Any = record
        if parameters:
            operands, attrs, record = tuple(parameters), {"shape": attrs["shape"]}, _BROADCAST
        elif n in callees and callees[n][1]:
            callee, holes = callees[n]
            operands, attrs = transform.extended(operands, attrs, callee, [lifted[hole] for hole in holes])
        results = tuple(range(total, total + len(i.avals)))
        instructions.append(Instruction(record, attrs, operands, results, i.avals, i.where))
        slots += results
        total += len(results)
    avals = [*program.parameters, *[Aval((), dtype) for _, dtype in lifted]]
    return Program(avals, instructions, [slots[s] for s in program.outputs], program.name), list(lifted)


def _hole(i: Instruction) -> list[tuple[int, Dtype]]:
    """The hole that an instruction is, if it is one."""
    value = i.attrs.get(i.record.data)
    return [(value.number, i.attrs["dtype"])] if type(value) is Hole else []
