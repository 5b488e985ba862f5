"""Attention: the streaming kernels against the reference tier, what they keep in memory, what becomes attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from operands import normal

import mlxir as mx
from mlxir.compiler import pipeline
from mlxir.compiler.graph import GraphBuilder, Value, cut
from mlxir.compiler.passes.fuse import Fused
from mlxir.runtime.dtypes import bool_, float32
from mlxir.runtime.knobs import knobs

SHAPES = {  # batch, heads, key heads, rows, keys, features of keys, features of values
    "one block": (2, 3, 3, 20, 30, 16, 16),
    "blocks of rows and keys": (1, 2, 2, 130, 150, 24, 40),
    "odd features": (2, 2, 1, 33, 65, 13, 5),
    "a token": (2, 4, 4, 1, 300, 32, 16),
    "a token of shared keys": (1, 6, 2, 1, 70, 7, 24),
    "more rows than keys": (1, 2, 2, 40, 9, 8, 8),
    "heads in one block": (1, 4, 1, 19, 40, 16, 16),
}
CASES = [(name, mask) for name in SHAPES for mask in ("causal", "bool", "sinks")]
CASES += [(name, mask) for name in ("odd features", "a token") for mask in ("none", "additive", "keys")]
TOLERANCE = {mx.float32: 2e-6, mx.float16: 2e-3, mx.bfloat16: 1.6e-2, mx.float64: 1e-12}
pytestmark = pytest.mark.usefixtures("made")


def both(function: Callable[..., Any], *arguments: mx.array) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each result of the compiled function with that of the reference tier, as float64."""
    knobs.tier = "reference"
    expected = function(*arguments)
    actual = mx.compile(function)(*arguments)
    pairs = [x if isinstance(x, (list, tuple)) else [x] for x in (actual, expected)]
    assert [a.dtype for a in pairs[0]] == [e.dtype for e in pairs[1]]
    return [tuple(np.array(x.astype(mx.float64)) for x in pair) for pair in zip(*pairs, strict=True)]


def assert_equal(pairs: list[tuple[np.ndarray, np.ndarray]], tolerance: float) -> None:
    for actual, expected in pairs:
        np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
        scale = max(1.0, float(np.nanmax(np.abs(expected), initial=0)))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def launched(made: list[Fused]) -> list[str]:
    return [launch.kind for launch in made[-1].launches]


def attention(shape: tuple[int, ...], mask: str, dtype: Any) -> tuple[Callable[..., mx.array], list[mx.array]]:
    """`fast`'s attention of three arrays, and the arrays."""
    batch, heads, groups, steps, length, width, values = shape
    rng = np.random.default_rng(1)
    options: dict[str, Any] = {"scale": width**-0.5}
    if mask == "causal":
        options["mask"] = "causal"
    elif mask == "bool":
        options["mask"] = mx.array(rng.random((batch, heads, steps, length)) > 0.6)
    elif mask == "additive":
        hidden = np.where(rng.random((steps, length)) > 0.2, rng.standard_normal((steps, length)), -np.inf)
        options["mask"] = mx.array(hidden).astype(dtype)
    elif mask == "keys":
        options["mask"] = mx.array(rng.random((batch, 1, 1, length)) > 0.3)
    elif mask == "sinks":
        options |= {"sinks": normal(heads, dtype=dtype), "mask": "causal"}
    sizes = (batch, heads, steps, width), (batch, groups, length, width), (batch, groups, length, values)
    arrays = [normal(*s, dtype=dtype, seed=i) for i, s in enumerate(sizes)]
    return lambda *a: mx.fast.scaled_dot_product_attention(*a, **options), arrays


# -- the kernels -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "mask"), CASES)
def test_kernels_equal_the_reference(name: str, mask: str, made: list[Fused]) -> None:
    """The value, and the gradients for q, k and v."""
    function, arrays = attention(SHAPES[name], mask, mx.float32)
    weights = normal(*function(*arrays).shape, seed=7)

    def loss(*a: mx.array) -> mx.array:
        return (function(*a) * weights).sum()

    assert_equal(both(mx.grad(loss, argnums=(0, 1, 2)), *arrays), TOLERANCE[mx.float32])
    assert {"attention", "attention_grad"} <= set(launched(made))
    assert_equal(both(function, *arrays), TOLERANCE[mx.float32])
    assert launched(made) == ["attention"]


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float64])
@pytest.mark.parametrize("name", ["blocks of rows and keys", "a token of shared keys"])
def test_dtypes(name: str, dtype: Any) -> None:
    function, arrays = attention(SHAPES[name], "sinks", dtype)
    assert_equal(both(function, *arrays), TOLERANCE[dtype])

    def loss(*a: mx.array) -> mx.array:
        return function(*a).astype(mx.float32).square().sum()

    assert_equal(both(mx.grad(loss, argnums=(0, 1, 2)), *arrays), TOLERANCE[dtype])


@pytest.mark.parametrize("transform", ["jvp", "second", "vmap", "vmap of grad", "mask", "sinks"])
def test_transforms(transform: str) -> None:
    """What has no kernel is taken apart; examples become more of the batch."""
    q, k, v = (normal(2, 2, 12, 8, seed=i) for i in range(3))
    bias, sinks = normal(12, 12, seed=4), normal(2, seed=5)

    def attend(q: mx.array, k: mx.array, v: mx.array, bias: Any = "causal", sinks: Any = sinks) -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=0.3, mask=bias, sinks=sinks)

    def loss(*a: mx.array) -> mx.array:
        return attend(*a).square().sum()

    gradient = mx.grad(loss, argnums=(0, 1, 2))
    functions: dict[str, Callable[..., Any]] = {
        "jvp": lambda q, k, v: mx.jvp(attend, [q, k, v], [k, v, q])[1],
        "second": lambda q, k, v: mx.grad(lambda x: (gradient(x, k, v)[1] * q).sum())(q),
        "vmap": lambda q, k, v: mx.vmap(lambda a, b: attend(a[None], b[None], v[:1]))(q, k),
        "vmap of grad": lambda q, k, v: mx.vmap(lambda a, b: mx.grad(loss)(a[None], b[None], v[:1]))(q, k),
        "mask": lambda q, k, v: mx.grad(lambda b: attend(q, k, v, b).square().sum())(bias),
        "sinks": lambda q, k, v: mx.grad(lambda s: attend(q, k, v, "causal", s).square().sum())(sinks),
    }
    assert_equal(both(functions[transform], q, k, v), 1e-5)


def test_rows_without_keys_are_those_of_the_plain_formula() -> None:
    """Nothing to see: the mean of the values; nothing but -inf: NaN."""
    q, k, v = (normal(1, 1, 20, 8, seed=i) for i in range(3))
    hidden = np.zeros((20, 20), bool)
    hidden[3] = True
    for mask in (mx.array(~hidden), mx.array(np.where(hidden, -np.inf, 0).astype(np.float32))):
        for rows in (slice(0, 20), slice(3, 4)):

            def attend(q: mx.array, k: mx.array, v: mx.array, mask: mx.array = mask, rows: slice = rows) -> mx.array:
                return mx.fast.scaled_dot_product_attention(q[:, :, rows], k, v, scale=1.0, mask=mask[rows])

            assert_equal(both(attend, q, k, v), 2e-6)
            assert_equal(both(mx.grad(lambda *a: attend(*a).sum(), argnums=(0, 1, 2)), q, k, v), 2e-6)
    out = mx.compile(lambda: mx.fast.scaled_dot_product_attention(q, k, v, scale=1.0, mask=mx.array(~hidden)))()
    np.testing.assert_allclose(np.array(out)[0, 0, 3], np.array(v).mean(axis=(0, 1, 2)), atol=1e-6)


# -- memory ----------------------------------------------------------------------------------------------------------
def written(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    scores = (q @ k.swapaxes(-1, -2)) * 0.25
    steps = mx.arange(q.shape[-2])
    scores = mx.where(steps[:, None] >= steps[None], scores, -math.inf)
    return mx.softmax(scores, axis=-1) @ v


def fast(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=0.25, mask="causal")


@pytest.mark.parametrize("function", [written, fast])
def test_no_buffer_holds_the_scores(function: Callable[..., mx.array], made: list[Fused]) -> None:
    """With 512 rows of 8 features, one example's scores would be larger than everything that is kept, together."""
    arrays = [normal(1, 1, 512, 8, seed=i) for i in range(3)]
    plans = []
    for f in (function, mx.grad(lambda *a: function(*a).square().sum(), argnums=(0, 1, 2))):
        mx.eval(mx.compile(f)(*arrays))
        plans.append(made[-1])
    for plan in plans:
        assert "matmul" not in [launch.kind for launch in plan.launches]
        assert sum(a.size for a in plan.values) < 512 * 512


# -- what becomes attention --------------------------------------------------------------------------------------------
def scaled(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None = None) -> mx.array:
    scores = q @ mx.swapaxes(k, -1, -2) / math.sqrt(q.shape[-1])
    return mx.softmax(scores if mask is None else scores + mask, axis=-1) @ v


def additive(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    steps = mx.arange(q.shape[-2])
    return scaled(q, k, v, (steps[:, None] < steps[None]).astype(mx.float32) * -1e9)


def precise(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    return mx.softmax((0.3 * q) @ k.swapaxes(-1, -2), axis=-1, precise=True) @ v


LEADS = {"matrices": (), "heads": (3,), "batch": (2, 3), "groups": (2, 2, 2)}


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize("function", [written, scaled, additive, precise])
def test_attention_in_parts_is_recognised(function: Callable, lead: str, made: list[Fused]) -> None:
    arrays = [normal(*LEADS[lead], 35, 16, seed=i) for i in range(3)]
    assert_equal(both(function, *arrays), 2e-6)
    assert launched(made) == ["attention"]
    text = made[-1].module.text()
    assert ("causal = true" in text) == (function in (written, additive)), text
    gradient = mx.grad(lambda *a: function(*a).sum(), argnums=(0, 1, 2))
    assert_equal(both(gradient, *arrays), 5e-6)
    assert "attention_grad" in launched(made) and "matmul" not in launched(made)


@pytest.mark.parametrize("shape", [(9, 11), (2, 1, 9, 11), (3, 9, 11), (1, 3, 1, 11), ()])
def test_masks_that_broadcast(shape: tuple[int, ...], made: list[Fused]) -> None:
    arrays = [normal(2, 3, 9, 8), normal(2, 3, 11, 8, seed=1), normal(2, 3, 11, 4, seed=2), normal(*shape, seed=3)]
    assert_equal(both(scaled, *arrays), 2e-6)
    assert launched(made) == ["attention"]


def test_queries_that_share_keys(made: list[Fused]) -> None:
    arrays = [normal(2, 3, 4, 9, 8), normal(2, 3, 1, 11, 8, seed=1), normal(2, 3, 1, 11, 4, seed=2)]
    assert_equal(both(scaled, *arrays), 2e-6)
    assert launched(made) == ["attention"]


def test_weights_that_are_read_exist(made: list[Fused]) -> None:
    def with_weights(q: mx.array, k: mx.array, v: mx.array) -> list[mx.array]:
        weights = mx.softmax(q @ k.swapaxes(-1, -2), axis=-1)
        return [weights @ v, weights]

    assert_equal(both(with_weights, *[normal(2, 9, 8, seed=i) for i in range(3)]), 2e-6)
    assert "attention" not in launched(made)


def test_a_mask_that_is_almost_causal_is_not_causal(made: list[Fused]) -> None:
    def strict(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        steps = mx.arange(20)
        return mx.softmax(mx.where(steps[:, None] > steps[None], q @ k.swapaxes(-1, -2), -1e9), axis=-1) @ v

    assert_equal(both(strict, *[normal(20, 8, seed=i) for i in range(3)]), 2e-6)
    assert launched(made) == ["attention"] and "causal = true" not in made[-1].module.text()


def test_heads_are_laid_out_as_they_are_read(made: list[Fused]) -> None:
    """A block of a transformer moves no heads: products read slices of a weight and write what attention reads."""

    def block(x: mx.array, w: mx.array, out: mx.array) -> mx.array:
        batch, steps, width = x.shape
        q, k, v = ((x @ part).reshape(batch, steps, 4, -1).transpose(0, 2, 1, 3) for part in mx.split(w, 3, axis=1))
        return fast(q, k, v).transpose(0, 2, 1, 3).reshape(batch, steps, width) @ out

    arrays = [normal(2, 20, 32), normal(32, 96, seed=1) * 0.1, normal(32, 32, seed=2) * 0.1]
    assert_equal(both(block, *arrays), 2e-6)
    assert launched(made) == ["matmul", "matmul", "matmul", "attention", "matmul"]
    assert_equal(both(mx.grad(lambda *a: block(*a).square().sum(), argnums=(0, 1, 2)), *arrays), 1e-5)


def test_what_the_kernels_do_not_take_is_taken_apart(made: list[Fused]) -> None:
    for shape in ((1, 1, 1, 3, 4, 600, 8), (1, 1, 1, 3, 4, 8, 0), (0, 1, 1, 3, 4, 8, 8)):
        function, arrays = attention(shape, "causal", mx.float32)
        assert_equal(both(function, *arrays), 2e-6)
        assert "attention" not in launched(made)


def test_metal_streams_it_too() -> None:
    """One kernel, and no scores in memory: beside the result there is room for the rows' maxima and sums."""
    m, values = GraphBuilder(), [Value((1, 2, 16, 8), float32) for _ in range(3)]
    mask, sinks = m.full(value=True, shape=(1, 1, 1, 1), dtype=bool_), m.scalar(-math.inf, float32)
    operands = [*map(m.handle, values), mask, m.reshape(sinks, shape=(1, 1))]
    out, _, _ = m.attention(*operands, scale=0.5, causal=True, fill=-6e4, swapped=False)
    text, schedule = pipeline.compile_metal(cut([out.value], values).program)
    assert [step["kernel"] for step in schedule["steps"]] == ["mx_attention"] and "simdgroup_float8x8" in text
    assert schedule["arena"] < 2 * 16 * 16 * 4
