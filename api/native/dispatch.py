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

from .layout import (
    ARRAY_VALUE,
    ARRAY_WEAK,
    BUFFER_ADDRESS,
    BUFFER_DTYPE,
    BUFFER_OWNER,
    BUFFER_SHAPE,
    BUFFER_VIEW,
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
    VALUE_SHAPE,
    VALUE_TRACE,
    VALUE_UID,
)
from .words import builtin, env, invoke, py, stack

# Nodes of the streams. A node begins with its kind; children follow their container.
ARRAY = 0  # shape, dtype: an array of exactly these
STATE_ARRAY = 1  # shape, dtype: the value of the random state
CONSTANT = 2  # type, object: an equal constant
NUMBER = 3  # type: an int or float that is an input
IGNORED = 4  # type: a leaf of captured state that is no array
DICT = 5  # type (for a result: a dict with these keys), n: each child behind its key
LIST = 6  # type, n
TUPLE = 7  # type, n
NEW = 8  # j: an array of result j of the program, or any array where captured outputs are looked at
GIVEN = 9  # i: the same of array i of the call
OUTSIDE = 10  # value: the same of a value from outside
MAKE = 11  # callable, n: what the callable makes of a list of the children
RANDOM = 12  # the random state among captured outputs; NEW, GIVEN or OUTSIDE follows

# Words of a plan.
NODES = 0  # where the stream of arguments, keywords and captured inputs begins
RESULT = 1  # and that of the result
WRITTEN = 2  # and that of captured outputs, 0 if there are none
INPUTS = 3  # the tree of captured inputs, or 0
OUTPUTS = 4  # the tree of captured outputs, or 0
CHECKED = 5  # whether the outputs are the inputs, and need no look of their own
FRAME = 6  # words of a frame
OWNED = 7  # and of those that hold references, from OWNED_FIRST on
ARRAYS = 8  # arrays of a call
FEED = 9  # what makes buffers of the numbers that are inputs, or 0
EXTRA = 10  # where the stream of captured parameters begins
EXTRAS = 11  # their number
BLOCKS = 12  # where the blocks for results are listed: (free list, size class) each
BLOCK_COUNT = 13
BUFFERS = 14  # results of the program's kernels
ENTRIES = 15  # where, for each output of the program, its entry in the table is
OUTPUT_COUNT = 16
RUN = 17  # the launcher's function, or 0 where nothing is launched
PROGRAM = 18  # its list of launches
THREADS = 19  # threads of the kernels, or 0: as many as the knob says
ARENA = 20  # the list of free arenas, or 0
ARENA_SIZE = 21  # its size class, an int object
LONG = 22  # whether others should run meanwhile
HITS = 23  # the address of a counter
WALK = 24  # of an evaluation: where the pairs (node, input) lie that lead to further nodes
WALKED = 25  # their number
LEAVES = 26  # and where those that lead to the arguments do
MEMBERS = 27  # where results of kernels are listed: (block, offset, shape, dtype) each
HOLDS = 28  # whether values of the call are among its results
HEADER = 29

# Words of a frame: two counters, single references, then, by the plan: for each array the owner of its memory and, if
# the plan says so, its value; the owners of the blocks for results; the values of results. The table of addresses is
# behind what is owned.
CURSOR = 0
COUNT = 1
OWNED_FIRST = 2
NUMBERS = 2
FED = 3
ARENA_BLOCK = 4
UID = 5
LISTS = 6

EQUAL = 2  # Py_EQ
IMMORTAL = 1 << 31


def new_reference(x):
    """`x`, referred to once more. (Immortal objects, from Python 3.12 on, have bit 31 of their count set.)"""
    count = x[0]
    if not count & IMMORTAL:
        x[0] = count + 1
    return x


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


# -- memory ------------------------------------------------------------------------------------------------------------
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


def new_buffer(address, shape, dtype, owner):
    number = py.PyLong_FromUnsignedLongLong(address)
    if not number:
        return 0
    buffer = py.PyType_GenericAlloc(env.buffer, 0)
    if not buffer:
        py.Py_DecRef(number)
        return 0
    buffer[BUFFER_ADDRESS], buffer[BUFFER_SHAPE] = number, new_reference(shape)
    buffer[BUFFER_DTYPE], buffer[BUFFER_OWNER] = new_reference(dtype), new_reference(owner)
    buffer[BUFFER_VIEW] = new_reference(env.none)
    return buffer


def new_value(buffer, uid):
    """A concrete value."""
    value = py.PyType_GenericAlloc(env.value, 0)
    if value:
        value[VALUE_SHAPE], value[VALUE_DTYPE] = new_reference(buffer[BUFFER_SHAPE]), new_reference(buffer[BUFFER_DTYPE])
        value[VALUE_BUFFER], value[VALUE_UID] = new_reference(buffer), new_reference(uid)
        value[VALUE_INDEX], value[VALUE_NODE] = new_reference(env.zero), new_reference(env.none)
        value[VALUE_ALIAS], value[VALUE_TRACE] = new_reference(env.none), new_reference(env.none)
        value[VALUE_MARK] = new_reference(env.none)
    return value


def wrap(value):
    """The array that refers to a value."""
    out = py.PyType_GenericAlloc(env.array, 0)
    if out:
        out[ARRAY_VALUE] = new_reference(value)
    return out


# -- arguments ---------------------------------------------------------------------------------------------------------
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
    for i in range(n):
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
    if not value:
        return 0
    buffer = value[VALUE_BUFFER]
    if not buffer or buffer[TYPE] != env.buffer or value[VALUE_DTYPE] != at[2]:
        return 0
    if value[VALUE_SHAPE] != at[1] and not exactly(at[1], value[VALUE_SHAPE]):
        return 0
    return hold(plan, frame, value)


def hold(plan, frame, value):
    """Put a value that has data into the frame, its address into the table. 0 if that is not known yet."""
    buffer = value[VALUE_BUFFER]
    address, owner = unsigned(buffer[BUFFER_ADDRESS]), buffer[BUFFER_OWNER]
    if not address or not owner:
        return 0
    count, arrays = frame[COUNT], plan[ARRAYS]
    frame[LISTS + arrays + count] = new_reference(owner)
    if plan[HOLDS]:
        frame[LISTS + count] = new_reference(value)
    frame[plan[OWNED] + count] = address
    frame[COUNT] = count + 1
    return 1


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


# -- running -----------------------------------------------------------------------------------------------------------
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
        member += 32
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


# -- results -----------------------------------------------------------------------------------------------------------
def result_buffer(plan, frame, r):
    """A buffer for result r of the kernels."""
    member = plan + 8 * (plan[MEMBERS] + 4 * r)
    holder = frame[LISTS + 2 * plan[ARRAYS] + member[0]]
    return new_buffer(frame[plan[OWNED] + plan[ARRAYS] + plan[EXTRAS] + r], member[2], member[3], holder)


def output_buffer(plan, frame, j):
    """The buffer of output j of the program (a new reference): a new one, or that of an argument or a captured array."""
    entry, arrays = plan[plan[ENTRIES] + j], plan[ARRAYS]
    if entry >= arrays + plan[EXTRAS]:
        return result_buffer(plan, frame, entry - arrays - plan[EXTRAS])
    if entry < arrays:
        return new_reference(frame[LISTS + entry][VALUE_BUFFER])
    extra = plan + 8 * (plan[EXTRA] + 2 * (entry - arrays))
    return new_reference(extra[0] if extra[1] < 0 else py.PyTuple_GetItem(frame[FED], extra[1]))


def found_value(plan, frame, at):
    """The value that a NEW, GIVEN or OUTSIDE node names (borrowed)."""
    if at[0] == GIVEN:
        return frame[LISTS + at[1]]
    if at[0] == OUTSIDE:
        return at[1]
    made = frame + 8 * (LISTS + 2 * plan[ARRAYS] + plan[BLOCK_COUNT] + at[1])
    if not made[0]:
        buffer = output_buffer(plan, frame, at[1])
        if not buffer:
            return 0
        made[0] = new_value(buffer, frame[UID])
        py.Py_DecRef(buffer)
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
    if kind == LIST or kind == TUPLE or kind == MAKE:
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
    for i in range(n if out else 0):
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
            py.PyTuple_SetItem(out, i, item)
        else:
            py.PyList_SetItem(out, i, item)
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
    if i >= (py.PyList_Size(x) if kind == LIST else py.PyTuple_Size(x)):
        return 0
    return py.PyList_GetItem(x, i) if kind == LIST else py.PyTuple_GetItem(x, i)


def renew(plan, frame, x, j):
    """Let the array `x` itself be output j of the program, where nobody could tell it from a new array: nothing refers
    to it but its container, and to its value and its buffer nothing but it. Three allocations less for each array.
    """
    entry = plan[plan[ENTRIES] + j] - plan[ARRAYS] - plan[EXTRAS]
    if x[TYPE] != env.array or x[0] != 1 or x[ARRAY_WEAK] or plan[HOLDS] or entry < 0:
        return 0
    value = x[ARRAY_VALUE]
    if not value or value[0] != 1 or value[VALUE_NODE] != env.none or value[VALUE_ALIAS] != env.none:
        return 0
    buffer, member = value[VALUE_BUFFER], plan + 8 * (plan[MEMBERS] + 4 * entry)
    if value[VALUE_TRACE] != env.none or not buffer or buffer[TYPE] != env.buffer or buffer[0] != 1:
        return 0
    if value[VALUE_DTYPE] != member[3] or not exactly(member[2], value[VALUE_SHAPE]):
        return 0
    address = py.PyLong_FromUnsignedLongLong(frame[plan[OWNED] + plan[ARRAYS] + plan[EXTRAS] + entry])
    if not address:
        py.PyErr_Clear()
        return 0
    replace(buffer + 8 * BUFFER_OWNER, new_reference(frame[LISTS + 2 * plan[ARRAYS] + member[0]]))
    replace(buffer + 8 * BUFFER_ADDRESS, address)
    replace(buffer + 8 * BUFFER_VIEW, new_reference(env.none))
    replace(value + 8 * VALUE_UID, new_reference(frame[UID]))
    replace(value + 8 * VALUE_MARK, new_reference(env.none))
    return 1


def replace(slot, new):
    """Store a reference, which is taken over."""
    old = slot[0]
    slot[0] = new
    if old:
        py.Py_DecRef(old)


# -- a call ------------------------------------------------------------------------------------------------------------
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
    empty(plan, frame)
    return out


def empty(plan, frame):
    """Let go of what the frame owns."""
    for i in range(plan[OWNED] - OWNED_FIRST):
        if frame[OWNED_FIRST + i]:
            py.Py_DecRef(frame[OWNED_FIRST + i])


def compute(plan, frame):
    """Run the program on the arrays in the frame: its results lie in the frame's buffers."""
    if not (feed(plan, frame) and take_memory(plan, frame)):
        return 0
    return launch(plan, frame) if plan[RUN] else 1


def run(plan, frame):
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
    off = switched_off()
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
