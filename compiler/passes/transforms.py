"""Expands the transforms of a module, innermost first, until none is left.

    %l, %g = "mx.vjp"(%x, %ct) {callee = @f, wrt = [0]}    ->    the body of @f_vjp, inlined

A callee is expanded before the operation that names it, so the pass of each transform (autodiff, batching) sees plain
primitives and calls (custom functions, checkpoints) only: that is why any nesting works. A call stays in a function
that may be differentiated or batched, because it has rules of its own for that; what is left of calls in `main` at the
end is replaced by the bodies of their functions.
"""

from __future__ import annotations

from collections.abc import Callable

from mlxir.compiler.passes import autodiff, batching
from mlxir.compiler.passes.functions import Functions
from mlxir.compiler.passes.inline import inline_call
from mlxir.dialects.mlir import Function, Module, Symbol
from mlxir.dialects.mx.control import Call

EXPANSIONS: dict[str, Callable[..., Function]] = {
    "vjp": autodiff.vjp_function, "jvp": autodiff.jvp_function, "vmap": batching.vmap_function,
}  # fmt: skip


def expand_transforms(module: Module) -> None:
    """Leaves `main` alone in the module, free of transforms and calls."""
    main = module.find("main")
    _expand(Functions(module, EXPANSIONS), main, set())
    _inline_calls(module, main, set())
    for function in list(module.functions()):
        if function.name != "main":
            module.remove(function)


def _expand(functions: Functions, function: Function, done: set[str]) -> None:
    """Expand the transforms of a function, after those of the functions that it names."""
    if function.name in done:
        return
    done.add(function.name)
    ops, _ = function.read()
    for op in ops:
        if op.record.kind != "transform":
            continue
        for name in op.attrs.values():
            if isinstance(name, Symbol):
                _expand(functions, functions.module.find(name), done)
        if not isinstance(op.record, Call):
            inline_call(function, op, functions.derived(op.record.name, **op.attrs))


def _inline_calls(module: Module, function: Function, done: set[str]) -> None:
    """Replace each call of a function by the body of its callee, from which calls are gone already."""
    if function.name in done:
        return
    done.add(function.name)
    ops, _ = function.read()
    for op in ops:
        if isinstance(op.record, Call):
            callee = module.find(op.attrs["callee"])
            _inline_calls(module, callee, done)
            inline_call(function, op, callee)
