"""The public functions on arrays, in family files; each file's `__all__` says what it adds to `mlxir`."""

from . import blocks, contract, conv, creation, elementwise, indexing, quantised, reduce, sets, shape, sorting, views
from .blocks import *  # noqa: F403
from .contract import *  # noqa: F403
from .conv import *  # noqa: F403
from .creation import *  # noqa: F403
from .elementwise import *  # noqa: F403
from .indexing import *  # noqa: F403
from .quantised import *  # noqa: F403
from .reduce import *  # noqa: F403
from .sets import *  # noqa: F403
from .shape import *  # noqa: F403
from .sorting import *  # noqa: F403
from .views import *  # noqa: F403

_FAMILIES = (
    blocks, contract, conv, creation, elementwise, indexing, quantised, reduce, sets, shape, sorting, views,
)  # fmt: skip
__all__ = [name for module in _FAMILIES for name in module.__all__]
