"""Memory of arrays: buffers, the pool that keeps freed blocks, and the memory counters.

glibc gives large blocks back to the kernel, which costs about 1 us per 4 KB page when they are touched again (DESIGN
section 5), so freed
output blocks go to a pool. A buffer is row-contiguous, aligned to 64 bytes, and owns its block or keeps alive what
does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from .dtypes import Dtype, from_numpy
from .knobs import Knobs, knobs
from .references import references

ALIGNMENT = 64
SMALL, SHARED = 256, 4096  # bytes: results of a program that share a block, and the largest such block

Block = tuple[int, np.ndarray]
"""(aligned address, the NumPy array that owns the memory)."""


def _heap(size: int) -> Block:
    """Fresh memory of NumPy's."""
    raw = np.empty(size + ALIGNMENT, np.uint8)
    address = raw.__array_interface__["data"][0]
    return -(-address // ALIGNMENT) * ALIGNMENT, raw


class Pool:
    """Free blocks by size class (powers of two with three steps between); `source` makes new ones.

    Taking and giving back a pooled block is one list operation, atomic under the GIL; only fresh memory takes the lock.
    Each size class keeps
    at most an eighth of `knobs.pool_bytes`.
    """

    def __init__(self, source: Callable[[int], Block] = _heap) -> None:
        self.source = source
        self.free: dict[int, list[Block]] = {}
        # Reentrant: a collection inside the lock may release buffers, whose destructors take it again.
        self.lock = threading.RLock()
        self.allocated = self.peak = 0
        self.foreign = 0
        self.holders: dict[int, int] = {}  # id of an array of NumPy's -> how many buffers hold (views of) it

    @staticmethod
    def size_class(nbytes: int) -> int:
        if nbytes <= 256:
            return 256
        step = 1 << ((nbytes - 1).bit_length() - 3)
        return -(-nbytes // step) * step

    def take(self, size: int) -> Block:
        """A block of a size class."""
        try:
            return self.free[size].pop()
        except (KeyError, IndexError):
            return self._fresh(size)

    def _fresh(self, size: int) -> Block:
        with self.lock:
            self.free.setdefault(size, [])
            self.allocated += size
            self.peak = max(self.peak, self.active + self.foreign)
        return self.source(size)

    def give(self, size: int, block: Block) -> None:
        blocks = self.free.get(size)
        if blocks is not None and len(blocks) * size <= knobs.pool_bytes >> 3:
            blocks.append(block)
            return
        with self.lock:
            self.allocated -= size

    @property
    def cached(self) -> int:
        """Bytes of free blocks that are kept."""
        return sum(size * len(blocks) for size, blocks in list(self.free.items()))

    @property
    def active(self) -> int:
        """Bytes of blocks in use."""
        return self.allocated - self.cached

    def hold(self, root: np.ndarray) -> None:
        """Count memory of NumPy's that a buffer took over, once for all buffers over it."""
        with self.lock:
            holders = self.holders.get(id(root), 0)
            self.holders[id(root)] = holders + 1
            if not holders:
                self.foreign += root.nbytes
                self.peak = max(self.peak, self.active + self.foreign)

    def release(self, root: np.ndarray) -> None:
        """Undo one `hold`."""
        with self.lock:
            self.holders[id(root)] -= 1
            if not self.holders[id(root)]:
                del self.holders[id(root)]
                self.foreign -= root.nbytes

    def clear(self) -> None:
        """Give all free blocks back to the system."""
        with self.lock:
            for size, blocks in self.free.items():
                count = len(blocks)
                del blocks[:count]
                self.allocated -= size * count


pool = Pool()
pools = [pool]
"""All pools of this process; that of the memory shared with a GPU joins when it is first needed."""


class _Holder:
    """Owns a pooled block, which returns when the last buffer or NumPy view over it goes."""

    __slots__ = ("__weakref__", "block", "pool", "size")

    def __init__(self, size: int, source: Pool):
        self.size, self.pool = size, source
        try:  # `take` and `give`, without their frames: one of these is made for most results
            self.block = source.free[size].pop()
        except (KeyError, IndexError):
            self.block = source._fresh(size)

    def __del__(self, settings: Knobs = knobs) -> None:  # it outlives the module's names
        size = self.size
        blocks = self.pool.free[size]
        if len(blocks) * size <= settings.pool_bytes >> 3:
            blocks.append(self.block)
        else:
            self.pool.give(size, self.block)


class _Window:
    """What a NumPy view of a buffer holds: the bytes, and the block that they lie in."""

    __slots__ = ("__array_interface__", "owner")

    def __init__(self, owner: Any, address: int, nbytes: int):
        self.owner = owner
        self.__array_interface__ = {"version": 3, "shape": (nbytes,), "typestr": "|u1", "data": (address, False)}


class _Foreign:
    """Holds memory that NumPy allocated, and counts it."""

    __slots__ = ("root",)

    def __init__(self, root: np.ndarray):
        self.root = root
        pool.hold(root)

    def __del__(self, release: Callable[[np.ndarray], None] = pool.release) -> None:  # outlives the module's names
        release(self.root)


def _owner(view: np.ndarray) -> Any:
    """What keeps the memory of an array alive: counted where it is NumPy's own, and not a pooled block."""
    root = view
    while isinstance(root.base, np.ndarray):
        root = root.base
    return _Foreign(root) if root.base is None else view


class Buffer:
    """Data of one concrete array: address, shape, dtype. `numpy()` is a view that keeps the memory alive."""

    __slots__ = ("address", "dtype", "owner", "shape", "_view")

    def __init__(self, address: int, shape: tuple[int, ...], dtype: Dtype, owner: Any):
        self.address, self.shape, self.dtype, self.owner = address, shape, dtype, owner
        self._view: np.ndarray | None = None

    @staticmethod
    def empty(shape: tuple[int, ...], dtype: Dtype, size: int | None = None, source: Pool = pool) -> Buffer:
        """An uninitialised pooled buffer; `size` is its size class, if the caller knows it."""
        holder = _Holder(Pool.size_class(prod(shape) * dtype.size) if size is None else size, source)
        return Buffer(holder.block[0], shape, dtype, holder)

    @staticmethod
    def from_numpy(data: np.ndarray) -> Buffer:
        """Takes over `data` (copied only if it is not row-contiguous)."""
        view = data if data.flags.c_contiguous else np.ascontiguousarray(data)
        buffer = Buffer(0, view.shape, from_numpy(view.dtype), _owner(view))
        buffer._view = view
        return buffer

    @property
    def pointer(self) -> int:
        """Address of the first element."""
        if not self.address:
            self.address = self.numpy().__array_interface__["data"][0]
        return self.address

    def become(self, other: Buffer) -> None:
        """Take over the memory of another buffer, which holds the same data."""
        self._view, self.owner, self.address = other.numpy(), other.owner, other.pointer

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.size

    def numpy(self) -> np.ndarray:
        """The data as a NumPy array of `shape`, without a copy."""
        if self._view is None:
            window: Any = _Window(self.owner, self.address, self.nbytes)
            self._view = np.asarray(window).view(self.dtype.numpy).reshape(self.shape)
        return self._view


    def is_unseen(self, owners: int = 1) -> bool:
        """Whether the memory is this buffer's alone: nothing but it refers to what owns the memory, so many times, and
        to the view of NumPy's.
        """
        view, owner = self._view is not None, self.owner
        if isinstance(owner, _Foreign):
            if not view or not owner.root.flags.writeable or references(self.owner) != owners + 1:
                return False
            if self._view is owner.root:
                return references(self._view) == 2
            return references(self._view) == 1 and references(owner.root) == 2
        if view and references(self._view) != 1:
            return False
        self._view = None  # it refers to the owner, and is made again when asked for
        return hasattr(owner, "block") and references(self.owner) == owners + 1


class Spare(Buffer):
    """A buffer whose data nobody needs but the program that it is an argument of: a result may take its memory."""

    __slots__ = ()

    @staticmethod
    def of(buffer: Buffer) -> Spare:
        """The memory of a buffer."""
        spare = Spare(buffer.address, buffer.shape, buffer.dtype, buffer.owner)
        spare._view = buffer._view
        return spare

    def taken(self) -> Buffer:
        """The buffer of the result."""
        buffer = Buffer(self.address, self.shape, self.dtype, self.owner)
        buffer._view = self._view
        return buffer


Group = tuple[int, list[tuple[int, int, tuple[int, ...], Dtype]]]
"""The size class of a block and the arrays in it: (place among all, offset, shape, dtype) each."""


def groups(specs: Sequence[tuple[tuple[int, ...], Dtype]]) -> list[Group]:
    """How arrays of these shapes and dtypes, the results of a program, lie in blocks.

    Arrays of at most `SMALL` bytes share blocks of at most `SHARED` bytes, so that fifty biases cost one block. Scalars
    do not: a loss that a program keeps for its log would keep the block.
    """
    found: list[Group] = []
    open_group, used = None, 0
    for place, (shape, dtype) in enumerate(specs):
        nbytes = prod(shape) * dtype.size
        if nbytes > SMALL or not shape:
            found.append((Pool.size_class(nbytes), [(place, 0, shape, dtype)]))
            continue
        room = max(-(-nbytes // ALIGNMENT), 1) * ALIGNMENT
        if open_group is None or used + room > SHARED:
            open_group, used = len(found), 0
            found.append((0, []))
        members = found[open_group][1]
        members.append((place, used, shape, dtype))
        used += room
        found[open_group] = Pool.size_class(used), members
    return found


def allocator(specs: Sequence[tuple[tuple[int, ...], Dtype]]) -> Callable[[], list[Buffer]]:
    """What makes uninitialised buffers of these shapes and dtypes, in `groups`; at each call new ones."""
    blocks = groups(specs)
    allocate, count = object.__new__, len(specs)
    if count == 1:
        ((size, ((_, _, shape, dtype),)),) = blocks

        def make_one() -> list[Buffer]:
            holder = _Holder(size, pool)
            buffer: Buffer = allocate(Buffer)
            buffer.address, buffer.owner, buffer._view = holder.block[0], holder, None
            buffer.shape, buffer.dtype = shape, dtype
            return [buffer]

        return make_one

    def make() -> list[Buffer]:
        made: list[Any] = [None] * count
        for size, members in blocks:
            holder = _Holder(size, pool)
            start = holder.block[0]
            for place, offset, shape, dtype in members:
                made[place] = buffer = allocate(Buffer)
                buffer.address, buffer.shape, buffer.dtype = start + offset, shape, dtype
                buffer.owner, buffer._view = holder, None
        return made

    return make
