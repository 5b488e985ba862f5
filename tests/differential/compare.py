"""Evaluates a case with both libraries and says how the outcomes differ."""

from __future__ import annotations

import re
from typing import Any

import mlx.core as real
import numpy as np
from oracle import numpy_of

import mlxir

from .cases import make, names

# Relative to the largest finite element, or absolute below 1. MLX computes functions of half precision in float32 and some of float64 in float32.
TOLERANCE = {"float16": 2e-3, "bfloat16": 1.6e-2, "float32": 2e-5, "complex64": 4e-5, "float64": 1e-6}
# What MLX's CPU backend does not implement, here it works.
UNSUPPORTED = re.compile("only supports? float|NYI|Unsupported type|unsupported data type|must have type float32|floating types are supported|SmallVector|std::vector", re.IGNORECASE)
ARRAY, DTYPE = (real.array, mlxir.array), (real.Dtype, mlxir.Dtype)


def outcome(text: str, library: Any, arrays: dict[tuple, Any] | None = None) -> Any:
    """The evaluated result of a case or the exception that it raises; `arrays` collects what it makes."""
    made = {} if arrays is None else arrays

    def array(*spec: Any) -> Any:
        if spec not in made:
            made[spec] = make(library, *spec)
        x = made[spec]
        return x + 0 if False else library.array(x) if arrays is None else x

    try:
        result = eval(compile(text, "case", "eval"), names(library, array))
        evaluate(result, library)
        return result
    except Exception as error:  # exceptions of any type are compared
        return error


def evaluate(result: Any, library: Any) -> None:
    if isinstance(result, (*ARRAY, list, tuple, dict)):
        library.eval(result)


def difference(theirs: Any, mine: Any) -> str | None:
    """How the outcome differs from MLX's; None where it does not."""
    if isinstance(theirs, Exception):
        if UNSUPPORTED.search(str(theirs)):
            return None
        if not isinstance(mine, Exception):
            return f"MLX raises {type(theirs).__name__}({str(theirs)[:90]!r}), here {short(mine)}"
        if "std::bad_cast" in str(theirs) and isinstance(mine, (TypeError, ValueError)):
            return None  # MLX's RuntimeError says no more than that
        if not isinstance(mine, type(theirs)):
            return f"MLX raises {type(theirs).__name__}({str(theirs)[:90]!r}), here {type(mine).__name__}({str(mine)[:90]!r})"
        tag = re.match(r"\[\w+\]", str(theirs))
        if tag and not str(mine).startswith(tag[0]):
            return f"message {str(theirs)[:80]!r}, here {str(mine)[:80]!r}"
        return None
    if isinstance(mine, Exception):
        return f"MLX gives {short(theirs)}, here {type(mine).__name__}({str(mine)[:90]!r})"
    if isinstance(theirs, real.array):
        return _array_difference(theirs, mine)
    if isinstance(theirs, (list, tuple)):
        if type(theirs) is not type(mine) or len(theirs) != len(mine):
            return f"MLX gives a {type(theirs).__name__} of {len(theirs)}, here {short(mine)}"
        return next((d for a, b in zip(theirs, mine, strict=True) if (d := difference(a, b))), None)
    if isinstance(theirs, dict):
        if not isinstance(mine, dict) or set(theirs) != set(mine):
            return f"MLX gives {short(theirs)}, here {short(mine)}"
        return next((f"{k}: {d}" for k in theirs if (d := difference(theirs[k], mine[k]))), None)
    if isinstance(theirs, np.ndarray):
        same = isinstance(mine, np.ndarray) and mine.dtype == theirs.dtype and np.array_equal(mine, theirs, equal_nan=theirs.dtype.kind in "fc")
        return None if same else f"MLX gives {short(theirs)}, here {short(mine)}"
    if isinstance(theirs, (bool, int, float, complex, str, bytes, type(None))):
        close = type(mine) is type(theirs) and (mine == theirs or (mine != mine and theirs != theirs))
        if isinstance(theirs, (float, complex)) and type(mine) is type(theirs) and not close:
            close = abs(mine - theirs) <= 2e-5 * max(1, abs(theirs))
        return None if close else f"MLX gives {theirs!r}, here {mine!r}"
    return None if str(theirs).replace("mlx.core", "mlxir") == str(mine).replace("mlx.core", "mlxir") or " object at " in str(theirs) else f"MLX gives {theirs!s}, here {mine!s}"


def _array_difference(theirs: Any, mine: Any) -> str | None:
    if not isinstance(mine, mlxir.array):
        return f"MLX gives {short(theirs)}, here {short(mine)}"
    dtype = str(theirs.dtype).rpartition(".")[2]
    if (tuple(theirs.shape), dtype) != (tuple(mine.shape), str(mine.dtype).rpartition(".")[2]):
        return f"MLX gives {dtype}{theirs.shape}, here {mine.dtype.name}{mine.shape}"
    want, have = numpy_of(theirs), numpy_of(mine)
    if dtype not in TOLERANCE:
        return None if np.array_equal(want, have) else f"MLX gives {short(theirs)}, here {short(mine)}"
    tolerance = TOLERANCE[dtype]
    with np.errstate(all="ignore"):
        parts = [(want.real, have.real), (want.imag, have.imag)] if dtype == "complex64" else [(want, have)]
        size = np.maximum(1, np.abs(want)) if dtype == "complex64" else np.maximum(1, np.abs(want))
        # A complex number with a NaN for a part is a NaN.
        for w, h in parts:
            if dtype == "float64":
                w = np.where(np.isfinite(w), w, h)  # what overflows in float32 does not overflow here
            good = (np.isnan(want) & np.isnan(have)) | (w == h) | (np.isnan(w) & np.isnan(h)) | (np.isfinite(w) & np.isfinite(h) & (np.abs(w - h) <= tolerance * size))
            if not np.all(good):
                at = np.argwhere(~good)[0]
                return f"at {tuple(map(int, at))} MLX gives {want[tuple(at)]}, here {have[tuple(at)]} ({dtype})"
    return None


def short(x: Any) -> str:
    if isinstance(x, ARRAY):
        flat = " ".join(str(x.reshape(-1).tolist()).split()) if x.size < 40 else "..."
        return f"{str(x.dtype).rpartition('.')[2]}{tuple(x.shape)} {flat[:160]}"
    return repr(x)[:160]
