"""Memory of arrays: buffers, the pool that keeps freed blocks, and the memory counters.

glibc gives large blocks back to the kernel, which costs about 1 us per 4 KB page when they are touched again (DESIGN section 5), so freed
output blocks go to a pool. A buffer is row-contiguous, aligned to 64 bytes, and owns its block or keeps alive what does.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from .dtypes import Dtype, from_numpy
from .knobs import knobs

ALIGNMENT = 64


class _Pool:
    """Free blocks by size class (powers of two with three steps between), bounded by `knobs.pool_bytes`."""

    def __init__(self) -> None:
        self.free: dict[int, list[tuple[int, np.ndarray]]] = {}
        self.lock = threading.Lock()
        self.cached = self.active = self.peak = 0

    @staticmethod
    def size_class(nbytes: int) -> int:
        if nbytes <= 256:
            return 256
        step = 1 << ((nbytes - 1).bit_length() - 3)
        return -(-nbytes // step) * step

    def take(self, nbytes: int) -> tuple[int, np.ndarray, int]:
        """(address, owner, size of the block) of a block of at least `nbytes`."""
        size = self.size_class(nbytes)
        with self.lock:
            self.active += size
            self.peak = max(self.peak, self.active)
            blocks = self.free.get(size)
            if blocks:
                self.cached -= size
                return (*blocks.pop(), size)
        raw = np.empty(size + ALIGNMENT, np.uint8)
        address = raw.__array_interface__["data"][0]
        return -(-address // ALIGNMENT) * ALIGNMENT, raw, size

    def give(self, address: int, owner: np.ndarray, size: int) -> None:
        with self.lock:
            self.active -= size
            if self.cached + size <= knobs.pool_bytes:
                self.cached += size
                self.free.setdefault(size, []).append((address, owner))

    def clear(self) -> None:
        with self.lock:
            self.free.clear()
            self.cached = 0


pool = _Pool()


class _Block:
    """A pooled block. NumPy views hold it through `__array_interface__`; when the last one goes, the block returns."""

    __slots__ = ("__array_interface__", "__weakref__", "address", "owner", "size")

    def __init__(self, nbytes: int):
        self.address, self.owner, self.size = pool.take(nbytes)

    def __del__(self) -> None:
        pool.give(self.address, self.owner, self.size)


class Buffer:
    """Data of one concrete array: address, shape, dtype. `numpy()` is a view that keeps the memory alive."""

    __slots__ = ("address", "dtype", "owner", "shape", "_view")

    def __init__(self, address: int, shape: tuple[int, ...], dtype: Dtype, owner: Any):
        self.address, self.shape, self.dtype, self.owner = address, shape, dtype, owner
        self._view: np.ndarray | None = None

    @staticmethod
    def empty(shape: tuple[int, ...], dtype: Dtype) -> Buffer:
        """An uninitialised pooled buffer."""
        count = 1
        for n in shape:
            count *= n
        block = _Block(count * dtype.size)
        return Buffer(block.address, shape, dtype, block)

    @staticmethod
    def from_numpy(data: np.ndarray) -> Buffer:
        """Takes over `data` (copied only if it is not row-contiguous)."""
        view = data if data.flags.c_contiguous else np.ascontiguousarray(data)
        buffer = Buffer(0, view.shape, from_numpy(view.dtype), view)
        buffer._view = view
        return buffer

    @property
    def pointer(self) -> int:
        """Address of the first element."""
        if not self.address:
            self.address = self.numpy().__array_interface__["data"][0]
        return self.address

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.size

    def numpy(self) -> np.ndarray:
        """The data as a NumPy array of `shape`, without a copy."""
        if self._view is None:
            block = self.owner
            nbytes = self.nbytes
            block.__array_interface__ = {"version": 3, "shape": (nbytes,), "typestr": "|u1", "data": (self.address, False)}
            self._view = np.asarray(block).view(self.dtype.numpy).reshape(self.shape)
        return self._view
