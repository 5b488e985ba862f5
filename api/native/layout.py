"""Where the slots of our classes lie in memory, in words from the beginning of an object; found by trying.

Importing this module raises `Unsupported` where native code cannot serve: the interpreter is not CPython with a global
lock and without debugging aids, or a slot is not where it was seen.
"""

from __future__ import annotations

import ctypes
import sys
import sysconfig
from typing import Any

from mlxir.compiler.graph import Tape, Value
from mlxir.runtime.buffers import Buffer, _Holder

from ..ndarray import array
from . import Unsupported


def check_interpreter() -> None:
    """Raises Unsupported but for CPython with 64 bits, a global lock and no debugging aids."""
    odd = [name for name in ("Py_DEBUG", "Py_TRACE_REFS", "Py_REF_DEBUG", "Py_GIL_DISABLED")
           if sysconfig.get_config_var(name)]  # fmt: skip
    if sys.implementation.name != "cpython" or odd or hasattr(sys, "gettotalrefcount"):
        raise Unsupported(f"the interpreter is {sys.implementation.name} {' '.join(odd)}")
    if ctypes.sizeof(ctypes.c_void_p) != 8:
        raise Unsupported("pointers have other than 64 bits")


def _words(x: Any, count: int) -> list[int]:
    return list((ctypes.c_uint64 * count).from_address(id(x)))


def _type_word() -> int:
    """Where an object's type lies, and that its references are counted in word 0."""

    class Probe:
        __slots__ = ("x",)

    probe = Probe()
    if _words(probe, 2)[1] != id(Probe):
        raise Unsupported("an object's type is not its second word")
    for _ in range(3):
        before = _words(probe, 1)[0]
        more = [probe]
        if _words(probe, 1)[0] != before + 1:
            raise Unsupported("references are not counted in an object's first word")
        del more
    return 1


def _slot(cls: type, name: str) -> int:
    """Where a slot lies: the word that holds what is assigned, and nothing when it is deleted."""
    probe: Any = object.__new__(cls)
    count = cls.__basicsize__ // 8
    places = set(range(2, count))
    for marker in (object(), object()):
        setattr(probe, name, marker)
        places &= {i for i, word in enumerate(_words(probe, count)) if word == id(marker)}
    delattr(probe, name)
    found = [i for i in places if not _words(probe, count)[i]]
    if len(found) != 1:
        raise Unsupported(f"{cls.__name__}.{name} is at {found}")
    return found[0]


def _holder_slot(name: str) -> int:
    """A slot of a holder; the class has a destructor, which is no part of the probe."""

    class Probe(_Holder):
        __slots__ = ()

        def __del__(self) -> None:  # type: ignore[override]
            pass

    return _slot(Probe, name)


check_interpreter()
TYPE = _type_word()
ARRAY_VALUE = _slot(array, "_value")
ARRAY_WEAK = array.__weakrefoffset__ // 8
VALUE_SHAPE, VALUE_DTYPE, VALUE_BUFFER = _slot(Value, "shape"), _slot(Value, "dtype"), _slot(Value, "buffer")
VALUE_NODE, VALUE_INDEX, VALUE_UID = _slot(Value, "node"), _slot(Value, "index"), _slot(Value, "uid")
VALUE_OWNER, VALUE_OFFSET = _slot(Value, "owner"), _slot(Value, "offset")
VALUE_ALIAS, VALUE_TRACE, VALUE_MARK = _slot(Value, "alias"), _slot(Value, "trace"), _slot(Value, "mark")
BUFFER_ADDRESS, BUFFER_OWNER = _slot(Buffer, "address"), _slot(Buffer, "owner")
TAPE_KEY, TAPE_OPEN = _slot(Tape, "key"), _slot(Tape, "open")
HOLDER_SIZE, HOLDER_POOL, HOLDER_BLOCK = _holder_slot("size"), _holder_slot("pool"), _holder_slot("block")
