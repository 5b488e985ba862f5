"""The processor's caches: from which size on results are written past them."""

from __future__ import annotations

import functools
from pathlib import Path

from .knobs import knobs

_LAST = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")  # Linux: "32768K"
USUAL = 32 << 20


@functools.cache
def last_level() -> int:
    """Bytes of the last level of cache; a usual number where the system does not tell."""
    try:
        text = _LAST.read_text().strip()
    except OSError:
        return USUAL
    return int(text[:-1]) << 10 if text.endswith("K") and text[:-1].isdigit() else USUAL


def streaming_bytes() -> int:
    """A kernel that touches as many bytes writes its results past the caches.

    At twice the cache nothing of a result is left there for who reads it next, from its beginning.
    """
    return knobs.stream_bytes or 2 * last_level()
