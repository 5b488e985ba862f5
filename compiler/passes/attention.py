"""Attention, before it is fused: causal masks found, what no kernel takes taken apart, results laid out as it is read.

    %m = greater_equal (arange), (arange)    %o = attention %q, %k, %v, %m     ->     %o = attention {causal}
    attention of 1000 features                                                 ->     its decomposition
    %o = attention    %t = transpose %o [0, 2, 1, 3]                           ->     %t = attention {swapped}
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mlxir.compiler.reference import compute
from mlxir.dialects.mlir import Module, Op, Tensor
from mlxir.dialects.mx.attention import HIDDEN
from mlxir.runtime.dtypes import bool_

SWAP = (0, 2, 1, 3)
MOST_SCORES = 1 << 22  # of a mask that is computed while compiling
NAMES = ("attention", "attention_grad")


def decompose(module: Module, fits: Callable[[Op], bool]) -> None:
    """Composites that have a kernel become plain operations, but for those that the target's kernel `fits`."""
    main = module.find("main")
    ops, _ = main.read()
    producer = {id(t): op for op in ops for t in op.results}
    current: dict[int, Tensor] = {}

    def replace(op: Op, results: list[Tensor]) -> None:
        current.update((id(old), new) for old, new in zip(op.results, results, strict=True))
        _replace(op, results)

    for op in ops:
        if op.record.kind != "composite" or op.record.lowering is None:
            continue
        m = main.builder_before(op.operation)
        operands = [current.get(id(t), t) for t in op.operands]
        for t in operands:
            t.m = m
        if not fits(op):
            replace(op, op.record.decompose(m, *operands, **op.attrs))
        elif (fill := _causal(op, producer)) is not None:
            operands[3] = m.full(value=True, shape=(1, 1, 1, 1), dtype=bool_)
            replace(op, m.emit(op.record, operands, {**op.attrs, "causal": True, "fill": fill}))


def _replace(op: Op, results: list[Tensor]) -> None:
    for old, new in zip(op.operation.results, results, strict=True):
        old.replace_all_uses_with(new.value)
    op.operation.erase()


# -- causal masks ----------------------------------------------------------------------------------------------------
def _causal(op: Op, producer: dict[int, Op]) -> float | None:
    """The `fill` of the causal attention that this one is: its mask is that of all heads and depends on nothing."""
    q, k, _, mask = op.operands[:4]
    steps, length = q.shape[2], k.shape[2]
    if op.record.name not in NAMES or op.attrs["causal"] or mask.shape != (1, 1, steps, length):
        return None
    if steps > length or steps * length > MOST_SCORES or not _depends_on_nothing(mask, producer):
        return None
    values = _evaluate(mask, producer)[0, 0]
    visible = np.tri(steps, length, length - steps, dtype=bool)
    if values.dtype == bool:
        return op.attrs["fill"] if np.array_equal(values, visible) else None
    hidden = values[~visible].astype(np.float64)
    same = not values[visible].any() and len(np.unique(hidden)) == 1 and hidden[0] <= HIDDEN
    return float(hidden[0]) if same else None


def _depends_on_nothing(t: Tensor, producer: dict[int, Op]) -> bool:
    op = producer.get(id(t))
    if op is None or op.record.lowering != "element" or op.record.kind == "control":
        return False
    return all(_depends_on_nothing(x, producer) for x in op.operands)


def _evaluate(t: Tensor, producer: dict[int, Op]) -> np.ndarray:
    op = producer[id(t)]
    arrays = [_evaluate(x, producer) for x in op.operands]
    return compute(op.record, arrays, op.attrs, [r.aval for r in op.results])[0]


# -- layouts ---------------------------------------------------------------------------------------------------------
def swap(module: Module) -> None:
    """Where results with features are read with time before heads, the kernels write them so.

    Other readers, which are loops over elements, read them through a transpose.
    """
    main = module.find("main")
    ops, results = main.read()
    kept, readers = {id(t) for t in results}, _readers(ops)
    current: dict[int, Tensor] = {}
    for op in ops:
        wide = [t for t in op.results if len(t.shape) == 4]
        if op.record.name not in NAMES or op.attrs["swapped"] or any(id(t) in kept for t in wide):
            continue
        if not all(any(map(_swaps, readers.get(id(t), []))) for t in wide):
            continue
        m = main.builder_before(op.operation)
        new = m.emit(op.record, [current.get(id(t), t) for t in op.operands], {**op.attrs, "swapped": True})
        for t, result in zip(op.results, new, strict=True):
            swapping = [r for r in readers.get(id(t), []) if t in wide and _swaps(r)]
            for reader in swapping:
                current[id(reader.results[0])] = result
                _replace(reader, [result])
            if len(swapping) < len(readers.get(id(t), [])):
                current[id(t)] = m.permuted(result, SWAP) if t in wide else result
                t.value.replace_all_uses_with(current[id(t)].value)
        op.operation.erase()


def _readers(ops: list[Op]) -> dict[int, list[Op]]:
    readers: dict[int, list[Op]] = {}
    for op in ops:
        for t in op.operands:
            readers.setdefault(id(t), []).append(op)
    return readers


def _swaps(op: Op) -> bool:
    return op.record.name == "transpose" and op.attrs["axes"] == SWAP
