"""The table of primitives for the law tests: one row each, with operands and attributes that exercise it.

A row is `(record, [operands], attrs)`; an operand is `(shape, dtype name, domain)`. Domains keep functions away from
their poles where that
matters; `any` includes zeros, negative and large values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlxir.compiler.graph import Cut, GraphBuilder, GraphHandle, constant, cut
from mlxir.dialects.mx import RECORDS
from mlxir.dialects.mx.matrices import adjoint, product, split, symmetrised
from mlxir.runtime import dtypes

FLOATS = ("float32", "float16", "bfloat16", "float64")
INTS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
INEXACT = (*FLOATS, "complex64")
ALL = (*FLOATS, *INTS, "bool")
EVERY = (*ALL, "complex64")


@dataclass
class Row:
    """One primitive applied to operands of some shapes, for each of `dtypes` (None in an operand takes the dtype under
    test).
    """

    name: str
    operands: list[tuple[tuple[int, ...], str | None, str]]
    dtypes: tuple[str, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    before: Callable[[GraphBuilder, list], list] | None = None  # what makes operands ones that the primitive is for
    after: Callable[[GraphBuilder, list], list] | None = None  # what of the results is determined

    def __str__(self) -> str:
        shapes = "x".join("_".join(map(str, s)) or "0d" for s, _, _ in self.operands)
        return f"{self.name}-{shapes}"


def _unary(name: str, domain: str = "any", dtypes: tuple[str, ...] = FLOATS, **attrs: Any) -> list[Row]:
    return [Row(name, [((3, 5), None, domain)], dtypes, attrs), Row(name, [((), None, domain)], dtypes[:1], attrs)]


def _binary(name: str, domain: str = "any", dtypes: tuple[str, ...] = ALL, second: str | None = None) -> list[Row]:
    second = second or domain
    return [
        Row(name, [((3, 5), None, domain), ((3, 5), None, second)], dtypes),
        Row(name, [((4, 1, 3), None, domain), ((2, 1), None, second)], dtypes[:1]),
        Row(name, [((0, 3), None, domain), ((3,), None, second)], dtypes[:1]),
    ]


def _reduce(name: str, dtypes: tuple[str, ...]) -> list[Row]:
    shapes = [
        ((7, 33), (1,)),
        ((7, 33), (0,)),
        ((7, 33), (0, 1)),
        ((3, 4, 5), (0, 2)),
        ((3, 4, 5), (1,)),
        ((3, 0), (1,)),
        ((6,), ()),
    ]
    rows = [
        Row(name, [(s, None, "small")], dtypes if i == 0 else dtypes[:1], {"axes": a})
        for i, (s, a) in enumerate(shapes)
    ]
    return rows


def _scan(name: str) -> list[Row]:
    rows = []
    for reverse in (False, True):
        for inclusive in (False, True):
            attrs = {"axis": 1, "reverse": reverse, "inclusive": inclusive}
            rows.append(Row(name, [((3, 6, 2), None, "small")], ("float32",), attrs))
    return rows


def _conv(
    x: tuple[int, ...], w: tuple[int, ...], dtypes: tuple[str, ...] = ("float32",), groups: int = 1, flip: bool = False,
    **sizes: Any,
) -> Row:  # fmt: skip
    rank = len(x) - 2
    attrs = {n: sizes.get(n, (d,) * rank)
             for n, d in (("stride", 1), ("low", 0), ("high", 0), ("dilation", 1), ("input_dilation", 1))}  # fmt: skip
    return Row("conv", [(x, None, "any"), (w, None, "any")], dtypes, {**attrs, "groups": groups, "flip": flip})


def _each(count: int) -> Callable[[GraphBuilder, list], list]:
    """The constants of a normalisation over so many elements."""
    return lambda m, x: [*x, m.scalar(1 / count, x[0].dtype), m.scalar(1e-3, x[0].dtype)]


def _factorisations() -> list[Row]:
    """Matrices of every form; those that are read as symmetric are, and of vectors that may turn their phase the
    magnitudes count.
    """
    real = ("float32", "float64")

    def symmetric(m: GraphBuilder, operands: list) -> list:
        return [symmetrised(m, operands[0])]

    def magnitudes(m: GraphBuilder, outs: list) -> list:
        values, vectors = outs
        return [values, m.real(m.conjugate(vectors) * vectors) if vectors.dtype.kind == "c" else vectors]

    def determined(m: GraphBuilder, outs: list) -> list:
        u, s, vt = outs
        (first, rest), (right, below) = split(m, u, -1, s.shape[-1]), split(m, vt, -2, s.shape[-1])
        return [first, s, right, product(m, rest, adjoint(m, rest)), product(m, adjoint(m, below), below)]

    matrix, batch = ((4, 4), None, "matrix"), ((2, 3, 3), None, "matrix")
    tall, wide = ((5, 3), None, "any"), ((3, 5), None, "any")
    rows = [Row(n, [x], real) for n in ("inv", "det", "slogdet") for x in (matrix, batch)]
    rows += [Row(n, [x], real) for n in ("pinv", "qr", "lu", "singular_values") for x in (matrix, tall, wide)]
    rows += [Row("svd", [x], real, after=determined) for x in (matrix, tall, wide)]
    rows += [Row(n, [x], real, before=symmetric) for n in ("cholesky", "eigh", "eigvalsh") for x in (matrix, batch)]
    rows += [Row("eigh", [matrix], ("complex64",), before=symmetric, after=magnitudes)]
    rows += [Row("eigvalsh", [matrix], ("complex64",), before=symmetric)]
    rows += [Row("singular_values", [tall], ("complex64",)), Row("eig", [matrix], ("complex64",), after=magnitudes)]
    rows += [Row("solve", [matrix, ((4, 2), None, "any")], real)]
    rows += [Row("solve", [batch, ((3, 1), None, "any")], ("float32",)), Row("inv", [((0, 0), None, "any")], ("float32",))]
    rows += [Row("solve_triangular", [matrix, ((4, 2), None, "any")], real, {"upper": u}) for u in (False, True)]
    rows += [Row("solve_triangular", [((3, 3), None, "matrix"), ((2, 3, 1), None, "any")], ("float32",), {"upper": True})]
    return rows


def _fourier() -> list[Row]:
    rows = [Row("fft", [((3, 5, 4), None, "any")], ("complex64",), {"axes": a, "inverse": i}) for a in ((1,), (0, 2)) for i in (False, True)]
    rows += [Row("rfft", [((3, n), None, "any")], ("complex64",), {"axis": 1}, before=lambda m, x: [m.real(x[0])]) for n in (1, 5, 8)]
    rows += [Row("irfft", [((n // 2 + 1, 2), None, "any")], ("complex64",), {"axis": 0, "n": n}) for n in (1, 2, 5, 8)]
    return rows


_IDX = ((4,), "int32", "index5")
_BYTES, _STARTS = ((4,), "int8", "index5"), ((4,), "int8", "start4")

_ATTEND = {"scale": 0.3, "fill": -1e30}

TABLE: list[Row] = [
    *_binary("add", dtypes=EVERY), *_binary("subtract", dtypes=EVERY), *_binary("multiply", dtypes=EVERY),
    *_binary("divide", dtypes=INEXACT, second="nonzero"),
    *_binary("floor_divide", second="nonzero"), *_binary("remainder", second="nonzero"),
    *_binary("power", "positive", (*INEXACT, "int32", "uint8")), *_binary("power", "any", FLOATS[:1], "counts"),
    *_binary("maximum"), *_binary("minimum"),
    *_binary("arctan2", dtypes=FLOATS), *_binary("logaddexp", dtypes=FLOATS),
    *_unary("negative", dtypes=(*INEXACT, *INTS)),
    *[r for n in ("abs", "sign", "square") for r in _unary(n, dtypes=EVERY)],
    *[r for n in ("exp", "expm1", "sigmoid", "sin", "cos", "arctan", "sinh", "cosh", "tanh", "arcsinh") for r in _unary(n, dtypes=INEXACT)],
    *[r for n in ("sqrt", "rsqrt", "log", "log2", "log10", "log1p") for r in _unary(n, "positive", INEXACT)],
    *[r for n in ("tan", "arcsin", "arccos", "arctanh") for r in _unary(n, "unit", INEXACT)],
    *_unary("reciprocal", "nonzero", INEXACT), *_unary("arccosh", "above1", INEXACT), *_unary("erf"), *_unary("erfinv", "unit"),
    *_unary("floor", dtypes=ALL), *_unary("ceil", dtypes=ALL), *_unary("trunc", dtypes=ALL), *_unary("round", dtypes=ALL),
    *[r for n in ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal") for r in _binary(n, "few")],
    *_binary("logical_and", dtypes=("bool",)), *_binary("logical_or", dtypes=("bool",)), *_unary("logical_not", dtypes=("bool",)),
    *[r for n in ("bitwise_and", "bitwise_or", "bitwise_xor") for r in _binary(n, dtypes=(*INTS, "bool"))],
    *_unary("bitwise_invert", dtypes=(*INTS, "bool")),
    *_binary("left_shift", dtypes=INTS, second="shift"), *_binary("right_shift", dtypes=INTS, second="shift"),
    *_unary("real", dtypes=("complex64",)), *_unary("imag", dtypes=("complex64",)), *_unary("conjugate", dtypes=("complex64",)),
    Row("select", [((3, 5), "bool", "any"), ((3, 5), None, "any"), ((5,), None, "any")], EVERY),
    Row("select", [((), "bool", "any"), ((5,), None, "any"), ((), None, "any")], ("float32",)),
    *[r for d in ("float32", "float16", "int32", "int8", "uint8", "bool", "float64", "complex64", "int64")
      for r in _unary("astype", "few", EVERY, dtype=dtypes.from_name(d))],
    *_reduce("sum", (*INEXACT, "int32", "uint64")), *_reduce("prod", (*INEXACT, "int32")), *_reduce("max", ALL), *_reduce("min", ALL),
    Row("prod", [((4, 5, 3), None, "counts")], ("float32",), {"axes": (0, 2)}),  # zeros: none, one or several in a product
    *_reduce("all", ("bool",)), *_reduce("any", ("bool",)),
    *[Row(n, [((3, 7, 2), None, "any")], ALL if a == 1 else ("float32",), {"axis": a}) for n in ("argmax", "argmin") for a in (0, 1, 2)],
    Row("transpose", [((3, 5, 2), None, "any")], ALL, {"axes": (2, 0, 1)}),
    Row("reshape", [((3, 4, 2), None, "any")], ("float32", "bool"), {"shape": (2, 12)}),
    Row("broadcast_to", [((3, 1), None, "any")], ("float32",), {"shape": (2, 3, 4)}),
    Row("slice", [((6, 5), None, "any")], ("float32", "int8"), {"start": (1, 4), "stop": (6, -1), "strides": (2, -2)}),
    Row("slice_update", [((6, 5), None, "any"), ((3, 3), None, "any")], ("float32",),
        {"start": (1, 4), "stop": (6, -1), "strides": (2, -2)}),
    Row("slice_update", [((6, 5), None, "any"), ((2, 5), None, "any")], ("float32",),
        {"start": (3, 0), "stop": (5, 5), "strides": (1, 1)}),
    Row("pad", [((3, 4), None, "any"), ((), None, "any")], ("float32", "int32"), {"low": (1, 0), "high": (0, 2)}),
    Row("pad", [((0, 2), None, "any"), ((), None, "any")], ("float32",), {"low": (1, 0), "high": (0, 2)}),
    Row("concatenate", [((3, 4), None, "any"), ((3, 2), None, "any")], ("float32", "bool"), {"axis": 1}),
    Row("concatenate", [((0, 4), None, "any"), ((3, 4), None, "any")], ("float32",), {"axis": 0}),
    Row("reshape", [((1, 1), None, "any")], ("float32",), {"shape": ()}),
    Row("broadcast_to", [((), None, "any")], ("float32",), {"shape": (2, 0)}),
    Row("slice", [((4, 3), None, "any")], ("float32",), {"start": (2, 0), "stop": (2, 3), "strides": (1, 1)}),
    Row("full", [], ("float32",), {"value": 2.5, "shape": (3, 2), "dtype": dtypes.float32}),
    Row("full", [], ("float32",), {"value": 2**64 - 1, "shape": (2,), "dtype": dtypes.uint64}),
    Row("arange", [], ("float32",), {"start": 0.5, "step": 0.1, "length": 17, "dtype": dtypes.float32}),
    Row("arange", [], ("float32",), {"start": 5, "step": -2, "length": 7, "dtype": dtypes.int32}),
    *[Row("as_strided", [(x, None, "any")], ("float32", "int32") if n == 0 else ("float32",),
          {"shape": shape, "strides": strides, "offset": offset})
      for n, (x, shape, strides, offset) in enumerate([
          ((2, 5, 6, 3), (2, 2, 3, 3, 2, 3), (90, 36, 6, 18, 3, 1), 0), ((4, 6), (3, 2, 3), (6, 6, 2), 1),
          ((30,), (4, 5), (3, 2), 2), ((4, 6), (3, 4), (-5, 3), 11), ((5,), (3, 2), (0, 2), 1), ((2, 3), (0, 2), (1, 1), 0),
          ((2, 7), (2, 9), (1, 1), 3), ((3, 4), (), (), 5)])],
    Row("view", [((3, 4), None, "any")], ("float32", "int32"), {"dtype": dtypes.uint32}),
    Row("view", [((3, 4), None, "any")], ("float16", "bfloat16", "int16"), {"dtype": dtypes.uint16}),
    Row("view", [((3, 4), None, "any")], ("int8", "bool"), {"dtype": dtypes.uint8}),
    Row("view", [((3, 4), None, "any")], ("complex64", "float64", "int64"), {"dtype": dtypes.uint64}),
    Row("view", [((3, 4), None, "any")], ("float64", "uint64"), {"dtype": dtypes.complex64}),
    Row("gather", [((5, 6), None, "any"), _IDX], ("float32", "bool"), {"axes": (0,), "slice_sizes": (1, 6)}),
    Row("gather", [((5, 6), None, "any"), ((2, 3), "uint32", "index5"), ((2, 3), "uint32", "index5")], ("float32",),
        {"axes": (1, 0), "slice_sizes": (2, 1)}),
    Row("gather", [((5, 6), None, "any"), _STARTS], ("float32", "complex64"), {"axes": (1,), "slice_sizes": (5, 2)}),
    Row("gather", [((5, 6), None, "any"), ((), "int32", "index5"), ((), "int32", "index5")], ("float32",),
        {"axes": (0, 1), "slice_sizes": (1, 1)}),
    Row("gather", [((5, 3), None, "any"), ((0,), "int32", "index5")], ("float32",), {"axes": (0,), "slice_sizes": (1, 3)}),
    *[Row("scatter", [((5, 4), None, "counts"), _STARTS, _STARTS, ((4, 2, 1), None, "counts")], ("float32",), {"axes": (1, 0), "mode": m})
      for m in ("set", "multiply")],
    Row("scatter", [((5, 3), None, "any"), ((0,), "int32", "index5"), ((0, 1, 3), None, "any")], ("float32",), {"axes": (0,), "mode": "set"}),
    *[Row("scatter", [((5, 6), None, "nonzero"), _IDX, ((4, 1, 6), None, "nonzero")], ("float32",), {"axes": (0,), "mode": m})
      for m in ("set", "add", "multiply", "maximum", "minimum")],
    Row("scatter", [((5, 6), None, "any"), ((3,), "int32", "index5"), ((3,), "int32", "index5"), ((3, 1, 1), None, "any")],
        ("float32", "int32"), {"axes": (0, 1), "mode": "add"}),
    Row("take_along_axis", [((5, 6), None, "any"), ((3, 6), "int32", "index5")], ("float32",), {"axis": 0}),
    Row("take_along_axis", [((2, 5), None, "any"), ((2, 4), "uint8", "index5")], ("float32",), {"axis": 1}),
    Row("take_along_axis", [((2, 5, 3), None, "any"), ((2, 1, 3), "int8", "index5")], ("float32",), {"axis": 1}),
    *[Row("matmul", [((4, 7) if not ta else (7, 4), None, "any"), ((7, 5) if not tb else (5, 7), None, "any")], INEXACT,
          {"ta": ta, "tb": tb}) for ta in (False, True) for tb in (False, True)],
    Row("matmul", [((2, 1, 3, 4), None, "any"), ((5, 4, 2), None, "any")], ("float32",), {"ta": False, "tb": False}),
    Row("matmul", [((1, 9), None, "any"), ((9, 33), None, "any")], ("float32",), {"ta": False, "tb": False}),
    Row("matmul", [((3, 0), None, "any"), ((0, 2), None, "any")], ("float32",), {"ta": False, "tb": False}),
    _conv((2, 5, 6, 3), (4, 3, 2, 3), FLOATS, low=(1, 0), high=(1, 2)),
    _conv((1, 7, 6, 2), (3, 3, 3, 2), stride=(2, 3), low=(1, -1), high=(0, 1), dilation=(2, 1), flip=True),
    _conv((2, 6, 4), (6, 3, 2), groups=2, stride=(2,), low=(2,), high=(1,), input_dilation=(3,), dilation=(2,)),
    _conv((2, 4, 4, 3), (3, 2, 3, 1), groups=3, low=(1, 1), high=(1, 1)),
    _conv((1, 3, 4, 2, 2), (2, 2, 2, 1, 2), stride=(1, 2, 1), low=(1, 0, 0), high=(0, 1, 0)),
    _conv((2, 3, 0), (2, 2, 0)), _conv((0, 3, 2), (2, 2, 2)),
    *[r for n in ("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp") for r in _scan(n)],
    Row("logcumsumexp", [((3, 6), None, "small")], ("complex64",), {"axis": 1, "reverse": False, "inclusive": True}),
    Row("cumprod", [((3, 6), None, "counts")], ("float32", "complex64"), {"axis": 1, "reverse": True, "inclusive": True}),
    *[Row("recurrence", [((3, 6, 2), None, "small"), ((3, 6, 2), None, "small")], FLOATS if not r else ("float32", "complex64", "int32"),
          {"axis": a, "reverse": r}) for r in (False, True) for a in (0, 1, 2)],
    Row("recurrence", [((2, 0), None, "any"), ((2, 0), None, "any")], ("float32",), {"axis": 1, "reverse": False}),
    *[Row(n, [((2, 0, 3), None, "any")], ("float32",), {"axis": 1, "reverse": False, "inclusive": False})
      for n in ("cumsum", "cumprod", "cummax", "logcumsumexp")],
    *[Row(n, [((4, 6), None, "any")], ("float32", "int32"), {"axis": a}) for n in ("sort", "argsort") for a in (0, 1)],
    Row("random_bits", [((2,), "uint32", "any")], ("float32",), {"shape": (3, 5), "width": 4}),
    Row("random_bits", [((4, 2), "uint32", "any")], ("float32",), {"shape": (7,), "width": 1}),
    Row("random_bits", [((2,), "uint32", "any")], ("float32",), {"shape": (9,), "width": 2}),
    *_unary("stop_gradient"),
    Row("depends", [((3, 5), None, "any"), ((2,), None, "any")], FLOATS),
    Row("depends", [((4,), None, "any"), ((), "int32", "any")], ("float32", "int8")),
    Row("softmax", [((4, 37), None, "any")], INEXACT, {"axes": (1,)}), Row("softmax", [((4, 37), None, "any")], ("float32",), {"axes": (0,)}),
    Row("softmax", [((3, 4, 5), None, "any")], ("float32",), {"axes": (0, 2)}),
    Row("logsumexp", [((4, 37), None, "any")], INEXACT, {"axes": (1,)}),
    Row("logsumexp", [((4, 5, 3), None, "any")], ("float32",), {"axes": (0, 1)}),
    *[Row("normalize", [((4, 37), None, "any")], FLOATS, {"axes": (1,), "centred": c}, _each(37)) for c in (False, True)],
    Row("normalize", [((3, 4, 5), None, "any")], ("float32",), {"axes": (0, 2), "centred": True}, _each(15)),
    Row("attention", [((2, 4, 3, 5), None, "any"), ((2, 2, 6, 5), None, "any"), ((2, 2, 6, 4), None, "any"),
        ((2, 1, 3, 6), "bool", "any"), ((1, 4), None, "any")], FLOATS, {**_ATTEND, "causal": False, "swapped": False}),
    Row("attention", [((1, 2, 4, 3), None, "any"), ((1, 2, 5, 3), None, "any"), ((1, 2, 5, 7), None, "any"),
        ((1, 1, 4, 5), None, "any"), ((1, 1), None, "any")], ("float32", "float64"), {**_ATTEND, "causal": True, "swapped": True}),
    Row("attention_grad", [((1, 2, 3, 3), None, "any"), ((1, 1, 4, 3), None, "any"), ((1, 1, 4, 2), None, "any"),
        ((1, 2, 1, 4), "bool", "any"), *[((1, 2, 3), None, d) for d in ("any", "positive", "any")], ((1, 2, 3, 2), None, "any")],
        ("float32", "float64"), {**_ATTEND, "causal": True, "swapped": True}),
    *_factorisations(), *_fourier(),
    *[Row("unpack_bits", [((2, bits), "uint32", "any")], ("float32",), {"bits": bits}) for bits in (1, 3, 4, 5, 8)],
]  # fmt: skip


TRANSFORMS: dict[str, tuple[dict[str, Any], int, int]] = {
    "vjp": ({"wrt": (0,), "seeded": (0,)}, 2, 2),
    "jvp": ({"wrt": (0,)}, 2, 2),
    "vmap": ({"in_axes": (0,), "out_axes": (0,), "size": 2}, 1, 1),
    "checkpoint": ({"inputs": (0,)}, 1, 1),
    "custom": ({"inputs": (0,), "captured": (0, 0, 0, 0), "fun_vjp": "", "vjp_inputs": (), "fun_jvp": "", "jvp_inputs": (),
                "fun_vmap": "", "vmap_axes": ()}, 1, 1),
}  # fmt: skip
"""Transform -> attributes beside `callee`, and the numbers of operands and results, for a function of one array."""


def sample(shape: tuple[int, ...], dtype: str, domain: str, seed: int = 0) -> np.ndarray:
    """Reproducible data of a dtype within a domain."""
    rng = np.random.default_rng([seed, len(shape), sum(shape), len(domain)])
    kind = dtypes.from_name(dtype)
    if kind.kind == "b":
        return np.asarray(rng.integers(0, 2, shape), bool)
    if domain == "index5":
        return np.asarray(rng.integers(0 if kind.kind == "u" else -5, 5, shape), kind.numpy)
    if domain == "start4":
        return np.asarray(rng.integers(0, 4, shape), kind.numpy)
    if domain == "shift":
        return np.asarray(rng.integers(0, 8, shape), kind.numpy)
    if kind.kind in "iu":
        info = np.iinfo(kind.numpy)
        low, high = {"few": (0, 3), "counts": (0, 3), "small": (0, 4), "positive": (1, 4), "nonzero": (1, 9)}.get(
            domain, (max(info.min, -100), 100)
        )
        return np.asarray(rng.integers(low, high, shape), kind.numpy)
    x = rng.standard_normal(shape) * 2
    if domain == "positive":
        x = np.abs(x) + 0.1
    elif domain == "nonzero":
        x = np.copysign(np.abs(x) + 0.5, x)
    elif domain == "unit":
        x = np.tanh(x) * 0.95
    elif domain == "above1":
        x = np.abs(x) + 1.1
    elif domain == "few":
        x = np.round(x)
    elif domain == "counts":
        x = np.abs(np.round(x))
    elif domain == "matrix":  # regular, positive definite once made symmetric, with well separated eigenvalues
        x = 0.4 * x + np.diag(np.arange(3.0, 3 + 2 * shape[-1], 2))
    if kind.kind == "c":
        y = rng.standard_normal(shape)
        x = x + 1j * (
            np.copysign(np.abs(y) + 0.5, y) if domain in ("unit", "above1") else y
        )  # their branch cuts are real
    return np.asarray(x, kind.numpy)


def arrays(row: Row, dtype: str) -> list[np.ndarray]:
    """The operands of a row for one dtype."""
    return [sample(s, d or dtype, domain, i) for i, (s, d, domain) in enumerate(row.operands)]


def applied(row: Row, builder: GraphBuilder, handles: list[GraphHandle]) -> list[GraphHandle]:
    """The results of the row for these operands."""
    outs = builder.emit(RECORDS[row.name], row.before(builder, handles) if row.before else handles, row.attrs)
    return row.after(builder, outs) if row.after else outs


def traced(row: Row, operands: list[np.ndarray]) -> Cut:
    """The program that applies the primitive once."""
    builder = GraphBuilder()
    handles: list[GraphHandle] = [builder.handle(constant(a)) for a in operands]
    return cut([o.value for o in applied(row, builder, handles)], [h.value for h in handles])


TOLERANCE = {"float16": 2e-3, "bfloat16": 1.6e-2, "float32": 2e-6, "float64": 1e-12, "complex64": 4e-6}
"""Relative to the larger of 1 and the value: rounding differs by the order of operations and by fused multiply-adds."""


def assert_close(actual: np.ndarray, expected: np.ndarray, factor: float = 1.0) -> None:
    """Equal dtype and shape; exact for integers and bool, within the dtype's tolerance otherwise."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape, (
        actual.dtype,
        expected.dtype,
        actual.shape,
        expected.shape,
    )
    name = dtypes.from_numpy(actual.dtype).name
    if name not in TOLERANCE:
        np.testing.assert_array_equal(actual, expected)
        return
    wide = np.complex128 if name == "complex64" else np.float64
    a, e = actual.astype(wide), expected.astype(wide)
    finite = np.isfinite(e)
    np.testing.assert_array_equal(np.isnan(a), np.isnan(e))
    np.testing.assert_array_equal(a[~finite & ~np.isnan(e)], e[~finite & ~np.isnan(e)])
    error = np.abs(a[finite] - e[finite]) / np.maximum(np.abs(e[finite]), 1)
    assert not error.size or error.max() <= TOLERANCE[name] * factor, f"error {error.max():.2e}"
