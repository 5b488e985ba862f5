"""Programs with symbolic sizes, and the ordinary programs that they become for given numbers.

A shapeless trace runs Python once; its program holds `SymInt`s in shapes and attributes (`dialects/symbolic.py`). For
each new size the same program is written out with numbers:

    reshape(x: f32[s0,4]) {shape=(4*s0,)}    s0 = 3 ->    reshape(x: f32[3,4]) {shape=(12,)}
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from mlxir.compiler.graph import running
from mlxir.compiler.program import Instruction, Program
from mlxir.dialects.mx import Aval
from mlxir.dialects.symbolic import SYMBOLIC, Scope

Number = Callable[[Any], Any]
"""What a symbolic number becomes."""


@contextlib.contextmanager
def symbolic_trace(scope: Scope, used: bool) -> Iterator[None]:
    """While a trace runs in which numbers are symbolic (if `used`); afterwards those of `scope` are plain ones."""
    running.symbolic += used
    try:
        yield
    finally:
        running.symbolic -= used
        scope.active = False


def substitute(program: Program, number: Number) -> Program:
    """The program with `number(n)` for every symbolic number in it, programs of its transforms included."""
    made: dict[int, Program] = {}

    def aval(a: Aval) -> Aval:
        return Aval(replaced(a.shape), a.dtype)

    def replaced(value: Any) -> Any:
        if type(value) in SYMBOLIC:
            return number(value)
        if type(value) is tuple:
            return tuple([replaced(v) for v in value])
        if isinstance(value, Program):
            if id(value) not in made:
                made[id(value)] = convert(value)
            return made[id(value)]
        return value

    def convert(old: Program) -> Program:
        instructions = [
            Instruction(
                i.record,
                {k: replaced(v) for k, v in i.attrs.items()} if i.attrs else i.attrs,
                i.operands,
                i.results,
                [aval(a) for a in i.avals],
                i.where,
            )
            for i in old.instructions
        ]
        return Program([aval(a) for a in old.parameters], instructions, old.outputs, old.name)

    return convert(program)


def numbers_in(program: Program) -> Iterator[Any]:
    """Every symbolic number of a program, with repetitions."""
    for a in program.parameters:
        yield from _numbers(a.shape)
    for i in program.instructions:
        for value in (*[a.shape for a in i.avals], *i.attrs.values()):
            yield from _numbers(value)


def _numbers(value: Any) -> Iterator[Any]:
    if type(value) in SYMBOLIC:
        yield value
    elif type(value) is tuple:
        for v in value:
            yield from _numbers(v)
    elif isinstance(value, Program):
        yield from numbers_in(value)


def pinned(program: Program) -> Program:
    """The program for the numbers of this very trace, which is valid for no others from now on: it is evaluated."""
    return substitute(program, lambda n: n.value())
