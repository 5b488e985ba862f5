"""`mlxir.metal`: arrays are evaluated on the CPU, so Metal is never available to a running program."""

from __future__ import annotations

from .devices import device_info
from .memory import (
    clear_cache,
    get_active_memory,
    get_cache_memory,
    get_peak_memory,
    reset_peak_memory,
    set_cache_limit,
    set_memory_limit,
    set_wired_limit,
)

__all__ = [
    "clear_cache", "device_info", "get_active_memory", "get_cache_memory", "get_peak_memory", "is_available",
    "reset_peak_memory", "set_cache_limit", "set_memory_limit", "set_wired_limit",
]  # fmt: skip


def is_available() -> bool:
    """Whether arrays can be evaluated by Metal."""
    return False
