"""Evaluates a case with both libraries and says how the outcomes differ."""

from __future__ import annotations

import re
from typing import Any

import mlx.core as real
import numpy as np
from oracle import numpy_of

import mlxir

from .cases import make, names

# Of the absolute value of an element, or absolute below 1. MLX computes some functions of float64 in float32.
TOLERANCE = {"float16": 2e-3, "bfloat16": 1.6e-2, "float32": 2e-5, "complex64": 4e-5, "float64": 1e-6}
ARRAY = (real.array, mlxir.array)
# Functions inside others, whose errors come through: of these errors the type alone counts.
INNER = ("[squeeze]", "[moveaxis]", "[transpose]", "[broadcast_shapes]", "[take_along_axis]")
NUMBERS = (bool, int, float, complex, str, bytes, type(None))


def outcome(text: str, library: Any, arrays: dict[tuple, Any] | None = None, evaluated: bool = True) -> Any:
    """The result of a case, or the exception that it raises; `arrays` holds those that it makes."""
    made: dict[tuple, Any] = {} if arrays is None else arrays

    def array(*spec: Any) -> Any:
        if spec not in made:
            made[spec] = make(library, *spec)
        return library.array(made[spec])  # a case may update it in place

    code = compile(text, "case", "eval")  # no outcome: a case that is no expression would agree with any other
    try:
        result = eval(code, names(library, array))
        if evaluated and isinstance(result, (*ARRAY, list, tuple, dict)):
            library.eval(result)
        return result
    except Exception as error:  # exceptions of any type are compared
        return error


def difference(theirs: Any, mine: Any, share: float = 0.0) -> str | None:
    """How the outcome differs from MLX's; None where it does not. Beside the tolerance, elements may differ by
    that share of the largest one.
    """
    if isinstance(theirs, Exception) or isinstance(mine, Exception):
        return _error_difference(theirs, mine)
    if isinstance(theirs, real.array):
        return _array_difference(theirs, mine, share)
    same = True
    if isinstance(theirs, (list, tuple)):
        same = type(theirs) is type(mine) and len(theirs) == len(mine)
        if same:
            return next((d for a, b in zip(theirs, mine, strict=True) if (d := difference(a, b, share))), None)
    elif isinstance(theirs, dict):
        same = isinstance(mine, dict) and set(theirs) == set(mine)
        if same:
            return next((f"{k}: {d}" for k in theirs if (d := difference(theirs[k], mine[k], share))), None)
    elif isinstance(theirs, np.ndarray):
        inexact = theirs.dtype.kind in "fc"
        same = isinstance(mine, np.ndarray) and mine.dtype == theirs.dtype and np.array_equal(mine, theirs, inexact)
    elif isinstance(theirs, NUMBERS):
        same = type(mine) is type(theirs) and (mine == theirs or (mine != mine and theirs != theirs))
        if isinstance(theirs, (float, complex)) and type(mine) is type(theirs) and not same:
            same = abs(mine - theirs) <= TOLERANCE["float32"] * max(1, abs(theirs))
    elif " object at " not in str(theirs):
        same = str(theirs).replace("mlx.core", "mlxir") == str(mine).replace("mlx.core", "mlxir")
    return None if same else f"MLX gives {short(theirs)}, here {short(mine)}"


def _error_difference(theirs: Any, mine: Any) -> str | None:
    """The type of an error, and the `[name]` at the head of its message."""
    if not isinstance(mine, Exception) or not isinstance(theirs, Exception):
        return f"MLX gives {short(theirs)}, here {short(mine)}"
    if "std::bad_cast" in str(theirs) and isinstance(mine, (TypeError, ValueError)):
        return None  # MLX's RuntimeError says no more than that
    name = re.match(r"\[\w+\]", str(theirs))
    if isinstance(mine, type(theirs)) and (name is None or name[0] in INNER or str(mine).startswith(name[0])):
        return None
    return f"MLX raises {short(theirs)}, here {short(mine)}"


def _array_difference(theirs: Any, mine: Any, share: float) -> str | None:
    if not isinstance(mine, mlxir.array):
        return f"MLX gives {short(theirs)}, here {short(mine)}"
    dtype = _dtype_name(theirs)
    if (tuple(theirs.shape), dtype) != (tuple(mine.shape), _dtype_name(mine)):
        return f"MLX gives {dtype}{theirs.shape}, here {mine.dtype.name}{mine.shape}"
    want, have = numpy_of(theirs), numpy_of(mine)
    if dtype not in TOLERANCE:
        return None if np.array_equal(want, have) else f"MLX gives {short(theirs)}, here {short(mine)}"
    allowed = share * np.where(np.isfinite(want), np.abs(want), 0).max(initial=0)
    close = _close(want.real, have.real, want, dtype, allowed)
    if dtype == "complex64":
        close = (close & _close(want.imag, have.imag, want, dtype, allowed)) | (np.isnan(want) & np.isnan(have))
    if np.all(close):
        return None
    at = tuple(np.argwhere(~close)[0])
    return f"MLX gives {want[at]} at {tuple(map(int, at))}, here {have[at]} ({dtype})"


def _close(want: np.ndarray, have: np.ndarray, whole: np.ndarray, dtype: str, allowed: float) -> np.ndarray:
    if dtype == "float64":
        want = np.where(np.isfinite(want), want, have)  # MLX computes in float32 what does not overflow here
    with np.errstate(all="ignore"):
        near = np.abs(want - have) <= np.maximum(TOLERANCE[dtype] * np.maximum(1, np.abs(whole)), allowed)
    return (want == have) | (np.isnan(want) & np.isnan(have)) | (np.isfinite(want) & np.isfinite(have) & near)


def _dtype_name(x: Any) -> str:
    return str(x.dtype).rpartition(".")[2]


def short(x: Any) -> str:
    """An outcome in some words."""
    if isinstance(x, ARRAY):
        numbers = str(x.reshape(-1).tolist()) if x.size < 40 else "..."
        return f"{_dtype_name(x)}{tuple(x.shape)} {numbers[:160]}"
    if isinstance(x, Exception):
        return f"{type(x).__name__}({str(x)[:90]!r})"
    return repr(x)[:160]
