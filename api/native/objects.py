"""Our objects as native code makes and reads them (`words.py` says how these functions are read).

A function returns 0 where it failed, with Python's exception set.
"""

from __future__ import annotations

from .layout import (
    ARRAY_VALUE,
    HOLDER_BLOCK,
    HOLDER_BYTES,
    HOLDER_FREE,
    HOLDER_SIZE,
    HOLDER_START,
    INT_DIGITS,
    INT_TAG,
    ITEM_COUNT,
    KNOB_POOL_BYTES,
    LIST_ITEMS,
    ONE_DIGIT,
    TUPLE_ITEMS,
    TWO_DIGITS,
    TYPE,
    VALUE_ALIAS,
    VALUE_BUFFER,
    VALUE_DTYPE,
    VALUE_INDEX,
    VALUE_MARK,
    VALUE_NODE,
    VALUE_OFFSET,
    VALUE_OWNER,
    VALUE_SHAPE,
    VALUE_TRACE,
    VALUE_UID,
)
from .words import builtin, env, py, stack

EQUAL = 2  # Py_EQ
IMMORTAL = 1 << 31
DIGIT = (1 << 30) - 1


def new_reference(x):
    """`x`, referred to once more. (Immortal objects, from Python 3.12 on, have bit 31 of their count set.)"""
    count = x[0]
    if not count & IMMORTAL:
        x[0] = count + 1
    return x


def replace(slot, new):
    """Store a reference, which is taken over."""
    old = slot[0]
    slot[0] = new
    if old:
        py.Py_DecRef(old)


def exactly(x, y):
    """Whether two objects of one type are equal. Only for types whose comparison runs no code of the user's."""
    if x == y:
        return 1
    if x[TYPE] != y[TYPE]:
        return 0
    found = py.PyObject_RichCompareBool(x, y, EQUAL)
    if found < 0:
        py.PyErr_Clear()
        return 0
    return found


def unsigned(x):
    """The number of an int object; 0 for what is none."""
    if x == env.zero or x[TYPE] != env.int:
        return 0
    if x[INT_TAG] == TWO_DIGITS:  # most addresses
        return (x[INT_DIGITS] & DIGIT) + (x[INT_DIGITS] >> 32 << 30)
    if x[INT_TAG] == ONE_DIGIT:
        return x[INT_DIGITS] & DIGIT
    return py.PyLong_AsUnsignedLongLong(x)


def same_shape(x, y):
    """Whether two shapes, tuples of ints, are equal."""
    if x == y:
        return 1
    if y[TYPE] != env.tuple or x[ITEM_COUNT] != y[ITEM_COUNT]:
        return 0
    for i in range(x[ITEM_COUNT]):
        if not exactly(x[TUPLE_ITEMS + i], y[TUPLE_ITEMS + i]):
            return 0
    return 1


def take(free, size):
    """A block of the pool: the last free one of its size class, or a fresh one."""
    count = free[ITEM_COUNT]
    if count > 0:
        free[ITEM_COUNT] = count - 1
        return free[LIST_ITEMS][count - 1]
    return py.PyObject_CallOneArg(env.fresh, size)


def give(free, size, nbytes, block):
    """Put a block back, if the pool's bound allows; takes over the reference. Exceptions stay as they are."""
    count = free[ITEM_COUNT]
    if count == 0 or count * nbytes <= unsigned(env.knobs[KNOB_POOL_BYTES]) >> 3:
        if py.PyList_Append(free, block) < 0:
            py.PyErr_Clear()
    else:
        error = stack(3)
        py.PyErr_Fetch(error, error + 8, error + 16)
        arguments = stack(3)
        arguments[0], arguments[1], arguments[2] = env.pool, size, block
        done = py.PyObject_VectorcallMethod(env.give, arguments, 3, 0)
        if done:
            py.Py_DecRef(done)
        py.PyErr_Restore(error[0], error[1], error[2])
    py.Py_DecRef(block)


def new_holder(free, size, nbytes):
    """The owner of a block."""
    block = take(free, size)
    if not block:
        return 0
    holder = py.PyType_GenericAlloc(env.holder, 0)
    if not holder:
        py.Py_DecRef(block)
        return 0
    holder[HOLDER_BLOCK], holder[HOLDER_FREE], holder[HOLDER_SIZE] = block, new_reference(free), new_reference(size)
    holder[HOLDER_START], holder[HOLDER_BYTES] = unsigned(block[TUPLE_ITEMS]), nbytes
    return holder


@builtin
def make_holder(self, arguments, count):
    """What `_Holder(size, pool)` calls: a holder for Python, of this class or, for other pools, of that in Python."""
    if count == 2 and arguments[1] == env.pool:
        free = py.PyDict_GetItem(env.free, arguments[0])
        if free:
            return new_holder(free, arguments[0], unsigned(arguments[0]))
    return py.PyObject_Vectorcall(env.slow_holder, arguments, count, 0)


@builtin
def drop_holder(holder):
    """The deallocator of holders: the block goes back to its pool."""
    give(holder[HOLDER_FREE], holder[HOLDER_SIZE], holder[HOLDER_BYTES], holder[HOLDER_BLOCK])
    py.Py_DecRef(holder[HOLDER_FREE])
    py.Py_DecRef(holder[HOLDER_SIZE])
    kind = holder[TYPE]
    py.PyObject_Free(holder)
    py.Py_DecRef(kind)


def new_value(shape, dtype):
    """A value of which only the data are missing; older than any trace that may come to see it."""
    value = py.PyType_GenericAlloc(env.value, 0)
    if value:
        value[VALUE_SHAPE], value[VALUE_DTYPE] = new_reference(shape), new_reference(dtype)
        value[VALUE_INDEX], value[VALUE_UID] = new_reference(env.zero), new_reference(env.zero)
        value[VALUE_NODE], value[VALUE_ALIAS] = new_reference(env.none), new_reference(env.none)
        value[VALUE_TRACE], value[VALUE_MARK] = new_reference(env.none), new_reference(env.none)
    return value


def has_data(value):
    """Whether a value has data, which are there."""
    buffer = value[VALUE_BUFFER]
    if buffer:
        return buffer[TYPE] == env.buffer
    owner = value[VALUE_OWNER]
    return owner and owner[TYPE] == env.holder


def set_data(value, buffer, owner, offset):
    """Let a value have other data: a buffer, or what it lies in and where; the references are taken over."""
    old_buffer, old_owner, old_offset = value[VALUE_BUFFER], value[VALUE_OWNER], value[VALUE_OFFSET]
    value[VALUE_BUFFER], value[VALUE_OWNER], value[VALUE_OFFSET] = buffer, owner, offset
    py.Py_DecRef(old_buffer)  # only now: there may be destructors
    py.Py_DecRef(old_owner)
    py.Py_DecRef(old_offset)


def wrap(value):
    """The array that refers to a value."""
    out = py.PyType_GenericAlloc(env.array, 0)
    if out:
        out[ARRAY_VALUE] = new_reference(value)
    return out
