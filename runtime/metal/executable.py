"""A program for the GPU: shaders with their schedule, run step by step; the counterpart of `runtime.launch.Executable`.

The schedule is the dict that compiler/target/metal.py describes. A step that is no kernel runs on the host, on the same
memory, after what was dispatched before is done.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from .. import dtypes
from ..buffers import Buffer
from ..dtypes import Dtype
from ..stream import LateBuffer
from .commands import Binding, Commands, Submission, Triple
from .device import Device, DeviceError, Pipeline
from .memory import result, share

Spec = tuple[tuple[int, ...], Dtype]
Library = Callable[[str, dict, list[np.ndarray], list[Spec]], list[np.ndarray]]


class Place(NamedTuple):
    """Where a step finds a value: from byte `at` on in the arena (`entry` is -1) or in buffer `entry` of the table.

    The table has the parameters, the results, and one buffer with all constants.
    """

    entry: int
    at: int
    nbytes: int
    shape: tuple[int, ...]
    dtype: Dtype


class Bound(NamedTuple):
    """A buffer of a kernel."""

    slot: int
    place: Place
    reads: bool
    writes: bool


class Kernel(NamedTuple):
    """A step on the device."""

    name: str
    pipeline: Pipeline
    buffers: list[Bound]
    grid: Triple
    threadgroup: Triple
    in_threadgroups: bool


class Host(NamedTuple):
    """A step on the host: a primitive's reference implementation."""

    primitive: str
    attrs: dict[str, Any]
    operands: list[Place]
    results: list[Place]


class Executable:
    """Shaders compiled for `device` with their schedule. `run` is safe to call from several threads.

    `library` computes the steps on the host; `constants` are the bytes that places of that kind lie in. Raises
    DeviceError where Metal refuses the shaders.
    """

    def __init__(
        self, device: Device, source: str, schedule: dict[str, Any], library: Library,
        constants: np.ndarray | None = None,
    ):  # fmt: skip
        self._device, self._library, self.schedule = device, library, schedule
        self._constants = [] if constants is None else [share(Buffer.from_numpy(constants))]
        self.code_bytes = len(source)
        if schedule["version"] != 1:
            raise ValueError(f"[metal] a schedule of version {schedule['version']} is unknown here")
        self._results = [_spec(s) for s in schedule["results"]]
        self._outputs: list[int] = schedule["outputs"]
        self._arena: int = schedule["arena"]
        kernels = any("kernel" in step for step in schedule["steps"])
        self._shaders = device.shaders(source) if kernels else None
        self._steps = [self._step(step) for step in schedule["steps"]]

    # -- reading the schedule ------------------------------------------------------------------------------------------
    def _step(self, step: dict[str, Any]) -> Kernel | Host:
        if "library" in step:
            operands, results = ([self._place(p) for p in step[side]] for side in ("operands", "results"))
            return Host(step["library"], {k: _attribute(v) for k, v in step["attrs"].items()}, operands, results)
        assert self._shaders is not None
        pipeline = self._shaders.pipeline(step["kernel"])
        if pipeline.simd_width != self.schedule["simd_width"]:
            raise DeviceError(
                f"[metal] The shaders are made for SIMD-groups of {self.schedule['simd_width']} threads,"
                f" {pipeline.kernel} has {pipeline.simd_width} on this device."
            )
        buffers = [
            Bound(b["index"], self._place(b), b["access"] != "write", b["access"] != "read") for b in step["buffers"]
        ]
        x, y, z = step["grid"]
        u, v, w = step["threadgroup"]
        return Kernel(step["kernel"], pipeline, buffers, (x, y, z), (u, v, w), step["dispatch"] == "threadgroups")

    def _place(self, place: dict[str, Any]) -> Place:
        shape, dtype = _spec(place)
        kind, at = place["kind"], place["at"]
        inputs, results = len(self.schedule["parameters"]), len(self.schedule["results"])
        if kind in ("parameter", "result"):
            return Place(at if kind == "parameter" else inputs + at, 0, place["bytes"], shape, dtype)
        return Place({"arena": -1, "constant": inputs + results}[kind], at, place["bytes"], shape, dtype)

    # -- running -------------------------------------------------------------------------------------------------------
    def run(self, arguments: Sequence[Buffer]) -> list[Buffer]:
        """The results for concrete arguments, which must have the parameters' shapes and dtypes.

        It does not wait for the device: reading a result does.
        """
        device, inputs = self._device, len(arguments)
        needed: list[Submission] = []
        table = [self._shared(b, needed) for b in arguments] + [result(shape, dtype) for shape, dtype in self._results]
        table += self._constants
        if not self._steps:
            return [arguments[i] if i < inputs else table[i] for i in self._outputs]
        scratch = result((self._arena,), dtypes.uint8)
        arena = scratch.pointer
        with device.recording, device.autoreleased(), Commands(device) as commands:
            for step in self._steps:
                if isinstance(step, Kernel):
                    bindings = [
                        Binding(b.slot, _address(b.place, arena, table), b.place.nbytes, b.reads, b.writes)
                        for b in step.buffers
                    ]
                    commands.dispatch(step.pipeline, bindings, step.grid, step.threadgroup, step.in_threadgroups)
                else:
                    commands.finish()
                    for submission in needed:
                        submission.wait()
                    self._on_host(step, arena, table)
            run = Submission(device, commands.hand_over(), table, needed, (self, table, scratch))
            device.submitted(run)
        return [arguments[i] if i < inputs else LateBuffer(run, i, *self._results[i - inputs]) for i in self._outputs]

    def _shared(self, buffer: Buffer, needed: list[Submission]) -> Buffer:
        """An argument in memory that the device sees. What the device is still to fill is not waited for."""
        if isinstance(buffer, LateBuffer) and isinstance(buffer.source, Submission):
            run = buffer.source
            if run.device is self._device and not run.done:
                needed.append(run)
                return run.results[buffer.number]
        return share(buffer)

    def _on_host(self, step: Host, arena: int, table: list[Buffer]) -> None:
        operands = [_view(p, arena, table) for p in step.operands]
        specs = [(p.shape, p.dtype) for p in step.results]
        for place, value in zip(step.results, self._library(step.primitive, step.attrs, operands, specs), strict=True):
            _view(place, arena, table)[...] = value


def _address(place: Place, arena: int, table: list[Buffer]) -> int:
    return (arena if place.entry < 0 else table[place.entry].pointer) + place.at


def _view(place: Place, arena: int, table: list[Buffer]) -> np.ndarray:
    raw = (ctypes.c_uint8 * max(place.nbytes, 1)).from_address(_address(place, arena, table))
    return np.frombuffer(memoryview(raw), place.dtype.numpy, prod(place.shape)).reshape(place.shape)


def _spec(spec: dict[str, Any]) -> Spec:
    return tuple(spec["shape"]), dtypes.from_name(spec["dtype"])


def _attribute(value: Any) -> Any:
    """An attribute as the record knows it: the inverse of what the schedule's writer does."""
    if isinstance(value, list):
        return tuple([_attribute(v) for v in value])
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    return {"dtype": dtypes.from_name, "complex": lambda parts: complex(*parts), "float": float}[kind](inner)
