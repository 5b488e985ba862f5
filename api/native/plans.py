"""Plans: what native code knows of the calls of an entry (`form.py` says what their words mean)."""

from __future__ import annotations

import array as arrays_of_numbers
import ctypes
import struct
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

from mlxir.compiler.evaluate import Plan
from mlxir.compiler.generic import Runner
from mlxir.compiler.graph import Turn, Value
from mlxir.runtime.buffers import Buffer, groups, pool
from mlxir.runtime.launch import Executable
from mlxir.runtime.trees import REGISTERED, children, container_kind, leaves, maker

from ..entries import Entry
from ..ndarray import array
from ..random import RandomState
from . import form

MOST_WORDS = 1 << 13  # of a frame, which lies on the stack
QUIET_BYTES, QUIET_KERNELS = 1 << 16, 8  # programs up to these keep other threads waiting: a few microseconds


_WORD = (1 << 64) - 1


class Unlike(Exception):
    """A call that native code does not serve."""


class Call(NamedTuple):
    """A call of a compiled function, and what its entry knows of it.

    `numbers` tells of each Python number among the arguments whether it is an input, and `feed` makes a tuple of
    buffers of the values of those (None if the entry does not serve them). The parameters of `executable`, which is
    None for a program without outputs, are the `given` arrays of the call, then `captured`: buffers, or places among
    what `feed` makes. `places` and `result` are the entry's, `inputs` and `outputs` the captured state or None; `hits`
    counts calls. `late` counts calls on arrays without data, if those may join the lazy graph.
    """

    args: tuple
    kwargs: dict[str, Any]
    numbers: Sequence[bool]
    feed: Callable[[list], tuple[Buffer, ...] | None] | None
    given: int
    executable: Executable | None
    captured: Sequence[Buffer | int]
    places: Sequence[int | Value]
    result: Any
    inputs: Any
    outputs: Any
    hits: ctypes.c_uint64
    late: ctypes.c_uint64 | None = None


class _Stream:
    """The words of a plan, and the objects that they name."""

    def __init__(self, call: Call):
        self.words = [0] * form.HEADER
        self.kept: list[Any] = [call.executable, call.hits, call.late]
        self.numbers = iter(call.numbers)
        self.places = iter(call.places)
        self.given = False  # whether arrays of the call are among its results
        self.updated: dict[int, int] = {}  # array of the call -> the copy of it that may be spared
        self.arrays = 0  # of the call, so far
        self.turns = False  # whether arrays may be written over

    def add(self, *words: int) -> None:
        self.words += words

    def object(self, x: Any) -> int:
        """The address of an object, which the plan keeps alive."""
        self.kept.append(x)
        return id(x)

    def begin(self, word: int) -> None:
        """The next stream begins here; a word of the header says so."""
        self.words[word] = len(self.words)

    def container(self, x: Any, child: Callable[[Any], None]) -> None:
        """A list, tuple or dict (subclasses count if they iterate as these do) and its children."""
        base = next(kind for kind in (dict, list, tuple) if isinstance(x, kind))
        iterates = "items" if base is dict else "__iter__"
        if getattr(type(x), iterates) is not getattr(base, iterates):
            raise Unlike
        self.add({dict: form.DICT, list: form.LIST, tuple: form.TUPLE}[base], self.object(type(x)), len(x))
        for key, item in x.items() if base is dict else enumerate(x):
            if base is dict:
                if type(key) not in (str, int):  # comparing others may run code of the user's
                    raise Unlike
                self.add(self.object(key))
            child(item)

    def argument(self, x: Any) -> None:
        """A tree of arrays and constants."""
        kind = type(x)
        if kind is array:
            self.arrays += 1
            self.add(form.ARRAY, self.object(x._value.shape), self.object(x._value.dtype))
        elif isinstance(x, (dict, list, tuple)):
            self.container(x, self.argument)
        elif kind in REGISTERED:
            flatten = REGISTERED[kind].flatten
            items, auxiliary = flatten(x)
            self.add(form.OBJECT, self.object(kind), self.object(flatten), self.object(auxiliary), len(items))
            for item in items:
                self.argument(item)
        elif kind in (int, float) and next(self.numbers):
            self.add(form.NUMBER, self.object(kind))
        elif kind is float:
            self.add(form.FLOAT, *struct.unpack("Q", struct.pack("d", x)))
        elif kind in (str, int, bool, type(None)):
            self.add(form.CONSTANT, self.object(kind), self.object(x))
        else:
            raise Unlike

    def state(self, x: Any) -> None:
        """A tree of captured inputs."""
        kind = type(x)
        if kind is array:
            copy = self.updated.get(self.arrays)
            self.arrays += 1
            self.add(form.ARRAY if copy is None else form.UPDATED)
            self.add(self.object(x._value.shape), self.object(x._value.dtype), *(() if copy is None else (copy,)))
        elif kind is RandomState:
            self.arrays += 1
            self.add(form.STATE_ARRAY, self.object(x.value.shape), self.object(x.value.dtype))
        elif isinstance(x, (dict, list, tuple)):
            self.container(x, self.state)
        elif isinstance(x, array) or kind in REGISTERED:
            raise Unlike
        else:
            self.add(form.IGNORED, self.object(kind))

    def source(self) -> None:
        """Where the next array of the results comes from."""
        place = next(self.places, None)
        if place is None:
            raise Unlike
        if isinstance(place, Value):
            self.add(form.OUTSIDE, self.object(place))
        else:
            self.add(*((form.NEW, place) if place >= 0 else (form.GIVEN, -1 - place)))
            self.given |= place < 0

    def written(self, x: Any) -> None:
        """A tree of captured outputs, without what would have to be rebuilt (`captured.write`)."""
        if type(x) is RandomState:
            self.add(form.RANDOM)
            self.source()
        elif isinstance(x, (dict, list, tuple)):
            base = dict if isinstance(x, dict) else list
            if not isinstance(x, tuple) and type(x).__setitem__ is not base.__setitem__:
                raise Unlike
            self.container(x, lambda item: self.slot(item, not isinstance(x, tuple)))
        else:
            raise Unlike

    def slot(self, item: Any, replaceable: bool) -> None:
        """What a container of captured outputs holds."""
        if type(item) is array and replaceable:
            self.source()
        elif isinstance(item, (dict, list, RandomState)):
            self.written(item)
        elif isinstance(item, (tuple, array)) or type(item) in REGISTERED:
            raise Unlike
        else:
            self.add(form.IGNORED, self.object(type(item)))

    def result(self, tree: Any) -> None:
        """The tree of results, as `entries.rebuilder` reads it."""
        kind = container_kind(tree)
        if isinstance(tree, array):
            self.source()
        elif kind is None:
            self.add(form.CONSTANT, self.object(type(tree)), self.object(tree))
        elif kind is dict:
            self.add(form.DICT, self.object(dict.fromkeys(tree)), len(tree))
            for key, item in tree.items():
                self.add(self.object(key))
                self.result(item)
        else:
            items = list(children(tree))
            if kind is list:
                self.add(form.LIST, self.object(list), len(items))
            elif type(tree) is tuple:
                self.add(form.TUPLE, self.object(tuple), len(items))
            else:
                self.add(form.MAKE, self.object(maker(tree)), len(items))
            for item in items:
                self.result(item)

    def captured(self, captured: Sequence[Buffer | int]) -> None:
        """The parameters behind those of the call."""
        for x in captured:
            if isinstance(x, int):
                self.add(0, x)
            elif x.pointer:
                self.add(self.object(x), -1 & _WORD)

    def memory(self, executable: Executable) -> int:
        """The blocks that results lie in, and the results; returns the number of blocks."""
        schedule = executable.schedule
        blocks, first = groups(schedule.results), len(schedule.parameters)
        places = {place: (i, offset) for i, (_, members) in enumerate(blocks) for place, offset, *_ in members}
        begun = {places[result - first][0] for _, result in schedule.copies}
        self.begin(form.BLOCKS)
        for i, (size, members) in enumerate(blocks):
            alone = len(members) == 1
            self.add(self.object(pool.free.setdefault(size, [])), self.object(size), size, int(alone and i in begun))
        self.begin(form.COPIES)
        for (parameter, result), words in zip(schedule.copies, executable.copies, strict=True):
            self.add(parameter, result, places[result - first][0], words)
        self.begin(form.MEMBERS)
        for i in range(len(places)):
            block, offset = places[i]
            self.add(block, offset, self.object(offset))
        return len(blocks)


def plan_of(call: Call) -> tuple[Any, ...] | None:
    """The plan of calls like this one: its words, then what they name. None where native code does not serve them."""
    try:
        return _plan(call)
    except (Unlike, RecursionError):
        return None


def _plan(call: Call) -> tuple[Any, ...]:
    out = _Stream(call)
    out.updated = _updated(call)
    out.turns = bool(out.updated)
    out.begin(form.NODES)
    for x in (*call.args, *call.kwargs.values()):
        out.argument(x)
    if call.inputs is not None:
        out.state(call.inputs)
    out.begin(form.RESULT)
    out.result(call.result)
    out.begin(form.WRITTEN)
    if call.outputs is not None:
        out.written(call.outputs)
    if next(out.places, None) is not None:
        raise Unlike
    out.begin(form.EXTRA)
    out.captured(call.captured)
    header = _header(call, out)
    header |= _launches(call.executable, out)
    return _finished(out, header)


def _updated(call: Call) -> dict[int, int]:
    """Which arrays of captured state a call need not copy if nobody else sees them: their slots get the results that
    begin as their copies. (Not where results are made by code of the user's, which may raise.)
    """
    if call.executable is None or call.outputs is None or call.outputs is not call.inputs or _made(call.result):
        return {}
    state = [x for x in leaves(call.inputs) if isinstance(x, (array, RandomState))]
    places = list(call.places)
    first, written = call.given - len(state), len(places) - len(state)
    found = {}
    for number, (parameter, result) in enumerate(call.executable.schedule.copies):
        k = parameter - first
        if 0 <= k < len(state) and type(state[k]) is array and -1 - parameter not in places:
            place = places[written + k]
            if isinstance(place, int) and place >= 0 and call.executable.schedule.outputs[place] == result:
                found[parameter] = number
    return found


def _made(tree: Any) -> bool:
    """Whether a tree of results holds what is made by a callable."""
    kind = container_kind(tree)
    if kind is None:
        return False
    return (kind is not dict and kind is not list and type(tree) is not tuple) or any(map(_made, children(tree)))


def _finished(out: _Stream, header: dict[int, int]) -> tuple[Any, ...]:
    """The plan: its words as bytes, then what they name."""
    arrays, buffers = header[form.ARRAYS], header[form.BUFFERS]
    kept = form.LISTS + 2 * arrays + header[form.BLOCK_COUNT] + header[form.OUTPUT_COUNT]
    owned = kept + header[form.COPY_COUNT]
    entries = out.words[out.words[form.ENTRIES] :][: header[form.OUTPUT_COUNT]]
    header[form.HOLDS] = int(out.given or any([entry < arrays for entry in entries]))
    if out.turns:
        turn = Turn()
        header[form.TURN] = out.object(turn)
        header[form.TURN_ENTER], header[form.TURN_LEAVE] = out.object(turn.lock.acquire), out.object(turn.lock.release)
    header |= {form.KEPT: kept, form.OWNED: owned, form.FRAME: owned + arrays + header[form.EXTRAS] + buffers}
    if header[form.FRAME] > MOST_WORDS or len(out.words) > 4 * MOST_WORDS:
        raise Unlike
    for word, content in header.items():
        out.words[word] = content
    return arrays_of_numbers.array("Q", out.words).tobytes(), *out.kept


def _header(call: Call, out: _Stream) -> dict[int, int]:
    header = {form.ARRAYS: call.given, form.EXTRAS: len(call.captured), form.HITS: ctypes.addressof(call.hits)}
    if call.late is not None:
        header[form.JOINS] = ctypes.addressof(call.late)
    header[form.POSITIONAL] = len(call.args)
    if call.kwargs:
        header[form.NAMES] = out.object(tuple(call.kwargs))
    if call.feed is not None:
        header[form.FEED] = out.object(call.feed)
    if call.inputs is not None:
        header[form.INPUTS] = out.object(call.inputs)
    if call.outputs is not None:
        header |= {form.OUTPUTS: out.object(call.outputs), form.CHECKED: int(call.outputs is call.inputs)}
    return header


def _launches(executable: Executable | None, out: _Stream) -> dict[int, int]:
    """The part of the header that says how the program runs, and the streams of its results."""
    if executable is None:
        return {form.BUFFERS: 0, form.OUTPUT_COUNT: 0, form.BLOCK_COUNT: 0, form.COPY_COUNT: 0}
    schedule = executable.schedule
    if any(not segment.launches for segment in schedule.segments) or len(schedule.segments) > 1:
        raise Unlike  # steps of the host
    blocks = out.memory(executable)
    out.begin(form.ENTRIES)
    out.add(*schedule.outputs)
    out.begin(form.OUTPUTS_AT)
    for entry in schedule.outputs:
        shape, dtype = [*schedule.parameters, *schedule.results][entry]
        out.add(out.object(shape), out.object(dtype))
    launches = [launch for segment in schedule.segments for launch in segment.launches]
    specs = [*schedule.parameters, *schedule.results]
    touched = schedule.arena + sum([dtype.size * prod(shape) for shape, dtype in specs])
    alone = all([launch.useful <= 1 for launch in launches])
    header = {
        form.BLOCK_COUNT: blocks, form.BUFFERS: len(schedule.results), form.OUTPUT_COUNT: len(schedule.outputs),
        form.COPY_COUNT: len(schedule.copies),
        form.THREADS: int(alone), form.LONG: int(not alone or touched > QUIET_BYTES or len(launches) > QUIET_KERNELS),
    }  # fmt: skip
    if launches:
        header |= {form.RUN: executable.launcher, form.PROGRAM: executable.program}
    if executable.arena:
        size = executable.arena
        header |= {form.ARENA: out.object(pool.free.setdefault(size, [])), form.ARENA_SIZE: out.object(size)}
    return header


def evaluation(plan: Plan) -> tuple[Any, ...] | None:
    """The words of a plan of an evaluation (`evaluation.py`)."""
    executable = getattr(plan.run, "__self__", None)
    if not isinstance(executable, Executable):
        return None
    count = len(plan.leaves)
    out = _Stream(Call((), {}, (), None, count, executable, (), (), None, None, None, ctypes.c_uint64()))
    try:
        header = {form.ARRAYS: count, form.EXTRAS: 0, form.WALKED: len(plan.walk)} | _launches(executable, out)
        out.turns = header[form.COPY_COUNT] > 0
        out.begin(form.WALK)
        out.add(*[number for pair in plan.walk for number in pair])
        out.begin(form.LEAVES)
        out.add(*[number for pair in plan.leaves for number in pair])
        return _finished(out, header)
    except Unlike:
        return None


def described(
    entry: Entry,
    args: tuple,
    kwargs: dict[str, Any],
    numbers: int,
    given: int,
    state: tuple[Any, Any],
    hits: ctypes.c_uint64,
    late: ctypes.c_uint64,
) -> tuple[Any, ...] | None:
    """The plan of an entry for calls like one that it serves, with so many Python numbers and `given` arrays, those
    of captured state among them.
    """
    made: Any = entry.made
    extra = list(entry.extra)
    if isinstance(made, Runner):
        made, extra = made.executable, [*extra, made.lengths]
    if entry.program.outputs and not isinstance(made, Executable):
        return None
    feed = entry.feeder() if entry.inputs else None
    call = Call(args, kwargs, [i in entry.inputs for i in range(numbers)], feed, given, made, extra, entry.places,
                entry.result, *state, hits, late if entry.small and state[1] is None else None)  # fmt: skip
    return plan_of(call)
