"""The class `array`: a mutable reference to an immutable `Value` of the trace.

Only what every array needs lies here: construction, attributes, operators and conversions. Methods that are public
functions (`a.sum()`, indexing) are bound by `methods.py`, so that the functions may be written in terms of this class.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mlxir.compiler.evaluate import evaluate
from mlxir.compiler.graph import Node, Tape, Value, first_uid, record, running, taped, with_place
from mlxir.dialects.mx import RECORDS, Aval, Primitive
from mlxir.runtime import dtypes
from mlxir.runtime.buffers import Buffer
from mlxir.runtime.dtypes import Dtype, bool_, float32, int32, promote, uint8
from mlxir.runtime.errors import user_frame

from . import buffer_protocol, dlpack, interop, values
from .printing import to_string
from .varying import number_data

if TYPE_CHECKING:
    from .declared import Declared
else:
    Declared = object

__all__ = ["array"]

_allocate = object.__new__
_new_tuple = tuple.__new__
_FULL, _NEGATIVE, _INVERT = RECORDS["full"], RECORDS["negative"], RECORDS["bitwise_invert"]
_NO_ATTRS: dict[str, Any] = {}
_INEXACT = frozenset([d for d in dtypes.ALL if d.is_inexact])
_FLOATS = frozenset([d for d in dtypes.ALL if d.is_float])
_NO_COMPLEX = ((dtypes.complex64, None),)
_FLOATING = tuple([(d, float32) for d in dtypes.ALL if not d.is_inexact])


def _cannot(word: str, other: Any) -> Exception:
    if other is None:
        return TypeError(f"[{word}] Cannot perform {word} on an mlx.core.array and None")
    return _error(ValueError, f"[{word}] Cannot perform {word} on an mlx.core.array and {type(other).__name__}")


def _operand(x: Any, dtype: Dtype, word: str) -> Value:
    """The value of an operand that is no `array`, beside one of dtype `dtype`."""
    kind = type(x)
    if dtype in _FLOATS and (kind is float or kind is int):
        x = float(x)
    elif not (dtype is int32 and kind is int and -0x80000000 <= x <= 0x7FFFFFFF):
        if isinstance(x, array):
            return x._value
        if isinstance(x, (list, tuple)) or not (isinstance(x, (int, float, complex)) or interop.holds_data(x)):
            raise _cannot(word, x)
        return interop.to_value(x, dtype)
    # Equal constants share a node, and a value where its age does not matter. 0.0 and -0.0 are equal only as keys.
    if not x:
        return Value((), dtype, _constant_node.__wrapped__(x, dtype))
    if word != "power":  # an exponent decides what is computed
        data = number_data(x, dtype)
        if data is not None:
            return data
    node = _constant_node(x, dtype)
    value = Value((), dtype, node)
    if running.tape is not None:
        known = _constants[kind][dtype]
        if len(known) >= MOST_CONSTANTS:
            known.clear()
            constant_entries.clear()
        known[x] = value
        constant_entries[node] = Tape.entry(node)
    return value


MOST_CONSTANTS = 1024
constant_entries: dict[Any, tuple] = {}  # what stands for their nodes in the keys of tapes
_beside_floats: dict[Dtype, dict[Any, Value]] = {d: {} for d in _FLOATS}
_constants: dict[type, dict[Dtype, dict[Any, Value]]] = {float: _beside_floats, int: {**_beside_floats, int32: {}}}
"""Values of Python numbers, by their type, the dtype that they take beside an array, and the number. Only this thread's
tape sees them (a trace would take them for values from outside)."""


@functools.lru_cache(maxsize=4096)
def _constant_node(x: Any, dtype: Dtype) -> Node:
    attrs = {"value": x, "shape": (), "dtype": dtype}
    return Node(_FULL, attrs, (), (_new_tuple(Aval, ((), dtype)),), None)


class Native(NamedTuple):
    """What native code needs to know of an operator, of which it does the common case (`native/eager.py`).

    `others` are the dtypes that it leaves to Python; `result` is the dtype of the result, None for the operands'.
    """

    primitive: Primitive
    result: Dtype | None
    reflected: bool
    others: dict[Dtype, Any]


def _binary(name: str, word: str, result: Dtype | None = None, reflected: bool = False, instead: Any = ()) -> Any:
    """The special method of an elementwise primitive: promotion, broadcasting and recording on one short path.

    `instead` says which dtypes are replaced by which, as pairs, where the primitive does not work in the common dtype;
    None raises.
    """
    primitive: Primitive = RECORDS[name]
    replaced = dict(instead)

    def operator(self: array, other: Any) -> array:
        a = self._value
        dtype = a.dtype
        tape = running.tape
        kind = type(other)
        if kind is array:
            b = other._value
        elif tape is None or kind not in _constants or (b := _constants[kind].get(dtype, _NO_ATTRS).get(other)) is None:
            b = _operand(other, dtype, word)
        if b.dtype is not dtype:
            dtype = promote(dtype, b.dtype)
            a, b = values.cast(a, dtype), values.cast(b, dtype)
        if replaced and dtype in replaced:
            dtype = replaced[dtype]
            if dtype is None:
                raise _error(ValueError, f"[{name}] Complex type not supported.")
            a, b = values.cast(a, dtype), values.cast(b, dtype)
        shape, others = a.shape, b.shape
        if others and shape is not others and (len(shape) != len(others) or shape != others):
            shape = values.broadcast_shape(name, shape, others)
        if result is not None:
            dtype = result
        operands = (b, a) if reflected else (a, b)
        out = _allocate(array)
        if tape is None:
            out._value = record(primitive, operands, _NO_ATTRS, shape, dtype)
        else:
            known = a.node
            if known is None or shape is not a.shape or dtype is not a.dtype or len(avals := known.avals) != 1:
                avals = (_new_tuple(Aval, (shape, dtype)),)
            node = _new_tuple(Node, (primitive, _NO_ATTRS, operands, avals, user_frame(2)))
            out._value = taped(tape, node, shape, dtype)
        return out

    operator.native = Native(primitive, result, reflected, replaced)  # type: ignore[attr-defined]
    return operator


def _in_place(operator: Callable[[array, Any], array], float_only: bool = False) -> Any:
    """`a += b` rebinds the value that `a` refers to: every reference to this array sees it."""

    def update(self: array, other: Any) -> array:
        if float_only and self._value.dtype not in _INEXACT and other is not None:
            raise _error(ValueError, "[divide] In-place division is not possible for integer arrays.")
        self._value = operator(self, other)._value
        return self

    update.in_place = operator, float_only  # type: ignore[attr-defined]
    return update


def _comparison(name: str, word: str, unlike: bool | None = None) -> Any:
    """`==` and `!=` are `unlike` beside what is no array data; the others raise."""
    compare = _binary(name, word, bool_)
    if unlike is None:
        return compare

    def equality(self: array, other: Any) -> Any:
        if type(other) is not array and (
            other is None or isinstance(other, (list, tuple, str, dict))
            or not (isinstance(other, (int, float, complex, array)) or interop.holds_data(other))
        ):  # fmt: skip
            return unlike
        return compare(self, other)

    equality.native = compare.native  # type: ignore[attr-defined]
    return equality


def _bits(name: str, word: str, shift: bool = False) -> Any:
    apply = _binary(name, word, instead=[(bool_, uint8)] if shift else ())

    def operator(self: array, other: Any) -> array:
        if other is not None and (
            self._value.dtype in _INEXACT
            or isinstance(other, (float, complex))
            or getattr(other, "dtype", None) in _INEXACT
        ):
            raise _error(ValueError, f"[{name}] Floating point types not allowed with {word}.")
        if type(other) is array and promote(self._value.dtype, other._value.dtype) in _INEXACT:  # int64 and uint64
            types = f"{self._value.dtype.name} and {other._value.dtype.name}"
            raise _error(RuntimeError, f"[{name}] Only allowed on integer or boolean types but got types {types}.")
        return apply(self, other)

    operator.native = apply.native._replace(others=dict.fromkeys(_INEXACT) | apply.native.others)  # type: ignore
    return operator


class array(Declared):
    """An n-dimensional array, evaluated lazily.

    `array(val, dtype=None)` takes numbers, nested lists and tuples (also with arrays or NumPy data as leaves), buffers,
    NumPy and DLPack arrays. Python ints give int32 (int64 if they do not fit), floats float32, NumPy's float64 float32.
    Raises ValueError for ragged lists and unsupported types.
    """

    __slots__ = ("__weakref__", "_value")
    _value: Value

    def __init__(self, val: Any, dtype: Dtype | None = None):
        if dtype is not None and not isinstance(dtype, Dtype):
            raise TypeError(f"[array] dtype must be a Dtype such as float32, got {dtype!r}")
        self._value = value_of(val, dtype)

    # -- attributes -----------------------------------------------------------------------------------------------
    @property
    def shape(self) -> tuple[int, ...]:
        return self._value.shape

    @property
    def dtype(self) -> Dtype:
        return self._value.dtype

    @property
    def ndim(self) -> int:
        return len(self._value.shape)

    @property
    def size(self) -> int:
        return math.prod(self._value.shape)

    @property
    def itemsize(self) -> int:
        return self._value.dtype.size

    @property
    def nbytes(self) -> int:
        return self.size * self.itemsize

    # -- reading (all of these evaluate) ----------------------------------------------------------------------------
    def _numpy(self) -> np.ndarray:
        """The evaluated data; not to be written to."""
        value = self._value
        if value.buffer is None:
            evaluate([value])
        return value.buffer.numpy()  # type: ignore[union-attr]

    def item(self) -> Any:
        """The only element as a Python number. Raises ValueError if there is not exactly one."""
        if self.size != 1:
            raise _error(ValueError, "[convert] Only length-1 arrays can be converted to Python scalars.")
        data = self._numpy().reshape(())
        return float(data) if self._value.dtype is dtypes.bfloat16 else data.item()

    def tolist(self) -> Any:
        """The elements as (nested lists of) Python numbers."""
        data = self._numpy()
        return (data.astype(np.float32) if self._value.dtype is dtypes.bfloat16 else data).tolist()

    def __repr__(self) -> str:
        return to_string(self._numpy(), self._value.dtype.name)

    def __format__(self, spec: str) -> str:
        if not self._value.shape:
            return format(self.item(), spec)
        if spec:
            raise TypeError("unsupported format string passed to mx.array.__format__")
        return str(self)

    def __bool__(self) -> bool:
        return bool(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __complex__(self) -> complex:
        return complex(self.item())

    def __index__(self) -> int:
        if self._value.shape or not self._value.dtype.is_integer:
            raise TypeError("Only 0-dimensional integer arrays can be converted to an index.")
        return int(self.item())

    def __len__(self) -> int:
        if not self._value.shape:
            raise TypeError("len() 0-dimensional array.")
        return self._value.shape[0]

    def __bytes__(self) -> bytes:
        return self._numpy().tobytes()

    # -- exchange with other libraries ------------------------------------------------------------------------------
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The data for NumPy: without a copy it is a read-only view, because arrays share memory."""
        buffer_protocol.raise_interrupt(self)
        data = self._numpy()
        if dtype is not None and np.dtype(dtype) != data.dtype:
            if copy is False:
                raise ValueError("Unable to avoid copy while creating an array as requested.")
            return data.astype(dtype)
        return data.copy() if copy else interop.read_only(data)

    def __buffer__(self, flags: int) -> memoryview:
        """Python's buffer protocol (asked for from Python 3.12 on; before, see `buffer_protocol`)."""
        return memoryview(interop.buffer_of(self._numpy()))  # type: ignore[arg-type]

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A DLPack capsule over the memory of the array. Raises BufferError for dtypes that DLPack cannot carry."""
        if dl_device is not None and tuple(dl_device) != self.__dlpack_device__():
            raise BufferError("[dlpack] mlxir arrays live on the CPU")
        data = self._numpy()
        return dlpack.export(data.copy() if copy else data)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # kDLCPU

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return sys.modules[__package__]

    def __copy__(self) -> array:
        return wrap(self._value)

    def __deepcopy__(self, memo: dict) -> array:
        return wrap(self._value)

    def __getstate__(self) -> tuple[np.ndarray, Dtype]:
        return np.array(self._numpy()), self._value.dtype

    def __setstate__(self, state: tuple[np.ndarray, Dtype]) -> None:
        self._value = interop.from_data(state[0], state[1])

    def __reduce__(self) -> tuple[Any, ...]:
        return _allocate, (array,), self.__getstate__()

    __hash__ = object.__hash__

    # -- operators --------------------------------------------------------------------------------------------------
    if not TYPE_CHECKING:  # see declared.pyi
        __add__ = _binary("add", "addition")
        __radd__ = _binary("add", "addition", reflected=True)
        __iadd__ = _in_place(__add__)
        __sub__ = _binary("subtract", "subtraction")
        __rsub__ = _binary("subtract", "subtraction", reflected=True)
        __isub__ = _in_place(__sub__)
        __mul__ = _binary("multiply", "multiplication")
        __rmul__ = _binary("multiply", "multiplication", reflected=True)
        __imul__ = _in_place(__mul__)
        __truediv__ = __div__ = _binary("divide", "division", instead=_FLOATING)
        __rtruediv__ = __rdiv__ = _binary("divide", "division", reflected=True, instead=_FLOATING)
        __itruediv__ = _in_place(__truediv__, float_only=True)
        __floordiv__ = _binary("floor_divide", "floor division", instead=_NO_COMPLEX)
        __rfloordiv__ = _binary("floor_divide", "floor division", reflected=True, instead=_NO_COMPLEX)
        __ifloordiv__ = _in_place(__floordiv__)
        __mod__ = _binary("remainder", "modulus", instead=_NO_COMPLEX)
        __rmod__ = _binary("remainder", "modulus", reflected=True, instead=_NO_COMPLEX)
        __imod__ = _in_place(__mod__)
        __pow__ = _binary("power", "power")
        __rpow__ = _binary("power", "power", reflected=True)
        __ipow__ = _in_place(__pow__)
        __eq__ = _comparison("equal", "equality", unlike=False)
        __ne__ = _comparison("not_equal", "inequality", unlike=True)
        __lt__ = _comparison("less", "less than")
        __le__ = _comparison("less_equal", "less than or equal")
        __gt__ = _comparison("greater", "greater than")
        __ge__ = _comparison("greater_equal", "greater than or equal")
        __and__ = _bits("bitwise_and", "bitwise and")
        __iand__ = _in_place(__and__)
        __or__ = _bits("bitwise_or", "bitwise or")
        __ior__ = _in_place(__or__)
        __xor__ = _bits("bitwise_xor", "bitwise xor")
        __ixor__ = _in_place(__xor__)
        __lshift__ = _bits("left_shift", "left shift", shift=True)
        __ilshift__ = _in_place(__lshift__)
        __rshift__ = _bits("right_shift", "right shift", shift=True)
        __irshift__ = _in_place(__rshift__)

    def __neg__(self) -> array:
        x = self._value
        if x.dtype is bool_:
            raise _error(ValueError, "[negative] Not supported for bool, use logical_not instead.")
        return wrap(values.unary(_NEGATIVE, x))

    def __pos__(self) -> array:
        return wrap(self._value)

    def __invert__(self) -> array:
        x = self._value
        if x.dtype in _INEXACT:
            raise _error(ValueError, "[bitwise_invert] Floating point types not allowed with bitwise inversion.")
        return wrap(values.unary(_INVERT, x))


buffer_protocol.enable(array, lambda x: interop.buffer_of(x._numpy()))


def wrap(value: Value) -> array:
    """The array that refers to `value`; nothing is checked."""
    out = _allocate(array)
    out._value = value
    return out


def wrap_new(buffers: list[Buffer]) -> list[array]:
    """Arrays over buffers: what `wrap(constant(buffer))` makes of each, at once."""
    uid = first_uid()  # tells which values are older than a trace: one serves for all
    made = []
    for buffer in buffers:
        value: Value = _allocate(Value)
        value.shape = buffer.shape  # one by one: a longer list of targets makes a tuple first
        value.dtype = buffer.dtype
        value.buffer = buffer
        value.uid = uid
        value.index = 0
        value.node = value.alias = value.trace = value.mark = None
        out = _allocate(array)
        out._value = value
        made.append(out)
    return made


def _error(kind: type[Exception], message: str) -> Exception:
    return with_place(kind(message), user_frame(2))


def value_of(val: Any, dtype: Dtype | None = None) -> Value:
    """What the constructor of `array` makes of `val`: copied data, or the value of another array."""
    if isinstance(val, array):
        return val._value if dtype is None else values.cast(val._value, dtype)
    if isinstance(val, (list, tuple)):
        return interop.from_sequence(val, dtype)
    if isinstance(val, (bool, int, float, complex)):
        return interop.from_number(val, dtype)
    if val is None:
        raise TypeError("[array] None cannot be converted to an array")
    if not interop.holds_data(val):
        raise _error(ValueError, f"[array] Invalid type {type(val).__name__} received in array initialization.")
    return interop.from_data(val, dtype)


def as_value(x: Any, dtype: Dtype | None = None) -> Value:
    """The value of an operand: an array's own, a number as a constant that is weak beside `dtype`, or other array data.

    Raises ValueError for lists and other types, TypeError for None.
    """
    if isinstance(x, array):
        return x._value
    if x is None:
        raise TypeError("[convert] None is no array")
    return interop.to_value(x, dtype)
