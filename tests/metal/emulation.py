"""Runs what the Metal target makes: several programs' shaders in one library, schedules executed step by step in emulation.

Every buffer that a kernel writes is filled with 0xAA bytes before, so a value that is never written shows.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from metal.verifier import MetalLibrary, Report

from mlxir.compiler.cache import library_step
from mlxir.compiler.pipeline import compile_metal
from mlxir.compiler.program import Program
from mlxir.runtime import dtypes

_KERNEL = re.compile(r"kernel void (\w+)\(")


@dataclass
class Shaders:
    """Programs compiled to Metal, in one library."""

    source: str
    schedules: list[dict[str, Any]]
    library: MetalLibrary | None  # None where no program has a kernel

    @staticmethod
    def compile(programs: Sequence[Program]) -> Shaders:
        """Compile all programs; kernels are renamed after the number of their program, helper functions that they share kept once."""
        head, blocks, schedules = "", {}, []
        for n, program in enumerate(programs):
            text, schedule = compile_metal(program)
            head, *parts = text.strip().split("\n\n")
            blocks.update({_KERNEL.sub(rf"kernel void p{n}_\1(", part): None for part in parts})
            schedules.append(_renamed(schedule, f"p{n}_"))
        source = "\n\n".join([head, *[b for b in blocks if "kernel void" not in b], *[b for b in blocks if "kernel void" in b]])
        return Shaders(source, schedules, MetalLibrary(source) if "kernel void" in source else None)

    def run(self, number: int, arguments: Sequence[np.ndarray], order: int) -> tuple[list[np.ndarray], list[Report]]:
        """The outputs of program `number` and what the checker found in each of its kernels."""
        schedule, reports = self.schedules[number], []
        inputs = [np.array(a) for a in arguments]
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
            assert self.library is not None
            buffers = {b["index"]: _bound(view(b)) for b in step["buffers"]}
            grid, size = step["grid"], step["threadgroup"]
            whole = step["dispatch"] == "threadgroups"
            reports.append(self.library.run(step["kernel"], buffers, grid, size, order=order, in_threadgroups=whole, strict=False))
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
