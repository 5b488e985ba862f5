"""Machine code for all sizes: a program whose axes have symbolic lengths, compiled once.

    sum(x: f32[s0,8]) {axes=[1]}    ->    scf.parallel (%i) = 0 to %s0 { ... %x[%i * 8 + %j] ... },  %s0 = %sizes[0]

The passes and the lowering run on symbolic sizes as on numbers (`dialects/symbolic.py`): what they decide from a size
is recorded, and the code serves all sizes that decide alike; what needs the number itself (the blocks of a convolution,
a sorting network) pins it, and the code serves that length only. Kernels read the lengths from a buffer that each of
them takes last. What is left to do for new sizes is arithmetic: buffer plan, iterations, the launches.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mlxir.compiler import cache, evaluate
from mlxir.compiler.program import Instruction, Program
from mlxir.compiler.specialise import substitute
from mlxir.dialects.mx import Aval
from mlxir.dialects.symbolic import SYMBOLIC, Scope, function
from mlxir.runtime import devices
from mlxir.runtime.buffers import Buffer
from mlxir.runtime.dtypes import int64
from mlxir.runtime.knobs import knobs
from mlxir.runtime.launch import Executable, Object

if TYPE_CHECKING:  # they load MLIR
    from mlxir.compiler.kernels import Kernel
    from mlxir.compiler.passes.fuse import Fused

LEAST = 2  # axes of length 0 and 1 are compiled as such: they broadcast, squeeze or vanish
MOST_VERSIONS = 8  # of the code of one program, for sizes that decide differently


class Runner(NamedTuple):
    """An executable for given sizes."""

    run: Callable[[list[Buffer]], list[Buffer]]
    code_bytes: int
    executable: Executable
    lengths: Buffer  # its last parameter


class _Code:
    """One version of the code of a program, and what it assumes of the sizes."""

    def __init__(self, names: list[str], scope: Scope, fused: Fused, kernels: dict[str, Kernel], objects: list[Object]):
        self.fused, self.kernels, self.objects = fused, kernels, objects
        self.assumed = scope.assumptions()
        self.holds = function(names, self.assumed, "and")
        self.pinned = len(scope.pins) == len(scope.hints)
        numbers: dict[str, Any] = {}
        _replaced((fused.values, [k.op.attrs for k in fused.launches if k.op is not None],
                   [k.lowered for k in kernels.values()]), lambda n: numbers.setdefault(n.text, n))  # fmt: skip
        self.texts = list(numbers)
        self.numbers = function(names, self.texts, ",")

    def serves(self, sizes: Sequence[int]) -> bool:
        try:
            return self.holds(*sizes)
        except ArithmeticError:
            return False

    def runner(self, sizes: Sequence[int]) -> Runner:
        """The code with the buffers and launches for given sizes."""
        from mlxir.compiler import pipeline  # lazy: it loads MLIR, as compiling this code did

        known = dict(zip(self.texts, self.numbers(*sizes), strict=True))

        def number(n: Any) -> Any:
            return known[n.text]

        launches = [k if k.op is None else k._replace(op=k.op._replace(attrs=_replaced(k.op.attrs, number)))
                    for k in self.fused.launches]  # fmt: skip
        fused = self.fused._replace(values=_replaced(self.fused.values, number), launches=launches)
        lowered = {name: _replaced(k.named(name), number) for name, k in self.kernels.items()}
        made = Executable(self.objects, pipeline.schedule_of(fused, lowered), cache.library_step)
        lengths = Buffer.from_numpy(np.array(sizes, np.int64))
        return Runner(lambda buffers: made.run([*buffers, lengths]), made.code_bytes, made, lengths)


def _replaced(value: Any, number: Callable[[Any], Any]) -> Any:
    """Plain data with `number(n)` for every symbolic number."""
    if type(value) in SYMBOLIC:
        return number(value)
    if isinstance(value, dict):
        return {k: _replaced(v, number) for k, v in value.items()}
    if isinstance(value, list):
        return [_replaced(v, number) for v in value]
    if isinstance(value, tuple):
        items = [_replaced(v, number) for v in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


class Family:
    """A program with symbolic sizes and the versions of its code.

    `names` are its symbols, in the order of sizes; `known` tells of each which one is equal to it, or which number.
    """

    def __init__(self, program: Program, names: list[str], texts: list[str], known: Callable[[str], str | int]):
        self.program, self.names, self.texts, self.known = program, names, texts, known
        self.numbers = function(names, texts, ",")
        self.versions: list[_Code] = []
        self.generic = True  # whether it is worth compiling for all sizes

    def runner(self, sizes: list[int]) -> Any:
        """What runs the program for given sizes, compiled at the first that decide as these.

        Shaders are made for one size each."""
        for code in self.versions:
            if code.serves(sizes):
                return code.runner(sizes)
        if devices.gpu() is None and self.generic and len(self.versions) < MOST_VERSIONS:
            with cache.compiling:
                made = self._compiled(sizes)
            if made is not None:
                self.versions.append(made)
                return made.runner(sizes)
        known = dict(zip(self.texts, self.numbers(*sizes), strict=True))
        return evaluate.executable(substitute(self.program, lambda n: known[n.text]))

    def _compiled(self, sizes: list[int]) -> _Code | None:
        """The code for all sizes that decide as these, None where it would be for these only."""
        from mlxir.compiler import pipeline  # lazy: it loads MLIR, which running cached code does not need

        start = time.perf_counter()
        scope = Scope(structural=True)
        symbols = [scope.size(n, LEAST) for n in sizes]
        by_name = dict(zip(self.names, symbols, strict=True))
        given: list[Any] = []
        for name, symbol in by_name.items():
            same = self.known(name)  # what the trace assumed holds whenever its code runs
            if isinstance(same, int) or symbol.hint < LEAST:
                scope.pin(symbol.symbols)
                given.append(symbol.hint)
            else:
                scope.decide(f"{symbol.text} >= {LEAST}", True)
                given.append(by_name.get(same, symbol))
        known = dict(zip(self.texts, self.numbers(*given), strict=True))
        program = _with_lengths(substitute(self.program, lambda n: known[n.text]), len(sizes))
        try:
            fused, kernels, objects = pipeline.compile_generic(program)
        except Exception as error:  # whatever has no form for symbolic sizes is compiled for each size instead
            self.generic = False
            if knobs.debug >= 1:
                print(f"[mlxir] {self.program.name} is compiled for each size: {error!r}", file=sys.stderr)
            return None
        finally:
            scope.active = False
        code = _Code(list(scope.hints), scope, fused, kernels, objects)
        seconds = time.perf_counter() - start
        cache.count(seconds)
        if knobs.debug >= 1:
            steps = sum(len(k.lowered.steps) for k in kernels.values())
            print(f"[mlxir] compiled {self.program.name} for all sizes with {', '.join(code.assumed)}: {steps} kernels,"
                  f" {seconds * 1e3:.0f} ms", file=sys.stderr)  # fmt: skip
        self.generic = not code.pinned
        return code


def _with_lengths(program: Program, count: int) -> Program:
    """The program with one more parameter, the lengths of axes, which every kernel will take."""
    at = len(program.parameters)

    def moved(slots: Sequence[int]) -> tuple[int, ...]:
        return tuple([s + (s >= at) for s in slots])

    parameters = [*program.parameters, Aval((count,), int64)]
    instructions = [
        Instruction(i.record, i.attrs, moved(i.operands), moved(i.results), i.avals, i.where)
        for i in program.instructions
    ]
    return Program(parameters, instructions, list(moved(program.outputs)), program.name)
