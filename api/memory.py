"""Memory counters and limits of the buffer pool (`runtime.buffers`)."""

from __future__ import annotations

import os
from typing import Any

from mlxir.runtime.buffers import pool
from mlxir.runtime.knobs import knobs

from .ndarray import array

__all__ = [
    "clear_cache", "get_active_memory", "get_array_buffer_size", "get_cache_memory", "get_memory_limit",
    "get_peak_memory", "reset_peak_memory", "set_cache_limit", "set_memory_limit", "set_wired_limit",
]  # fmt: skip


def _physical() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


_limits = {"memory": int(0.8 * _physical()), "wired": 0}


def get_active_memory() -> int:
    """Bytes in pooled blocks that live arrays hold."""
    return pool.active


def get_peak_memory() -> int:
    """The largest value of `get_active_memory` since the start or `reset_peak_memory`."""
    return max(pool.peak, pool.active)


def reset_peak_memory() -> None:
    """Start the peak anew from what is in use."""
    pool.peak = pool.active


def get_cache_memory() -> int:
    """Bytes in free blocks that are kept for reuse."""
    return pool.cached


def set_cache_limit(limit: int) -> int:
    """Bound the bytes kept for reuse; returns the previous bound."""
    before, knobs.pool_bytes = knobs.pool_bytes, limit
    if pool.cached > limit:
        pool.clear()
    return before


def clear_cache() -> None:
    """Give the free blocks back to the system."""
    pool.clear()


def get_memory_limit() -> int:
    """The guideline set by `set_memory_limit`; 80 % of the physical memory at first."""
    return _limits["memory"]


def set_memory_limit(limit: int) -> int:
    """Set the guideline for memory; returns the previous one. As in MLX it is not enforced."""
    before, _limits["memory"] = _limits["memory"], limit
    return before


def set_wired_limit(limit: int) -> int:
    """Accepted for programs written for Metal; CPU memory is not wired. Returns the previous value."""
    before, _limits["wired"] = _limits["wired"], limit
    return before


def get_array_buffer_size(*args: Any) -> int:
    """Bytes of the distinct buffers behind arrays that are evaluated."""
    found = {id(b): b.nbytes for a in args if isinstance(a, array) and (b := a._value.buffer) is not None}
    return sum(found.values())
