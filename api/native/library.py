"""The native functions in this process: translated, compiled once per machine, linked, and made callable from Python.

Imported when there is an executable to call: it needs llvmlite.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import sys
import threading
from pathlib import Path
from typing import Any

from mlxir.compiler import evaluate, graph
from mlxir.compiler.objects import fingerprint
from mlxir.compiler.target.codegen import compiled
from mlxir.dialects.mx import Aval
from mlxir.runtime import buffers, launch, store
from mlxir.runtime.errors import user_frame
from mlxir.runtime.forks import guarded
from mlxir.runtime.knobs import knobs

from .. import ndarray
from ..ndarray import array
from ..random import RandomState
from . import calls, dispatch, eager, evaluation, functions, layout, objects, results
from .words import Translation

MODULES = (objects, results, dispatch, eager, evaluation, calls)
CALLS = ("compiled_call", "compiled_call_in_turn", "evaluate_call")
METH_FASTCALL = 0x80
T_OBJECT, READONLY, TP_DEALLOC, NOT_FROM_PYTHON = 6, 1, 52, 1 << 7  # of the C API

OBJECTS: dict[str, Any] = {
    "array": array, "value": graph.Value, "buffer": buffers.Buffer, "slow_holder": buffers._Holder,
    "pool": buffers.pool, "random_state": RandomState, "knobs": knobs, "running": graph.running,
    "traces": graph.running_traces, "uids": graph._uids, "missed": object(), "int": int, "bool": bool,
    "float": float, "str": str, "tuple": tuple, "list": list, "dict": dict, "none": None, "true": True,
    "false": False, "zero": 0, "fresh": buffers.pool._fresh, "free": buffers.pool.free, "give": "give",
    "word_value": "value", "word_values": "values", "word_iter": "__iter__", "word_pointer": "pointer",
    "word_depth": "depth", "value_error": ValueError, "plans": evaluate._plans, "word_reference": "reference",
    "evaluate": evaluate.evaluate, "constants": ndarray._constants, "constant_entries": ndarray.constant_entries,
    "node": graph.Node, "aval": Aval, "tape": graph.Tape, "no_attrs": ndarray._NO_ATTRS, "user_frame": user_frame,
    "word_tape": "tape", "word_leaf": "leaf",
    "changed": "[compile] The captured outputs hold another number of arrays than when traced.",
}  # fmt: skip
"""The objects that native code names as `env.NAME`."""
OPERATORS = {name: f for name, f in vars(array).items() if hasattr(f, "native")}
"""The operators that `eager.binary` knows."""


def _keep(x: Any) -> Any:
    """Keep an object for ever: native code may run while the interpreter takes its modules apart."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(x))
    return x


def _table(words: list[int]) -> int:
    """The address of words."""
    return ctypes.addressof(_keep((ctypes.c_uint64 * len(words))(*words)))


def _operators() -> list[int]:
    """The operators as `eager.py` reads them."""
    words: list[int] = []
    for slow in OPERATORS.values():
        operator = slow.native
        words.append(id(_keep(operator.primitive)))
        words.append(id(operator.result) if operator.result is not None else 0)
        words.append(id(_keep(operator.others)) if operator.others else 0)
        words += [int(operator.reflected), id(_keep(slow))]
    return words


class _MethodDef(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("code", ctypes.c_void_p), ("flags", ctypes.c_int), ("doc", ctypes.c_char_p)]


def _api(name: str, result: Any, *arguments: Any) -> Any:
    """A function of the C API under a prototype of its own."""
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))


@functools.cache
def _definition(name: str, address: int) -> int:
    """The address of the definition of a builtin."""
    return ctypes.addressof(_keep(_MethodDef(name.encode(), address, METH_FASTCALL, None)))


class Library:
    """The linked functions, by name: `function` makes a builtin of one, `method` a method of a class."""

    def __init__(self) -> None:
        known = json.dumps([sys.version, {k: v for k, v in vars(layout).items() if k.isupper()}])
        sources = b"".join([path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))])
        digest = hashlib.sha256(fingerprint() + known.encode() + sources).hexdigest()
        entry = store.load(digest)
        if entry is None:
            translation = Translation(MODULES, ("binary", len(OPERATORS)))
            text = json.dumps([translation.exports, list(translation.environment), list(translation.called)])
            entry = text, compiled(translation.text)
            store.save(digest, *entry)
        exports, environment, called = json.loads(entry[0])
        numbers = {"cores": launch._CORES, "operators": _table(_operators()), "places": _table([0] * 3 * eager.PLACES)}
        numbers["holder"] = 0  # for now
        self.environment = _table([numbers[n] if n in numbers else id(_keep(OBJECTS[n])) for n in environment])
        imports = {name: ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value or 0 for name in called}
        imports["env"] = self.environment
        code = launch.Object(digest, tuple(exports), entry[1])
        (linked,) = launch._link([code], imports)
        self.addresses = _keep(linked).addresses
        _keep(launch.linker())
        at = self.environment + 8 * environment.index("holder")
        ctypes.c_uint64.from_address(at).value = id(_keep(_holder_class(self.addresses["drop_holder"])))

    def function(self, name: str, owner: Any = None) -> Any:
        """A builtin function, whose first parameter is `owner`."""
        make = _api("PyCFunction_NewEx", ctypes.py_object, ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)
        return make(_definition(name, self.addresses[name]), owner, None)

    def method(self, cls: type, name: str, method: str) -> Any:
        """A method descriptor of a class."""
        make = _api("PyDescr_NewMethod", ctypes.py_object, ctypes.py_object, ctypes.c_void_p)
        return make(cls, _definition(method, self.addresses[name]))


def _holder_class(deallocator: int) -> type:
    """The class of the owners of blocks (`layout.py` says what lies in them)."""
    members = (functions.Member * 2)(functions.Member(b"block", T_OBJECT, 8 * layout.HOLDER_BLOCK, READONLY, None))
    size = 8 * layout.HOLDER_WORDS
    return functions.new_type("mlxir.Holder", size, NOT_FROM_PYTHON, object, members, {TP_DEALLOC: deallocator})


_lock = guarded(threading.RLock())
_library: list[Library] = []
_state = {"linking": False}


def linked() -> Library | None:
    """The functions in this process; None for a destructor that is called while they are linked."""
    with _lock:
        if not _library and not _state["linking"]:
            _state["linking"] = True
            try:
                _library.append(Library())
                _install(_library[0])
            finally:
                _state["linking"] = False
        return _library[0] if _library else None


def _install(library: Library) -> None:
    """Put native code where Python's was."""
    evaluate.native.evaluated = library.function("evaluated")
    buffers._Holder = library.function("make_holder")  # type: ignore[misc]
    made = {}
    for i, (name, slow) in enumerate(OPERATORS.items()):
        made[slow] = library.method(array, f"binary_{i}", name)
        setattr(array, name, made[slow])
    for name, f in list(vars(array).items()):
        if hasattr(f, "in_place"):
            operator, float_only = f.in_place
            setattr(array, name, ndarray._in_place(made[operator], float_only))
    functions.link({name: library.addresses[name] for name in CALLS})
