"""The buffer plan: where each value of a fused program lies, and in which order the steps run.

Parameters and results come from the caller's table of pointers; every other value gets an offset in one arena, which it
shares with values that are not
alive at the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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
    """Steps with their buffers. `outputs[j]` says which table entry result j is (a parameter, where it is one)."""

    launches: list[NativeLaunch | LibraryLaunch]
    parameters: list[Aval]
    results: list[Aval]  # the table entries after the parameters
    outputs: list[int]
    arena: int

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


def make_plan(fused: Parts, lowered: dict[str, Lowered]) -> Plan:
    """Place every value of a program; `lowered` maps kernel names to their steps."""
    table: dict[int, int] = {i: i for i in range(fused.parameters)}
    results: list[Aval] = []
    for value in fused.outputs:
        if value not in table:
            table[value] = fused.parameters + len(results)
            results.append(fused.values[value])
    lives: dict[object, list[int]] = {}
    sizes: dict[object, int] = {}

    def touch(key: object, aval: Aval, when: int) -> None:
        span = lives.setdefault(key, [when, when])
        span[1] = when
        sizes[key] = -(-max(aval.size * aval.dtype.size, 1) // ALIGNMENT) * ALIGNMENT

    for when, launch in enumerate(fused.stages):
        for value in (*launch.operands, *launch.results):
            if value not in table:
                touch(value, fused.values[value], when)
        if launch.kind != "library":
            for n, aval in enumerate(lowered[launch.name].temporaries):
                touch((launch.name, n), aval, when)
    offsets, total = _arena([_Block(s, e, sizes[k], k) for k, (s, e) in lives.items()])

    def place(key: object) -> Place:
        return Place("table", table[key]) if key in table else Place("arena", offsets[key])

    launches: list[NativeLaunch | LibraryLaunch] = []
    for launch in fused.stages:
        if launch.kind == "library":
            operands = [(place(v), fused.values[v]) for v in launch.operands]
            outs = [(place(v), fused.values[v]) for v in launch.results]
            launches.append(LibraryLaunch(launch.name, launch.attrs or {}, operands, outs))
            continue
        kernel = lowered[launch.name]
        temporaries = [place((launch.name, n)) for n in range(len(kernel.temporaries))]
        places = [place(v) for v in (*launch.operands, *launch.results)] + temporaries
        launches += [NativeLaunch(s, [places[b] for b in s.buffers]) for s in kernel.steps if s.extent]
    parameters = list(fused.values[: fused.parameters])
    return Plan(launches, parameters, results, [table[v] for v in fused.outputs], total)
