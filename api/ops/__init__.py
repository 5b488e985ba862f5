"""The public functions on arrays, in family files; each file's `__all__` says what it adds to `mlxir`."""

from . import contract, creation, elementwise, indexing, reduce, shape, sorting, views
from .contract import *  # noqa: F403
from .creation import *  # noqa: F403
from .elementwise import *  # noqa: F403
from .indexing import *  # noqa: F403
from .reduce import *  # noqa: F403
from .shape import *  # noqa: F403
from .sorting import *  # noqa: F403
from .views import *  # noqa: F403

__all__ = [
    name
    for module in (contract, creation, elementwise, indexing, reduce, shape, sorting, views)
    for name in module.__all__
]
