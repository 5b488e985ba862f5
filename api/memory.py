"""Memory counters and limits of the buffer pools (`runtime.buffers`, and the GPU's in `runtime.metal.memory`)."""

from __future__ import annotations

import operator
import os
from typing import Any

from mlxir.runtime.buffers import pools
from mlxir.runtime.knobs import knobs
from mlxir.runtime.trees import leaves

from .ndarray import array

__all__ = [
    "clear_cache", "get_active_memory", "get_array_buffer_size", "get_cache_memory", "get_memory_limit",
    "get_peak_memory", "reset_peak_memory", "set_cache_limit", "set_memory_limit", "set_wired_limit",
]  # fmt: skip


def _physical() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


_numbers = {"memory": int(0.8 * _physical()), "wired": 0, "reset": 0}


def _size(limit: int) -> int:
    """A number of bytes. Raises TypeError for anything else, as MLX does."""
    if operator.index(limit) < 0:
        raise TypeError(f"[memory] a limit is a number of bytes, not {limit!r}")
    return operator.index(limit)


def get_active_memory() -> int:
    """Bytes that live arrays hold: pooled blocks, and memory that NumPy allocated for uncompiled results."""
    return sum([pool.active + pool.foreign for pool in pools])


def get_peak_memory() -> int:
    """The most memory in use since the start or `reset_peak_memory`.

    Measured where memory is new, and now: of blocks lent again in another order, the most may have been more.
    """
    active, new = get_active_memory(), sum([pool.peak for pool in pools])
    return max(new, active) if new or active > _numbers["reset"] else 0


def reset_peak_memory() -> None:
    """Set the peak to 0, from where new memory raises it: free blocks are given back, so that they count again."""
    for pool in pools:
        pool.clear()
        pool.peak = 0
    _numbers["reset"] = get_active_memory()


def get_cache_memory() -> int:
    """Bytes in free blocks that are kept for reuse."""
    return sum([pool.cached for pool in pools])


def set_cache_limit(limit: int) -> int:
    """Bound the bytes kept for reuse; returns the previous bound."""
    before, knobs.pool_bytes = knobs.pool_bytes, _size(limit)
    if get_cache_memory() > knobs.pool_bytes:
        clear_cache()
    return before


def clear_cache() -> None:
    """Give the free blocks back to the system."""
    for pool in pools:
        pool.clear()


def get_memory_limit() -> int:
    """The guideline set by `set_memory_limit`; 80 % of the physical memory at first."""
    return _numbers["memory"]


def set_memory_limit(limit: int) -> int:
    """Set the guideline for memory; returns the previous one. As in MLX it is not enforced."""
    before, _numbers["memory"] = _numbers["memory"], _size(limit)
    return before


def set_wired_limit(limit: int) -> int:
    """Accepted for programs written for Metal; CPU memory is not wired. Returns the previous value."""
    before, _numbers["wired"] = _numbers["wired"], _size(limit)
    return before


def get_array_buffer_size(*args: Any) -> int:
    """Bytes of the distinct buffers behind the arrays of trees. Raises ValueError for arrays that are not evaluated."""
    buffers = [a._value.buffer for a in leaves(args) if isinstance(a, array)]
    if None in buffers:
        raise ValueError("[get_array_buffer_size] Arrays must be evaluated before querying buffer size.")
    return sum({id(b): b.nbytes for b in buffers if b is not None}.values())
