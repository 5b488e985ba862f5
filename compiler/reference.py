"""The reference evaluator: programs run op by op on NumPy. It is the first tier, and the oracle of the compiled one.

float16 and bfloat16 are computed in float32 and rounded after each operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlxir.dialects.mx import Aval, OpBuilder, Operators, Primitive
from mlxir.runtime.dtypes import bfloat16, float16, from_numpy
from mlxir.runtime.errors import CompileError

_HALF = (float16.numpy, bfloat16.numpy)


class NumpyHandle(Operators):
    """A NumPy array as rules see it."""

    def __init__(self, array: np.ndarray, m: NumpyBuilder):
        self.array, self.m, self.shape, self.dtype = array, m, array.shape, from_numpy(array.dtype)


class NumpyBuilder(OpBuilder):
    """Computes primitives at once: how a composite's decomposition is evaluated."""

    def emit(self, record: Primitive, operands: list[Any], attrs: dict) -> list[Any]:
        return [NumpyHandle(a, self) for a in compute(record, [o.array for o in operands], attrs)]


_builder = NumpyBuilder()


Written = list[tuple[np.ndarray, Any, np.ndarray]]
"""What was written over: arrays, where, and what was there."""


def update(record: Primitive, arrays: Sequence[np.ndarray], attrs: dict, written: Written) -> bool:
    """Let the first array be the result of a primitive that updates it, and note what was there; False if it cannot."""
    x = arrays[0]
    if not record.updates or not x.flags.writeable or (record.kind != "structural" and x.dtype in _HALF):
        return False
    where, values = record.writes(*arrays, **attrs)
    written.append((x, where, x[where].copy()))
    with np.errstate(all="ignore"):
        record.put(x, where, values, **attrs)
    return True


def compute(
    record: Primitive, arrays: Sequence[np.ndarray], attrs: dict, avals: Sequence[Aval] | None = None
) -> list[np.ndarray]:
    """The results of one primitive, each of its inferred dtype."""
    if record.kind == "composite":
        return [h.array for h in record.decompose(_builder, *[NumpyHandle(a, _builder) for a in arrays], **attrs)]
    if record.kind == "transform":
        raise CompileError(f"[reference] {record.name} must be expanded by its pass before evaluation")
    if avals is None:
        avals = record.infer(*[Aval(a.shape, from_numpy(a.dtype)) for a in arrays], **attrs)
    if record.kind not in ("structural", "control"):
        arrays = [a.astype(np.float32) if a.dtype in _HALF else a for a in arrays]
    with np.errstate(all="ignore"):
        results = record.reference(*arrays, **attrs)
    return [np.asarray(r, dtype=a.dtype.numpy) for r, a in zip(results, avals, strict=True)]
