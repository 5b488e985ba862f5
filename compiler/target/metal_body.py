"""Prints the body of one function: regions, loops and memory; the expressions in between come from metal_ops.py.

An operation whose result is used once, in its own block, is printed inside the expression that uses it; any other one
becomes a named constant. An expression that reads memory is never moved past a store, a barrier or a loop.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from mlxir.compiler.target import metal_expr as x
from mlxir.compiler.target.metal_expr import Expr
from mlxir.compiler.target.metal_matrix import MATRIX_RULES, carried_fragment, is_fragment
from mlxir.compiler.target.metal_memory import Barrier, GroupMemory, Lane, constant_of, position_of, upper_bound, walk
from mlxir.compiler.target.metal_ops import Operations, Ramp, bits_of, float_type, is_bool
from mlxir.compiler.target.metal_reduce import SIMD, Combine, combine_of, is_helper, simd_function, threadgroup_function
from mlxir.dialects.mlir import ir

SHORTEST = 12  # characters of index arithmetic that is printed again rather than named
WIDEST = 70  # characters of an expression that is still printed inside another one ...
WIDEST_LAST = 100  # ... or as what a statement stores
SLOTS = 8  # elements of scratch per thread that live in registers
SHARED_BYTES = (32 - 1) << 10  # of threadgroup memory for scratch; the rest is for reductions
_ATOMIC = {
    0: ("add", "float"), 1: ("add", ""), 6: ("max", "int"), 7: ("max", "uint"), 10: ("min", "int"), 11: ("min", "uint"),
}  # fmt: skip
"""Kind of memref.atomic_rmw -> Metal's function and the type it works on; an integer sum takes the memory's."""
_STATEMENTS = ("memref.store", "scf.yield", "scf.reduce", "func.return")


class Memory(NamedTuple):
    """A buffer or scratch memory by its name in the shader.

    `lane` is set where each thread keeps only its own elements: those of `rounds` iterations of a loop over threads.
    """

    name: str
    type: str
    space: str  # "device", "threadgroup" or "thread"
    lane: Lane | None = None
    rounds: int = 0


class Body:
    """Printer of one function. `need` is told which helper functions it calls.

    `group` is given where top-level iterations are threadgroups.
    """

    def __init__(self, kernel: str, need: Callable[[str], None], group: GroupMemory | None = None):
        self.kernel, self.need, self.group = kernel, need, group
        self.operations = Operations(kernel, need)
        self.lines: list[str] = []
        self.depth = 1
        self.env: dict[ir.Value, Any] = {}
        self.memory: dict[ir.Value, Memory] = {}
        self.partials: dict[str, str] = {}  # type -> name of the threadgroup array that a reduction of that type uses
        self.builtins: dict[str, str] = {}  # parameters that the kernel needs besides its position: name -> attribute
        self._threadgroup_bytes = 0
        self._waiting: dict[ir.Value, None] = {}  # values in `env` that read memory and have not been printed yet
        self._names: dict[str, int] = {}
        self._variables: list[str] = []  # loop variables in scope
        self._lanes = 0  # how many loops over threads we are in
        self._iv: ir.Value | None = None  # of the loop over threads that we are in
        self.neighbours: dict[tuple[ir.Value, ir.Value], str] = {}  # (memory, position) -> element of a vector
        self._slot: str | None = (
            None  # the variable that counts a thread's own iterations of it; None where there is one at most
        )

    # -- lines and names ----------------------------------------------------------------------------------------------
    def line(self, text: str) -> None:
        self.lines.append("  " * self.depth + text)

    def name(self, base: str) -> str:
        """A name that the function does not have yet."""
        count = self._names.get(base, 0)
        self._names[base] = count + 1
        return f"{base}{count}"

    @contextmanager
    def braces(self, head: str) -> Iterator[None]:
        self.line(head + " {")
        self.depth += 1
        yield
        self.depth -= 1
        self.line("}")

    @contextmanager
    def variable(self, letters: str) -> Iterator[str]:
        """The first of `letters` that no enclosing loop uses."""
        name = next((c for c in letters if c not in self._variables), f"{letters[-1]}{len(self._variables)}")
        self._variables.append(name)
        yield name
        self._variables.pop()

    # -- values -------------------------------------------------------------------------------------------------------
    def use(self, value: ir.Value) -> Any:
        self._waiting.pop(value, None)
        return self.env[value]

    def flush(self) -> None:
        """Give names to all expressions that have read memory, before it changes."""
        for value in list(self._waiting):
            self._print_constant(value, self.use(value))

    def _print_constant(self, value: ir.Value, e: Expr) -> None:
        name = self.name("v")
        self.line(f"const {e.type} {name} = {e.text};")
        self.env[value] = replace(e, text=name, level=0, value=None, loads=False)

    def _define(self, value: ir.Value, e: Any) -> None:
        """Print a constant, or keep the expression for its one use."""
        uses = [u.owner.operation for u in value.uses]
        if not uses:
            return
        self.env[value] = e
        if isinstance(e, (Ramp, float)) or e.value is not None or (e.level == 0 and e.text.isidentifier()):
            return
        if isinstance(value.type, ir.IndexType) and not e.loads and (len(e.text) <= SHORTEST or self._own_place(value)):
            return
        if len(uses) == 1 and len(e.text) <= (WIDEST_LAST if uses[0].name in _STATEMENTS else WIDEST):
            if e.loads:
                self._waiting[value] = None
            # Index arithmetic may move into a region.
            if uses[0].block == value.owner.operation.block or (not e.loads and isinstance(value.type, ir.IndexType)):
                return
            self._waiting.pop(value, None)
        self._print_constant(value, e)

    def _own_place(self, value: ir.Value) -> bool:
        """Whether a position is only ever one in the thread's own memory, where its iteration says as much."""
        for use in value.uses:
            operation = use.owner.operation
            if operation.name in ("memref.load", "memref.store"):
                memory = self.memory[operation.operands[operation.name == "memref.store"]]
                if use.operand_number != len(operation.operands) - 1 or memory.lane is None or memory.lane.modulus:
                    return False
            elif not operation.name.startswith("arith.") or not self._own_place(operation.results[0]):
                return False
        return True

    # -- operations ---------------------------------------------------------------------------------------------------
    def run(self, block: ir.Block) -> ir.Operation:
        """Print a block up to its terminator, which is returned."""
        operations = [view.operation for view in block.operations]
        for operation in operations[:-1]:
            self.visit(operation)
        return operations[-1]

    def visit(self, operation: ir.Operation) -> None:
        barrier = self.group.barriers.get(operation) if self.group is not None and not self._lanes else None
        if barrier is not None:
            self.flush()
            self.line(f"threadgroup_barrier({_flags(barrier)});")
        rule = _RULES.get(operation.name)
        if rule is not None:
            rule(self, operation)
            return
        if operation.name == "arith.select" and self._wrapped_index(operation):
            return
        e = self.operations.expression(operation, [self.use(v) for v in operation.operands])
        self._define(operation.results[0], e)

    def _wrapped_index(self, operation: ir.Operation) -> bool:
        """`i < 0 ? i + n : i`: the sum is only computed where it cannot overflow, so it needs no wider type."""
        test, shifted, i = operation.operands
        below, plus = test.owner, shifted.owner
        if isinstance(below, ir.Block) or isinstance(plus, ir.Block):
            return False
        below, plus = below.operation, plus.operation
        if below.name != "arith.cmpi" or plus.name != "arith.addi" or is_bool(i.type):
            return False
        n = constant_of(plus.operands[1])
        predicate = ir.IntegerAttr(below.attributes["predicate"]).value
        if predicate != 2 or constant_of(below.operands[1]) != 0 or below.operands[0] != i or plus.operands[0] != i:
            return False
        e = self.env[i]
        if not n or n < 0 or e.type not in ("int", "long") or len(list(shifted.uses)) > 1 or not e.text.isidentifier():
            return False
        text = f"{e.text} < 0 ? {e.text} + {n} : {e.text}"
        self._define(operation.results[0], Expr(text, e.type, x.TERNARY, min(e.low + n, 0), max(n - 1, e.high)))
        return True

    # -- memory -------------------------------------------------------------------------------------------------------
    def alloca(self, operation: ir.Operation) -> None:
        """Scratch memory: a thread's own, or the threadgroup's."""
        value = operation.results[0]
        kind = ir.MemRefType(value.type)
        size, type_ = kind.shape[0], storage_type(kind.element_type, self.kernel)
        name = self.name("kept")
        if self.group is None:
            self.memory[value] = Memory(name, type_, "thread")
            self.line(f"{type_} {name}[{size}];")
            return
        lane = self.group.owned.get(value)
        rounds = -(-self.group.extents.get(value, 0) // self.group.threads)
        fits = self._threadgroup_bytes + size * bytes_of(type_) <= SHARED_BYTES
        if lane is None or (fits and (lane.modulus or rounds * lane.stride > SLOTS)):
            self._threadgroup_bytes += size * bytes_of(type_)
            self.memory[value] = Memory(name, type_, "threadgroup")
            self.line(f"threadgroup {type_} {name}[{size}];")
            return
        slots = rounds * lane.stride * (size // lane.modulus if lane.modulus else 1)
        self.memory[value] = Memory(name, type_, "thread", lane, rounds)
        zero = x.real(0.0).text if type_ == "float" else "0"
        self.line(f"{type_} {name} = {zero};" if slots == 1 else f"{type_} {name}[{slots}];")

    def _element(self, memory: Memory, index: ir.Value) -> Expr:
        """`name[index]`."""
        at = self.use(index)
        low, high = x.RANGE.get(memory.type, (0, 0))
        text = f"{memory.name}[{at.text}]" if memory.lane is None else self._own_element(memory, memory.lane, index, at)
        return Expr(text, memory.type, 0, low, high, None, True)

    def _own_element(self, memory: Memory, lane: Lane, index: ir.Value, at: Expr) -> str:
        """Element stride * j + offset + modulus * q of iteration j: the thread's stride * (rounds * q + n) + offset."""
        if (memory.rounds, lane.stride, lane.modulus) == (1, 1, 0):
            return memory.name
        assert self._iv is not None
        turn = x.integer(0) if self._slot is None else Expr(self._slot, "uint", 0, 0, memory.rounds)
        if lane.modulus:
            before = x.arithmetic("*", x.divided("/", at, x.integer(lane.modulus)), x.integer(memory.rounds), 32)
            turn = x.arithmetic("+", before, turn, 32)
        offset = position_of(index, self._iv).offset
        own = x.arithmetic("+", x.arithmetic("*", turn, x.integer(lane.stride), 32), x.integer(offset), 32)
        return f"{memory.name}[{own.text}]"

    def _place(self, target: ir.Value, index: ir.Value) -> Expr:
        """An element of memory, or of the vector that it was loaded into."""
        memory = self.memory[target]
        neighbour = self.neighbours.get((target, index))
        if neighbour is None:
            return self._element(memory, index)
        low, high = x.RANGE.get(memory.type, (0, 0))
        return Expr(neighbour, memory.type, 0, low, high)

    def load(self, operation: ir.Operation) -> None:
        self._define(operation.results[0], self._place(*operation.operands))

    def store(self, operation: ir.Operation) -> None:
        value, target, index = operation.operands
        memory = self.memory[target]
        e = self._converted(self.use(value), memory.type)
        place = self._place(target, index)
        self.flush()
        # Outside of a loop over the threads they all compute the same value: one of them stores it.
        alone = self.group is not None and not self._lanes and memory.space != "thread"
        self.line(f"{'if (lid == 0) ' if alone else ''}{place.text} = {e.text};")

    @staticmethod
    def _converted(e: Expr, type_: str) -> Expr:
        """For a store: integers of the same width convert by themselves."""
        if e.type == type_ or {e.type, type_} in (
            {"int", "uint"},
            {"long", "ulong"},
            {"char", "uchar"},
            {"short", "ushort"},
        ):
            return e
        if e.value is not None and type_ in x.RANGE and type_ != "bool":
            low, high = x.RANGE[type_]
            return e if low <= e.value <= high else x.integer((e.value - low) % (high - low + 1) + low)
        return x.cast(e, type_)

    def atomic(self, operation: ir.Operation) -> None:
        """`memref.atomic_rmw`, whose result nobody uses."""
        value, target, index = operation.operands
        name, type_ = _ATOMIC[ir.IntegerAttr(operation.attributes["kind"]).value]
        memory = self.memory[target]
        type_, e, at = type_ or memory.type, self.use(value), self.use(index)
        e = self._converted(e, type_)
        self.flush()
        place = f"(device atomic_{type_}*)({memory.name} + {at.at(3)})"
        self.line(f"atomic_fetch_{name}_explicit({place}, {e.text}, memory_order_relaxed);")

    def shuffle(self, operation: ir.Operation) -> None:
        """`gpu.shuffle up`: a value of another thread of the SIMD-group, all of which run this."""
        value, result = operation.operands[0], operation.results[0]
        distance, e = Expr(str(constant_of(operation.operands[1])), "ushort"), self.use(value)
        if is_bool(value.type):
            got = x.call("simd_shuffle_up", x.cast(e, "uint"), distance, type_="uint")
            moved = x.infix("!=", got, x.integer(0), "bool", 0, 1)
        elif not isinstance(value.type, ir.IntegerType):
            moved = x.call("simd_shuffle_up", e, distance)
        elif value.type.width == 64:
            self.need("shuffle_up")
            moved = x.call("shuffle_up", x.cast(x.unsigned(e, 64), "ulong"), distance, type_="ulong")
        else:
            e, high = x.unsigned(e, value.type.width), (1 << value.type.width) - 1
            moved = x.call("simd_shuffle_up", x.cast(e, "uint"), distance, type_="uint", low=0, high=high)
        self._print_constant(result, moved)  # here, where all threads are

    # -- regions ------------------------------------------------------------------------------------------------------
    def branch(self, operation: ir.Operation) -> None:
        """`scf.if`: a conditional expression where both sides are expressions."""
        test = self._settled(operation.operands[0], force=len(operation.results) > 1)
        self.flush()
        sides = [self._side(region.blocks[0]) for region in operation.regions if len(region.blocks)]
        if operation.results and not any(lines for lines, _ in sides):
            self._conditional(operation, test, sides)
            return
        names: list[str] = []
        for result, *values in zip(operation.results, *[values for _, values in sides], strict=True):
            type_ = self._result_type(result, values)
            names.append(self.name("v"))
            self.line(f"{type_} {names[-1]};")
            low, high = x.RANGE.get(type_, (0, 0))
            self.env[result] = Expr(names[-1], type_, 0, low, high)
        for n, (lines, values) in enumerate(sides):
            if n and not lines and not values:
                break
            self.line(f"if ({test.text}) {{" if n == 0 else "} else {")
            self.lines += lines
            for name, value, result in zip(names, values, operation.results, strict=True):
                self.depth += 1
                self.line(f"{name} = {self._converted(value, self.env[result].type).text};")
                self.depth -= 1
        self.line("}")

    def _side(self, block: ir.Block) -> tuple[list[str], list[Expr]]:
        """The lines of one branch, and what it yields."""
        outside, self.lines = self.lines, []
        self.depth += 1
        values = [self.use(v) for v in self.run(block).operands]
        self.flush()
        self.depth -= 1
        lines, self.lines = self.lines, outside
        return lines, values

    def _conditional(self, operation: ir.Operation, test: Expr, sides: list) -> None:
        for result, a, b in zip(operation.results, *[values for _, values in sides], strict=True):
            self._define(result, self.operations.choose(result.type, test, a, b))

    def _settled(self, value: ir.Value, force: bool = True) -> Expr:
        """A value that is used more than once: a name."""
        e = self.use(value)
        if force and e.value is None and not e.text.isidentifier():
            self._print_constant(value, e)
        return self.env[value]

    def _result_type(self, value: ir.Value, sources: Sequence[Expr]) -> str:
        """The type of a variable that holds `value`, which is one of `sources`."""
        if is_bool(value.type):
            return "bool"
        if not isinstance(value.type, (ir.IntegerType, ir.IndexType)):
            return float_type(value.type, self.kernel)
        bits = max(bits_of(value.type), 32)
        signs = {s.type for s in sources if s.value is None}
        return x.SIGNED[bits] if signs and signs <= {"char", "short", "int", "long"} else x.UNSIGNED[bits]

    # -- loops --------------------------------------------------------------------------------------------------------
    def _bound(self, value: ir.Value) -> Expr:
        e = self._settled(value)
        return replace(e, low=max(e.low, 0), high=min(e.high, max(upper_bound(value), 0)))

    def serial(self, operation: ir.Operation) -> None:
        """`scf.for`: a loop with variables for what it carries."""
        self.flush()
        bound, block = self._bound(operation.operands[1]), operation.regions[0].blocks[0]
        results, starts = list(operation.results), [self.use(v) for v in list(operation.operands)[3:]]
        yielded = _last(block).operands
        names: list[str] = []
        for result, argument, start, value in zip(results, list(block.arguments)[1:], starts, yielded, strict=True):
            if is_fragment(result.type):
                variable = carried_fragment(self, operation.operands[3 + len(names)])
            else:
                variable = self._variable_for(result, start, value, "carried")
            self.env[argument] = self.env[result] = variable
            names.append(variable.text)
        with self.variable("kmnpq") as name:
            self._bind(block.arguments[0], name, bound)
            with self.braces(f"for ({self._type_of(block.arguments[0])} {name} = 0; {name} < {bound.text}; ++{name})"):
                self._assign(names, [self.use(v) for v in self.run(block).operands])

    def _variable_for(self, result: ir.Value, start: Expr, source: ir.Value, base: str) -> Expr:
        """Declare a variable with a first value; integers are signed if what they become next is computed so."""
        owner = source.owner
        signed = not isinstance(owner, ir.Block) and owner.operation.name in ("arith.maxsi", "arith.minsi")
        type_ = self._result_type(result, [replace(start, type="int", value=None)] if signed else [])
        name = self.name(base)
        self.line(f"{type_} {name} = {self._start(start, result, type_).text};")
        low, high = x.RANGE.get(type_, (0, 0))
        return Expr(name, type_, 0, low, high)

    def _start(self, start: Expr, result: ir.Value, type_: str) -> Expr:
        if type_ in ("uint", "ulong"):
            start = x.unsigned(start, bits_of(result.type))
        elif type_ in ("int", "long"):
            start = x.signed(start, bits_of(result.type))
        return start if start.value is not None else self._converted(start, type_)

    def _assign(self, names: Sequence[str], values: Sequence[Expr]) -> None:
        """All at once: a value that another assignment would change first is named before."""
        settled = []
        for n, e in enumerate(values):
            others = [o for m, o in enumerate(names) if m != n]
            if any(re.search(rf"\b{o}\b", e.text) for o in others):
                name = self.name("v")
                self.line(f"const {e.type} {name} = {e.text};")
                e = replace(e, text=name, level=0)
            settled.append(e)
        self.flush()
        for name, e in zip(names, settled, strict=True):
            if e.text != name:
                self.line(_assignment(name, e))

    def _bind(self, argument: ir.Value, name: str, bound: Expr) -> None:
        high = max(bound.high - 1, 0)
        type_ = "uint" if high + 2048 <= x.RANGE["uint"][1] else "long"
        self.env[argument] = Expr(name, type_, 0, 0, high)

    def _type_of(self, argument: ir.Value) -> str:
        return self.env[argument].type

    def parallel(self, operation: ir.Operation) -> None:
        """A loop inside a top-level iteration: over the threads of the group, or one after the other."""
        self.flush()
        block, bound = operation.regions[0].blocks[0], self._bound(operation.operands[1])
        over_threads = self.group is not None and not self._lanes
        combines = [combine_of(self.kernel, r.blocks[0]) for r in _last(block).regions]
        variables = []
        for result, start, combine in zip(operation.results, list(operation.operands)[3:], combines, strict=True):
            combine.check_neutral(self.kernel, start)
            first, type_ = self.use(start), combine.variable_type(result.type)
            name = self.name(combine.name)
            self.line(f"{type_} {name} = {self._start(first, result, type_).text};")
            low, high = x.RANGE.get(type_, (0, 0))
            self.env[result] = Expr(name, type_, 0, low, high)
            variables.append(self.env[result])
        self._lanes += 1
        with self._iterations(operation, block, bound) if over_threads else self._one_by_one(block, bound):
            terminator = self.run(block)
            for variable, value, combine in zip(variables, terminator.operands, combines, strict=True):
                self._accumulate(variable, self.use(value), combine)
            self.flush()
        self._lanes -= 1
        for variable, result, combine in zip(variables, operation.results, combines, strict=True):
            if over_threads:
                self.line(f"{variable.text} = {self._over_group(combine, variable, result.type).text};")

    def _accumulate(self, variable: Expr, value: Expr, combine: Combine) -> None:
        block = combine.block
        for argument, e in zip(block.arguments, (variable, value), strict=True):
            self.env[argument] = e
        e = self.operations.expression(combine.operation, [self.env[v] for v in combine.operation.operands])
        self.flush()
        symbol = {"arith.addf": "+", "arith.mulf": "*"}.get(combine.operation.name)
        self.line(f"{variable.text} {symbol}= {value.text};" if symbol else _assignment(variable.text, e))

    def _over_group(self, combine: Combine, variable: Expr, type_: ir.Type) -> Expr:
        """The value over all threads of the group; all of them get it."""
        assert self.group is not None
        kind, simdgroups = variable.type, self.group.threads // SIMD
        if simdgroups == 1:
            function, more = simd_function(combine.name, kind), []
        else:
            function = threadgroup_function(combine.name, kind)
            partial = self.partials.setdefault(kind, "partial" if kind == "float" else f"partial_{kind}")
            more = [Expr(t, "") for t in (partial, str(simdgroups), "lane", "simdgroup")]
            self.builtins |= {"lane": "thread_index_in_simdgroup", "simdgroup": "simdgroup_index_in_threadgroup"}
        if is_helper(function):
            self.need(function)
        whole = x.call(function, variable, *more, type_=kind)
        if combine.name in ("sum", "product") and isinstance(type_, ir.IntegerType) and type_.width < 32:
            return x.cast(whole, x.UNSIGNED[type_.width])
        return whole

    @contextmanager
    def _one_by_one(self, block: ir.Block, bound: Expr) -> Iterator[None]:
        with self.variable("jklmn") as name:
            self._bind(block.arguments[0], name, bound)
            with self.braces(f"for ({self._type_of(block.arguments[0])} {name} = 0; {name} < {bound.text}; ++{name})"):
                yield

    @contextmanager
    def _iterations(self, operation: ir.Operation, block: ir.Block, bound: Expr) -> Iterator[None]:
        """Iteration j belongs to thread j mod T."""
        assert self.group is not None
        iv, threads = block.arguments[0], self.group.threads
        self._iv = iv
        if bound.high <= threads:
            self.env[iv] = Expr("lid", "uint", 0, 0, max(bound.high - 1, 0))
            if bound.value == threads:
                yield
                return
            with self.braces(f"if (lid < {bound.text})"):
                yield
            return
        if not any(self._in_registers(o) for o in walk(block)):
            with self.variable("jklmn") as name:
                self._bind(iv, name, bound)
                with self.braces(f"for ({self._type_of(iv)} {name} = lid; {name} < {bound.text}; {name} += {threads})"):
                    yield
            return
        # A constant number of rounds: a compiler can unroll the loop and keep the thread's own elements in registers.
        rounds = -(-bound.high // threads)
        with (
            self.variable("ntu") as count,
            self.braces(f"for (uint {count} = 0; {count} < {rounds}; ++{count})"),
            self.variable("jklmn") as name,
        ):
            self._bind(iv, name, bound)
            self.line(f"const {self._type_of(iv)} {name} = lid + {count} * {threads};")
            self._slot = count
            if bound.value is not None and bound.value % threads == 0:
                yield
            else:
                with self.braces(f"if ({name} < {bound.text})"):
                    yield
            self._slot = None

    def _in_registers(self, operation: ir.Operation) -> bool:
        if operation.name not in ("memref.load", "memref.store"):
            return False
        memory = self.memory[operation.operands[operation.name == "memref.store"]]
        return memory.lane is not None


def storage_type(type_: ir.Type, where: str) -> str:
    """The C++ type of an element in memory."""
    if isinstance(type_, ir.IntegerType):
        return x.UNSIGNED[type_.width]
    return float_type(type_, where)


def bytes_of(type_: str) -> int:
    """The size of a C++ scalar."""
    return {"half": 2, "bfloat": 2, "float": 4, "bool": 1}.get(type_) or next(
        bits // 8 for bits in x.SIGNED if type_ in (x.SIGNED[bits], x.UNSIGNED[bits])
    )


def _assignment(name: str, e: Expr) -> str:
    """`name = e;`, shortened to `name += ...;`."""
    for symbol, level, others in (("+", 3, "-+"), ("*", 2, "*/%")):
        head, rest = f"{name} {symbol} ", e.text
        while rest != (shorter := re.sub(r"[(\[][^()\[\]]*[)\]]", "", rest)):
            rest = shorter
        if e.level == level and e.text.startswith(head) and not re.search(f" [{others}] ", rest[len(head) :]):
            return f"{name} {symbol}= {e.text[len(head) :]};"
    return f"{name} = {e.text};"


def _flags(barrier: Barrier) -> str:
    names = [n for n, on in (("mem_device", barrier.device), ("mem_threadgroup", barrier.threadgroup)) if on]
    return " | ".join(f"mem_flags::{n}" for n in names)


def _last(block: ir.Block) -> ir.Operation:
    operations = block.operations
    return operations[len(operations) - 1].operation


_RULES: dict[str, Callable[[Body, ir.Operation], None]] = {
    "memref.alloca": Body.alloca, "memref.load": Body.load, "memref.store": Body.store, "scf.if": Body.branch,
    "scf.for": Body.serial, "scf.parallel": Body.parallel, "gpu.shuffle": Body.shuffle,
    "memref.atomic_rmw": Body.atomic, **MATRIX_RULES,
}  # fmt: skip
