"""Kernels given as source code of a GPU language: Metal's run where there is a Metal device, CUDA's nowhere.

    source of a body  ->  a kernel around it (parameters, built-ins, template arguments)  ->  a program of one step

The step runs as compiled programs do (runtime/metal/executable.py); with MLXIR_DEVICE=metal-emulated in emulation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from mlxir.compiler.evaluate import evaluate
from mlxir.compiler.graph import Value, constant
from mlxir.runtime import devices
from mlxir.runtime.bounded import Bounded
from mlxir.runtime.buffers import Buffer
from mlxir.runtime.dtypes import Dtype

from .devices import StreamOrDevice, check_stream
from .ndarray import array, wrap
from .ops.common import check_array, failure

__all__ = ["cuda_kernel", "metal_kernel", "precompiled_cuda_kernel"]

_TYPES = {
    "bool": "bool", "int8": "int8_t", "uint8": "uint8_t", "int16": "int16_t", "uint16": "uint16_t", "int32": "int",
    "uint32": "uint32_t", "int64": "int64_t", "uint64": "uint64_t", "float16": "half", "bfloat16": "bfloat",
    "float32": "float",
}  # fmt: skip
_ATOMICS = {"float32": "atomic_float", "int32": "atomic_int", "uint32": "atomic_uint"}
_BUILTINS = {
    "thread_position_in_grid": "uint3", "thread_position_in_threadgroup": "uint3",
    "threadgroup_position_in_grid": "uint3", "threadgroups_per_grid": "uint3", "threads_per_grid": "uint3",
    "threads_per_threadgroup": "uint3", "dispatch_threads_per_threadgroup": "uint3",
    "thread_index_in_threadgroup": "uint", "thread_index_in_simdgroup": "uint",
    "simdgroup_index_in_threadgroup": "uint", "simdgroups_per_threadgroup": "uint", "threads_per_simdgroup": "uint",
    "thread_execution_width": "uint",
}  # fmt: skip
"""Built-in parameters that a kernel gets if its source names them."""
_IN_CONSTANT = 8  # elements from which on an input lies in device memory, as in MLX
_MOST_PROGRAMS = 64
_HEAD = """\
#include <metal_stdlib>
using namespace metal;
typedef half float16_t;
typedef bfloat bfloat16_t;"""
_ELEM_TO_LOC = """\
// Where element `elem` of an array of this shape and these strides lies.
inline long elem_to_loc(uint elem, constant const int* shape, constant const int64_t* strides, int ndim) {
  long at = 0;
  for (int i = ndim - 1; i >= 0; --i) {
    at += long(elem % uint(shape[i])) * strides[i];
    elem /= uint(shape[i]);
  }
  return at;
}"""

Spec = tuple[tuple[int, ...], Dtype]


def _type_of(dtype: Dtype) -> str:
    if dtype.name not in _TYPES:
        raise failure(ValueError, f"[metal_kernel] Metal has no type for {dtype.name}: use another dtype.")
    return _TYPES[dtype.name]


def _template(arguments: Sequence[tuple[str, Any]]) -> list[str]:
    """Template arguments as declarations at the head of the body."""
    lines = []
    for name, value in arguments:
        if isinstance(value, Dtype):
            lines.append(f"using {name} = {_type_of(value)};")
        elif isinstance(value, bool):
            lines.append(f"constexpr bool {name} = {str(value).lower()};")
        elif isinstance(value, int):
            lines.append(f"constexpr int {name} = {value};")
        else:
            raise failure(
                TypeError, f"[metal_kernel] template argument {name!r} is a dtype, an int or a bool, not {value!r}"
            )
    return lines


class _Kernel:
    """What `metal_kernel` returns. Programs are kept by shapes, dtypes and sizes."""

    def __init__(
        self, name: str, inputs: Sequence[str], outputs: Sequence[str], source: str, header: str, atomic: bool
    ):
        self._name, self._inputs, self._outputs = name, tuple(inputs), tuple(outputs)
        self._body, self._header, self._atomic = source, header, atomic
        self._programs = Bounded(_MOST_PROGRAMS)

    def __call__(
        self, *, inputs: Sequence[Any], template: Sequence[tuple[str, Any]] | None = None, grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int], output_shapes: Sequence[Sequence[int]], output_dtypes: Sequence[Dtype],
        init_value: float | None = None, verbose: bool = False, stream: StreamOrDevice = None,
    ) -> list[array]:  # fmt: skip
        """Run the kernel on `grid` threads; -> arrays of `output_shapes` and `output_dtypes`.

        `inputs` are arrays and numbers, `template` (name, dtype or number) pairs that the source may use, `init_value`
        what outputs hold before. Runs now: inputs that are being traced have no data, which raises. Raises RuntimeError
        where there is no Metal device or it refuses the source, ValueError for sizes that do not fit.
        """
        if devices.gpu() is None:
            raise failure(
                RuntimeError,
                f"[metal_kernel] No Metal back-end: mlxir evaluates on the CPU, so the kernel {self._name!r} cannot"
                " run. Write it with array operations and mx.compile.",
            )
        check_stream("metal_kernel", stream)
        if len(inputs) != len(self._inputs) or not len(output_shapes) == len(output_dtypes) == len(self._outputs):
            raise failure(
                ValueError,
                f"[metal_kernel] {self._name!r} takes {len(self._inputs)} inputs and makes {len(self._outputs)}"
                f" outputs; given are {len(inputs)} inputs, {len(output_shapes)} shapes, {len(output_dtypes)} dtypes",
            )
        values = [check_array("metal_kernel", x if isinstance(x, array) else array(x))._value for x in inputs]
        evaluate(values)
        specs: list[Spec] = [(tuple(s), d) for s, d in zip(output_shapes, output_dtypes, strict=True)]
        sizes = tuple(grid), tuple(threadgroup)
        chosen = tuple((name, type(value), value) for name, value in template or ())  # True is no 1
        key = (tuple((v.shape, v.dtype) for v in values), chosen, tuple(specs), sizes, init_value)
        program = self._programs.recall(key)
        if program is None:
            program = self._program(values, template or (), specs, sizes, init_value)
            self._programs.keep(key, program)
        executable, numbers, text = program
        if verbose:
            print(f"Generated source code for `{self._name}`:\n{text}")
        buffers = [v.buffer for v in values if v.buffer is not None]
        return [wrap(constant(b)) for b in executable.run([*buffers, *numbers])]

    def _program(
        self, values: list[Value], template: Sequence[tuple[str, Any]], outputs: list[Spec],
        sizes: tuple[tuple[int, ...], tuple[int, ...]], init_value: float | None,
    ) -> tuple[Any, list[Buffer], str]:  # fmt: skip
        """(what runs the kernel, the arguments after the inputs: shapes and strides, the source)."""
        from mlxir.compiler.cache import library_step  # lazy: it loads llvmlite, 50 ms
        from mlxir.runtime.metal.executable import Executable  # lazy: most processes have no GPU to talk to

        grid, threadgroup = sizes
        if len(grid) != 3 or len(threadgroup) != 3 or min(*grid, *threadgroup) < 1:
            raise failure(ValueError, f"[metal_kernel] grid {grid} and threadgroup {threadgroup} are three sizes each")
        parameters: list[tuple[str, Spec]] = [
            (self._declared(name, v), (v.shape, v.dtype)) for name, v in zip(self._inputs, values, strict=True)
        ]
        numbers = [n for name, v in zip(self._inputs, values, strict=True) for n in self._numbers(name, v)]
        parameters += [(declared, (b.shape, b.dtype)) for declared, b in numbers]
        declared = [d for d, _ in parameters]
        for name, (_, dtype) in zip(self._outputs, outputs, strict=True):
            if self._atomic and dtype.name not in _ATOMICS:
                raise failure(ValueError, f"[metal_kernel] Metal has no atomic {dtype.name} for the output {name!r}")
            declared.append(f"device {_ATOMICS[dtype.name] if self._atomic else _type_of(dtype)}* {name}")
        function = f"custom_kernel_{self._name}"
        text = self._source(function, declared, template)
        places = [{**_place("parameter", n, spec), "access": "read"} for n, (_, spec) in enumerate(parameters)]
        access = "write" if init_value is None else "readwrite"
        places += [{**_place("result", n, spec), "access": access} for n, spec in enumerate(outputs)]
        buffers = [{"index": i, **place} for i, place in enumerate(places)]
        fills = [] if init_value is None else [_fill(n, spec, init_value) for n, spec in enumerate(outputs)]
        schedule = {
            "version": 1, "simd_width": 32, "parameters": [_spec(s) for _, s in parameters],
            "results": [_spec(s) for s in outputs], "arena": 0,
            "outputs": [len(parameters) + n for n in range(len(outputs))],
            "steps": [*fills, {
                "kernel": function, "dispatch": "threads", "grid": list(grid),
                "threadgroup": [min(t, g) for t, g in zip(threadgroup, grid, strict=True)], "buffers": buffers,
            }],
        }  # fmt: skip
        device = devices.gpu()
        assert device is not None
        return Executable(device, text, schedule, library_step), [b for _, b in numbers], text

    def _declared(self, name: str, value: Value) -> str:
        space = "constant" if prod(value.shape) < _IN_CONSTANT else "device"
        return f"const {space} {_type_of(value.dtype)}{'*' if value.shape else '&'} {name}"

    def _numbers(self, name: str, value: Value) -> list[tuple[str, Buffer]]:
        """The shape, strides and number of axes of an input, as far as the source names them."""
        strides = [prod(value.shape[a + 1 :]) for a in range(len(value.shape))]
        found = {
            "shape": ("const constant int*", "int32", list(value.shape)),
            "strides": ("const constant int64_t*", "int64", strides),
            "ndim": ("const constant int&", "int32", len(value.shape)),
        }
        return [
            (f"{type_} {name}_{what}", Buffer.from_numpy(np.array(numbers, dtype)))
            for what, (type_, dtype, numbers) in found.items()
            if value.shape and re.search(rf"\b{name}_{what}\b", self._body)
        ]

    def _source(self, function: str, declared: Sequence[str], template: Sequence[tuple[str, Any]]) -> str:
        arguments = [f"{d} [[buffer({i})]]" for i, d in enumerate(declared)]
        arguments += [f"{t} {n} [[{n}]]" for n, t in _BUILTINS.items() if re.search(rf"\b{n}\b", self._body)]
        parts = [_HEAD]
        if re.search(r"\belem_to_loc\b", self._header + self._body):
            parts.append(_ELEM_TO_LOC)
        if self._header:
            parts.append(self._header)
        lines = ",\n    ".join(arguments)
        body = "\n".join([*(f"  {line}" for line in _template(template)), self._body])
        parts.append(f"kernel void {function}(\n    {lines}) {{\n{body}\n}}")
        return "\n\n".join(parts) + "\n"


def _spec(spec: Spec) -> dict[str, Any]:
    return {"shape": list(spec[0]), "dtype": spec[1].name}


def _place(kind: str, at: int, spec: Spec) -> dict[str, Any]:
    return {"kind": kind, "at": at, "bytes": prod(spec[0]) * spec[1].size, **_spec(spec)}


def _fill(number: int, spec: Spec, value: float) -> dict[str, Any]:
    """The step that gives an output its first value."""
    attrs = {"value": value, "shape": list(spec[0]), "dtype": {"dtype": spec[1].name}}
    return {"library": "full", "attrs": attrs, "operands": [], "results": [_place("result", number, spec)]}


def metal_kernel(
    name: str,
    input_names: Sequence[str],
    output_names: Sequence[str],
    source: str,
    header: str = "",
    ensure_row_contiguous: bool = True,
    atomic_outputs: bool = False,
    compile_options: dict[str, Any] | None = None,
) -> Callable[..., list[array]]:
    """A kernel from Metal source: the body of a function over `input_names`, `output_names` and Metal's built-ins.

    Of an input `x` the source may also name `x_shape`, `x_strides` and `x_ndim`. Arrays are always contiguous here.
    Calling it without a Metal device raises RuntimeError. Math is never fast, whatever `compile_options` say.
    """
    return _Kernel(name, input_names, output_names, source, header, atomic_outputs)


def cuda_kernel(
    name: str,
    input_names: Sequence[str],
    output_names: Sequence[str],
    source: str,
    header: str = "",
    ensure_row_contiguous: bool = True,
    shared_memory: int = 0,
) -> Callable[..., list[array]]:
    """A kernel from CUDA source. Raises RuntimeError: there is no CUDA target (MLX raises here, too)."""
    raise failure(RuntimeError, f"[cuda_kernel] No CUDA back-end: the kernel {name!r} cannot be made.")


def precompiled_cuda_kernel(
    *,
    name: str,
    compiled_source: bytes,
    inputs: Sequence[Any],
    output_shapes: Sequence[Sequence[int]],
    output_dtypes: Sequence[Any],
    scalars: Sequence[Any],
    grid: tuple[int, int, int],
    threadgroup: tuple[int, int, int],
    shared_memory: int = 0,
    init_value: float | None = None,
    ensure_row_contiguous: bool = False,
    stream: StreamOrDevice = None,
) -> list[array]:
    """Run a kernel given as PTX or cubin. Raises RuntimeError: there is no CUDA target."""
    raise failure(RuntimeError, f"[precompiled_cuda_kernel] No CUDA back-end: the kernel {name!r} cannot run.")
