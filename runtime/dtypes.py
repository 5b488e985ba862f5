"""Dtypes: names, sizes, NumPy equivalents, categories and the promotion rule of MLX.

The promotion table is MLX's (`mx.result_type`); it differs from NumPy's: integers never widen a float, and float16 with
bfloat16 gives float32.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np


class DtypeCategory(enum.Enum):
    """The abstract categories that `issubdtype` accepts, from the most specific to the most general; MLX's numbers."""

    complexfloating = 0
    floating = 1
    inexact = 2
    signedinteger = 3
    unsignedinteger = 4
    integer = 5
    number = 6
    generic = 7

    def __str__(self) -> str:
        return f"DtypeCategory.{self.name}"

    __repr__ = __str__


_PARENT = {
    DtypeCategory.number: DtypeCategory.generic,
    DtypeCategory.integer: DtypeCategory.number,
    DtypeCategory.inexact: DtypeCategory.number,
    DtypeCategory.signedinteger: DtypeCategory.integer,
    DtypeCategory.unsignedinteger: DtypeCategory.integer,
    DtypeCategory.floating: DtypeCategory.inexact,
    DtypeCategory.complexfloating: DtypeCategory.inexact,
}


@dataclass(frozen=True, eq=False, repr=False)
class Dtype:
    """An element type. Compared and hashed by identity: there is one object per type."""

    name: str
    size: int
    kind: str  # "b" bool, "u" unsigned, "i" signed, "f" float, "c" complex
    numpy: np.dtype
    category: DtypeCategory
    mlir: str  # spelling of the element type in the mx dialect
    short: str  # spelling in argument specs such as f32[2,3]

    def __repr__(self) -> str:
        return f"mlx.core.{self.name}"

    def __reduce__(self) -> tuple[Any, ...]:
        return from_name, (self.name,)

    @property
    def is_float(self) -> bool:
        return self.kind == "f"

    @property
    def is_inexact(self) -> bool:
        return self.kind in "fc"

    @property
    def is_integer(self) -> bool:
        return self.kind in "iu"


def _dtype(name: str, kind: str, numpy_type: Any, category: str, mlir: str, short: str) -> Dtype:
    dt = np.dtype(numpy_type)
    return Dtype(name, dt.itemsize, kind, dt, DtypeCategory[category], mlir, short)


bool_ = _dtype("bool", "b", np.bool_, "generic", "i1", "bool")
uint8 = _dtype("uint8", "u", np.uint8, "unsignedinteger", "ui8", "u8")
uint16 = _dtype("uint16", "u", np.uint16, "unsignedinteger", "ui16", "u16")
uint32 = _dtype("uint32", "u", np.uint32, "unsignedinteger", "ui32", "u32")
uint64 = _dtype("uint64", "u", np.uint64, "unsignedinteger", "ui64", "u64")
int8 = _dtype("int8", "i", np.int8, "signedinteger", "i8", "i8")
int16 = _dtype("int16", "i", np.int16, "signedinteger", "i16", "i16")
int32 = _dtype("int32", "i", np.int32, "signedinteger", "i32", "i32")
int64 = _dtype("int64", "i", np.int64, "signedinteger", "i64", "i64")
float16 = _dtype("float16", "f", np.float16, "floating", "f16", "f16")
bfloat16 = _dtype("bfloat16", "f", ml_dtypes.bfloat16, "floating", "bf16", "bf16")
float32 = _dtype("float32", "f", np.float32, "floating", "f32", "f32")
float64 = _dtype("float64", "f", np.float64, "floating", "f64", "f64")
complex64 = _dtype("complex64", "c", np.complex64, "complexfloating", "complex<f32>", "c64")

ALL = (
    bool_, uint8, uint16, uint32, uint64, int8, int16, int32, int64, float16, bfloat16, float32, float64, complex64,
)  # fmt: skip
_BY_NAME = {d.name: d for d in ALL} | {"bool_": bool_}
_BY_NUMPY = {d.numpy: d for d in ALL}
_BY_MLIR = {d.mlir: d for d in ALL}
_BY_SHORT = {d.short: d for d in ALL}


def from_name(name: str) -> Dtype:
    """The dtype called `name` ("float32"). Raises ValueError for an unknown name."""
    try:
        return _BY_NAME[name]
    except KeyError:
        raise ValueError(f"[dtype] no dtype is called {name!r}; there are {', '.join(_BY_NAME)}") from None


def from_numpy(dtype: Any) -> Dtype:
    """The dtype of a NumPy (or ml_dtypes) type. Raises ValueError where there is none."""
    found = _BY_NUMPY.get(np.dtype(dtype))
    if found is None:
        raise ValueError(f"[array] NumPy dtype {np.dtype(dtype)} has no mlxir equivalent; cast it first")
    return found


def from_mlir(text: str) -> Dtype:
    """The dtype whose element type in the mx dialect is spelled `text`."""
    return _BY_MLIR[text]


def from_short(text: str) -> Dtype:
    """The dtype of an argument spec such as `f32`. Raises ValueError for an unknown spelling."""
    try:
        return _BY_SHORT.get(text) or _BY_NAME[text]
    except KeyError:
        raise ValueError(f"unknown dtype {text!r}; use one of {', '.join(_BY_SHORT)}") from None


_FLOAT_ORDER = {float16: 1, bfloat16: 1, float32: 2, float64: 3}


def promote(a: Dtype, b: Dtype) -> Dtype:
    """The result dtype of an operation on `a` and `b`, as in MLX.

    >>> promote(int32, float16), promote(float16, bfloat16), promote(int8, uint8)
    (mlx.core.float16, mlx.core.float32, mlx.core.int16)
    """
    if a is b:
        return a
    if a.kind == "c" or b.kind == "c":
        return complex64
    if a.kind == "f" and b.kind == "f":
        if _FLOAT_ORDER[a] == _FLOAT_ORDER[b]:
            return float32
        return a if _FLOAT_ORDER[a] > _FLOAT_ORDER[b] else b
    if a.kind == "f":
        return a
    if b.kind == "f":
        return b
    if a.kind == "b":
        return b
    if b.kind == "b":
        return a
    if a.kind == b.kind:
        return a if a.size >= b.size else b
    signed, unsigned = (a, b) if a.kind == "i" else (b, a)
    if unsigned.size < signed.size:
        return signed
    if unsigned is uint64:
        return float32
    return {1: int16, 2: int32, 4: int64}[unsigned.size]


def scalar_dtype(value: Any, partner: Dtype | None = None) -> Dtype:
    """The dtype a Python scalar takes beside an array of dtype `partner` (weak typing), or alone when it is None."""
    if isinstance(value, bool):
        return partner or bool_
    if isinstance(value, int):
        if partner is None or partner is bool_:
            return int32 if -(2**31) <= value < 2**31 else int64
        return partner
    if isinstance(value, float):
        return partner if partner is not None and partner.is_inexact else float32
    return complex64


def at_least_float(dtype: Dtype) -> Dtype:
    """`dtype` if it is inexact, else float32: the dtype in which a transcendental function works."""
    return dtype if dtype.is_inexact else float32


def issubdtype(a: Dtype | DtypeCategory, b: Dtype | DtypeCategory) -> bool:
    """Whether `a` is `b` or lies below it in the hierarchy of categories."""
    if isinstance(b, Dtype):
        return a is b
    category = a.category if isinstance(a, Dtype) else a
    while category is not b:
        if category not in _PARENT:
            return False
        category = _PARENT[category]
    return True
