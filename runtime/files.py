"""Array data in files: one that is read when it is needed, with every offset checked against the file's real size.

Data is read (`os.preadv`), not mapped: a file that is truncated after it was opened raises an error, where touching
its mapping would kill the process.
"""

from __future__ import annotations

import os
import threading
from math import prod
from typing import BinaryIO

import numpy as np

from .buffers import Buffer
from .dtypes import Dtype, bool_
from .errors import FormatError

_CHUNK = 1 << 30  # one call reads at most 2 GiB


class Source:
    """The bytes of a file. A path is opened and read on demand; a file object is read now, from where it stands.

    Raises OSError where the path cannot be opened.
    """

    def __init__(self, file: str | os.PathLike | BinaryIO, name: str):
        self.name = name
        self._data: memoryview | None = None
        self._file: BinaryIO | None = None
        if hasattr(file, "read"):
            self._data = memoryview(file.read())
            self.size = self._data.nbytes
        else:
            self._file = open(file, "rb", buffering=0)  # noqa: SIM115 -- open as long as an array is unread
            self.size = os.fstat(self._file.fileno()).st_size

    def read(self, offset: int, nbytes: int) -> memoryview:
        """Bytes at a place. Raises FormatError where the file does not have them."""
        self.check(offset, nbytes)
        if self._data is not None:
            return self._data[offset : offset + nbytes]
        out = memoryview(bytearray(nbytes))
        self.read_into(out, offset)
        return out

    def check(self, offset: int, nbytes: int) -> None:
        """Raises FormatError unless these bytes lie in the file."""
        if min(offset, nbytes) < 0 or offset + nbytes > self.size:
            raise FormatError(
                f"[read] Unable to read {nbytes} bytes at {offset} of {self.name}, which has {self.size} bytes."
                " Perhaps an incomplete download or corrupt file?"
            )

    def read_into(self, out: memoryview, offset: int) -> None:
        """Fill `out` from a place in the file. Raises FormatError where the file ends before."""
        if self._data is not None:
            out[:] = self._data[offset : offset + out.nbytes]
            return
        assert self._file is not None
        done = 0
        while done < out.nbytes:
            count = os.preadv(self._file.fileno(), [out[done : done + _CHUNK]], offset + done)
            if not count:
                raise FormatError(f"[read] Unable to read {out.nbytes} bytes from {self.name}: it was truncated.")
            done += count


def check_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that a file claims. Raises FormatError where no array can have it."""
    if len(shape) > 64 or min(shape, default=0) < 0 or prod([n for n in shape if n]) >= 1 << 59:
        raise FormatError(f"[read] no array has the shape {shape}: the file is corrupt.")
    return shape


class FileBuffer(Buffer):
    """Data of an array that lies in a file, row-contiguous and little-endian; read at the first use.

    Raises FormatError at once where the file is too short for it.
    """

    __slots__ = ("_lock", "_offset", "_source")

    def __init__(self, source: Source, offset: int, shape: tuple[int, ...], dtype: Dtype):
        super().__init__(0, check_shape(shape), dtype, None)
        source.check(offset, prod(shape) * dtype.size)
        self._source: Source | None = source
        self._offset, self._lock = offset, threading.Lock()

    def numpy(self) -> np.ndarray:
        """The data as a NumPy array of `shape`."""
        with self._lock:
            if self._source is not None:
                self._view = self._read(self._source)
                self._source = None
        return self._view  # type: ignore[return-value]

    def _read(self, source: Source) -> np.ndarray:
        buffer = Buffer.empty(self.shape, self.dtype)
        data = buffer.numpy()
        raw = data.reshape(-1).view(np.uint8)
        if raw.size:
            source.read_into(memoryview(raw), self._offset)  # type: ignore[arg-type]
        if self.dtype is bool_:
            # Kernels rely on 0 and 1; a file may hold anything.
            np.not_equal(raw, 0, out=data.reshape(-1))
        return data
