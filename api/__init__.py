"""mlxir: MLX's array API on a tracing JIT compiler. What is public stands in the `__all__` of each module."""

# ruff: noqa: F401, F403 -- this file re-exports and does little else

import typing as _typing
from types import ModuleType as _ModuleType

from . import cuda, distributed, fast, fft, linalg, metal, random, testing, wheel
from .compilation import *
from .constants import *
from .custom import *
from .devices import *
from .dtype_info import *
from .dump import *
from .export import *
from .gradients import *
from .interop import ArrayLike
from .io import *
from .jacobians import *
from .memory import *
from .methods import *
from .ndarray import *
from .ops.blocks import *
from .ops.contract import *
from .ops.conv import *
from .ops.creation import *
from .ops.elementwise import *
from .ops.indexing import *
from .ops.quantised import *
from .ops.reduce import *
from .ops.sets import *
from .ops.shape import *
from .ops.sorting import *
from .ops.views import *
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
from .runtime.trees import register_dataclass, register_tree_node
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

wheel.register()


if _typing.TYPE_CHECKING:
    from . import dropin, nn, optimizers, utils
else:

    def __getattr__(name: str) -> _ModuleType:
        """`mlxir.nn`, `mlxir.optimizers`, `mlxir.utils` (see `wheel`), `mlxir.dropin`: loaded when they are named."""
        if name in wheel.NAMES or name == "dropin":
            return wheel.load(name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
