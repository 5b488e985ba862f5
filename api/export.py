"""Functions in files: `export_function`, `exporter`, `import_function`; and graphs in DOT, `export_to_dot`.

A file holds traces of one function. It is data, in a format of our own, and reading it executes nothing:

    "mlxir-function-1\\n"   length of the JSON part (8 bytes, little endian)   JSON   constants, row-major, back to back

    {"metadata": "", "constants": [["float32", [3]], ...],
     "functions": [{"positional": 1, "keywords": ["y"], "inputs": [["float32", [4, 2]], ["float32", []]],
                    "symbols": [], "assumed": [], "captured": [0, ...], "program": {...}}]}

`program` takes the inputs (positional ones, then keywords by name) and what the trace captured: constants by number, or
`["1 / (s0)", "float32"]`, a number that sizes give. With `shapeless` the axes of the inputs are symbols `s0, s1, ...`
in order, "symbols" has their example sizes, and "assumed" the conditions under which the trace is valid; programs are
described in compiler/exchange.py. A damaged file raises ValueError.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from math import prod
from typing import IO, Any

import numpy as np

from mlxir.compiler.evaluate import evaluate, pipeline
from mlxir.compiler.exchange import Reader, aval_data, check, checked_expression, to_data
from mlxir.compiler.graph import NumberTrace, Trace, Value, close, constant, cut, first_uid, resolve
from mlxir.compiler.program import Program, attr_key
from mlxir.compiler.specialise import numbers_in, substitute, symbolic_trace
from mlxir.dialects.mx import Aval
from mlxir.dialects.symbolic import SYMBOLIC, Scope, function, plain
from mlxir.runtime import dtypes
from mlxir.runtime.dtypes import Dtype
from mlxir.runtime.errors import at
from mlxir.runtime.trees import leaves

from . import values
from .captured import Placeholders
from .entries import replay
from .ndarray import array, wrap
from .transforms import check_callable, describe

__all__ = ["FunctionExporter", "export_function", "export_to_dot", "exporter", "import_function"]

MAGIC = b"mlxir-function-1\n"
SPECIALISED = 64  # sizes for which an imported shapeless function keeps its program

Inputs = tuple[list[array], dict[str, array]]


def _inputs(tag: str, args: tuple, kwargs: dict[str, Any]) -> Inputs:
    """Positional and keyword arrays: given as such, or as one tuple and/or one dictionary."""
    positional: Sequence[Any] = args
    keywords = dict(kwargs)
    if args and not isinstance(args[0], array):
        *first, last = args if len(args) > 1 or isinstance(args[0], dict) else (*args, {})
        if isinstance(last, dict) and len(first) <= 1 and all(isinstance(x, (list, tuple)) for x in first):
            positional, keywords = (first[0] if first else ()), {**last, **kwargs}
    if not all(isinstance(x, array) for x in (*positional, *keywords.values())) or not all(
        isinstance(name, str) for name in keywords
    ):
        raise ValueError(
            f"[{tag}] Inputs can either be a variable number of positional and keyword arrays or a single tuple and/or"
            " dictionary of arrays."
        )
    return list(positional), {name: keywords[name] for name in sorted(keywords)}


# -- traces ------------------------------------------------------------------------------------------------------------
class _Exported:
    """One trace of a function, as the file holds it."""

    def __init__(self, fun: Callable, inputs: Inputs, shapeless: bool):
        positional, keywords = inputs
        given = [x._value for x in (*positional, *keywords.values())]
        self.positional, self.keywords = len(positional), list(keywords)
        self.inputs = [v.aval for v in given]
        name, where = describe(fun)
        since = first_uid()
        scope = self.scope = Scope()
        with Trace("export", name, where) as trace, symbolic_trace(scope, shapeless):
            stand_ins = Placeholders(trace, scope if shapeless else None, shapeless)
            arrays = [stand_ins.argument(x) for x in (*positional, *keywords.values())]
            result = fun(*arrays[: self.positional], **dict(zip(keywords, arrays[self.positional :], strict=True)))
            outputs = list(result) if isinstance(result, (list, tuple)) else [result]
            if not all(isinstance(x, array) for x in outputs):
                raise ValueError(
                    "[export_function] Outputs can be either a single array, a tuple, or a list of arrays; but"
                    f" {name}{at(where)} returned {type(result).__name__}."
                )
            self.program, self.captured = close(stand_ins.made, [x._value for x in outputs], since, name)
        evaluate([v for v in self.captured if not isinstance(v.trace, NumberTrace)])

    @property
    def signature(self) -> tuple:
        """What tells two traces apart."""
        shapes = [len(a.shape) if self.scope.hints else a.shape for a in self.inputs]
        return self.positional, tuple(self.keywords), tuple(zip(shapes, [a.dtype for a in self.inputs], strict=True))

    def data(self, number: dict[int, int]) -> dict[str, Any]:
        """As JSON; `number` says which constant of the file each captured value is."""
        captured = [
            [v.trace.number.text, v.trace.dtype.name] if isinstance(v.trace, NumberTrace) else number[id(resolve(v))]
            for v in self.captured
        ]
        return {
            "positional": self.positional, "keywords": self.keywords, "inputs": [*map(aval_data, self.inputs)],
            "symbols": list(self.scope.hints.values()), "assumed": list(self.scope.assumptions()),
            "captured": captured, "program": to_data(self.program),
        }  # fmt: skip


def _write(path: str, traces: Sequence[_Exported], metadata: str) -> None:
    """The file of some traces, written atomically; equal constants are kept once."""
    constants = {
        id(resolve(v)): resolve(v) for t in traces for v in t.captured if not isinstance(v.trace, NumberTrace)
    }  # fmt: skip
    number = {key: n for n, key in enumerate(constants)}
    header = {
        "metadata": metadata,
        "constants": [aval_data(v.aval) for v in constants.values()],
        "functions": [t.data(number) for t in traces],
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    name = f"{path}.{os.getpid()}-{threading.get_ident()}"
    try:
        with open(name, "xb") as file:
            file.write(MAGIC + len(text).to_bytes(8, "little") + text)
            for v in constants.values():
                file.write(v.buffer.numpy().tobytes())  # type: ignore[union-attr]
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


class FunctionExporter:
    """Exports traces of one function to a file, one per call with example arrays; `exporter` makes it.

    Used in a `with` statement, or closed by `close`. The file is complete after every call.
    """

    def __init__(self, path: str, fun: Callable, shapeless: bool, metadata: str | None):
        self._path, self._fun, self._shapeless, self._metadata = path, fun, shapeless, metadata or ""
        self._traces: list[_Exported] = []
        self._closed = False
        _write(path, [], self._metadata)

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Trace the function on example inputs and add the trace to the file.

        Raises RuntimeError after `close` and for a signature that is there already.
        """
        if self._closed:
            raise RuntimeError("[export_function] Attempting to write after exporting is closed.")
        trace = _Exported(self._fun, _inputs("export_function", args, kwargs), self._shapeless)
        if any(trace.signature == t.signature for t in self._traces):
            raise RuntimeError(
                "[export_function] Attempting to export a function twice with the same signature is not allowed."
            )
        _write(self._path, [*self._traces, trace], self._metadata)
        self._traces.append(trace)

    def close(self) -> None:
        """No trace can be added from now on."""
        self._closed = True

    def __enter__(self) -> FunctionExporter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _path(tag: str, file: Any) -> str:
    if not isinstance(file, (str, os.PathLike)):
        raise TypeError(f"[{tag}] a file is named by a string or a path, got {type(file).__name__}")
    return str(os.fspath(file))


def exporter(file: str, fun: Callable, *, shapeless: bool = False, metadata: str | None = None) -> FunctionExporter:
    """An object that exports a trace of `fun` to `file` for each call with example arrays; see `export_function`."""
    check_callable("exporter", fun)
    return FunctionExporter(_path("exporter", file), fun, shapeless, metadata)


def export_function(
    file_or_callback: str | Callable,
    fun: Callable,
    *args: Any,
    shapeless: bool = False,
    metadata: str | None = None,
    **kwargs: Any,
) -> None:
    """Write a trace of `fun`, which takes arrays and returns one or several, to a file that `import_function` reads.

    `args` and `kwargs` are example arrays, or one tuple and/or one dictionary of them. What `fun` captures is kept as
    constants. With `shapeless=True` the imported function takes other sizes, where `fun` does the same for them.
    `metadata` is a string kept beside the function. A callback in place of the file is called with one dictionary for
    the inputs, the keyword inputs, the outputs, the constants and each operation (key "type"), as in MLX.

    Raises ValueError for inputs or outputs of other types and for metadata with a callback.
    """
    check_callable("export_function", fun)
    if callable(file_or_callback):
        if metadata is not None:
            raise ValueError(
                "[export_function] The metadata argument is only supported when exporting to a file, not when using a"
                " callback."
            )
        _call_back(file_or_callback, _Exported(fun, _inputs("export_function", args, kwargs), shapeless))
        return
    with FunctionExporter(_path("export_function", file_or_callback), fun, shapeless, metadata) as export:
        export(*args, **kwargs)


def _letters(n: int) -> str:
    """A, B, ..., Z, AA, AB, ..."""
    return (_letters(n // 26 - 1) if n >= 26 else "") + chr(ord("A") + n % 26)


def _title(primitive: str) -> str:
    """log_add_exp -> LogAddExp."""
    return "".join(part.capitalize() for part in primitive.split("_"))


def _call_back(callback: Callable[[dict], Any], exported: _Exported) -> None:
    """Describe a trace as MLX does."""
    program, count = exported.program, len(exported.inputs)
    avals = dict(enumerate(program.parameters))
    for i in program.instructions:
        avals.update(zip(i.results, i.avals, strict=True))
    names: dict[int, str] = {}

    def entry(slot: int) -> tuple:
        name = names.setdefault(slot, _letters(len(names)))
        return name, tuple(map(plain, avals[slot].shape)), avals[slot].dtype

    callback({"type": "inputs", "inputs": [entry(s) for s in range(count)]})
    keywords = [(k, names[exported.positional + n]) for n, k in enumerate(exported.keywords)]
    callback({"type": "keyword_inputs", "keywords": keywords})
    callback({"type": "outputs", "outputs": [entry(s) for s in program.outputs]})
    constants = []
    for n, v in enumerate(exported.captured):
        known = constant(v.trace.data(v.trace.number.hint)) if isinstance(v.trace, NumberTrace) else v
        constants.append((entry(count + n)[0], wrap(known)))
    operations = []
    for i in program.instructions:
        if i.record.name == "full" and i.attrs["shape"] == ():
            x = array(i.attrs["value"], i.attrs["dtype"])
            constants.append((entry(i.results[0])[0], x))
        else:
            operations.append(i)
    callback({"type": "constants", "constants": constants})
    for i in operations:
        callback({
            "type": "primitive", "name": _title(i.record.name), "arguments": list(i.attrs.values()),
            "inputs": [entry(s) for s in i.operands], "outputs": [entry(s) for s in i.results],
        })  # fmt: skip


# -- importing ---------------------------------------------------------------------------------------------------------
class _Imported:
    """One trace of a file."""

    def __init__(self, data: Any, constants: list[Value]):
        _need(isinstance(data, dict) and isinstance(data.get("symbols"), list), "a function")
        scope = Scope()
        for n in data["symbols"]:
            _need(type(n) is int and n >= 0, "a size")
            scope.size(n)
        scope.active = False
        self.names, self.hints = list(scope.hints), list(scope.hints.values())
        reader = Reader(scope)
        self.positional, self.keywords = data.get("positional"), data.get("keywords")
        _need(isinstance(self.keywords, list) and all(isinstance(k, str) for k in self.keywords), "keywords")
        _need(isinstance(data.get("inputs"), list) and isinstance(data.get("captured"), list), "a function")
        self.inputs = [reader.aval(a) for a in data["inputs"]]
        _need(type(self.positional) is int and self.positional + len(self.keywords) == len(self.inputs), "inputs")
        _need(self.hints in ([], [n for a in self.inputs for n in a.shape]), "symbols")
        conditions = [checked_expression(text, self.names) for text in data["assumed"]]
        self.holds = function(self.names, conditions, "and")
        self.captured: list[Value | tuple[Any, Dtype]] = []
        for item in data["captured"]:
            if isinstance(item, list) and len(item) == 2:
                self.captured.append((reader.number(item[0]), dtypes.from_name(item[1])))
            else:
                _need(type(item) is int and 0 <= item < len(constants), "a captured constant")
                self.captured.append(constants[item])
        self.program = reader.program(data.get("program"))
        self.symbolic = {n.text: n for n in numbers_in(self.program)}
        self.symbolic.update((c[0].text, c[0]) for c in self.captured if not isinstance(c, Value))
        self.concrete = function(self.names, list(self.symbolic), ",")
        self.made: dict[tuple, tuple[Program, dict[str, Any]]] = {}
        self.specialised(self.hints)

    def specialised(self, sizes: list[Any]) -> tuple[Program, dict[str, Any]]:
        """The program for given sizes, and its expressions for them; checked, unless the sizes are symbolic."""
        concrete = not any(type(n) in SYMBOLIC for n in sizes)
        if concrete and tuple(sizes) in self.made:
            return self.made[tuple(sizes)]
        known = dict(zip(self.symbolic, self.concrete(*sizes), strict=True))
        program = substitute(self.program, lambda n: known[n.text]) if known else self.program
        if concrete:
            rest = iter(sizes)
            given = [Aval(tuple([next(rest) for _ in a.shape]), a.dtype) if sizes else a for a in self.inputs]
            captured = [c.aval if isinstance(c, Value) else Aval((), c[1]) for c in self.captured]
            _need(program.parameters == given + captured, "types of parameters")
            check(program, lambda p: pipeline().transformed_program(p))
            if len(self.made) >= SPECIALISED:
                self.made.clear()
            self.made[tuple(sizes)] = program, known
        return program, known

    def matches(self, positional: list[array], keywords: dict[str, array]) -> bool:
        """Whether the trace takes these inputs."""
        if len(positional) != self.positional or list(keywords) != self.keywords:
            return False
        pairs = list(zip((*positional, *keywords.values()), self.inputs, strict=True))
        if any(x.dtype is not a.dtype or x.ndim != a.ndim for x, a in pairs):
            return False
        if not self.names:
            return all(x.shape == a.shape for x, a in pairs)
        return self.holds(*[n for x, _ in pairs for n in x.shape])

    def __call__(self, arrays: list[array]) -> tuple[array, ...]:
        program, known = self.specialised([n for x in arrays for n in x.shape] if self.names else [])
        captured = [c if isinstance(c, Value) else values.full(known[c[0].text], (), c[1]) for c in self.captured]
        return tuple([wrap(v) for v in replay(program, [*[x._value for x in arrays], *captured])])

    def __str__(self) -> str:
        places = [*map(str, range(1, self.positional + 1)), *[f'"{k}"' for k in self.keywords]]
        shapes = [f"({', '.join('*' if self.names else str(n) for n in a.shape)}) {a.dtype.name}" for a in self.inputs]
        lines = [f"   {p}: {s}" for p, s in zip(places, shapes, strict=True)]
        head = f"Function with {self.positional} positional inputs and {len(self.keywords)} keyword inputs:"
        return "\n".join([head, *lines])


class ImportedFunction:
    """A function read from a file: called with arrays, it returns a tuple of arrays; transforms apply to it."""

    def __init__(self, traces: list[_Imported]):
        self._traces = traces

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[array, ...]:
        """Raises ValueError where no trace of the file takes the inputs."""
        positional, keywords = _inputs("import_function::call", args, kwargs)
        for trace in self._traces:
            if trace.matches(positional, keywords):
                return trace([*positional, *keywords.values()])
        known = "\n".join(f" {n}. {t}" for n, t in enumerate(self._traces, 1))
        given = [*enumerate(positional, 1), *keywords.items()]
        called = "\n".join(f"  {k}: {x.shape} {x.dtype.name}" for k, x in given)
        raise ValueError(
            "[import_function::call] No imported function found which matches the given positional and keyword"
            f" arguments. Possible functions include:\n{known}\n\nCalled with {len(positional)} positional inputs and"
            f" {len(keywords)} keyword inputs:\n{called}"
        )


def _need(condition: Any, what: str) -> None:
    if not condition:
        raise ValueError(f"[import_function] the file is damaged or of another version: {what} is not valid")


def _read(data: bytes) -> tuple[ImportedFunction, str]:
    _need(data.startswith(MAGIC), "its first line")
    start = len(MAGIC) + 8
    end = start + int.from_bytes(data[len(MAGIC) : start], "little")
    _need(len(data) >= end >= start, "its length")
    try:
        header = json.loads(data[start:end])
    except ValueError as error:
        raise ValueError(f"[import_function] the file is damaged: {error} in its JSON part") from None
    _need(isinstance(header, dict) and isinstance(header.get("metadata"), str), "its header")
    _need(isinstance(header.get("constants"), list) and isinstance(header.get("functions"), list), "its header")
    reader, constants = Reader(Scope()), []
    for item in header["constants"]:
        aval = reader.aval(item)
        size = prod(aval.shape) * aval.dtype.size
        _need(end + size <= len(data), "its length")
        constants.append(constant(np.frombuffer(data[end : end + size], aval.dtype.numpy).reshape(aval.shape)))
        end += size
    _need(end == len(data), "its length")
    return ImportedFunction([_Imported(item, constants) for item in header["functions"]]), header["metadata"]


def import_function(file: str, return_metadata: bool = False) -> Any:
    """The function in a file that `export_function` or `exporter` wrote; with its metadata, if asked for.

    Raises RuntimeError where the file cannot be opened, ValueError where it is damaged or no such file.
    """
    path = _path("import_function", file)
    try:
        with open(path, "rb") as opened:
            data = opened.read()
    except OSError as error:
        raise RuntimeError(f"[import_function] Failed to open {path}: {error.strerror}") from None
    try:
        found, metadata = _read(data)
    except (TypeError, LookupError, ArithmeticError, AttributeError, RecursionError, MemoryError) as error:
        raise ValueError(f"[import_function] the file is damaged: {type(error).__name__} {error}") from None
    return (found, metadata) if return_metadata else found


# -- graphs ------------------------------------------------------------------------------------------------------------
def export_to_dot(file: str | IO[str], *args: Any, **kwargs: array) -> None:
    """Write the unevaluated graph of the arrays in `args` in the DOT language, to a path or a text file.

    Keyword arguments name arrays of the graph; others are called A, B, ...
    """
    outputs = [x._value for x in leaves(args) if isinstance(x, array)]
    piece = cut(outputs)
    program = piece.program
    slots: dict[Any, int] = {id(v): n for n, v in enumerate(piece.parameters)}
    for node, i in zip(piece.nodes, program.instructions, strict=True):
        slots.update(((id(node), n), slot) for n, slot in enumerate(i.results))
    names: dict[int, str] = {}
    for name, x in kwargs.items():
        v = x._value
        slot = slots.get(id(v), slots.get((id(v.node), v.index)))
        if slot is not None:
            names[slot] = name

    def named(slot: int) -> str:
        if slot not in names:
            names[slot] = _letters(len(names))
        return json.dumps(names[slot])

    lines = ["digraph {"]
    lines += [f"{{ rank=source; {named(s)}; }}" for s in range(len(piece.parameters))]
    for n, i in enumerate(program.instructions):
        attributes = "".join(f"\\n{k} = {attr_key(v)}" for k, v in i.attrs.items() if not isinstance(v, Program))
        label = (_title(i.record.name) + attributes).replace('"', "'")
        lines.append(f'{{ {n} [label ="{label}", shape=rectangle]; }}')
        lines += [f"{named(s)} -> {n}" for s in i.operands]
        for s in i.results:
            lines += [f"{{ rank=sink; {named(s)}; }}" if s in program.outputs else f"{{ {named(s)}; }}"]
            lines.append(f"{n} -> {named(s)}")
    text = "\n".join([*lines, "}"])
    if hasattr(file, "write"):
        file.write(text)
    else:
        with open(_path("export_to_dot", file), "w") as opened:
            opened.write(text)
