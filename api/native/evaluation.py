"""Evaluations that were seen before, in native code (`words.py` says how these functions are read).

`evaluated(*trees)` does what `compiler/evaluate.py` does by its plans: it finds the arrays that are not evaluated, the
plan of what this thread has recorded since its last evaluation, and, walking the graph as the plan says, the arguments;
then it runs the program. It returns False for whatever is unusual, having changed nothing.
"""

from __future__ import annotations

from .dispatch import compute, empty, hold
from .eager import NODE_INPUTS
from .form import ARRAYS, FRAME, LEAVES, WALK, WALKED
from .layout import ARRAY_VALUE, TAPE_KEY, TAPE_OPEN, TYPE, VALUE_BUFFER, VALUE_MARK, VALUE_NODE
from .objects import exactly, has_data, new_reference, replace
from .results import set_output
from .words import builtin, env, py, stack

DEEPEST = 100  # containers inside containers; one may hold itself
PLAN_WORDS = 3  # the field of `evaluate.Plan` that holds a plan for native code, or None


def collect(x, wanted, depth):
    """Append the values of a tree that have no data; 0 for anything unusual."""
    kind = x[TYPE]
    if kind == env.array:
        x = x[ARRAY_VALUE]
        kind = x[TYPE] if x else 0
    if kind == env.value:
        if x[VALUE_BUFFER] == env.none:
            return py.PyList_Append(wanted, x) == 0
        return has_data(x)
    if depth > DEEPEST:
        return 0
    if kind == env.dict:
        return collect_dict(x, wanted, depth)
    if kind == env.list:
        for i in range(py.PyList_Size(x)):
            if not collect(py.PyList_GetItem(x, i), wanted, depth + 1):
                return 0
        return 1
    if kind == env.tuple:
        for i in range(py.PyTuple_Size(x)):
            if not collect(py.PyTuple_GetItem(x, i), wanted, depth + 1):
                return 0
        return 1
    return kind == env.int or kind == env.float or kind == env.str or x == env.none


def collect_dict(x, wanted, depth):
    place = stack(3)  # of the iteration, key, item
    while py.PyDict_Next(x, place, place + 8, place + 16):
        if not collect(place[2], wanted, depth + 1):
            return 0
    return 1


def key_of(tape, wanted):
    """What the plan of an evaluation is found by (`evaluate._key`), or 0."""
    recorded, count = py.PyList_Size(tape[TAPE_KEY]), py.PyList_Size(wanted)
    key = py.PyTuple_New(recorded + count)
    if not key:
        py.PyErr_Clear()
        return 0
    for i in range(recorded):
        py.PyTuple_SetItem(key, i, new_reference(py.PyList_GetItem(tape[TAPE_KEY], i)))
    for i in range(count):
        value = py.PyList_GetItem(wanted, i)
        mark = value[VALUE_MARK]
        if mark[TYPE] != env.tuple or py.PyTuple_GetItem(mark, 0) != tape or value[VALUE_NODE] == env.none:
            py.Py_DecRef(key)
            return 0
        py.PyTuple_SetItem(key, recorded + i, new_reference(py.PyTuple_GetItem(mark, 1)))
    return key


def node_at(nodes, pair):
    """The value that is an input of a node; the pair says which."""
    return py.PyTuple_GetItem(py.PyTuple_GetItem(nodes[pair[0]], NODE_INPUTS), pair[1])


def arguments(plan, frame, wanted):
    """Find the arguments by walking from the nodes of the wanted values; 0 if they are not all there."""
    count, walked = py.PyList_Size(wanted), plan[WALKED]
    nodes = stack(count + walked)
    for i in range(count):
        nodes[i] = py.PyList_GetItem(wanted, i)[VALUE_NODE]
        if nodes[i][TYPE] != env.node:
            return 0
    for i in range(walked):
        nodes[count + i] = node_at(nodes, plan + 8 * (plan[WALK] + 2 * i))[VALUE_NODE]
        if nodes[count + i][TYPE] != env.node:  # evaluated meanwhile
            return 0
    for i in range(plan[ARRAYS]):
        value = node_at(nodes, plan + 8 * (plan[LEAVES] + 2 * i))
        if not has_data(value) or not hold(plan, frame, value):
            return 0
    return 1


def settle(plan, frame, wanted):
    """The wanted values get their data, and let go of their graph."""
    for i in range(py.PyList_Size(wanted)):
        value = py.PyList_GetItem(wanted, i)
        set_output(plan, frame, value, i)
        replace(value + 8 * VALUE_NODE, new_reference(env.none))


def replay(plan, tape, wanted):
    """Evaluate by a plan: 1, 0 if it does not serve, -1 with an exception."""
    frame = stack(plan[FRAME])
    done = arguments(plan, frame, wanted)
    if done:
        done = 1 if compute(plan, frame) else -1
    if done > 0:
        settle(plan, frame, wanted)
        done = 1 if new_tape() else -1
    empty(plan, frame)
    return done


def new_tape():
    """This thread begins to record anew."""
    key = py.PyList_New(0)
    tape = py.PyType_GenericAlloc(env.tape, 0) if key else 0
    if not tape:
        return 0
    tape[TAPE_KEY], tape[TAPE_OPEN] = key, new_reference(env.false)
    failed = py.PyObject_SetAttr(env.running, env.word_tape, tape)
    py.Py_DecRef(tape)
    return not failed


def by_plan(wanted):
    """Evaluate what is wanted: 1, 0 if no plan serves, -1 with an exception."""
    tier = py.PyObject_GetAttr(env.knobs, env.word_tier)
    if not tier:
        return -1
    reference = exactly(tier, env.word_reference)
    py.Py_DecRef(tier)
    if reference:
        return 0
    tape = py.PyObject_GetAttr(env.running, env.word_tape)
    if not tape:
        return -1
    done, key = 0, 0
    if tape != env.none and tape[TAPE_OPEN] == env.false:
        key = key_of(tape, wanted)
    if key:
        known = py.PyDict_GetItem(env.plans, key)
        words = py.PyTuple_GetItem(known, PLAN_WORDS) if known else env.none
        if words != env.none:
            new_reference(words)
            done = replay(py.PyBytes_AsString(py.PyTuple_GetItem(words, 0)), tape, wanted)
            py.Py_DecRef(words)
        py.Py_DecRef(key)
    py.Py_DecRef(tape)
    return done


@builtin
def evaluated(self, arguments, count):
    """`evaluated(*trees)`: whether all arrays of the trees, or values, have their data now."""
    wanted = py.PyList_New(0)
    if not wanted:
        return 0
    done = 1
    for i in range(count):
        if not collect(arguments[i], wanted, 0):
            py.PyErr_Clear()
            done = 0
            break
    if done and py.PyList_Size(wanted):
        done = by_plan(wanted)
    py.Py_DecRef(wanted)
    if done < 0:
        return 0
    return new_reference(env.true if done else env.false)
