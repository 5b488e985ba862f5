"""What Python calls instead of compiled functions and `eval` (`words.py` says how these functions are read).

They are called as PEP 590 says: `f(function, arguments, count, names)`, where `count` may have its highest bit set, and
the values of keywords follow the arguments. What they do not serve goes on to the function in Python.
"""

from __future__ import annotations

from .dispatch import compute, empty, match_call
from .evaluation import by_plan, evaluate_trees
from .form import (
    COUNT,
    CURSOR,
    FED,
    FEED,
    FRAME,
    HITS,
    JOINED_AFTER,
    JOINS,
    LAST_HOLDER,
    LAST_START,
    LATE,
    NUMBERS,
    OUTPUTS,
    RESULT,
    WRITTEN,
)
from .layout import (
    FUNCTION_ENTER,
    FUNCTION_LEAVE,
    FUNCTION_PLANS,
    FUNCTION_SLOWLY,
    ITEM_COUNT,
    KNOB_DISABLE_COMPILE,
    LIST_ITEMS,
    TUPLE_ITEMS,
    TYPE,
)
from .objects import new_reference
from .results import build, write
from .words import builtin, env, py, stack

COUNTED = (1 << 63) - 1  # the bits of `count` that count


def slowly(function, arguments, count, names):
    """Call the function in Python."""
    return py.PyObject_Vectorcall(function[FUNCTION_SLOWLY], arguments, count, names)


# -- compiled functions -----------------------------------------------------------------------------------------------
def matched(plan, frame, arguments, count, names):
    """Whether the plan serves the call, once all of its arrays are evaluated; -1 with an exception."""
    if not match_call(plan, frame, arguments, count, names):
        return 0
    if not frame[LATE]:
        return 1
    counter = plan[JOINS]
    if counter and counter[0] >= JOINED_AFTER:
        return 0
    wanted = new_reference(frame[LATE])
    done = by_plan(wanted)
    if counter and done:
        counter[0] = 0
    if not done:
        found = py.PyObject_CallOneArg(env.evaluate, wanted)
        if counter:
            counter[0] = counter[0] + 1 if found == env.true else 0
        done = 1 if found else -1
        if found:
            py.Py_DecRef(found)
    py.Py_DecRef(wanted)
    if done < 0:
        return -1
    empty(plan, frame)  # it holds what came before the first of them
    frame[COUNT], frame[LAST_HOLDER], frame[LAST_START] = 0, 0, 0
    return begin(plan, frame) and match_call(plan, frame, arguments, count, names) and not frame[LATE]


def begin(plan, frame):
    """What a frame holds from the beginning."""
    if plan[FEED]:
        frame[NUMBERS] = py.PyList_New(0)
        return frame[NUMBERS] != 0
    return 1


def attempt(plan, arguments, count, names):
    """The result of a call, 0 with an exception, or `env.missed`, which is not counted."""
    frame = stack(plan[FRAME])
    out, found = env.missed, 0
    if begin(plan, frame):
        found = matched(plan, frame, arguments, count, names)
    if found > 0:
        out = run(plan, frame)
    elif found < 0:
        out = 0
    else:
        py.PyErr_Clear()  # Python will meet it again, if it is one
    empty(plan, frame)
    return out


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
    if env.traces[ITEM_COUNT]:  # on some thread
        depth = py.PyObject_GetAttr(env.running, env.word_depth)
        if not depth:
            return -1
        py.Py_DecRef(depth)
        if depth != env.zero:
            return 1
    return env.knobs[KNOB_DISABLE_COMPILE] != env.false


def served(plans, arguments, count, names):
    """The result by the first plan that serves the call, or `env.missed`, or 0 with an exception.

    A plan is a tuple: its words as bytes, then all objects that these name.
    """
    off = switched_off()
    if off:
        return 0 if off < 0 else env.missed
    i = 0
    while i < plans[ITEM_COUNT]:
        plan = new_reference(plans[LIST_ITEMS][i])
        out = attempt(py.PyBytes_AsString(plan[TUPLE_ITEMS]), arguments, count, names)
        py.Py_DecRef(plan)
        if out != env.missed:
            return out
        i += 1
    return env.missed


@builtin
def compiled_call(function, arguments, count, names):
    """A call of a compiled function."""
    out = served(function[FUNCTION_PLANS], arguments, count & COUNTED, names)
    return slowly(function, arguments, count, names) if out == env.missed else out


@builtin
def compiled_call_in_turn(function, arguments, count, names):
    """The same of one that captures state, which is read and written by one call at a time."""
    if not function[FUNCTION_PLANS][ITEM_COUNT]:
        return slowly(function, arguments, count, names)
    entered = py.PyObject_CallNoArgs(function[FUNCTION_ENTER])
    if not entered:
        return 0
    py.Py_DecRef(entered)
    out = served(function[FUNCTION_PLANS], arguments, count & COUNTED, names)
    if out == env.missed:
        out = slowly(function, arguments, count, names)
    error = stack(3)
    py.PyErr_Fetch(error, error + 8, error + 16)
    left = py.PyObject_CallNoArgs(function[FUNCTION_LEAVE])
    if left:
        py.Py_DecRef(left)
        py.PyErr_Restore(error[0], error[1], error[2])
        return out
    for i in range(3):
        if error[i]:
            py.Py_DecRef(error[i])
    if out:
        py.Py_DecRef(out)
    return 0


# -- eval -------------------------------------------------------------------------------------------------------------
@builtin
def evaluate_call(function, arguments, count, names):
    """A call of `eval`."""
    done = 0 if names else evaluate_trees(arguments, count & COUNTED)
    if done < 0:
        return 0
    return new_reference(env.none) if done else slowly(function, arguments, count, names)
