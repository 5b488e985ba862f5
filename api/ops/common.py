"""What the families of public functions share."""

from __future__ import annotations

from typing import Any, Protocol

from mlxir.compiler.graph import with_place
from mlxir.devices import StreamOrDevice
from mlxir.ndarray import array
from mlxir.runtime.dtypes import ALL, Dtype
from mlxir.runtime.errors import user_frame

INEXACT = frozenset([d for d in ALL if d.is_inexact])
Scalar = bool | int | float | complex
Operand = Any  # an array, a Python or NumPy number, or array data of another library


class Unary(Protocol):
    """A public function of one operand."""

    def __call__(self, a: Operand, /, *, stream: StreamOrDevice = None) -> array: ...


class Binary(Protocol):
    """A public function of two operands, which broadcast."""

    def __call__(self, a: Operand, b: Operand, stream: StreamOrDevice = None) -> array: ...


def failure(kind: type[Exception], message: str) -> Exception:
    """An error with the user's file and line in its message."""
    return with_place(kind(message), user_frame(2))


def named(function: Any, name: str, doc: str) -> Any:
    """`function` under its public name."""
    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc
    return function


def check_array(name: str, a: Any) -> array:
    """`a` itself. Raises TypeError where it is no array (these functions take no numbers or lists, as in MLX)."""
    if not isinstance(a, array):
        raise with_place(TypeError(f"[{name}] expected an array, got {type(a).__name__}"), user_frame(2))
    return a


def check_dtype(name: str, dtype: Any) -> Dtype:
    if not isinstance(dtype, Dtype):
        raise with_place(TypeError(f"[{name}] expected a dtype such as float32, got {dtype!r}"), user_frame(2))
    return dtype
