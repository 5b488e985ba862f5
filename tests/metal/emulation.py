"""Runs what the Metal target makes: shaders of several programs in one library, schedules step by step in emulation.

Every buffer that a kernel writes is filled with 0xAA bytes before, so a value that is never written shows.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from metal.verifier import MetalLibrary, Report

from mlxir.compiler import graph
from mlxir.compiler.cache import library_step
from mlxir.compiler.pipeline import compile_metal
from mlxir.compiler.program import Program
from mlxir.runtime import dtypes

_KERNEL = re.compile(r"kernel void (\w+)\(")


def traced(fn: Callable, *arrays: np.ndarray) -> tuple[Program, list[np.ndarray]]:
    """`fn(m, *handles)` as a program, `m` being the builder of records; and the arguments of its parameters."""
    builder = graph.GraphBuilder()
    outputs = fn(builder, *[builder.handle(graph.constant(a)) for a in arrays])
    outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    piece = graph.cut([o.value for o in outputs])
    return piece.program, [v.buffer.numpy() for v in piece.parameters]


@dataclass
class Shaders:
    """Programs compiled to Metal, with the library that holds the kernels of each: None where it has no kernel."""

    schedules: list[dict[str, Any]]
    libraries: list[MetalLibrary | None]

    @staticmethod
    def compile(programs: Sequence[Program], batch: int = 50) -> Shaders:
        """Compile all programs, so many to a library. Kernels are renamed after the number of their program."""
        texts, schedules = [], []
        for n, program in enumerate(programs):
            text, schedule = compile_metal(program)
            texts.append(_KERNEL.sub(rf"kernel void p{n}_\1(", text))
            schedules.append(_renamed(schedule, f"p{n}_"))
        sources = [_merged(texts[n : n + batch]) for n in range(0, len(texts), batch)]
        with ThreadPoolExecutor(2) as pool:
            built = list(pool.map(lambda source: MetalLibrary(source) if _KERNEL.search(source) else None, sources))
        return Shaders(schedules, [built[n // batch] for n in range(len(texts))])

    def run(self, number: int, arguments: Sequence[np.ndarray], order: int) -> tuple[list[np.ndarray], list[Report]]:
        """The outputs of program `number`, and what the checker found in each of its kernels."""
        return run_schedule(self.schedules[number], self.libraries[number], arguments, order)


def _merged(texts: Sequence[str]) -> str:
    """Several sources as one: the head and helper functions that they share stand there once."""
    blocks = dict.fromkeys(block for text in texts for block in text.strip().split("\n\n"))
    return "\n\n".join(sorted(blocks, key=lambda block: _KERNEL.search(block) is not None)) + "\n"


def run_schedule(
    schedule: dict[str, Any], library: MetalLibrary | None, arguments: Sequence[np.ndarray], order: int
) -> tuple[list[np.ndarray], list[Report]]:
    """Execute the steps of a schedule; outputs, and a report per kernel."""
    inputs, reports = [np.array(a) for a in arguments], []
    results = [_unwritten(s) for s in schedule["results"]]
    arena = np.full(schedule["arena"], 0xAA, np.uint8)

    def view(place: dict[str, Any]) -> np.ndarray:
        if place["kind"] == "arena":
            raw = arena[place["at"] : place["at"] + place["bytes"]]
            return raw.view(_numpy(place)).reshape(place["shape"])
        return (inputs if place["kind"] == "parameter" else results)[place["at"]]

    for step in schedule["steps"]:
        if "library" in step:
            attrs = {k: tuple(v) if isinstance(v, list) else v for k, v in step["attrs"].items()}
            specs = [(tuple(r["shape"]), dtypes.from_name(r["dtype"])) for r in step["results"]]
            values = library_step(step["library"], attrs, [view(o) for o in step["operands"]], specs)
            for place, value in zip(step["results"], values, strict=True):
                view(place)[...] = value
            continue
        assert library is not None
        buffers = {b["index"]: _bound(view(b)) for b in step["buffers"]}
        groups = step["dispatch"] == "threadgroups"
        grid, threadgroup = step["grid"], step["threadgroup"]
        reports.append(
            library.run(step["kernel"], buffers, grid, threadgroup, order=order, in_threadgroups=groups, strict=False)
        )
    return [inputs[i] if i < len(inputs) else results[i - len(inputs)] for i in schedule["outputs"]], reports


def _renamed(schedule: dict[str, Any], prefix: str) -> dict[str, Any]:
    schedule = copy.deepcopy(schedule)
    for step in schedule["steps"]:
        if "kernel" in step:
            step["kernel"] = prefix + step["kernel"]
    return schedule


def _numpy(spec: dict[str, Any]) -> np.dtype:
    return dtypes.from_name(spec["dtype"]).numpy


def _unwritten(spec: dict[str, Any]) -> np.ndarray:
    array = np.empty(spec["shape"], _numpy(spec))
    array.reshape(-1).view(np.uint8)[:] = 0xAA
    return array


def _bound(array: np.ndarray) -> np.ndarray:
    """As the shader declares it: bool as bytes, complex numbers as pairs of floats."""
    flat = array.reshape(-1)
    if array.dtype == np.bool_:
        return flat.view(np.uint8)
    return flat.view(np.float32) if array.dtype == np.complex64 else flat
