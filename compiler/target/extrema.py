"""Maxima and minima of floats as those of integers, in inner loops.

    %m = scf.parallel (%j) init(-inf) {              %k = scf.parallel (%j) init(key(-inf)) {
      scf.reduce(%x) { maximumf }              ->      scf.reduce(key(%x)) { maxsi }
    }                                                }
                                                     %m = float(%k)

NaN wins, and +0 is above -0. In floats that takes six instructions for each vector, four of which wait for each other.
As integers in the order of the floats, with the NaNs of either sign on top, it takes four, and only the last one waits.
"""

from __future__ import annotations

from collections.abc import Iterator

from mlxir.dialects.mlir import context, ir

with context, ir.Location.unknown():
    _F32, _I32 = ir.F32Type.get(), ir.IntegerType.get_signless(32)

EXTREMA = ("arith.maximumf", "arith.minimumf")
_MASK, _SHIFT, _SIGN = 0x7FFFFFFF, 31, -0x80000000
_NANS = 0x007FFFFF  # how many floats are NaN, of each sign


def order_extrema(block: ir.Block) -> None:
    """Rewrite the reducing parallel loops inside `block`, the body of a step's loop."""
    for loop in list(_reducing(block)):
        *_, last = loop.regions[0].blocks[0].operations
        reduce = last.operation
        for n, region in enumerate(reduce.regions):
            name = _combine(region)
            if name in EXTREMA and loop.results[n].type == _F32:
                _order(loop, reduce, n, name == "arith.minimumf")


def _reducing(block: ir.Block) -> Iterator[ir.Operation]:
    for view in block.operations:
        operation = view.operation
        for region in operation.regions:
            for body in region.blocks:
                yield from _reducing(body)
        if operation.name == "scf.parallel" and operation.results:
            yield operation


def _combine(region: ir.Region) -> str:
    """The name of the one operation by which a region combines; empty where there are more."""
    operations = [view.operation.name for view in region.blocks[0].operations]
    return operations[0] if len(operations) == 2 else ""


def _constant(value: int, ip: ir.InsertionPoint) -> ir.Value:
    return ir.Operation.create(
        "arith.constant", results=[_I32], attributes={"value": ir.IntegerAttr.get(_I32, value)}, ip=ip
    ).result


def _int(name: str, a: ir.Value, b: int, ip: ir.InsertionPoint) -> ir.Value:
    return ir.Operation.create(f"arith.{name}", results=[_I32], operands=[a, _constant(b, ip)], ip=ip).result


def _folded(bits: ir.Value, ip: ir.InsertionPoint) -> ir.Value:
    """bits ^ (bits >> 31 & 0x7fffffff): its own inverse, makes integers of floats in their order."""
    mask = _int("andi", _int("shrsi", bits, _SHIFT, ip), _MASK, ip)
    return ir.Operation.create("arith.xori", results=[_I32], operands=[bits, mask], ip=ip).result


def _key(value: ir.Value, least: bool, ip: ir.InsertionPoint) -> ir.Value:
    """Integers in the order of the floats (their reverse for `least`), NaNs on top: the negative ones wrap around."""
    bits = ir.Operation.create("arith.bitcast", results=[_I32], operands=[value], ip=ip).result
    if least:
        bits = _int("xori", bits, _SIGN, ip)
    return _int("subi", _folded(bits, ip), _NANS, ip)


def _float(raised: ir.Value, least: bool, ip: ir.InsertionPoint) -> ir.Value:
    """The float of a key to which the number of NaNs has been added back."""
    bits = _folded(raised, ip)
    if least:
        bits = _int("xori", bits, _SIGN, ip)
    return ir.Operation.create("arith.bitcast", results=[_F32], operands=[bits], ip=ip).result


def _order(loop: ir.Operation, reduce: ir.Operation, n: int, least: bool) -> None:
    """Make the n-th extremum of a loop one of integers."""
    result, block = loop.results[n], reduce.regions[n].blocks[0]
    loop.operands[3 + n] = _key(loop.operands[3 + n], least, ir.InsertionPoint(loop))
    reduce.operands[n] = _key(reduce.operands[n], least, ir.InsertionPoint(reduce))
    old, last = (view.operation for view in block.operations)
    for argument in block.arguments:
        argument.set_type(_I32)
    ip = ir.InsertionPoint(old)
    last.operands[0] = ir.Operation.create("arith.maxsi", results=[_I32], operands=list(block.arguments), ip=ip).result
    old.erase()
    result.set_type(_I32)
    following = ir.InsertionPoint.after(loop)
    raised = _int("addi", result, _NANS, following)
    result.replace_all_uses_except(_float(raised, least, following), raised.owner.operation)
