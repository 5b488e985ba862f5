"""How arrays print: MLX's format, `array([1.5, 2], dtype=float32)`, with axes longer than 6 shortened in the middle."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["PrintOptions", "get_printoptions", "printoptions", "set_printoptions"]

_EDGE = 3  # elements shown at either end of a shortened axis


class PrintOptions:
    """`precision`: digits behind the point of floating-point numbers; -1: 6 significant ones, no trailing zeros."""

    def __init__(self, precision: int = -1):
        if not isinstance(precision, int):
            raise TypeError(f"[PrintOptions] precision must be an int, got {type(precision).__name__}")
        self.precision = precision

    def __repr__(self) -> str:
        return f"PrintOptions(precision={self.precision})"


_current = PrintOptions()


def set_printoptions(precision: int = -1) -> None:
    """Set the digits that floating-point numbers are printed with; without an argument, back to the default."""
    global _current
    _current = PrintOptions(precision)


def get_printoptions() -> PrintOptions:
    """A copy of the options in force."""
    return PrintOptions(_current.precision)


class printoptions:
    """`with printoptions(precision=2):` sets print options inside the block."""

    def __init__(self, precision: int = -1):
        self._options, self._before = PrintOptions(precision), _current

    def __enter__(self) -> printoptions:
        global _current
        self._before, _current = _current, self._options
        return self

    def __exit__(self, *exc: object) -> None:
        global _current
        _current = self._before


def _real(x: float) -> str:
    """As C++ streams print a number: `%g` by default, `-nan` as nan."""
    if math.isnan(x):
        return "nan"
    digits = _current.precision
    return f"{x:g}" if digits == -1 else f"{x:.{digits if digits >= 0 else 6}f}"


def _complex(x: complex) -> str:
    return f"{_real(x.real)}{'' if x.imag < 0 else '+'}{_real(x.imag)}j"


def _formatter(kind: str) -> Callable[[Any], str]:
    if kind == "c":
        return lambda x: _complex(complex(x))
    if kind in "biu":
        return lambda x: str(x.item())
    return lambda x: _real(float(x))


def _nested(data: np.ndarray, show: Callable[[Any], str], depth: int) -> str:
    if not data.ndim:
        return show(data[()])
    n = len(data)
    rows = range(n) if n <= 2 * _EDGE else (*range(_EDGE), -1, *range(n - _EDGE, n))
    separator = ", " if data.ndim == 1 else ",\n" + " " * (depth + 1)
    parts = ["..." if i < 0 else _nested(data[i], show, depth + 1) for i in rows]
    return f"[{separator.join(parts)}]"


def to_string(data: np.ndarray, dtype: str) -> str:
    """The text of an array with values `data` and dtype name `dtype`."""
    kind = {"bool": "b"}.get(dtype, "f" if dtype == "bfloat16" else data.dtype.kind)
    return f"array({_nested(data, _formatter(kind), len('array('))}, dtype={dtype})"
