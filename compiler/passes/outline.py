"""Writes the kernels that fusion has formed: functions of a module, and the steps that run them.

groups of operations    ->    func.func private @mx_max_sum(%x) { ... }    func.func @main(%x) { call @mx_max_sum(%x) }
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from mlxir.dialects.mlir import Function, Module, Op, Tensor
from mlxir.dialects.mx import Aval

if TYPE_CHECKING:
    from mlxir.compiler.passes.fuse import Group


class Launch(NamedTuple):
    """One step of a fused program: a kernel function, or a library operation, on numbered values."""

    kind: str
    name: str
    op: Any  # the operation of a library step
    operands: tuple[int, ...]
    results: tuple[int, ...]


class Fused(NamedTuple):
    """The kernels as functions of `module`, and the steps that run them; values are numbered, the parameters first."""

    module: Module
    launches: list[Launch]
    values: list[Aval]
    parameters: int
    outputs: list[int]


def outline(main: Function, ops: list[Op], results: list[Tensor], groups: list[Group]) -> Fused:
    fused = Module()
    values: dict[int, int] = {id(t): i for i, t in enumerate(main.arguments)}
    avals = [t.aval for t in main.arguments]
    launches: list[Launch] = []
    kernels: list[Function | None] = []
    renamed = _renamed(ops, results, groups)
    for g in groups:
        members = [ops[n] for n in sorted(g.members)]
        if g in renamed:
            (old,), (new,) = members[0].operands, members[0].results
            number = values[id(new)] = values[id(old)]
            avals[number] = new.aval
            continue
        outputs = [ops[n] for n in sorted(g.outputs)]
        written = [t for op in outputs for t in op.results]
        name = _kernel_name(members)
        members = _in_demand(members, outputs)
        made = {id(t) for op in members for t in op.results}
        inputs: dict[int, Tensor] = {}
        for op in members:
            inputs.update({id(t): t for t in op.operands if id(t) not in made})
        operands = tuple(values[i] for i in inputs)
        for t in written:
            values[id(t)] = len(avals)
            avals.append(t.aval)
        numbers = tuple(values[id(t)] for t in written)
        if g.kind == "library":
            launches.append(Launch("library", members[0].record.name, members[0], operands, numbers))
            kernels.append(None)
            continue
        function = fused.add_function(name, [t.aval for t in inputs.values()])
        builder = function.builder_at_end()
        env = {i: a for i, a in zip(inputs, function.arguments, strict=True)}
        for op in members:
            builder.at = op.operation.location
            outs = builder.raw(op.record, [env[id(t)] for t in op.operands], op.attrs, [t.aval for t in op.results])
            env.update((id(old), new) for old, new in zip(op.results, outs, strict=True))
        function.returns([env[id(t)] for t in written])
        launches.append(Launch(g.kind, function.name, None, operands, numbers))
        kernels.append(function)
    outputs_of_main = [values[id(t)] for t in results]
    _write_main(fused, main, launches, kernels, avals, outputs_of_main)
    return Fused(fused, launches, avals, len(main.arguments), outputs_of_main)


def _in_demand(members: list[Op], outputs: list[Op]) -> list[Op]:
    """A kernel's operations in the order in which its results ask for them.

    That order does not depend on where the operations stood in the program: kernels of equal layers are equal.
    """
    producer = {id(t): op for op in members for t in op.results}
    order: dict[int, Op] = {}
    stack = list(reversed(outputs))
    while stack:
        op = stack[-1]
        missing = [p for t in op.operands if (p := producer.get(id(t))) is not None and id(p) not in order]
        if missing:
            stack += reversed(missing)
            continue
        order.setdefault(id(op), op)
        stack.pop()
    return list(order.values())


def _renamed(ops: list[Op], results: list[Tensor], groups: list[Group]) -> set[Group]:
    """Kernels that would only copy what another one has stored, under another shape: the value is that one's then."""
    final = {id(t) for t in results}
    stored = {id(t) for g in groups if g.kind != "library" for n in g.outputs for t in ops[n].results}
    taken = {id(t) for g in groups if g.kind == "library" for n in g.members for t in ops[n].operands} | final
    found: set[Group] = set()
    for g in groups:
        op = ops[min(g.members)]
        if g.kind == "loops" and len(g.members) == 1 and op.record.name == "reshape":
            (old,), (new,) = op.operands, op.results
            if id(old) in stored - taken and (id(new) not in taken or id(new) in final):
                taken.add(id(old))
                found.add(g)
    return found


def _kernel_name(members: list[Op]) -> str:
    """From its most telling operations, in order: reductions, contractions and expensive functions, else all.

    The prefix keeps a kernel `sin` apart from the C library's.
    """
    telling = [op.record.name for op in members if op.record.lowering in ("reduce", "kernel")]
    if not telling:
        telling = [op.record.name for op in members if getattr(op.record, "costly", False)]
    if not telling:
        telling = [op.record.name for op in members]
    names = list(dict.fromkeys(telling))
    return "mx_" + "_".join(names[:4])


def _write_main(
    fused: Module,
    main: Function,
    launches: list[Launch],
    kernels: list[Function | None],
    avals: list[Aval],
    outputs: list[int],
) -> None:
    """`main` as calls of the kernels: the program to be read in a dump."""
    function = fused.add_function("main", avals[: len(main.arguments)], private=False)
    builder = function.builder_at_end()
    env = dict(enumerate(function.arguments))
    for launch, kernel in zip(launches, kernels, strict=True):
        operands = [env[i] for i in launch.operands]
        if kernel is None:
            types = [avals[i] for i in launch.results]
            outs = builder.raw(launch.op.record, operands, launch.op.attrs, types)
        else:
            operands = [builder.reshaped(t, a.shape) for t, a in zip(operands, kernel.arguments, strict=True)]
            outs = builder.call(kernel.name, operands, kernel.result_avals)
        env.update(zip(launch.results, outs, strict=True))
    function.returns([builder.reshaped(env[i], avals[i].shape) for i in outputs])
