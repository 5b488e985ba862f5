"""The builder of scalar code that records' bodies are written against: `lambda k, x: k.sin(x)`.

Scalars carry their mlxir dtype. float16 and bfloat16 live in registers as float32 and are rounded when stored; bool is
`i1` in a register and
a byte in memory; complex64 is a pair of float32. Every operation is IEEE's, rounded once: compiled code gives the bits
of eager code,
except where a reduction is reassociated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlxir.dialects.mlir import context, ir
from mlxir.dialects.symbolic import plain
from mlxir.runtime import dtypes
from mlxir.runtime.dtypes import Dtype, bool_, complex64, float32, float64, int32
from mlxir.runtime.errors import CompileError

with context:
    _TYPES = {
        d: ir.Type.parse({"f16": "f32", "bf16": "f32"}.get(d.mlir, d.mlir.replace("ui", "i")))
        for d in dtypes.ALL
        if d is not complex64
    }
    _STORAGE = {
        d: ir.Type.parse({"i1": "i8"}.get(d.mlir, d.mlir.replace("ui", "i"))) for d in dtypes.ALL if d is not complex64
    }
    _STORAGE[complex64] = _STORAGE[float32]
    INDEX = ir.IndexType.get()
    _I1 = _TYPES[bool_]
    _SUMMED = ir.Attribute.parse("#arith.fastmath<reassoc,contract>")
    _PRODUCT = ir.Attribute.parse("#arith.fastmath<contract>")

_FLOAT_COMPARE = {"eq": 1, "gt": 2, "ge": 3, "lt": 4, "le": 5, "ne": 13}  # ordered, but != is unordered: NaN != NaN
# Of integers: one predicate, or (signed, unsigned).
_INT_COMPARE: dict[str, Any] = {"eq": 0, "ne": 1, "lt": (2, 6), "le": (3, 7), "gt": (4, 8), "ge": (5, 9)}


def storage_type(dtype: Dtype) -> ir.Type:
    """How an element lies in memory; complex64 is two consecutive ones."""
    return _STORAGE[dtype]


def memref_type(size: int, dtype: Dtype) -> ir.Type:
    """A flat buffer of `size` elements. (No access is checked against it, so one of symbolic size may say any.)"""
    with context, ir.Location.unknown():
        return ir.MemRefType.get([plain(size) * (2 if dtype is complex64 else 1)], _STORAGE[dtype])


class Reg:
    """A scalar in a register: an SSA value (for complex64 a pair of them) with its dtype and the usual operators."""

    __slots__ = ("dtype", "k", "value")

    def __init__(self, value: Any, dtype: Dtype, k: KernelBuilder):
        self.value, self.dtype, self.k = value, dtype, k

    def _pair(self, other: Any) -> Reg:
        return other if isinstance(other, Reg) else self.k.const(other, self.dtype)

    def __add__(self, other: Any) -> Reg:
        return self.k.add(self, self._pair(other))

    def __radd__(self, other: Any) -> Reg:
        return self.k.add(self._pair(other), self)

    def __sub__(self, other: Any) -> Reg:
        return self.k.sub(self, self._pair(other))

    def __rsub__(self, other: Any) -> Reg:
        return self.k.sub(self._pair(other), self)

    def __mul__(self, other: Any) -> Reg:
        return self.k.mul(self, self._pair(other))

    def __rmul__(self, other: Any) -> Reg:
        return self.k.mul(self._pair(other), self)

    def __truediv__(self, other: Any) -> Reg:
        return self.k.div(self, self._pair(other))

    def __rtruediv__(self, other: Any) -> Reg:
        return self.k.div(self._pair(other), self)

    def __neg__(self) -> Reg:
        return self.k.neg(self)

    def __and__(self, other: Any) -> Reg:
        return self.k.bits("and", self, self._pair(other))

    def __or__(self, other: Any) -> Reg:
        return self.k.bits("or", self, self._pair(other))

    def __xor__(self, other: Any) -> Reg:
        return self.k.bits("xor", self, self._pair(other))

    def __invert__(self) -> Reg:
        return self.k.bits("xor", self, self.k.const(True if self.dtype is bool_ else -1, self.dtype))

    def __lshift__(self, other: Any) -> Reg:
        return self.k.shift("left", self, self._pair(other))

    def __rshift__(self, other: Any) -> Reg:
        return self.k.shift("right", self, self._pair(other))

    def __lt__(self, other: Any) -> Reg:
        return self.k.compare("lt", self, self._pair(other))

    def __le__(self, other: Any) -> Reg:
        return self.k.compare("le", self, self._pair(other))

    def __gt__(self, other: Any) -> Reg:
        return self.k.compare("gt", self, self._pair(other))

    def __ge__(self, other: Any) -> Reg:
        return self.k.compare("ge", self, self._pair(other))

    def __eq__(self, other: object) -> Reg:  # type: ignore[override]
        return self.k.compare("eq", self, self._pair(other))

    def __ne__(self, other: object) -> Reg:  # type: ignore[override]
        return self.k.compare("ne", self, self._pair(other))

    __hash__ = None  # type: ignore[assignment]


def _unsigned(dtype: Dtype) -> bool:
    return dtype.kind in "ub"


class KernelBuilder:
    """Emits arith/math operations at `ip`; see `scalar_math.py` for the functions of one argument."""

    def __init__(self, ip: ir.InsertionPoint):
        self.ip, self.loc = ip, ir.Location.unknown(context)
        self.reassociate = False  # a step of a reduction
        self.summand = False  # a product that is only added up: a multiply-add may round it together with the sum

    # -- plumbing ---------------------------------------------------------------------------------------------------
    def op(self, name: str, operands: Sequence[ir.Value], result: ir.Type | None = None, **attributes: Any) -> Any:
        """One operation with at most one result, which is returned."""
        results = [result] if result is not None else []
        created = ir.Operation.create(name, results, operands, attributes, loc=self.loc, ip=self.ip)
        return created.result if result is not None else created

    def reg(self, name: str, operands: Sequence[Reg], dtype: Dtype, **attributes: Any) -> Reg:
        return Reg(self.op(name, [o.value for o in operands], _TYPES[dtype], **attributes), dtype, self)

    def index(self, value: int) -> ir.Value:
        return self.op("arith.constant", [], INDEX, value=ir.IntegerAttr.get(INDEX, int(value)))

    def const(self, value: Any, dtype: Dtype | str) -> Reg:
        """A constant; integers wrap into the dtype."""
        dtype = dtypes.from_name(dtype) if isinstance(dtype, str) else dtype
        if dtype is complex64:
            c = complex(value)
            return Reg((self.const(c.real, float32), self.const(c.imag, float32)), complex64, self)
        kind = _TYPES[dtype]
        if dtype.is_float:
            attribute = ir.FloatAttr.get(kind, float(value))
        elif dtype is bool_:
            attribute = ir.IntegerAttr.get(kind, 1 if value else 0)
        else:
            bits = 8 * dtype.size
            wrapped = int(value) % (1 << bits)
            attribute = ir.IntegerAttr.get(kind, wrapped - (1 << bits) if wrapped >> (bits - 1) else wrapped)
        return Reg(self.op("arith.constant", [], kind, value=attribute), dtype, self)

    def load(self, buffer: ir.Value, position: ir.Value, dtype: Dtype) -> Reg:
        """One element of a flat buffer."""
        if dtype is complex64:
            two, one = self.index(2), self.index(1)
            real = self.op("arith.muli", [position, two], INDEX)
            imag = self.op("arith.addi", [real, one], INDEX)
            parts = tuple(
                Reg(self.op("memref.load", [buffer, i], _TYPES[float32]), float32, self) for i in (real, imag)
            )
            return Reg(parts, complex64, self)
        value = self.op("memref.load", [buffer, position], _STORAGE[dtype])
        if dtype is bool_:
            zero = self.op("arith.constant", [], _STORAGE[bool_], value=ir.IntegerAttr.get(_STORAGE[bool_], 0))
            value = self.op("arith.cmpi", [value, zero], _I1, predicate=ir.IntegerAttr.get(_TYPES[dtypes.int64], 1))
        elif dtype.is_float and dtype.size == 2:
            value = self.op("arith.extf", [value], _TYPES[dtype])
        return Reg(value, dtype, self)

    def store(self, value: Reg, buffer: ir.Value, position: ir.Value) -> None:
        dtype, raw = value.dtype, value.value
        if dtype is complex64:
            two, one = self.index(2), self.index(1)
            real = self.op("arith.muli", [position, two], INDEX)
            imag = self.op("arith.addi", [real, one], INDEX)
            for part, at in zip(raw, (real, imag), strict=True):
                self.op("memref.store", [part.value, buffer, at])
            return
        if dtype is bool_:
            raw = self.op("arith.extui", [raw], _STORAGE[bool_])
        elif dtype.is_float and dtype.size == 2:
            raw = self.op("arith.truncf", [raw], _STORAGE[dtype])
        self.op("memref.store", [raw, buffer, position])

    # -- arithmetic -------------------------------------------------------------------------------------------------
    def _arith(self, name: str, a: Reg, b: Reg) -> Reg:
        if a.dtype.is_float:
            flags = {"fastmath": _SUMMED} if self.reassociate else {"fastmath": _PRODUCT} if self.summand else {}
            return self.reg(f"arith.{name}f", [a, b], a.dtype, **flags)
        if a.dtype is bool_:
            return self.bits({"add": "or", "sub": "xor", "mul": "and"}[name], a, b)
        return self.reg(f"arith.{name}i", [a, b], a.dtype)

    def add(self, a: Reg, b: Reg) -> Reg:
        if a.dtype is complex64:
            return self._complex(a.value[0] + b.value[0], a.value[1] + b.value[1])
        return self._arith("add", a, b)

    def sub(self, a: Reg, b: Reg) -> Reg:
        if a.dtype is complex64:
            return self._complex(a.value[0] - b.value[0], a.value[1] - b.value[1])
        return self._arith("sub", a, b)

    def mul(self, a: Reg, b: Reg) -> Reg:
        if a.dtype is complex64:
            (ar, ai), (br, bi) = a.value, b.value
            return self._complex(ar * br - ai * bi, ar * bi + ai * br)
        return self._arith("mul", a, b)

    def div(self, a: Reg, b: Reg) -> Reg:
        if not a.dtype.is_float:
            raise CompileError("[lower] true division of integers; cast them to a float first")
        return self.reg("arith.divf", [a, b], a.dtype)

    def neg(self, a: Reg) -> Reg:
        if a.dtype is complex64:
            return self._complex(-a.value[0], -a.value[1])
        if a.dtype.is_float:
            return self.reg("arith.negf", [a], a.dtype)
        return self.const(0, a.dtype) - a

    def _complex(self, real: Reg, imag: Reg) -> Reg:
        return Reg((real, imag), complex64, self)

    def bits(self, name: str, a: Reg, b: Reg) -> Reg:
        return self.reg(f"arith.{name}i", [a, b], a.dtype)

    def shift(self, direction: str, a: Reg, b: Reg) -> Reg:
        """By the count modulo the width, as the hardware does; a shift of bool is the identity."""
        if a.dtype is bool_:
            return a
        count = b & self.const(8 * a.dtype.size - 1, b.dtype)
        name = "shli" if direction == "left" else "shrui" if _unsigned(a.dtype) else "shrsi"
        return self.reg(f"arith.{name}", [a, count], a.dtype)

    def compare(self, predicate: str, a: Reg, b: Reg) -> Reg:
        if a.dtype is complex64:
            return self._compare_complex(predicate, a, b)
        i64 = _TYPES[dtypes.int64]
        if a.dtype.is_float:
            return self.reg("arith.cmpf", [a, b], bool_, predicate=ir.IntegerAttr.get(i64, _FLOAT_COMPARE[predicate]))
        code = _INT_COMPARE[predicate]
        code = code if isinstance(code, int) else code[_unsigned(a.dtype)]
        return self.reg("arith.cmpi", [a, b], bool_, predicate=ir.IntegerAttr.get(i64, code))

    def _compare_complex(self, predicate: str, a: Reg, b: Reg) -> Reg:
        """Equality by parts; order is lexicographic, as NumPy's."""
        (ar, ai), (br, bi) = a.value, b.value
        if predicate == "eq":
            return (ar == br) & (ai == bi)
        if predicate == "ne":
            return (ar != br) | (ai != bi)
        return self.compare(predicate[0] + "t", ar, br) | ((ar == br) & self.compare(predicate, ai, bi))

    def select(self, condition: Reg, a: Reg, b: Reg) -> Reg:
        if a.dtype is complex64:
            return self._complex(*[self.select(condition, p, q) for p, q in zip(a.value, b.value, strict=True)])
        return self.reg("arith.select", [condition, a, b], a.dtype)

    # -- float helpers that mathlib and bodies share ------------------------------------------------------------------
    def fma(self, a: Reg, b: Reg, c: Reg) -> Reg:
        return self.reg("math.fma", [a, b, c], a.dtype)

    def min(self, a: Reg, b: Reg) -> Reg:
        """Fast form: `b` if either is NaN."""
        return self.select(a < b, a, b)

    def max(self, a: Reg, b: Reg) -> Reg:
        return self.select(a > b, a, b)

    def maximum(self, a: Reg, b: Reg) -> Reg:
        """NaN wins."""
        return self._extremum("max", a, b)

    def minimum(self, a: Reg, b: Reg) -> Reg:
        return self._extremum("min", a, b)

    def _extremum(self, name: str, a: Reg, b: Reg) -> Reg:
        if a.dtype is complex64:
            better = self.select(self.compare("gt" if name == "max" else "lt", a, b), a, b)
            return self.select(self.compare("ne", a, a), a, self.select(self.compare("ne", b, b), b, better))
        if a.dtype.is_float:
            return self.reg(f"arith.{name}imumf", [a, b], a.dtype)
        return self.reg(f"arith.{name}{'u' if _unsigned(a.dtype) else 's'}i", [a, b], a.dtype)

    def bitcast(self, x: Reg, dtype: Dtype | str) -> Reg:
        """The same bits as another dtype of equal size."""
        dtype = dtypes.from_name(dtype) if isinstance(dtype, str) else dtype
        if complex64 in (x.dtype, dtype):
            return self._bitcast_complex(x, dtype)
        if x.dtype.kind in "iub" and dtype.kind in "iub" and bool_ not in (x.dtype, dtype):
            return Reg(x.value, dtype, self)
        value = x.value
        if x.dtype.is_float and x.dtype.size == 2:
            value = self.op("arith.truncf", [value], _STORAGE[x.dtype])
        if bool_ in (x.dtype, dtype):
            return self.cast(x, dtype)
        value = self.op("arith.bitcast", [value], _STORAGE[dtype]) if _STORAGE[dtype] != value.type else value
        if dtype.is_float and dtype.size == 2:
            value = self.op("arith.extf", [value], _TYPES[dtype])
        return Reg(value, dtype, self)

    def _bitcast_complex(self, x: Reg, dtype: Dtype) -> Reg:
        """Two float32, the real part in the low half, to or from one 8-byte dtype."""
        if x.dtype is dtype:
            return x
        if x.dtype is complex64:
            low, high = (self.cast(self.bitcast(part, dtypes.uint32), dtypes.uint64) for part in x.value)
            return self.bitcast(low | (high << 32), dtype)
        bits = self.bitcast(x, dtypes.uint64)
        parts = (self.cast(b, dtypes.uint32) for b in (bits, bits >> 32))
        return self._complex(*[self.bitcast(b, float32) for b in parts])

    def cast(self, x: Reg, dtype: Dtype | str) -> Reg:
        """A conversion as MLX's astype: to bool by != 0, from float by truncation, complex by its real part."""
        dtype = dtypes.from_name(dtype) if isinstance(dtype, str) else dtype
        source = x.dtype
        if source is dtype:
            return x
        if dtype is complex64:
            return self._complex(self.cast(x, float32), self.const(0, float32))
        if dtype is bool_:
            return x != self.const(0, source)
        if source is complex64:
            return self.cast(x.value[0], dtype)
        if source.is_float and dtype.is_float:
            return self._cast_float(x, dtype)
        if source.is_float:
            # Through the wider integer, so that out-of-range values wrap instead of being undefined.
            wide = dtypes.int64 if dtype.size >= 4 else int32
            if dtype.size < 8:
                limit = 2.0**62 if wide is dtypes.int64 else 2.0**30
                x = self.max(self.min(x, self.const(limit, source)), self.const(-limit, source))
            if dtype is dtypes.uint64:
                return self._to_uint64(x)
            return self._cast_int(Reg(self.op("arith.fptosi", [x.value], _TYPES[wide]), wide, self), dtype)
        if dtype.is_float:
            name = "uitofp" if _unsigned(source) else "sitofp"
            return self.rounded(Reg(self.op(f"arith.{name}", [x.value], _TYPES[dtype]), dtype, self))
        return self._cast_int(x, dtype)

    def _to_uint64(self, x: Reg) -> Reg:
        """By way of int64, so that negative numbers wrap: 2^63 goes off before and comes back as the highest bit."""
        half = self.const(2.0**63, x.dtype)
        large = x >= half
        low = self.op("arith.fptosi", [self.select(large, x - half, x).value], _TYPES[dtypes.uint64])
        bits = Reg(low, dtypes.uint64, self)
        return self.select(large, bits ^ self.const(1 << 63, dtypes.uint64), bits)

    def _cast_float(self, x: Reg, dtype: Dtype) -> Reg:
        if x.dtype is float64:
            return self.rounded(Reg(self.op("arith.truncf", [x.value], _TYPES[float32]), dtype, self))
        if dtype is float64:
            return Reg(self.op("arith.extf", [x.value], _TYPES[float64]), dtype, self)
        return self.rounded(Reg(x.value, dtype, self))

    def rounded(self, x: Reg) -> Reg:
        """A 2-byte float as memory would give it back: explicit conversions and tests of equality need that, arithmetic
        does not.
        """
        if not x.dtype.is_float or x.dtype.size != 2:
            return x
        narrow = self.op("arith.truncf", [x.value], _STORAGE[x.dtype])
        return Reg(self.op("arith.extf", [narrow], _TYPES[x.dtype]), x.dtype, self)

    def _cast_int(self, x: Reg, dtype: Dtype) -> Reg:
        old, new = _TYPES[x.dtype].width, _TYPES[dtype].width
        if new < old:
            return Reg(self.op("arith.trunci", [x.value], _TYPES[dtype]), dtype, self)
        if new > old:
            name = "extui" if _unsigned(x.dtype) else "extsi"
            return Reg(self.op(f"arith.{name}", [x.value], _TYPES[dtype]), dtype, self)
        return Reg(x.value, dtype, self)
