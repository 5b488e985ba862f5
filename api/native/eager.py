"""Operators of arrays outside traces, in native code (`words.py` says how these functions are read).

`binary` does what the operators of `ndarray._binary` do where nothing is promoted, cast or broadcast but scalars: it
records a node, and appends the operation to this thread's tape (`compiler/graph.py`). Whatever else there is goes to
the operator in Python. `a * 2.0` costs ten allocations and no frame of Python's.
"""

from __future__ import annotations

from .layout import (
    ARRAY_VALUE,
    ITEM_COUNT,
    TAPE_KEY,
    TUPLE_ITEMS,
    TYPE,
    VALUE_ALIAS,
    VALUE_BUFFER,
    VALUE_DTYPE,
    VALUE_INDEX,
    VALUE_MARK,
    VALUE_NODE,
    VALUE_SHAPE,
    VALUE_TRACE,
    VALUE_UID,
)
from .objects import exactly, new_reference, wrap
from .words import env, py, stack

# Words of an operator.
PRIMITIVE = 0
RESULT = 1  # the dtype of the result, or 0: that of the operands
REPLACED = 2  # a dict with the dtypes that the primitive does not work in
REFLECTED = 3
SLOWLY = 4  # the operator in Python
OPERATOR = 5  # words

# Where operations were called, by code object and instruction: (code, instruction, what `user_frame` returns) each.
PLACES = 1024

LONGEST = 4096  # `Tape.LONGEST`
NODE_INPUTS, NODE_AVALS = 2, 3  # fields of a `Node`


def binary(x, arguments, count, which):
    """An operator's method: `x op arguments[0]`."""
    operator = env.operators + 8 * OPERATOR * which
    if count == 1 and x[TYPE] == env.array:
        tape = py.PyObject_GetAttr(env.running, env.word_tape)
        if not tape:
            return 0
        out = env.none
        if tape != env.none:
            out = recorded(operator, tape, x[ARRAY_VALUE], arguments[0])
        py.Py_DecRef(tape)
        if out != env.none:
            return out
    both = stack(2)
    both[0], both[1] = x, arguments[0] if count else 0
    return py.PyObject_Vectorcall(operator[SLOWLY], both, 1 + (count == 1), 0)


def recorded(operator, tape, a, other):
    """The array of a new node, 0 with an exception, or None (borrowed) for what Python should do."""
    if not a:
        return env.none
    number = other[TYPE] != env.array
    b = constant(other[TYPE], a[VALUE_DTYPE], other) if number else other[ARRAY_VALUE]
    if not b or b[VALUE_DTYPE] != a[VALUE_DTYPE]:
        return env.none
    if operator[REPLACED] and py.PyDict_Contains(operator[REPLACED], a[VALUE_DTYPE]):
        return env.none
    new_reference(a)
    new_reference(b)
    out = applied(operator, tape, a, b, number)
    py.Py_DecRef(a)
    py.Py_DecRef(b)
    return out


def applied(operator, tape, a, b, number):
    """The same for operands of one dtype; `number` says that the second is a constant."""
    shape, dtype = a[VALUE_SHAPE], a[VALUE_DTYPE]
    if shape[TYPE] != env.tuple or b[VALUE_SHAPE][TYPE] != env.tuple:
        return env.none
    if not number and b[VALUE_SHAPE] != shape:
        if shape[ITEM_COUNT] == 0:
            shape = b[VALUE_SHAPE]
        elif b[VALUE_SHAPE][ITEM_COUNT] and not exactly(shape, b[VALUE_SHAPE]):
            return env.none
    operands = pair(b, a) if operator[REFLECTED] else pair(a, b)
    if not operands:
        return 0
    if operator[RESULT]:
        dtype = operator[RESULT]
    node = new_node(operator[PRIMITIVE], operands, a, shape, dtype)
    if not node:
        return 0
    value = taped(tape, node, shape, dtype, b if number else 0)
    if not value:
        return 0
    out = wrap(value)
    py.Py_DecRef(value)
    return out


def constant(kind, dtype, number):
    """The value of a Python number that was met before (borrowed), or 0."""
    known = py.PyDict_GetItem(env.constants, kind)
    if known:
        known = py.PyDict_GetItem(known, dtype)
    return py.PyDict_GetItem(known, number) if known else 0


def pair(x, y):
    out = py.PyTuple_New(2)
    if out:
        out[TUPLE_ITEMS] = new_reference(x)
        out[TUPLE_ITEMS + 1] = new_reference(y)
    return out


def new_node(primitive, operands, a, shape, dtype):
    """A `Node`, which takes over `operands`. Results of the type of `a` share its `avals`."""
    avals, known = 0, a[VALUE_NODE]
    if known[TYPE] == env.node and shape == a[VALUE_SHAPE] and dtype == a[VALUE_DTYPE]:
        avals = known[TUPLE_ITEMS + NODE_AVALS]
        avals = new_reference(avals) if avals[TYPE] == env.tuple and avals[ITEM_COUNT] == 1 else 0
    if not avals:
        avals = new_avals(shape, dtype)
    where = place() if avals else 0
    node = py.PyType_GenericAlloc(env.node, 5) if where else 0
    if not node:
        py.Py_DecRef(operands)
        if avals:
            py.Py_DecRef(avals)
        if where:
            py.Py_DecRef(where)
        return 0
    node[TUPLE_ITEMS] = new_reference(primitive)
    node[TUPLE_ITEMS + 1] = new_reference(env.no_attrs)
    node[TUPLE_ITEMS + 2] = operands
    node[TUPLE_ITEMS + 3] = avals
    node[TUPLE_ITEMS + 4] = where
    return node


def new_avals(shape, dtype):
    aval = py.PyType_GenericAlloc(env.aval, 2)
    if not aval:
        return 0
    aval[TUPLE_ITEMS] = new_reference(shape)
    aval[TUPLE_ITEMS + 1] = new_reference(dtype)
    out = py.PyTuple_New(1)
    if not out:
        py.Py_DecRef(aval)
        return 0
    out[TUPLE_ITEMS] = aval
    return out


def place():
    """Where the user called (`errors.user_frame`); remembered for calls straight from the user's code."""
    frame = py.PyEval_GetFrame()
    if not frame:
        return new_reference(env.none)
    code, instruction = py.PyFrame_GetCode(frame), py.PyFrame_GetLasti(frame)
    known = env.places + 24 * (((code >> 4) + (instruction >> 1)) & (PLACES - 1))
    if known[0] == code and known[1] == instruction:
        py.Py_DecRef(code)
        return new_reference(known[2])
    where = py.PyObject_CallNoArgs(env.user_frame)
    if where and where[TYPE] == env.tuple and where[TUPLE_ITEMS] == code:
        old = known[2]
        known[0], known[1], known[2] = code, instruction, new_reference(where)
        if old:
            py.Py_DecRef(old)  # it holds the code that was here
    py.Py_DecRef(code)
    return where


def taped(tape, node, shape, dtype, number):
    """The value of a node, which it takes over, appended to the tape. `number` is an operand that is a constant."""
    key = tape[TAPE_KEY]
    operands = node[TUPLE_ITEMS + NODE_INPUTS]
    i = marked(tape, key, operands[TUPLE_ITEMS], number)
    j = marked(tape, key, operands[TUPLE_ITEMS + 1], number) if i else 0
    entry = py.PyTuple_New(4) if j else 0
    if entry:
        entry[TUPLE_ITEMS] = new_reference(node[TUPLE_ITEMS])
        entry[TUPLE_ITEMS + 1] = new_reference(dtype)
        entry[TUPLE_ITEMS + 2] = new_reference(i)
        entry[TUPLE_ITEMS + 3] = new_reference(j)
    mark = new_mark(tape, key) if entry else 0
    value = py.PyType_GenericAlloc(env.value, 0) if mark else 0
    if value:
        value[VALUE_SHAPE], value[VALUE_DTYPE] = new_reference(shape), new_reference(dtype)
        value[VALUE_NODE], value[VALUE_INDEX] = new_reference(node), new_reference(env.zero)
        value[VALUE_BUFFER], value[VALUE_ALIAS] = new_reference(env.none), new_reference(env.none)
        value[VALUE_TRACE], value[VALUE_MARK] = new_reference(env.none), new_reference(mark)
        value[VALUE_UID] = py.PyIter_Next(env.uids)
        if py.PyList_Append(key, entry) < 0:
            py.Py_DecRef(value)
            value = 0
    py.Py_DecRef(node)
    if entry:
        py.Py_DecRef(entry)
    if mark:
        py.Py_DecRef(mark)
    if value and key[ITEM_COUNT] > LONGEST:
        return begun_again(value)
    return value


def begun_again(value):
    """The value, after this thread got a new tape."""
    tape = py.PyObject_CallNoArgs(env.tape)
    failed = py.PyObject_SetAttr(env.running, env.word_tape, tape) if tape else -1
    if tape:
        py.Py_DecRef(tape)
    if failed:
        py.Py_DecRef(value)
        return 0
    return value


def new_mark(tape, key):
    """(tape, the next place in its key)."""
    number = py.PyLong_FromLongLong(key[ITEM_COUNT])
    if not number:
        return 0
    mark = pair(tape, number)
    py.Py_DecRef(number)
    return mark


def leaf(tape, x):
    """The same by `Tape.leaf`."""
    arguments = stack(2)
    arguments[0], arguments[1] = tape, x
    found = py.PyObject_VectorcallMethod(env.word_leaf, arguments, 2, 0)
    if not found:
        return 0
    py.Py_DecRef(found)
    return x[VALUE_MARK][TUPLE_ITEMS + 1]


def marked(tape, key, x, number):
    """The place of an operand in the key, an int object (borrowed); what was not recorded here enters it now."""
    mark = x[VALUE_MARK]
    if mark[TYPE] == env.tuple and mark[TUPLE_ITEMS] == tape:
        return mark[TUPLE_ITEMS + 1]
    entry = py.PyDict_GetItem(env.constant_entries, x[VALUE_NODE]) if x == number else 0
    if entry:
        new_reference(entry)
    elif x[VALUE_BUFFER] == env.none and x[VALUE_NODE] != env.none:
        return leaf(tape, x)
    else:
        entry = pair(x[VALUE_SHAPE], x[VALUE_DTYPE])
    mark = new_mark(tape, key) if entry else 0
    failed = py.PyList_Append(key, entry) if mark else -1
    if entry:
        py.Py_DecRef(entry)
    if failed:
        if mark:
            py.Py_DecRef(mark)
        return 0
    old = x[VALUE_MARK]
    x[VALUE_MARK] = mark
    py.Py_DecRef(old)
    return mark[TUPLE_ITEMS + 1]
