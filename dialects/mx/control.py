"""Primitives about differentiation and order: what blocks them, and the transforms, which name functions of the module.

A transform's `callee` is a traced program in the graph and a symbol in the module; a pass of its own replaces it. A
call is a transform with rules, so that it may stand in a function that is transformed in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlxir.runtime.errors import RuleNotImplementedError

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


class Depends(Primitive):
    """`x`, available only when `dependency` is: an edge of the order in which kernels run.

    It is no code: fusion replaces it by its operand and keeps the edge (compiler/passes/ordering.py). Until then CSE
    takes the result for a value of its own, which is what fences the recomputation of a checkpoint.
    """

    kind = "control"
    operands = ("x", "dependency")
    lowering = "alias"

    def infer(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        return (avals[0],)

    def reference(self, *arrays: np.ndarray, **attrs: Any) -> tuple[np.ndarray, ...]:
        return (arrays[0],)

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        return [None if tangents[0] is None else m.depends(tangents[0], primals[1])]

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        return [cts[0], None]

    def vmap(self, m: OpBuilder, size: int, args: list, batched: list[bool], **attrs: Any) -> tuple[list, list[bool]]:
        return m.emit(self, args, attrs), [batched[0]]


depends = Depends("depends")


# -- transforms ------------------------------------------------------------------------------------------------------
class Transform(Primitive):
    """An operation that stands for a transformed function; the pass of its name replaces it before anything else runs.
    """

    kind = "transform"
    operands = ()

    def infer(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        return tuple(attrs["callee"].avals)

    def extended(self, operands: tuple, attrs: dict[str, Any], callee: Any, extra: Sequence[Any]) -> tuple[tuple, dict]:
        """Operands and attributes for a callee that takes `extra` behind its parameters, without derivatives."""
        at = len(attrs["callee"].parameters)
        return (*operands[:at], *extra, *operands[at:]), {**attrs, "callee": callee}

    def coverage(self) -> dict[str, str]:
        cells = ("shape", "jvp", "vjp", "vmap", "cpu", "metal", "reference")
        return {"kind": self.kind, **dict.fromkeys(cells, f"pass {self.name}")}


UNMAPPED = -1
"""In place of an axis: not mapped."""

SUMMED = -2
"""In place of an axis of an output: the sum over the examples."""


class Vjp(Transform):
    """Reverse mode."""

    def infer(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        return (*attrs["callee"].avals, *[avals[i] for i in attrs["wrt"]])


class Jvp(Transform):
    """Forward mode."""

    def infer(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        return (*attrs["callee"].avals, *attrs["callee"].avals)


class Vmap(Transform):
    """A function of one example, for a batch of them."""

    def infer(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        def batched(a: Aval, axis: int) -> Aval:
            return a if axis < 0 else Aval((*a.shape[:axis], attrs["size"], *a.shape[axis:]), a.dtype)

        return tuple([batched(a, axis) for a, axis in zip(attrs["callee"].avals, attrs["out_axes"], strict=True)])

    def extended(self, operands: tuple, attrs: dict[str, Any], callee: Any, extra: Sequence[Any]) -> tuple[tuple, dict]:
        operands, attrs = super().extended(operands, attrs, callee, extra)
        return operands, {**attrs, "in_axes": (*attrs["in_axes"], *[UNMAPPED for _ in extra])}


vjp = Vjp("vjp", ("callee", "wrt", "seeded"))
"""Operands (*args, *cotangents of the outputs listed in `seeded`), results (*outputs, *gradients of the arguments
listed in `wrt`).

The other outputs (auxiliary results, stop_gradient) have no cotangent.
"""

jvp = Jvp("jvp", ("callee", "wrt"))
"""Operands (*args, *tangents of the arguments listed in `wrt`), results (*outputs, *tangents)."""

vmap = Vmap("vmap", ("callee", "in_axes", "out_axes", "size"))
"""Operands *args, of which argument i is mapped over axis `in_axes[i]` (-1: not mapped), results likewise by
`out_axes`.
"""


# -- calls -----------------------------------------------------------------------------------------------------------
class Call(Transform):
    """A call of a function of the module with rules of its own for being transformed.

    Operands are the callee's parameters (a call may add more behind them), results its results. `inputs` lists the
    operands that carry derivatives; the others are what the function captured, constants to every rule. A call that no
    transform asked for a rule is replaced by the body of its callee.
    """

    def coverage(self) -> dict[str, str]:
        return {**super().coverage(), **dict.fromkeys(("jvp", "vjp", "vmap"), "yes")}

    def gradients(
        self, m: OpBuilder, callee: str, inputs: Sequence[int], operands: list, primals: list, cts: list
    ) -> list:
        """The cotangents of the inputs among `primals` by reverse mode through `callee`, replayed at `operands`."""
        wrt = tuple(i for i in inputs if primals[i].active)
        seeded = tuple(j for j, ct in enumerate(cts) if ct is not None)
        grads: list = [None] * len(primals)
        if wrt:
            pullback = m.derived("vjp", callee, wrt=wrt, seeded=seeded)
            found = m.inlined(pullback, [*operands, *[cts[j] for j in seeded]])
            for i, grad in zip(wrt, found[-len(wrt) :], strict=True):
                grads[i] = grad
        return grads


class Checkpoint(Call):
    """A function whose intermediate values are computed again for its gradient instead of being kept.

    The recomputation starts from operands that wait for the incoming cotangents: CSE cannot merge it with the forward
    pass, and it is not scheduled before the backward pass has come to it.
    """

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        held = list(primals)
        for ct in cts:
            if ct is not None:
                held = [m.depends(x, ct) for x in held]
        return self.gradients(m, attrs["callee"], attrs["inputs"], held, primals, cts)

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        wrt = tuple(i for i in attrs["inputs"] if tangents[i] is not None)
        if not wrt:
            return [None] * len(outs)
        pushed = m.derived("jvp", attrs["callee"], wrt=wrt)
        inputs = (*attrs["inputs"], *range(len(primals), len(primals) + len(wrt)))
        found = m.emit(self, [*primals, *[tangents[i] for i in wrt]], {"callee": pushed, "inputs": inputs})
        return found[len(outs) :]

    def vmap(self, m: OpBuilder, size: int, args: list, batched: list[bool], **attrs: Any) -> tuple[list, list[bool]]:
        callee = attrs["callee"]
        in_axes = tuple(0 if b else UNMAPPED for b in batched)
        out_axes = (0,) * len(m.result_avals(callee))
        mapped = m.derived("vmap", callee, in_axes=in_axes, out_axes=out_axes, size=size)
        return m.emit(self, args, {**attrs, "callee": mapped}), [True]


checkpoint = Checkpoint("checkpoint", ("callee", "inputs"))


class Custom(Call):
    """A function with derivatives and batching of its own: the rules are functions too, "" where there is none.

    Operands are (*inputs, *captured by callee, *by fun_vjp, *by fun_jvp, *by fun_vmap), `captured` has their numbers.
    Each rule takes what it captured last:

        fun_vjp   (*inputs, *cotangents, *outputs)              -> gradients of the inputs listed in `vjp_inputs`
        fun_jvp   (*inputs, *tangents of those in `jvp_inputs`) -> tangents of the outputs
        fun_vmap  (*inputs, input i mapped over `vmap_axes[i]`) -> outputs, mapped over axis 0

    Where a rule is missing the callee is transformed. Batching without `fun_vmap` batches the other rules with it.
    """

    def extended(self, operands: tuple, attrs: dict[str, Any], callee: Any, extra: Sequence[Any]) -> tuple[tuple, dict]:
        operands, attrs = super().extended(operands, attrs, callee, extra)
        own, *others = attrs["captured"]
        return operands, {**attrs, "captured": (own + len(extra), *others)}

    def _split(self, operands: list, attrs: dict) -> tuple[list, list[list]]:
        """(inputs, what callee and the three rules captured)."""
        first = len(attrs["inputs"])
        pieces = []
        for count in attrs["captured"]:
            pieces.append(operands[first : first + count])
            first += count
        return operands[: len(attrs["inputs"])], pieces

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        inputs, (own, captured, _, _) = self._split(primals, attrs)
        rest: list = [None] * (len(primals) - len(inputs))
        if not attrs["fun_vjp"]:
            grads = self.gradients(m, attrs["callee"], attrs["inputs"], inputs + own, inputs + own, cts)
            return grads[: len(inputs)] + rest
        seeds = [m.zeros(out) if ct is None else ct for out, ct in zip(outs, cts, strict=True)]
        found = m.inlined(attrs["fun_vjp"], [*inputs, *seeds, *outs, *captured])
        by_input = dict(zip(attrs["vjp_inputs"], found, strict=True))
        return [by_input.get(i) for i in range(len(inputs))] + rest

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        inputs, (own, _, captured, _) = self._split(primals, attrs)
        wrt = tuple(i for i in range(len(inputs)) if tangents[i] is not None)
        if not wrt:
            return [None] * len(outs)
        if not attrs["fun_jvp"]:
            pushed = m.derived("jvp", attrs["callee"], wrt=wrt)
            return m.inlined(pushed, [*inputs, *own, *[tangents[i] for i in wrt]])[len(outs) :]
        unforeseen = set(wrt) - set(attrs["jvp_inputs"])
        if unforeseen:
            raise RuleNotImplementedError(f"[custom jvp] the rule was not traced for tangents of inputs {unforeseen}")
        given = [m.zeros(inputs[i]) if tangents[i] is None else tangents[i] for i in attrs["jvp_inputs"]]
        return m.inlined(attrs["fun_jvp"], [*inputs, *given, *captured])

    def vmap(self, m: OpBuilder, size: int, args: list, batched: list[bool], **attrs: Any) -> tuple[list, list[bool]]:
        inputs, (_, _, _, captured) = self._split(args, attrs)
        flags, (own, by_vjp, by_jvp, by_vmap) = self._split(batched, attrs)
        if attrs["fun_vmap"] and not any(by_vmap) and self._fits(m, size, inputs, flags, attrs):
            laid = [
                x if axis == UNMAPPED else m.moved(x if b else m.broadcast(x, (size, *x.shape)), 0, axis)
                for x, b, axis in zip(inputs, flags, attrs["vmap_axes"], strict=True)
            ]
            return m.inlined(attrs["fun_vmap"], [*laid, *captured]), [True]
        outs = len(m.result_avals(attrs["callee"]))

        def mapped(rule: str, parameters: Sequence[bool], out_axes: Sequence[int]) -> str:
            in_axes = tuple(0 if b else UNMAPPED for b in parameters)
            return rule and m.derived("vmap", rule, in_axes=in_axes, out_axes=tuple(out_axes), size=size)

        every = [True] * outs
        tangents = [flags[i] for i in attrs["jvp_inputs"]]
        grads = [0 if flags[i] else SUMMED for i in attrs["vjp_inputs"]]
        new = {
            **attrs,
            "callee": mapped(attrs["callee"], [*flags, *own], [0] * outs),
            "fun_vjp": mapped(attrs["fun_vjp"], [*flags, *every, *every, *by_vjp], grads),
            "fun_jvp": mapped(attrs["fun_jvp"], [*flags, *tangents, *by_jvp], [0] * outs),
            "fun_vmap": "",
        }
        return m.emit(self, args, new), [True]

    def _fits(self, m: OpBuilder, size: int, inputs: list, flags: list[bool], attrs: dict) -> bool:
        """Whether the rule, traced for one vmap around the call, is for this one: its axes and their length."""
        parameters = m.parameter_avals(attrs["fun_vmap"])
        return all(
            not b if axis == UNMAPPED else p.shape[axis] == size and p.ndim == len(x.shape) + (not b)
            for x, b, axis, p in zip(inputs, flags, attrs["vmap_axes"], parameters, strict=False)
        )


custom = Custom(
    "custom",
    ("callee", "inputs", "captured", "fun_vjp", "vjp_inputs", "fun_jvp", "jvp_inputs", "fun_vmap", "vmap_axes"),
)
