"""Questions about dtypes: limits, promotion, castability, kinds."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from mlxir.runtime import dtypes
from mlxir.runtime.dtypes import Dtype, DtypeCategory, promote

from .ndarray import array

__all__ = ["can_cast", "finfo", "iinfo", "isdtype", "issubdtype", "result_type"]


class finfo:
    """Limits of a floating-point dtype; for complex64 those of its parts. Raises ValueError for other dtypes."""

    def __init__(self, arg: Dtype, /):
        if not _is_dtype("finfo", arg).is_inexact:
            raise ValueError(f"[finfo] dtype {arg.name} is not inexact.")
        self.dtype = dtypes.float32 if arg is dtypes.complex64 else arg
        info = ml_dtypes.finfo(self.dtype.numpy)
        self.bits = int(info.bits)
        self.min, self.max = float(info.min), float(info.max)
        self.eps, self.smallest_normal = float(info.eps), float(info.smallest_normal)

    def __repr__(self) -> str:
        return f"finfo(min={self.min:g}, max={self.max:g}, dtype={self.dtype.name})"


class iinfo:
    """Limits of an integer dtype. Raises ValueError for other dtypes."""

    def __init__(self, arg: Dtype, /):
        if not _is_dtype("iinfo", arg).is_integer:
            raise ValueError(f"[iinfo] Only integer types supported but {arg.name} was provided")
        info = np.iinfo(arg.numpy)
        self.dtype, self.bits, self.min, self.max = arg, int(info.bits), int(info.min), int(info.max)

    def __repr__(self) -> str:
        return f"iinfo(min={self.min}, max={self.max}, dtype={self.dtype.name})"


def _is_dtype(name: str, x: Any) -> Dtype:
    """`x` itself. Raises TypeError where it is no dtype."""
    if not isinstance(x, Dtype):
        raise TypeError(f"[{name}] expected a dtype such as float32, got {x!r}")
    return x


def _dtype_of(name: str, x: Any) -> Dtype:
    if isinstance(x, array):
        return x.dtype
    if isinstance(x, Dtype):
        return x
    raise ValueError(f"[{name}] Inputs must be arrays or dtypes.")


def result_type(*arrays_and_dtypes: array | Dtype) -> Dtype:
    """The common dtype of arrays and dtypes."""
    if not arrays_and_dtypes:
        raise ValueError("[result_type] At least one array or dtype is required.")
    found = [_dtype_of("result_type", x) for x in arrays_and_dtypes]
    dtype = found[0]
    for d in found[1:]:
        dtype = promote(dtype, d)
    return dtype


def can_cast(from_: array | Dtype, to: Dtype) -> bool:
    """Whether promotion leads from one dtype to the other."""
    if not isinstance(from_, (array, Dtype)):
        raise (TypeError if from_ is None else ValueError)("[can_cast] `from_` must be an array or a dtype.")
    given = from_.dtype if isinstance(from_, array) else from_
    return promote(given, _is_dtype("can_cast", to)) is to


def issubdtype(arg1: Dtype | DtypeCategory, arg2: Dtype | DtypeCategory) -> bool:
    """Whether a dtype or category is another one or lies below it. Raises ValueError for other types, TypeError for
    None.
    """
    for which, arg in (("first", arg1), ("second", arg2)):
        if not isinstance(arg, (Dtype, DtypeCategory)):
            kind = TypeError if arg is None else ValueError
            raise kind(f"[issubdtype] Received invalid type for {which} input.")
    return dtypes.issubdtype(arg1, arg2)


_KINDS = {
    "bool": "b", "signed integer": "i", "unsigned integer": "u", "integral": "iu", "real floating": "f",
    "complex floating": "c", "numeric": "iufc",
}  # fmt: skip


def isdtype(dtype: Dtype, kind: Dtype | str | tuple[Dtype | str, ...]) -> bool:
    """Whether a dtype is of a kind of the array API, or equals a dtype, or any of several."""
    _is_dtype("isdtype", dtype)
    if isinstance(kind, tuple):
        return any(isdtype(dtype, k) for k in kind)
    if isinstance(kind, Dtype):
        return dtype is kind
    if not isinstance(kind, str):
        error = TypeError if kind is None else ValueError
        raise error(f"[isdtype] `kind` must be a dtype, a string, or a tuple of dtypes and strings, got {kind!r}.")
    if kind not in _KINDS:
        raise ValueError(f"[isdtype] Unknown data type kind: '{kind}'.")
    return dtype.kind in _KINDS[kind]
