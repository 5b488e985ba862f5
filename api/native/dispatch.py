"""Calls of compiled functions, in native code (`words.py` says how these functions are read).

A *plan* is what an entry of a compiled function knows of its calls, as words (`plans.py` writes them): the trees of
arguments and results as a stream of nodes, and how the program is launched. For `f({"w": x}, k=2)` whose result is
`(x * 2, "done")`:

    match:  DICT dict 1  "w" ARRAY (8,) float32   CONSTANT int 2
    result: TUPLE 2   NEW 0   CONSTANT "done"

`calls.py` walks the arguments along the first stream. If they are alike, it takes memory for the results, runs the
program's kernels, and makes the tree of results along the second. At the first difference, and for whatever is unusual
(a subclass, a running trace), Python does what it does without native code: every call could end so.

Everything that is owned during a call lies in its *frame*, which is emptied in one place. A function returns 0 where
it failed, with Python's exception set.
"""

from __future__ import annotations

from .eager import NODE_INPUTS
from .form import (
    ARENA,
    ARENA_SIZE,
    ARRAY,
    ARRAYS,
    BLOCK,
    BLOCK_COUNT,
    BLOCKS,
    BUFFERS,
    CHECKED,
    CONSTANT,
    COPIES,
    COPY,
    COPY_COUNT,
    COUNT,
    CURSOR,
    DICT,
    EXTRA,
    EXTRAS,
    FED,
    FLOAT,
    GRAPH,
    HOLDS,
    IGNORED,
    INPUTS,
    KEPT,
    LAST_HOLDER,
    LAST_START,
    LATE,
    LEAVES,
    LIST,
    LISTS,
    LONG,
    MEMBER,
    MEMBERS,
    NAMES,
    NODES,
    NUMBER,
    NUMBERS,
    OBJECT,
    OUTPUTS,
    OWNED,
    OWNED_FIRST,
    POSITIONAL,
    PROGRAM,
    RANDOM,
    RUN,
    STATE_ARRAY,
    THREADS,
    TUPLE,
    TURN,
    TURN_ENTER,
    TURN_LEAVE,
    UPDATED,
    WALK,
    WRITTEN,
)
from .layout import (
    ARRAY_VALUE,
    ARRAY_WEAK,
    BUFFER_ADDRESS,
    BUFFER_OWNER,
    BUFFER_VIEW,
    FLOAT_BITS,
    HOLDER_START,
    ITEM_COUNT,
    KNOB_THREADS,
    LIST_ITEMS,
    TUPLE_ITEMS,
    TYPE,
    VALUE_ALIAS,
    VALUE_BUFFER,
    VALUE_DTYPE,
    VALUE_NODE,
    VALUE_OFFSET,
    VALUE_OWNER,
    VALUE_SHAPE,
    VALUE_TRACE,
)
from .objects import (
    EQUAL,
    exactly,
    give,
    has_data,
    new_holder,
    new_reference,
    replace,
    same_shape,
    set_data,
    take,
    unsigned,
)
from .results import set_output
from .words import env, invoke, py, stack


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
    if kind == FLOAT:
        frame[CURSOR] += 2
        return x[TYPE] == env.float and x[FLOAT_BITS] == at[1]
    if kind == OBJECT:
        frame[CURSOR] += 5
        return x[TYPE] == at[1] and match_object(plan, frame, at, x)
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
    if kind == UPDATED:
        frame[CURSOR] += 4
        return x[TYPE] == env.array and match_value(plan, frame, at, x[ARRAY_VALUE]) and keep(plan, frame, at[3], x)
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
        if x[ITEM_COUNT] != n:
            return 0
        if not match(plan, frame, x[LIST_ITEMS][i] if kind == LIST else x[TUPLE_ITEMS + i]):
            return 0
    return x[ITEM_COUNT] == n


def match_object(plan, frame, at, x):
    """Whether an object of a registered class has the auxiliary data and the children of the node at `at`."""
    parts = py.PyObject_CallOneArg(at[2], x)
    if not parts:
        return 0
    found = 0
    if parts[TYPE] == env.tuple and parts[ITEM_COUNT] == 2:
        items, auxiliary = parts[TUPLE_ITEMS], parts[TUPLE_ITEMS + 1]
        if py.PyObject_RichCompareBool(auxiliary, at[3], EQUAL) > 0:
            if items[TYPE] == env.list:
                found = match_items(plan, frame, items, at[4], LIST)
            elif items[TYPE] == env.tuple:
                found = match_items(plan, frame, items, at[4], TUPLE)
    py.Py_DecRef(parts)
    return found


def match_value(plan, frame, at, value):
    """Whether a value has the shape and dtype at `at`. It goes to the frame, its address to the table."""
    if not value or value[VALUE_DTYPE] != at[2] or not same_shape(at[1], value[VALUE_SHAPE]):
        return 0
    if value[VALUE_BUFFER] == env.none:
        return later(frame, value)
    return has_data(value) and hold(plan, frame, value)


def keep(plan, frame, i, x):
    """Remember the array that copy i is made of."""
    frame[plan[KEPT] + i] = new_reference(x)
    return 1


def later(frame, value):
    """Remember a value that has to be evaluated first."""
    if not frame[LATE]:
        frame[LATE] = py.PyList_New(0)
        if not frame[LATE]:
            return 0
    return py.PyList_Append(frame[LATE], value) == 0


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
            frame[LAST_START] = owner[HOLDER_START]
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


def match_names(names, given):
    """Whether the names of keywords are those of the plan, in the same order."""
    if names == given:
        return 1
    if not names or not given or names[ITEM_COUNT] != given[ITEM_COUNT]:
        return 0
    for i in range(names[ITEM_COUNT]):
        if not exactly(names[TUPLE_ITEMS + i], given[TUPLE_ITEMS + i]):
            return 0
    return 1


def match_call(plan, frame, arguments, count, names):
    """Whether a plan serves a call: `count` arguments, then the values of the keywords `names`, a tuple or 0."""
    if count != plan[POSITIONAL] or not match_names(plan[NAMES], names):
        return 0
    frame[CURSOR] = plan[NODES]
    for i in range(count + (names[ITEM_COUNT] if names else 0)):
        if not match(plan, frame, arguments[i]):
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
        block = plan + 8 * (plan[BLOCKS] + BLOCK * i)
        if not block[3]:
            holders[i] = new_holder(block[0], block[1], block[2])
            if not holders[i]:
                return 0
    if plan[COPY_COUNT] and not take_over(plan, frame, holders):
        return 0
    table = frame + 8 * (plan[OWNED] + plan[ARRAYS] + plan[EXTRAS])
    member, known, start = plan + 8 * plan[MEMBERS], -1, 0
    for i in range(plan[BUFFERS]):
        if member[0] != known:
            known = member[0]
            start = holders[known][HOLDER_START]
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
            buffer = frame[FED][TUPLE_ITEMS + at[1]]
        table[i] = unsigned(buffer[BUFFER_ADDRESS])
        at += 16


def threads(plan):
    """How many threads kernels have."""
    if plan[THREADS]:
        return plan[THREADS]
    count = unsigned(env.knobs[KNOB_THREADS])
    return count if count else env.cores


def launch(plan, frame, block):
    """Take memory for the results and run the program's kernels, whose scratch memory is a block, or 0."""
    if not take_memory(plan, frame):
        return 0
    if not plan[RUN]:
        return 1
    hidden = 0
    for i in range(plan[COPY_COUNT]):
        hidden += hide(plan, frame, i)
    wanted = frame[GRAPH] if hidden else 0
    for i in range(wanted[ITEM_COUNT] if wanted else 0):
        set_data(wanted[LIST_ITEMS][i], 0, new_reference(plan[TURN]), new_reference(env.zero))
    table, count, arena = frame + 8 * plan[OWNED], threads(plan), unsigned(block[TUPLE_ITEMS]) if block else 0
    if plan[LONG]:
        state = py.PyEval_SaveThread()
        execute(plan, table, arena, count)
        py.PyEval_RestoreThread(state)
    else:
        execute(plan, table, arena, count)
    for i in range(plan[COPY_COUNT]):
        show(plan, frame, i)
    for i in range(wanted[ITEM_COUNT] if wanted else 0):
        set_output(plan, frame, wanted[LIST_ITEMS][i], i)
    return 1


def execute(plan, table, arena, count):
    """Run the kernels; a parameter is copied to the result that begins with it, unless it lies there already."""
    for i in range(plan[COPY_COUNT]):
        copy = plan + 8 * (plan[COPIES] + COPY * i)
        if table[copy[0]] != table[copy[1]]:
            invoke(plan[RUN], copy[3], table, arena, count)
    invoke(plan[RUN], plan[PROGRAM], table, arena, count)


def compute(plan, frame):
    """Run the program on the arrays in the frame: its results lie in the frame's blocks."""
    block = 0
    feed(plan, frame)
    if plan[ARENA]:
        block = take(plan[ARENA], plan[ARENA_SIZE])
        if not block:
            return 0
    done = launch_in_turn(plan, frame, block) if plan[TURN] and plan[LONG] else launch(plan, frame, block)
    if block:
        give(plan[ARENA], plan[ARENA_SIZE], unsigned(plan[ARENA_SIZE]), block)
    return done


# -- writing over arrays ----------------------------------------------------------------------------------------------
def launch_in_turn(plan, frame, block):
    """`launch`, while threads that want to read an array that is written over wait."""
    entered = py.PyObject_CallNoArgs(plan[TURN_ENTER])
    if not entered:
        return 0
    py.Py_DecRef(entered)
    done = launch(plan, frame, block)
    error = stack(3)
    py.PyErr_Fetch(error, error + 8, error + 16)
    py.Py_DecRef(py.PyObject_CallNoArgs(plan[TURN_LEAVE]))
    py.PyErr_Restore(error[0], error[1], error[2])
    return done


def take_over(plan, frame, holders):
    """Blocks for the results that begin as copies: those of the arrays, if nobody else sees them, or new ones."""
    again = 1
    while again:
        again = 0
        for i in range(plan[COPY_COUNT]):
            copy = plan + 8 * (plan[COPIES] + COPY * i)
            block = plan + 8 * (plan[BLOCKS] + BLOCK * copy[2])
            if not holders[copy[2]] and not unseen(plan, frame, copy[0], i):
                holders[copy[2]] = new_holder(block[0], block[1], block[2])
                if not holders[copy[2]]:
                    return 0
                again = 1  # meanwhile, somebody may have come to see another one
    for i in range(plan[COPY_COUNT]):
        copy = plan + 8 * (plan[COPIES] + COPY * i)
        if not holders[copy[2]]:
            holders[copy[2]] = new_reference(frame[LISTS + plan[ARRAYS] + copy[0]])
    return 1


def only_node(plan, wanted, n):
    """Node n of an evaluation, if nothing leads to it but what is wanted; else 0."""
    value, count = 0, wanted[ITEM_COUNT]
    if n < count:
        value = wanted[LIST_ITEMS][n]
    else:
        pair = plan + 8 * (plan[WALK] + 2 * (n - count))
        value = only_input(plan, wanted, pair)
        if not value or value[0] != 1:
            return 0
    node = value[VALUE_NODE]
    if node[TYPE] != env.node or node[0] != 1 or node[TUPLE_ITEMS + NODE_INPUTS][0] != 1:
        return 0
    return node


def only_input(plan, wanted, pair):
    """The value that is an input of a node, if only what is wanted leads to the node; else 0."""
    node = only_node(plan, wanted, pair[0])
    return node[TUPLE_ITEMS + NODE_INPUTS][TUPLE_ITEMS + pair[1]] if node else 0


def only_value(x):
    """The value of an array to which only a container and the frame refer; else 0."""
    return x[ARRAY_VALUE] if x and x[0] == 2 and not x[ARRAY_WEAK] else 0


def unseen(plan, frame, number, i):
    """Whether only the call leads to the data of array `number`, which copy i is made of: nobody refers to the array
    but its container, to its value but the array (in an evaluation: but the graph), to the data but the value.
    """
    value, owner = 0, frame[LISTS + plan[ARRAYS] + number]
    if frame[GRAPH]:
        value = only_input(plan, frame[GRAPH], plan + 8 * (plan[LEAVES] + 2 * number))
    else:
        value = only_value(frame[plan[KEPT] + i])
    if not value or value[0] != (2 if plan[HOLDS] else 1) or value[VALUE_NODE] != env.none:
        return 0
    if value[VALUE_ALIAS] != env.none or value[VALUE_TRACE] != env.none:
        return 0
    buffer, known = value[VALUE_BUFFER], 1
    if buffer:
        if buffer[TYPE] != env.buffer or buffer[0] != 1 or buffer[BUFFER_OWNER] != owner:
            return 0
        view = buffer[BUFFER_VIEW]
        if view != env.none:
            if view[0] != 1:
                return 0
            replace(buffer + 8 * BUFFER_VIEW, new_reference(env.none))  # it refers to the owner
        known = 2 if value[VALUE_OWNER] == owner else 1
    elif value[VALUE_OWNER] != owner:
        return 0
    if owner[0] != known + 1 or owner[TYPE] != env.holder:
        return 0
    return owner[HOLDER_START] == frame[plan[OWNED] + number]


def hide(plan, frame, i):
    """Where copy i is not needed, put the array's value into the frame, without its data if other threads may run.
    Whether they may and would see what is written.
    """
    slot, copy = frame + 8 * (plan[KEPT] + i), plan + 8 * (plan[COPIES] + COPY * i)
    if frame[plan[OWNED] + copy[0]] != frame[plan[OWNED] + copy[1]]:
        return 0
    if slot[0]:
        value = new_reference(slot[0][ARRAY_VALUE])
        replace(slot, value)
        if plan[LONG]:
            set_data(value, 0, new_reference(plan[TURN]), new_reference(env.zero))
    return plan[LONG]


def show(plan, frame, i):
    """The data are there again; the frame lets go of the array."""
    held, copy = frame[plan[KEPT] + i], plan + 8 * (plan[COPIES] + COPY * i)
    if held:
        frame[plan[KEPT] + i] = 0
        if plan[LONG] and held[TYPE] == env.value:
            holder = frame[LISTS + 2 * plan[ARRAYS] + copy[2]]
            set_data(held, 0, new_reference(holder), new_reference(env.zero))
        py.Py_DecRef(held)


def empty(plan, frame):
    """Let go of what the frame owns."""
    for i in range(plan[OWNED] - OWNED_FIRST):
        held = frame[OWNED_FIRST + i]
        if held:
            frame[OWNED_FIRST + i] = 0
            py.Py_DecRef(held)
