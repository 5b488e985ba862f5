"""Splits a reduction of many elements to few results in two, so that it runs in parallel and its error stays that of
pairwise summation.

    sum(x: 1000000xf32) {axes=[0]}       ->   sum(sum(reshape(x): 50x20000xf32) {axes=[1]}) {axes=[0]}
    sum(x: 32x28x28x16xf32) {axes=[0,1,2]} ->   sum(sum(x) {axes=[1,2]}) {axes=[0]}

The number of pieces depends on the shape alone, so results do not depend on the machine's threads.
"""

from __future__ import annotations

from math import prod

from mlxir.dialects.mlir import Module, Op
from mlxir.dialects.symbolic import SymInt

FEW_RESULTS = 256  # as many rows keep all threads busy
MANY_ELEMENTS = 1 << 15
LARGE = (
    1 << 20
)  # elements of a reduction over leading axes that is split although it has many results: rows are read whole
MOST_PIECES = 64


def split_reductions(module: Module) -> None:
    main = module.find("main")
    ops, _ = main.read()
    for op in ops:
        pieces = 0 if _by_first_axis(op) else _pieces(op)
        if not pieces and not _by_first_axis(op):
            continue
        m = main.builder_before(op.operation)
        x, axes = op.operands[0], op.attrs["axes"]
        first, last = axes[0], axes[-1]
        rest = axes[1:]
        if pieces:
            merged = prod(x.shape[first : last + 1])
            x = m.reshape(x, shape=(*x.shape[:first], pieces, merged // pieces, *x.shape[last + 1 :]))
            rest = (first + 1,)
        (inner,) = m.emit(op.record, [x], {"axes": rest})
        (outer,) = m.emit(op.record, [inner], {"axes": (first,)})
        op.operation.results[0].replace_all_uses_with(outer.value)
        op.operation.erase()


def _by_first_axis(op: Op) -> bool:
    """Whether to reduce the first axis in a step of its own: the shape stays, so the operand can be one more result.

    That is the gradient of a bias, (images, height, width, channels) to channels.
    """
    if op.record.kind != "reduction" or len(op.attrs["axes"]) < 2:
        return False
    x, axes, results = op.operands[0], op.attrs["axes"], op.results[0].aval.size
    if type(x.aval.size) is SymInt:
        return False
    leading = tuple(axes) == tuple(range(len(axes))) and len(axes) < len(x.shape)
    return leading and results <= FEW_RESULTS and 8 <= x.shape[0] <= 1024 and x.aval.size >= MANY_ELEMENTS


def _pieces(op: Op) -> int:
    """Into how many; 0 where it stays whole. Only adjacent axes can be split as one."""
    if op.record.kind != "reduction" or not op.attrs["axes"]:
        return 0
    x, axes = op.operands[0], op.attrs["axes"]
    if list(axes) != list(range(axes[0], axes[0] + len(axes))):
        return 0
    count = prod(x.shape[a] for a in axes)
    if type(count) is SymInt:  # no piece fits all sizes
        return 0
    results = op.results[0].aval.size
    if axes[0] == 0 and axes[-1] < len(x.shape) - 1 and results > FEW_RESULTS and count * results >= LARGE:
        return next((n for n in (16, 8, 12, 10, 4) if count % n == 0 and count >= 8 * n), 0)
    if results > FEW_RESULTS or count < MANY_ELEMENTS:
        return 0
    return next((n for n in range(MOST_PIECES, 3, -1) if count % n == 0), 0)
