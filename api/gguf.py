"""The GGUF file format (version 2 and 3): a header of typed metadata and tensor descriptions, then aligned data.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Dimensions are stored last axis first. Tensors
quantised as Q4_0, Q4_1 and Q8_0 become the affine form of `quantize` (packed weights, scales, biases); other block
formats are expanded to float16 by the `gguf` package, where it is installed.
"""

from __future__ import annotations

import importlib
import struct
from typing import Any

import numpy as np

from mlxir.runtime.buffers import Buffer
from mlxir.runtime.dtypes import Dtype, bfloat16, bool_, float16, float32, from_numpy, int8, int16, int32, uint8
from mlxir.runtime.errors import FormatError
from mlxir.runtime.files import FileBuffer, Source, check_shape

_MAGIC = b"GGUF"
_ALIGNMENT = 32
_MAX_COUNT = 1 << 24  # more tensors or entries than any model has

# Metadata types: number -> struct code of a scalar. 8 is a string and 9 an array of another type.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_SCALAR_TYPES = {np.dtype(code): number for number, code in _SCALARS.items()}

# Tensor types that are plain elements. As in MLX, bfloat16 (30) is converted to float16.
_PLAIN: dict[int, Dtype] = {0: float32, 1: float16, 24: int8, 25: int16, 26: int32, 30: bfloat16}
_WRITTEN = {dtype: number for number, dtype in _PLAIN.items() if dtype is not bfloat16}
# Block types with affine quantisation: number -> (bytes of a block of 32 weights, bytes before its weights).
_AFFINE = {2: (18, 2), 3: (20, 4), 8: (34, 2)}
_Q4_0, _Q4_1, _Q8_0 = 2, 3, 8
_BLOCK = 32


class _Cursor:
    """Reads the header front to back. Raises FormatError where the file ends before."""

    def __init__(self, source: Source):
        self.source, self.at = source, 0

    def take(self, nbytes: int) -> memoryview:
        data = self.source.read(self.at, nbytes)
        self.at += nbytes
        return data

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        raw = bytes(self.take(self.number("Q")))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise FormatError(f"[load_gguf] a string of {self.source.name} is no UTF-8") from None

    def value(self) -> Any:
        """A metadata value: a string, a list of strings, or NumPy data of rank 0 or 1."""
        kind = self.number("I")
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            inner, count = self.number("I"), self.number("Q")
            if inner == _STRING:
                self.source.check(self.at, 8 * count)  # each has at least its length
                return [self.text() for _ in range(count)]
            return self.numbers(inner, count)
        return self.numbers(kind, 1).reshape(())

    def numbers(self, kind: int, count: int) -> np.ndarray:
        if kind not in _SCALARS:
            raise FormatError(f"[load_gguf] {self.source.name} has metadata of an unknown type {kind}")
        dtype = np.dtype(_SCALARS[kind])
        raw = self.take(count * dtype.itemsize)
        if dtype == bool_.numpy:
            return np.frombuffer(raw, np.uint8) != 0
        return np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype)


def read(source: Source) -> tuple[dict[str, Buffer], dict[str, Any]]:
    """(tensors, metadata) of a file; plain tensors are read when they are used. Raises FormatError."""
    cursor = _Cursor(source)
    if cursor.take(4) != _MAGIC:
        raise FormatError(f"[load_gguf] {source.name} is no gguf file")
    version, tensor_count, entry_count = cursor.number("I"), cursor.number("Q"), cursor.number("Q")
    if version not in (2, 3) or tensor_count > _MAX_COUNT or entry_count > _MAX_COUNT:
        raise FormatError(f"[load_gguf] {source.name} has version {version}, {tensor_count} tensors: not readable")
    metadata = {}
    for _ in range(entry_count):
        key = cursor.text()
        metadata[key] = cursor.value()
    infos = [_info(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    alignment = int(alignment) if np.ndim(alignment) == 0 and not isinstance(alignment, str) else 0
    if alignment <= 0:
        raise FormatError(f"[load_gguf] {source.name} has an invalid alignment")
    base = cursor.at + -cursor.at % alignment
    tensors: dict[str, Buffer] = {}
    for name, shape, kind, offset in infos:
        tensors.update(_tensor(source, name, shape, kind, base + offset))
    return tensors, metadata


def _info(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """(name, shape, type, offset) of a tensor. A rank beyond 8 is taken for corruption."""
    name, rank = cursor.text(), cursor.number("I")
    if rank > 8:
        raise FormatError(f"[load_gguf] tensor {name} has {rank} dimensions: {cursor.source.name} is corrupt")
    shape = check_shape(tuple([cursor.number("Q") for _ in range(rank)][::-1]))
    return name, shape, cursor.number("I"), cursor.number("Q")


def _tensor(source: Source, name: str, shape: tuple[int, ...], kind: int, at: int) -> dict[str, Buffer]:
    if kind in _PLAIN:
        buffer: Buffer = FileBuffer(source, at, shape, _PLAIN[kind])
        return {name: buffer if kind != 30 else _half(buffer.numpy())}
    if kind in _AFFINE:
        return _affine(source, name, shape, kind, at)
    return {name: _half(_expanded(source, name, shape, kind, at))}


def _half(data: np.ndarray) -> Buffer:
    with np.errstate(over="ignore"):
        return Buffer.from_numpy(data.astype(np.float16))


def _blocks(source: Source, name: str, shape: tuple[int, ...], per_block: int, nbytes: int, at: int) -> np.ndarray:
    """The blocks of a quantised tensor, (rows..., blocks, bytes)."""
    if not shape or shape[-1] % per_block:
        raise FormatError(f"[load_gguf] tensor {name} has incompatible last dim shape: {shape}")
    stored = (*shape[:-1], shape[-1] // per_block, nbytes)
    return FileBuffer(source, at, stored, uint8).numpy()


def _affine(source: Source, name: str, shape: tuple[int, ...], kind: int, at: int) -> dict[str, Buffer]:
    """Packed weights, scales and biases: `weight = scale * q + bias`, groups of 32."""
    nbytes, skip = _AFFINE[kind]
    blocks = _blocks(source, name, shape, _BLOCK, nbytes, at)
    numbers = np.ascontiguousarray(blocks[..., :skip]).view("<f2")
    scales, q = numbers[..., 0], blocks[..., skip:]
    with np.errstate(over="ignore"):  # a damaged file may hold any scale
        biases = numbers[..., 1] if kind == _Q4_1 else scales * np.float16(-128 if kind == _Q8_0 else -8)
    if kind == _Q8_0:
        packed = q ^ np.uint8(0x80)
    else:
        # The file has weights j and j + 16 in one byte, the packed form neighbours.
        weights = np.concatenate([q & 0x0F, q >> 4], axis=-1)
        packed = weights[..., 0::2] | (weights[..., 1::2] << 4)
    words = np.ascontiguousarray(packed).view("<u4").reshape(*shape[:-1], packed.shape[-1] * packed.shape[-2] // 4)
    prefix = name.removesuffix(".weight")
    return {
        name: Buffer.from_numpy(words),
        f"{prefix}.scales": Buffer.from_numpy(np.ascontiguousarray(scales)),
        f"{prefix}.biases": Buffer.from_numpy(np.ascontiguousarray(biases)),
    }


def _expanded(source: Source, name: str, shape: tuple[int, ...], kind: int, at: int) -> np.ndarray:
    """The numbers of another block format, float32. Raises FormatError for unknown types or without `gguf`."""
    try:
        library = importlib.import_module("gguf")  # lazy: an optional package, for rare formats only
    except ImportError:
        raise FormatError(
            f"[load_gguf] tensor {name} has type {kind}, which needs the gguf package: pip install gguf"
        ) from None
    try:
        per_block, nbytes = library.GGML_QUANT_SIZES[library.GGMLQuantizationType(kind)]
        blocks = _blocks(source, name, shape, per_block, nbytes, at)
        rows = blocks.reshape(*shape[:-1], -1)
        return library.dequantize(rows, library.GGMLQuantizationType(kind))
    except (ValueError, KeyError, NotImplementedError) as error:
        raise FormatError(f"[load_gguf] tensor {name} has an unsupported type {kind}: {error}") from error


# -- writing ---------------------------------------------------------------------------------------------------------
def header(tensors: dict[str, np.ndarray], metadata: dict[str, Any]) -> tuple[bytes, list[int]]:
    """The bytes before the data, and the padding before each tensor. Raises RuntimeError for other dtypes."""
    out = [_MAGIC, struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        out += [_text(key), _value(value)]
    offset, padding = 0, []
    for name, data in tensors.items():
        dtype = from_numpy(data.dtype)
        if dtype not in _WRITTEN:
            raise RuntimeError(f"[save_gguf] dtype {dtype.name} is not supported")
        padding.append(-offset % _ALIGNMENT)
        offset += padding[-1]
        sizes = struct.pack(f"<{data.ndim}Q", *data.shape[::-1])
        out += [_text(name), struct.pack("<I", data.ndim), sizes, struct.pack("<IQ", _WRITTEN[dtype], offset)]
        offset += data.nbytes
    head = b"".join(out)
    if padding:
        padding[0] += -len(head) % _ALIGNMENT
    return head, padding


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    """A metadata value with its type. Raises TypeError and ValueError for what the format cannot hold."""
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_text, value))
    if not isinstance(value, np.ndarray):
        raise TypeError(f"[save_gguf] metadata must be an array, a str or a list of str, got {type(value).__name__}")
    if value.ndim > 1 or value.dtype not in _SCALAR_TYPES:
        raise ValueError(f"[save_gguf] metadata cannot be a {value.dtype} array of rank {value.ndim}")
    number, data = _SCALAR_TYPES[value.dtype], value.tobytes()
    head = struct.pack("<IIQ", _ARRAY, number, value.size) if value.ndim else struct.pack("<I", number)
    return head + data
