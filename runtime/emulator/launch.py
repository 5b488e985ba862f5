"""Running a compiled kernel on the emulator: arguments in, checked execution, results and findings out."""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from . import build, elf
from .errors import MetalCheckError, MetalLaunchError, MetalLintError
from .lint import lint
from .reflect import Kernel, Kind, Parameter, parse_kernels

MAX_THREADGROUP_MEMORY = 32 << 10
_SPACES = {"device": 0, "constant": 1, "threadgroup": 2}
_SEVERITIES = ("error", "warning", "divergence")

# Metal scalar -> NumPy dtype. bfloat: 16-bit patterns, as ml_dtypes.bfloat16 or uint16.
_DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(code) for name, code in {
    "bool": "?", "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "long": "i8",
    "ulong": "u8", "half": "f2", "bfloat": "u2", "float": "f4", "size_t": "u8", "ptrdiff_t": "i8",
    **{f"int{8 * n}_t": f"i{n}" for n in (1, 2, 4, 8)}, **{f"uint{8 * n}_t": f"u{n}" for n in (1, 2, 4, 8)},
    "atomic_int": "i4", "atomic_uint": "u4", "atomic_float": "f4", "atomic_bool": "?", "atomic_ulong": "u8",
}.items()}  # fmt: skip
# Dtypes that stand for a Metal type beside its own.
_ALSO = {"bool": ("uint8",), "bfloat": ("bfloat16",), "float2": ("complex64",), "atomic_bool": ("uint8",)}

# One dispatch at a time: the emulator has one state per process.
_lock = threading.Lock()

Buffers = Sequence[Any] | Mapping[int, Any]


class _Record(ctypes.Structure):
    """runtime/report.cpp, struct Record."""

    _fields_ = [
        ("severity", ctypes.c_uint32), ("count", ctypes.c_uint32), ("line", ctypes.c_uint32),
        ("thread", ctypes.c_uint32 * 3), ("group", ctypes.c_uint32 * 3), ("has_thread", ctypes.c_uint32),
        ("site", ctypes.c_uint64), ("file", ctypes.c_char * 64), ("text", ctypes.c_char * 256),
    ]  # fmt: skip


class _Statistics(ctypes.Structure):
    """runtime/emulator.h, struct Statistics."""

    _fields_ = [(n, ctypes.c_uint64) for n in ("switches", "simd_operations", "divergent", "barriers")]


@dataclass
class Report:
    """What one run found.

    `errors`: broken rules; `warnings`: signed integer overflow (undefined in Metal, wraps in the emulator);
    `divergences`: calls of SIMD-group functions that only a part of a SIMD-group executed, and `divergent` how often;
    `barriers`, `simd_operations`: threadgroup barriers and SIMD-group operations executed, counted per group.
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    divergences: list[str] = field(default_factory=list)
    divergent: int = 0
    barriers: int = 0
    simd_operations: int = 0

    @property
    def clean(self) -> bool:
        """Nothing found at all: what a shader worth shipping has to show."""
        return not (self.errors or self.warnings or self.divergences or self.divergent)


def _label(p: Parameter) -> str:
    return f"{p.name} [[buffer({p.index})]]"


def _triple(size: int | Sequence[int], what: str) -> tuple[int, int, int]:
    values = np.atleast_1d(size)
    if values.dtype.kind not in "iu" or values.ndim != 1 or values.size not in (1, 2, 3) or values.min() < 1:
        raise MetalLaunchError(f"{what} must be one to three positive integers, not {size!r}")
    x, y, z = (*values.tolist(), 1, 1)[:3]
    return x, y, z


def _element(type_: str) -> tuple[str, int]:
    """Scalar type and stored components of a Metal type: float3 -> ("float", 4)."""
    match = re.fullmatch(r"([a-z]\w*?)([234])", type_)
    if match and match[1] in _DTYPES:
        return match[1], 4 if match[2] == "3" else int(match[2])
    return type_, 1


def element_dtype(p: Parameter) -> np.dtype[Any]:
    """NumPy's dtype for the elements of a buffer; bytes for a struct of the source."""
    return _DTYPES.get(_element(p.type)[0], np.dtype(np.uint8))


def _value(value: object, p: Parameter) -> np.ndarray:
    """A Python or NumPy scalar, or a short sequence, in the dtype and size of the read-only parameter `p`."""
    type_, components = _element(p.type)
    if type_ not in _DTYPES:
        raise MetalLaunchError(f"{p.name}: pass an array for the type {p.type}")
    values = np.asarray(value).reshape(-1)
    if values.dtype.kind == "c":
        values = values.astype(np.complex64).view(np.float32)
    if type_ == "bfloat" and values.dtype.name == "bfloat16":
        values = values.view(np.uint16)
    elif type_ == "bfloat" and values.dtype != np.uint16:
        bits = values.astype(np.float32).view(np.uint32)
        values = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)  # nearest, ties to even
    dtype = _DTYPES[type_]
    with np.errstate(over="ignore"):
        converted = values.astype(dtype)
    if dtype.kind in "iub" and not np.array_equal(converted, values):
        raise MetalLaunchError(f"{p.name}: {value!r} is no value of the type {p.type}")
    if p.type.endswith("3") and converted.size == 3:
        converted = np.append(converted, converted[2:])  # stored as four
    if p.reference and converted.size != components:
        raise MetalLaunchError(f"{p.name}: {value!r} has {converted.size} components, {p.type} has {components}")
    return converted


def _check_array(array: np.ndarray, p: Parameter) -> None:
    where = _label(p)
    if not array.flags.c_contiguous:
        raise MetalLaunchError(f"{where}: array must be contiguous")
    if not p.read_only and not array.flags.writeable:
        raise MetalLaunchError(f"{where} is written, the array is read-only")
    type_, components = _element(p.type)
    if type_ not in _DTYPES:
        return  # a struct of the source
    dtype = _DTYPES[type_]
    if array.dtype != dtype and array.dtype.name not in _ALSO.get(p.type, ()) + _ALSO.get(type_, ()):
        raise MetalLaunchError(f"{where}: {p.type} needs {dtype}, the array is {array.dtype}")
    if array.nbytes % (dtype.itemsize * components):
        raise MetalLaunchError(f"{where}: {array.nbytes} bytes are no whole number of {p.type}")


class MetalLibrary:
    """A compiled Metal source.

    Args:
        source: Metal Shading Language, as it would be given to newLibraryWithSource.

    Attributes:
        source: as given.
        kernels: signature of every kernel, by name.
        warnings: the compiler's warnings; a shader that is worth shipping has none.

    Raises:
        MetalLintError: a rule of Metal is broken that clang does not know.
        MetalCompileError: clang rejects the source.
    """

    def __init__(self, source: str):
        lint(source)
        self.source = source
        self.source_lines = source.splitlines()
        self.kernels = parse_kernels(source)
        built = build.compile_kernels(source, self.kernels)
        self.warnings = built.warnings
        self._elf = elf.Library(built.path)
        self._runtime = build.runtime()
        self._library = ctypes.CDLL(str(built.path))
        thunk = build.thunk_name(next(iter(self.kernels)))
        self._base = self._address(thunk) - self._elf.symbols[thunk].address
        for kernel in self.kernels:
            self._check_threadgroup_memory(kernel, 0)

    def _address(self, symbol: str) -> int:
        return ctypes.cast(getattr(self._library, symbol), ctypes.c_void_p).value or 0

    def threadgroup_variables(self, kernel: str) -> dict[str, elf.Symbol]:
        """The threadgroup variables that `kernel` declares, by name."""
        mangled = re.compile(rf"_ZZ{len(kernel)}{re.escape(kernel)}E\d+([A-Za-z_]\w*)")
        found = ((mangled.fullmatch(name), symbol) for name, symbol in self._elf.symbols.items())
        return {m[1]: symbol for m, symbol in found if m}

    def _check_threadgroup_memory(self, kernel: str, dynamic: int) -> None:
        used = dynamic + sum(symbol.size for symbol in self.threadgroup_variables(kernel).values())
        if used > MAX_THREADGROUP_MEMORY:
            raise MetalLintError(f"{kernel}: {used} bytes of threadgroup memory, {MAX_THREADGROUP_MEMORY} are allowed")

    def run(
        self,
        kernel: str,
        buffers: Buffers,
        grid: int | Sequence[int],
        threadgroup: int | Sequence[int],
        *,
        order: int = 0,
        in_threadgroups: bool = False,
        strict: bool = True,
        threadgroup_memory: Mapping[int, int] | None = None,
        time_limit: float = 60.0,
    ) -> Report:
        """Executes one dispatch; arrays of buffers that the kernel may write are changed in place.

        Args:
            kernel: its name.
            buffers: by buffer index: NumPy arrays (C-contiguous, of the declared dtype; bfloat as ml_dtypes.bfloat16 or
                uint16, float2 also as complex64), or plain scalars for read-only parameters. Arrays that share memory
                share it in the kernel, too.
            grid: threads in x, y, z (dispatchThreads: the last threadgroups may be smaller).
            threadgroup: threads per threadgroup in x, y, z.
            order: in which order threads run: 0 forward, 1 reverse, 2 and above pseudo-random.
            in_threadgroups: `grid` counts threadgroups (dispatchThreadgroups).
            strict: raise on errors; otherwise only report them.
            threadgroup_memory: bytes for each `[[threadgroup(i)]]` parameter.
            time_limit: seconds of CPU time after which the run ends with an error.

        Raises:
            MetalLaunchError: arguments that do not fit the kernel.
            MetalCheckError: the kernel broke a rule (only if strict).
        """
        if kernel not in self.kernels:
            raise MetalLaunchError(f"no kernel {kernel!r}; there are {sorted(self.kernels)}")
        signature = self.kernels[kernel]
        grid3, group3 = _triple(grid, "grid"), _triple(threadgroup, "threadgroup")
        if prod(group3) > signature.max_threads:
            raise MetalLaunchError(f"{prod(group3)} threads per threadgroup, {signature.max_threads} allowed")
        arrays = self._arrays(signature, buffers)
        with _lock:
            self._runtime.msl_begin()
            try:
                arguments, copies = self._place(signature, arrays, threadgroup_memory or {})
                self._runtime.msl_run(
                    self._address(build.thunk_name(kernel)), arguments, len(arguments), (ctypes.c_uint32 * 3)(*grid3),
                    (ctypes.c_uint32 * 3)(*group3), int(in_threadgroups), order, time_limit,
                )  # fmt: skip
                for array, device in copies:
                    ctypes.memmove(array.ctypes.data, device, array.nbytes)
                report = self._report()
            finally:
                self._runtime.msl_end()
        if strict and report.errors:
            raise MetalCheckError(kernel, report)
        return report

    @staticmethod
    def _arrays(kernel: Kernel, buffers: Buffers) -> dict[int, np.ndarray]:
        """The array for each buffer index, values converted, everything checked."""
        given = dict(buffers) if isinstance(buffers, Mapping) else dict(enumerate(buffers))
        declared = kernel.buffers
        if given.keys() != declared.keys():
            raise MetalLaunchError(f"{kernel.name} has the buffers {sorted(declared)}, given are {sorted(given)}")
        arrays = {}
        for index, p in declared.items():
            value = given[index]
            if not isinstance(value, np.ndarray):
                if not p.read_only:
                    raise MetalLaunchError(f"{_label(p)} is written: pass an array")
                value = _value(value, p)
            elif p.reference and p.read_only and _element(p.type)[0] in _DTYPES:
                value = _value(value, p)
            _check_array(value, p)
            arrays[index] = value
        return arrays

    def _map(self, nbytes: int) -> int:
        address = self._runtime.msl_map(nbytes)
        if not address:
            raise MemoryError(f"no address space for an emulated buffer of {nbytes} bytes")
        return address

    def _add_region(self, address: int, nbytes: int, space: str, read_only: bool, name: str) -> None:
        if not self._runtime.msl_add_region(address, nbytes, _SPACES[space], read_only, name.encode()):
            raise MemoryError(f"no memory to check {name}")

    def _place(
        self, kernel: Kernel, arrays: dict[int, np.ndarray], threadgroup_memory: Mapping[int, int]
    ) -> tuple[ctypes.Array, list[tuple[np.ndarray, int]]]:
        """Puts arrays and threadgroup memory where the emulator checks them.

        Returns the thunk's arguments, and (array, address) for everything to be copied back.
        """
        arguments = (ctypes.c_uint64 * len(kernel.parameters))()
        addresses = self._allocate(kernel, arrays)
        for position, p in enumerate(kernel.parameters):
            if p.kind is Kind.BUFFER:
                arguments[position] = addresses[p.index]
            elif p.kind is Kind.THREADGROUP:
                if p.index not in threadgroup_memory:
                    raise MetalLaunchError(f"threadgroup_memory[{p.index}] is missing ({p.name})")
                nbytes = threadgroup_memory[p.index]
                arguments[position] = self._map(nbytes)
                self._add_region(arguments[position], nbytes, "threadgroup", False, f"threadgroup memory {p.name}")
        self._check_threadgroup_memory(kernel.name, sum(threadgroup_memory.values()))
        for name, symbol in self.threadgroup_variables(kernel.name).items():
            address = self._base + symbol.address
            self._add_region(address, symbol.size, "threadgroup", False, f"threadgroup variable {name}")
        variables = [s.address for n, s in self._elf.symbols.items() if n.startswith("_ZZ")]
        self._runtime.msl_set_image(self._base, self._base + min(variables, default=self._elf.image_size))
        written = [(arrays[i], addresses[i]) for i, p in kernel.buffers.items() if not p.read_only]
        return arguments, written

    def _allocate(self, kernel: Kernel, arrays: dict[int, np.ndarray]) -> dict[int, int]:
        """Copies the arrays into emulated memory; address by buffer index. Arrays that overlap share one piece."""
        pieces: list[list[int]] = []  # buffer indices
        end = 0
        for index in sorted(arrays, key=lambda i: arrays[i].ctypes.data):
            array = arrays[index]
            if pieces and array.nbytes and array.ctypes.data < end:
                pieces[-1].append(index)
                end = max(end, array.ctypes.data + array.nbytes)
            else:
                pieces.append([index])
                end = array.ctypes.data + array.nbytes
        addresses: dict[int, int] = {}
        for piece in pieces:
            begin = arrays[piece[0]].ctypes.data
            nbytes = max(arrays[i].ctypes.data + arrays[i].nbytes for i in piece) - begin
            device = self._map(nbytes)
            ctypes.memmove(device, begin, nbytes)
            parameters = [kernel.buffers[i] for i in piece]
            read_only = all(p.read_only for p in parameters)
            self._add_region(device, nbytes, parameters[0].space, read_only, " = ".join(map(_label, parameters)))
            addresses |= {i: device + arrays[i].ctypes.data - begin for i in piece}
        return addresses

    # ---- findings

    def _report(self) -> Report:
        statistics = _Statistics.from_address(self._runtime.msl_statistics())
        report = Report(divergent=statistics.divergent, barriers=statistics.barriers,
                        simd_operations=statistics.simd_operations)  # fmt: skip
        lists = (report.errors, report.warnings, report.divergences)
        records = (_Record * self._runtime.msl_record_count()).from_address(self._runtime.msl_records())
        seen = set()
        for record in records:
            place, text = self._place_of(record), record.text.decode()
            if (record.severity, place, text) in seen:  # one line of source, inlined twice
                continue
            seen.add((record.severity, place, text))
            lists[record.severity].append(f"{place}{text}{self._thread_of(record)}")
        return report

    def _place_of(self, record: _Record) -> str:
        """`kernel.metal:12: out[i] = x; -- ` for a finding in the source."""
        file, line = record.file.decode(), record.line
        if record.site:
            file, line = self._elf.line(record.site - 1 - self._base)
        if not line:
            return ""
        text = ""
        if file == build.SOURCE_NAME and line <= len(self.source_lines):
            text = f"{self.source_lines[line - 1].strip()} -- "
        return f"{file.rpartition('/')[2]}:{line}: {text}"

    @staticmethod
    def _thread_of(record: _Record) -> str:
        if not record.has_thread:
            return ""
        thread, group = (", ".join(map(str, position)) for position in (record.thread, record.group))
        return f" [first: thread ({thread}) of threadgroup ({group})]"
