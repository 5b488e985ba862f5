"""Results larger than the caches are written past them.

    scf.parallel (%i) = %lo to %hi {     ->    scf.for (%s) = %lo to %whole step 1024 {
      store %x, %out[%i]                         scf.parallel (%j) = 0 to 1024 { store %x, %block[%j] }   %i = %s + %j
    }                                            vector.store %block, %out[%s] {nontemporal}              if aligned
                                               }
                                               scf.parallel (%i) = %whole to %hi { store %x, %out[%i] }

A line that is stored to as usual is first read from memory, and drives others out of the cache. Where a step touches
more than the cache holds, nobody will find them there anyway. (LLVM's vectoriser refuses nontemporal stores of single
elements; a block in L1 between its loop and the stores costs next to nothing, since memory is what such a step waits
for.) A fence at the end of a step makes its results visible before the threads meet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mlxir.dialects.mlir import context, ir

LINE = 64  # bytes that are written at once
BLOCK = 1024  # elements; of several results together they stay in L1
SHORTEST = 256  # iterations of a loop that is worth it

with context, ir.Location.unknown():
    _INDEX = ir.IndexType.get()
    _I1 = ir.IntegerType.get_signless(1)
    _I64 = ir.IntegerType.get_signless(64)
    _TRUE = ir.BoolAttr.get(True)

_SEQUENTIAL = 7  # the order of a fence in LLVM
_UNKNOWN = (1 << 62) - 1  # iterations


def stream(function: ir.Operation, step: ir.Operation, threshold: int) -> ir.Operation:
    """Rewrite the loops of a step (or the step's own) that store to large buffers; the step's main loop then."""
    block = function.regions[0].blocks[0]
    sizes = [_bytes(a.type) for a in block.arguments]
    if sum(sizes) < threshold:
        return step
    large = [a for a, size in zip(block.arguments, sizes, strict=True) if 4 * size >= threshold and _only_stored(a)]
    blocks = None
    for loop in list(_innermost(step)) or [step]:
        stores = [s for s in _stores(loop) if any(s.operands[1] == a for a in large)]
        if stores and _most(loop.operands[1]) >= SHORTEST:
            own = loop == step
            blocks = _cut(loop, stores, block)
            step = blocks if own else step
    if blocks is not None:
        *_, last = block.operations
        order = ir.IntegerAttr.get(_I64, _SEQUENTIAL)
        ir.Operation.create("llvm.fence", attributes={"ordering": order}, ip=ir.InsertionPoint(last))
    return step


def _bytes(kind: ir.Type) -> int:
    if not isinstance(kind, ir.MemRefType) or not kind.has_static_shape:
        return 0
    return int(kind.shape[0]) * _width(kind)


def _width(kind: ir.MemRefType) -> int:
    """Bytes of an element."""
    return int(kind.element_type.width) // 8


def _only_stored(buffer: ir.Value) -> bool:
    uses = list(buffer.uses)
    return bool(uses) and all(u.owner.name == "memref.store" and u.owner.operands[0] != buffer for u in uses)


def _innermost(loop: ir.Operation) -> Iterator[ir.Operation]:
    """The loops inside a loop that have none inside; of those, the parallel ones without results."""
    for region in loop.regions:
        for view in region.blocks[0].operations if len(region.blocks) else ():
            operation = view.operation
            inside = list(_innermost(operation))
            yield from inside
            if operation.name == "scf.parallel" and not inside and not operation.results:
                yield operation


def _stores(loop: ir.Operation) -> list[ir.Operation]:
    """The stores of a loop's body to consecutive places."""
    body = loop.regions[0].blocks[0]
    found = [v.operation for v in body.operations if v.operation.name == "memref.store"]
    return [s for s in found if _consecutive(s.operands[2], body)]


def _inside(value: ir.Value, body: ir.Block) -> ir.Operation | None:
    owner = value.owner
    return None if isinstance(owner, ir.Block) or owner.operation.block != body else owner.operation


def _consecutive(index: ir.Value, body: ir.Block) -> bool:
    """Whether an index is the loop's variable plus what does not depend on it."""
    if index == body.arguments[0]:
        return True
    made = _inside(index, body)
    if made is None or made.name != "arith.addi":
        return False
    moving = [v for v in made.operands if _moves(v, body)]
    return len(moving) == 1 and _consecutive(moving[0], body)


def _moves(value: ir.Value, body: ir.Block) -> bool:
    made = _inside(value, body)
    return value == body.arguments[0] or (made is not None and any(_moves(v, body) for v in made.operands))


def _at(value: ir.Value, body: ir.Block, start: ir.Value, ip: ir.InsertionPoint) -> ir.Value:
    """What a value of a loop's body is where its variable is `start`, computed before it."""
    if value == body.arguments[0]:
        return start
    made = _inside(value, body)
    if made is None:
        return value
    copy = made.clone(ip)
    for n, operand in enumerate(made.operands):
        copy.operands[n] = _at(operand, body, start, ip=ir.InsertionPoint(copy))
    return copy.results[0]


class _Maker:
    """Makes index arithmetic and loops at one place."""

    def __init__(self, ip: ir.InsertionPoint):
        self.ip = ip

    def constant(self, n: int) -> ir.Value:
        return self.op("arith.constant", [], [_INDEX], value=ir.IntegerAttr.get(_INDEX, n)).result

    def op(
        self, name: str, operands: Sequence[ir.Value], results: Sequence[ir.Type] = (), **attributes: Any
    ) -> ir.Operation:
        return ir.Operation.create(
            name, results=results, operands=operands, attributes=attributes, ip=self.ip, loc=ir.Location.unknown()
        )

    def index(self, name: str, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.op(f"arith.{name}", [a, b], [_INDEX]).result

    def loop(self, low: ir.Value, high: ir.Value, step: ir.Value) -> tuple[ir.Operation, _Maker, ir.Value]:
        """`scf.for`: itself, what fills its body, and its variable."""
        loop = ir.Operation.create(
            "scf.for", operands=[low, high, step], regions=1, ip=self.ip, loc=ir.Location.unknown()
        )
        body = loop.regions[0].blocks.append(_INDEX, arg_locs=[ir.Location.unknown()])
        end = ir.Operation.create("scf.yield", ip=ir.InsertionPoint(body), loc=ir.Location.unknown())
        return loop, _Maker(ir.InsertionPoint(end)), body.arguments[0]


def _extent(loop: ir.Operation) -> int:
    """The number of iterations of a loop from 0; a large one where it is not known."""
    low, high = (loop.operands[n].owner for n in (0, 1))
    if any(isinstance(o, ir.Block) or o.operation.name != "arith.constant" for o in (low, high)):
        return _UNKNOWN
    return int(ir.IntegerAttr(high.operation.attributes["value"]).value)


def _most(n: ir.Value) -> int:
    """A bound of a number: a constant, or the least of several."""
    if isinstance(n.owner, ir.Block):
        return _UNKNOWN
    made = n.owner.operation
    if made.name == "arith.constant":
        return int(ir.IntegerAttr(made.attributes["value"]).value)
    return min(map(_most, made.operands)) if made.name == "arith.minsi" else _UNKNOWN


def _cut(loop: ir.Operation, stores: Sequence[ir.Operation], entry: ir.Block) -> ir.Operation:
    """Make blocks of a loop, and a loop of what is left over; the loop of the blocks."""
    body, extent = loop.regions[0].blocks[0], _extent(loop)
    size = min(BLOCK, extent // LINE * LINE)
    top, outer = _Maker(ir.InsertionPoint.at_block_begin(entry)), _Maker(ir.InsertionPoint(loop))
    blocks = [_block(top, s.operands[1].type, size) for s in stores]
    low, high, step = loop.operands[0], loop.operands[1], outer.constant(size)
    rest = outer.index("remsi", outer.index("subi", high, low), step)
    whole = outer.index("subi", high, rest)
    main, inside, start = outer.loop(low, whole, step)
    zero = inside.constant(0)
    copy = loop.clone(inside.ip)
    copy.operands[0], copy.operands[1] = zero, step
    _fill(copy, start, [n for n, v in enumerate(body.operations) if v.operation in stores], blocks)
    for store, block in zip(stores, blocks, strict=True):
        first = _at(store.operands[2], body, start, inside.ip)
        _flush(inside, block, store.operands[1], first, size)
    if extent % size:
        loop.operands[0] = whole
    else:
        loop.erase()
    return main


def _block(at: _Maker, kind: ir.MemRefType, size: int) -> ir.Value:
    block = ir.MemRefType.get([size], kind.element_type)
    segments = ir.DenseI32ArrayAttr.get([0, 0])
    alignment = ir.IntegerAttr.get(_I64, LINE)
    return at.op("memref.alloca", [], [block], operandSegmentSizes=segments, alignment=alignment).result


def _fill(copy: ir.Operation, start: ir.Value, stores: Sequence[int], blocks: Sequence[ir.Value]) -> None:
    """Make a copied loop one over a block: counted from `start`, with these of its operations storing to blocks."""
    body = copy.regions[0].blocks[0]
    operations, count = [v.operation for v in body.operations], body.arguments[0]
    place = _Maker(ir.InsertionPoint(operations[0])).index("addi", start, count)
    count.replace_all_uses_except(place, place.owner.operation)
    for n, block in zip(stores, blocks, strict=True):
        operations[n].operands[1], operations[n].operands[2] = block, count


def _flush(at: _Maker, block: ir.Value, buffer: ir.Value, first: ir.Value, size: int) -> None:
    """Copy a block to a buffer, past the caches if its place there is aligned."""
    width = _width(buffer.type)
    address = at.op("memref.extract_aligned_pointer_as_index", [buffer], [_INDEX]).result
    address = at.index("addi", address, at.index("muli", first, at.constant(width)))
    rest = at.index("remui", address, at.constant(LINE))
    aligned = at.op("arith.cmpi", [rest, at.constant(0)], [_I1], predicate=ir.IntegerAttr.get(_I64, 0)).result
    branch = ir.Operation.create("scf.if", operands=[aligned], regions=2, ip=at.ip, loc=ir.Location.unknown())
    lanes = ir.VectorType.get([LINE // width], buffer.type.element_type)
    for region, past in zip(branch.regions, (True, False), strict=True):
        side = region.blocks.append()
        end = ir.Operation.create("scf.yield", ip=ir.InsertionPoint(side), loc=ir.Location.unknown())
        here = _Maker(ir.InsertionPoint(end))
        _, inside, place = here.loop(here.constant(0), here.constant(size), here.constant(LINE // width))
        value = inside.op("vector.load", [block, place], [lanes]).result
        where = inside.index("addi", first, place)
        how = {"nontemporal": _TRUE, "alignment": ir.IntegerAttr.get(_I64, LINE)} if past else {}
        inside.op("vector.store", [value, buffer, where], **how)
