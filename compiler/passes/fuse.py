"""Fusion: operations become kernels, the units that are lowered to loops.

    %0 = max %x    %1 = subtract %x, %0    %2 = exp %1       func.func private @mx_max_sum(%x) { all of them }
    %3 = sum %2    %4 = divide %2, %3                   ->   func.func @main(%x) { %0 = call @mx_max_sum(%x) }

Operations are placed last first, so the kernels that read a value are known when it is placed:

- an element operation joins the kernels that read it, and is computed there, unless the value must exist in memory (a
  result, an operand of a kernel with loops of its own) or computing it again would cost more than reading it;
- a reduction joins the one kernel that reads it if both walk the same rows; one of a few elements is placed like an
  element operation;
- a value that must exist in memory is one more result of a kernel that reads it, where their iteration spaces are the
  same;
- a contraction (matmul, conv) takes the element kernel that reads it for its epilogue.

A join never makes kernels wait for each other in a circle. `depends` is no operation of a kernel: it makes the kernels
that read its result wait (ordering.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

from mlxir.compiler.passes.mixed import join_columns
from mlxir.compiler.passes.ordering import Waits, without_depends
from mlxir.compiler.passes.outline import Fused, outline
from mlxir.compiler.passes.split_reductions import SHORT, is_short
from mlxir.dialects.mlir import Module, Op, Tensor
from mlxir.runtime.errors import CompileError

VIEWS = ("transpose", "reshape", "broadcast_to", "slice")  # what a contraction reads through in place
MOST_BUFFERS = 28  # Metal binds at most 31
SMALL = 1 << 16  # bytes that stay in the caches nearest to a core: stored once, they are read faster than computed
MOST_PLACES = 8  # at which one kernel computes a value for each of its elements


@dataclass(eq=False)
class Group:
    """A kernel in the making. `shape` is its full iteration space, `axes` the reduced ones (None: nothing is reduced).
    """

    kind: str  # "loops", "own" (scan, scatter, ...), "library", or the name of a contraction or composite
    shape: tuple[int, ...]
    axes: tuple[int, ...] | None = None
    members: set[int] = field(default_factory=set)  # numbers of operations
    outputs: list[int] = field(default_factory=list)  # those whose result goes to memory
    after: set[Group] = field(default_factory=set)  # kernels that this one reads from
    merged_into: Group | None = None

    @property
    def rows(self) -> tuple[int, ...]:
        return tuple(n for a, n in enumerate(self.shape) if a not in (self.axes or ()))

    def depends_on(self, other: Group) -> bool:
        """Whether it reads, directly or not, what `other` writes."""
        seen: set[Group] = set()
        stack = [self]
        while stack:
            g = stack.pop()
            if g is other:
                return True
            if g not in seen:
                seen.add(g)
                stack.extend(g.after)
        return False


def fuse(module: Module, vectors: bool = False) -> Fused:
    """Fuse `main`; `vectors`: for a target with kernels that reduce rows and columns, and with products that compute an
    operand on the way.
    """
    main = module.find("main")
    ops, results, waits = without_depends(*main.read())
    return outline(main, ops, results, Fusion(ops, results, waits, vectors).groups)


def _sizes(a: Group, b: Group) -> tuple[int, ...]:
    """The numbers of elements and of rows of two kernels over one space."""
    return prod(a.shape), prod(a.rows), prod(b.rows)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


class Fusion:
    """The kernels of a function while they are formed."""

    def __init__(self, ops: list[Op], results: list[Tensor], waits: Waits, vectors: bool):
        self.ops, self.waits, self.vectors = ops, waits, vectors
        self.users: dict[int, list[int]] = {}
        self.producer = {id(t): n for n, op in enumerate(ops) for t in op.results}
        for n, op in enumerate(ops):
            for t in op.operands:
                self.users.setdefault(id(t), []).append(n)
        self.sizes = {id(t): t.aval.size for op in ops for t in op.operands}
        self.final = {id(t) for t in results}
        self.homes: dict[int, list[Group]] = {}  # operation -> kernels that compute it
        self.groups: list[Group] = []
        self.inputs: dict[Group, tuple[int, set[int]]] = {}
        self.places: dict[int, int] = {}  # operation computed inside its readers -> at how many indices for an element
        for n in reversed(range(len(ops))):
            self._place(n)
        self._merge_siblings()
        if vectors:
            join_columns(self)
        self.groups = _ordered([g for g in self.groups if g.merged_into is None])

    # -- placing one operation ----------------------------------------------------------------------------------------
    def _place(self, n: int) -> None:
        op = self.ops[n]
        readers = self._readers(op)
        lowering = op.record.lowering
        if len(readers) > 1 and lowering in ("element", "reduce"):
            readers = self._united(op.results[0].aval.size, readers)
        if lowering == "library" or (lowering == "kernel" and op.record.kind != "bilinear"):
            kind = "library" if lowering == "library" else op.record.name if op.record.kind == "composite" else "own"
            self._materialize(n, Group(kind, op.results[0].shape), readers)
        elif lowering == "kernel":
            self._place_contraction(n, op, readers)
        elif lowering == "reduce" and not is_short(op):
            self._place_reduction(n, op, readers)
        else:
            self._place_element(n, op, readers)
        self._pass_on_waits(n, op)

    def _waiting(self, n: int) -> list[Group]:
        """The kernels that wait for a result of operation n."""
        waiters = sorted({w for t in self.ops[n].results for w in self.waits.get(id(t), ())})
        return list(dict.fromkeys(g for w in waiters for g in self.homes[w]))

    def _pass_on_waits(self, n: int, op: Op) -> None:
        """What waits for a value that no kernel stores waits for what the value is computed from."""
        if any(n in g.outputs for g in self.homes[n]):
            return
        for t in op.results:
            for operand in op.operands if id(t) in self.waits else ():
                self.waits.setdefault(id(operand), set()).update(self.waits[id(t)])

    def _readers(self, op: Op) -> list[Group]:
        found: dict[Group, None] = {}
        for t in op.results:
            for user in self.users.get(id(t), ()):
                found.update(dict.fromkeys(self.homes[user]))
        return list(found)

    def _united(self, size: int, readers: list[Group]) -> list[Group]:
        """Of the kernels that read a value, those over one space become one, where it has a value per element or per
        row of it.

        The gradients of a * sigmoid(a) * b with respect to both are one kernel that computes the sigmoid once.
        """
        kept: list[Group] = []
        for g in readers:
            host = next(
                (k for k in kept if k.shape == g.shape and size in _sizes(k, g) and self._mergeable(k, g)), None
            )
            if host is None:
                kept.append(g)
            else:
                self.merge(host, g)
        return kept

    def _mergeable(self, a: Group, b: Group) -> bool:
        """Whether two loop kernels can be one: the same space, no circle, and not too many buffers."""
        if (
            a.kind != "loops"
            or b.kind != "loops"
            or a.shape != b.shape
            or (a.axes != b.axes and None not in (a.axes, b.axes))
        ):
            return False
        if len(a.outputs) + len(b.outputs) + len(self.inputs_of(a) | self.inputs_of(b)) > MOST_BUFFERS:
            return False
        return not a.depends_on(b) and not b.depends_on(a)

    def merge(self, a: Group, b: Group) -> None:
        """`a` does what `b` did, too."""
        a.axes = b.axes if a.axes is None else a.axes
        a.members |= b.members
        a.outputs += b.outputs
        a.after |= b.after
        b.merged_into = a
        for m in b.members:
            self.homes[m] = list(dict.fromkeys(a if g is b else g for g in self.homes[m]))
        for g in self.groups:
            if b in g.after:
                g.after.discard(b)
                g.after.add(a)

    def _must_exist(self, op: Op) -> bool:
        """A result of the program, or an operand that a kernel with loops of its own takes from memory."""
        if any(id(t) in self.final for t in op.results):
            return True
        for t in op.results:
            for user in self.users.get(id(t), ()):
                reader = self.ops[user].record
                if reader.lowering == "library":
                    return True
                if op.record.name in VIEWS:
                    continue
                if self._takes_from_memory(user, t) or (reader.name in VIEWS and self._feeds_contraction(user)):
                    return not self._computed_on_the_way(op)
        return False

    def _computed_on_the_way(self, op: Op) -> bool:
        """Whether only products read a value that is large, and computed cheaply from half of its memory or less:
        dequantised weights.
        """
        todo, seen, read = list(op.operands), set[int](), 0
        whole = sum(t.aval.size * t.dtype.size for t in op.results)
        if not self.vectors or op.record.lowering != "element" or not self._only_products_read(op):
            return False
        while todo:
            t = todo.pop()
            if id(t) in seen:
                continue
            seen.add(id(t))
            below = self.producer.get(id(t))
            source = None if below is None else self.ops[below]
            if source is None or source.record.lowering != "element" or getattr(source.record, "costly", False):
                read += t.aval.size * t.dtype.size
            else:
                todo += source.operands
        return 2 * read <= whole and whole > SMALL

    def _only_products_read(self, op: Op) -> bool:
        readers = [self.ops[u] for t in op.results for u in self.users.get(id(t), ())]
        names = [(r, r.record.name) for r in readers]
        return all(name == "matmul" or (name in VIEWS and self._only_products_read(r)) for r, name in names)

    def _feeds_contraction(self, n: int) -> bool:
        for t in self.ops[n].results:
            for user in self.users.get(id(t), ()):
                name = self.ops[user].record.name
                if self._takes_from_memory(user, t) or (name in VIEWS and self._feeds_contraction(user)):
                    return True
        return False

    def _takes_from_memory(self, n: int, t: Tensor) -> bool:
        """Whether operation n has loops of its own that read `t` again and again."""
        op = self.ops[n]
        return op.record.kind == "bilinear" or any(op.operands[i] is t for i in op.record.direct)

    def _place_element(self, n: int, op: Op, readers: list[Group]) -> None:
        size = op.results[0].aval.size
        costly = getattr(op.record, "costly", False)
        inline = bool(readers) and not self._must_exist(op) and all(g.kind != "library" for g in readers)
        if op.record.kind == "reduction":
            inline = inline and all(size * SHORT >= prod(g.shape) for g in readers)
        if inline and len(readers) > 1 and (costly or op.record.kind in ("elementwise", "reduction")):
            # Computing it in several kernels reads its operands several times instead of it once.
            inline = not costly and op.operands != [] and self._elements_read(op) <= size
        inline = inline and all(self._has_room(g, n) for g in readers)
        if inline and costly:
            inline = all(size * 2 > prod(g.shape) or size == prod(g.rows) or self._per_row(n, g) for g in readers)
        places = self._places_read(op)
        if inline and places > MOST_PLACES and op.record.kind in ("elementwise", "reduction"):
            self._materialize(n, Group("loops", op.results[0].shape), readers)
            return
        if inline:
            self.places[n] = places
            self.homes[n] = readers
            for g in readers:
                g.members.add(n)
            return
        self._join_or_start(n, op.results[0].shape, None, readers)

    def _places_read(self, op: Op) -> int:
        """At how many indices its readers compute a value for one element of theirs: the four neighbours of a stencil,
        and those of the neighbours where the next stencil is computed on the way, and so on.
        """
        here, elsewhere = 0, 0
        for t in op.results:
            for user in self.users.get(id(t), ()):
                record, places = self.ops[user].record, self.places.get(user, 1)
                if record.kind == "structural" and record.name not in ("reshape", "broadcast_to"):
                    elsewhere += places
                else:
                    here = max(here, places)
        return here + elsewhere

    def _elements_read(self, op: Op) -> int:
        """How many elements computing a result anew reads, beside small operands: those of x for 0.04 * x * x."""

        def large(op: Op) -> dict[int, int]:
            return {id(t): s for t in op.operands if (s := t.aval.size) * 8 > op.results[0].aval.size}

        read = large(op)
        for value in [v for v in read if self._is_cheap(v)]:
            if large(self.ops[self.producer[value]]).keys() <= read.keys() - {value}:
                del read[value]
        return sum(read.values())

    def _is_cheap(self, value: int) -> bool:
        """Whether one cheap operation on elements makes it."""
        record = self.ops[self.producer[value]].record if value in self.producer else None
        return record is not None and record.kind == "elementwise" and not getattr(record, "costly", False)

    def _per_row(self, n: int, g: Group) -> bool:
        """Whether operation n computes on the results of a reduction whose rows `g` can walk: once per row then (x -
        logsumexp(x)).
        """
        todo, size = [n], self.ops[n].results[0].aval.size
        while todo:
            for t in self.ops[todo.pop()].operands:
                below = self.producer.get(id(t))
                if below is None or t.aval.size != size:
                    continue
                op = self.ops[below]
                if op.record.kind == "reduction":
                    space = op.operands[0].shape, tuple(sorted(op.attrs["axes"]))
                    return self._same_rows(g, *space) and self._aligned(n, g, *space)
                if op.record.kind == "elementwise" or op.record.name == "reshape":
                    todo.append(below)
        return False

    def _place_reduction(self, n: int, op: Op, readers: list[Group]) -> None:
        shape, axes = op.operands[0].shape, tuple(sorted(op.attrs["axes"]))
        if len(readers) == 1 and not self._must_exist(op):
            (g,) = readers
            if self._same_rows(g, shape, axes) and self._aligned(n, g, shape, axes) and self._has_room(g, n):
                g.shape, g.axes = shape, axes
                g.members.add(n)
                self.homes[n] = [g]
                return
        self._join_or_start(n, shape, axes, readers)

    def _same_rows(self, g: Group, shape: tuple[int, ...], axes: tuple[int, ...]) -> bool:
        """Whether `g` walks, or can walk, the rows of a reduction of `shape` over `axes`."""
        if g.kind != "loops":
            return False
        if g.axes is not None:
            return g.shape == shape and g.axes == axes
        rows = tuple(k for a, k in enumerate(shape) if a not in axes)
        return _squeezed(g.shape) in (_squeezed(shape), _squeezed(rows))

    def _aligned(self, n: int, g: Group, shape: tuple[int, ...], axes: tuple[int, ...]) -> bool:
        """Whether everything between the reduction and the results of `g` keeps a row's value with its row.

        The result reaches each reader in `g` through operations that only drop or add axes of length 1, broadcast along
        the
        reduced axes, or work element by element.
        """
        rows = _squeezed(tuple(k for a, k in enumerate(shape) if a not in axes))
        kept = tuple(1 if a in axes else k for a, k in enumerate(shape))
        todo, seen = [(n, True)], set()
        while todo:
            m, short = todo.pop()
            for t in self.ops[m].results:
                for user in self.users.get(id(t), ()):
                    if user not in g.members or (user, short) in seen:
                        continue
                    seen.add((user, short))
                    op = self.ops[user]
                    out = op.results[0].shape
                    if op.record.kind == "reduction":
                        if op.operands[0].shape != shape or tuple(sorted(op.attrs["axes"])) != axes:
                            return False
                        todo.append((user, True))
                    elif _squeezed(out) == rows and short and op.record.name in ("reshape", "broadcast_to"):
                        todo.append((user, True))
                    elif op.record.kind in ("elementwise", "control") or op.record.name == "broadcast_to":
                        wide = _squeezed(out) == _squeezed(shape) and len(out) == len(shape) and _squeezed(out) != rows
                        if wide and short and (1,) * (len(shape) - len(t.shape)) + tuple(t.shape) != kept:
                            return False
                        if not wide and _squeezed(out) != rows:
                            return False
                        todo.append((user, not wide))
                    elif not short and op.record.name == "reshape":
                        todo.append((user, False))
                    else:
                        return False
        return True

    def _place_contraction(self, n: int, op: Op, readers: list[Group]) -> None:
        shape = op.results[0].shape
        # The sums of a convolution may be written in another order of axes: its gradients are transposed.
        transposed = op.record.name == "conv"

        def form(space: tuple[int, ...]) -> Any:
            return sorted(_squeezed(space)) if transposed else prod(space)

        hosts = [
            g for g in readers
            if g.kind == "loops" and g.axes is None and form(g.shape) == form(shape)
            and all(form(self.ops[o].results[0].shape) == form(shape) for o in g.outputs)
            and all(self._reads_in_place(u, g, transposed)
                    for u in self.users.get(id(op.results[0]), ()) if u in g.members)
        ]  # fmt: skip
        for g in hosts:
            others = [r for r in readers if r is not g]
            stored = bool(others) or id(op.results[0]) in self.final
            others += [w for w in self._waiting(n) if w is not g and stored]
            if any(g.depends_on(r) for r in others):
                continue
            g.kind, g.shape = op.record.name, shape
            g.members.add(n)
            self.homes[n] = [g]
            if stored:
                g.outputs.append(n)
                for r in others:
                    r.after.add(g)
            return
        self._materialize(n, Group(op.record.name, shape), readers)

    def _reads_in_place(self, n: int, g: Group, transposed: bool) -> bool:
        """Whether operation n, and what leads from it to the results of `g`, works at the place of its operand (or at
        the index of the operand transposed).
        """
        todo, seen = [n], set()
        while todo:
            m = todo.pop()
            if m in seen or m not in g.members:
                continue
            seen.add(m)
            op = self.ops[m]
            in_place = op.record.kind in ("elementwise", "control")
            if op.record.name == "reshape":
                in_place = not transposed or _squeezed(op.operands[0].shape) == _squeezed(op.results[0].shape)
            if not in_place and not (transposed and op.record.name == "transpose"):
                return False
            todo += [u for t in op.results for u in self.users.get(id(t), ())]
        return True

    # -- values in memory ---------------------------------------------------------------------------------------------
    def _join_or_start(
        self, n: int, shape: tuple[int, ...], axes: tuple[int, ...] | None, readers: list[Group]
    ) -> None:
        for g in readers:
            if not self._accepts(g, n, shape, axes):
                continue
            others = [r for r in (*readers, *self._waiting(n)) if r is not g]
            if any(g.depends_on(r) for r in others):
                continue
            if axes is not None:
                g.shape, g.axes = shape, axes
            g.members.add(n)
            g.outputs.append(n)
            self.homes[n] = [g]
            for r in others:
                r.after.add(g)
            return
        self._materialize(n, Group("loops", shape, axes), readers)

    def _has_room(self, g: Group, n: int) -> bool:
        """Whether computing operation n inside `g` keeps its buffers within what Metal can bind."""
        if len(g.members) < MOST_BUFFERS // 2:
            return True
        mine = {id(t) for t in self.ops[n].results}
        read = (self.inputs_of(g) - mine) | {id(t) for t in self.ops[n].operands}
        return len(read) + len(g.outputs) < MOST_BUFFERS

    def _accepts(self, g: Group, n: int, shape: tuple[int, ...], axes: tuple[int, ...] | None) -> bool:
        """Whether the result of n can be one more result of g."""
        if len(g.outputs) >= MOST_BUFFERS // 2 or not self._has_room(g, n):
            return False
        if axes is not None:
            return self._same_rows(g, shape, axes) and self._aligned(n, g, shape, axes)
        return g.kind == "loops" and shape in (g.shape, g.rows)

    def _materialize(self, n: int, g: Group, readers: list[Group]) -> None:
        g.members.add(n)
        g.outputs.append(n)
        self.groups.append(g)
        self.homes[n] = [g]
        for r in (*readers, *self._waiting(n)):
            r.after.add(g)

    # -- kernels side by side -----------------------------------------------------------------------------------------
    def _merge_siblings(self) -> None:
        """Two kernels over the same space that read the same value become one, if neither waits for the other."""
        by_space: dict[tuple, list[Group]] = {}
        for g in self.groups:
            if g.kind == "loops":
                by_space.setdefault((g.shape, g.axes), []).append(g)
        for group in by_space.values():
            for i, a in enumerate(group):
                for b in group[i + 1 :]:
                    shared = self.inputs_of(a) & self.inputs_of(b)
                    if a.merged_into or b.merged_into or not any(self.sizes[t] > 1 for t in shared):
                        continue
                    if self._mergeable(a, b):
                        self.merge(a, b)

    def inputs_of(self, g: Group) -> set[int]:
        """What it reads and does not make. Members are only ever added, so their number says whether the last answer
        holds.
        """
        count, found = self.inputs.get(g, (0, set()))
        if count != len(g.members):
            made = {id(t) for n in g.members for t in self.ops[n].results}
            found = {id(t) for n in g.members for t in self.ops[n].operands} - made
            self.inputs[g] = len(g.members), found
        return found


def _ordered(groups: list[Group]) -> list[Group]:
    """Each kernel after those it reads from or waits for, otherwise in the order of the program.

    A kernel has the place of its last operation: its first may be one of the forward pass that a kernel of the backward
    pass computes again, and a kernel that runs before it is needed keeps its results, and postpones what would free
    others. But one that nobody reads makes results of the program, which have their memory: the update of a weight runs
    as soon as its operands are there (scalars, like the rate, whenever they are needed), and frees them.
    """
    order: list[Group] = []
    done: set[Group] = set()
    begun: set[Group] = set()
    place = {g: (max(g.members), 0) for g in groups}
    read = {b for g in groups for b in g.after}
    for g in [g for g in groups if g.after and g not in read]:
        operands = [b for a in g.after for b in (a.after if prod(a.shape) == 1 else [a])]
        place[g] = max([place[b][0] for b in operands], default=-1), 1
    stack = sorted(groups, key=lambda g: place[g], reverse=True)
    while stack:
        g = stack[-1]
        before = sorted(g.after - done, key=lambda b: place[b], reverse=True)
        if g in done:
            stack.pop()
        elif not before:
            done.add(g)
            order.append(stack.pop())
        elif g in begun:
            raise CompileError("[fuse] kernels wait for each other in a circle")
        else:
            begun.add(g)
            stack += before
    return order
