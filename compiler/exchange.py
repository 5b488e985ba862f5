"""Programs as JSON data, to be kept in files: written, read and checked. Nothing that is read is executed.

    {"parameters": [["float32", [4, "s0"]]],
     "instructions": [["exp", {}, [0], [["float32", [4, "s0"]]]], ...],     primitive, attributes, operands, results
     "outputs": [1]}

Operands are numbers of values: the parameters first, then every result in order. A symbolic size is an expression over
`s0, s1, ...`. Attributes that JSON has no form for are tagged: {"tuple": [...]}, {"dtype": "float32"},
{"float": "nan"}, {"complex": [re, im]}, {"size": "s0 + 1"}, {"program": {...}}.

A program that was read is trusted after `check`: each result is what the primitive's own shape rule says.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from typing import Any

from mlxir.compiler.program import Instruction, Program
from mlxir.dialects.mx import RECORDS, Aval, OpBuilder, Operators, Primitive
from mlxir.dialects.symbolic import SYMBOLIC, Scope, SymFloat, SymInt, function, is_symbolic
from mlxir.runtime import dtypes
from mlxir.runtime.dtypes import Dtype

MOST_ELEMENTS = 1 << 48


# -- writing -----------------------------------------------------------------------------------------------------------
def to_data(program: Program) -> dict[str, Any]:
    """A program as JSON data."""
    return {
        "name": program.name,
        "parameters": [aval_data(a) for a in program.parameters],
        "instructions": [
            [i.record.name, {k: _encode(v) for k, v in i.attrs.items()}, list(i.operands), [*map(aval_data, i.avals)]]
            for i in program.instructions
        ],
        "outputs": program.outputs,
    }


def aval_data(aval: Aval) -> list:
    """`["float32", [4, "s0"]]`."""
    sizes: tuple[Any, ...] = aval.shape
    return [aval.dtype.name, [n.text if is_symbolic(n) else n for n in sizes]]


def _encode(value: Any) -> Any:
    if type(value) in SYMBOLIC:
        return {"size": value.text}
    if isinstance(value, Program):
        return {"program": to_data(value)}
    if isinstance(value, tuple):
        return {"tuple": [_encode(v) for v in value]}
    if isinstance(value, Dtype):
        return {"dtype": value.name}
    if isinstance(value, complex):
        return {"complex": [_encode(value.real), _encode(value.imag)]}
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise ValueError(f"[export_function] an attribute of type {type(value).__name__} cannot be written")


# -- reading -----------------------------------------------------------------------------------------------------------
_NODES = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Constant, ast.Name, ast.Load, ast.Add, ast.Sub, ast.Mult,
    ast.FloorDiv, ast.Mod, ast.Div, ast.Pow, ast.USub, ast.Not, ast.Eq, ast.Lt, ast.LtE, ast.Gt,
)  # fmt: skip


def checked_expression(text: Any, names: list[str]) -> str:
    """An expression or condition over symbols that is safe to evaluate. Raises ValueError for anything else."""
    _need(isinstance(text, str) and len(text) < 1 << 16, "an expression")
    try:
        tree = ast.parse(text, mode="eval")
        for node in ast.walk(tree):
            _need(isinstance(node, _NODES), f"expression {text!r}")
            if isinstance(node, ast.Name):
                _need(node.id in (*names, "inf", "nan"), f"symbol {node.id!r}")
            elif isinstance(node, ast.Constant):
                _need(type(node.value) in (int, float), f"constant {node.value!r}")
            elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
                # Powers of floats stay small; those of ints need not.
                literals = [s.value for s in (node.left, node.right) if isinstance(s, ast.Constant)]
                _need(any(type(x) is float for x in literals) or isinstance(node.right, ast.UnaryOp), f"power {text!r}")
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"[import_function] {text[:80]!r} is no expression ({type(error).__name__})") from None
    return text


class Reader:
    """Reads programs over the symbols of one scope, whose hints are the sizes with which they were traced."""

    def __init__(self, scope: Scope):
        self.scope = scope
        self.names = list(scope.hints)

    def number(self, text: Any) -> Any:
        """A symbolic number."""
        value = function(self.names, [checked_expression(text, self.names)], ",")(*self.scope.hints.values())[0]
        if isinstance(value, float):
            return SymFloat(self.scope, text, value, frozenset(self.names))
        _need(isinstance(value, int), f"size {text!r}")
        return SymInt(self.scope, {(f"({text})",): 1}, value)

    def aval(self, data: Any) -> Aval:
        """An abstract array."""
        _need(isinstance(data, list) and len(data) == 2 and isinstance(data[0], str), "an array type")
        _need(isinstance(data[1], list) and len(data[1]) <= 64, "a shape")
        return Aval(tuple([self._size(n) for n in data[1]]), dtypes.from_name(data[0]))

    def _size(self, n: Any) -> Any:
        if isinstance(n, str):
            n = self.number(n)
        _need(type(n) in (int, SymInt) and 0 <= n < MOST_ELEMENTS, "a size")
        return n

    def program(self, data: Any) -> Program:
        """A program; its structure is checked, not yet its types."""
        _need(isinstance(data, dict) and {"name", "parameters", "instructions", "outputs"} <= data.keys(), "a program")
        _need(all(isinstance(data[k], list) for k in ("parameters", "instructions", "outputs")), "a program")
        parameters = [self.aval(a) for a in data["parameters"]]
        instructions, count = [], len(parameters)
        for item in data["instructions"]:
            _need(isinstance(item, list) and len(item) == 4, "an instruction")
            name, attrs, operands, avals = item
            record = RECORDS.get(name) if isinstance(name, str) else None
            _need(record is not None, f"primitive {name!r}, which this version does not have")
            _need(isinstance(attrs, dict) and list(attrs) == list(record.attrs), f"attributes of {name}")  # type: ignore[union-attr]
            _need(isinstance(operands, list) and all(_is_slot(s, count) for s in operands), f"operands of {name}")
            _need(isinstance(avals, list) and len(avals) > 0, f"results of {name}")
            results = tuple(range(count, count + len(avals)))
            count += len(avals)
            decoded = {k: self._decode(v) for k, v in attrs.items()}
            types = [self.aval(a) for a in avals]
            instructions.append(Instruction(record, decoded, tuple(operands), results, types))  # type: ignore[arg-type]
        _need(all(_is_slot(s, count) for s in data["outputs"]), "outputs of a program")
        name = "".join(c for c in str(data["name"])[:64] if c.isalnum() or c == "_") or "imported"
        return Program(parameters, instructions, data["outputs"], name)

    def _decode(self, value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        _need(isinstance(value, dict) and len(value) == 1, "an attribute")
        ((tag, inner),) = value.items()
        _need(tag in self._DECODERS, f"attribute tag {tag!r}")
        return self._DECODERS[tag](self, inner)

    def _tuple(self, items: Any) -> tuple:
        _need(isinstance(items, list), "a tuple")
        return tuple([self._decode(v) for v in items])

    def _dtype(self, name: Any) -> Dtype:
        _need(isinstance(name, str), "a dtype")
        return dtypes.from_name(name)

    def _float(self, text: Any) -> float:
        _need(text in ("nan", "inf", "-inf"), "a float")
        return float(text)

    def _complex(self, parts: Any) -> complex:
        _need(isinstance(parts, list) and len(parts) == 2, "a complex number")
        re, im = (self._decode(p) for p in parts)
        _need(isinstance(re, float) and isinstance(im, float), "a complex number")
        return complex(re, im)

    _DECODERS: dict[str, Callable[[Any, Any], Any]] = {
        "tuple": _tuple, "dtype": _dtype, "float": _float, "complex": _complex, "size": number, "program": program,
    }  # fmt: skip


def _is_slot(s: Any, count: int) -> bool:
    return type(s) is int and 0 <= s < count


def _need(condition: Any, what: str) -> None:
    if not condition:
        raise ValueError(f"[import_function] the file is damaged or of another version: {what} is not valid")


class _Handle(Operators):
    """A value of which only the type is known."""

    def __init__(self, aval: Aval, m: OpBuilder):
        self.aval, (self.shape, self.dtype), self.m = aval, aval, m


class _Checker(OpBuilder):
    """Asks each record for its results, composites part by part."""

    def emit(self, record: Primitive, operands: list[Any], attrs: dict) -> list[Any]:
        avals = record.infer(*[o.aval for o in operands], **attrs)
        if record.kind == "composite":
            parts = [h.aval for h in record.decompose(self, *operands, **attrs)]
            _need(parts == list(avals), f"types of {record.name}")
        _need(all(a.size < MOST_ELEMENTS for a in avals), f"sizes of {record.name}")
        return [_Handle(a, self) for a in avals]


def check(program: Program, expand: Callable[[Program], Program]) -> None:
    """Raises ValueError unless every operation of a program without symbols has the results that its record infers.

    `expand` replaces transforms by plain operations: it is asked where there are any.
    """
    try:
        plain = expand(program) if program.has_transforms else program
        checker = _Checker()
        known = {n: _Handle(a, checker) for n, a in enumerate(program.parameters)}
        for i in plain.instructions:
            found = checker.emit(i.record, [known[s] for s in i.operands], i.attrs)
            _need([h.aval for h in found] == list(i.avals), f"types of {i.record.name}")
            known.update(zip(i.results, found, strict=True))
        _need(plain.avals == program.avals, "types of a transform")
    except Exception as error:  # whatever a rule stumbles over, the file is at fault
        raise ValueError(f"[import_function] the file is damaged or of another version: {error}") from None
