"""Data from outside as `Value`s, and data of arrays to the outside: Python sequences, NumPy, buffers, DLPack.

What comes in is copied unless `copy=False`; what goes out without a copy is read-only, because values share memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from mlxir.compiler.graph import Value, constant, with_place
from mlxir.dialects.symbolic import SYMBOLIC
from mlxir.runtime import dtypes
from mlxir.runtime.dtypes import Dtype, scalar_dtype
from mlxir.runtime.errors import user_frame

from . import dlpack, values
from .varying import number_data

# NumPy types that become a narrower type of ours, as in MLX.
_NARROWED = {np.dtype(np.float64): np.dtype(np.float32), np.dtype(np.complex128): np.dtype(np.complex64)}
_BYTES = (bytes, bytearray, memoryview)


class ArrayLike:
    """Marks an object that has `__mlx_array__` as array data. Raises TypeError for objects without it."""

    def __init__(self, arg: Any, /):
        if not hasattr(arg, "__mlx_array__"):
            raise TypeError(f"[ArrayLike] {type(arg).__name__} has no __mlx_array__")
        self._source = arg

    def __mlx_array__(self) -> Any:
        return self._source.__mlx_array__()


def _error(kind: type[Exception], message: str) -> Exception:
    return with_place(kind(message), user_frame(2))


def to_value(x: Any, partner: Dtype | None = None, copy: bool = True) -> Value:
    """An operand that is no array: a Python or NumPy number (weak beside `partner`), or anything that holds array data.

    NumPy arrays take `partner` as their dtype, as in MLX. Raises ValueError for other types and for lists.
    """
    if isinstance(x, (bool, int, float, complex)):
        return _number(x, partner)
    if isinstance(x, np.generic) and partner is not None:
        return _number(x.item() if x.dtype != dtypes.bfloat16.numpy else float(x), partner)
    if isinstance(x, (list, tuple)) or not holds_data(x):
        raise _error(
            ValueError, f"[convert] Invalid type {type(x).__name__}: expected an array, a number or array data"
        )
    return from_data(x, partner, copy)


def _number(x: Any, partner: Dtype | None) -> Value:
    """A Python number as a constant, or as data where it keeps changing; weak beside `partner`."""
    if (type(x) is float or type(x) is int) and x:
        dtype = scalar_dtype(x, partner)
        if dtype.is_float or (dtype is dtypes.int32 and -(2**31) <= x < 2**31):
            data = number_data(x, dtype)
            if data is not None:
                return data
    return values.scalar(x, partner)


def holds_data(x: Any) -> bool:
    """Whether `x` is an array of another library or a buffer."""
    return isinstance(x, (np.ndarray, np.generic, *_BYTES)) or any(
        hasattr(x, name) for name in ("__mlx_array__", "__dlpack__", "__array__", "__array_interface__", "__buffer__")
    ) or _is_buffer(x)  # fmt: skip


def _is_buffer(x: Any) -> bool:
    try:
        memoryview(x).release()
    except TypeError:
        return False
    return True


def from_data(x: Any, dtype: Dtype | None = None, copy: bool = True) -> Value:
    """A concrete value from array data of another library. Raises ValueError for dtypes that have no equivalent."""
    if hasattr(x, "__mlx_array__"):
        value: Value = x.__mlx_array__()._value
        return value if dtype is None else values.cast(value, dtype)
    return constant(converted(as_numpy(x), dtype, copy))


def as_numpy(x: Any) -> np.ndarray:
    """Array data as a NumPy array, without a copy where its owner allows that."""
    if isinstance(x, (np.ndarray, np.generic)):
        return np.asarray(x)
    if isinstance(x, _BYTES):
        view = memoryview(x)
        return np.frombuffer(view, np.uint8) if view.format in ("B", "c") and view.ndim == 1 else np.asarray(view)
    if getattr(x, "requires_grad", False):  # PyTorch: the data alone
        x = x.detach()
    if hasattr(x, "__dlpack__") and (not hasattr(x, "__array__") or dlpack.is_bfloat16(x)):
        return dlpack.imported(x)
    return np.asarray(x)


def converted(data: np.ndarray, dtype: Dtype | None, copy: bool = True) -> np.ndarray:
    """`data` in a dtype of ours: `dtype`, or the one that corresponds to its own (float64 narrows to float32)."""
    if dtype is None:
        target = _NARROWED.get(data.dtype, data.dtype.newbyteorder("="))
        try:
            dtypes.from_numpy(target)
        except ValueError as error:
            raise with_place(error, user_frame(2)) from None
    else:
        target = dtype.numpy
        if data.dtype.kind == "c" and dtype.kind not in "cb":
            data = data.real
    with np.errstate(all="ignore"):
        out = data.astype(target, order="C", copy=copy)
    # Row-contiguous and aligned: what kernels may assume of a buffer.
    return out if out.flags.c_contiguous and out.flags.aligned else np.array(out, order="C")


def from_number(x: bool | int | float | complex, dtype: Dtype | None = None) -> Value:
    """A Python number as a concrete rank-0 value; one that does not fit an explicit integer dtype wraps around.

    A symbolic number is an input of its trace.
    """
    if type(x) in SYMBOLIC:
        if dtype is None or dtype.is_inexact:
            return values.full(x, (), dtype or scalar_dtype(x))
        x = x.value()  # type: ignore[union-attr]
    return constant(_numbers(x, dtype))


def from_sequence(items: Any, dtype: Dtype | None = None) -> Value:
    """Nested lists or tuples of numbers, NumPy data and arrays. Raises ValueError for ragged ones and for other leaves.

    Without arrays among the leaves the result is a constant; with arrays it is recorded, so that it can be traced.
    """
    kinds = _leaf_types(items)
    other = [k for k in kinds if not issubclass(k, (bool, int, float, complex))]
    if not other:
        return constant(_numbers(items, dtype))
    for kind in other:
        if kind not in SYMBOLIC and not issubclass(kind, (np.ndarray, np.generic)) and not hasattr(kind, "_value"):
            raise _error(ValueError, f"[array] Invalid type {kind.__name__} received in array initialization.")
    if any(hasattr(kind, "_value") or kind in SYMBOLIC for kind in other):
        return _stacked(items, dtype)
    flat = np.concatenate([converted(np.asarray(leaf), None).ravel() for leaf in _leaves(items)])
    return constant(converted(flat.reshape(_shape(items)), dtype))


def _leaf_types(items: Any) -> set[type]:
    """The types of all leaves; a set per level keeps large lists quick."""
    kinds = set(map(type, items))
    nested = {k for k in kinds if issubclass(k, (list, tuple))}
    if nested:
        kinds = (kinds - nested).union(*[_leaf_types(item) for item in items if type(item) in nested])
    return kinds


def _numbers(items: Any, dtype: Dtype | None) -> np.ndarray:
    """A Python number, or nested sequences of them, as data of `dtype`.

    By default complex64, float32, int32 (int64 where a number needs it) or bool, the first that a leaf asks for.
    """
    try:
        wide = np.array(items)
    except ValueError:
        raise _error(ValueError, "[array] Initialization encountered non-uniform length.") from None
    if wide.dtype.kind not in ("biufc" if dtype is dtypes.uint64 else "bifc"):
        raise _error(ValueError, "[array] an integer does not fit 64 bits")
    if dtype is None:
        kind = wide.dtype.kind
        if kind == "i":
            small = not wide.size or (wide.min() >= -(2**31) and wide.max() < 2**31)
            dtype = dtypes.int32 if small else dtypes.int64
        else:
            dtype = {"b": dtypes.bool_, "f": dtypes.float32, "c": dtypes.complex64}[kind]
    return converted(wide, dtype)


def _leaves(items: Any) -> Iterator[Any]:
    for item in items:
        if isinstance(item, (list, tuple)):
            yield from _leaves(item)
        else:
            yield item


def _shape(items: Any) -> tuple[int, ...]:
    """The shape of a nested sequence. Raises ValueError if it is ragged."""
    if not isinstance(items, (list, tuple)):
        return tuple(getattr(items, "shape", ()))
    if not items:
        return (0,)
    first = _shape(items[0])
    for item in itertools.islice(items, 1, None):
        if _shape(item) != first:
            raise _error(ValueError, "[array] Initialization encountered non-uniform length.")
    return (len(items), *first)


def _stacked(items: Any, dtype: Dtype | None) -> Value:
    """A nested sequence with arrays among its leaves, joined by recorded operations."""
    shape = _shape(items)
    parts: list[Value] = []
    for leaf in _leaves(items):
        value = getattr(leaf, "_value", None)
        if value is None:
            value = values.scalar(leaf) if isinstance(leaf, (bool, int, float, complex)) else from_data(leaf)
        parts.append(values.reshape(value, (values.size_of(value.shape),)))
    joined = values.concatenate(values.promoted(*parts), 0)
    return values.reshape(joined if dtype is None else values.cast(joined, dtype), shape)


def from_dlpack(x: Any, copy: bool | None) -> Value:
    """A value over the memory of a DLPack producer on the CPU. Raises ValueError where `copy=False` cannot be kept."""
    if not hasattr(x, "__dlpack__"):
        raise _error(TypeError, f"[from_dlpack] {type(x).__name__} is no DLPack producer")
    data = dlpack.imported(x)
    if copy is False and (data.dtype in _NARROWED or not (data.flags.c_contiguous and data.flags.aligned)):
        raise _error(
            ValueError, "[convert] Cannot import an array that is not row-contiguous or is float64 without a copy."
        )
    return constant(converted(data, None, bool(copy)))


def buffer_of(data: np.ndarray) -> np.ndarray:
    """What the buffer protocol shows of an array: a read-only view, in which 8-byte integers are `long long` ("q")."""
    kind = {"i": np.longlong, "u": np.ulonglong}.get(data.dtype.kind) if data.dtype.itemsize == 8 else None
    return read_only(data if kind is None else data.view(kind))


def read_only(data: np.ndarray) -> np.ndarray:
    """A view through which the memory of an array cannot be changed."""
    view = data.view()
    view.flags.writeable = False
    return view
