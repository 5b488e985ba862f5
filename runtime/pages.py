"""Gives back the pages of large libraries that lie idle in memory.

Loading LLVM and MLIR runs their relocations and the constructors of every file in them, and a fault maps 64 KB at
once: 72 MB are resident before anything is compiled, another 70 MB afterwards. Nothing has written to these pages, so
letting go of them costs no more than mapping them again, out of the page cache, when they are needed again.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import struct
import sys
from collections.abc import Sequence

_IDENTITY = b"\x7fELF\x02\x01"  # 64 bits, little-endian
_HEADER = struct.Struct("<16x16xQ14xHH6x")  # Elf64_Ehdr: where the program headers lie, the size of one, how many
_SEGMENT = struct.Struct("<IIQQQQQQ")  # Elf64_Phdr: type, flags, offset, address, physical, in file, memory, alignment
_LOAD, _WRITABLE = 1, 2  # PT_LOAD, PF_W


@functools.cache
def _segments(path: str) -> tuple[tuple[int, int], ...]:
    """(offset from where the library is loaded, length) of the segments of a file that are never written to."""
    with open(path, "rb") as file:
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size or not head.startswith(_IDENTITY):
            return ()
        start, size, count = _HEADER.unpack(head)
        file.seek(start)
        table = file.read(size * count)
    if size < _SEGMENT.size or len(table) < size * count:
        return ()
    headers = (_SEGMENT.unpack_from(table, n * size) for n in range(count))
    loads = [(address, in_memory, flags) for kind, flags, _, address, _, _, in_memory, _ in headers if kind == _LOAD]
    first = min((address for address, *_ in loads), default=0) // mmap.PAGESIZE * mmap.PAGESIZE
    found = []
    for address, in_memory, flags in loads:
        if not flags & _WRITABLE:
            at = address // mmap.PAGESIZE * mmap.PAGESIZE
            found.append((at - first, address + in_memory - at))
    return tuple(found)


def _read_only(names: Sequence[str]) -> list[tuple[int, int]]:
    """(address, length) of the segments of loaded libraries that cannot have been written to: code and constants.

    Not by dl_iterate_phdr: its callback would wait for Python's lock while it holds the loader's, for which another
    thread may wait with Python's, in an import.
    """
    found: list[tuple[int, int]] = []
    with open("/proc/self/maps") as maps:
        for line in maps:
            addresses, _, offset, _, _, *path = line.rstrip("\n").split(None, 5)
            if path and path[0].rpartition("/")[2].startswith(tuple(names)) and int(offset, 16) == 0:
                base = int(addresses.partition("-")[0], 16)
                found += [(base + at, length) for at, length in _segments(path[0])]
    return found


def release(names: Sequence[str] = ("libllvmlite", "libTorchMLIR", "libMLIR")) -> None:
    """Take the code and constants of these libraries out of this process's memory until they are used again (Linux).

    Where /proc or a library's file cannot be read, everything stays.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        idle = _read_only(names)
    except OSError:
        return
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for address, length in idle:
        advise(address, length, mmap.MADV_DONTNEED)
