"""`compile`: trace a function once per signature, run the optimised program from then on.

A call flattens its arguments in one walk into a key (structure, constants by type and value, shapes and dtypes) and a
list of values. On a hit the program runs on the values' buffers and the results are put in their places: nothing is
traced, built or evaluated. On a miss the function is called on placeholders; what it captured from outside becomes
extra arguments with the values of that moment.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from mlxir.compiler.evaluate import evaluate, executable
from mlxir.compiler.graph import (
    Node,
    Trace,
    Value,
    close,
    constant,
    depends_on_trace,
    first_uid,
    placeholder,
    resolve,
    running,
)
from mlxir.compiler.program import Program
from mlxir.runtime.buffers import Buffer
from mlxir.runtime.errors import at
from mlxir.runtime.knobs import knobs
from mlxir.runtime.trees import container_kind, leaves, remake_tuple, tree_map, update

from .ndarray import array, wrap
from .random import RandomState
from .transforms import check_callable, describe

__all__ = ["clear_compile_cache", "compile", "compile_cache_info", "disable_compile", "enable_compile"]

_allocate = object.__new__
_CONSTANTS = (str, int, float, type(None))  # bool is an int
_KEYWORD, _STATE = object(), object()  # tokens of a key


class SignatureInfo(NamedTuple):
    """Of one compiled function: calls that found their signature, calls that traced, and signatures kept."""

    hits: int
    misses: int
    entries: int


# -- signatures ------------------------------------------------------------------------------------------------------
# A key is a flat list. Each node of the tree begins with a token of its own kind (a shape, a container's type, a
# constant's type), so the list can be read in one way only. The loops over containers repeat the case of an array: it
# is most of what a call passes.
def _flatten_argument(x: Any, key: list, values: list) -> None:
    """Append a tree of arrays and constants to the key, its arrays to the values; ValueError for other leaves."""
    kind = type(x)
    if kind is array:
        value = x._value
        values.append(value)
        key.append(value.shape)
        key.append(value.dtype)
    elif kind is dict or isinstance(x, dict):
        key.append(dict)
        key.append(len(x))
        for name, item in x.items():
            key.append(name)
            if type(item) is array:
                value = item._value
                values.append(value)
                key.append(value.shape)
                key.append(value.dtype)
            else:
                _flatten_argument(item, key, values)
    elif isinstance(x, (list, tuple)):
        key.append(list if isinstance(x, list) else kind)
        key.append(len(x))
        for item in x:
            if type(item) is array:
                value = item._value
                values.append(value)
                key.append(value.shape)
                key.append(value.dtype)
            else:
                _flatten_argument(item, key, values)
    elif isinstance(x, array):
        values.append(x._value)
        key.append(x.shape)
        key.append(x.dtype)
    elif isinstance(x, _CONSTANTS):
        key.append(kind)
        # NaN differs from itself and -0.0 equals 0.0: their text does not.
        key.append(repr(x) if isinstance(x, float) and (x != x or x == 0) else x)
    else:
        raise ValueError(
            "[compile] Function arguments must be trees of arrays or constants (floats, ints, strings, or None), but"
            f" received type {kind.__name__}."
        )


def _flatten_state(x: Any, key: list, values: list) -> None:
    """Append captured state: its arrays count, leaves of other types are ignored."""
    kind = type(x)
    if kind is array or isinstance(x, array):
        value = x._value
    elif kind is dict or isinstance(x, dict):
        key.append(len(x))
        for name, item in x.items():
            key.append(name)
            if type(item) is array:
                value = item._value
                values.append(value)
                key.append(value.shape)
                key.append(value.dtype)
            else:
                _flatten_state(item, key, values)
        return
    elif isinstance(x, (list, tuple)):
        key.append(len(x))
        for item in x:
            _flatten_state(item, key, values)
        return
    elif kind is RandomState:
        value = x.value
    else:
        key.append(None)
        return
    values.append(value)
    key.append(value.shape)
    key.append(value.dtype)


# -- captured state --------------------------------------------------------------------------------------------------
def _containers(tree: Any) -> Iterator[list | dict]:
    """Every list and dict of a tree."""
    kind = container_kind(tree)
    if kind is not None:
        if kind is not tuple:
            yield tree
        for item in tree.values() if kind is dict else tree:
            yield from _containers(item)


class _Snapshot:
    """The contents of all lists and dicts of the captured state, for a trace that raises."""

    def __init__(self, *trees: Any):
        self.saved = [(c, c.copy() if type(c) in (list, dict) else (dict if isinstance(c, dict) else list)(c))
                      for tree in trees for c in _containers(tree)]  # fmt: skip
        self.random = RandomState().value

    def restore(self) -> None:
        for container, content in self.saved:
            if isinstance(container, dict):
                container.clear()
                container.update(content)
            else:
                container[:] = content
        RandomState().value = self.random


class _Placeholders:
    """Placeholders for the arrays of a call, in the order of the signature.

    Those of captured state are put into it for the time of a trace.
    """

    def __init__(self, trace: Trace):
        self.trace = trace
        self.made: list[Value] = []
        self.swapped: dict[int, tuple[array, array]] = {}  # id of the stand-in -> (stand-in, original)
        self.random: Value | None = None

    def make(self, value: Value) -> Value:
        self.made.append(placeholder(value.shape, value.dtype, self.trace))
        return self.made[-1]

    def argument(self, leaf: Any) -> Any:
        return wrap(self.make(leaf._value)) if isinstance(leaf, array) else leaf

    def insert(self, leaf: Any) -> Any:
        if isinstance(leaf, array):
            stand_in = wrap(self.make(leaf._value))
            self.swapped[id(stand_in)] = stand_in, leaf
            return stand_in
        if isinstance(leaf, RandomState):
            self.random, leaf.value = leaf.value, self.make(leaf.value)
        return leaf

    def remove(self, state: Any) -> None:
        """Put back what the function did not reassign."""

        def back(leaf: Any) -> Any:
            found = self.swapped.get(id(leaf))
            return found[1] if found is not None and leaf._value.trace is self.trace else leaf

        update(back, state)
        if self.random is not None:
            RandomState().value = self.random


def _written(state: Any) -> list[Value]:
    """The values that stand in captured outputs, in order."""
    return [x._value if isinstance(x, array) else x.value for x in leaves(state) if isinstance(x, (array, RandomState))]


def _write(tree: Any, new: Iterator[array]) -> Any:
    """Put the next arrays into the array slots of captured outputs.

    A tuple is rebuilt; an array that no list or dict holds refers to the new value.
    """
    if isinstance(tree, dict):
        for key, item in tree.items():  # existing keys only: the dict keeps its size
            if type(item) is array:
                tree[key] = next(new)
            elif isinstance(item, (dict, list, RandomState)):
                _write(item, new)
            elif isinstance(item, (tuple, array)):
                tree[key] = _rewritten(item, new)
    elif isinstance(tree, list):
        for i, item in enumerate(tree):
            if type(item) is array:
                tree[i] = next(new)
            elif isinstance(item, (dict, list, RandomState)):
                _write(item, new)
            elif isinstance(item, (tuple, array)):
                tree[i] = _rewritten(item, new)
    elif isinstance(tree, tuple):
        for item in tree:
            _write(item, new)
    elif isinstance(tree, array):
        tree._value = next(new)._value
    elif isinstance(tree, RandomState):
        tree.value = next(new)._value
    return tree


def _rewritten(item: Any, new: Iterator[array]) -> Any:
    """What a slot holds instead of a tuple or an array."""
    if isinstance(item, array):
        return next(new)
    if not isinstance(item, tuple):
        return _write(item, new)
    return remake_tuple(type(item), [_rewritten(x, new) for x in item])


# -- entries ---------------------------------------------------------------------------------------------------------
class _Entry:
    """What one signature became: a program, what it captured, and where its results go.

    `places` says for each array of the returned tree, then of the captured outputs, where it comes from: result j of
    the program (j >= 0), value i of the call (-1 - i), or a value from outside that is returned as it is.
    """

    __slots__ = ("captured", "places", "plain", "program", "rebuild", "returned", "run")

    def __init__(self, program: Program, captured: list[Value], places: list[int | Value], result: Any):
        self.program, self.captured, self.places = program, captured, places
        self.plain = places == list(range(len(places)))
        self.returned, self.rebuild = _rebuilder(result)
        self.run: Callable[[list[Buffer]], list[Buffer]] | None = None

    def prepare(self) -> None:
        """Evaluate what was captured and get the executable."""
        evaluate(self.captured)
        extra = [resolve(v).buffer for v in self.captured]
        if not self.program.outputs:
            self.run = lambda buffers: []
            return
        run = executable(self.program).run
        self.run = (lambda buffers: run(buffers + extra)) if extra else run

    def finish(self, results: Sequence[Value], values: Sequence[Value], state: Any) -> Any:
        """The returned tree, after captured outputs were written."""
        if self.plain:
            found: Sequence[Value] = results
        else:
            found = [p if isinstance(p, Value) else results[p] if p >= 0 else values[-1 - p] for p in self.places]
        arrays = [wrap(v) for v in found]
        if state is not None:
            new = iter(arrays[self.returned :])
            try:
                _write(state, new)
                exhausted = next(new, None) is None
            except StopIteration:
                exhausted = False
            if not exhausted:
                raise ValueError("[compile] The captured outputs hold another number of arrays than when traced.")
        return self.rebuild(arrays)


def _rebuilder(result: Any) -> tuple[int, Callable[[Sequence[array]], Any]]:
    """How many arrays a returned tree holds, and a function that makes the same tree with other arrays.

    The function is an expression such as `[a[0], {k[0]: a[1], k[1]: k[2]}]`, which is faster than walking a structure.
    """
    count, known = 0, []

    def name(x: Any) -> str:
        known.append(x)
        return f"k[{len(known) - 1}]"

    def text(tree: Any) -> str:
        nonlocal count
        kind = container_kind(tree)
        if kind is None:
            if not isinstance(tree, array):
                return name(tree)
            count += 1
            return f"a[{count - 1}]"
        if kind is dict:
            return "{" + ", ".join([f"{name(key)}: {text(item)}" for key, item in tree.items()]) + "}"
        items = "".join([text(item) + ", " for item in tree])
        if kind is list:
            return f"[{items}]"
        return f"({items})" if type(tree) is tuple else f"remake({name(type(tree))}, [{items}])"

    source = f"lambda a: {text(result)}"
    return count, eval(source, {"k": known, "remake": remake_tuple})


def _replay(program: Program, arguments: Sequence[Value]) -> list[Value]:
    """The program's operations recorded again, on other values."""
    known = list(arguments)
    for i in program.instructions:
        node = Node(i.record, i.attrs, tuple([known[s] for s in i.operands]), i.avals, i.where)
        known.extend([Value(a.shape, a.dtype, node, n) for n, a in enumerate(i.avals)])
    return [known[s] for s in program.outputs]


class _Cache:
    """The entries of one compiled function."""

    def __init__(self, fun: Callable, inputs: Any, outputs: Any):
        self.fun, self.inputs, self.outputs = fun, inputs, outputs
        self.name, self.where = describe(fun)
        self.clear()

    def clear(self) -> None:
        """Forget all entries and counts."""
        self.entries: dict[tuple, _Entry] = {}
        # The last signature is compared before anything is hashed.
        self.last: tuple[list, _Entry | None] = ([object()], None)
        self.hits = self.misses = 0

    def info(self) -> SignatureInfo:
        """Hits, misses and entries of this function."""
        return SignatureInfo(self.hits, self.misses, len(self.entries))

    def find(self, key: list) -> _Entry | None:
        """The entry of a signature."""
        entry = self.entries.get(tuple(key))
        if entry is not None:
            self.last = (key, entry)
        return entry

    def miss(self, key: list, args: tuple, kwargs: dict, values: list[Value]) -> Any:
        """Trace, compile, keep and run."""
        nested = running.depth > 0
        snapshot = _Snapshot(self.inputs, self.outputs)
        try:
            entry = self.trace(args, kwargs, values)
            if nested and depends_on_trace([*entry.captured, *[p for p in entry.places if isinstance(p, Value)]]):
                # A closure over what a transform around this call is tracing: part of that trace, and valid only now.
                return entry.finish(_replay(entry.program, values + entry.captured), values, self.outputs)
            entry.prepare()
        except BaseException:
            snapshot.restore()
            raise
        self.misses += 1
        self.entries[tuple(key)] = entry
        self.last = (key, entry)
        evaluate(values)
        assert entry.run is not None
        results = entry.run([v.buffer for v in values])  # type: ignore[misc]
        return entry.finish([constant(b) for b in results], values, self.outputs)

    def trace(self, args: tuple, kwargs: dict, values: list[Value]) -> _Entry:
        """Call the function on placeholders and close what it recorded."""
        since = first_uid()
        with Trace("compile", self.name, self.where) as trace:
            stand_ins = _Placeholders(trace)
            inner_args, inner_kwargs = tree_map(stand_ins.argument, args), tree_map(stand_ins.argument, kwargs)
            update(stand_ins.insert, self.inputs)
            result = self.fun(*inner_args, **inner_kwargs)
            outputs = [*[x._value for x in leaves(result) if isinstance(x, array)], *_written(self.outputs)]
            stand_ins.remove(self.inputs)
            number = {id(v): -1 - i for i, v in enumerate(stand_ins.made)}
            wanted: list[Value] = []
            places: list[int | Value] = []
            for value in outputs:
                if value.uid < since or (value.node is None and value.alias is None and id(value) not in number):
                    places.append(value)
                    continue
                if id(value) not in number:
                    number[id(value)] = len(wanted)
                    wanted.append(value)
                places.append(number[id(value)])
            program, captured = close(stand_ins.made, wanted, since, self.name)
        given = {id(v) for v in values}
        if any(id(v) in given for v in [*captured, *[p for p in places if isinstance(p, Value)]]):
            raise ValueError(
                "[compile] Attempting to compile a function with uncaptured inputs is not allowed:"
                f" {self.name}{at(self.where)} uses an array from outside that is also an input of this call. Use the"
                " parameter, or the captured container, instead."
            )
        return _Entry(program, captured, places, result)


# -- the public functions --------------------------------------------------------------------------------------------
_caches: weakref.WeakKeyDictionary[Callable, _Cache] = weakref.WeakKeyDictionary()  # by compiled function


def compile(  # noqa: A001 (MLX's name)
    fun: Callable, inputs: Any = None, outputs: Any = None, shapeless: bool = False
) -> Callable[..., Any]:
    """A function that computes what `fun` does, traced once per signature and run as one optimised program.

    Arguments are trees of arrays and constants (str, int, float, bool, None); a call with new shapes, dtypes, structure
    or constants traces again. `inputs` and `outputs` are trees of captured state: arrays in `inputs` are read at each
    call, arrays in `outputs` are overwritten after it; `random.state` may be among them. Other arrays from outside are
    constants, frozen when the function is traced. With `shapeless=True` a new shape traces again too: shapes that `fun`
    reads are never stale.

    `cache_info()` and `cache_clear()` of the returned function tell and forget its signatures. Raises TypeError if
    `fun` cannot be called; calls raise ValueError for other arguments, for evaluation of a traced array, and for
    closures over an array that is also an input.
    """
    check_callable("compile", fun)
    cache = _Cache(fun, inputs, outputs)

    @functools.wraps(fun, updated=())
    def compiled(*args: Any, **kwargs: Any) -> Any:
        key: list = []
        values: list[Value] = []
        for x in args:
            if type(x) is array:
                value = x._value
                values.append(value)
                key.append(value.shape)
                key.append(value.dtype)
            else:
                _flatten_argument(x, key, values)
        for name, x in kwargs.items():
            key.append(_KEYWORD)
            key.append(name)
            _flatten_argument(x, key, values)
        if knobs.disable_compile:
            return fun(*args, **kwargs)
        if inputs is not None:
            key.append(_STATE)
            _flatten_state(inputs, key, values)
        if running.depth and depends_on_trace(values):
            return fun(*args, **kwargs)
        last, entry = cache.last
        if key != last:
            entry = cache.find(key)
        if entry is None:
            return cache.miss(key, args, kwargs, values)
        cache.hits += 1
        buffers = [v.buffer for v in values]
        if not all(buffers):  # a buffer is true
            evaluate(values)
            buffers = [v.buffer for v in values]
        results = entry.run(buffers)  # type: ignore[arg-type, misc]
        if outputs is not None or not entry.plain:
            return entry.finish([constant(b) for b in results], values, outputs)
        arrays = []
        for buffer in results:
            value = Value(buffer.shape, buffer.dtype)
            value.buffer = buffer
            x = _allocate(array)
            x._value = value
            arrays.append(x)
        return entry.rebuild(arrays)

    compiled.cache_info = cache.info  # type: ignore[attr-defined]
    compiled.cache_clear = cache.clear  # type: ignore[attr-defined]
    _caches[compiled] = cache
    return compiled


def traced(fun: Callable, args: tuple, kwargs: dict) -> Program:
    """The program that a call of `fun`, compiled or plain, is compiled to.

    Nothing is evaluated, and captured state stays as it is. Raises what `compile` raises.
    """
    cache = (_caches.get(fun) if inspect.isfunction(fun) else None) or _Cache(fun, None, None)
    snapshot = _Snapshot(cache.inputs, cache.outputs)
    try:
        return cache.trace(args, kwargs, [x._value for x in leaves((args, kwargs)) if isinstance(x, array)]).program
    finally:
        snapshot.restore()


def _compiler_cache() -> Any:
    from mlxir.compiler import cache  # lazy: it loads llvmlite, 50 ms

    return cache


def compile_cache_info() -> Any:
    """What the cache of executables has done in this process: hits, misses, disk hits, compilations and their time."""
    return _compiler_cache().info()


def clear_compile_cache() -> None:
    """Forget all signatures of compiled functions and all executables in memory; the disk cache keeps its own."""
    for cache in list(_caches.values()):
        cache.clear()
    _compiler_cache().clear()


class _CompileMode(contextlib.ContextDecorator):
    """What `disable_compile()` and `enable_compile()` return: the switch is made; leaving a `with` block undoes it."""

    def __init__(self, disabled: bool):
        self.disabled, self.before = disabled, knobs.disable_compile
        knobs.disable_compile = disabled

    def __enter__(self) -> _CompileMode:
        knobs.disable_compile = self.disabled  # made again where the object decorates a function
        return self

    def __exit__(self, *exc: object) -> None:
        knobs.disable_compile = self.before

    def __repr__(self) -> str:
        return f"<compile {'disabled' if self.disabled else 'enabled'}; was {'disabled' if self.before else 'enabled'}>"


def disable_compile() -> contextlib.ContextDecorator:
    """Make all compiled functions of the process call their Python function. Also `with disable_compile(): ...`."""
    return _CompileMode(True)


def enable_compile() -> contextlib.ContextDecorator:
    """Undo `disable_compile` and the environment variable MLX_DISABLE_COMPILE. Also `with enable_compile(): ...`."""
    return _CompileMode(False)
