"""Variances of large arrays in one pass over memory: by blocks that stay in the cache.

    s = f(sum(x))                            p  = sum(x')                   x' = x in blocks of K elements
    v = sum((x - s)^2)                 ->    m  = p / K                     about the mean of each block
                                             r  = sum(x' - m)
                                             d  = sum((x' - m)^2)
                                             s  = f(sum(p))
                                             v  = sum(d + (m - s) (2 r + K (m - s)))

A block of a row is read twice, the second time from L1. A block of columns would come from L2: there m is the mean of
SAMPLES of its rows, so that one loop takes all three sums. The last line is an identity whatever m and s are (after
Chan, Golub, LeVeque: Updating formulae and a pairwise algorithm for computing sample variances, 1979), and little
cancels in it: if m is off the mean of the block, so are the samples, and d is at most K / SAMPLES times the sum of the
squared deviations from that mean.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from mlxir.compiler.passes.simplify import remove_dead
from mlxir.compiler.passes.split_reductions import FEW_RESULTS, LARGE, replace
from mlxir.dialects.mlir import Function, Module, Op, Tensor
from mlxir.dialects.symbolic import is_symbolic

BLOCK = 1 << 12  # elements of a block along the last axis: half of L1
FEWEST = 1 << 8
ROWS = range(64, 15, -1)  # of a block of columns
SAMPLES = 4  # of them; as few as are added without a loop


class Blocks(NamedTuple):
    """`shape` of the array in blocks, whose number is axis `first`; `inside` are the axes within a block, whose mean
    may be that of `samples` along the first of them.
    """

    shape: tuple[int, ...]
    first: int
    inside: tuple[int, ...]
    samples: int = 0


def one_pass_moments(module: Module) -> None:
    main = module.find("main")
    ops, _ = main.read()
    producer = {id(t): op for op in ops for t in op.results}
    sums: dict[tuple[int, tuple[int, ...]], Op] = {}  # so far, by what they sum
    cut: dict[int, tuple[Tensor, Tensor]] = {}  # the first sum -> the array in blocks, and their sums
    for op in ops:
        if op.record.name != "sum":
            continue
        sums.setdefault((id(op.operands[0]), op.attrs["axes"]), op)
        parts = _deviations(op, producer)
        if parts is None:
            continue
        x, centre = parts
        first = sums.get((id(x), op.attrs["axes"]))
        blocks = _blocks(x, op.attrs["axes"]) if first is not None else None
        if first is not None and blocks is not None:
            if id(first) not in cut:
                cut[id(first)] = _in_blocks(main, first, blocks)
            _about_means(main, op, centre, blocks, *cut[id(first)])
    if cut:
        remove_dead(main)


def _deviations(op: Op, producer: dict[int, Op]) -> tuple[Tensor, Tensor] | None:
    """x and s of sum((x - s)^2), where s is the same for all that is summed."""
    square = producer.get(id(op.operands[0]))
    if square is None or square.record.name not in ("square", "multiply"):
        return None
    if len({id(t) for t in square.operands}) > 1:
        return None
    difference = producer.get(id(square.operands[0]))
    if difference is None or difference.record.name != "subtract":
        return None
    x, s = difference.operands
    offset = len(x.shape) - len(s.shape)
    if x.shape != square.results[0].shape or any(a >= offset and s.shape[a - offset] != 1 for a in op.attrs["axes"]):
        return None
    return x, s


def _blocks(x: Tensor, axes: tuple[int, ...]) -> Blocks | None:
    """How to cut a large array of floats; None where a row stays in the cache anyway, or cannot be cut."""
    shape, first, last, samples = x.shape, axes[0] if axes else 0, axes[-1] if axes else 0, 0
    if is_symbolic(x.aval.size) or not x.dtype.is_float or x.dtype.size < 4 or x.aval.size < LARGE:
        return None
    if not axes or list(axes) != list(range(first, last + 1)):
        return None
    count = prod(shape[first : last + 1])
    results = x.aval.size // count
    if first == 0 and last < len(shape) - 1:
        if len(axes) > 1 and results <= FEW_RESULTS and 8 <= shape[0] <= 1024:
            return Blocks(shape, 0, axes[1:])
        inside, samples = next((n for n in ROWS if count % n == 0), 0), SAMPLES
    else:
        inside = _run(shape[last], count) if results <= FEW_RESULTS else 0
    if not inside or inside == count:
        return None
    return Blocks((*shape[:first], count // inside, inside, *shape[last + 1 :]), first, (first + 1,), samples)


def _run(last: int, count: int) -> int:
    """How many elements along the last axis are a block: it is cut, or several of its rows are one."""
    if last > BLOCK:
        return next((n for n in range(BLOCK, FEWEST - 1, -1) if last % n == 0), 0)
    rows = next(n for n in range(max(BLOCK // last, 1), 0, -1) if (count // last) % n == 0)
    return last * rows if last * rows >= FEWEST else 0


def _in_blocks(main: Function, op: Op, blocks: Blocks) -> tuple[Tensor, Tensor]:
    """Take a sum in two steps: what it sums in blocks, and the sums of these."""
    m = main.builder_before(op.operation)
    x = m.reshaped(op.operands[0], blocks.shape)
    partial = m.sum(x, axes=blocks.inside)
    replace(op, m.sum(partial, axes=(blocks.first,)))
    return x, partial


def _about_means(main: Function, op: Op, centre: Tensor, blocks: Blocks, x: Tensor, partial: Tensor) -> None:
    m, axes = main.builder_before(op.operation), op.attrs["axes"]
    size = prod(blocks.shape[a] for a in blocks.inside)

    def times(a: Tensor, factor: float) -> Tensor:
        return m.multiply(a, m.scalar(factor, a.dtype))

    mean = times(partial, 1 / size)
    if blocks.samples:
        (axis,), rank, step = blocks.inside, len(blocks.shape), size // blocks.samples
        stop = tuple(step * blocks.samples if a == axis else n for a, n in enumerate(blocks.shape))
        strides = tuple(step if a == axis else 1 for a in range(rank))
        samples = m.slice(x, start=(0,) * rank, stop=stop, strides=strides)
        mean = m.sum(times(samples, 1 / blocks.samples), axes=(axis,))
    difference = m.subtract(x, m.expanded(mean, blocks.inside))
    rest = m.sum(difference, axes=blocks.inside)
    squares = m.sum(m.square(difference), axes=blocks.inside)
    aligned = (1,) * (len(op.operands[0].shape) - len(centre.shape)) + tuple(centre.shape)
    kept = tuple(n for a, n in enumerate(aligned) if a not in axes[1:])  # one of length 1 for the blocks
    away = m.subtract(mean, m.reshaped(centre, kept))
    between = m.multiply(away, m.add(times(rest, 2), times(away, size)))
    total = m.sum(m.add(squares, between), axes=(blocks.first,))
    replace(op, total)
