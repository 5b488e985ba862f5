"""What lowering gives beside code: the steps of a kernel, plain data that needs no MLIR."""

from __future__ import annotations

from typing import Any, NamedTuple

from mlxir.dialects.mx import Aval


class Step(NamedTuple):
    """One function of loops: `extent` iterations of its one top-level scf.parallel, each of about `work` simple
    operations.

    `buffers` says which of the kernel's buffers are its parameters: the kernel's inputs, then its outputs, then its
    temporaries. A step that only copies is left out where both buffers are the same memory (plan.py).
    """

    name: str
    extent: int
    work: float
    buffers: tuple[int, ...]
    writes: tuple[int, ...]  # those of `buffers` that it writes
    symbol: str = ""  # of its code, once it has some
    copies: int = -1  # the buffer that it copies to the one it writes, and that no other step reads; -1 if it does more


class Lowered(NamedTuple):
    """A lowered kernel: steps to run in order, and the temporary buffers that they share."""

    steps: list[Step]
    temporaries: list[Aval]
    routines: tuple[Any, ...] = ()  # that the steps call (routines.py)
