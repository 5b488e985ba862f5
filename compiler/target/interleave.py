"""Loops over long chains of arithmetic compute several vectors at once.

    scf.parallel (%i) { ... erf ... }    ->    scf.for (%i) { ... erf ... } {interleave 4}

A polynomial is a chain in which each step waits four cycles for the one before. LLVM sees that the constants fill the
registers, and computes one vector at a time; then the processor waits. Constants read from memory cost nothing.

Loops that store bfloat16 are told the width of a vector: LLVM takes a conversion that is one instruction for dear, and
would compute a quarter of a vector at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from mlxir.dialects.mlir import context, ir
from mlxir.dialects.symbolic import is_symbolic

VECTORS = 4
LONG = 1 << 12  # iterations: what is left over of several vectors is computed slowly
LANES = 16
WHOLE = VECTORS * LANES  # a multiple of it leaves nothing over

with context, ir.Location.unknown():
    _BF16 = ir.BF16Type.get()
    _COUNT = f"interleave = #llvm.loop_interleave<count = {VECTORS} : i32>"
    _WIDTH = f"vectorize = #llvm.loop_vectorize<disable = false, width = {LANES} : i32>"
    _INTERLEAVED, _WIDE, _BOTH = (
        ir.Attribute.parse(f"#llvm.loop_annotation<{what}>") for what in (_COUNT, _WIDTH, f"{_WIDTH}, {_COUNT}")
    )


def interleave(loop: ir.Operation, iterations: int, chains: Collection[str]) -> None:
    """Rewrite a step's loop, or the innermost loops in it, where an operation of the names `chains` is computed for
    each of many elements.
    """
    inner = list(_innermost(loop))
    for one in inner or [loop]:
        count = _extent(one) if inner else 0 if is_symbolic(iterations) else iterations
        body = one.regions[0].blocks[0]
        several = count >= LONG or (count and count % WHOLE == 0)
        several = several and any(v.operation.name in chains for v in body.operations)
        wide = any(v.operation.name == "arith.truncf" and v.operation.result.type == _BF16 for v in body.operations)
        if several or wide:
            _serialise(one, _INTERLEAVED if not wide else _BOTH if several else _WIDE)


def _innermost(loop: ir.Operation) -> Iterator[ir.Operation]:
    """The loops inside a loop that have none inside; of those, the parallel ones without results."""
    for region in loop.regions:
        for view in region.blocks[0].operations if len(region.blocks) else ():
            operation = view.operation
            if operation.name in ("scf.if", "scf.for", "scf.parallel"):
                inside = list(_innermost(operation))
                yield from inside
                if operation.name == "scf.parallel" and not inside and not operation.results:
                    yield operation


def _extent(loop: ir.Operation) -> int:
    """The number of iterations if it is known; 0 if not."""
    owner = loop.operands[1].owner
    if isinstance(owner, ir.Block) or owner.operation.name != "arith.constant":
        return 0
    return ir.IntegerAttr(owner.operation.attributes["value"]).value


def _serialise(loop: ir.Operation, annotation: ir.Attribute) -> None:
    body = loop.regions[0].blocks[0]
    *operations, _ = [view.operation for view in body.operations]  # the last one is scf.reduce
    serial = ir.Operation.create(
        "scf.for", operands=list(loop.operands), regions=1, ip=ir.InsertionPoint(loop), loc=loop.location
    )
    block = serial.regions[0].blocks.append(body.arguments[0].type, arg_locs=[loop.location])
    for operation in operations:
        block.append(operation)
    body.arguments[0].replace_all_uses_with(block.arguments[0])
    ir.Operation.create("scf.yield", ip=ir.InsertionPoint(block), loc=loop.location)
    serial.attributes["loop_annotation"] = annotation
    loop.erase()
