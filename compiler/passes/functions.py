"""The functions that transforms derive from the functions of a module, each derived once, and the builder of rules.

    derived("vjp", @f, wrt=(0,), seeded=(0,))   ->   @f_vjp

A transform's expansion and the rules of a call (`Call` in dialects/mx/control.py) ask for derived functions. The
expansions themselves are handed in, because they are written with this builder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlxir.compiler.passes.inline import emit_body
from mlxir.dialects.mlir import Function, Module, MxBuilder, Symbol, Tensor
from mlxir.dialects.mx import Aval, Primitive


class Functions:
    """A module with what was derived from its functions. `expansions` maps a transform to what makes its function:
    `(functions, callee, **attributes) -> function`.
    """

    def __init__(self, module: Module, expansions: Mapping[str, Callable[..., Function]]):
        self.module, self._expansions = module, expansions
        self._derived: dict[tuple, Function] = {}

    def derived(self, transform: str, callee: str, **attrs: Any) -> Function:
        """The function that `transform` makes of the function `callee`, whose transforms are expanded."""
        key = transform, callee, *attrs.items()
        if key not in self._derived:
            self._derived[key] = self._expansions[transform](self, self.module.find(callee), **attrs)
        return self._derived[key]

    def new(self, name: str, parameters: Sequence[Aval]) -> tuple[Function, Builder]:
        """A new function, and the builder that fills it."""
        function = self.module.add_function(name, parameters)
        builder = Builder(function.builder_at_end(), self)
        for argument in function.arguments:
            argument.m = builder
        return function, builder


class Builder(MxBuilder):
    """Emits what the rules of primitives say; rules of calls may also use functions of the module."""

    def __init__(self, m: MxBuilder, functions: Functions):
        super().__init__(m.insertion)
        self.functions = functions

    def emit(self, record: Primitive, operands: list[Any], attrs: dict) -> list[Any]:
        if record.kind != "transform":
            return super().emit(record, operands, attrs)
        return self.raw(record, operands, attrs, self.result_avals(attrs["callee"]))

    def derived(self, transform: str, callee: str, **attrs: Any) -> Symbol:
        return Symbol(self.functions.derived(transform, callee, **attrs).name)

    def inlined(self, callee: str, operands: Sequence[Tensor]) -> list[Tensor]:
        return emit_body(self, self.functions.module.find(callee), operands)

    def result_avals(self, callee: str) -> list[Aval]:
        return self.functions.module.find(callee).result_avals

    def parameter_avals(self, callee: str) -> list[Aval]:
        return [t.aval for t in self.functions.module.find(callee).arguments]
