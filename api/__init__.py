"""mlxir: MLX's array API on a tracing JIT compiler."""

from . import cuda, distributed, fast, linalg, metal, random
from .compilation import *  # noqa: F403
from .constants import *  # noqa: F403
from .devices import *  # noqa: F403
from .dtype_info import *  # noqa: F403
from .interop import ArrayLike
from .memory import *  # noqa: F403
from .methods import *  # noqa: F403
from .ndarray import *  # noqa: F403
from .ops import *  # noqa: F403
from .printing import *  # noqa: F403
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
from .transforms import *  # noqa: F403

__version__ = "0.1.0"

# The abstract categories under their MLX names.
generic, number, integer, inexact = DtypeCategory.generic, DtypeCategory.number, DtypeCategory.integer, DtypeCategory.inexact
signedinteger, unsignedinteger = DtypeCategory.signedinteger, DtypeCategory.unsignedinteger
floating, complexfloating = DtypeCategory.floating, DtypeCategory.complexfloating
