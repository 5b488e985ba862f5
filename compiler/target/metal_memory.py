"""Which threads of a threadgroup share which memory: where scratch lives, and where barriers stand.

A loop over the threads gives iteration j to thread j mod T, in every loop of a kernel. So memory that is only ever
accessed at a position that belongs to j alone is one thread's own: it needs no barrier, and if the position depends on
j only, it can live in the thread's registers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import gcd, inf
from typing import NamedTuple

from mlxir.dialects.mlir import ir


class Lane(NamedTuple):
    """A position `stride * j + offset + fixed * g + modulus * anything`, g being the number of the threadgroup."""

    stride: int
    modulus: int
    offset: int
    fixed: int = 0


class Access(NamedTuple):
    """One load or store of `memory`; `lane` is None if its position may belong to several iterations.

    Positions lie in low .. high. A fragment is one that a SIMD-group stores or loads.
    """

    memory: ir.Value
    writes: bool
    lane: Lane | None
    low: float
    high: float
    fragment: bool

    def clashes(self, other: Access) -> bool:
        """Whether a barrier has to stand between the two. Fragments that are stored lie apart."""
        if self.memory != other.memory or not (self.writes or other.writes):
            return False
        apart = self.fragment and other.fragment and self.writes and other.writes
        return not apart and self.low <= other.high and other.low <= self.high


class Barrier(NamedTuple):
    """Which memory a barrier makes visible."""

    device: bool
    threadgroup: bool


def walk(block: ir.Block) -> Iterator[ir.Operation]:
    """All operations of a block, those of nested regions after the operation that holds them."""
    for view in block.operations:
        operation = view.operation
        yield operation
        for region in operation.regions:
            for inner in region.blocks:
                yield from walk(inner)


def inner_parallels(block: ir.Block) -> list[ir.Operation]:
    """The parallel loops in a block that lie in no other parallel loop of it."""
    found = []
    for view in block.operations:
        operation = view.operation
        if operation.name == "scf.parallel":
            found.append(operation)
        else:
            found += [p for region in operation.regions for b in region.blocks for p in inner_parallels(b)]
    return found


def constant_of(value: ir.Value) -> int | None:
    """The value of an integer constant."""
    owner = value.owner
    if isinstance(owner, ir.Block) or owner.operation.name != "arith.constant":
        return None
    return int(ir.IntegerAttr(owner.operation.attributes["value"]).value)


UNBOUNDED = 1 << 31


def upper_bound(value: ir.Value) -> int:
    """The most that a loop's bound can be: a constant, or a minimum with one."""
    constant = constant_of(value)
    if constant is not None:
        return constant
    owner = value.owner
    if isinstance(owner, ir.Block) or owner.operation.name != "arith.minui":
        return UNBOUNDED
    return min(upper_bound(v) for v in owner.operation.operands)


def is_scratch(value: ir.Value) -> bool:
    return not isinstance(value.owner, ir.Block)


def lane_of(index: ir.Value, iv: ir.Value, extent: int, group: ir.Value) -> Lane | None:
    """To which iteration of a loop over threads (variable `iv`, below `extent`) a position belongs.

    If stride * extent <= modulus, it belongs to j alone: j is ((position - fixed * g) % modulus) / stride.
    """
    lane = position_of(index, iv, group)
    if lane.stride <= 0 or not 0 <= lane.offset < lane.stride or 0 < lane.modulus < lane.stride * extent:
        return None
    return lane


def position_of(value: ir.Value, iv: ir.Value, group: ir.Value | None = None) -> Lane:
    """A position as a sum; what is not a sum or a constant multiple counts as 1 * anything."""
    if value == iv:
        return Lane(1, 0, 0)
    if group is not None and value == group:
        return Lane(0, 0, 0, 1)
    constant = constant_of(value)
    if constant is not None:
        return Lane(0, 0, constant)
    owner = value.owner
    name = None if isinstance(owner, ir.Block) else owner.operation.name
    if name == "arith.index_cast":
        return position_of(owner.operation.operands[0], iv, group)
    if name in ("arith.addi", "arith.muli"):
        a, b = (position_of(v, iv, group) for v in owner.operation.operands)
        if name == "arith.addi":
            return Lane(a.stride + b.stride, gcd(a.modulus, b.modulus), a.offset + b.offset, a.fixed + b.fixed)
        if (b.stride, b.modulus, b.fixed) == (0, 0, 0):
            return Lane(a.stride * b.offset, abs(a.modulus * b.offset), a.offset * b.offset, a.fixed * b.offset)
    return Lane(0, 1, 0)


_ACCESSES = ("memref.load", "memref.store", "gpu.subgroup_mma_load_matrix", "gpu.subgroup_mma_store_matrix")


class GroupMemory:
    """The memory of a kernel whose top-level iterations are threadgroups; `block` is the body of its top-level loop."""

    def __init__(self, block: ir.Block, threads: int):
        self.threads = threads
        self.number = block.arguments[0]
        self.accesses: dict[
            ir.Operation, list[Access]
        ] = {}  # leaf operations outside loops over threads, and those loops
        self.extents: dict[ir.Value, int] = {}  # of scratch: the largest loop over threads that accesses it
        self._collect(block)
        every = [a for found in self.accesses.values() for a in found]
        written = {a.memory for a in every if a.writes}
        self.shared = {a.memory for a in every if a.memory in written and not self._owned(a.memory, every)}
        scratch = {a.memory for a in every if is_scratch(a.memory)}
        self.owned = {m: self._lane(m, every) for m in scratch if self._owned(m, every)}
        self.barriers: dict[ir.Operation, Barrier] = {}
        while self._place(block, []) is None:
            pass

    # -- accesses -----------------------------------------------------------------------------------------------------
    def _collect(self, block: ir.Block) -> None:
        for view in block.operations:
            operation = view.operation
            if operation.name == "scf.parallel":
                self.accesses[operation] = self._of_loop(operation)
            elif operation.name in _ACCESSES:
                self.accesses[operation] = [_access(operation, None)]
            for region in operation.regions if operation.name != "scf.parallel" else ():
                for inner in region.blocks:
                    self._collect(inner)

    def _of_loop(self, loop: ir.Operation) -> list[Access]:
        block = loop.regions[0].blocks[0]
        extent, found = upper_bound(loop.operands[1]), []
        for operation in walk(block):
            if operation.name in ("memref.load", "memref.store"):
                index = operation.operands[len(operation.operands) - 1]
                access = _access(operation, lane_of(index, block.arguments[0], extent, self.number))
                self.extents[access.memory] = max(self.extents.get(access.memory, 0), extent)
                found.append(access)
        return found

    @staticmethod
    def _owned(memory: ir.Value, every: Iterable[Access]) -> bool:
        """Whether each element is accessed by one thread only."""
        kinds = {(a.lane.stride, a.lane.modulus, a.lane.fixed) if a.lane else None for a in every if a.memory == memory}
        return len(kinds) == 1 and None not in kinds

    @staticmethod
    def _lane(memory: ir.Value, every: Iterable[Access]) -> Lane:
        return next(a.lane for a in every if a.memory == memory and a.lane is not None)

    # -- barriers -----------------------------------------------------------------------------------------------------
    def _place(self, block: ir.Block, pending: list[Access]) -> list[Access] | None:
        """Walk in program order with the accesses since the last barrier; None when a barrier was added."""
        for view in block.operations:
            operation = view.operation
            if operation in self.barriers:
                pending = self._after(self.barriers[operation], pending)
            accesses = [a for a in self.accesses.get(operation, ()) if a.memory in self.shared]
            if operation.name == "scf.for":  # before the loop rather than in each iteration
                accesses = [a for b in operation.regions[0].blocks for a in self._inside(b)]
            clashes = [a.memory for a in accesses for b in pending if a.clashes(b)]
            if clashes:
                old = self.barriers.get(operation, Barrier(False, False))
                on_device = any(not is_scratch(m) for m in clashes)
                on_chip = any(is_scratch(m) for m in clashes)
                self.barriers[operation] = Barrier(old.device or on_device, old.threadgroup or on_chip)
                return None
            if operation.name != "scf.for":
                pending = [*pending, *accesses]
            if operation.name == "scf.parallel":
                if operation.results and self.threads > 32:
                    pending = self._after(Barrier(False, True), pending)  # inside the reduction
            elif operation.regions:
                nested = self._place_regions(operation, pending)
                if nested is None:
                    return None
                pending = nested
        return pending

    def _inside(self, block: ir.Block) -> Iterator[Access]:
        """All accesses to shared memory in a block."""
        for operation in walk(block):
            yield from (a for a in self.accesses.get(operation, ()) if a.memory in self.shared)

    def _place_regions(self, operation: ir.Operation, pending: list[Access]) -> list[Access] | None:
        blocks = [b for region in operation.regions for b in region.blocks]
        after = list(pending)
        for block in blocks:
            left = self._place(block, pending)
            if left is None:
                return None
            after += left
        if operation.name != "scf.for":
            return _distinct(after)
        # What one iteration leaves behind, the next one meets.
        again = self._place(blocks[0], _distinct(after))
        return None if again is None else _distinct([*after, *again])

    @staticmethod
    def _after(barrier: Barrier, pending: list[Access]) -> list[Access]:
        return [a for a in pending if not (barrier.threadgroup if is_scratch(a.memory) else barrier.device)]


def _distinct(accesses: Iterable[Access]) -> list[Access]:
    return list(dict.fromkeys(accesses))


def _access(operation: ir.Operation, lane: Lane | None) -> Access:
    """Of a load `[memory, index]` or a store `[value, memory, index]`."""
    writes = operation.name.rpartition(".")[2] in ("store", "subgroup_mma_store_matrix")
    low, high = range_of(operation.operands[len(operation.operands) - 1])
    fragment = "leadDimension" in operation.attributes
    if fragment:
        high += 7 * (int(ir.IntegerAttr(operation.attributes["leadDimension"]).value) + 1)
    return Access(operation.operands[1 if writes else 0], writes, lane, low, high, fragment)


def range_of(value: ir.Value) -> tuple[float, float]:
    """Bounds of a position, from those of the loops around it."""
    owner = value.owner
    if isinstance(owner, ir.Block):
        loop = owner.owner
        own = loop.name in ("scf.for", "scf.parallel") and value == owner.arguments[0]
        return (0, upper_bound(loop.operands[1]) - 1) if own else (-inf, inf)
    operation = owner.operation
    constant = constant_of(value)
    if constant is not None:
        return constant, constant
    if operation.name == "gpu.subgroup_id":
        return 0, int(ir.IntegerAttr(operation.attributes["upper_bound"]).value) - 1
    if operation.name not in ("arith.addi", "arith.muli", "arith.divsi", "arith.remsi"):
        return -inf, inf
    (a, b), (c, d) = (range_of(v) for v in operation.operands)
    if operation.name == "arith.addi":
        return a + c, b + d
    if c != d or c <= 0 or a < 0 or b == inf:
        return -inf, inf
    if operation.name == "arith.muli":
        return a * c, b * c
    return (a // c, b // c) if operation.name == "arith.divsi" else (0, min(b, c - 1))
