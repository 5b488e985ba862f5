"""Gives back the pages of large libraries that lie idle in memory.

Loading LLVM and MLIR runs their relocations and the constructors of every file in them, and a fault maps 64 KB at
once: 72 MB are resident before anything is compiled, another 70 MB afterwards. Nothing has written to these pages, so
letting go of them costs no more than mapping them again, out of the page cache, when they are needed again.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Sequence
from typing import Any

_LOAD, _WRITABLE = 1, 2  # PT_LOAD, PF_W


class _Header(ctypes.Structure):
    """Elf64_Phdr."""

    _fields_ = [("type", ctypes.c_uint32), ("flags", ctypes.c_uint32)] + [
        (name, ctypes.c_uint64) for name in ("offset", "address", "physical", "in_file", "in_memory", "alignment")
    ]


class _Library(ctypes.Structure):
    """The part of dl_phdr_info that every version has."""

    _fields_ = [
        ("base", ctypes.c_uint64), ("name", ctypes.c_char_p), ("headers", ctypes.POINTER(_Header)),
        ("count", ctypes.c_uint16),
    ]  # fmt: skip


_VISIT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Library), ctypes.c_size_t, ctypes.c_void_p)


def _read_only(names: Sequence[bytes]) -> list[tuple[int, int]]:
    """(address, length) of the segments of loaded libraries that cannot have been written to: code and constants."""
    found: list[tuple[int, int]] = []

    def visit(library: Any, size: int, data: Any) -> int:
        info = library.contents
        if info.name.rpartition(b"/")[2].startswith(tuple(names)):
            for header in info.headers[: info.count]:
                if header.type == _LOAD and not header.flags & _WRITABLE:
                    start = (info.base + header.address) // mmap.PAGESIZE * mmap.PAGESIZE
                    found.append((start, info.base + header.address + header.in_memory - start))
        return 0

    ctypes.CDLL(None).dl_iterate_phdr(_VISIT(visit), None)
    return found


def release(names: Sequence[bytes] = (b"libllvmlite", b"libTorchMLIR", b"libMLIR")) -> None:
    """Take the code and constants of these libraries out of this process's memory until they are used again (Linux)."""
    if not sys.platform.startswith("linux") or ctypes.sizeof(ctypes.c_void_p) != 8:
        return
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for address, length in _read_only(names):
        advise(address, length, mmap.MADV_DONTNEED)
