"""`mlxir.distributed` for a single process: one group of rank 0 and size 1, in which collectives are the identity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlxir.runtime.dtypes import Dtype

from .devices import StreamOrDevice, check_stream
from .ndarray import array, wrap
from .ops.common import check_array, failure

__all__ = [
    "Group", "all_gather", "all_max", "all_min", "all_sum", "init", "is_available", "recv", "recv_like", "send",
    "sum_scatter",
]  # fmt: skip

_BACKENDS = ("any", "jaccl", "mpi", "nccl", "ring")


class Group:
    """The group of this process alone."""

    def rank(self) -> int:
        """The number of this process in the group."""
        return 0

    def size(self) -> int:
        """How many processes the group has."""
        return 1

    def split(self, color: int, key: int = -1) -> Group:
        """The group of the processes with the same colour. Raises RuntimeError: one process cannot be split."""
        raise RuntimeError("[distributed] Cannot split the distributed group further: it has one process.")


_group = Group()


def is_available(backend: str = "any") -> bool:
    """Whether a backend connects several processes: there is none."""
    return False


def init(strict: bool = False, backend: str = "any", **options: Any) -> Group:
    """The group of all processes. Raises RuntimeError if `strict`, because there is no backend."""
    if backend not in _BACKENDS:
        raise ValueError(f"[distributed] The only valid values for backend are {_BACKENDS}, but {backend!r} was given.")
    if strict:
        raise RuntimeError(f"[distributed] Couldn't initialize the distributed backend '{backend}': mlxir has none.")
    return _group


def _alone(name: str, x: array, group: Group | None) -> array:
    return wrap(check_array(name, x)._value)


def all_sum(x: array, *, group: Group | None = None, stream: StreamOrDevice = None) -> array:
    """The sum over all processes."""
    check_stream("all_sum", stream)
    return _alone("all_sum", x, group)


def all_max(x: array, *, group: Group | None = None, stream: StreamOrDevice = None) -> array:
    """The maximum over all processes."""
    check_stream("all_max", stream)
    return _alone("all_max", x, group)


def all_min(x: array, *, group: Group | None = None, stream: StreamOrDevice = None) -> array:
    """The minimum over all processes."""
    check_stream("all_min", stream)
    return _alone("all_min", x, group)


def all_gather(x: array, *, group: Group | None = None, stream: StreamOrDevice = None) -> array:
    """The arrays of all processes, joined along the first axis."""
    check_stream("all_gather", stream)
    return _alone("all_gather", x, group)


def sum_scatter(x: array, *, group: Group | None = None, stream: StreamOrDevice = None) -> array:
    """This process's part of the sum over all processes."""
    check_stream("sum_scatter", stream)
    return _alone("sum_scatter", x, group)


def send(x: array, dst: int, *, group: Group | None = None, stream: StreamOrDevice = None) -> array:
    """Send to another process. Raises ValueError: there is none."""
    check_stream("send", stream)
    check_array("send", x)
    raise failure(ValueError, "[send] Cannot send to a singleton group: mlxir runs as one process.")


def recv(
    shape: Sequence[int], dtype: Dtype, src: int, *, group: Group | None = None, stream: StreamOrDevice = None
) -> array:
    """Receive from another process. Raises ValueError: there is none."""
    check_stream("recv", stream)
    raise failure(ValueError, "[recv] Cannot recv from a singleton group: mlxir runs as one process.")


def recv_like(x: array, src: int, *, group: Group | None = None, stream: StreamOrDevice = None) -> array:
    """Receive what has the shape and dtype of `x`. Raises ValueError: there is no other process."""
    check_stream("recv_like", stream)
    return recv(x.shape, x.dtype, src)
