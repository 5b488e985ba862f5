"""The one file that imports MLIR: the context, the `mx` dialect made from the records, and the builder of its
operations.

An installed upstream `mlir` package is preferred; otherwise the bindings that the torch-mlir wheel carries are used.
Importing this module costs about 0.1 s, so only a cache miss does.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

try:
    from mlir import ir
    from mlir._mlir_libs._mlirDialectsIRDL import load_dialects
    from mlir._mlir_libs._mlirDialectsLLVM import translate_module_to_llvmir
    from mlir.passmanager import PassManager
except ImportError:
    from torch_mlir import ir
    from torch_mlir._mlir_libs._mlirDialectsIRDL import load_dialects
    from torch_mlir._mlir_libs._mlirDialectsLLVM import translate_module_to_llvmir
    from torch_mlir.passmanager import PassManager

from mlxir.runtime import dtypes
from mlxir.runtime.dtypes import Dtype
from mlxir.runtime.errors import CompileError
from mlxir.runtime.knobs import knobs

from .mx import RECORDS, Aval, OpBuilder, Operators, Primitive
from .symbolic import SYMBOLIC, SymFloat, SymInt, is_symbolic

__all__ = ["Function", "Module", "MxBuilder", "Op", "Symbol", "Tensor", "element_type", "ir", "location",
           "run_passes", "tensor_type", "to_llvm", "verify_functions"]  # fmt: skip


_DIALECTS = ("func", "arith", "math", "scf", "cf", "memref", "vector", "affine", "gpu", "llvm", "irdl")
_HOME = ir.__name__.rpartition(".")[0] or "mlir"


def _without_classes(dialects: Sequence[str]) -> None:
    """Keep the bindings from importing a module of Python classes for each dialect that they meet (0.25 s in all).

    This compiler makes operations by name and needs no classes. The bindings look once: they find an empty module,
    which does not stay, so that other users of the bindings still import the real one.
    """
    for dialect in dialects:
        name = f"{_HOME}.dialects.{dialect}"
        if name not in sys.modules:
            sys.modules[name] = types.ModuleType(name)
            ir._globals._check_dialect_module_loaded(dialect)
            del sys.modules[name]


class _NoEffects(ir.MemoryEffectsOpInterface):
    @staticmethod
    def get_effects(op: Any, effects: Any) -> None:
        """None: CSE and DCE may touch the operation."""


class _Speculatable(ir.ConditionallySpeculatable):
    @staticmethod
    def get_speculatability(op: Any) -> Any:
        return ir.Speculatability.Speculatable


def _irdl(record: Primitive) -> str:
    """The definition of a record's operation; how its types hang together is the record's business (`infer`)."""
    lines = [f"irdl.operation @{record.name} {{"]

    def constraint() -> str:
        """A new one for each place: places that share one must have equal types."""
        lines.append(f"  %{len(lines)} = irdl.any")
        return f"%{len(lines) - 1}"

    operands = [f"{n.lstrip('*')}: {'variadic ' * n.startswith('*')}{constraint()}" for n in record.operands]
    attributes = [f'"{n}" = {constraint()}' for n in record.attrs]
    results = [f"{n}: {constraint()}" for n in record.outputs]
    if operands:
        lines.append(f"  irdl.operands({', '.join(operands)})")
    if attributes:
        lines.append(f"  irdl.attributes {{{', '.join(attributes)}}}")
    return "\n".join([*lines, f"  irdl.results({', '.join(results)})", "}"])


def _define_dialect() -> None:
    """The `mx` dialect, by IRDL: one pure operation per record."""
    load_dialects(ir.Module.parse("\n".join(["irdl.dialect @mx {", *map(_irdl, RECORDS.values()), "}"])))
    for name in RECORDS:
        _NoEffects.attach(f"mx.{name}")
        _Speculatable.attach(f"mx.{name}")


_without_classes((*_DIALECTS, "mx"))
context = ir.Context(load_on_create_dialects=list(_DIALECTS))
context.enable_multithreading(False)  # modules are small, and a forked child would wait for its threads
with context, ir.Location.unknown():
    _define_dialect()

with context, ir.Location.unknown():
    _UNKNOWN = ir.Location.unknown()
    _ELEMENT = {d: ir.Type.parse(d.mlir) for d in dtypes.ALL}
    _DYNAMIC = ir.ShapedType.get_dynamic_size()
    _I64, _UI64, _F64 = ir.IntegerType.get_signless(64), ir.IntegerType.get_unsigned(64), ir.F64Type.get()
_BY_ELEMENT = {str(t): d for d, t in _ELEMENT.items()}


def element_type(dtype: Dtype) -> ir.Type:
    """The element type of the mx dialect: unsigned integers keep their sign (`ui32`), int32 is the signless `i32`."""
    return _ELEMENT[dtype]


# Symbolic sizes stand in types and attributes by their text, `tensor<?x8xf32, "s0 + 1;8">`; one compilation at a time
# has some, and this says which objects they are.
_symbolic: dict[str, SymInt | SymFloat] = {}


def _text(sizes: Sequence[Any]) -> str | None:
    """Sizes as text if any of them is symbolic."""
    if not any([is_symbolic(n) for n in sizes]):
        return None
    for n in sizes:
        if is_symbolic(n):
            _symbolic[n.text] = n
    return ";".join([n.text if is_symbolic(n) else str(n) for n in sizes])


def _sizes(text: str) -> tuple[Any, ...]:
    """The inverse of `_text`."""
    return tuple([_symbolic[part] if part in _symbolic else int(part) for part in text.split(";")])


_tensor_types: dict[Aval, ir.Type] = {}


def tensor_type(aval: Aval) -> ir.Type:
    """`tensor<4x8xf32>` for an aval."""
    text = _text(aval.shape)
    if text is not None:
        with context, _UNKNOWN:
            sizes = [_DYNAMIC if is_symbolic(n) else n for n in aval.shape]
            return ir.RankedTensorType.get(sizes, _ELEMENT[aval.dtype], encoding=ir.StringAttr.get(text))
    found = _tensor_types.get(aval)
    if found is None:
        with context, _UNKNOWN:
            found = _tensor_types[aval] = ir.RankedTensorType.get(list(aval.shape), _ELEMENT[aval.dtype])
    return found


_avals: dict[ir.Type, Aval] = {}


def aval_of(type_: ir.Type) -> Aval:
    """The aval of a tensor type."""
    found = _avals.get(type_)
    if found is None:
        tensor = ir.RankedTensorType(type_)
        if tensor.encoding is not None:
            return Aval(_sizes(ir.StringAttr(tensor.encoding).value), _BY_ELEMENT[str(tensor.element_type)])
        found = _avals[type_] = Aval(tuple(tensor.shape), _BY_ELEMENT[str(tensor.element_type)])
    return found


_locations: dict[tuple[str, int], ir.Location] = {}


def location(file: str, line: int) -> ir.Location:
    """A file location in the shared context."""
    found = _locations.get((file, line))
    if found is None:
        with context:
            found = _locations[file, line] = ir.Location.file(file, line, 0)
    return found


# -- attributes ------------------------------------------------------------------------------------------------------
class Symbol(str):
    """The name of a function of the module, as an attribute of the operation that refers to it."""

    __slots__ = ()


def encode(value: Any) -> ir.Attribute:
    """A Python attribute as an MLIR attribute; `decode` is its inverse."""
    if type(value) in SYMBOLIC:
        _symbolic[value.text] = value
        return ir.DictAttr.get({"number": ir.StringAttr.get(value.text)})
    if isinstance(value, bool):
        return ir.BoolAttr.get(value)
    if isinstance(value, int):
        return ir.IntegerAttr.get(_I64, value) if value < 1 << 63 else ir.IntegerAttr.get(_UI64, value - (1 << 64))
    if isinstance(value, float):
        return ir.FloatAttr.get(_F64, value)
    if isinstance(value, complex):
        return ir.ArrayAttr.get([ir.FloatAttr.get(_F64, value.real), ir.FloatAttr.get(_F64, value.imag)])
    if isinstance(value, Dtype):
        return ir.TypeAttr.get(_ELEMENT[value])
    if isinstance(value, tuple):
        text = _text(value)
        if text is not None:
            return ir.DictAttr.get({"numbers": ir.StringAttr.get(text)})
        return ir.DenseI64ArrayAttr.get([int(v) for v in value])
    if isinstance(value, Symbol):
        return ir.FlatSymbolRefAttr.get(value)
    if isinstance(value, str):
        return ir.StringAttr.get(value)
    raise TypeError(f"[mx] attribute {value!r} has no MLIR form")


_DECODERS: dict[type, Callable[[Any], Any]] = {
    ir.BoolAttr: lambda a: a.value,
    ir.IntegerAttr: lambda a: a.value % (1 << 64) if a.type == _UI64 else a.value,
    ir.FloatAttr: lambda a: a.value,
    ir.ArrayAttr: lambda a: complex(a[0].value, a[1].value),
    ir.TypeAttr: lambda a: _BY_ELEMENT[str(a.value)],
    ir.DenseI64ArrayAttr: lambda a: tuple(a),
    ir.StringAttr: lambda a: a.value,
    ir.FlatSymbolRefAttr: lambda a: Symbol(a.value),
    ir.DictAttr: lambda a: _symbolic[a["number"].value] if "number" in a else _sizes(a["numbers"].value),
}


def decode(attribute: ir.Attribute) -> Any:
    """A Python attribute from an MLIR attribute."""
    return _DECODERS[type(attribute)](attribute)


# -- values and operations -------------------------------------------------------------------------------------------
class Tensor(Operators):
    """An SSA value of the mx dialect as rules see it."""

    __slots__ = ("active", "dtype", "m", "shape", "value")

    def __init__(self, value: ir.Value, aval: Aval, m: Any):
        self.value, (self.shape, self.dtype), self.m = value, aval, m
        self.active = True

    @property
    def aval(self) -> Aval:
        return Aval(self.shape, self.dtype)


class Op(NamedTuple):
    """One operation of a function as passes read it; `operation` is the MLIR operation itself."""

    record: Primitive
    attrs: dict[str, Any]
    operands: list[Tensor]
    results: list[Tensor]
    operation: ir.Operation


class MxBuilder(OpBuilder):
    """Emits mx operations at an insertion point; `at` is the location that new operations get."""

    def __init__(self, insertion: ir.InsertionPoint):
        self.insertion = insertion
        self.at: ir.Location = _UNKNOWN

    def emit(self, record: Primitive, operands: list[Any], attrs: dict) -> list[Any]:
        avals = record.infer(*[Aval(t.shape, t.dtype) for t in operands], **attrs)
        return self.raw(record, operands, attrs, avals)

    def raw(self, record: Primitive, operands: Sequence[Tensor], attrs: dict, avals: Sequence[Aval]) -> list[Tensor]:
        """Emit with result types that the caller knows."""
        if record.kind == "transform":
            return self._transform(record, operands, attrs, avals)
        with context, self.at:
            encoded = {k: encode(v) for k, v in attrs.items()}
            operation = ir.Operation.create(
                "mx." + record.name,
                results=[tensor_type(a) for a in avals],
                operands=[t.value for t in operands],
                attributes=encoded,
                loc=self.at,
                ip=self.insertion,
            )
        return [Tensor(v, a, self) for v, a in zip(operation.results, avals, strict=True)]

    def call(self, callee: str, operands: Sequence[Tensor], avals: Sequence[Aval]) -> list[Tensor]:
        """`func.call @callee`."""
        with context, self.at:
            operation = ir.Operation.create(
                "func.call",
                results=[tensor_type(a) for a in avals],
                operands=[t.value for t in operands],
                attributes={"callee": ir.FlatSymbolRefAttr.get(callee)},
                loc=self.at,
                ip=self.insertion,
            )
        return [Tensor(v, a, self) for v, a in zip(operation.results, avals, strict=True)]

    def _transform(
        self, record: Primitive, operands: Sequence[Tensor], attrs: dict, avals: Sequence[Aval]
    ) -> list[Tensor]:
        """`%g = "mx.vjp"() {callee = @f}` makes a function value from a function; `func.call_indirect` applies it."""
        with context, self.at:
            results = [tensor_type(a) for a in avals]
            encoded = {k: encode(v) for k, v in attrs.items()}
            function_type = ir.FunctionType.get([t.value.type for t in operands], results)
            derived = ir.Operation.create(
                "mx." + record.name, results=[function_type], attributes=encoded, loc=self.at, ip=self.insertion
            )
            call = ir.Operation.create(
                "func.call_indirect",
                results=results,
                operands=[derived.result, *[t.value for t in operands]],
                loc=self.at,
                ip=self.insertion,
            )
        return [Tensor(v, a, self) for v, a in zip(call.results, avals, strict=True)]


class Function:
    """A `func.func` over mx operations. `ops()` reads it once into light records; passes rewrite through `builder_*`.
    """

    def __init__(self, operation: ir.Operation):
        self.operation = operation

    @functools.cached_property
    def block(self) -> ir.Block:
        return self.operation.regions[0].blocks[0]

    @functools.cached_property
    def arguments(self) -> list[Tensor]:
        return [Tensor(a, aval_of(a.type), None) for a in self.block.arguments]

    @functools.cached_property
    def name(self) -> str:
        return ir.StringAttr(self.operation.attributes["sym_name"]).value

    @property
    def terminator(self) -> ir.Operation:
        operations = self.block.operations
        return operations[len(operations) - 1].operation

    @property
    def result_avals(self) -> list[Aval]:
        return [aval_of(v.type) for v in self.terminator.operands]

    def builder_at_end(self) -> MxBuilder:
        return MxBuilder(ir.InsertionPoint(self.block))

    def builder_before(self, operation: ir.Operation) -> MxBuilder:
        builder = MxBuilder(ir.InsertionPoint(operation))
        builder.at = operation.location
        return builder

    def add_parameter(self, aval: Aval) -> None:
        """One more parameter, behind the others."""
        self.__dict__.pop("arguments", None)
        with context, _UNKNOWN:
            self.block.add_argument(tensor_type(aval), _UNKNOWN)
            old = ir.FunctionType(ir.TypeAttr(self.operation.attributes["function_type"]).value)
            inputs = [a.type for a in self.block.arguments]
            self.operation.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(inputs, old.results))

    def returns(self, results: Sequence[Tensor]) -> None:
        """End the function, and make its type that of its arguments and results."""
        with context, _UNKNOWN:
            values = [t.value for t in results]
            ir.Operation.create("func.return", operands=values, ip=ir.InsertionPoint(self.block))
            inputs = [a.value.type for a in self.arguments]
            self.operation.attributes["function_type"] = ir.TypeAttr.get(
                ir.FunctionType.get(inputs, [v.type for v in values])
            )

    def read(self) -> tuple[list[Op], list[Tensor]]:
        """(operations in order, results of the function). A transform appears once, with the call that applies it."""
        env: dict[ir.Value, Tensor] = {a.value: a for a in self.arguments}
        derived: dict[ir.Value, tuple[Primitive, dict]] = {}
        ops: list[Op] = []
        results: list[Tensor] = []
        for view in self.block.operations:
            operation = view.operation
            name = operation.name
            if name == "func.return":
                results = [env[v] for v in operation.operands]
                break
            if name == "func.call_indirect":
                function, *values = operation.operands
                (record, attrs), operands = derived[function], [env[v] for v in values]
            else:
                record, attributes = RECORDS[name[3:]], operation.attributes
                attrs = {n: decode(attributes[n]) for n in record.attrs}
                if record.kind == "transform":
                    derived[operation.result] = record, attrs
                    continue
                operands = [env[v] for v in operation.operands]
            outs = []
            for value in operation.results:
                tensor = env[value] = Tensor(value, aval_of(value.type), None)
                outs.append(tensor)
            ops.append(Op(record, attrs, operands, outs, operation))
        return ops, results


class Module:
    """A `builtin.module` of mx functions."""

    def __init__(self, module: ir.Module | None = None):
        with context, _UNKNOWN:
            self.module = module or ir.Module.create()
        self._functions: dict[str, Function] = {f.name: f for f in self.functions()}

    def functions(self) -> Iterator[Function]:
        for view in self.module.body.operations:
            if view.operation.name == "func.func":
                yield Function(view.operation)

    def find(self, name: str) -> Function:
        """The function of that name. Raises KeyError."""
        return self._functions[name]

    def remove(self, function: Function) -> None:
        """Erase a function that nothing names."""
        del self._functions[function.name]
        function.operation.erase()

    def unique(self, name: str) -> str:
        """A symbol that is not taken yet, close to `name`."""
        clean = "".join(c if c.isalnum() or c == "_" else "_" for c in name).strip("_") or "f"
        symbol, n = clean, 1
        while symbol in self._functions:
            n += 1
            symbol = f"{clean}_{n}"
        return symbol

    def add_function(self, name: str, parameters: Sequence[Aval], private: bool = True) -> Function:
        """An empty function with an entry block; `returns` completes it."""
        with context, _UNKNOWN:
            inputs = [tensor_type(a) for a in parameters]
            attributes = {
                "sym_name": ir.StringAttr.get(self.unique(name)),
                "function_type": ir.TypeAttr.get(ir.FunctionType.get(inputs, [])),
            }
            if private:
                attributes["sym_visibility"] = ir.StringAttr.get("private")
            operation = ir.Operation.create(
                "func.func", attributes=attributes, regions=1, ip=ir.InsertionPoint(self.module.body)
            )
            operation.regions[0].blocks.append(*inputs, arg_locs=[_UNKNOWN] * len(inputs))
        function = Function(operation)
        self._functions[function.name] = function
        return function

    def verify(self) -> None:
        """Raises ir.MLIRError for invalid IR; does nothing unless `knobs.verify` asks for it."""
        if knobs.verify:
            self.module.operation.verify()

    def text(self, locations: bool = False) -> str:
        return self.module.operation.get_asm(enable_debug_info=locations)

    def clone(self) -> Module:
        with context:
            return Module(ir.Module.parse(self.text(locations=True)))


def verify_functions(module: ir.Module) -> None:
    """Verify a module that passes or the translation to LLVM will read: invalid IR may end the process there.

    Raises CompileError, which names the function.
    """
    try:
        module.operation.verify()
    except ir.MLIRError:
        for view in module.body.operations:
            try:
                view.operation.verify()
            except ir.MLIRError as error:
                name = ir.StringAttr(view.operation.attributes["sym_name"]).value
                raise CompileError(f"[lower] invalid IR was made for {name}: {error}") from error
        raise


def run_passes(module: Any, pipeline: str) -> None:
    """Run upstream passes, `pipeline` as in mlir-opt without the surrounding builtin.module(...).

    Verifying after each of them would take three times as long as running them; `knobs.verify` asks for it.
    """
    with context:
        manager = PassManager.parse(f"builtin.module({pipeline})")
        manager.enable_verifier(knobs.verify)
        manager.run(module.operation)


def to_llvm(module: ir.Module) -> str:
    """LLVM IR text of a module in the llvm dialect.

    Raises CompileError for operations that the passes left in another one: the translation would end the process.
    """
    left: set[str] = set()

    def visit(operation: ir.Operation) -> Any:
        if not operation.name.startswith(("llvm.", "builtin.")):
            left.add(operation.name)
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    if left:
        raise CompileError(f"[lower] no LLVM IR for {', '.join(sorted(left))}: a CPU has no such operations")
    return translate_module_to_llvmir(module.operation)
