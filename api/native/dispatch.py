"""Calls of compiled functions, in native code (`words.py` says how these functions are read).

A *plan* is what an entry of a compiled function knows of its calls, as words (`plans.py` writes them): the trees of
arguments and results as a stream of nodes, and how the program is launched. For `f({"w": x}, 2)` whose result is
`(x * 2, "done")`:

    match:  TUPLE tuple 2   DICT dict 1  "w" ARRAY (8,) float32   CONSTANT int 2      then the keywords: DICT dict 0
    result: TUPLE 2   NEW 0   CONSTANT "done"

`serve` walks the arguments along the first stream. If they are alike, it takes memory for the results, runs the
program's kernels, and makes the tree of results along the second. At the first difference, and for whatever is unusual
(an array that is not evaluated, a subclass, a running trace), it returns `env.missed`, and the caller does what it does
without native code: every call could end so.

Everything that is owned during a call lies in its *frame*, which is emptied in one place. A function returns 0 where
it failed, with Python's exception set.
"""

from __future__ import annotations

from .form import (
    ARENA,
    ARENA_BLOCK,
    ARENA_SIZE,
    ARRAY,
    ARRAYS,
    BLOCK_COUNT,
    BLOCKS,
    BUFFERS,
    CHECKED,
    CONSTANT,
    COUNT,
    CURSOR,
    DICT,
    EXTRA,
    EXTRAS,
    FED,
    FEED,
    FRAME,
    HITS,
    HOLDS,
    IGNORED,
    INPUTS,
    LAST_HOLDER,
    LAST_START,
    LIST,
    LISTS,
    LONG,
    MEMBER,
    MEMBERS,
    NODES,
    NUMBER,
    NUMBERS,
    OUTPUTS,
    OWNED,
    OWNED_FIRST,
    PROGRAM,
    RANDOM,
    RESULT,
    RUN,
    STATE_ARRAY,
    THREADS,
    TUPLE,
    UID,
    WRITTEN,
)
from .layout import (
    ARRAY_VALUE,
    BUFFER_ADDRESS,
    BUFFER_OWNER,
    HOLDER_BLOCK,
    TYPE,
    VALUE_BUFFER,
    VALUE_DTYPE,
    VALUE_OFFSET,
    VALUE_OWNER,
    VALUE_SHAPE,
)
from .objects import exactly, give, has_data, new_holder, new_reference, take, unsigned
from .results import build, write
from .words import builtin, env, invoke, py, stack


# -- arguments --------------------------------------------------------------------------------------------------------
def match(plan, frame, x):
    """Whether `x` is as the node at the cursor says, with all below it."""
    at = plan + 8 * frame[CURSOR]
    kind = at[0]
    if kind == ARRAY:
        frame[CURSOR] += 3
        return x[TYPE] == env.array and match_value(plan, frame, at, x[ARRAY_VALUE])
    if kind >= DICT and kind <= TUPLE:
        if x[TYPE] != at[1]:
            return 0
        frame[CURSOR] += 3
        new_reference(x)  # other threads may run, and drop it
        found = match_dict(plan, frame, x, at[2]) if kind == DICT else match_items(plan, frame, x, at[2], kind)
        py.Py_DecRef(x)
        return found
    if kind == CONSTANT:
        frame[CURSOR] += 3
        return exactly(x, at[2])
    if kind == IGNORED:
        frame[CURSOR] += 2
        return x[TYPE] == at[1]
    if kind == STATE_ARRAY:
        frame[CURSOR] += 3
        value = py.PyObject_GetAttr(x, env.word_value)
        if not value:
            py.PyErr_Clear()
            return 0
        found = value[TYPE] == env.value and match_value(plan, frame, at, value)
        py.Py_DecRef(value)
        return found
    if kind == NUMBER:
        frame[CURSOR] += 2
        return x[TYPE] == at[1] and py.PyList_Append(frame[NUMBERS], x) == 0
    if kind == RANDOM:
        frame[CURSOR] += 3
        return x[TYPE] == env.random_state
    frame[CURSOR] += 2  # NEW, GIVEN or OUTSIDE: a place of captured outputs
    return x[TYPE] == env.array


def match_dict(plan, frame, x, n):
    place = stack(3)  # of the iteration, key, item
    if py.PyDict_Size(x) != n:
        return 0
    for _ in range(n):
        if not py.PyDict_Next(x, place, place + 8, place + 16):
            return 0
        key = plan[frame[CURSOR]]
        if place[1] != key and not exactly(place[1], key):
            return 0
        frame[CURSOR] += 1
        if not match(plan, frame, place[2]):
            return 0
    return 1


def match_items(plan, frame, x, n, kind):
    for i in range(n):
        size = py.PyList_Size(x) if kind == LIST else py.PyTuple_Size(x)
        if size != n:
            return 0
        if not match(plan, frame, py.PyList_GetItem(x, i) if kind == LIST else py.PyTuple_GetItem(x, i)):
            return 0
    return n > 0 or (py.PyList_Size(x) if kind == LIST else py.PyTuple_Size(x)) == 0


def match_value(plan, frame, at, value):
    """Whether a value has data of the shape and dtype at `at`. It goes to the frame, its address to the table."""
    if not value or value[VALUE_DTYPE] != at[2] or not has_data(value):
        return 0
    if value[VALUE_SHAPE] != at[1] and not exactly(at[1], value[VALUE_SHAPE]):
        return 0
    return hold(plan, frame, value)


def hold(plan, frame, value):
    """Put a value that has data into the frame, its address into the table. 0 if the address cannot be known."""
    count, buffer, owner = frame[COUNT], value[VALUE_BUFFER], value[VALUE_OWNER]
    if plan[HOLDS]:
        frame[LISTS + count] = new_reference(value)
    if buffer:
        new_reference(buffer)
        address = unsigned(buffer[BUFFER_ADDRESS])
        if not address:
            address = pointer(buffer)
        owner = buffer[BUFFER_OWNER]
    else:
        if owner != frame[LAST_HOLDER]:
            frame[LAST_HOLDER] = owner
            frame[LAST_START] = unsigned(py.PyTuple_GetItem(owner[HOLDER_BLOCK], 0))
        address = frame[LAST_START] + unsigned(value[VALUE_OFFSET])
    if address and owner:
        frame[LISTS + plan[ARRAYS] + count] = new_reference(owner)
        frame[plan[OWNED] + count] = address
        frame[COUNT] = count + 1
    py.Py_DecRef(buffer)
    return address and owner


def pointer(buffer):
    """The address of data of NumPy's, which is looked up when it is first needed."""
    found = py.PyObject_GetAttr(buffer, env.word_pointer)
    if not found:
        py.PyErr_Clear()
        return 0
    address = unsigned(found)
    py.Py_DecRef(found)
    return address


def match_call(plan, frame, arguments):
    """Whether a plan serves a call."""
    frame[CURSOR] = plan[NODES]
    if not (match(plan, frame, arguments[0]) and match(plan, frame, arguments[1])):
        return 0
    if plan[INPUTS] and not match(plan, frame, plan[INPUTS]):
        return 0
    if plan[OUTPUTS] and not plan[CHECKED]:
        frame[CURSOR] = plan[WRITTEN]
        return match(plan, frame, plan[OUTPUTS])
    return 1


# -- running ----------------------------------------------------------------------------------------------------------
def take_memory(plan, frame):
    """Blocks for the results, whose addresses go to the table behind those of the parameters."""
    holders = frame + 8 * (LISTS + 2 * plan[ARRAYS])
    for i in range(plan[BLOCK_COUNT]):
        block = plan + 8 * (plan[BLOCKS] + 2 * i)
        holders[i] = new_holder(block[0], block[1])
        if not holders[i]:
            return 0
    table = frame + 8 * (plan[OWNED] + plan[ARRAYS] + plan[EXTRAS])
    member, known, start = plan + 8 * plan[MEMBERS], -1, 0
    for i in range(plan[BUFFERS]):
        if member[0] != known:
            known = member[0]
            start = unsigned(py.PyTuple_GetItem(holders[known][HOLDER_BLOCK], 0))
        table[i] = start + member[1]
        member += 8 * MEMBER
    return 1


def feed(plan, frame):
    """The addresses of captured parameters go to the table, those that are made of numbers among them."""
    table = frame + 8 * (plan[OWNED] + plan[ARRAYS])
    at = plan + 8 * plan[EXTRA]
    for i in range(plan[EXTRAS]):
        buffer = at[0]
        if at[1] >= 0:
            buffer = py.PyTuple_GetItem(frame[FED], at[1])
            if not buffer:
                return 0
        table[i] = unsigned(buffer[BUFFER_ADDRESS])
        at += 16
    return 1


def threads(plan):
    """How many threads kernels have, or -1."""
    if plan[THREADS]:
        return plan[THREADS]
    knob = py.PyObject_GetAttr(env.knobs, env.word_threads)
    if not knob:
        return -1
    count = py.PyLong_AsLong(knob)
    py.Py_DecRef(knob)
    return count if count else env.cores


def launch(plan, frame):
    """Run the program's kernels."""
    count, arena = threads(plan), 0
    if count < 0:
        return 0
    if plan[ARENA]:
        frame[ARENA_BLOCK] = take(plan[ARENA], plan[ARENA_SIZE])
        if not frame[ARENA_BLOCK]:
            return 0
        arena = unsigned(py.PyTuple_GetItem(frame[ARENA_BLOCK], 0))
    table = frame + 8 * plan[OWNED]
    if plan[LONG]:
        state = py.PyEval_SaveThread()
        invoke(plan[RUN], plan[PROGRAM], table, arena, count)
        py.PyEval_RestoreThread(state)
    else:
        invoke(plan[RUN], plan[PROGRAM], table, arena, count)
    if plan[ARENA]:
        done = give(plan[ARENA], plan[ARENA_SIZE], frame[ARENA_BLOCK])
        if not done:
            return 0
        py.Py_DecRef(done)
    return 1


# -- a call -----------------------------------------------------------------------------------------------------------
def attempt(plan, arguments):
    """The result of a call, 0 with an exception, or `env.missed`, which is not counted."""
    frame = stack(plan[FRAME])
    if plan[FEED]:
        frame[NUMBERS] = py.PyList_New(0)
        if not frame[NUMBERS]:
            return 0
    out = env.missed
    if match_call(plan, frame, arguments):
        out = run(plan, frame)
    else:
        py.PyErr_Clear()  # Python will meet it again, if it is one
    empty(plan, frame)
    return out


def empty(plan, frame):
    """Let go of what the frame owns."""
    for i in range(plan[OWNED] - OWNED_FIRST):
        if frame[OWNED_FIRST + i]:
            py.Py_DecRef(frame[OWNED_FIRST + i])


def compute(plan, frame):
    """Run the program on the arrays in the frame: its results lie in the frame's blocks."""
    if not (feed(plan, frame) and take_memory(plan, frame)):
        return 0
    return launch(plan, frame) if plan[RUN] else 1


def run(plan, frame):
    """The result of a call that the plan serves, as `attempt` has it."""
    if plan[FEED]:
        frame[FED] = py.PyObject_CallOneArg(plan[FEED], frame[NUMBERS])
        if not frame[FED]:
            return 0
        if frame[FED][TYPE] != env.tuple:  # other numbers than the trace assumed
            return env.missed
    if not compute(plan, frame):
        return 0
    frame[UID] = py.PyIter_Next(env.uids)
    if not frame[UID]:
        return 0
    frame[CURSOR] = plan[RESULT]
    out = build(plan, frame)
    frame[CURSOR] = plan[WRITTEN]
    if out and plan[OUTPUTS] and not write(plan, frame, plan[OUTPUTS]):
        py.Py_DecRef(out)
        return 0
    counter = plan[HITS]
    counter[0] += 1
    return out


def switched_off():
    """Whether a trace runs on this thread, or compiled functions are switched off; -1 for an exception."""
    depth = py.PyObject_GetAttr(env.running, env.word_depth)
    if not depth:
        return -1
    tracing = depth != env.zero
    py.Py_DecRef(depth)
    if tracing:
        return 1
    off = py.PyObject_GetAttr(env.knobs, env.word_disable_compile)
    if not off:
        return -1
    py.Py_DecRef(off)
    return off != env.false


@builtin
def serve(plans, arguments, count):
    """`serve(args, kwargs)`: the result of the first plan that serves the call, or `missed`.

    A plan is a tuple: its words as bytes, then all objects that these name.
    """
    off = switched_off() if count == 2 else 1
    if off:
        return 0 if off < 0 else new_reference(env.missed)
    i = 0
    while i < py.PyList_Size(plans):
        plan = new_reference(py.PyList_GetItem(plans, i))
        out = attempt(py.PyBytes_AsString(py.PyTuple_GetItem(plan, 0)), arguments)
        py.Py_DecRef(plan)
        if out != env.missed:
            return out
        i += 1
    return new_reference(env.missed)
