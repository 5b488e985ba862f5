"""Every environment variable that mlxir reads, typed, in one place.

The debug ladder `MLXIR_DEBUG`: 1 compilations with their time, 2 and kernels with their shapes, 3 and the `mx` module
of each
stage, 4 and the loops, 5 and LLVM IR, 6 and assembly; all printed to stderr.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


def _int(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    try:
        return int(text) if text else default
    except ValueError:
        raise ValueError(f"{name}={text!r} is not an integer") from None


def _choice(name: str, default: str, allowed: tuple[str, ...]) -> str:
    text = os.environ.get(name, "") or default
    if text not in allowed:
        raise ValueError(f"{name}={text!r}: use one of {', '.join(allowed)}")
    return text


def _cache_dir() -> Path | None:
    text = os.environ.get("MLXIR_CACHE_DIR")
    if text is not None:
        return Path(text).absolute() if text else None
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # to be ignored, as the XDG specification has it
        base = os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "mlxir" if os.path.isabs(base) else None  # `~` stays where there is no home


def _tier() -> str:
    return "compiled" if os.environ.get("MLXIR_DEVICE") == "metal-emulated" else "auto"


@dataclass(slots=True)
class Knobs:
    """The settings of this process; assign to a field to change it while running."""

    debug: int = field(default_factory=lambda: _int("MLXIR_DEBUG", 0))
    """MLXIR_DEBUG: rung of the debug ladder, 0 to 6."""
    dump: str = field(default_factory=lambda: os.environ.get("MLXIR_DUMP", ""))
    """MLXIR_DUMP: folder that receives one sub-folder of numbered stage files per compilation."""
    verify: bool = field(default_factory=lambda: bool(_int("MLXIR_VERIFY", 0)))
    """MLXIR_VERIFY: 1 verifies the IR between all passes (the tests do)."""
    tier: str = field(default_factory=lambda: _choice("MLXIR_TIER", _tier(), ("auto", "reference", "compiled")))
    """MLXIR_TIER: how uncompiled code runs; `reference` (NumPy, op by op), `compiled`, or `auto` (by counts).

    The default is `auto`; `compiled` with MLXIR_DEVICE=metal-emulated, which is there to see shaders run."""
    device: str = field(default_factory=lambda: _choice("MLXIR_DEVICE", "auto", ("auto", "cpu", "metal-emulated")))
    """MLXIR_DEVICE: `auto` (the GPU where Metal is there, else the CPU), `cpu` (Metal is not looked for), or
    `metal-emulated`: shaders are compiled by clang and executed by an emulator, on x86-64 Linux."""
    tier_up: int = field(default_factory=lambda: _int("MLXIR_TIER_UP", 6))
    """MLXIR_TIER_UP: in `auto`, the evaluation of an equal graph at which it is compiled."""
    threads: int = field(default_factory=lambda: _int("MLXIR_THREADS", 0))
    """MLXIR_THREADS: threads of a parallel kernel; 0 means one per available core."""
    cache_dir: Path | None = field(default_factory=_cache_dir)
    """MLXIR_CACHE_DIR: folder of the disk cache; set but empty turns the disk cache off."""
    cache_bytes: int = field(default_factory=lambda: _int("MLXIR_CACHE_BYTES", 1 << 30))
    """MLXIR_CACHE_BYTES: about what the disk cache may hold; the least recently used entries go; 0 means no bound."""
    cache_entries: int = field(default_factory=lambda: _int("MLXIR_CACHE_ENTRIES", 1024))
    """MLXIR_CACHE_ENTRIES: bound of the least-recently-used cache of executables in memory."""
    pool_bytes: int = field(default_factory=lambda: _int("MLXIR_POOL_BYTES", 1 << 30))
    """MLXIR_POOL_BYTES: bytes of free output buffers that are kept for reuse."""
    stream_bytes: int = field(default_factory=lambda: _int("MLXIR_STREAM_BYTES", 0))
    """MLXIR_STREAM_BYTES: a kernel that touches so many bytes writes its results past the caches; 0 means twice the
    last level of cache."""
    explain: bool = field(default_factory=lambda: bool(_int("MLXIR_EXPLAIN", 0)))
    """MLXIR_EXPLAIN: 1 prints, whenever a compiled function is traced again, what its signature differs in."""
    native: bool = field(default_factory=lambda: bool(_int("MLXIR_NATIVE", 1)))
    """MLXIR_NATIVE: 0 keeps what a call costs in Python: compiled calls and eager operations use no native code."""
    disable_compile: bool = field(default_factory=lambda: "MLX_DISABLE_COMPILE" in os.environ)
    """MLX_DISABLE_COMPILE (as in MLX; any value): `mx.compile` calls the function directly."""


knobs = Knobs()
