"""Gradients of public functions equal real MLX's: at generic points, and where BEHAVIOUR section 5 has a convention."""

from __future__ import annotations

import mlx.core as real
import numpy as np
import pytest

import mlxir

INF, NAN = float("inf"), float("nan")
RNG = np.random.default_rng(7)


def _points(shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
    return RNG.uniform(low, high, shape).astype(np.float32)


X, Y, P, U, BIG = (_points((3, 4), *r) for r in ((-2, 2), (-2, 2), (0.2, 3), (-0.9, 0.9), (1.1, 4)))
V, W = _points((4,), -2, 2), _points((4,), -2, 2)
T, K = _points((2, 3, 4), -2, 2), _points((5,), -2, 2)
M1, M2 = _points((3, 4), -2, 2), _points((4, 5), -2, 2)
B1, B2 = _points((2, 3, 4), -2, 2), _points((2, 4, 3), -2, 2)
SMALL = _points((2, 2), 0.5, 1.5)

# name -> (function of the library and arrays, arrays); the loss is the sum of the result times fixed weights
UNARY = {
    **{n: X for n in ("abs", "negative", "square", "exp", "expm1", "sigmoid", "sin", "cos", "arctan", "sinh", "cosh",
                      "tanh", "arcsinh", "erf", "sign", "floor", "ceil", "round", "degrees", "radians", "stop_gradient",
                      "softmax", "flatten", "transpose")},
    **{n: P for n in ("sqrt", "rsqrt", "reciprocal", "log", "log2", "log10", "log1p")},
    **{n: U for n in ("tan", "arcsin", "arccos", "arctanh", "erfinv")}, "arccosh": BIG,
}  # fmt: skip
BINARY = {
    **{n: (X, Y) for n in ("add", "subtract", "multiply", "maximum", "minimum", "arctan2", "logaddexp")},
    "divide": (X, P), "power": (P, Y), "remainder": (X, P), "floor_divide": (X, P),
    "inner": (V, W), "outer": (V, W), "kron": (SMALL, V), "matmul": (M1, M2),
}  # fmt: skip
REDUCTIONS = ("sum", "mean", "max", "min", "prod", "var", "std", "logsumexp")
CASES: dict[str, tuple] = {
    **{n: (lambda m, x, n=n: getattr(m, n)(x), x) for n, x in UNARY.items()},
    **{n: (lambda m, x, y, n=n: getattr(m, n)(x, y), *xy) for n, xy in BINARY.items()},
    "tensordot": (lambda m, x, y: m.tensordot(x, y, 1), M1, M2),
    **{f"{n} of rows": (lambda m, x, y, n=n: getattr(m, n)(x, y), X, P[0])
       for n in ("add", "subtract", "multiply", "divide", "maximum")},
    **{f"{n} all": (lambda m, x, n=n: getattr(m, n)(x), X) for n in REDUCTIONS},
    **{f"{n} axis {a}": (lambda m, x, n=n, a=a: getattr(m, n)(x, axis=a, keepdims=True), T) for n in REDUCTIONS
        for a in (1, (0, 2))},
    **{f"{n} {r} {i}": (lambda m, x, n=n, r=r, i=i: getattr(m, n)(x, axis=1, reverse=r, inclusive=i), T)
       for n in ("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp")
       for r in (False, True) for i in (False, True)},
    "sort": (lambda m, x: m.sort(x, axis=0), X), "topk": (lambda m, x: m.topk(x, 2, axis=-1), X),
    "partition": (lambda m, x: m.sort(m.partition(x, 2, axis=1), axis=1), X),
    "where": (lambda m, x, y: m.where(x > 0, x * y, y), X, Y), "clip": (lambda m, x: m.clip(x, -1, 1), X),
    "nan_to_num": (lambda m, x: m.nan_to_num(x), X),
    "reshape": (lambda m, x: m.reshape(x, (2, 6)), X), "swapaxes": (lambda m, x: m.swapaxes(x, 0, 2), T),
    "moveaxis": (lambda m, x: m.moveaxis(x, 0, 2), T), "broadcast_to": (lambda m, x: m.broadcast_to(x, (2, 3, 4)), V),
    "expand_dims": (lambda m, x: m.expand_dims(x, (0, 2)), V),
    "squeeze": (lambda m, x: m.squeeze(m.reshape(x, (1, 3, 1, 4))), X),
    "pad": (lambda m, x: m.pad(x, [(1, 2), (0, 1)], "constant", 2.0), X),
    "roll": (lambda m, x: m.roll(x, 2, 1), X), "repeat": (lambda m, x: m.repeat(x, 3, axis=0), X),
    "tile": (lambda m, x: m.tile(x, (2, 3)), X),
    "concatenate": (lambda m, x, y, v: m.concatenate([x, y, v[None]], axis=0), X, Y, V),
    "stack": (lambda m, x, y: m.stack([x, y, x], axis=1), X, Y),
    "split": (lambda m, x: m.split(x, 2, axis=1)[1], X), "diag": (lambda m, v: m.diag(v, 1), V),
    "diagonal": (lambda m, x: m.diagonal(x, 1), X),
    "trace": (lambda m, x: m.trace(x), X), "tril": (lambda m, x: m.tril(x, -1), X), "triu": (lambda m, x: m.triu(x), X),
    "meshgrid": (lambda m, v, w: m.meshgrid(v, w)[0] * m.meshgrid(v, w)[1], V, W),
    "addmm": (lambda m, c, a, b: m.addmm(c, a, b, 0.5, 2.0), K, M1, M2),
    "batched matmul": (lambda m, a, b: a @ b, B1, B2),
    "matmul of vector": (lambda m, a, v: a @ v, M1, V),
    "einsum": (lambda m, a, b: m.einsum("bij,bjk->ki", a, b), B1, B2),
    "slice": (lambda m, x: x[1:, ::-2], X), "index": (lambda m, x: x[1, 2], X),
    "ellipsis": (lambda m, x: x[..., None, -1], T),
    "take": (lambda m, x: m.take(x, m.array([2, 0, 2]), axis=0), X),
    "gather": (lambda m, x: x[m.array([[0, 2], [1, 1]]), m.array([3, 0])], X),
    "take_along_axis": (lambda m, x: m.take_along_axis(x, m.array([[0, 3], [1, 1], [2, 0]]), axis=1), X),
    "put_along_axis": (lambda m, x, y: m.put_along_axis(x, m.array([[0, 3, 1, 2]] * 3), y, axis=1), X, Y),
    "set slice": (lambda m, x, v: _assigned(x, (slice(None), 1), v[:3]), X, V),
    "set gather": (lambda m, x, v: _assigned(x, m.array([2, 0]), v), X, V),
    **{f"at {n}": (lambda m, x, y, n=n: getattr(x.at[m.array([0, 2])], n)(y[:2]), X, P)
       for n in ("add", "subtract", "maximum", "minimum")},
    "at add twice": (lambda m, x, y: x.at[m.array([0, 0, 1])].add(y), X, Y),
    "at slice": (lambda m, x, v: x.at[1:, 2].add(v[:2]), X, V),
    "norm": (lambda m, x: m.linalg.norm(x), X), "norm axis": (lambda m, x: m.linalg.norm(x, ord=1, axis=1), X),
    "cross": (lambda m, x, y: m.linalg.cross(x[:, :3], y[:, :3]), X, Y),
    "layer_norm": (lambda m, x, w, b: m.fast.layer_norm(x, w, b, 1e-5), X, V, W),
    "rms_norm": (lambda m, x, w: m.fast.rms_norm(x, w, 1e-5), X, V),
    "rope": (lambda m, x: m.fast.rope(x, 4, traditional=False, base=10000.0, scale=1.0, offset=1), T[:, None]),
    "attention": (lambda m, q, k: m.fast.scaled_dot_product_attention(q, k, q * k, scale=0.5),
        T[:, None], T[::-1, None].copy()),
    "astype": (lambda m, x: (x.astype(m.float16) * 2).astype(m.float32), X),
    "complex abs": (lambda m, x, y: m.abs(x + 1j * y), X, Y),
    "complex exp": (lambda m, x, y: m.real(m.exp(x + 1j * y)), X, Y),
    "complex product": (lambda m, x, y: m.imag((x + 1j * y) * m.conjugate(x * 2j + y) / (y - 3j * x)), X, Y),
}  # fmt: skip


def _assigned(x, where, value):
    x[where] = value
    return x


def gradients(m, function, arrays):
    """The gradients of a weighted sum of the results."""

    def loss(*xs):
        # The library's own arrays are mutable: what is assigned to must not be an argument.
        out = function(m, *[x * 1 for x in xs])
        weights = np.cos(np.arange(out.size, dtype=np.float32)).reshape(out.shape)
        return m.sum(out * m.array(weights))

    return m.grad(lambda xs: loss(*xs))([m.array(a) for a in arrays])


@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_those_of_mlx(name: str) -> None:
    function, *arrays = CASES[name]
    theirs, mine = gradients(real, function, arrays), gradients(mlxir, function, arrays)
    for a, b, x in zip(mine, theirs, arrays, strict=True):
        assert a.shape == x.shape and str(a.dtype) == str(b.dtype)
        np.testing.assert_allclose(np.array(a), np.array(b), rtol=2e-4, atol=2e-4)


# name -> (loss, point, expected gradient where it is not MLX's)
EDGES: dict[str, tuple] = {
    "abs": (lambda m, x: m.abs(x), [0.0, -0.0, -3.0]), "sign": (lambda m, x: m.sign(x), [0.0, 2.0]),
    "relu": (lambda m, x: m.maximum(x, 0), [0.0, 1.0, -1.0]),
    "tie goes to b": (lambda m, x: m.maximum(x, m.array([1.0, 2.0])), [1.0, 2.0]),
    "b of a tie": (lambda m, x: m.minimum(m.array([1.0, 2.0]), x), [1.0, 2.0]),
    "self": (lambda m, x: m.maximum(x, x), [1.0, 2.0]),
    "max ties": (lambda m, x: m.max(x), [1.0, 3.0, 3.0, 3.0]), "min ties": (lambda m, x: m.min(x), [1.0, 1.0, 3.0]),
    "sort ties": (lambda m, x: m.sort(x) * m.array([1.0, 2.0, 3.0]), [2.0, 1.0, 2.0]),
    "cummax ties": (lambda m, x: m.cummax(x), [1.0, 1.0, 2.0, 0.0, 2.0]),
    "cummin ties": (lambda m, x: m.cummin(x), [2.0, 2.0, 1.0, 1.0]),
    "prod, one zero": (lambda m, x: m.prod(x), [0.0, 2.0, 3.0]), "prod, two": (lambda m, x: m.prod(x), [0.0, 2.0, 0.0]),
    "cumprod, one zero": (lambda m, x: m.cumprod(x), [2.0, 0.0, 3.0, 4.0]),
    "sqrt": (lambda m, x: m.sqrt(x), [0.0, 4.0]),
    "log": (lambda m, x: m.log(x), [0.0, 4.0]), "rsqrt": (lambda m, x: m.rsqrt(x), [0.0, 4.0]),
    "where does not stop NaN": (lambda m, x: m.where(x > 0, m.sqrt(x), 0), [-1.0, 4.0]),
    "clip": (lambda m, x: m.clip(x, 0, 1), [0.0, 1.0, 0.5, 2.0]), "topk": (lambda m, x: m.topk(x, 2), [1.0, 1.0, 0.5]),
    "square by power": (lambda m, x: x**2, [0.0, -1.0, 3.0]), "cube by power": (lambda m, x: x**3, [0.0, -1.0]),
    "sqrt by power": (lambda m, x: x**0.5, [4.0, 0.25]),
    "power of a negative base": (lambda m, x: m.power(x, m.array([2.0, 3.0])), [-2.0, -2.0]),
    "exponent of zero": (lambda m, x: m.power(m.array([0.0, 2.0]), x), [2.0, 3.0]),
    "logaddexp, infinite": (lambda m, x: m.logaddexp(x, m.array([0.0, 0.0, INF])), [INF, -INF, 0.0]),
    "logsumexp, -inf": (lambda m, x: m.logsumexp(x), [-INF, 1.0]),
    "softmax, -inf": (lambda m, x: m.softmax(x)[1:], [-INF, 1.0, 2.0]),
    "logsumexp of nothing": (lambda m, x: m.logsumexp(x), [-INF, -INF]),
    "norm of zeros": (lambda m, x: m.linalg.norm(x), [0.0, 0.0]),
    "std of a constant": (lambda m, x: m.std(x), [2.0, 2.0]),
    "arctan2 at 0": (lambda m, x: m.arctan2(x, m.array([0.0, 1.0])), [0.0, 0.0]),
    "max with NaN": (lambda m, x: m.max(x), [1.0, NAN, 2.0]),
    "remainder": (lambda m, x: m.remainder(x, 2), [0.5, 2.5, -1.0]),
    "comparison": (lambda m, x: (x > 1) * 1.0, [0.0, 2.0]),
    "astype int": (lambda m, x: x.astype(m.int32).astype(m.float32), [0.5, 2.5]),
    "assigned twice": (lambda m, x: _assigned(x * 1, m.array([0, 0]), 5.0), [1.0, 2.0]),
    "x ** 0 at 0": (lambda m, x: m.power(x, m.array([0.0, 0.0])), [0.0, 2.0], [0.0, 0.0]),
    "base 0, exponent 0": (lambda m, x: m.power(m.array([0.0]), x), [0.0], [0.0]),
    "logsumexp, inf": (lambda m, x: m.logsumexp(x), [INF, 1.0], [NAN, 0.0]),
    "multiply at a zero": (lambda m, x: x.at[m.array([0, 0, 1])].multiply(m.array([2.0, 3.0, 4.0])),
        [0.0, 2.0], [6.0, 4.0]),
    "the last assignment wins": (lambda m, x: _assigned(m.zeros(2), m.array([0, 0]), x), [1.0, 2.0], [0.0, 1.0]),
    "updates with a zero": (lambda m, x: m.array([5.0, 2.0]).at[m.array([0, 0, 1])].multiply(x),
        [0.0, 3.0, 4.0], [15.0, 0.0, 2.0]),
}  # fmt: skip


@pytest.mark.parametrize("name", EDGES)
def test_conventions(name: str) -> None:
    """Where the table has an expected gradient, MLX gives NaN, has no rule or differentiates a lost assignment."""
    function, point, *expected = EDGES[name]

    def gradient(m):
        return np.array(m.grad(lambda x: m.sum(function(m, x)))(m.array(point)))

    np.testing.assert_allclose(gradient(mlxir), expected[0] if expected else gradient(real), rtol=1e-5, atol=1e-6)


SECOND = {
    "power": (lambda m, x: x**3, [0.0, 2.0], [0.0, 12.0]), "square": (lambda m, x: x**2, [0.0, -3.0], [2.0, 2.0]),
    "exponent": (lambda m, x: m.power(m.array([0.0, 2.0]), x), [2.0, 3.0], [0.0, 8 * np.log(2.0) ** 2]),
    "maximum": (lambda m, x: m.maximum(x, 0) ** 2, [1.0, -1.0], [2.0, 0.0]),
    "sort": (lambda m, x: m.sort(x) ** 2, [2.0, 1.0], [2.0, 2.0]),
    "gather": (lambda m, x: x[m.array([1, 1])] ** 2, [2.0, 1.0], [0.0, 4.0]),
    "scatter": (lambda m, x: x.at[m.array([0, 0])].add(x) ** 2, [2.0, 1.0], [8.0, 4.0]),
    "prod": (lambda m, x: m.prod(x) ** 2, [0.0, 3.0], [18.0, 0.0]),
    "modulus": (lambda m, x: m.abs(x + 1j) ** 2, [1.0, 2.0], [2.0, 2.0]),
}  # fmt: skip


@pytest.mark.parametrize("name", SECOND)
def test_second_derivatives(name: str) -> None:
    """grad of a sum of grad, against values found by hand."""
    function, point, expected = SECOND[name]
    total = lambda x: mlxir.sum(mlxir.grad(lambda y: mlxir.sum(function(mlxir, y)))(x))  # noqa: E731
    hessian = mlxir.hessian(lambda x: mlxir.sum(function(mlxir, x)))(mlxir.array(point))
    np.testing.assert_allclose(
        np.array(mlxir.grad(total)(mlxir.array(point))), np.array(hessian).sum(0), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(np.diag(np.array(hessian)), expected, rtol=1e-5, atol=1e-5)
