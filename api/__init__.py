"""mlxir: MLX's array API on a tracing JIT compiler. What is public stands in the `__all__` of each module."""

# ruff: noqa: F401, F403 -- this file re-exports and does nothing else

from . import cuda, distributed, fast, linalg, metal, random, testing
from .compilation import *
from .constants import *
from .devices import *
from .dtype_info import *
from .dump import *
from .gradients import *
from .interop import ArrayLike
from .jacobians import *
from .memory import *
from .methods import *
from .ndarray import *
from .ops import *
from .printing import *
from .runtime.dtypes import (
    Dtype,
    DtypeCategory,
    bfloat16,
    bool_,
    complex64,
    float16,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    uint8,
    uint16,
    uint32,
    uint64,
)
from .testing import *
from .transforms import *

__version__ = "0.1.0"

# The abstract categories under their MLX names.
generic, number, integer, inexact = (
    DtypeCategory.generic,
    DtypeCategory.number,
    DtypeCategory.integer,
    DtypeCategory.inexact,
)
signedinteger, unsignedinteger = DtypeCategory.signedinteger, DtypeCategory.unsignedinteger
floating, complexfloating = DtypeCategory.floating, DtypeCategory.complexfloating
