"""The buffer plan: where each value of a fused program lies, and in which order the steps run.

Parameters and results come from the caller's table of pointers; every other value gets an offset in one arena, which it
shares with values that are not alive at the same time.

A kernel that changes a part of an array begins with a copy of it (`Step.copies`). Where nothing reads the array later,
the result takes its memory, and the copy is left out. Where the array is a parameter, the caller may say so:

    scatter_copy %cache -> %r;  sum %r          ->    copies: %cache -> %r, unless they lie at the same place
                                                      scatter %r;  sum %r
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from mlxir.compiler.lower.steps import Lowered, Step
from mlxir.dialects.mx import Aval

ALIGNMENT = 64


class Stage(NamedTuple):
    """A kernel, or a library step with its attributes, on numbered values."""

    kind: str
    name: str
    attrs: dict | None
    operands: tuple[int, ...]
    results: tuple[int, ...]


class Parts(NamedTuple):
    """What a fused program consists of, beside its code; values are numbered, the parameters first."""

    stages: Sequence[Stage]
    values: Sequence[Aval]
    parameters: int
    outputs: Sequence[int]


class Place(NamedTuple):
    """`table` entry number `at` (parameters, then results), or byte offset `at` of the `arena`."""

    kind: str
    at: int


class NativeLaunch(NamedTuple):
    step: Step
    places: list[Place]


class LibraryLaunch(NamedTuple):
    """A step that the host computes through the record's reference implementation."""

    primitive: str
    attrs: dict
    operands: list[tuple[Place, Aval]]
    results: list[tuple[Place, Aval]]


class Plan(NamedTuple):
    """Steps with their buffers. `outputs[j]` says which table entry result j is (a parameter, where it is one).

    `copies` tells of the first launches which table entries they copy from and to. Nothing reads the parameter after
    them: a caller who needs it no more may put the result in its place, and leave the copy out.
    """

    launches: list[NativeLaunch | LibraryLaunch]
    parameters: list[Aval]
    results: list[Aval]  # the table entries after the parameters
    outputs: list[int]
    arena: int
    copies: Sequence[tuple[int, int]] = ()

    def native_segments(self) -> list[list[NativeLaunch]]:
        """Runs of native steps between library steps."""
        segments: list[list[NativeLaunch]] = []
        previous_native = False
        for launch in self.launches:
            if isinstance(launch, NativeLaunch):
                if not previous_native:
                    segments.append([])
                segments[-1].append(launch)
            previous_native = isinstance(launch, NativeLaunch)
        return segments


class _Block(NamedTuple):
    start: int  # first step that needs it
    end: int  # last one
    size: int
    key: object


def _arena(blocks: Sequence[_Block]) -> tuple[dict[object, int], int]:
    """Offsets by first fit, largest block first; blocks alive at the same time do not overlap."""
    placed: list[tuple[_Block, int]] = []
    for block in sorted(blocks, key=lambda b: (-b.size, b.start)):
        offset = 0
        for other, at in sorted(placed, key=lambda p: p[1]):
            if other.end < block.start or other.start > block.end:
                continue
            if at - offset >= block.size:
                break
            offset = max(offset, at + other.size)
        placed.append((block, offset))
    return {b.key: at for b, at in placed}, max((at + b.size for b, at in placed), default=0)


class _Updates(NamedTuple):
    """Which values lie in the memory of which later ones (`home`), and which results begin as a copy of which
    parameter, by the name of the kernel that copies: (parameter, result).
    """

    home: dict[int, int]
    copies: dict[str, tuple[int, int]]


def _updates(fused: Parts, lowered: dict[str, Lowered]) -> _Updates:
    """Whose memory results may take that begin as a copy of an operand: the last kernel that reads it makes them."""
    last = {value: when for when, stage in enumerate(fused.stages) for value in stage.operands}
    found = _Updates({}, {})
    for when, stage in reversed(list(enumerate(fused.stages))):
        for step in lowered[stage.name].steps if stage.kind != "library" else ():
            if step.copies < 0 or not step.extent:
                continue
            old, new = stage.operands[step.copies], stage.results[step.writes[0] - len(stage.operands)]
            new = found.home.get(new, new)
            if last[old] != when or stage.operands.count(old) > 1 or old in fused.outputs:
                continue
            if old >= fused.parameters:
                found.home[old] = new
            elif new in fused.outputs:
                found.copies[stage.name] = old, new
    return found


def make_plan(fused: Parts, lowered: dict[str, Lowered]) -> Plan:
    """Place every value of a program; `lowered` maps kernel names to their steps."""
    table: dict[int, int] = {i: i for i in range(fused.parameters)}
    results: list[Aval] = []
    for value in fused.outputs:
        if value not in table:
            table[value] = fused.parameters + len(results)
            results.append(fused.values[value])
    updates = _updates(fused, lowered)
    table |= {old: table[new] for old, new in updates.home.items() if new in table}
    lives: dict[object, list[int]] = {}
    sizes: dict[object, int] = {}

    def touch(key: object, aval: Aval, when: int) -> None:
        span = lives.setdefault(key, [when, when])
        span[1] = when
        sizes[key] = -(-max(aval.size * aval.dtype.size, 1) // ALIGNMENT) * ALIGNMENT

    for when, launch in enumerate(fused.stages):
        for value in (*launch.operands, *launch.results):
            if value not in table:
                touch(updates.home.get(value, value), fused.values[value], when)
        if launch.kind != "library":
            for n, aval in enumerate(lowered[launch.name].temporaries):
                touch((launch.name, n), aval, when)
    offsets, total = _arena([_Block(s, e, sizes[k], k) for k, (s, e) in lives.items()])

    def place(key: Any) -> Place:
        return Place("table", table[key]) if key in table else Place("arena", offsets[updates.home.get(key, key)])

    launches: list[NativeLaunch | LibraryLaunch] = []
    copies: list[NativeLaunch | LibraryLaunch] = []
    copied: list[tuple[int, int]] = []
    for launch in fused.stages:
        if launch.kind == "library":
            operands = [(place(v), fused.values[v]) for v in launch.operands]
            outs = [(place(v), fused.values[v]) for v in launch.results]
            launches.append(LibraryLaunch(launch.name, launch.attrs or {}, operands, outs))
            continue
        kernel = lowered[launch.name]
        temporaries = [place((launch.name, n)) for n in range(len(kernel.temporaries))]
        places = [place(v) for v in (*launch.operands, *launch.results)] + temporaries
        for step in kernel.steps:
            made = NativeLaunch(step, [places[b] for b in step.buffers])
            if step.copies >= 0 and launch.name in updates.copies:
                copies.append(made)
                copied.append(updates.copies[launch.name])
            elif step.extent and not (step.copies >= 0 and places[step.copies] == places[step.writes[0]]):
                launches.append(made)
    parameters = list(fused.values[: fused.parameters])
    outputs = [table[v] for v in fused.outputs]
    copied = [(old, table[new]) for old, new in copied]
    return Plan([*copies, *launches], parameters, results, outputs, total, copied)
