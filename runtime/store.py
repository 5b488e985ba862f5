"""The store of the disk cache: one checksummed file per entry, written atomically, readable by its owner only.

    "mlxir-2\\n"  sha256 of the rest (32 bytes)  length of the JSON part (8 bytes, little endian)  JSON  object code

A file that is damaged, foreign or of another version counts as absent (a damaged one is removed); nothing in it is
executed before its checksum holds. Neither `load` nor `save` raises for a cache that cannot be used: a full or
read-only disk means compiling again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

from .knobs import knobs

MAGIC = b"mlxir-2\n"


def _path(key: str) -> Path | None:
    return knobs.cache_dir / key[:2] / f"{key}.mlxir" if knobs.cache_dir is not None else None


def load(key: str) -> tuple[str, bytes] | None:
    """(JSON, object code) of an entry, or None."""
    path = _path(key)
    if path is None:
        return None
    try:
        if hasattr(os, "getuid") and path.stat().st_uid != os.getuid():
            return None
        data = path.read_bytes()
    except OSError:
        return None
    body = data[len(MAGIC) + 32 :]
    checksum = data[len(MAGIC) : len(MAGIC) + 32]
    if not data.startswith(MAGIC) or len(body) < 8 or hashlib.sha256(body).digest() != checksum:
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    split = 8 + int.from_bytes(body[:8], "little")
    return body[8:split].decode(), body[split:]


def holds(key: str) -> bool:
    """Whether there is a file for an entry, sound or not."""
    path = _path(key)
    return path is not None and path.exists()


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
    except OSError:
        return


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
