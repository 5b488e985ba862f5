"""Takes decisions out of inner loops: what does not change along a loop is decided once, before it.

    %c = cmpi %row, 511                                %c = cmpi %row, 511
    scf.parallel (%j) {                                scf.if %c { scf.parallel (%j) { store (load %a[%j]) } }
      %x = scf.if %c { load %a[%j] }             ->    else      { scf.parallel (%j) { store (load %b[%j]) } }
           else { load %b[%j] }
      store %x
    }

Joined rows and padding are such kernels: each loop that is left is a plain copy, which becomes vectors. (LLVM
unswitches loops only at a level of optimisation that is not worth its time otherwise.)
"""

from __future__ import annotations

from collections.abc import Iterator

from mlxir.dialects.mlir import ir

LARGEST = 400  # operations of the loops that one loop becomes


def unswitch(block: ir.Block) -> None:
    """Unswitch the loops inside `block`, the body of a step's loop, at any depth."""
    for loop in list(_loops(block)):
        _unswitch(loop, LARGEST)


def _loops(block: ir.Block) -> Iterator[ir.Operation]:
    """The innermost parallel loops without results."""
    for view in block.operations:
        operation = view.operation
        inner = [loop for region in operation.regions for body in region.blocks for loop in _loops(body)]
        if operation.name == "scf.parallel" and not inner and not operation.results:
            yield operation
        yield from inner


def _unswitch(loop: ir.Operation, room: int) -> None:
    body = loop.regions[0].blocks[0]
    decisions = [v.operation for v in body.operations if v.operation.name == "scf.if"]
    first = next((d for d in decisions if _invariant(d.operands[0], body)), None)
    if first is None or 2 * _size(body) > room:
        return
    condition = _hoisted(first.operands[0], loop, body)
    same = [n for n, d in enumerate(decisions) if _equal(d.operands[0], condition)]
    ip = ir.InsertionPoint(loop)
    outer = ir.Operation.create("scf.if", operands=[condition], regions=2, ip=ip, loc=loop.location)
    for side in (0, 1):
        block = outer.regions[side].blocks.append()
        copy = loop.clone(ir.InsertionPoint(block))
        ir.Operation.create("scf.yield", ip=ir.InsertionPoint(block), loc=loop.location)
        inside = copy.regions[0].blocks[0]
        taken = [v.operation for v in inside.operations if v.operation.name == "scf.if"]
        for n in same:
            _decide(taken[n], side)
        _unswitch(copy, room // 2)
    loop.erase()


def _size(block: ir.Block) -> int:
    inside = [b for view in block.operations for region in view.operation.regions for b in region.blocks]
    return sum(1 for _ in block.operations) + sum(map(_size, inside))


def _decide(branch: ir.Operation, side: int) -> None:
    """Replace an scf.if by one of its sides."""
    for view in list(branch.regions[side].blocks[0].operations):
        operation = view.operation
        if operation.name == "scf.yield":
            for result, value in zip(branch.results, operation.operands, strict=True):
                result.replace_all_uses_with(value)
        else:
            operation.move_before(branch)
    branch.erase()


def _owner(value: ir.Value, body: ir.Block) -> ir.Operation | None:
    """The operation of `body` that makes a value; None where it comes from outside of the loop."""
    owner = value.owner
    if isinstance(owner, ir.Block):
        return None
    operation = owner.operation
    return operation if operation.block == body else None


def _invariant(value: ir.Value, body: ir.Block) -> bool:
    """Whether a value is computed by arithmetic on what is the same in all iterations."""
    if isinstance(value.owner, ir.Block):
        return value.owner != body
    operation = _owner(value, body)
    if operation is None:
        return True
    # A division must stay inside: where the loop is empty, its divisor may be zero.
    safe = operation.name.startswith("arith.") and "div" not in operation.name and "rem" not in operation.name
    return safe and all(_invariant(v, body) for v in operation.operands)


def _hoisted(value: ir.Value, loop: ir.Operation, body: ir.Block) -> ir.Value:
    """The value, computed before the loop."""
    operation = _owner(value, body)
    if operation is not None:
        for v in operation.operands:
            _hoisted(v, loop, body)
        operation.move_before(loop)
    return value


def _equal(a: ir.Value, b: ir.Value) -> bool:
    """Whether two values are computed in the same way."""
    if a == b:
        return True
    if isinstance(a.owner, ir.Block) or isinstance(b.owner, ir.Block):
        return False
    x, y = a.owner.operation, b.owner.operation
    if x.name != y.name or not x.name.startswith("arith.") or _attributes(x) != _attributes(y):
        return False
    return len(x.operands) == len(y.operands) and all(map(_equal, x.operands, y.operands))


def _attributes(operation: ir.Operation) -> list[tuple[str, ir.Attribute]]:
    found = operation.attributes
    return [(found[n].name, found[n].attr) for n in range(len(found))]
