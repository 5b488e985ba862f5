"""The results of a call: new trees, and captured outputs (`words.py` says how these functions are read)."""

from __future__ import annotations

from .form import (
    ARRAYS,
    BLOCK_COUNT,
    CONSTANT,
    CURSOR,
    DICT,
    ENTRIES,
    EXTRA,
    EXTRAS,
    FED,
    GIVEN,
    HOLDS,
    IGNORED,
    LIST,
    LISTS,
    MAKE,
    MEMBER,
    MEMBERS,
    NEW,
    OUTPUTS_AT,
    OUTSIDE,
    RANDOM,
    TUPLE,
)
from .layout import (
    ARRAY_VALUE,
    ARRAY_WEAK,
    ITEM_COUNT,
    LIST_ITEMS,
    TUPLE_ITEMS,
    TYPE,
    VALUE_ALIAS,
    VALUE_BUFFER,
    VALUE_DTYPE,
    VALUE_MARK,
    VALUE_NODE,
    VALUE_OFFSET,
    VALUE_OWNER,
    VALUE_SHAPE,
    VALUE_TRACE,
    VALUE_UID,
)
from .objects import new_reference, new_value, replace, same_shape, set_data, wrap
from .words import env, py


def set_output(plan, frame, value, j):
    """Let a value, which has the right shape and dtype, be output j of the program: a result of its kernels, an
    argument or a captured array.
    """
    entry, arrays = plan[plan[ENTRIES] + j], plan[ARRAYS]
    if entry >= arrays + plan[EXTRAS]:
        member = plan + 8 * (plan[MEMBERS] + MEMBER * (entry - arrays - plan[EXTRAS]))
        holder = frame[LISTS + 2 * arrays + member[0]]
        set_data(value, 0, new_reference(holder), new_reference(member[2]))
    elif entry >= arrays:
        extra = plan + 8 * (plan[EXTRA] + 2 * (entry - arrays))
        buffer = extra[0] if extra[1] < 0 else frame[FED][TUPLE_ITEMS + extra[1]]
        set_data(value, new_reference(buffer), 0, 0)
    else:
        given = frame[LISTS + entry]
        buffer, owner, offset = given[VALUE_BUFFER], given[VALUE_OWNER], given[VALUE_OFFSET]
        if owner:
            new_reference(owner)
            new_reference(offset)
        set_data(value, new_reference(buffer) if buffer else 0, owner, offset)


def found_value(plan, frame, at):
    """The value that a NEW, GIVEN or OUTSIDE node names (borrowed)."""
    if at[0] == GIVEN:
        return frame[LISTS + at[1]]
    if at[0] == OUTSIDE:
        return at[1]
    made = frame + 8 * (LISTS + 2 * plan[ARRAYS] + plan[BLOCK_COUNT] + at[1])
    if not made[0]:
        output = plan + 8 * (plan[OUTPUTS_AT] + 2 * at[1])
        made[0] = new_value(output[0], output[1])
        if made[0]:
            set_output(plan, frame, made[0], at[1])
    return made[0]


def found_array(plan, frame, at):
    value = found_value(plan, frame, at)
    return wrap(value) if value else 0


def build(plan, frame):
    """A new tree, as the node at the cursor says."""
    at = plan + 8 * frame[CURSOR]
    kind = at[0]
    if kind == CONSTANT:
        frame[CURSOR] += 3
        return new_reference(at[2])
    if kind == DICT:
        frame[CURSOR] += 3
        return build_dict(plan, frame, at[1], at[2])
    if kind != NEW and kind != GIVEN and kind != OUTSIDE:
        frame[CURSOR] += 3
        items = build_items(plan, frame, at[2], kind)
        if kind == MAKE and items:
            made = py.PyObject_CallOneArg(at[1], items)
            py.Py_DecRef(items)
            return made
        return items
    frame[CURSOR] += 2
    return found_array(plan, frame, at)


def build_dict(plan, frame, model, n):
    """A dict with the keys of another, in their order."""
    out = py.PyDict_Copy(model)
    for _ in range(n if out else 0):
        key = plan[frame[CURSOR]]
        frame[CURSOR] += 1
        item = build(plan, frame)
        failed = py.PyDict_SetItem(out, key, item) if item else -1
        if item:
            py.Py_DecRef(item)
        if failed:
            py.Py_DecRef(out)
            return 0
    return out


def build_items(plan, frame, n, kind):
    out = py.PyTuple_New(n) if kind == TUPLE else py.PyList_New(n)
    for i in range(n if out else 0):
        item = build(plan, frame)
        if not item:
            py.Py_DecRef(out)
            return 0
        if kind == TUPLE:
            out[TUPLE_ITEMS + i] = item
        else:
            out[LIST_ITEMS][i] = item
    return out


def write(plan, frame, x):
    """Put new arrays into captured outputs `x`, a container or the random state, as the node at the cursor says."""
    at = plan + 8 * frame[CURSOR]
    kind = at[0]
    if kind == RANDOM:
        frame[CURSOR] += 3
        value = found_value(plan, frame, at + 8)
        return value and py.PyObject_SetAttr(x, env.word_value, value) == 0
    if x[TYPE] != at[1]:
        py.PyErr_SetObject(env.value_error, env.changed)
        return 0
    frame[CURSOR] += 3
    for i in range(at[2]):
        key = 0
        if kind == DICT:
            key = plan[frame[CURSOR]]
            frame[CURSOR] += 1
        if not write_child(plan, frame, x, kind, key, i):
            return 0
    return 1


def write_child(plan, frame, x, kind, key, i):
    at = plan + 8 * frame[CURSOR]
    if at[0] == IGNORED:
        frame[CURSOR] += 2
        return 1
    item = child(x, kind, key, i)
    if at[0] == NEW or at[0] == GIVEN or at[0] == OUTSIDE:
        frame[CURSOR] += 2
        if at[0] == NEW and item and renew(plan, frame, item, at[1]):
            return 1
        new = found_array(plan, frame, at)
        if not new:
            return 0
        failed = py.PyObject_SetItem(x, key, new) if kind == DICT else py.PySequence_SetItem(x, i, new)
        py.Py_DecRef(new)
        return failed == 0
    if not item:
        py.PyErr_SetObject(env.value_error, env.changed)
        return 0
    new_reference(item)
    done = write(plan, frame, item)
    py.Py_DecRef(item)
    return done


def child(x, kind, key, i):
    """What a container holds (borrowed), or 0."""
    if kind == DICT:
        return py.PyDict_GetItem(x, key)
    if i >= x[ITEM_COUNT]:
        return 0
    return x[LIST_ITEMS][i] if kind == LIST else x[TUPLE_ITEMS + i]


def renew(plan, frame, x, j):
    """Let the array `x` itself be output j of the program, where nobody could tell it from a new array: nothing refers
    to it but its container, and to its value nothing but it. Two allocations less for each array.
    """
    if x[TYPE] != env.array or x[0] != 1 or x[ARRAY_WEAK] or plan[HOLDS]:
        return 0
    value, output = x[ARRAY_VALUE], plan + 8 * (plan[OUTPUTS_AT] + 2 * j)
    if not value or value[0] != 1 or value[VALUE_NODE] != env.none:
        return 0
    if value[VALUE_ALIAS] != env.none or value[VALUE_TRACE] != env.none or value[VALUE_DTYPE] != output[1]:
        return 0
    if not same_shape(output[0], value[VALUE_SHAPE]):
        return 0
    new_reference(value)  # what is let go of may have a destructor
    replace(value + 8 * VALUE_UID, new_reference(env.zero))
    replace(value + 8 * VALUE_MARK, new_reference(env.none))
    set_output(plan, frame, value, j)
    py.Py_DecRef(value)
    return 1
