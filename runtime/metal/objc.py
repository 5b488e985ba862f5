"""The Objective-C runtime of macOS through ctypes: the one place where messages leave Python.

`Backend` is what the rest of the runtime needs of a system; the emulated device (runtime/emulator/device.py) is another
one. Handles are addresses of objects, None for nil.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any, Protocol

from .abi import MESSAGES, SIZE

Handle = int | None


class Size(ctypes.Structure):
    """MTLSize."""

    _fields_ = [("width", ctypes.c_uint64), ("height", ctypes.c_uint64), ("depth", ctypes.c_uint64)]


class Backend(Protocol):
    """A system with Metal. Everything goes through `send`.

    `send` takes integers, None, bytes (C strings), triples for MTLSize, and a `ctypes.c_void_p` that receives an object
    for `^@`. `bound`, where there is one, is told how many bytes of a buffer a dispatch may use, which Metal does not
    ask: the emulator checks it.
    """

    bound: Callable[[int, int], None] | None

    def system_device(self) -> Handle:
        """MTLCreateSystemDefaultDevice()."""

    def class_named(self, name: str) -> Handle:
        """objc_getClass(name)."""

    def send(self, receiver: Handle, selector: str, *arguments: Any) -> Any:
        """[receiver selector: arguments ...]"""


_TYPES: dict[str, Any] = {
    "@": ctypes.c_void_p, "+@": ctypes.c_void_p, "^v": ctypes.c_void_p, "@?": ctypes.c_void_p, ":": ctypes.c_void_p,
    "^@": ctypes.POINTER(ctypes.c_void_p), "Q": ctypes.c_uint64, "q": ctypes.c_int64, "Z": ctypes.c_bool,
    "*": ctypes.c_char_p, SIZE: Size, "v": None,
}  # fmt: skip


def prototype(selector: str) -> Any:
    """The C type of objc_msgSend for one selector."""
    message = MESSAGES[selector]
    return ctypes.CFUNCTYPE(
        _TYPES[message.returns], ctypes.c_void_p, ctypes.c_void_p, *[_TYPES[a] for a in message.arguments]
    )


class ObjectiveC:
    """Messages through `libobjc`, a library with objc_msgSend, sel_registerName and objc_getClass."""

    bound: Callable[[int, int], None] | None = None

    def __init__(self, libobjc: Any, metal: Any):
        self._objc, self._metal = libobjc, metal
        self._register = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(("sel_registerName", libobjc))
        self._class = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(("objc_getClass", libobjc))
        self._functions: dict[str, tuple[Any, int]] = {}

    def system_device(self) -> Handle:
        """The system's GPU, None where it has none."""
        return ctypes.CFUNCTYPE(ctypes.c_void_p)(("MTLCreateSystemDefaultDevice", self._metal))()

    def class_named(self, name: str) -> Handle:
        """A class as a receiver."""
        return self._class(name.encode())

    def send(self, receiver: Handle, selector: str, *arguments: Any) -> Any:
        """Send a message that `abi.MESSAGES` knows."""
        found = self._functions.get(selector)
        if found is None:
            function = prototype(selector)(("objc_msgSend", self._objc))
            found = self._functions[selector] = function, self._register(selector.encode())
        function, registered = found
        codes = MESSAGES[selector].arguments
        values = [self._argument(code, value) for code, value in zip(codes, arguments, strict=True)]
        return function(receiver, registered, *values)

    def _argument(self, code: str, value: Any) -> Any:
        if code == SIZE:
            return Size(*value)
        if code == ":":
            return self._register(value.encode())
        return ctypes.byref(value) if code == "^@" else value


@functools.cache
def macos() -> ObjectiveC | None:
    """The backend of this Mac; None where the frameworks are missing."""
    try:
        libobjc = ctypes.CDLL("/usr/lib/libobjc.A.dylib")
        # A process without a window needs CoreGraphics for the default device to be found.
        for framework in ("Foundation", "CoreGraphics"):
            ctypes.CDLL(f"/System/Library/Frameworks/{framework}.framework/{framework}")
        metal = ctypes.CDLL("/System/Library/Frameworks/Metal.framework/Metal")
    except OSError:
        return None
    return ObjectiveC(libobjc, metal)
