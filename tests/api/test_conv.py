"""Convolutions and pooling: the same values, dtypes, gradients and error types as real MLX."""

from __future__ import annotations

from typing import Any

import mlx.core as real
import numpy as np
import pytest
from oracle import assert_agree, assert_same, expression, numpy_of

import mlxir

# (function, shape of x, shape of w, keyword arguments)
CASES: list[tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ("conv1d", (2, 10, 3), (4, 3, 3), {}),
    ("conv1d", (2, 10, 4), (6, 3, 2), {"groups": 2, "stride": 2, "padding": 1}),
    ("conv1d", (1, 9, 2), (3, 4, 2), {"dilation": 2, "padding": 3}),
    ("conv1d", (2, 10, 3), (4, 3, 3), {"padding": -1}),
    ("conv1d", (2, 12, 4), (4, 1, 4), {"stride": 3}),
    ("conv1d", (0, 10, 3), (4, 3, 3), {}),
    ("conv1d", (2, 0, 3), (4, 3, 3), {"padding": 2}),
    ("conv2d", (2, 9, 8, 3), (5, 3, 3, 3), {"padding": 1}),
    ("conv2d", (2, 9, 8, 3), (5, 3, 2, 3), {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 3)}),
    ("conv2d", (1, 6, 6, 6), (6, 3, 3, 1), {"groups": 6, "padding": 1}),
    ("conv2d", (1, 6, 6, 4), (8, 3, 3, 1), {"groups": 4, "stride": 2}),
    ("conv2d", (2, 5, 5, 4), (6, 2, 2, 2), {"groups": 2}),
    ("conv2d", (2, 7, 7, 5), (3, 1, 1, 5), {}),
    ("conv2d", (2, 7, 7, 5), (3, 1, 1, 5), {"stride": 2}),
    ("conv2d", (2, 7, 7, 5), (3, 1, 1, 5), {"padding": 1}),
    ("conv2d", (2, 6, 6, 2), (3, 6, 6, 2), {}),
    ("conv3d", (1, 4, 5, 6, 2), (3, 2, 3, 2, 2), {"padding": 1}),
    ("conv3d", (2, 5, 5, 5, 2), (3, 3, 2, 1, 2), {"stride": (2, 1, 2), "dilation": (1, 2, 1)}),
    ("conv_transpose1d", (2, 5, 3), (4, 3, 3), {}),
    ("conv_transpose1d", (2, 5, 3), (4, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    ("conv_transpose1d", (2, 5, 4), (4, 3, 2), {"stride": 3, "dilation": 2, "groups": 2}),
    ("conv_transpose1d", (2, 5, 3), (4, 3, 3), {"padding": 3}),
    ("conv_transpose1d", (2, 5, 3), (4, 3, 3), {"output_padding": -1}),
    ("conv_transpose2d", (2, 4, 5, 3), (4, 3, 2, 3), {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}),
    ("conv_transpose2d", (1, 4, 4, 2), (3, 4, 4, 2), {"stride": 2, "padding": 1}),
    ("conv_transpose3d", (1, 2, 3, 3, 2), (3, 2, 3, 3, 2), {"stride": 2, "padding": 1, "output_padding": 1}),
    ("conv_general", (2, 6, 7, 3), (4, 3, 3, 3), {"padding": ([1, 0], [2, 1]), "input_dilation": (2, 3), "flip": True}),
    ("conv_general", (2, 6, 7, 3), (4, 2, 3, 3), {"padding": (-1, 2), "kernel_dilation": [2, 1], "stride": [1, 2]}),
    ("conv_general", (2, 9, 4), (6, 3, 2), {"groups": 2, "input_dilation": 2, "stride": 3, "padding": 2}),
    ("conv_general", (2, 6, 3), (4, 3, 3), {"stride": [], "padding": []}),
    ("conv_general", (1, 3, 4, 4, 2), (2, 2, 2, 2, 2), {"input_dilation": 2, "padding": 1, "flip": True}),
]  # fmt: skip


def random(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def name_of(case: Any) -> str:
    name, x, w, options = case
    return "-".join([name, *("x".join(map(str, s)) for s in (x, w)), *(f"{k}={v}" for k, v in options.items())])


def gradients(m: Any, case: Any, compiled: bool) -> list[Any]:
    """The result, and the gradients of both operands, by library `m`."""
    name, x, w, options = case

    def fn(x: Any, w: Any) -> Any:
        return getattr(m, name)(x, w, **options)

    def loss(x: Any, w: Any) -> Any:
        out = fn(x, w)
        return (out * m.sin(m.arange(out.size).reshape(out.shape).astype(m.float32))).sum()

    fn, grad = (m.compile(f) if compiled else f for f in (fn, m.grad(loss, argnums=(0, 1))))
    operands = m.array(random(0, x)), m.array(random(1, w))
    return [fn(*operands), *grad(*operands)]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_convolutions_and_their_gradients(case: Any, compiled: bool) -> None:
    mine = gradients(mlxir, case, compiled)
    if 0 in case[1]:  # MLX's own gradient fails without elements
        assert_same(mine[0], getattr(real, case[0])(*[real.array(random(0, s)) for s in case[1:3]], **case[3]))
        return
    for a, b in zip(mine, gradients(real, case, False), strict=True):
        np.testing.assert_allclose(numpy_of(a), numpy_of(b), rtol=2e-4, atol=2e-4)


# -- arguments and dtypes --------------------------------------------------------------------------------------------
def names(m: Any) -> dict[str, Any]:
    """Operands `x1`, `w1`, ... of 1 to 3 spatial axes; `f16`, ... are dtypes."""
    made = {f"x{d}": m.array(random(d, (2, *range(4, 4 + d), 4))) for d in (1, 2, 3)}
    made |= {f"w{d}": m.array(random(9 + d, (6, *[2] * d, 4))) for d in (1, 2, 3)}
    made |= {"v": m.array(random(7, (9,))), "u": m.array(random(8, (4,))), "g": m.array(random(6, (6, 2, 2)))}
    return made | {"f16": m.float16, "bf16": m.bfloat16, "f64": m.float64, "i32": m.int32, "c64": m.complex64}


EXPRESSIONS = [
    "m.conv1d(x1, w1, 2, 1, 1, 1)", "m.conv1d(x1, w1, stride=True)", "m.conv2d(x2, w2, [1, 2], (1, 0))",
    "m.conv1d(x1.astype(f16), w1)", "m.conv1d(x1.astype(f16), w1.astype(bf16))", "m.conv1d(x1.astype(f64), w1)",
    "m.conv2d(x2.astype(f16), w2.astype(f16), padding=1)", "m.conv2d(x2.astype(bf16), w2.astype(bf16))",
    "m.conv1d(x1.astype(i32), w1)", "m.conv1d(x1, w1.astype(i32))", "m.conv1d(x1.astype(c64), w1)",
    "m.conv1d(x1, w2)", "m.conv2d(x1, w2)", "m.conv2d(x1, w1)", "m.conv3d(x2, w2)", "m.conv1d(v, v)",
    "m.conv_general(v, v)", "m.conv1d(x1, g)", "m.conv1d(x1, g, groups=2)", "m.conv1d(x1, g, groups=4)",
    "m.conv1d(x1, w1, groups=-1)", "m.conv1d(x1, w1, groups=1.0)", "m.conv1d(x1, w1, stride=0)",
    "m.conv1d(x1, w1, dilation=-1)", "m.conv1d(x1, w1, dilation=9)", "m.conv1d(x1, w1, padding=-2)",
    "m.conv1d(x1, w1, (2,))", "m.conv1d(x1, w1, 1.5)", "m.conv2d(x2, w2, (1,))", "m.conv2d(x2, w2, (1, 2, 3))",
    "m.conv2d(x2, w2, 'ab')", "m.conv2d(x2, 3.0)", "m.conv2d(x2, weight=w2)", "m.conv2d(x2, w2, padding=(1, 1.0))",
    "m.conv_general(x2, w2, stride=[1, 2, 3])", "m.conv_general(x2, w2, padding=([1], [1, 2]))",
    "m.conv_general(x2, w2, padding=([1, 1],))", "m.conv_general(x2, w2, padding=((), ()))",
    "m.conv_general(x2, w2, input_dilation=0)", "m.conv_general(x2, w2, kernel_dilation=[0])",
    "m.conv_general(x2, w2, padding=([0, 1], [2, 0]), flip=True)",
    "m.conv_general(x1, w1, 2, ([1], [3]), 1, 2, 1, True)", "m.conv1d(x2, w2)", "m.conv_transpose1d(x2, w2, 2)",
    "m.conv_transpose1d(x1, w1, 2, 1, 1, 1)", "m.conv_transpose2d(x2, w2, output_padding=(1, 0))",
    "m.conv_transpose2d(x1, w2)", "m.conv_transpose1d(x1, w1, (1, 2))", "m.conv_transpose3d(x3, w3, 2)",
    "m.conv_transpose1d(x1, w1, padding=9)", "m.convolve(v, u)", "m.convolve(u, v)", "m.convolve(v, u, 'same')",
    "m.convolve(v, v[:5], mode='same')", "m.convolve(u, v, 'valid')", "m.convolve(v, v, 'valid')",
    "m.convolve(v, u, 'foo')", "m.convolve(v, x1)", "m.convolve(v[:0], u)", "m.convolve(v, 1.0)",
    "m.convolve(v.astype(i32), u)", "m.convolve(v.astype(f16), u)",
    "m.vmap(m.conv1d, (0, None))(m.stack([x1, x1 + 1]), w1)", "m.vmap(m.conv1d, (None, 0))(x1, m.stack([w1, w1 + 1]))",
    "m.vmap(m.conv1d, (0, 0))(m.stack([x1, x1 + 1]), m.stack([w1, w1 + 1]))",
]  # fmt: skip


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_arguments_dtypes_and_errors(text: str) -> None:
    assert_agree(expression(text, names))


def test_groups_of_three_axes_are_as_good() -> None:
    """MLX refuses them; they are what each group gives alone."""
    x, w = random(0, (2, 4, 5, 4, 6)), random(1, (4, 2, 3, 2, 3))
    got = mlxir.conv3d(mlxir.array(x), mlxir.array(w), padding=1, groups=2)
    halves = [
        real.conv3d(real.array(x[..., i * 3 : i * 3 + 3]), real.array(w[i * 2 : i * 2 + 2]), padding=1) for i in (0, 1)
    ]
    np.testing.assert_allclose(np.array(got), np.concatenate([np.array(h) for h in halves], -1), rtol=1e-4, atol=1e-4)


def test_an_empty_kernel_gives_zeros() -> None:
    """MLX dies of it, or leaves memory as it was."""
    x, ones = mlxir.array(random(0, (2, 5, 3))), mlxir.ones
    assert not np.array(mlxir.conv1d(x[..., :0], ones((4, 3, 0)))).any()
    assert mlxir.conv1d(x, ones((0, 3, 3))).shape == (2, 3, 0)
    gradient = mlxir.grad(lambda x: mlxir.conv1d(x, ones((4, 3, 0))).sum())(x[..., :0])
    assert gradient.shape == (2, 5, 0)


# -- larger ones: the blocked kernels --------------------------------------------------------------------------------
LARGE = [
    ("conv2d", (4, 14, 14, 16), (32, 3, 3, 16), {"padding": 1}),
    ("conv2d", (2, 28, 28, 1), (16, 5, 5, 1), {"padding": 2, "stride": 2}),
    ("conv2d", (2, 12, 12, 24), (24, 3, 3, 1), {"padding": 1, "groups": 24}),
    ("conv_transpose2d", (2, 9, 9, 12), (8, 4, 4, 12), {"stride": 2, "padding": 1}),
    ("conv1d", (3, 200, 8), (20, 9, 8), {"dilation": 3}),
    ("conv3d", (2, 8, 8, 8, 4), (12, 3, 3, 3, 4), {"padding": 1}),
]


@pytest.mark.parametrize("case", LARGE, ids=name_of)
def test_compiled_equals_reference_in_float32(case: Any) -> None:
    mine, theirs = gradients(mlxir, case, True), gradients(real, case, False)
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(numpy_of(a), numpy_of(b), rtol=1e-3, atol=1e-3 * float(np.abs(numpy_of(b)).max()))


def test_half_precision_is_summed_in_float32() -> None:
    """4608 terms of 1.0009765625: in float16 the sum would stop growing at 2048."""
    x = mlxir.full((1, 8, 8, 512), 1 + 2.0**-10, mlxir.float16)
    w = mlxir.ones((4, 3, 3, 512), mlxir.float16)
    conv = lambda x, w: mlxir.conv2d(x, w)  # noqa: E731
    for got in (mlxir.compile(conv)(x, w), conv(x, w)):
        assert got.dtype == mlxir.float16 and (np.array(got) == np.float16(4612.5)).all()


# -- pooling: windows of mlx.nn ----------------------------------------------------------------------------------------
def windows(m: Any, x: Any, size: int, stride: int) -> Any:
    """As mlx.nn makes them."""
    n, h, w, c = x.shape
    shape = (n, (h - size) // stride + 1, (w - size) // stride + 1, size, size, c)
    return m.as_strided(x, shape, (h * w * c, stride * w * c, stride * c, w * c, c, 1))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize(("size", "stride"), [(2, 2), (3, 2), (3, 1), (2, 3)])
def test_pooling_and_its_gradient(size: int, stride: int, compiled: bool) -> None:
    x, found = random(0, (2, 9, 8, 5)), []
    for m in (mlxir, real):
        for pool in (m.max, m.mean):


            def loss(x: Any, m: Any = m, pool: Any = pool) -> Any:
                return (pool(windows(m, m.exp(x), size, stride), (3, 4)) ** 2).sum()

            fn = m.value_and_grad(loss)
            found.append((m.compile(fn) if compiled else fn)(m.array(x)))
    for mine, theirs in zip(found[:2], found[2:], strict=True):
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(numpy_of(a), numpy_of(b), rtol=1e-4, atol=1e-4)


def test_gradient_of_a_strided_view_that_is_no_window() -> None:
    assert_agree(expression(
        "m.grad(lambda x: (m.as_strided(x, (3, 4), (5, 2), 1) ** 3).sum())(m.arange(20.0).reshape(4, 5) / 9)",
        lambda m: {},
    ))  # fmt: skip
