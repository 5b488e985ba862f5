"""Our objects as native code makes and reads them (`words.py` says how these functions are read).

A function returns 0 where it failed, with Python's exception set.
"""

from __future__ import annotations

from .layout import (
    ARRAY_VALUE,
    HOLDER_BLOCK,
    HOLDER_POOL,
    HOLDER_SIZE,
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
    if x[TYPE] != env.int:
        return 0
    return py.PyLong_AsUnsignedLongLong(x)


def take(free, size):
    """A block of the pool: the last free one of its size class, or a fresh one."""
    count = py.PyList_Size(free)
    if count > 0:
        block = new_reference(py.PyList_GetItem(free, count - 1))
        if py.PyList_SetSlice(free, count - 1, count, 0) < 0:
            py.Py_DecRef(block)
            return 0
        return block
    return py.PyObject_CallOneArg(env.fresh, size)


def give(free, size, block):
    """Put a block back, if the pool's bound allows; a new reference to None."""
    bound = py.PyObject_GetAttr(env.knobs, env.pool_bytes)
    if not bound:
        return 0
    limit = unsigned(bound) >> 3
    py.Py_DecRef(bound)
    if py.PyList_Size(free) * py.PyLong_AsLongLong(size) <= limit:
        if py.PyList_Append(free, block) < 0:
            return 0
        return new_reference(env.none)
    arguments = stack(3)
    arguments[0], arguments[1], arguments[2] = env.pool, size, block
    return py.PyObject_VectorcallMethod(env.give, arguments, 3, 0)


@builtin
def release(holder, arguments, count):
    """`_Holder.__del__`: the block goes back to its pool."""
    size, block = holder[HOLDER_SIZE], holder[HOLDER_BLOCK]
    if holder[HOLDER_POOL] != env.pool or not size or not block:
        return py.PyObject_CallOneArg(env.slow_release, holder)
    free = py.PyDict_GetItem(env.free, size)
    if not free:
        return py.PyObject_CallOneArg(env.slow_release, holder)
    return give(free, size, block)


def new_holder(free, size):
    """The owner of a block."""
    block = take(free, size)
    if not block:
        return 0
    holder = py.PyType_GenericAlloc(env.holder, 0)
    if not holder:
        py.Py_DecRef(block)
        return 0
    holder[HOLDER_BLOCK], holder[HOLDER_SIZE] = block, new_reference(size)
    holder[HOLDER_POOL] = new_reference(env.pool)
    return holder


def new_value(shape, dtype, uid):
    """A value of which only the data are missing."""
    value = py.PyType_GenericAlloc(env.value, 0)
    if value:
        value[VALUE_SHAPE], value[VALUE_DTYPE] = new_reference(shape), new_reference(dtype)
        value[VALUE_INDEX], value[VALUE_UID] = new_reference(env.zero), new_reference(uid)
        value[VALUE_NODE], value[VALUE_ALIAS] = new_reference(env.none), new_reference(env.none)
        value[VALUE_TRACE], value[VALUE_MARK] = new_reference(env.none), new_reference(env.none)
    return value


def has_data(value):
    """Whether a value has data, which are there."""
    buffer = value[VALUE_BUFFER]
    return buffer[TYPE] == env.buffer if buffer else value[VALUE_OWNER] != 0


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
