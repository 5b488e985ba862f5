"""Which device evaluates: the CPU, or the one GPU that there may be. The choice is each thread's own."""

from __future__ import annotations

import functools
import platform
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from .knobs import knobs

if TYPE_CHECKING:
    from .metal.device import Device

T = TypeVar("T")


class _Current(threading.local):
    """Whether this thread evaluates on the GPU; undecided (None) until it is asked for."""

    gpu: bool | None = None


_current = _Current()


@functools.cache
def gpu() -> Device | None:
    """The Metal device, or None: on a Mac with unified memory, or emulated where `knobs.device` says so.

    It is looked for once. Raises RuntimeError where the emulator is asked for and cannot run.
    """
    if knobs.device == "cpu" or (knobs.device == "auto" and platform.system() != "Darwin"):
        return None
    from .metal.device import Device  # lazy: most processes have no GPU to talk to

    if knobs.device == "metal-emulated":
        return Device(_emulated())
    from .metal.objc import macos  # lazy: as above

    backend = macos()
    if backend is None or not backend.system_device():
        return None
    device = Device(backend)
    return device if device.unified else None


def _emulated() -> Any:
    from .emulator import unavailable_reason  # lazy: a tool for those who have no Mac
    from .emulator.device import EmulatedMetal  # lazy: as above

    if reason := unavailable_reason():
        raise RuntimeError(f"[metal] MLXIR_DEVICE=metal-emulated cannot be: {reason}")
    return EmulatedMetal()


def on_gpu() -> bool:
    """Whether this thread evaluates on the GPU. It does from the start where there is one, as in MLX."""
    if _current.gpu is None:
        _current.gpu = gpu() is not None
    return _current.gpu


def use_gpu(use: bool) -> None:
    """Choose the GPU, which must be there, or the CPU, for this thread."""
    _current.gpu = use


def kept(work: Callable[[], T]) -> Callable[[], T]:
    """`work`, to be done by another thread on the device of this one."""
    chosen = on_gpu()

    def done() -> T:
        before = on_gpu()
        use_gpu(chosen)
        try:
            return work()
        finally:
            use_gpu(before)

    return done
