"""`mlxir.metal`: arrays are evaluated on the CPU, so Metal is never available to a running program."""

from __future__ import annotations

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
    "reset_peak_memory", "set_cache_limit", "set_memory_limit", "set_wired_limit", "start_capture", "stop_capture",
]  # fmt: skip


def is_available() -> bool:
    """Whether arrays can be evaluated by Metal."""
    return False


def device_info() -> dict[str, str | int]:
    """Properties of the Metal device: none, because there is no such device."""
    return {}


def start_capture(path: str) -> None:
    """Raises RuntimeError: there is no Metal device whose work could be captured."""
    raise RuntimeError("[start_capture] No Metal device: `mlxir dump --target metal` shows what would run on one.")


def stop_capture() -> None:
    """Raises RuntimeError: nothing is captured, see `start_capture`."""
    raise RuntimeError("[stop_capture] No Metal device: nothing is captured.")
