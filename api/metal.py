"""`mlxir.metal`: whether there is a Metal device, and shaders that were compiled ahead of time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mlxir.compiler.evaluate import evaluate
from mlxir.compiler.graph import constant
from mlxir.runtime import devices

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
from .ndarray import array, wrap

__all__ = [
    "clear_cache", "device_info", "get_active_memory", "get_cache_memory", "get_peak_memory", "is_available",
    "load", "reset_peak_memory", "set_cache_limit", "set_memory_limit", "set_wired_limit", "start_capture",
    "stop_capture",
]  # fmt: skip


def is_available() -> bool:
    """Whether arrays can be evaluated by Metal: on a Mac whose GPU shares the memory, or in emulation, where
    MLXIR_DEVICE=metal-emulated asks for it (`device_info` then names an emulated device).
    """
    return devices.gpu() is not None


def device_info() -> dict[str, str | int]:
    """Properties of the Metal device; none where there is no such device."""
    found = devices.gpu()
    return found.info() if found is not None else {}


def start_capture(path: str) -> None:
    """Raises RuntimeError: mlxir captures no GPU traces."""
    raise RuntimeError("[start_capture] No GPU traces here: `mlxir dump --target metal` shows what runs on Metal.")


def stop_capture() -> None:
    """Raises RuntimeError: nothing is captured, see `start_capture`."""
    raise RuntimeError("[stop_capture] Nothing is captured.")


def load(directory: str | Path) -> Callable[..., list[array]]:
    """The program in a folder that `mlxir dump --target metal` wrote, as a function of its parameters.

    It needs the files alone: nothing is traced, and no compiler but Metal's own runs. With MLXIR_DEVICE=metal-emulated
    it runs in emulation. Raises RuntimeError where there is no Metal device or it refuses the shaders, OSError for
    missing files; the function raises ValueError for arguments of another number, shape or dtype.
    """
    device = devices.gpu()
    if device is None:
        raise RuntimeError("[metal.load] No Metal device: MLXIR_DEVICE=metal-emulated runs the folder in emulation.")
    from mlxir.compiler.cache import library_step  # lazy: it loads llvmlite, 50 ms
    from mlxir.runtime.metal import folder  # lazy: few programs load one

    program = folder.load(directory, device, library_step)
    wanted = [(tuple(p["shape"]), p["dtype"]) for p in program.schedule["parameters"]]

    def run(*arguments: array) -> list[array]:
        given = [(a.shape, a.dtype.name) for a in arguments]
        if given != wanted:
            raise ValueError(f"[metal.load] {Path(directory).name} takes {wanted}, given are {given}")
        values = [a._value for a in arguments]
        evaluate(values)
        return [wrap(constant(b)) for b in program.run([v.buffer for v in values if v.buffer is not None])]

    return run
