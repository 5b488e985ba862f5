"""Memory that the CPU and the GPU share: blocks in whole pages, which Metal uses without a copy.

Metal borrows memory by the page and region of a mapping (newBufferWithBytesNoCopy), so blocks are cut out of mappings:
large ones have a mapping of their own, small ones share one. `shared` is a pool like that of the CPU, whose blocks come
from here; a buffer of any other memory moves to a block of it the first time the GPU uses it.
"""

from __future__ import annotations

import mmap
import threading
import weakref
from bisect import bisect_right, insort
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..buffers import ALIGNMENT, Block, Buffer, Pool, pools
from ..stream import LateBuffer
from .abi import PAGE

SLAB = 1 << 20
_LARGE = SLAB // 8


class Region(NamedTuple):
    """A mapping: whole pages from `start` on."""

    start: int
    nbytes: int


class _Pages:
    """Where blocks come from, and which mapping an address lies in."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # reentrant: a collection inside may end a mapping
        self._regions: list[Region] = []
        self._slab: tuple[int, np.ndarray] | None = None  # (next free address, the mapping)
        self.ended: list[Callable[[Region], None]] = []  # called before a mapping goes

    def block(self, nbytes: int) -> Block:
        """Uninitialised memory at a multiple of 64."""
        with self._lock:
            if nbytes > _LARGE:
                region, root = self._map(nbytes)
                return region.start, root
            if self._slab is None or self._slab[0] + nbytes > _address(self._slab[1]) + SLAB:
                region, root = self._map(SLAB)
                self._slab = region.start, root
            address, root = self._slab
            self._slab = address + -(-nbytes // ALIGNMENT) * ALIGNMENT, root
            at = address - _address(root)
            return address, root[at : at + nbytes]  # a view: it keeps the mapping

    def region_of(self, address: int) -> Region | None:
        """The mapping that an address lies in."""
        with self._lock:
            at = bisect_right(self._regions, (address, 1 << 63)) - 1
            region = self._regions[at] if at >= 0 else None
        return region if region is not None and address < region.start + region.nbytes else None

    def _map(self, nbytes: int) -> tuple[Region, np.ndarray]:
        nbytes = -(-nbytes // PAGE) * PAGE
        room = nbytes + (PAGE if mmap.PAGESIZE < PAGE else 0)
        whole = np.frombuffer(mmap.mmap(-1, room), np.uint8)
        margin = -_address(whole) % PAGE
        region, root = Region(_address(whole) + margin, nbytes), whole[margin : margin + nbytes]
        # Blocks are views, and a view's base is `whole`: when that goes, nobody uses the mapping any more.
        weakref.finalize(whole, self._end, region).atexit = False
        insort(self._regions, region)
        return region, root

    def _end(self, region: Region) -> None:
        with self._lock:
            self._regions.remove(region)
        for told in self.ended:
            told(region)


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


pages = _Pages()
shared = Pool(pages.block)
pools.append(shared)
_moving = threading.Lock()


def result(shape: tuple[int, ...], dtype: Any) -> Buffer:
    """An uninitialised buffer that the GPU can use."""
    return Buffer.empty(shape, dtype, None, shared)


def share(buffer: Buffer) -> Buffer:
    """The buffer with its data where the GPU can use them; moved there if need be.

    No kernel of the CPU may be reading it on another thread meanwhile.
    """
    if isinstance(buffer, LateBuffer):
        buffer = buffer.ready()
    with _moving:
        if buffer.pointer % ALIGNMENT or pages.region_of(buffer.pointer) is None:
            target = result(buffer.shape, buffer.dtype)
            target.numpy()[...] = buffer.numpy()
            buffer.become(target)
    return buffer
