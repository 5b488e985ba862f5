"""Primitives about differentiation itself: what blocks it, and the transforms, which name a function of the module.

A transform's `callee` is a traced program in the graph and a symbol in the module; a pass of its own replaces it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .record import Aval, OpBuilder, Primitive


class StopGradient(Primitive):
    """The identity, with derivative zero."""

    kind = "control"
    lowering = "element"
    costly = False

    def infer(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        return (avals[0],)

    def element(self, e: Any, idx: tuple, operands: Any, **attrs: Any) -> Any:
        return operands[0](idx)

    def reference(self, *arrays: np.ndarray, **attrs: Any) -> tuple[np.ndarray, ...]:
        return (arrays[0],)

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        return [None]

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        return [None]

    def vmap(self, m: OpBuilder, size: int, args: list, batched: list[bool], **attrs: Any) -> tuple[list, list[bool]]:
        return m.emit(self, args, attrs), [True]


stop_gradient = StopGradient("stop_gradient")


class Transform(Primitive):
    """An operation that stands for a transformed function; the pass of its name replaces it before anything else runs.
    """

    kind = "transform"
    operands = ()

    def coverage(self) -> dict[str, str]:
        cells = ("shape", "jvp", "vjp", "vmap", "cpu", "metal", "reference")
        return {"kind": self.kind, **dict.fromkeys(cells, f"pass {self.name}")}


vjp = Transform("vjp", ("callee", "wrt", "seeded"))
"""Operands (*args, *cotangents of the outputs listed in `seeded`), results (*outputs, *gradients of the arguments
listed in `wrt`).

The other outputs (auxiliary results, stop_gradient) have no cotangent.
"""

jvp = Transform("jvp", ("callee", "wrt"))
"""Operands (*args, *tangents of the arguments listed in `wrt`), results (*outputs, *tangents)."""

vmap = Transform("vmap", ("callee", "in_axes", "out_axes", "size"))
"""Operands *args, of which argument i is mapped over axis `in_axes[i]` (-1: not mapped), results likewise by
`out_axes`.
"""
