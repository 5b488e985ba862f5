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
from mlxir.compiler.lower.plan import NativeLaunch, Parts, Stage, make_plan
from mlxir.compiler.lower.steps import Lowered, Step
from mlxir.compiler.program import Instruction, Program
from mlxir.compiler.schedule import schedule_of
from mlxir.compiler.specialise import substitute
from mlxir.dialects.mx import Aval
from mlxir.dialects.symbolic import SYMBOLIC, Scope, function
from mlxir.runtime import devices, store
from mlxir.runtime.bounded import Bounded
from mlxir.runtime.buffers import Buffer
from mlxir.runtime.dtypes import int64
from mlxir.runtime.knobs import knobs
from mlxir.runtime.launch import Executable, Object, Segment, decode, encode

LEAST = 2  # axes of length 0 and 1 are compiled as such: they broadcast, squeeze or vanish
MOST_PLANS = 32  # buffer plans of one version
LEAST_STEP = 16  # between sizes for which buffers are planned
PATIENCE = 4  # sizes without code that are met before more is compiled (`generic_runner`)
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

    steps: list[str]  # of all kernels, as `measured` counts them

    def __init__(self, names: list[str], data: dict[str, Any], objects: list[Object]):
        self.data, self.objects = data, objects
        self.assumed: list[str] = data["assumed"]
        self.names = names
        self.holds = function(names, self.assumed, "and")
        self.each = function(names, self.assumed, ",")
        self.numbers = function(names, data["texts"], ",")
        self.plans = Bounded(MOST_PLANS)

    def serves(self, sizes: Sequence[int]) -> bool:
        try:
            return self.holds(*sizes)
        except ArithmeticError:
            return False

    def outcomes(self, sizes: Sequence[int]) -> tuple[bool, ...]:
        """Which assumptions hold for sizes."""
        try:
            return self.each(*sizes)
        except ArithmeticError:
            return ()

    def runner(self, sizes: Sequence[int]) -> Runner:
        """The code with the buffers and launches for given sizes."""
        made = self._resized(sizes) or self._planned(sizes).executable
        lengths = Buffer.from_numpy(np.array(sizes, np.int64))
        return Runner(lambda buffers: made.run([*buffers, lengths]), made.code_bytes, made, lengths)

    def _planned(self, sizes: Sequence[int]) -> _Planned:
        """An executable planned for just these sizes."""
        parts, lowered = _parts(self.data, dict(zip(self.data["texts"], self.numbers(*sizes), strict=True)))
        plan = make_plan(parts, lowered)
        steps = [k.step.name for k in plan.launches if isinstance(k, NativeLaunch)]
        made = Executable(self.objects, schedule_of(plan), cache.library_step)
        extents, rooms, *_ = self.measured(*sizes)
        return _Planned(made, steps, [not n for n in extents], rooms)

    def _resized(self, sizes: Sequence[int]) -> Executable | None:
        """The same by a plan for somewhat larger sizes, which many share: only extents and shapes are new.

        None where these sizes do not fit into that plan.
        """
        rounded = tuple([_rounded(n) for n in sizes])
        try:
            planned = self.plans.recall(rounded)
            if planned is None:
                self.plans.keep(rounded, planned := self._planned(rounded))
            extents, rooms, parameters, results = self.measured(*sizes)
        except ArithmeticError:
            return None
        schedule = planned.executable.schedule
        launches = schedule.segments[0].launches if len(schedule.segments) == 1 else ()
        if not launches or len(launches) != len(planned.steps):  # there are library steps
            return None
        if any([n > room for n, room in zip(rooms, planned.rooms, strict=True)]):
            return None
        if [not n for n in extents] != planned.skipped:
            return None
        known = dict(zip(self.steps, extents, strict=True))
        made = [k if known[name] == k.extent else k._replace(extent=known[name], useful=min(k.useful, known[name]))
                for k, name in zip(launches, planned.steps, strict=True)]  # fmt: skip
        return planned.executable.resized(schedule._replace(
            parameters=[(shape, dtype) for shape, (_, dtype) in zip(parameters, schedule.parameters, strict=True)],
            results=[(shape, dtype) for shape, (_, dtype) in zip(results, schedule.results, strict=True)],
            segments=[Segment(tuple(made))],
        ))  # fmt: skip

    @functools.cached_property
    def measured(self) -> Callable[..., tuple[tuple, ...]]:
        """Of the sizes: the extents of all steps that have any, the bytes of all values, the shapes of parameters and
        of results. Each counts where it is no constant.
        """
        parts, lowered = _parts(self.data, {text: _Text(text) for text in self.data["texts"]})
        steps = [s for k in lowered.values() for s in k.steps]
        avals = [*parts.values, *[t for k in lowered.values() for t in k.temporaries]]
        outputs = [v for v in dict.fromkeys(parts.outputs) if v >= parts.parameters]
        self.steps = [s.name for s in steps]
        groups = [
            [str(s.extent) for s in steps],
            ["*".join(map(str, (*a.shape, a.dtype.size))) for a in avals if any(isinstance(n, str) for n in a.shape)],
            [_tuple(parts.values[v].shape) for v in range(parts.parameters)],
            [_tuple(parts.values[v].shape) for v in outputs],
        ]
        return function(self.names, [_tuple(texts) for texts in groups], ",")


class _Planned(NamedTuple):
    """An executable for given sizes, the steps that it launches, which of all steps have nothing to do, and the bytes
    that there are for each value.
    """

    executable: Executable
    steps: list[str]
    skipped: list[bool]
    rooms: tuple[int, ...]


class _Text(str):
    """The text of a number."""


def _tuple(texts: Sequence[Any]) -> str:
    return "(" + "".join([f"{text}, " for text in texts]) + ")"


def _rounded(n: int) -> int:
    """A size up to a quarter larger that stands for many."""
    step = max(LEAST_STEP, 1 << max(n.bit_length() - 3, 0))
    return -(-n // step) * step


def _parts(data: dict[str, Any], known: dict[str, Any]) -> tuple[Parts, dict[str, Lowered]]:
    """The fused program and its kernels with `known` numbers."""
    stages, values, parameters, outputs = _with_numbers(data["parts"], known)
    lowered = {
        name: Lowered([Step(*s) for s in steps], [Aval(*t) for t in temporaries])
        for name, (steps, temporaries) in _with_numbers(data["kernels"], known).items()
    }
    return Parts([Stage(*s) for s in stages], [Aval(*v) for v in values], parameters, outputs), lowered


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
        self.missed: dict[tuple, set[tuple]] = {}  # sizes without code since some was compiled, by how they decide
        self._looked = False  # on disk

    def runner(self, sizes: list[int]) -> Any:
        """What runs the program for given sizes, compiled at the first that decide as these.

        Shaders are made for one size each."""
        if devices.gpu() is None and (code := self._version(sizes)) is not None:
            return code.runner(sizes)
        known = dict(zip(self.texts, self.numbers(*sizes), strict=True))
        return evaluate.executable(substitute(self.program, lambda n: known[n.text]))

    def generic_runner(self, sizes: list[int]) -> Runner | None:
        """The same where it takes no code for these sizes only, else None.

        Once there is code, some sizes that it does not serve must have been met before more is compiled for such sizes:
        all that decide alike, as far as that is known. A size that happens to equal another one is alone.
        """
        found = self._known(sizes)
        if found is None and min(sizes, default=LEAST) >= LEAST and self.generic:
            alike = self.missed.setdefault(tuple([code.outcomes(sizes) for code in self.versions]), set())
            alike.add(tuple(sizes))
            if len(alike) >= PATIENCE or not self.versions:
                self.missed.clear()
                found = self._version(sizes)
        return None if found is None else found.runner(sizes)

    def _known(self, sizes: list[int]) -> _Code | None:
        """The code for these sizes in memory or on disk."""
        if not self._looked:
            self._looked = True
            self._recall()
        return next((code for code in self.versions if code.serves(sizes)), None)

    def _version(self, sizes: list[int]) -> _Code | None:
        """The code for these sizes: in memory, on disk, or compiled; None where there is none for more than these."""
        found = self._known(sizes)
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
