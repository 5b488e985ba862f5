"""The buffer protocol of `array` on Python 3.11, where a class written in Python cannot offer it by itself.

From Python 3.12 on the interpreter asks `array.__buffer__` (PEP 688). Before, it looks at a slot of the type that only
C code fills in; here ctypes does, with a function that redirects the request to the array's NumPy view ("Re-exporting"
in the C API's description of `getbufferproc`). NumPy then owns the export, so nothing has to be released here.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["enable", "raise_interrupt"]

_GET_BUFFER = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p, ctypes.c_int)


class _Type(ctypes.Structure):
    """The beginning of PyTypeObject, as in CPython 3.11."""

    _fields_ = [
        ("header", ctypes.c_ssize_t * 3),
        ("name", ctypes.c_char_p),
        ("sizes_and_slots", ctypes.c_void_p * 16),  # tp_basicsize to tp_setattro
        ("as_buffer", ctypes.POINTER(ctypes.c_void_p * 2)),
    ]


_kept: list[Any] = []  # functions that types refer to
_interrupts: list[tuple[int, BaseException]] = []  # what ended a request, by the id of its object


def enable(cls: type, view_of: Callable[[Any], Any]) -> None:
    """Let `memoryview(x)` of a class work through `view_of(x)`, an object that offers the protocol.

    Does nothing where Python asks `__buffer__` or is not CPython. A request that fails (an array that is being traced,
    bfloat16) raises SystemError: ctypes cannot pass the reason on.
    """
    if sys.version_info >= (3, 12) or sys.implementation.name != "cpython":
        return
    layout = _Type.from_address(id(cls))
    if layout.name != cls.__name__.encode():  # another build of Python, with another layout
        return

    def get_buffer(x: Any, request: int, flags: int) -> int:
        try:
            _interrupts.clear()
            return ctypes.pythonapi.PyObject_GetBuffer(
                ctypes.py_object(view_of(x)), ctypes.c_void_p(request), ctypes.c_int(flags)
            )
        except BaseException as error:  # an exception cannot leave a ctypes callback; -1 tells the caller
            if not isinstance(error, Exception):
                _interrupts[:] = [(id(x), error)]
            return -1

    function = _GET_BUFFER(get_buffer)
    _kept.append(function)
    layout.as_buffer.contents[0] = ctypes.cast(function, ctypes.c_void_p)


def raise_interrupt(x: Any) -> None:
    """Raise what ended the last request if it was no error (Ctrl-C) and for `x`: NumPy goes on to ask `__array__`."""
    if _interrupts:
        name, error = _interrupts.pop()
        try:
            if name == id(x):
                raise error
        finally:
            del error  # its traceback refers to this frame
