"""A program that was compiled ahead of time: the folder that `mlxir dump --target metal` writes.

    kernels.metal    the shaders
    schedule.json    what to run, in which order, on which memory (docs/metal.md)
    constants.bin    arrays that the function captured, where there are any

The schedule is that of compiler/target/metal.py with one kind of buffer more: captured arrays, which the compiler takes
for parameters, become places in constants.bin.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .device import Device
from .executable import Executable, Library

SHADERS, SCHEDULE, CONSTANTS = "kernels.metal", "schedule.json", "constants.bin"
ALIGNMENT = 256  # of a constant in its file


def with_constants(schedule: dict[str, Any], constants: Sequence[np.ndarray]) -> tuple[dict[str, Any], bytes]:
    """The schedule, as a folder has it, of a program whose last parameters are `constants`; and their file's bytes."""
    inputs = len(schedule["parameters"]) - len(constants)
    data, offsets = bytearray(), []
    for constant in constants:
        data += bytes(-len(data) % ALIGNMENT)
        offsets.append(len(data))
        data += constant.tobytes()

    def placed(place: dict[str, Any]) -> dict[str, Any]:
        if place["kind"] != "parameter" or place["at"] < inputs:
            return place
        return {**place, "kind": "constant", "at": offsets[place["at"] - inputs]}

    steps = []
    for step in schedule["steps"]:
        sides = {side: [placed(p) for p in step[side]] for side in ("buffers", "operands", "results") if side in step}
        attrs = {"attrs": {k: _finite(v) for k, v in step["attrs"].items()}} if "attrs" in step else {}
        steps.append({**step, **attrs, **sides})
    outputs = [o if o < inputs else o - len(constants) for o in schedule["outputs"]]
    parameters = schedule["parameters"][:inputs]
    changed = {"parameters": parameters, "constants": len(data), "outputs": outputs, "steps": steps}
    return {**schedule, **changed}, bytes(data)


def _finite(value: Any) -> Any:
    """An attribute without what JSON has no numbers for."""
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return {"float": repr(value)} if isinstance(value, float) and not math.isfinite(value) else value


def load(folder: str | Path, device: Device, library: Library) -> Executable:
    """The program of a folder on a device; `library` computes the steps that are no kernels.

    Raises OSError for files that are missing, ValueError for a schedule that does not fit them, and DeviceError where
    Metal refuses the shaders.
    """
    path = Path(folder)
    schedule = json.loads((path / SCHEDULE).read_text())
    count = schedule["constants"]
    constants = np.frombuffer((path / CONSTANTS).read_bytes() if count else b"", np.uint8)
    if constants.nbytes != count:
        raise ValueError(f"[metal] {path / CONSTANTS} has {constants.nbytes} bytes, the schedule wants {count}")
    return Executable(device, (path / SHADERS).read_text(), schedule, library, constants)


def readme(schedule: dict[str, Any], name: str) -> str:
    """What somebody who has only the folder needs to know."""
    inputs = [f"- parameter {i}: {_told(s)}" for i, s in enumerate(schedule["parameters"])]
    results = [f"- result {i}: {_told(s)}" for i, s in enumerate(schedule["results"])]
    hosts = sorted({s["library"] for s in schedule["steps"] if "library" in s})
    host = f" and steps on the host ({', '.join(hosts)})" if hosts else ""
    constants = f"`{CONSTANTS}`: {schedule['constants']} bytes, bound where a place is a `constant`.\n\n"
    return f"""\
# {name}, compiled to Metal by mlxir

`{SHADERS}` holds the shaders, `{SCHEDULE}` the {len(schedule["steps"])} steps that run them: kernels{host}.
{constants if schedule["constants"] else ""}\
Compile the shaders as Metal 3.1 with fast math off (`MTLCompileOptions.mathMode = .safe`), make one buffer for each
parameter, for each result, and of {schedule["arena"]} bytes for the arena, all with shared storage. Then, for each step
in order: set the pipeline of `kernel`; bind each of `buffers` at `index` (`kind` and `at` say which: a parameter or
result by number, or a byte offset into the arena or the constants); call `dispatchThreadgroups` or `dispatchThreads`,
as `dispatch` says, with `grid` and `threadgroup`. A step that reads what an earlier one wrote, or writes what it
accessed (`access`), comes after it: use a serial encoder, or a barrier. `outputs` counts parameters, then results.

{chr(10).join([*inputs, *results])}

Written without a Mac: the shaders were never run on Metal. `mlxir.metal.load` runs this folder, and on Linux
(`MLXIR_DEVICE=metal-emulated`) it does so in emulation.
"""


def _told(spec: dict[str, Any]) -> str:
    return f"{spec['dtype']}[{','.join(map(str, spec['shape']))}]"
