"""Python functions whose calls native code may take over: those that `compile` returns, and `eval`.

    eval = native_function("evaluate_call")(eval)

is a callable object. The word behind its slots is the address that CPython calls for it (PEP 590): 0, and Python runs
the function, or, once the native functions are linked, that of one of them, which calls the function in Python where it
does not serve. Nothing here needs the native functions, nor llvmlite.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import types
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])
# Of the C API: object.h, structmember.h, typeslots.h.
_DEFAULT, _BASETYPE, _HAVE_VECTORCALL, _METHOD_DESCRIPTOR = 1 << 18, 1 << 10, 1 << 11, 1 << 17
_T_PYSSIZET, _READONLY, _TP_MEMBERS = 19, 1, 72


class Member(ctypes.Structure):
    """PyMemberDef."""

    _fields_ = [("name", ctypes.c_char_p), ("type", ctypes.c_int), ("offset", ctypes.c_ssize_t),
                ("flags", ctypes.c_int), ("doc", ctypes.c_char_p)]  # fmt: skip


class _Slot(ctypes.Structure):
    _fields_ = [("slot", ctypes.c_int), ("content", ctypes.c_void_p)]


class _Spec(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("basicsize", ctypes.c_int), ("itemsize", ctypes.c_int),
                ("flags", ctypes.c_uint), ("slots", ctypes.POINTER(_Slot))]  # fmt: skip


def new_type(name: str, size: int, flags: int, base: type, members: Any, slots: dict[int, int]) -> type:
    """A class made by the C API, with objects of `size` bytes: what a C extension does when it is loaded."""
    filled = [_Slot(*slot) for slot in {**slots, _TP_MEMBERS: ctypes.addressof(members)}.items()]
    spec = _Spec(name.encode(), size, 0, _DEFAULT | flags, (_Slot * (len(filled) + 1))(*filled))
    _kept.extend([spec, members])
    make = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.py_object)
    made: type = make(("PyType_FromSpecWithBases", ctypes.pythonapi))(ctypes.addressof(spec), (base,))
    return made


_kept: list[Any] = []


class Function:
    """What Python knows of such a function; `slowly` is the one in Python. `plans`, `enter` and `leave` are those of a
    compiled function: what native code serves, and what begins and ends a call that no other may overlap, or None.
    """

    __slots__ = ("__dict__", "__weakref__", "enter", "leave", "plans", "slowly")
    __qualname__: str

    def __init__(self, slowly: Callable, plans: list | None = None, enter: Any = None, leave: Any = None):
        self.slowly, self.plans, self.enter, self.leave = slowly, plans, enter, leave
        functools.update_wrapper(self, slowly)
        self.__wrapped__ = getattr(slowly, "__wrapped__", slowly)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.slowly(*args, **kwargs)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __repr__(self) -> str:
        return f"<function {self.__qualname__} at {id(self):#x}>"

    def __reduce__(self) -> str:
        return self.__qualname__  # by name, as functions are pickled and copied


def _switchable() -> type[Function]:
    """The subclass whose objects have the word; the class itself in other interpreters than CPython."""
    if sys.implementation.name != "cpython" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return Function
    members = (Member * 2)(Member(b"__vectorcalloffset__", _T_PYSSIZET, Function.__basicsize__, _READONLY, None))
    flags = _BASETYPE | _HAVE_VECTORCALL | _METHOD_DESCRIPTOR
    return new_type("mlxir.Function", Function.__basicsize__ + 8, flags, Function, members, {})


_class = _switchable()
_waiting: dict[str, weakref.WeakSet[Function]] = {}
_addresses: dict[str, int] = {}


def native_function(name: str, *state: Any) -> Callable[[_F], _F]:
    """A decorator: calls go to the native function of this name, once there are native functions."""

    def decorate(slowly: _F) -> _F:
        made: Any = _class(slowly, *state)
        if name in _addresses:
            _switch(made, _addresses[name])
        elif _class is not Function:
            _waiting.setdefault(name, weakref.WeakSet()).add(made)
        return made

    return decorate


def _switch(function: Function, address: int) -> None:
    ctypes.c_uint64.from_address(id(function) + Function.__basicsize__).value = address


def link(addresses: dict[str, int]) -> None:
    """The native functions are there: existing functions go there from now on, and so will new ones."""
    _addresses.update(addresses)
    for name in addresses:
        for function in _waiting.pop(name, ()):
            _switch(function, addresses[name])
