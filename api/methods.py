"""Binds public functions as methods of `array`, and defines those whose signature differs from the function's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .devices import StreamOrDevice
from .ndarray import array
from .ops import contract, elementwise, indexing, reduce, shape, views
from .runtime.dtypes import Dtype

__all__ = ["ArrayAt", "ArrayIterator"]

ArrayAt = indexing.ArrayAt


class ArrayIterator:
    """Iterates over the first axis of an array."""

    def __init__(self, x: array):
        if not x.shape:
            raise TypeError("iteration over a 0-d array")
        self._rows = iter(shape.unstack(x))

    def __iter__(self) -> ArrayIterator:
        return self

    def __next__(self) -> array:
        return next(self._rows)


def _iter(self: array) -> Iterator[array]:
    return ArrayIterator(self)


def _astype(self: array, dtype: Dtype, stream: StreamOrDevice = None) -> array:
    """The array converted to `dtype`."""
    return shape.astype(self, dtype, stream=stream)


def _reshape(self: array, *new: Any, stream: StreamOrDevice = None) -> array:
    """The elements in another shape, given as ints or as one sequence; one dimension may be -1."""
    return shape.reshape(self, new[0] if len(new) == 1 and not isinstance(new[0], int) else new, stream=stream)


def _transpose(self: array, *axes: Any, stream: StreamOrDevice = None) -> array:
    """The axes permuted (ints or one sequence), or reversed."""
    if not axes:
        return shape.transpose(self, stream=stream)
    return shape.transpose(self, axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes, stream=stream)


def _matmul(self: array, other: Any) -> array:
    return contract.matmul(self, other)


def _imatmul(self: array, other: Any) -> array:
    self._value = contract.matmul(self, other)._value
    return self


def _diagonal(self: array, offset: int = 0, axis1: int = 0, axis2: int = 1, stream: StreamOrDevice = None) -> array:
    """The diagonals over two axes."""
    return shape.diagonal(self, offset, axis1, axis2, stream)


def _split(
    self: array, indices_or_sections: int | Sequence[int], axis: int = 0, *, stream: StreamOrDevice = None
) -> list[array]:
    """Equal sections along an axis, or pieces between indices."""
    return shape.split(self, indices_or_sections, axis, stream=stream)


# Functions whose signature is the method's, under their own name.
_FUNCTIONS: tuple[Any, ...] = (
    shape.flatten, shape.squeeze, shape.swapaxes, shape.moveaxis, shape.diag,
    elementwise.abs, elementwise.square, elementwise.sqrt, elementwise.rsqrt, elementwise.reciprocal, elementwise.exp,
    elementwise.log, elementwise.log2, elementwise.log10, elementwise.log1p, elementwise.sin, elementwise.cos,
    elementwise.round,
    reduce.sum, reduce.prod, reduce.min, reduce.max, reduce.mean, reduce.var, reduce.std, reduce.all, reduce.any,
    reduce.argmin, reduce.argmax, reduce.logsumexp, reduce.cumsum, reduce.cumprod, reduce.cummax, reduce.cummin,
    reduce.logcumsumexp, views.view,
)  # fmt: skip
_METHODS: dict[str, Any] = {
    **{f.__name__: f for f in _FUNCTIONS},
    "__getitem__": indexing.getitem,
    "__setitem__": indexing.setitem,
    "__iter__": _iter,
    "__abs__": elementwise.abs,
    "__matmul__": _matmul,
    "__imatmul__": _imatmul,
    "astype": _astype,
    "conj": elementwise.conj,
    "diagonal": _diagonal,
    "reshape": _reshape,
    "split": _split,
    "transpose": _transpose,
    "T": property(shape.transpose, doc="The array with its axes reversed."),
    "mT": property(shape.matrix_transpose, doc="The array with its last two axes swapped."),
    "real": property(elementwise.real, doc="The real part."),
    "imag": property(elementwise.imag, doc="The imaginary part."),
    "at": property(ArrayAt, doc="Functional updates: `x.at[index].add(v)`."),
}

for _name, _method in _METHODS.items():
    setattr(array, _name, _method)
