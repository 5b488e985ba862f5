"""The store of the disk cache: one checksummed file per entry, written atomically, readable by its owner only.

    "mlxir-2\\n"  sha256 of the rest (32 bytes)  length of the JSON part (8 bytes, little endian)  JSON  object code

A file that is damaged, foreign or of another version counts as absent (a damaged one is removed); nothing in it is
executed before its checksum holds. Neither `load` nor `save` raises for a cache that cannot be used: a full or
read-only disk means compiling again.

Keys are digests, so the 256 folders fill alike: each is kept below its share of `knobs.cache_bytes` by who writes to
it. The entries that were used least recently go first; the time of a file is that of a use, give or take an hour.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from pathlib import Path

from .knobs import knobs

MAGIC = b"mlxir-2\n"
FOLDERS = 256
HOUR = 3600  # seconds


def _path(key: str) -> Path | None:
    return knobs.cache_dir / key[:2] / f"{key}.mlxir" if knobs.cache_dir is not None else None


def load(key: str) -> tuple[str, bytes] | None:
    """(JSON, object code) of an entry, or None."""
    path = _path(key)
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if hasattr(os, "getuid") and status.st_uid != os.getuid():
                return None
            data = file.read()
    except OSError:
        return None
    body = data[len(MAGIC) + 32 :]
    checksum = data[len(MAGIC) : len(MAGIC) + 32]
    if not data.startswith(MAGIC) or len(body) < 8 or hashlib.sha256(body).digest() != checksum:
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    if abs(time.time() - status.st_mtime) > HOUR:  # (a clock may have been wrong)
        with contextlib.suppress(OSError):
            os.utime(path)
    split = 8 + int.from_bytes(body[:8], "little")
    return body[8:split].decode(), body[split:]


def holds(key: str) -> bool:
    """Whether there is a file for an entry, sound or not."""
    path = _path(key)
    return path is not None and os.path.exists(path)  # (where a folder may not be read, Path.exists raises)


def save(key: str, text: str, code: bytes) -> None:
    """Keep an entry; a concurrent writer of the same key leaves one complete file."""
    path = _path(key)
    if path is None:
        return
    encoded = text.encode()
    body = len(encoded).to_bytes(8, "little") + encoded + code
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(MAGIC + hashlib.sha256(body).digest() + body)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        _trim(path)
    except OSError:
        return


def _trim(newest: Path) -> None:
    """Remove what was used least recently from the folder of a new entry, and what a killed process left half-written.
    """
    now, bound, used, entries = time.time(), knobs.cache_bytes // FOLDERS, 0, []
    with os.scandir(newest.parent) as found:
        for file in found:
            with contextlib.suppress(FileNotFoundError):  # another process removed it
                status = file.stat()
                if file.name.endswith(".mlxir"):
                    used += status.st_size
                    entries.append((status.st_mtime, status.st_size, file.path))
                elif file.name.startswith(".writing-") and abs(now - status.st_mtime) > HOUR:
                    os.unlink(file.path)
    for _, size, path in sorted(entries) if 0 < bound < used else ():
        if used > bound and path != str(newest):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            used -= size


def _files() -> list[Path]:
    """Every file that this store has written, half-written ones of killed processes included."""
    if knobs.cache_dir is None:
        return []
    return [p for pattern in ("??/*.mlxir", "??/.writing-*") for p in sorted(knobs.cache_dir.glob(pattern))]


def usage() -> tuple[int, int]:
    """(entries, bytes) on disk."""
    sizes = []
    for path in _files():
        with contextlib.suppress(OSError):  # another process may have removed it
            sizes.append(path.stat().st_size)
    return len(sizes), sum(sizes)


def clear() -> int:
    """Remove all entries and no other file; how many there were. Raises OSError where one cannot be removed."""
    files = _files()
    for path in files:
        path.unlink(missing_ok=True)
    return len(files)
