"""Runs what the Metal target makes: shaders of several programs in one library, schedules by the product's runtime.

Every buffer that a kernel writes is filled with 0xAA bytes before, so a value that is never written shows.
"""

from __future__ import annotations

import copy
import ctypes
import functools
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlxir.compiler import graph
from mlxir.compiler.cache import library_step
from mlxir.compiler.pipeline import compile_metal
from mlxir.compiler.program import Program
from mlxir.runtime.buffers import Block, Buffer
from mlxir.runtime.emulator import MetalError, MetalLibrary, Report
from mlxir.runtime.emulator.device import EmulatedMetal
from mlxir.runtime.metal import memory
from mlxir.runtime.metal.device import Device
from mlxir.runtime.metal.executable import Executable

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
    """Execute a schedule with the product's runtime on an emulated device; outputs, and a report per kernel."""
    backend, device = _device(order)
    if library is not None:
        _alive[order, library.source] = device.shaders(library.source)
    executable = Executable(device, library.source if library is not None else "", schedule, library_step)
    inputs = [memory.share(Buffer.from_numpy(np.array(a))) for a in arguments]
    _poison()
    backend.reports.clear()
    return [b.numpy() for b in executable.run(inputs)], list(backend.reports)


@functools.cache
def _device(order: int) -> tuple[EmulatedMetal, Device]:
    backend = EmulatedMetal(order, strict=False)
    return backend, Device(backend)


_alive: dict[tuple[int, str], Any] = {}  # a library is compiled once, however many programs it serves


def _filled(size: int) -> Block:
    """Fresh memory in which a value that is never written shows."""
    address, raw = memory.pages.block(size)
    ctypes.memset(address, 0xAA, size)
    return address, raw


def _poison() -> None:
    memory.shared.source = _filled
    for size, blocks in memory.shared.free.items():
        for address, _ in blocks:
            ctypes.memset(address, 0xAA, size)


def _renamed(schedule: dict[str, Any], prefix: str) -> dict[str, Any]:
    schedule = copy.deepcopy(schedule)
    for step in schedule["steps"]:
        if "kernel" in step:
            step["kernel"] = prefix + step["kernel"]
    return schedule


def caught(
    text: str, schedule: dict[str, Any], arguments: list[np.ndarray], expected: np.ndarray, tolerance: float = 2e-5
) -> bool:
    """Whether the compiler, the checker or the results show that something is wrong."""
    try:
        library = MetalLibrary(text)
    except MetalError:
        return True
    for order in (0, 1):
        (found,), reports = run_schedule(schedule, library, arguments, order)
        if not all(r.clean for r in reports) or not np.allclose(found, expected, tolerance, tolerance):
            return True
    return False
