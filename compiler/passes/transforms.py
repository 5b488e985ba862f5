"""Expands the transforms of a module, innermost first, until none is left.

    %l, %g = "mx.vjp"(%x, %ct) {callee = @f, wrt = [0]}    ->    the body of @f_vjp, inlined

A callee is expanded before the operation that names it, so the pass of each transform (autodiff, batching) sees plain
primitives only:
that is why any nesting works.
"""

from __future__ import annotations

from mlxir.compiler.passes import autodiff, batching
from mlxir.compiler.passes.inline import inline_call
from mlxir.dialects.mlir import Function, Module

EXPANSIONS = {"vjp": autodiff.vjp_function, "jvp": autodiff.jvp_function, "vmap": batching.vmap_function}


def expand_transforms(module: Module) -> None:
    """Leaves `main` alone in the module, free of transforms and calls."""
    done: set[str] = set()
    main = module.find("main")
    _expand(module, main, done)
    for function in list(module.functions()):
        if function.name != "main":
            function.operation.erase()


def _expand(module: Module, function: Function, done: set[str]) -> None:
    if function.name in done:
        return
    done.add(function.name)
    ops, _ = function.read()
    for op in ops:
        if op.record.kind != "transform":
            continue
        callee = module.find(op.attrs["callee"])
        _expand(module, callee, done)
        derived = EXPANSIONS[op.record.name](module, callee, op)
        inline_call(function, op, derived)
