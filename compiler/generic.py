"""Machine code for all sizes: a program whose axes have symbolic lengths, compiled once.

    sum(x: f32[s0,8]) {axes=[1]}    ->    scf.parallel (%i) = 0 to %s0 { ... %x[%i * 8 + %j] ... },  %s0 = %sizes[0]

The passes and the lowering run on symbolic sizes as on numbers (`dialects/symbolic.py`): what they decide from a size
is recorded, and the code serves all sizes that decide alike; what needs the number itself (the blocks of a convolution,
a sorting network) pins it, and the code serves that length only. Kernels read the lengths from a buffer that each of
them takes last. What is left to do for new sizes is arithmetic: buffer plan, iterations, the launches. The versions of
a program are kept on disk, so that a later process needs no MLIR for them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mlxir.compiler import cache, evaluate, objects
from mlxir.compiler.lower.plan import Parts, Stage, make_plan
from mlxir.compiler.lower.steps import Lowered, Step
from mlxir.compiler.program import Instruction, Program
from mlxir.compiler.schedule import schedule_of
from mlxir.compiler.specialise import substitute
from mlxir.dialects.mx import Aval
from mlxir.dialects.symbolic import SYMBOLIC, Scope, function
from mlxir.runtime import devices, store
from mlxir.runtime.buffers import Buffer
from mlxir.runtime.dtypes import int64
from mlxir.runtime.knobs import knobs
from mlxir.runtime.launch import Executable, Object, decode, encode

LEAST = 2  # axes of length 0 and 1 are compiled as such: they broadcast, squeeze or vanish
MOST_VERSIONS = 8  # of the code of one program, for sizes that decide differently


class Runner(NamedTuple):
    """An executable for given sizes."""

    run: Callable[[list[Buffer]], list[Buffer]]
    code_bytes: int
    executable: Executable
    lengths: Buffer  # its last parameter


class _Code:
    """One version of the code of a program: plain data, `numbers` in which stand by their text, and its objects.

    `data` holds what it assumes of the sizes, the texts of its numbers, the parts of the program and its kernels.
    """

    def __init__(self, names: list[str], data: dict[str, Any], objects: list[Object]):
        self.data, self.objects = data, objects
        self.assumed: list[str] = data["assumed"]
        self.holds = function(names, self.assumed, "and")
        self.numbers = function(names, data["texts"], ",")

    def serves(self, sizes: Sequence[int]) -> bool:
        try:
            return self.holds(*sizes)
        except ArithmeticError:
            return False

    def runner(self, sizes: Sequence[int]) -> Runner:
        """The code with the buffers and launches for given sizes."""
        known = dict(zip(self.data["texts"], self.numbers(*sizes), strict=True))
        stages, values, parameters, outputs = _with_numbers(self.data["parts"], known)
        parts = Parts([Stage(*s) for s in stages], [Aval(*v) for v in values], parameters, outputs)
        lowered = {
            name: Lowered([Step(*s) for s in steps], [Aval(*t) for t in temporaries])
            for name, (steps, temporaries) in _with_numbers(self.data["kernels"], known).items()
        }
        made = Executable(self.objects, schedule_of(make_plan(parts, lowered)), cache.library_step)
        lengths = Buffer.from_numpy(np.array(sizes, np.int64))
        return Runner(lambda buffers: made.run([*buffers, lengths]), made.code_bytes, made, lengths)


def _as_data(value: Any, texts: dict[str, None]) -> Any:
    """A value as `launch.encode` has it, with symbolic numbers by their text, which is entered in `texts`."""
    if type(value) in SYMBOLIC:
        texts[value.text] = None
        return {"n": value.text}
    if isinstance(value, dict):
        return {"m": {k: _as_data(v, texts) for k, v in value.items()}}
    if isinstance(value, (tuple, list)):
        return {"t": [_as_data(v, texts) for v in value]}
    return encode(value)


def _with_numbers(data: Any, known: dict[str, Any]) -> Any:
    """The value of `_as_data`, with the numbers that the texts stand for."""
    if isinstance(data, dict):
        ((tag, inner),) = data.items()
        if tag == "n":
            return known[inner]
        if tag == "t":
            return tuple([_with_numbers(v, known) for v in inner])
        if tag == "m":
            return {k: _with_numbers(v, known) for k, v in inner.items()}
    return decode(data)


class Family:
    """A program with symbolic sizes and the versions of its code.

    `names` are its symbols, in the order of sizes; `known` tells of each which one is equal to it, or which number.
    """

    def __init__(self, program: Program, names: list[str], texts: list[str], known: Callable[[str], str | int]):
        self.program, self.names, self.texts, self.known = program, names, texts, known
        self.numbers = function(names, texts, ",")
        self.versions: list[_Code] = []
        self.generic = True  # whether it is worth compiling for all sizes
        self._looked = False  # on disk

    def runner(self, sizes: list[int]) -> Any:
        """What runs the program for given sizes, compiled at the first that decide as these.

        Shaders are made for one size each."""
        if devices.gpu() is None and (code := self._version(sizes)) is not None:
            return code.runner(sizes)
        known = dict(zip(self.texts, self.numbers(*sizes), strict=True))
        return evaluate.executable(substitute(self.program, lambda n: known[n.text]))

    def _version(self, sizes: list[int]) -> _Code | None:
        """The code for these sizes: in memory, on disk, or compiled; None where there is none for more than these."""
        if not self._looked:
            self._looked = True
            self._recall()
        found = next((code for code in self.versions if code.serves(sizes)), None)
        if found is None and self.generic and len(self.versions) < MOST_VERSIONS:
            with cache.compiling:
                found = self._compiled(sizes)
            if found is not None:
                self.versions.append(found)
        return found

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
            with cache.switching():
                parts, kernels, code = pipeline.compile_generic(program)
        except Exception as error:  # whatever has no form for symbolic sizes is compiled for each size instead
            self.generic = False
            self._keep(None, [], False)
            if knobs.debug >= 1:
                print(f"[mlxir] {self.program.name} is compiled for each size: {error!r}", file=sys.stderr)
            return None
        finally:
            scope.active = False
        texts: dict[str, None] = {}
        data = {
            "parts": _as_data(parts, texts),
            "kernels": _as_data({name: (k.steps, k.temporaries) for name, k in kernels.items()}, texts),
            "texts": list(texts), "assumed": list(scope.assumptions()),
        }  # fmt: skip
        self.generic = len(scope.pins) < len(scope.hints)
        self._keep(data, code, self.generic)
        seconds = time.perf_counter() - start
        cache.count(seconds)
        if knobs.debug >= 1:
            steps = sum(len(k.steps) for k in kernels.values())
            print(f"[mlxir] compiled {self.program.name} for all sizes with {', '.join(data['assumed'])}: {steps}"
                  f" kernels, {seconds * 1e3:.0f} ms", file=sys.stderr)  # fmt: skip
        return _Code(list(scope.hints), data, code)

    # -- on disk ----------------------------------------------------------------------------------------------------
    @functools.cached_property
    def _key(self) -> bytes:
        """What the versions are kept by: the program with its symbols, and what is known of them."""
        program = substitute(self.program, lambda n: ("number", n.text))
        known = [self.known(name) for name in self.names]
        return objects.fingerprint() + repr((program.key, self.names, self.texts, known)).encode()

    def _digest(self, version: int) -> str:
        return hashlib.sha256(self._key + f" version {version}".encode()).hexdigest()

    def _keep(self, data: dict[str, Any] | None, code: list[Object], generic: bool) -> None:
        """Keep one more version; without data, that there is none."""
        for one in code:
            objects.keep(one)
        entry = [data, [one.digest for one in code], generic]
        store.save(self._digest(len(self.versions)), json.dumps(entry), b"")

    def _recall(self) -> None:
        """The versions on disk whose objects are all there."""
        while self.generic and len(self.versions) < MOST_VERSIONS and not (knobs.dump or knobs.debug >= 3):
            entry = store.load(self._digest(len(self.versions)))
            if entry is None:
                return
            data, digests, self.generic = json.loads(entry[0])
            code = [found for d in digests if (found := objects.recall(d)) is not None]
            if data is None or len(code) < len(digests):
                return
            self.versions.append(_Code([f"s{n}" for n in range(len(self.names))], data, code))


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
