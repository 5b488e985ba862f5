"""Saving and loading arrays: `.npy`, `.npz`, `.safetensors` and `.gguf`, interchangeable with MLX's files.

Nothing in a file is ever executed (no pickle). What a file claims is checked against its size before memory is
allocated; a file that is not what its format demands raises FormatError (a RuntimeError and a ValueError). Arrays of
a path are read when they are used; those of a file object are read at once.
"""

from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from math import prod
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from mlxir.compiler.evaluate import evaluate
from mlxir.compiler.graph import constant
from mlxir.runtime import dtypes
from mlxir.runtime.buffers import Buffer
from mlxir.runtime.dtypes import Dtype
from mlxir.runtime.errors import FormatError
from mlxir.runtime.files import FileBuffer, Source, check_shape

from . import gguf
from .devices import StreamOrDevice, check_stream
from .ndarray import array, wrap
from .ops.common import check_array, failure

__all__ = ["load", "save", "save_gguf", "save_safetensors", "savez", "savez_compressed"]

File = str | os.PathLike[str] | BinaryIO

_NPY_BFLOAT16 = np.dtype("V2")  # what MLX calls bfloat16 in a .npy file
_NPY_HEADER = 1 << 16  # the largest header that is looked at
_MAX_JSON = 100_000_000  # the largest safetensors header, as in MLX
_DEFLATE_LIMIT = 1100  # deflate cannot expand more than 1032 times
_SAFETENSORS = {
    dtypes.bool_: "BOOL", dtypes.uint8: "U8", dtypes.uint16: "U16", dtypes.uint32: "U32", dtypes.uint64: "U64",
    dtypes.int8: "I8", dtypes.int16: "I16", dtypes.int32: "I32", dtypes.int64: "I64", dtypes.float16: "F16",
    dtypes.bfloat16: "BF16", dtypes.float32: "F32", dtypes.complex64: "C64",
}  # fmt: skip
# float64 is read, but not written: MLX cannot read it. Eight-bit floats are read as their bits, as in MLX.
_FROM_SAFETENSORS = {name: dtype for dtype, name in _SAFETENSORS.items()} | {
    "F64": dtypes.float64, "F8_E4M3": dtypes.uint8, "F8_E8M0": dtypes.uint8,
}  # fmt: skip


# -- files -----------------------------------------------------------------------------------------------------------
def _is_path(file: Any) -> bool:
    return isinstance(file, (str, os.PathLike))


def _with_extension(file: Any, extension: str) -> str:
    name = os.fspath(file)
    return name if name.endswith(extension) else name + extension


def _opened(name: str, file: Any, extension: str) -> AbstractContextManager[Any]:
    """The binary file to write to: a path with its extension, closed at the end, or the file object itself.

    Raises RuntimeError where it cannot be opened, ValueError for what is no file.
    """
    if hasattr(file, "write"):
        return nullcontext(file)
    if not _is_path(file):
        raise failure(ValueError, f"[{name}] Input must be a file-like object, or string")
    path = _with_extension(file, extension)
    try:
        return open(path, "wb")
    except OSError as error:
        raise failure(RuntimeError, f"[{name}] Failed to open file {path}: {error.strerror}") from error


def _checked(name: str, arrays: Mapping[Any, Any]) -> dict[str, np.ndarray]:
    """The evaluated data of named arrays. Raises TypeError for other keys and values."""
    if not isinstance(arrays, Mapping):
        raise failure(TypeError, f"[{name}] expected a dict of arrays, got {type(arrays).__name__}")
    for key, x in arrays.items():
        if not isinstance(key, str):
            raise failure(TypeError, f"[{name}] the names of arrays are strings, got {key!r}")
        check_array(name, x)
    evaluate([x._value for x in arrays.values()])
    return {key: x._numpy() for key, x in arrays.items()}


def _zipfile() -> ModuleType:
    import zipfile  # lazy: it loads four codecs, which only .npz files need

    return zipfile


def _bytes(data: np.ndarray) -> memoryview:
    return memoryview(data.reshape(-1).view(np.uint8))  # type: ignore[arg-type]


# -- saving ----------------------------------------------------------------------------------------------------------
def save(file: File, arr: array) -> None:
    """Write an array to a `.npy` file (the extension is added where it is missing) or to a binary file object.

    Raises TypeError for what is no array, RuntimeError where the file cannot be opened.
    """
    data = check_array("save", arr)._numpy()
    with _opened("save", file, ".npy") as out:
        _write_npy(out, data)


def _write_npy(out: Any, data: np.ndarray) -> None:
    descr = "<V2" if data.dtype == dtypes.bfloat16.numpy else data.dtype.newbyteorder("<").str
    np.lib.format.write_array_header_1_0(out, {"descr": descr, "fortran_order": False, "shape": data.shape})
    out.write(_bytes(data))


def savez(file: File, *args: array, **kwargs: array) -> None:
    """Write arrays to an uncompressed `.npz` file; positional ones are called arr_0, arr_1, ..."""
    _write_npz("savez", file, args, kwargs, _zipfile().ZIP_STORED)


def savez_compressed(file: File, *args: array, **kwargs: array) -> None:
    """Write arrays to a compressed `.npz` file; see `savez`."""
    _write_npz("savez_compressed", file, args, kwargs, _zipfile().ZIP_DEFLATED)


def _write_npz(name: str, file: File, args: tuple[array, ...], kwargs: dict[str, array], compression: int) -> None:
    named = dict(kwargs)
    for i, x in enumerate(args):
        if f"arr_{i}" in named:
            raise failure(ValueError, f"[{name}] Cannot use un-named variables and keyword arr_{i}")
        named[f"arr_{i}"] = x
    data = _checked(name, named)
    if not (_is_path(file) or hasattr(file, "write")):
        raise failure(ValueError, f"[{name}] Input must be a file-like object, or string")
    target: Any = _with_extension(file, ".npz") if _is_path(file) else file
    with _zipfile().ZipFile(target, "w", compression) as archive:
        for key, values in data.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                _write_npy(member, values)


def save_safetensors(file: File, arrays: dict[str, array], metadata: dict[str, str] | None = None) -> None:
    """Write named arrays, and metadata of strings, to a `.safetensors` file or to a binary file object.

    Raises TypeError for what is no array, ValueError for other metadata, RuntimeError for float64, which the format's
    readers in MLX lack.
    """
    data = _checked("save_safetensors", arrays)
    header: dict[str, Any] = {}
    if metadata is not None:
        if not isinstance(metadata, Mapping) or not all(isinstance(s, str) for kv in metadata.items() for s in kv):
            raise failure(ValueError, "[save_safetensors] Metadata must be a dictionary with string keys and values")
        header["__metadata__"] = dict(metadata)
    end = 0
    for key, values in data.items():
        dtype = dtypes.from_numpy(values.dtype)
        if dtype not in _SAFETENSORS:
            raise failure(RuntimeError, f"[save_safetensors] received invalid dtype {dtype.name}: cast it to float32.")
        begin, end = end, end + values.nbytes
        header[key] = {"dtype": _SAFETENSORS[dtype], "shape": list(values.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with _opened("save_safetensors", file, ".safetensors") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for values in data.values():
            out.write(_bytes(values))


def save_gguf(
    file: str | os.PathLike[str],
    arrays: dict[str, array],
    metadata: dict[str, array | str | list[str]] | None = None,
) -> None:
    """Write named arrays and metadata to a `.gguf` file.

    Arrays are float32, float16, int8, int16 or int32 (RuntimeError otherwise); metadata are strings, lists of strings
    and arrays of rank 0 or 1.
    """
    if not _is_path(file):
        raise failure(ValueError, "[save_gguf] Input must be a string")
    data = _checked("save_gguf", arrays)
    entries: dict[str, Any] = {}
    for key, value in (metadata or {}).items():
        entries[key] = value._numpy() if isinstance(value, array) else value
    try:
        head, places = gguf.header(data, entries)
    except (TypeError, RuntimeError, ValueError) as error:
        raise failure(type(error), str(error)) from None
    with _opened("save_gguf", file, ".gguf") as out:
        out.write(head)
        for values, padding in zip(data.values(), places, strict=True):
            out.write(bytes(padding))
            out.write(_bytes(values))


# -- loading ---------------------------------------------------------------------------------------------------------
def load(
    file: File, /, format: str | None = None, return_metadata: bool = False, *, stream: StreamOrDevice = None
) -> Any:
    """The array of a `.npy` file, or a dict of the arrays of a `.npz`, `.safetensors` or `.gguf` file.

    `format` replaces the file's extension. With `return_metadata` (safetensors, gguf) the result is a tuple
    (arrays, metadata). Quantised tensors of a gguf file (Q4_0, Q4_1, Q8_0) come as in `quantize`: packed weights,
    `.scales` and `.biases`. Raises RuntimeError or ValueError for files that cannot be opened or are corrupt.
    """
    check_stream("load", stream)
    if not (_is_path(file) or hasattr(file, "read")):
        raise failure(ValueError, "[load] Input must be a file-like object opened in binary mode, or string")
    name = os.fspath(file) if _is_path(file) else str(getattr(file, "name", "<file>"))  # type: ignore[arg-type]
    if format is None:
        format = os.path.splitext(name)[1][1:]
        if not format:
            raise failure(ValueError, f"[load] Could not infer file format from extension of {name}: give format=")
    if format not in _READERS:
        raise failure(ValueError, f"[load] Unknown file format {format}")
    reader, has_metadata = _READERS[format]
    if return_metadata and not has_metadata:
        raise failure(ValueError, f"[load] metadata not supported for format {format}")
    try:
        source = Source(file, name)
    except OSError as error:
        kind = FormatError if format in ("npz", "gguf") else RuntimeError
        function = "load" if format == "npy" else f"load_{format}"  # MLX's names
        raise failure(kind, f"[{function}] Failed to open file {name}: {error.strerror}") from error
    try:
        found, metadata = reader(source)
    except FormatError as error:
        raise failure(FormatError, str(error)) from error
    loaded = wrap(constant(found)) if isinstance(found, Buffer) else {k: wrap(constant(b)) for k, b in found.items()}
    return (loaded, metadata) if return_metadata else loaded


def _load_npy(source: Source) -> tuple[Buffer, dict]:
    return _read_npy(source), {}


def _read_npy(source: Source) -> Buffer:
    """The array of a `.npy` file; read now where it is big-endian or in Fortran's order."""
    head = io.BytesIO(source.read(0, min(source.size, _NPY_HEADER)))
    try:
        version = np.lib.format.read_magic(head)
        if version not in ((1, 0), (2, 0)):
            raise FormatError(f"[load] Unsupported npy format version {version} in file {source.name}")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, found = read(head)
    except FormatError:
        raise
    except Exception as error:  # NumPy's reader of untrusted text raises many types
        raise FormatError(f"[load] Invalid header in file {source.name}: {error}") from error
    try:
        dtype = dtypes.bfloat16 if found == _NPY_BFLOAT16 else dtypes.from_numpy(found.newbyteorder("="))
    except ValueError:
        raise FormatError(f"[load] Unsupported dtype {found} in file {source.name}") from None
    offset = head.tell()
    if not fortran or sum(n != 1 for n in shape) <= 1:
        if found.isnative or found == _NPY_BFLOAT16:
            return FileBuffer(source, offset, shape, dtype)
        data = FileBuffer(source, offset, shape, dtype).numpy()
    else:
        data = FileBuffer(source, offset, shape[::-1], dtype).numpy().T
    return Buffer.from_numpy(np.array(data if found.isnative else data.byteswap(), order="C"))


def _load_npz(source: Source) -> tuple[dict[str, Buffer], dict]:
    """The members of a zip archive, each a `.npy` file; their checksums are verified."""
    try:
        with _zipfile().ZipFile(io.BytesIO(source.read(0, source.size))) as archive:
            return {_member_name(m): _read_npy(_member(archive, m)) for m in archive.infolist()}, {}
    except FormatError:
        raise
    except Exception as error:  # zipfile and zlib raise many types
        raise FormatError(f"[load_npz] {source.name} is no readable zip file: {error}") from error


def _member_name(member: Any) -> str:
    return member.filename.removesuffix(".npy")


def _member(archive: Any, member: Any) -> Source:
    if member.file_size > _DEFLATE_LIMIT * (member.compress_size + 1):
        raise FormatError(f"[load_npz] {member.filename} claims more bytes than its compressed data can hold")
    return Source(io.BytesIO(archive.read(member)), member.filename)


def _load_safetensors(source: Source) -> tuple[dict[str, Buffer], dict[str, str]]:
    (length,) = struct.unpack("<Q", source.read(0, 8))
    if length > _MAX_JSON:
        raise FormatError(f"[load_safetensors] Invalid json header length in file {source.name}")
    if 8 + length > source.size:
        raise FormatError(
            f"[load_safetensors] The JSON header is {length} bytes long but the file is only {source.size} bytes."
            " Perhaps an incomplete download or corrupt file?"
        )
    try:
        header = json.loads(bytes(source.read(8, length)))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"[load_safetensors] Invalid json metadata in file {source.name}: {error}") from error
    if not isinstance(header, dict):
        raise FormatError(f"[load_safetensors] Invalid json metadata in file {source.name}")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatError(f"[load_safetensors] The metadata of {source.name} must be strings")
    return {name: _tensor(source, 8 + length, name, entry) for name, entry in header.items()}, metadata


def _tensor(source: Source, base: int, name: str, entry: Any) -> FileBuffer:
    """One tensor of a safetensors file; every claim of its entry is checked."""
    try:
        dtype: Dtype = _FROM_SAFETENSORS[entry["dtype"]]
        shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"[load_safetensors] Tensor '{name}' has no supported dtype, shape and offsets") from error
    if not all(type(n) is int for n in (*shape, begin, end)):
        raise FormatError(f"[load_safetensors] Tensor '{name}' has a shape or offsets that are no integers")
    if not 0 <= begin <= end <= source.size - base:
        raise FormatError(
            f"[load_safetensors] Tensor '{name}' invalid data offsets ({begin}, {end}) exceeding the size of the file."
            " Perhaps an incomplete download or corrupt file?"
        )
    needed = prod(check_shape(shape)) * dtype.size
    if end - begin != needed:
        raise FormatError(
            f"[load_safetensors] Tensor '{name}' invalid data offsets ({begin}, {end}). Expecting {needed} bytes."
        )
    return FileBuffer(source, base + begin, shape, dtype)


def _load_gguf(source: Source) -> tuple[dict[str, Buffer], dict[str, Any]]:
    tensors, metadata = gguf.read(source)
    return tensors, {k: wrap(constant(v)) if isinstance(v, np.ndarray) else v for k, v in metadata.items()}


_READERS: dict[str, tuple[Callable[[Source], tuple[Any, dict]], bool]] = {
    "npy": (_load_npy, False),
    "npz": (_load_npz, False),
    "safetensors": (_load_safetensors, True),
    "gguf": (_load_gguf, True),
}
