"""Splits a reduction of many elements to few results in two, so that it runs in parallel and its error stays that of
pairwise summation; and so a matrix product of great depth with few results.

    sum(x: 1000000xf32) {axes=[0]}       ->   sum(sum(reshape(x): 50x20000xf32) {axes=[1]}) {axes=[0]}
    sum(x: 32x28x28x16xf32) {axes=[0,1,2]} ->   sum(sum(x) {axes=[1,2]}) {axes=[0]}
    sum(x: 4096x1024xf32) {axes=[0,1]}   ->   sum(sum(x) {axes=[1]}) {axes=[0]}, where its rows are reduced, too
    matmul(a: 8x65536xf32, b: 65536x8xf32) ->   sum(matmul(a in 16 pieces, b in 16 pieces): 16x8x8xf32) {axes=[0]}

The number of pieces depends on the shape alone, so results do not depend on the machine's threads.
"""

from __future__ import annotations

from math import prod

from mlxir.dialects.mlir import Function, Module, Op, Tensor
from mlxir.dialects.mx.contract import matmul
from mlxir.dialects.symbolic import is_symbolic

FEW_RESULTS = 256  # as many rows keep all threads busy
MANY_ELEMENTS = 1 << 15
LARGE = (
    1 << 20
)  # elements of a reduction over leading axes that is split although it has many results: rows are read whole
MOST_PIECES = 64
FEW_ROWS = 16  # that all threads share
SHORT = 4  # elements of a reduction that is no loop
DEEP, FEW_PRODUCTS = 1 << 13, 1 << 14  # of a matrix product: steps along K, and results


def split_reductions(module: Module) -> None:
    main = module.find("main")
    ops, _ = main.read()
    rows = _rows(ops)
    for op in ops:
        if op.record is matmul:
            _split_depth(main, op)
            continue
        m = main.builder_before(op.operation)
        if (along := _by_rows(op, rows)) is not None:
            (inner,) = m.emit(op.record, [op.operands[0]], {"axes": along})
            (outer,) = m.emit(op.record, [inner], {"axes": tuple(range(len(inner.shape)))})
            replace(op, outer)
            continue
        pieces = 0 if _by_first_axis(op) else _pieces(op)
        if not pieces and not _by_first_axis(op):
            continue
        x, axes = op.operands[0], op.attrs["axes"]
        first, last = axes[0], axes[-1]
        rest = axes[1:]
        if pieces:
            merged, lead = prod(x.shape[first : last + 1]), prod(x.shape[first:last])
            # Where it can be, the last axis stays whole: what depends on the row alone is computed once per row then.
            inside = (lead // pieces, x.shape[last]) if lead % pieces == 0 else (merged // pieces,)
            x = m.reshape(x, shape=(*x.shape[:first], pieces, *inside, *x.shape[last + 1 :]))
            rest = tuple(range(first + 1, first + 1 + len(inside)))
        (inner,) = m.emit(op.record, [x], {"axes": rest})
        (outer,) = m.emit(op.record, [inner], {"axes": (first,)})
        replace(op, outer)


def replace(op: Op, new: Tensor) -> None:
    """Put `new` in the place of an operation's result, also for operations that have been read already."""
    (old,) = op.results
    old.value.replace_all_uses_with(new.value)
    op.operation.erase()
    old.value = new.value


def is_short(op: Op) -> bool:
    """Whether a reduction combines so few elements that it is written out, and fused like an element operation.

    The squared distance of two points is one. Neither a loop nor a kernel is made for it.
    """
    if op.record.kind != "reduction":
        return False
    count = prod(op.operands[0].shape[a] for a in op.attrs["axes"])
    return not is_symbolic(count) and 1 <= count <= SHORT


def _by_first_axis(op: Op) -> bool:
    """Whether to reduce the first axis in a step of its own: the shape stays, so the operand can be one more result.

    That is the gradient of a bias, (images, height, width, channels) to channels.
    """
    if op.record.kind != "reduction" or len(op.attrs["axes"]) < 2:
        return False
    x, axes, results = op.operands[0], op.attrs["axes"], op.results[0].aval.size
    if is_symbolic(x.aval.size):
        return False
    leading = tuple(axes) == tuple(range(len(axes))) and len(axes) < len(x.shape)
    return leading and results <= FEW_RESULTS and 8 <= x.shape[0] <= 1024 and x.aval.size >= MANY_ELEMENTS


def _rows(ops: list[Op]) -> dict[tuple[int, ...], tuple[int, ...]]:
    """The shapes whose rows a reduction walks as a whole, with the axes of a row."""
    found = {}
    for op in ops:
        if op.record.kind != "reduction" or is_symbolic(op.operands[0].aval.size) or _pieces(op):
            continue
        shape, axes = op.operands[0].shape, tuple(sorted(op.attrs["axes"]))
        if axes and axes[0] > 0 and axes == tuple(range(axes[0], len(shape))):
            found[shape] = axes
    return found


def _by_rows(op: Op, rows: dict[tuple[int, ...], tuple[int, ...]]) -> tuple[int, ...] | None:
    """The axes of a row where everything is reduced, of a shape whose rows another reduction walks.

    Fusion then makes both one kernel: the loss of a layer norm reads what its gradient reads.
    """
    if op.record.kind != "reduction" or is_symbolic(op.operands[0].aval.size):
        return None
    shape = op.operands[0].shape
    along = rows.get(shape)
    if along is None or len(op.attrs["axes"]) < len(shape) or prod(shape) < MANY_ELEMENTS:
        return None
    return along if FEW_ROWS <= prod(shape[: along[0]]) <= MANY_ELEMENTS else None


def _pieces(op: Op) -> int:
    """Into how many; 0 where it stays whole. Only adjacent axes can be split as one."""
    if op.record.kind != "reduction" or not op.attrs["axes"]:
        return 0
    x, axes = op.operands[0], op.attrs["axes"]
    if list(axes) != list(range(axes[0], axes[0] + len(axes))):
        return 0
    count = prod(x.shape[a] for a in axes)
    if is_symbolic(count):  # no piece fits all sizes
        return 0
    results = op.results[0].aval.size
    if axes[0] == 0 and axes[-1] < len(x.shape) - 1 and results > FEW_RESULTS and count * results >= LARGE:
        return next((n for n in (16, 8, 12, 10, 4) if count % n == 0 and count >= 8 * n), 0)
    if results > FEW_RESULTS or count < MANY_ELEMENTS:
        return 0
    lead = count // x.shape[axes[-1]]
    fitting = [n for n in range(MOST_PIECES, 3, -1) if count % n == 0]
    return next((n for n in fitting if lead % n == 0), fitting[0] if fitting else 0)


def _split_depth(main: Function, op: Op) -> None:
    """Products of pieces of K as one batch, whose results are added up. Those of 2-byte floats would be rounded."""
    (a, b), (result,) = op.operands, op.results
    if len(a.shape) != 2 or len(b.shape) != 2 or any(is_symbolic(n) for n in (*a.shape, *b.shape)):
        return
    ta, tb = op.attrs["ta"], op.attrs["tb"]
    depth = a.shape[0 if ta else 1]
    pieces = next((n for n in range(16, 3, -1) if depth % n == 0), 0)
    if depth < DEEP or not pieces or not 0 < result.aval.size <= FEW_PRODUCTS or result.dtype.size < 4:
        return
    m = main.builder_before(op.operation)

    def batch(x: Tensor, axis: int) -> Tensor:
        """K, which is `axis`, in pieces that come first."""
        shape = (*x.shape[:axis], pieces, depth // pieces, *x.shape[axis + 1 :])
        return m.moved(m.reshape(x, shape=shape), axis, 0)

    parts = m.matmul(batch(a, 0 if ta else 1), batch(b, 1 if tb else 0), ta=ta, tb=tb)
    replace(op, m.sum(parts, axes=(0,)))
