"""DLPack capsules of bfloat16, which NumPy can neither make nor read: they travel as uint16 with another type code."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from .runtime.dtypes import bfloat16

__all__ = ["export", "imported", "is_bfloat16"]

_UINT, _BFLOAT = 1, 4  # DLDataTypeCode
_CPU = (1, 0)


class _Tensor(ctypes.Structure):
    """The beginning of DLManagedTensor."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
    ]


def _tensor(capsule: Any) -> _Tensor:
    """The tensor in a capsule that nobody has consumed yet."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return _Tensor.from_address(pointer(capsule, b"dltensor"))


def export(data: np.ndarray) -> Any:
    """A capsule over the memory of `data`. Raises BufferError for dtypes that DLPack cannot carry."""
    if data.dtype != bfloat16.numpy:
        return data.__dlpack__()
    capsule = data.view(np.uint16).__dlpack__()
    _tensor(capsule).code = _BFLOAT
    return capsule


def is_bfloat16(x: Any) -> bool:
    """Whether an array of another library is bfloat16, which each calls by a name of its own."""
    return str(getattr(x, "dtype", "")).endswith("bfloat16")


class _Holder:
    """A capsule as a producer."""

    def __init__(self, capsule: Any):
        self._capsule = capsule

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CPU


def imported(producer: Any) -> np.ndarray:
    """The data of a producer on the CPU, without a copy. Raises what NumPy raises for other devices and dtypes."""
    if not is_bfloat16(producer) or tuple(producer.__dlpack_device__()) != _CPU:
        return np.from_dlpack(producer)
    capsule = producer.__dlpack__()
    _tensor(capsule).code = _UINT
    return np.from_dlpack(_Holder(capsule)).view(bfloat16.numpy)
