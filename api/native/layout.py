"""Where the slots of our classes lie in memory, in words from the beginning of an object; found by trying.

Importing this module raises `Unsupported` where native code cannot serve: the interpreter is not CPython with a global
lock and without debugging aids, or a slot is not where it was seen.
"""

from __future__ import annotations

import ctypes
import struct
import sys
import sysconfig
from typing import Any

from mlxir.compiler.graph import Tape, Value
from mlxir.runtime.buffers import Buffer
from mlxir.runtime.knobs import Knobs

from ..ndarray import array
from . import Unsupported
from .functions import Function


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


def _items() -> tuple[int, int, int]:
    """Where the number of items of a list or tuple lies, the pointer to those of a list, the first of those of a tuple.

    The number is read and, to take the last item of a list, written, as the macros of the C API do.
    """
    items = [object() for _ in range(5)]
    in_tuple = _words((*items,), 9)
    first = next((i for i in range(2, 5) if in_tuple[i : i + 5] == [id(x) for x in items]), 0)
    words = _words(items, 4)
    taken = list(items)
    ctypes.c_uint64.from_address(id(taken) + 16).value = 4
    ctypes.pythonapi.Py_DecRef(ctypes.py_object(items[4]))  # the list's
    if not first or words[2] != 5 or in_tuple[2] != 5 or taken != items[:4]:
        raise Unsupported("lists or tuples lie otherwise")
    if list((ctypes.c_uint64 * 5).from_address(words[3])) != in_tuple[first : first + 5]:
        raise Unsupported("the items of a list lie otherwise")
    return 2, 3, first


def _float_bits() -> int:
    """Where the bits of a float lie."""
    for x in (1.5, -2.25):
        (bits,) = struct.unpack("q", struct.pack("d", x))
        if _words(x, 3)[2:] != [bits & (1 << 64) - 1]:
            raise Unsupported("floats lie otherwise")
    return 2


def _int_tags() -> tuple[int, int]:
    """What word 2 of an int of one digit, and of two digits, is. The digits, of 30 bits each, lie in word 3."""
    tags = []
    for examples in ((3, (1 << 30) - 1), (1 << 30, (5 << 30) + 7, (1 << 60) - 1)):
        tags.append(_words(examples[0], 3)[2])
        for x in examples:
            tag, digits = _words(x, 4)[2:]
            high = digits >> 32 << 30 if len(tags) == 2 else 0
            if tag != tags[-1] or (digits & (1 << 30) - 1) + high != x:
                raise Unsupported("ints lie otherwise")
    if tags[0] == tags[1] or any([_words(x, 3)[2] in tags for x in (0, -3, -(1 << 40), 1 << 60)]):
        raise Unsupported("ints lie otherwise")
    return tags[0], tags[1]


check_interpreter()
TYPE = _type_word()
ARRAY_VALUE = _slot(array, "_value")
ARRAY_WEAK = array.__weakrefoffset__ // 8
VALUE_SHAPE, VALUE_DTYPE, VALUE_BUFFER = _slot(Value, "shape"), _slot(Value, "dtype"), _slot(Value, "buffer")
VALUE_NODE, VALUE_INDEX, VALUE_UID = _slot(Value, "node"), _slot(Value, "index"), _slot(Value, "uid")
VALUE_OWNER, VALUE_OFFSET = _slot(Value, "owner"), _slot(Value, "offset")
VALUE_ALIAS, VALUE_TRACE, VALUE_MARK = _slot(Value, "alias"), _slot(Value, "trace"), _slot(Value, "mark")
BUFFER_ADDRESS, BUFFER_OWNER, BUFFER_VIEW = _slot(Buffer, "address"), _slot(Buffer, "owner"), _slot(Buffer, "_view")
TAPE_KEY, TAPE_OPEN = _slot(Tape, "key"), _slot(Tape, "open")
KNOB_POOL_BYTES, KNOB_THREADS = _slot(Knobs, "pool_bytes"), _slot(Knobs, "threads")
KNOB_DISABLE_COMPILE, KNOB_TIER = _slot(Knobs, "disable_compile"), _slot(Knobs, "tier")
FUNCTION_PLANS, FUNCTION_SLOWLY = _slot(Function, "plans"), _slot(Function, "slowly")
FUNCTION_ENTER, FUNCTION_LEAVE = _slot(Function, "enter"), _slot(Function, "leave")
FLOAT_BITS = _float_bits()
INT_TAG, INT_DIGITS, (ONE_DIGIT, TWO_DIGITS) = 2, 3, _int_tags()
ITEM_COUNT, LIST_ITEMS, TUPLE_ITEMS = _items()

# A holder, the owner of a block for results, is a class of native code's own (`library.py` makes it).
HOLDER_BLOCK = 2
HOLDER_FREE = 3  # the list where the block goes back to
HOLDER_SIZE = 4  # its size class, an int object
HOLDER_START = 5  # its address, a word
HOLDER_BYTES = 6  # the same size class, a word
HOLDER_WORDS = 7
