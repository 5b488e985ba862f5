"""Evaluations that were seen before, in native code (`words.py` says how these functions are read).

`evaluated(*trees)` does what `compiler/evaluate.py` does by its plans: it finds the arrays that are not evaluated, the
plan of what this thread has recorded since its last evaluation, and, walking the graph as the plan says, the arguments;
then it runs the program. It returns False for whatever is unusual, having changed nothing.
"""

from __future__ import annotations

from .dispatch import compute, empty, hold
from .eager import NODE_INPUTS
from .form import ARRAYS, FRAME, GRAPH, LEAVES, WALK, WALKED
from .layout import (
    ARRAY_VALUE,
    ITEM_COUNT,
    KNOB_TIER,
    LIST_ITEMS,
    TAPE_KEY,
    TAPE_OPEN,
    TUPLE_ITEMS,
    TYPE,
    VALUE_BUFFER,
    VALUE_MARK,
    VALUE_NODE,
)
from .objects import exactly, has_data, new_reference, replace
from .results import set_output
from .words import builtin, env, py, stack

DEEPEST = 100  # containers inside containers; one may hold itself
PLAN_WORDS = 3  # the field of `evaluate.Plan` that holds a plan for native code, or None


def collect(x, wanted, depth):
    """Append the values of a tree that have no data; 0 for anything unusual."""
    kind = x[TYPE]
    if kind == env.array:
        return x[ARRAY_VALUE] and collect_value(x[ARRAY_VALUE], wanted)
    if kind == env.value:
        return collect_value(x, wanted)
    if depth > DEEPEST:
        return 0
    if kind == env.dict:
        return collect_dict(x, wanted, depth)
    if kind == env.list or kind == env.tuple:
        return collect_items(x, wanted, depth, kind)
    if kind == env.int or kind == env.float or kind == env.str or kind == env.bool or x == env.none:
        return 1
    if kind == env.random_state:
        value = py.PyObject_GetAttr(x, env.word_value)
        found = value and collect_value(value, wanted)
        if value:
            py.Py_DecRef(value)
        return found
    return collect_subclass(x, wanted, depth, kind)


def collect_subclass(x, wanted, depth, kind):
    """The same for an object of a subclass, such as a Module, if it is taken apart as its base class is."""
    if py.PyType_IsSubtype(kind, env.dict):
        return inherited(kind, env.word_values, env.dict) and collect_dict(x, wanted, depth)
    if py.PyType_IsSubtype(kind, env.list):
        return inherited(kind, env.word_iter, env.list) and collect_items(x, wanted, depth, env.list)
    if py.PyType_IsSubtype(kind, env.tuple):
        return inherited(kind, env.word_iter, env.tuple) and collect_items(x, wanted, depth, env.tuple)
    return 0


def inherited(kind, name, base):
    """Whether a class has a method of a base class."""
    own, basic = py.PyObject_GetAttr(kind, name), py.PyObject_GetAttr(base, name)
    if own:
        py.Py_DecRef(own)
    if basic:
        py.Py_DecRef(basic)
    return own and own == basic


def collect_value(x, wanted):
    if x[VALUE_BUFFER] == env.none:
        return py.PyList_Append(wanted, x) == 0
    return has_data(x)


def collect_items(x, wanted, depth, kind):
    i = 0
    while i < x[ITEM_COUNT]:
        if not collect(x[LIST_ITEMS][i] if kind == env.list else x[TUPLE_ITEMS + i], wanted, depth + 1):
            return 0
        i += 1
    return 1


def collect_dict(x, wanted, depth):
    place = stack(3)  # of the iteration, key, item
    while py.PyDict_Next(x, place, place + 8, place + 16):
        if not collect(place[2], wanted, depth + 1):
            return 0
    return 1


def key_of(tape, wanted):
    """What the plan of an evaluation is found by (`evaluate._key`), or 0."""
    recorded, count = tape[TAPE_KEY][ITEM_COUNT], wanted[ITEM_COUNT]
    key = py.PyTuple_New(recorded + count)
    if not key:
        py.PyErr_Clear()
        return 0
    for i in range(recorded):
        key[TUPLE_ITEMS + i] = new_reference(tape[TAPE_KEY][LIST_ITEMS][i])
    for i in range(count):
        value = wanted[LIST_ITEMS][i]
        mark = value[VALUE_MARK]
        if mark[TYPE] != env.tuple or mark[TUPLE_ITEMS] != tape or value[VALUE_NODE] == env.none:
            py.Py_DecRef(key)
            return 0
        key[TUPLE_ITEMS + recorded + i] = new_reference(mark[TUPLE_ITEMS + 1])
    return key


def node_at(nodes, pair):
    """The value that is an input of a node; the pair says which."""
    return nodes[pair[0]][TUPLE_ITEMS + NODE_INPUTS][TUPLE_ITEMS + pair[1]]


def arguments(plan, frame, wanted):
    """Find the arguments by walking from the nodes of the wanted values; 0 if they are not all there."""
    count, walked = wanted[ITEM_COUNT], plan[WALKED]
    nodes = stack(count + walked)
    for i in range(count):
        nodes[i] = wanted[LIST_ITEMS][i][VALUE_NODE]
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
    for i in range(wanted[ITEM_COUNT]):
        value = wanted[LIST_ITEMS][i]
        set_output(plan, frame, value, i)
        replace(value + 8 * VALUE_NODE, new_reference(env.none))


def replay(plan, tape, wanted):
    """Evaluate by a plan: 1, 0 if it does not serve, -1 with an exception."""
    frame = stack(plan[FRAME])
    frame[GRAPH] = wanted
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
    if exactly(env.knobs[KNOB_TIER], env.word_reference):
        return 0
    tape = py.PyObject_GetAttr(env.running, env.word_tape)
    if not tape:
        return -1
    done, key = 0, 0
    if tape != env.none and tape[TAPE_OPEN] == env.false:
        key = key_of(tape, wanted)
    if key:
        known = py.PyDict_GetItem(env.plans, key)
        words = known[TUPLE_ITEMS + PLAN_WORDS] if known else env.none
        if words != env.none:
            new_reference(words)
            done = replay(py.PyBytes_AsString(words[TUPLE_ITEMS]), tape, wanted)
            py.Py_DecRef(words)
        py.Py_DecRef(key)
    py.Py_DecRef(tape)
    return done


def evaluate_trees(trees, count):
    """Evaluate all arrays of the trees, or values: 1, 0 if native code does not serve, -1 with an exception."""
    i = 0
    while i < count and trees[i][TYPE] == env.array and trees[i][ARRAY_VALUE] and has_data(trees[i][ARRAY_VALUE]):
        i += 1
    if i == count:
        return 1
    wanted = py.PyList_New(0)
    if not wanted:
        return -1
    done = 1
    while i < count:
        if not collect(trees[i], wanted, 0):
            py.PyErr_Clear()
            done = 0
            break
        i += 1
    if done and wanted[ITEM_COUNT]:
        done = by_plan(wanted)
    py.Py_DecRef(wanted)
    return done


@builtin
def evaluated(self, arguments, count):
    """`evaluated(*trees)`: whether all arrays of the trees, or values, have their data now."""
    done = evaluate_trees(arguments, count)
    if done < 0:
        return 0
    return new_reference(env.true if done else env.false)
